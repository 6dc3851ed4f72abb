//! heddle-proxy: one proxy per node that puts every call on the right thread. This file is the map: the rooms
//! of the data path stand in the order in which a request meets them, then the control side that feeds them.
//! The two sides share immutable tables and bounded channels; no lock and no async runtime come onto the path,
//! and nothing of the control plane's code comes in here: the two meet only in `heddle-proto` and in xDS.

// ---- what the path of a call stands on
mod arena;
mod keys;
mod timers;
mod settings;
mod caller;
mod connection;
mod link;

// ---- the way of a request: worker/ drives listener/ -> route/ -> policy/ -> balance/ -> upstream/ ->
// ---- exchange/ -> observe/, and failure says what went wrong
pub mod worker;
pub mod listener;
pub mod route;
pub mod policy;
pub mod balance;
pub mod upstream;
pub mod exchange;
pub mod observe;
pub mod failure;

// ---- the control side: what the user wants, in which order all starts and stops
pub mod options;
pub mod app;
// ---- what it knows: the node's own instances, the mesh as the control plane tells it, both joined to a table
pub mod agent;
pub mod xds;
pub mod mesh;
pub mod state_dir;
pub mod control_urls;
// ---- what it shows
pub mod readiness;
pub mod admin;

pub use app::run;
