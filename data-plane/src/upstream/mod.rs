//! Connections to instances and to other proxies: opened on demand, few and full, one worker's only. A chosen
//! endpoint comes in, a connection with room for one more stream goes out, or the call waits. No choice between
//! endpoints is made here.

pub(crate) mod pool;
pub(crate) mod queue;
pub(crate) mod waiting;
pub(crate) mod account;
pub(crate) mod connect;
pub(crate) mod events;
pub(crate) mod cancels;
pub(crate) mod link;
