//! This replica among the replicas of its store: its record on a lease of its own, whether it lags behind others, and
//! the numbers that replicas publish in their records. Leases of nodes and the leader's jobs are not known here.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;

use super::{core::Registry, options::RegistryError};

mod lag;
mod presence;

pub use lag::Lag;
use lag::LagState;
use presence::Presence;
pub(in crate::registry) use presence::{LEFT, ReplicaLease, left_cause, left_event};

/// This replica among the others. Clones share it.
#[derive(Clone)]
pub struct Membership(Arc<Inner>);

struct Inner {
    registry: Registry,
    lease: Mutex<Option<ReplicaLease>>,
    /// This replica's record is gone.
    left: CancellationToken,
    lag: LagState,
    /// Counts this replica's xDS streams; unset: none.
    xds_streams: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
}

impl Membership {
    /// Of a replica that does not serve yet.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self(Arc::new(Inner {
            registry,
            lease: Mutex::default(),
            left: CancellationToken::new(),
            lag: LagState::default(),
            xds_streams: OnceLock::new(),
        }))
    }

    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// Writes this replica's record and keeps it until the registry stops.
    pub(in crate::registry) async fn join(&self, advertise: &str) -> Result<(), RegistryError> {
        let presence = Presence::join(self, advertise).await?;
        // Before it says that it is ready this replica knows itself.
        if let Some(lease) = self.lease() {
            self.0.registry.reached(lease.at).await;
        }
        let left = self.0.left.clone();
        let options = self.0.registry.options();
        let stop = options.stop.clone();
        options.tasks.vital("replica-presence", async move {
            // Whoever waits for its end hears of any.
            let _left = left.drop_guard();
            presence.run().await;
            (!stop.is_cancelled()).then_some(())
        });
        Ok(())
    }

    /// Waits, once the registry was stopped, until the others know that this replica has gone; for at most about 2 s.
    pub async fn left(&self) {
        self.0.left.cancelled().await;
    }

    /// The lease on which this replica's record hangs; none: it has not joined, or has lost it.
    pub(in crate::registry) fn lease(&self) -> Option<ReplicaLease> {
        *self.lock_lease()
    }

    fn set_lease(&self, lease: Option<ReplicaLease>) {
        *self.lock_lease() = lease;
    }

    fn lock_lease(&self) -> MutexGuard<'_, Option<ReplicaLease>> {
        self.0.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lag_state(&self) -> &LagState {
        &self.0.lag
    }

    /// How this replica's xDS streams are counted, for the others to know; the first to say so is asked.
    pub(crate) fn count_streams_by(&self, count: impl Fn() -> usize + Send + Sync + 'static) {
        let _ = self.0.xds_streams.set(Box::new(count));
    }

    fn streams_here(&self) -> usize {
        self.0.xds_streams.get().map_or(0, |count| count())
    }

    /// The xDS streams of each other replica, as it last told.
    pub(crate) fn streams_elsewhere(&self) -> Vec<usize> {
        let own = &self.0.registry.options().replica;
        self.0.registry.read(|view| {
            let others = view.replicas().filter(|it| *it.name != **own);
            others.map(|it| it.xds_streams).collect()
        })
    }

    /// How many nodes hold their lease, have something to lose, and could lapse soon: those that are late here, those
    /// that other replicas call late, and those whose replica has gone.
    pub(in crate::registry) fn overdue(&self) -> usize {
        let here = self.0.registry.late_here();
        let own = &self.0.registry.options().replica;
        self.0.registry.read(|view| {
            let told = view.replicas().filter(|it| *it.name != **own);
            let told: usize = told.map(|it| it.late_nodes).sum();
            let homeless = view.nodes().filter(|node| {
                node.alive
                    && node.replica != *own
                    && view.replica(&node.replica).is_none()
                    && view.instances_on(&node.name) > 0
            });
            here.saturating_add(told).saturating_add(homeless.count())
        })
    }
}
