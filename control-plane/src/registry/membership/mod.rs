//! The membership of this replica among the replicas of its store: its record on a lease of its own, whether it lags
//! behind others, and the figures that replicas publish in their records. This module must not depend on node leases or
//! the leader.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;

use super::{core::Registry, options::RegistryError};

mod lag;
mod presence;

pub use lag::Lag;
use lag::LagState;
use presence::Presence;
pub(in crate::registry) use presence::{LEFT, ReplicaLease, left_cause, left_event};

/// The membership of this replica. Clones share it.
#[derive(Clone)]
pub struct Membership(Arc<Inner>);

struct Inner {
    registry: Registry,
    lease: Mutex<Option<ReplicaLease>>,
    /// Cancelled when this replica's record is removed.
    left: CancellationToken,
    lag: LagState,
    /// Counts this replica's xDS streams; zero if unset.
    xds_streams: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
}

impl Membership {
    /// The membership of a replica that does not serve yet.
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

    /// Writes this replica's record and renews it until the registry stops.
    pub(in crate::registry) async fn join(&self, advertise: &str) -> Result<(), RegistryError> {
        let presence = Presence::join(self, advertise).await?;
        // The replica's own view must include its record before it reports that it is ready.
        if let Some(lease) = self.lease() {
            self.0.registry.reached(lease.at).await;
        }
        let left = self.0.left.clone();
        let options = self.0.registry.options();
        let stop = options.stop.clone();
        options.tasks.vital("replica-presence", async move {
            // Signals the end even if the task panics or is dropped.
            let _left = left.drop_guard();
            presence.run().await;
            (!stop.is_cancelled()).then_some(())
        });
        Ok(())
    }

    /// Waits, after the registry was stopped, until this replica's record is removed; for at most about 2 s.
    pub async fn left(&self) {
        self.0.left.cancelled().await;
    }

    /// The lease of this replica's record; none if it has not joined or has lost it.
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

    /// Sets the function that counts this replica's xDS streams, which are published to the others. Only the first call
    /// counts.
    pub(crate) fn count_streams_by(&self, count: impl Fn() -> usize + Send + Sync + 'static) {
        let _ = self.0.xds_streams.set(Box::new(count));
    }

    fn streams_here(&self) -> usize {
        self.0.xds_streams.get().map_or(0, |count| count())
    }

    /// The number of xDS streams of each other replica, as last published.
    pub(crate) fn streams_elsewhere(&self) -> Vec<usize> {
        let own = &self.0.registry.options().replica;
        self.0.registry.read(|view| {
            let others = view.replicas().filter(|it| *it.name != **own);
            others.map(|it| it.xds_streams).collect()
        })
    }

    /// The number of nodes that have their lease and instances and may lapse soon: those that are late here, those that
    /// other replicas report as late, and those whose replica is gone.
    pub(in crate::registry) fn overdue_nodes(&self) -> usize {
        let here = self.0.registry.late_here();
        let own = &self.0.registry.options().replica;
        self.0.registry.read(|view| {
            let published = view.replicas().filter(|it| *it.name != **own);
            let published: usize = published.map(|it| it.late_nodes).sum();
            let without_replica = view.nodes().filter(|node| {
                node.alive
                    && node.replica != *own
                    && view.replica(&node.replica).is_none()
                    && view.instances_on(&node.name) > 0
            });
            here.saturating_add(published)
                .saturating_add(without_replica.count())
        })
    }
}
