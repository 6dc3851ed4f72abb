//! Admits streams: limits their number in all, per client and per second. A refused stream gets the reason in one
//! sentence. Later events of a stream are not known here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use heddle_pacing::TokenBucket;
use tokio::time::Instant;

use super::{Limits, NodeInfo, Refusal};
use crate::budget::{Shares, Who};

/// One client over all its connections: its address without the port, which differs per connection, and its node id.
pub(super) type ClientKey = (String, String);

pub(super) fn client_key(address: &str, node: &str) -> ClientKey {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    (host.to_owned(), node.to_owned())
}

/// Counts streams. Clones share the counts.
#[derive(Clone)]
pub(super) struct StreamAdmission(Arc<Inner>);

struct Inner {
    limits: Limits,
    state: Mutex<State>,
}

struct State {
    /// The open streams by the peer that they come from, because a client can make up node ids.
    open: Shares,
    opened: u64,
    clients: BTreeMap<ClientKey, usize>,
    admission: TokenBucket,
    /// KiB of large resources sent to all clients.
    large: TokenBucket,
}

impl StreamAdmission {
    pub(super) fn new(limits: Limits) -> Self {
        let state = State {
            open: Shares::new(limits.streams),
            opened: 0,
            clients: BTreeMap::new(),
            admission: TokenBucket::new(limits.streams_at_once, limits.streams_per_second),
            large: TokenBucket::new(
                limits.all_large_kib_at_once,
                limits.all_large_kib_per_second,
            ),
        };
        Self(Arc::new(Inner {
            limits,
            state: Mutex::new(state),
        }))
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// A stream begins. Its slot is free again when the last holder drops it: the task that serves the stream, or the
    /// responses that the transport still has.
    pub(super) fn open(&self, who: Who) -> Result<Arc<Slot>, Refusal> {
        let mut state = self.state();
        state.open.take(who, 1).map_err(|denied| {
            let most = self.0.limits.streams;
            if denied.peer_used == 0 {
                return Refusal::Full(most);
            }
            Refusal::Share {
                peer: denied.peer,
                held: denied.peer_used,
                open: denied.used,
                most,
            }
        })?;
        state.opened += 1;
        Ok(Arc::new(Slot {
            number: state.opened,
            who,
            admission: self.clone(),
            client: Mutex::default(),
        }))
    }

    /// The stream's node is known. Returns how long the stream waits for its turn.
    pub(super) fn admit(
        &self,
        slot: &Slot,
        address: &str,
        node: &NodeInfo,
        now: Instant,
    ) -> Result<Duration, Refusal> {
        let limits = &self.0.limits;
        let client = client_key(address, &node.id);
        let mut state = self.state();
        if state.clients.get(&client).copied().unwrap_or(0) >= limits.streams_per_client {
            return Err(Refusal::Client {
                node: node.id.clone(),
                most: limits.streams_per_client,
            });
        }
        let wait = state
            .admission
            .take_within(now.into_std(), 1, limits.admission_wait)
            .map_err(|_| Refusal::Busy {
                per_second: limits.streams_per_second,
            })?;
        *state.clients.entry(client.clone()).or_default() += 1;
        drop(state);
        *lock(&slot.client) = Some(client);
        Ok(wait)
    }

    /// `kib` KiB of large resources are sent. Returns how long the next ones have to wait.
    pub(super) fn sent_large(&self, kib: u32, now: Instant) -> Duration {
        self.state().large.take(now.into_std(), kib)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }
}

/// The place of one open stream.
pub(super) struct Slot {
    number: u64,
    who: Who,
    admission: StreamAdmission,
    client: Mutex<Option<ClientKey>>,
}

impl Slot {
    /// Numbers the streams of this replica in the order in which they were opened.
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let client = lock(&self.client).take();
        let mut state = self.admission.state();
        state.open.give(self.who, 1);
        if let Some(client) = client
            && let Some(count) = state.clients.get_mut(&client)
        {
            *count -= 1;
            if *count == 0 {
                state.clients.remove(&client);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
