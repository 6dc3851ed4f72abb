//! heddle-proxy: one proxy per node, which routes every call of the node's services. The modules of the path of calls
//! come first, from the bottom up, then the control side. The two sides share immutable tables and bounded channels;
//! there is no lock and no async runtime on the path of calls. The control plane's code is not used here: the two
//! planes share only `heddle-proto` and xDS. A test checks which module may use which (`tests/conformance`).

// ---- the path of calls: storage, ids and timers; connections; the handshake between proxies
mod arena;
mod keys;
mod timers;
mod settings;
mod caller;
mod connection;
mod link;

// ---- one request: worker/ drives listener/ -> route/ -> policy/ -> balance/ -> upstream/ -> exchange/ -> observe/;
// ---- failure/ has the failures
pub mod worker;
pub mod listener;
pub mod route;
pub mod policy;
pub mod balance;
mod upstream;
mod exchange;
pub mod observe;
pub mod failure;

// ---- the control side: options, start and stop
pub mod options;
pub mod app;
// ---- its inputs: the node's own instances and the mesh from the control plane, joined into a routing table
pub mod agent;
pub mod xds;
pub mod mesh;
pub mod state_dir;
pub mod control_urls;
// ---- its outputs
pub mod readiness;
pub mod admin;

pub use app::run;
