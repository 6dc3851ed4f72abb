//! One call from its headers to its end: connects a downstream stream to its upstream attempts. Takes events of both
//! sides; gives frames for the other side and exactly one `Outcome`. Routing, policy and the choice of an endpoint are
//! in route/, policy/ and balance/; sockets are in connection/, the event loop in worker/.

mod owner;
mod turn;
mod panics;
mod drain;
mod accept;
mod caller_input;
mod http2_caller;
mod accepted_connection;
mod server_events;
mod input;
mod output;
mod ends;
mod cancels;
mod opening;
mod queue;
mod admission;
mod begin;
mod caller_stream;
mod calls;
mod parked;
mod waiting_places;
mod attempt;
mod forward;
mod buffered;
mod queued;
mod response;
mod endpoint_health;
mod deadline;
mod replay;
mod retry;
mod finish;
mod headers;
mod services;
mod state;

pub(crate) use owner::{Exchange, ExchangeInit};

#[cfg(test)]
mod tests;
