//! One limit for the memory that clients use in this process: their connections, what they send until it is handled,
//! what waits for them to read it, and what is kept while their calls last. A user of memory takes a charge, which is
//! given back when it is dropped; a refusal names the limit and the remedy. The content of the mesh itself (nodes,
//! instances, descriptors) is in the registry and not counted here, except for what one session registers.

mod call;
mod costs;
mod machine;
mod shares;
mod work_slots;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

pub use call::Admission;
pub use costs::MeshSize;
pub use machine::{MIN_MEMORY, default_memory, parse_memory};
pub use shares::{Denied, Peer, Shares, Who};
use work_slots::{WorkSlot, WorkSlots};

/// The least memory of a connection: its window (`grpc::CONNECTION_WINDOW`), which it may fill even if nothing reads
/// it, and the buffers of its transport.
pub(crate) const CONNECTION: usize = (256 << 10) + (32 << 10);

/// The limit. Clones share it.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    shares: Mutex<Shares>,
    connections: AtomicU64,
    refused: Counters,
    /// The slots for work that takes long.
    slots: WorkSlots,
}

/// Counters of refusals since the process began.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Connections closed at once.
    pub(crate) connections: AtomicU64,
    /// Calls refused before they began.
    pub(crate) calls: AtomicU64,
    /// Messages of clients that were not read, and memory for what they asked to be kept.
    pub(crate) messages: AtomicU64,
    /// Answers that were not sent.
    pub(crate) answers: AtomicU64,
}

/// This client gets no more memory now.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{what} would take {} of memory, and {} hold {} of the {} that this control plane has for \
     clients (all clients together hold {}): close streams and connections that are not needed, \
     read pending responses, request less at a time, or start the control plane with a larger \
     --client-memory",
    megabytes(*amount), denied.peer, megabytes(denied.peer_used), megabytes(denied.limit), megabytes(denied.used)
)]
pub struct Refusal {
    what: &'static str,
    amount: usize,
    denied: Denied,
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        Self::resource_exhausted(refusal.to_string())
    }
}

pub(crate) fn megabytes(bytes: usize) -> String {
    let tenths = bytes.saturating_mul(10).div_ceil(1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

impl Budget {
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Inner {
            shares: Mutex::new(Shares::new(bytes)),
            connections: AtomicU64::new(0),
            refused: Counters::default(),
            slots: WorkSlots::of_this_machine(),
        }))
    }

    /// The account of a new connection, and the charge for the connection itself.
    pub(crate) fn connect(&self, peer: Peer) -> Result<(Account, Charge), Refusal> {
        let connection = self.0.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let account = Account(Some(Arc::new(Holder {
            budget: self.clone(),
            who: Who { peer, connection },
            slot: WorkSlots::new(1),
        })));
        let mut charge = account.charge();
        match charge.set("one more connection", CONNECTION) {
            Ok(()) => Ok((account, charge)),
            Err(refusal) => {
                count(&self.0.refused.connections);
                Err(refusal)
            }
        }
    }

    pub(crate) fn refused(&self) -> &Counters {
        &self.0.refused
    }

    /// The limit, the memory in use, and the memory of the peer that uses most.
    #[must_use]
    pub fn figures(&self) -> (usize, usize, usize) {
        let shares = self.shares();
        (shares.limit(), shares.used(), shares.largest())
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        let shares = &self.0.shares;
        shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

struct Holder {
    budget: Budget,
    who: Who,
    /// One slot for the connection's own work, which is taken before one of the budget's.
    slot: WorkSlots,
}

/// One connection's account. The default, for calls without a connection, has no limit.
#[derive(Clone, Default)]
pub struct Account(Option<Arc<Holder>>);

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.who().fmt(f)
    }
}

impl Account {
    /// The owner of the account.
    #[must_use]
    pub fn who(&self) -> Who {
        self.0.as_ref().map_or_else(Who::default, |it| it.who)
    }

    /// A charge of zero bytes, which can grow.
    #[must_use]
    pub fn charge(&self) -> Charge {
        Charge {
            account: self.clone(),
            bytes: 0,
        }
    }

    /// Waits until work for this client that takes long may begin. None, at once, if the account has no limit.
    pub(crate) async fn take_work_slot(&self) -> Option<WorkSlot> {
        let holder = self.0.as_ref()?;
        Some(holder.budget.0.slots.take(&holder.slot).await)
    }

    /// The limit of all clients; none if the account has no limit.
    pub(crate) fn limit(&self) -> Option<usize> {
        self.budget().map(|budget| budget.figures().0)
    }

    fn budget(&self) -> Option<&Budget> {
        self.0.as_ref().map(|holder| &holder.budget)
    }

    /// Counts a refusal of memory for what the client asked to be kept.
    pub(crate) fn count_refused(&self) {
        if let Some(budget) = self.budget() {
            count(&budget.0.refused.messages);
        }
    }
}

/// Memory used for a client. It is given back when this is dropped.
pub struct Charge {
    account: Account,
    bytes: usize,
}

impl Charge {
    /// Changes the charge to `bytes`; it is unchanged if there is no room for more. `what` names the memory in the
    /// refusal.
    pub fn set(&mut self, what: &'static str, bytes: usize) -> Result<(), Refusal> {
        let Some(holder) = &self.account.0 else {
            return Ok(());
        };
        if let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) {
            let taken = holder.budget.shares().take(holder.who, more);
            taken.map_err(|denied| Refusal {
                what,
                amount: bytes,
                denied,
            })?;
        } else {
            holder.budget.shares().give(holder.who, self.bytes - bytes);
        }
        self.bytes = bytes;
        Ok(())
    }

    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(holder) = &self.account.0 {
            holder.budget.shares().give(holder.who, self.bytes);
        }
    }
}
