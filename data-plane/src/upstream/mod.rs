//! Connections to instances and to other proxies of one worker: opened on demand, as few as possible. Takes an
//! endpoint; gives a connection with room for one more stream, or makes the call wait. The choice between endpoints and
//! what a call is do not belong here.

pub(crate) mod dial;
mod dialing;
pub(crate) mod load;
pub(crate) mod pool;
pub(crate) mod pools;
pub(crate) mod stream_shares;
pub(crate) mod waiting;

pub(crate) use pools::Pools;

#[cfg(test)]
mod tests;
