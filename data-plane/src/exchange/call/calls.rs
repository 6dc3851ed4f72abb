//! All calls of one worker by key, from their first headers to their outcome. Buffers of ended calls are reused for new
//! ones.

use std::time::Instant;

use heddle_h2::Fields;

use super::history::History;
use super::id::CallId;
use super::replay::Replay;
use super::request::Request;
use super::response::Response;
use super::route::CallRoute;
use super::timing::Timing;
use super::upstream::Upstream;
use super::{Call, Downstream, Phase};
use crate::arena::Arena;
use crate::caller::{Account, Role};
use crate::keys::{CallKey, CallKind};
use crate::policy::CallPolicy;
use crate::policy::buffers::CallCharge;

/// Number of buffers of ended calls that are kept for new ones.
const SPARES: usize = 256;
/// Buffers of a header list larger than this are not kept.
const SPARE_BYTES: usize = 8 * 1024;

/// What is known of a new call besides its header list.
#[derive(Debug)]
pub(in crate::exchange) struct NewCall {
    pub(in crate::exchange) role: Role,
    pub(in crate::exchange) id: CallId,
    pub(in crate::exchange) down: Downstream,
    /// Index in the list of calls of the caller's connection.
    pub(in crate::exchange) slot: usize,
    /// The request is gRPC, so failures are sent as gRPC statuses.
    pub(in crate::exchange) grpc: bool,
    /// The header list is the whole request.
    pub(in crate::exchange) ended: bool,
    /// Until the call is routed.
    pub(in crate::exchange) policy: CallPolicy,
    pub(in crate::exchange) now: Instant,
}

#[derive(Debug, Default)]
pub(in crate::exchange) struct Calls {
    arena: Arena<CallKind, Call>,
    spares: Vec<(Fields, Replay)>,
}

impl Calls {
    #[inline]
    pub(in crate::exchange) fn get(&self, key: CallKey) -> Option<&Call> {
        self.arena.get(key)
    }

    #[inline]
    pub(in crate::exchange) fn get_mut(&mut self, key: CallKey) -> Option<&mut Call> {
        self.arena.get_mut(key)
    }

    pub(in crate::exchange) fn len(&self) -> usize {
        self.arena.len()
    }

    pub(in crate::exchange) fn iter(&self) -> impl Iterator<Item = (CallKey, &Call)> {
        self.arena.iter()
    }

    /// The keys of all calls, for loops that end some of them.
    pub(in crate::exchange) fn keys(&self) -> Vec<CallKey> {
        self.arena.keys()
    }

    /// Adds a call and moves its header list into it; `fields` gets an empty one. `None` if the arena is full.
    #[inline]
    pub(in crate::exchange) fn insert(
        &mut self,
        new: &NewCall,
        fields: &mut Fields,
    ) -> Option<CallKey> {
        let NewCall {
            role,
            id,
            down,
            slot,
            grpc,
            ended,
            policy,
            now,
        } = *new;
        let (mut list, replay) = self.spares.pop().unwrap_or_default();
        std::mem::swap(&mut list, fields);
        self.arena.insert_with(|_| Call {
            role,
            id,
            phase: Phase::Backoff,
            slot,
            account: Account {
                service: 0,
                caller: down.conn.into(),
            },
            down,
            request: Request::new(list, replay, grpc, ended),
            response: Response::new(now),
            route: CallRoute::new(policy),
            upstream: Upstream::new(now),
            history: History::default(),
            timing: Timing::new(now),
            charge: CallCharge::default(),
        })
    }

    /// Removes an ended call and keeps the buffers of its request for reuse.
    pub(in crate::exchange) fn end(&mut self, key: CallKey) {
        let Some(call) = self.arena.get_mut(key) else {
            return;
        };
        let (mut fields, mut replay) = call.request.take_buffers();
        self.arena.discard(key);
        if self.spares.len() < SPARES && fields.capacity_bytes() <= SPARE_BYTES {
            fields.clear();
            replay.reset();
            self.spares.push((fields, replay));
        }
    }
}
