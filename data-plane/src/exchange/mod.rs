//! One call from its headers to its end: connects a downstream stream to its upstream attempts. Takes events of both
//! sides; gives frames for the other side and exactly one `Outcome`. Routing, policy and the choice of an endpoint are
//! in route/, policy/ and balance/; sockets are in connection/, the event loop in worker/. The parts are listed from the
//! bottom up in docs/architecture.md; a test checks that none uses one above it (`tests/conformance/modules`).

mod accounting;
mod admission;
mod answer;
mod attempt;
mod call;
mod close;
mod connect;
mod detach;
mod endpoint_requests;
mod events;
mod finish;
mod headers;
mod output;
mod owner;
mod request;
mod response;
mod turn;

pub(crate) use owner::{Exchange, ExchangeInit};

#[cfg(test)]
mod tests;
