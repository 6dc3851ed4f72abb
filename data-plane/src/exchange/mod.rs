//! One call from its headers to its end: connects a downstream stream to its upstream attempts. Takes events of both
//! sides; gives frames for the other side and exactly one `Outcome`. Routing, policy and the choice of an endpoint are
//! in route/, policy/ and balance/; sockets are in worker/.

mod owner;
pub(crate) mod accept;
mod caller_events;
mod server_events;
pub(crate) mod input;
mod output;
mod ends;
mod cancels;
mod opening;
mod queue;
pub(crate) mod admission;
pub(crate) mod begin;
pub(crate) mod caller_stream;
pub(crate) mod calls;
pub(crate) mod parked;
pub(crate) mod waiting_places;
pub(crate) mod attempt;
pub(crate) mod forward;
pub(crate) mod buffered;
pub(crate) mod queued;
pub(crate) mod response;
pub(crate) mod endpoint_health;
pub mod deadline;
pub(crate) mod replay;
pub(crate) mod retry;
pub(crate) mod finish;
pub(crate) mod headers;
pub(crate) mod services;
pub(crate) mod state;

pub(crate) use owner::{Exchange, ExchangeInit};
