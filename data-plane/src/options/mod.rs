//! The proxy's process settings. `raw` has what the user typed (one definition gives flags, environment, YAML and
//! `--help`). `resolve` turns it into [`Options`]: typed addresses and durations, cross-checked, with every fault
//! reported at once together with the word that the user wrote. Routes and policies are not set here.

mod listeners;
mod raw;
mod resolve;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use heddle_listen::{ListenAddr, ListenOption};

use crate::xds::demand::Prefetch;

pub use raw::RawOptions;
pub use resolve::{OptionsError, is_own_address};

/// The checked settings. Each module gets only its part of them.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name, a DNS label.
    pub node: String,
    /// Host names that mean "route by proto service" (host name, node name, `--own-name`).
    pub own_names: Vec<String>,
    /// The control plane's replicas as URLs, tried in turn; empty without a control plane.
    pub control: Vec<String>,
    /// Where state is kept across restarts; `None`: nowhere.
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
    /// The most connections on outbound and on inbound, per worker; on agent and on admin.
    pub outbound_connections: usize,
    pub inbound_connections: usize,
    pub agent_connections: usize,
    pub admin_connections: usize,
    /// Host names that HTTP clients use for this host: host name, node name, `--own-name`, the host of `--advertise`.
    pub host_names: Vec<String>,
    /// Warnings for the start.
    pub warnings: Vec<String>,
    /// The address at which other nodes reach inbound; `None`: that of the bound listener.
    pub advertise: Option<SocketAddr>,
    /// Region of this node, empty by default.
    pub region: String,
    /// Zone of this node, empty by default.
    pub zone: String,
    /// How long calls may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// The most connections of a worker to one instance or node.
    pub upstream_connections: usize,
    /// How long a call waits for a stream to its instance.
    pub pending_timeout: Duration,
    /// The services whose endpoints are fetched without a call.
    pub prefetch: Prefetch,
    /// The endpoints of a service that nobody has used for this long are dropped until the next call.
    pub service_idle: Duration,
    /// Folder of files that name instances which do not register themselves.
    pub services_dir: Option<PathBuf>,
    /// Inbound may listen beyond loopback without mTLS.
    pub insecure_inbound: bool,
    /// The words as given, for `/config`: name and value (secrets as `***`).
    pub given: Vec<(&'static str, String)>,
}
