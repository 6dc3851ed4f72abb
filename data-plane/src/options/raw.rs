//! The options as typed. Only the syntax of each word is checked; nothing is resolved here.

use std::path::PathBuf;

use crate::admin::{http::ADMIN_CONNECTIONS, serve::AGENT_CONNECTIONS};

/// Heddle's data plane: one proxy per node. Local services call its outbound listener, other nodes its inbound.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "heddle-proxy", version)]
pub struct RawOptions {
    /// Name of this node, a DNS label, unique in the mesh [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// URLs of the control plane's replicas, separated by commas; `none`: no control plane, only this node's own instances
    /// are served
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:15010"
    )]
    pub control: Vec<String>,
    /// Keeps the last good state across restarts; created if missing [default: nothing is kept]
    #[arg(long, value_name = "PATH")]
    pub state_dir: Option<PathBuf>,
    /// Threads of the data path [default: the CPU quota, at most 4]
    #[arg(long, value_name = "N")]
    pub workers: Option<u16>,
    /// Where local services send their calls: IP:PORT (port 0: a free one), localhost:PORT (127.0.0.1 and ::1) or
    /// unix:/path; repeatable
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15001")]
    pub outbound: Vec<String>,
    /// Where the proxies of other nodes send calls; like --outbound [default: 127.0.0.1:15008; with --insecure-inbound
    /// 0.0.0.0:15008]
    #[arg(long, value_name = "ADDR")]
    pub inbound: Vec<String>,
    /// Allows inbound to listen beyond loopback without mTLS: anyone who can reach it can call every instance of this node
    #[arg(long)]
    pub insecure_inbound: bool,
    /// Where the services of this host register (gRPC); like --outbound
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15002")]
    pub agent: Vec<String>,
    /// Admin over HTTP (/metrics, /healthz, /readyz, /config) and gRPC (health, reflection); like --outbound
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: Vec<String>,
    /// Allows this address of --outbound, --agent or --admin although it is not a loopback address and callers are
    /// not authenticated yet; repeatable
    #[arg(long, value_name = "ADDR")]
    pub insecure_listen: Vec<String>,
    /// Maximum connections on outbound, per worker; at the limit, the connection that has been idle longest is closed for a
    /// new one
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub outbound_connections: usize,
    /// Maximum connections on inbound, per worker; like --outbound-connections
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub inbound_connections: usize,
    /// Maximum connections on the agent; like --outbound-connections
    #[arg(long, value_name = "N", default_value_t = AGENT_CONNECTIONS)]
    pub agent_connections: usize,
    /// Maximum connections on admin; like --outbound-connections
    #[arg(long, value_name = "N", default_value_t = ADMIN_CONNECTIONS)]
    pub admin_connections: usize,
    /// Where other nodes reach this node's inbound [default: the inbound listener's address]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Region and zone of this node
    #[arg(long, value_name = "REGION/ZONE")]
    pub locality: Option<String>,
    /// A further host name of this proxy; calls to it are routed by their proto service, like calls to localhost; repeatable
    #[arg(long, value_name = "NAME")]
    pub own_name: Vec<String>,
    /// How long calls in flight may take after SIGTERM before they are cut off
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub drain_timeout: String,
    /// Maximum connections of a worker to one instance or node; a further one is opened when calls wait for a stream
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub upstream_connections: u16,
    /// How long a call waits for a stream to its instance before it fails with OVERLOADED
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub pending_timeout: String,
    /// Services whose endpoints are fetched before the first call (`users` or `users.shop`), or `all`; repeatable
    /// [default: none: the endpoints of a service are fetched at its first call]
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    pub prefetch: Vec<String>,
    /// The endpoints of a service that is not called for this long are dropped; the next call fetches them again
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub service_idle: String,
    /// Folder of YAML files that define instances which do not register themselves; watched for changes
    #[arg(long, value_name = "DIR")]
    pub services_dir: Option<PathBuf>,

    // Options of later versions, accepted so that one set of options suits both. They have no default: what is given
    // and has no effect is named by a warning at start.
    /// Answers `*.mesh` by DNS. Not in this version: accepted, has no effect
    #[arg(long, hide = true, value_name = "ADDR")]
    pub dns: Vec<String>,
    /// Gateway for HTTP, gRPC-Web and WebSocket from outside the mesh. Not in this version: accepted, has no effect
    #[arg(long, hide = true, value_name = "ADDR")]
    pub gateway: Vec<String>,
    /// What the gateway exposes. Not in this version: accepted, has no effect
    #[arg(long, hide = true, value_name = "WHAT")]
    pub gateway_expose: Vec<String>,
    /// Origins whose pages may call the gateway. Not in this version: accepted, has no effect
    #[arg(long, hide = true, value_name = "ORIGIN")]
    pub gateway_origin: Vec<String>,
    /// Proxies in front of the gateway whose X-Forwarded-* headers are trusted. Not in this version: accepted, has no effect
    #[arg(long, hide = true, value_name = "CIDR")]
    pub gateway_trusted_proxy: Vec<String>,
    /// Interactive API documentation at the gateway. Not in this version: accepted, has no effect
    #[arg(long, hide = true, value_name = "on|off", value_parser = ["on", "off"])]
    pub gateway_docs: Option<String>,
    /// How much detail of a failure the gateway shows. Not in this version: accepted, has no effect
    #[arg(long, hide = true, value_name = "short|full", value_parser = ["short", "full"])]
    pub gateway_errors: Option<String>,
    /// Name of this gateway in the mesh. Not in this version: accepted, has no effect
    #[arg(long, hide = true, value_name = "NAME")]
    pub gateway_name: Option<String>,
}
