//! The election: what only one replica may do for all, the sweeper's work, is done by who holds its key. In come the
//! view and this replica's seat, out goes the work while the key is held; it hangs on the replica's own lease, so that
//! another takes over within a TTL, and at once when the holder stops. Calls and endpoint updates never wait for it.

use heddle_proto::store::v1::DutyRecord;
use prost::Message as _;
use std::time::{Duration, Instant};

use super::{Registry, Subscription, claims, event::Fact, gc, keep, presence::Seat, sweep};
use crate::{
    names::keys,
    store::{Compare, Op, Revision, StoreError, Txn},
};

/// Verdicts about nodes that lapsed, records of services, garbage.
const SWEEPER: &str = "sweeper";
/// An attempt that failed, or news that got lost, are followed by another look after so long.
const LOOK: Duration = Duration::from_secs(2);

/// The right to do the sweeper's work: part of the condition of all that it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held(Revision);

impl Held {
    pub(super) fn compare(self) -> Compare {
        Compare::unchanged(&keys::duty(SWEEPER), self.0)
    }
}

/// Runs for the duty, does its work while it is held, and runs again.
pub(super) async fn run(registry: Registry) {
    let mut changes = registry.subscribe();
    let replica = registry.options().replica.clone();
    loop {
        let held = won(&registry, &mut changes).await;
        tracing::info!(
            event = "duty-taken",
            duty = SWEEPER,
            replica,
            "this replica sweeps"
        );
        let work = async {
            tokio::join!(
                sweep::run(&registry, held),
                keep::run(&registry, held),
                gc::run(&registry, held),
                claims::run(&registry, held)
            )
        };
        tokio::select! {
            biased;
            () = lost(&registry, &mut changes, held) => {}
            _ = work => {}
        }
        tracing::warn!(
            event = "duty-lost",
            duty = SWEEPER,
            replica,
            "this replica does not sweep any longer"
        );
    }
}

async fn won(registry: &Registry, changes: &mut Subscription) -> Held {
    loop {
        if let Some(held) = registry.held() {
            return held;
        }
        let free = registry.read(|view| view.duty(SWEEPER).is_none());
        if let Some(seat) = registry.seat()
            && free
        {
            let result = take(registry, seat).await;
            registry.on_store(&result);
            match result {
                Ok(Some(at)) => registry.reached(at).await,
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "the sweeper's duty cannot be taken yet"),
            }
        }
        if registry.held().is_none() {
            let _ = tokio::time::timeout(LOOK, changes.of_replicas()).await;
        }
    }
}

async fn lost(registry: &Registry, changes: &mut Subscription, held: Held) {
    while registry.held() == Some(held) {
        changes.of_replicas().await;
    }
}

async fn take(registry: &Registry, seat: Seat) -> Result<Option<Revision>, StoreError> {
    let options = registry.options();
    let key = keys::duty(SWEEPER);
    let record = DutyRecord {
        replica: options.replica.clone(),
        process_id: options.process_id.clone(),
    };
    let txn = Txn {
        compare: vec![
            Compare::absent(&key),
            Compare::unchanged(&keys::replica(&options.replica), seat.at),
        ],
        then: vec![Op::put_leased(&key, record.encode_to_vec(), seat.lease)],
        ..Txn::default()
    };
    let cause = format!("replica {} is the {SWEEPER}", options.replica);
    let fact = Fact::of_mesh("duty-taken", &cause);
    let result = registry.txn_told(txn, &[fact]).await?;
    Ok(result.succeeded.then_some(result.revision))
}

/// The time by which the sweeper's work is due: monotonic, and virtual where tests have it so.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Registry {
    /// Writes under the condition that this replica still holds the right, and waits until the view shows it. False: it
    /// does not hold it any longer, or what it looked at has changed.
    pub(super) async fn txn_of_duty(
        &self,
        held: Held,
        mut compare: Vec<Compare>,
        then: Vec<Op>,
        facts: &[Fact],
    ) -> Result<bool, StoreError> {
        compare.push(held.compare());
        let txn = Txn {
            compare,
            then,
            ..Txn::default()
        };
        let result = self.txn_told(txn, facts).await?;
        self.reached(result.revision).await;
        Ok(result.succeeded)
    }

    /// This replica's right to sweep, if the view says that it has it.
    pub(super) fn held(&self) -> Option<Held> {
        let options = self.options();
        self.read(|view| {
            let duty = view.duty(SWEEPER)?;
            let here = duty.replica == options.replica && duty.process_id == options.process_id;
            here.then_some(Held(duty.at))
        })
    }
}
