//! The proxy's process settings. `low` is what the user typed (one definition gives flags, environment, YAML and
//! `--help`); `resolve` turns it into [`Options`]: addresses and durations as types, cross-checks done, every
//! fault reported at once with the word the user wrote. Routes and policies do not come in here.

mod listeners;
mod low;
mod resolve;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use heddle_listen::{ListenAddr, ListenOption};

use crate::xds::demand::Prefetch;

pub use low::LowOptions;
pub use resolve::{OptionsError, is_own_address, parse_duration};

/// Everything that the modules need to know, checked. Each gets its part of it, never the whole.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name, a DNS label.
    pub node: String,
    /// Names other than the services' that mean "route by proto service" (host name, node name, `--own-name`).
    pub own_names: Vec<String>,
    /// The control plane's replicas as URLs, tried in turn; empty when there is none.
    pub control: Vec<String>,
    /// Where state is kept across restarts; `None` keeps none.
    pub state_dir: Option<PathBuf>,
    /// Threads of the data path.
    pub workers: usize,
    /// Listeners for the calls of local services.
    pub outbound: Vec<ListenAddr>,
    /// Listeners for the calls of other nodes.
    pub inbound: Vec<ListenAddr>,
    /// Listeners of the registration API.
    pub agent: Vec<ListenOption>,
    /// Listeners of the admin API.
    pub admin: Vec<ListenOption>,
    /// Connections at a time on outbound and on inbound, per worker; on agent and on admin.
    pub outbound_connections: usize,
    pub inbound_connections: usize,
    pub agent_connections: usize,
    pub admin_connections: usize,
    /// Names by which HTTP clients mean this host: host name, node name, `--own-name`, the host of `--advertise`.
    pub host_names: Vec<String>,
    /// What to warn of at start.
    pub warnings: Vec<String>,
    /// Where other nodes reach inbound; `None` takes it from the bound listener.
    pub advertise: Option<SocketAddr>,
    /// Region of this node, empty by default.
    pub region: String,
    /// Zone of this node, empty by default.
    pub zone: String,
    /// How long calls may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Most connections of a worker to one instance or node.
    pub upstream_connections: usize,
    /// How long a call waits for a stream to its instance.
    pub pending_timeout: Duration,
    /// Whose endpoints are fetched without a call.
    pub prefetch: Prefetch,
    /// A service that nobody has used for so long is dropped until it is called again.
    pub service_idle: Duration,
    /// Files of instances that do not register themselves.
    pub services_dir: Option<PathBuf>,
    /// Inbound may listen beyond loopback without mTLS.
    pub insecure_inbound: bool,
    /// The words as given, for the configuration dump: name, value (secrets as `***`).
    pub given: Vec<(&'static str, String)>,
}
