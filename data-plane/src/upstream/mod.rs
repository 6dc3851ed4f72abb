//! Connections to instances and to other proxies: opened on demand, few and full, one worker's only. An endpoint comes in, a
//! connection with room for one more stream goes out, or the call waits. No choice between endpoints is made here, and
//! what a call is may not come in.

pub(crate) mod dial;
mod dialing;
pub(crate) mod pool;
pub(crate) mod pools;
pub(crate) mod account;
pub(crate) mod waiting;

pub(crate) use pools::Pools;

#[cfg(test)]
mod tests;
