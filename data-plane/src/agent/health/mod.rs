//! Checks the health of one instance: at once, then at its interval, and out of turn when a worker observed a failure.
//! Input: a plan and sightings. Output: changes of health, to the agent. One check of an instance runs at a time.
//! Whether calls go to the instance is not decided here.

mod choice;
mod http;
mod thresholds;
mod slots;
mod probe;

#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use heddle_proto::registry::v1::{Health, health_check::Kind};
use tokio::{sync::mpsc, time::timeout};
use tracing::{info, warn};

use super::{Agent, InstanceFailure, instance_table::Joined, key::InstanceKey};
use heddle_pacing::{Backoff, jittered};
use probe::{Probe, connect};
use thresholds::{Finding, Thresholds};

pub(crate) use slots::CheckSlots;

/// Keeps the health of one registration up to date until it ends.
pub async fn watch(agent: Agent, joined: Joined, failures: mpsc::Receiver<InstanceFailure>) {
    let kind = joined.plan.kind;
    if matches!(kind, Kind::Auto | Kind::Grpc | Kind::Http | Kind::Tcp) {
        watch_active(agent, joined, failures).await;
    } else {
        watch_passive(agent, joined, failures).await;
    }
}

/// The first retry for an address that refused and for an instance that has not passed yet; the delay doubles.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Jitter of a tenth, so that a thousand instances are not checked at the same moment.
const JITTER: std::ops::Range<f64> = 0.9..1.1;
/// The first interval is shortened at random, so that instances that started together are checked at different times
/// from the second check on.
const FIRST_JITTER: std::ops::Range<f64> = 0.1..1.0;
/// The shortest time between two reports of a reason for an instance that has never passed: each one is a write to the
/// store.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

async fn watch_active(agent: Agent, joined: Joined, mut failures: mpsc::Receiver<InstanceFailure>) {
    let plan = &joined.plan;
    let mut thresholds = Thresholds::new(plan);
    let mut probe = Probe::new(&joined);
    let mut backoff = Backoff::new(FIRST_RETRY, plan.interval);
    let mut reported: Option<Instant> = None;
    let mut failed = false;
    let mut away = false;
    let mut returning = Backoff::new(FIRST_RETRY, plan.interval.max(FIRST_RETRY));
    let mut spread = Some(FIRST_JITTER);
    let mut used = joined.checked_by;
    loop {
        let finding = {
            let _turn = agent.inner.check_slots.enter(failed).await;
            probe.run().await
        };
        // Without a program at the address, the check of the last one is still shown.
        if probe.kind() != used && probe.kind() != Kind::Unspecified {
            used = probe.kind();
            agent.set_checked_by(&joined, used);
        }
        let passed = finding == Finding::Passed;
        if passed && (failed || away || probe.was_cut()) {
            // It failed and is back, as a check, a call or a closed connection showed: it may be another process.
            agent.reflect_again(&joined.registration);
            away = false;
            returning.reset();
        }
        failed = !passed;
        if let Some(healthy) = thresholds.take(&finding) {
            let again =
                thresholds.is_fresh() && reported.is_some_and(|at| at.elapsed() < REPORT_INTERVAL);
            if !again {
                reported = Some(Instant::now());
                report(&agent, &joined, healthy, finding.reason());
            }
        }
        let pause = if thresholds.is_fresh() {
            // It may still be starting.
            backoff.fail().min(plan.interval)
        } else if away {
            // A call was refused: the program is most likely being restarted, and back long before an interval is over.
            returning.fail().min(plan.interval)
        } else {
            jittered(plan.interval, spread.take().unwrap_or(JITTER))
        };
        match timeout(pause, failures.recv()).await {
            // Already unhealthy; its next successes make it healthy again.
            Ok(Some(InstanceFailure::Refused)) => {
                away = true;
                thresholds.refused();
                probe.refused();
                tokio::time::sleep(jittered(FIRST_RETRY, JITTER)).await;
            }
            Ok(Some(InstanceFailure::Lost)) => match connect(joined.address, plan.timeout).await {
                Ok(()) => agent.reflect_again(&joined.registration),
                Err(error) => {
                    away = true;
                    thresholds.refused();
                    report(&agent, &joined, false, &error.reason);
                }
            },
            Ok(None) => return,
            Err(_) => {}
        }
    }
}

/// For an instance without checks of its own: connects only after a worker observed a failure, and then until the
/// address accepts again.
async fn watch_passive(
    agent: Agent,
    joined: Joined,
    mut failures: mpsc::Receiver<InstanceFailure>,
) {
    while let Some(failure) = failures.recv().await {
        let mut out = failure == InstanceFailure::Refused;
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        if out {
            tokio::time::sleep(backoff.fail()).await;
        }
        while let Err(error) = connect(joined.address, joined.plan.timeout).await {
            if !out {
                report(&agent, &joined, false, &error.reason);
                out = true;
            }
            tokio::time::sleep(backoff.fail()).await;
        }
        agent.reflect_again(&joined.registration);
        if out {
            // This check also answers the sightings that came while it was out.
            while failures.try_recv().is_ok() {}
            report(&agent, &joined, true, "");
        }
    }
}

impl Agent {
    pub(super) fn set_health(
        &self,
        key: &InstanceKey,
        registration: &str,
        health: Health,
        reason: &str,
    ) {
        if self.edit(|table| table.set_health(key, registration, health, reason)) {
            match health {
                Health::Healthy => info!(instance = %key, "healthy"),
                _ => warn!(instance = %key, reason, "not healthy"),
            }
        }
    }

    /// Which check `auto` has chosen.
    fn set_checked_by(&self, joined: &Joined, kind: Kind) {
        if self.edit(|table| table.set_checked_by(&joined.key, &joined.registration, kind)) {
            let health = match kind {
                Kind::Grpc => "by its gRPC health service",
                _ => "by TCP connections: it has no gRPC health service",
            };
            info!(instance = %joined.key, "checked {health}");
        }
    }
}

/// Whether it is certain that no program listens at the address.
pub(super) async fn refuses(address: SocketAddr, within: Duration) -> bool {
    let connected = connect(address, within).await;
    connected.is_err_and(|why| why.refused)
}

fn report(agent: &Agent, joined: &Joined, healthy: bool, reason: &str) {
    let health = if healthy {
        Health::Healthy
    } else {
        Health::Unhealthy
    };
    agent.set_health(&joined.key, &joined.registration, health, reason);
}

/// An instance's own text for a reason: bounded, in one line.
fn printable(text: &str) -> String {
    const MAX: usize = 200;
    let one = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(MAX).map(one).collect()
}
