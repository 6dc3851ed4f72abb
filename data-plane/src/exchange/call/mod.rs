//! The state of one call: its phase, its streams on both sides and what is kept for a retry. Only state and simple
//! queries belong here; the files beside it change the state.

mod calls;
mod queued;
mod replay;

pub(in crate::exchange) use calls::Calls;
pub(in crate::exchange) use queued::Queued;
use replay::Replay;

use std::sync::Arc;
use std::time::Instant;

use heddle_h2::{Fields, StreamId};
use heddle_proto::Reason;

use crate::balance::{Endpoint, Target};
use crate::caller::{Account, Role};
use crate::failure::Failure;
use crate::keys::{ConnKey, PoolKey};
use crate::policy::CallPolicy;
use crate::policy::buffers::{Amounts, CallCharge};
use crate::route::{Route, Rule, Service};
use crate::timers::TimerId;

/// Progress of a call. It can be retried in every phase before `Committed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exchange) enum Phase {
    /// Waits for the first routing table.
    Table,
    /// Waits for the endpoints of its service.
    Endpoints,
    /// Waits in a pool for a connection with room.
    Pending(PoolKey),
    /// Waits before a retry.
    Backoff,
    /// Sent; no response yet.
    Attempting,
    /// Response headers have been forwarded, or the request has outgrown the replay buffer.
    Committed,
    /// The response has ended; its last bytes wait for the caller's window.
    Finishing,
}

/// What has been sent of the response to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exchange) enum ResponseProgress {
    Nothing,
    Headers,
    All,
}

/// The stream on which a call arrived, in the protocol of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exchange) enum CallerStreamId {
    Http2(StreamId),
    #[cfg(test)]
    Memory(usize),
}

/// The caller's end of a call.
#[derive(Clone, Copy, Debug)]
pub(in crate::exchange) struct Downstream {
    pub(in crate::exchange) conn: ConnKey,
    pub(in crate::exchange) stream: CallerStreamId,
    /// Index in the connection's list of calls.
    pub(in crate::exchange) slot: usize,
}

/// The stream of the current attempt.
#[derive(Clone, Copy, Debug)]
pub(in crate::exchange) struct Attempt {
    pub(in crate::exchange) conn: ConnKey,
    pub(in crate::exchange) stream: StreamId,
    pub(in crate::exchange) slot: usize,
    pub(in crate::exchange) started: Instant,
    /// Request bytes that this attempt has written.
    pub(in crate::exchange) written: usize,
    pub(in crate::exchange) pool: PoolKey,
    /// The stream is charged to the call's account in that pool.
    pub(in crate::exchange) charged: bool,
    /// The peer is another proxy.
    pub(in crate::exchange) link: bool,
}

#[derive(Debug)]
pub(in crate::exchange) struct Call {
    pub(in crate::exchange) role: Role,
    pub(in crate::exchange) phase: Phase,
    pub(in crate::exchange) down: Downstream,
    pub(in crate::exchange) up: Option<Attempt>,
    /// The request is gRPC, so failures are sent as gRPC statuses.
    pub(in crate::exchange) grpc: bool,
    pub(in crate::exchange) id: CallId,
    /// The request's headers as the caller sent them, without `heddle-*`; edited for each attempt.
    pub(in crate::exchange) request: Fields,
    pub(in crate::exchange) replay: Replay,
    pub(in crate::exchange) request_trailers: Option<Box<Fields>>,
    pub(in crate::exchange) request_ended: bool,
    /// Request bytes received, and how many of them have been credited to the caller.
    pub(in crate::exchange) received: usize,
    pub(in crate::exchange) credited: usize,
    pub(in crate::exchange) sent: ResponseProgress,
    pub(in crate::exchange) service: Option<Arc<Service>>,
    /// The rule by which it was routed.
    pub(in crate::exchange) rule: Option<Rule>,
    /// The worker's default until the call is routed.
    pub(in crate::exchange) policy: CallPolicy,
    pub(in crate::exchange) account: Account,
    /// Endpoint of the current or last attempt.
    pub(in crate::exchange) endpoint: Option<Arc<Endpoint>>,
    /// Inbound: the uid of the instance that the caller's proxy chose, if it is on this node.
    pub(in crate::exchange) wanted: Option<u64>,
    /// Attempts so far, including those that found no connection.
    pub(in crate::exchange) attempts: u32,
    /// How many of them failed after the application may have seen the call.
    pub(in crate::exchange) seen: u32,
    /// Counted in the endpoint's load.
    pub(in crate::exchange) charged: bool,
    /// Endpoints that failed in this call.
    pub(in crate::exchange) tried: Vec<u64>,
    /// How often it was retried on an endpoint that had already failed, because there was no other.
    pub(in crate::exchange) repeats: u32,
    /// How the last attempt failed that the application may have seen: what the caller gets if no other is made.
    pub(in crate::exchange) last_failure: Option<Box<Failure>>,
    /// Bytes queued in the HTTP/2 state machines of the two connections.
    pub(in crate::exchange) down_queued: Queued,
    pub(in crate::exchange) up_queued: Queued,
    /// What is charged for it.
    pub(in crate::exchange) charge: CallCharge,
    pub(in crate::exchange) started: Instant,
    pub(in crate::exchange) deadline: Option<Instant>,
    pub(in crate::exchange) deadline_timer: Option<TimerId>,
    pub(in crate::exchange) wait_timer: Option<TimerId>,
    /// Since when the current attempt has been waiting for a stream.
    pub(in crate::exchange) waits_since: Option<Instant>,
    /// Set by the response or by a failure.
    pub(in crate::exchange) status: Option<u8>,
    pub(in crate::exchange) http_status: u16,
    pub(in crate::exchange) reason: Option<Reason>,
}

impl Call {
    /// What the call has buffered, by place.
    pub(in crate::exchange) fn buffered(&self) -> Amounts {
        let trailers = self.request_trailers.as_ref();
        let trailers = trailers.map_or(0, |trailers| trailers.memory_bytes());
        Amounts {
            kept: self.replay.len() + self.request.memory_bytes() + trailers,
            for_server: self.up_queued.bytes(),
            for_caller: self.down_queued.bytes(),
        }
    }

    /// Stores the result of routing.
    #[inline]
    pub(in crate::exchange) fn set_route(&mut self, route: Route) {
        self.service = Some(route.service);
        self.rule = Some(route.rule);
        self.policy = route.policy;
    }

    /// The connection on which the call arrived.
    pub(in crate::exchange) fn caller(&self) -> ConnKey {
        self.down.conn
    }

    /// Queues bytes of the response for the caller.
    #[cfg(test)]
    pub(in crate::exchange) fn queue_for_caller(&mut self, bytes: usize, now: Instant) {
        self.down_queued.add(bytes, now);
    }

    /// Whether the call may still be retried.
    pub(in crate::exchange) fn can_replay(&self) -> bool {
        let early = !matches!(self.phase, Phase::Committed | Phase::Finishing);
        early && self.sent == ResponseProgress::Nothing && !self.replay.is_incomplete()
    }

    pub(in crate::exchange) fn service_name(&self) -> Option<&str> {
        self.service.as_ref().map(|service| &*service.name)
    }

    /// For messages: `instance e1 of users.default on node b`.
    pub(in crate::exchange) fn target_name(&self) -> String {
        let service = self.service_name().unwrap_or("the proxy's own services");
        match &self.endpoint {
            Some(endpoint) => format!(
                "instance {} of {service} on node {}",
                endpoint.id, endpoint.node
            ),
            None => service.to_owned(),
        }
    }

    /// For messages about the connection of the current attempt: the proxy of the other node, or the instance itself.
    pub(in crate::exchange) fn peer_name(&self) -> String {
        match (&self.up, &self.endpoint) {
            (Some(up), Some(endpoint)) if up.link => match endpoint.target {
                Target::Node(address) => {
                    format!("the proxy of node {} at {address}", endpoint.node)
                }
                Target::Local(_) => format!("the proxy of node {}", endpoint.node),
            },
            _ => self.target_name(),
        }
    }
}

/// A call's id: a new one, or the one from the caller's proxy. A new id is formatted only where it is used, which most
/// calls never need.
#[derive(Clone, Copy, Debug)]
pub(in crate::exchange) enum CallId {
    New(u64),
    Given(IdText),
}

/// An id as in headers, messages and logs.
#[derive(Clone, Copy, Debug)]
pub(in crate::exchange) struct IdText {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl CallId {
    /// Another proxy's id, if its characters and length are safe in headers and logs.
    pub(in crate::exchange) fn parse(value: &[u8]) -> Option<Self> {
        let fits = (1..=IdText::MAX).contains(&value.len());
        if !fits
            || !value
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        {
            return None;
        }
        let mut bytes = [0; IdText::MAX];
        bytes.get_mut(..value.len())?.copy_from_slice(value);
        Some(Self::Given(IdText {
            bytes,
            len: u8::try_from(value.len()).ok()?,
        }))
    }

    /// A new id is sixteen hexadecimal digits.
    pub(in crate::exchange) fn text(&self) -> IdText {
        let random = match self {
            Self::New(random) => random,
            Self::Given(text) => return *text,
        };
        let mut bytes = [b'0'; IdText::MAX];
        for (place, byte) in bytes.chunks_exact_mut(2).zip(random.to_be_bytes()) {
            if let [high, low] = place {
                (*high, *low) = (hex(byte >> 4), hex(byte & 15));
            }
        }
        IdText { bytes, len: 16 }
    }
}

impl IdText {
    pub(in crate::exchange) const MAX: usize = 40;

    pub(in crate::exchange) fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

fn hex(digit: u8) -> u8 {
    if digit < 10 {
        b'0' + digit
    } else {
        b'a' + digit - 10
    }
}

#[cfg(test)]
mod tests {
    use super::CallId;

    #[test]
    fn an_id_is_made_or_taken_over_if_it_is_harmless() {
        let new = CallId::New(0x0123_4567_89ab_cdef);
        assert_eq!(new.text().as_str(), "0123456789abcdef");
        let given = CallId::parse(b"0123456789abcdef").unwrap();
        assert_eq!(given.text().as_str(), "0123456789abcdef");
        for bad in [&b""[..], b"a b", b"a\"", &[b'a'; 41]] {
            assert!(CallId::parse(bad).is_none(), "{bad:?}");
        }
    }
}
