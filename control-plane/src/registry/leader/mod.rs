//! The jobs that one elected replica does for all: it removes or suspects nodes whose lease lapsed, keeps the records
//! of services and the claims of paths up to date, and removes what is unused. Every transaction has the condition that
//! this replica is still the leader. Calls and endpoint updates never wait for the leader.

use std::time::Instant;

use super::membership::Membership;

mod election;
mod expiry;
mod lapsed_nodes;
mod services;
mod paths;
mod gc;
mod replicas;

#[cfg(test)]
pub(in crate::registry) use election::FencingToken;
use election::LEADER;

/// Stands for election from now on, and does the leader's jobs while this replica is the leader.
pub(super) fn start(membership: &Membership) {
    let options = membership.registry().options();
    let (membership, stop) = (membership.clone(), options.stop.clone());
    options.tasks.restarted("sweeper", move || {
        stop.clone()
            .run_until_cancelled_owned(run(membership.clone()))
    });
}

async fn run(membership: Membership) {
    let registry = membership.registry();
    let mut changes = registry.subscribe();
    let mut seen = registry.subscribe();
    let replica = &registry.options().replica;
    loop {
        let mut known = replicas::Known::default();
        let token = tokio::select! {
            biased;
            token = election::won(&membership, &mut changes) => token,
            () = known.follow(registry, &mut seen) => return,
        };
        tracing::info!(
            event = "duty-taken",
            duty = LEADER,
            replica,
            "this replica is the leader"
        );
        let jobs = async {
            tokio::join!(
                lapsed_nodes::run(&membership, token),
                services::run(registry, token),
                gc::run(registry, token),
                paths::run(registry, token),
                replicas::run(registry, token, known)
            )
        };
        tokio::select! {
            biased;
            () = election::lost(registry, &mut changes, token) => {}
            _ = jobs => {}
        }
        tracing::warn!(
            event = "duty-lost",
            duty = LEADER,
            replica,
            "this replica is no longer the leader"
        );
    }
}

/// The clock of the leader's jobs: monotonic, and virtual in tests that pause time.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
