//! heddle-proxy: one proxy per node, which routes every call of the node's services. The modules of the path of calls come
//! first, from the bottom up, then the control side that supplies them. The two sides share immutable tables and bounded
//! channels; no lock and no async runtime may come onto the path. Nothing of the control plane's code may come in: the two
//! planes meet only in `heddle-proto` and in xDS. A test checks which module may use which (`tests/conformance`).

// ---- the path of calls: storage, ids and times; connections; the handshake between proxies
mod arena;
mod keys;
mod timers;
mod settings;
mod caller;
mod connection;
mod link;

// ---- what a request meets: worker/ drives listener/ -> route/ -> policy/ -> balance/ -> upstream/ -> exchange/ ->
// ---- observe/, and failure/ says what went wrong
pub mod worker;
pub mod listener;
pub mod route;
pub mod policy;
pub mod balance;
pub mod upstream;
pub mod exchange;
pub mod observe;
pub mod failure;

// ---- the control side: options, and the order in which all starts and stops
pub mod options;
pub mod app;
// ---- what it knows: the node's own instances, the mesh as the control plane sends it, both joined to a table
pub mod agent;
pub mod xds;
pub mod mesh;
pub mod state_dir;
pub mod control_urls;
// ---- what it shows
pub mod readiness;
pub mod admin;

pub use app::run;
