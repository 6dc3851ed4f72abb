//! The health of one instance: asked for at once, then at its interval, and out of turn when a worker saw something.
//! A plan and sightings come in, changes of health go to the agent; one check of an instance is under way at a time.
//! Whether calls go there is not decided here.

mod http;
mod thresholds;
mod slots;
mod probe;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use heddle_proto::registry::v1::{Health, health_check::Kind};
use tokio::{sync::mpsc, time::timeout};

use super::{Agent, Sighting, instance_table::Joined};
use heddle_pacing::{Backoff, jittered};
use probe::{Probe, connect};
use thresholds::{Finding, Thresholds};

pub(crate) use slots::CheckSlots;

/// Keeps the agent's view of one registration true until it ends.
pub async fn watch(agent: Agent, joined: Joined, sightings: mpsc::Receiver<Sighting>) {
    if matches!(joined.plan.kind, Kind::Grpc | Kind::Http | Kind::Tcp) {
        watch_active(agent, joined, sightings).await;
    } else {
        watch_passive(agent, joined, sightings).await;
    }
}

/// First look at an address that refused, and at an instance that has not passed yet; it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Up to a tenth more or less, so that a thousand instances are not asked in one moment.
const AROUND: std::ops::Range<f64> = 0.9..1.1;
/// The first interval is any part of one: instances that began together are asked apart from the second check on.
const SPREAD: std::ops::Range<f64> = 0.1..1.0;
/// An instance that has never passed has its reason told anew so often at most: each is a write of the store.
const RETELL: Duration = Duration::from_secs(10);

async fn watch_active(agent: Agent, joined: Joined, mut sightings: mpsc::Receiver<Sighting>) {
    let plan = &joined.plan;
    let mut thresholds = Thresholds::new(plan);
    let mut probe = Probe::new(&joined);
    let mut backoff = Backoff::new(FIRST_RETRY, plan.interval);
    let mut told: Option<Instant> = None;
    let mut failed = false;
    let mut away = false;
    let mut spread = Some(SPREAD);
    loop {
        let finding = {
            let _turn = agent.inner.check_slots.enter(failed).await;
            probe.ask().await
        };
        let passed = finding == Finding::Passed;
        if passed && (failed || away || probe.was_cut()) {
            // RemovedInstances and back, seen by a check, a call or a closed connection: it may be another process.
            agent.ask_again(&joined.registration);
            away = false;
        }
        failed = !passed;
        if let Some(healthy) = thresholds.take(&finding) {
            let again = thresholds.is_fresh() && told.is_some_and(|at| at.elapsed() < RETELL);
            if !again {
                told = Some(Instant::now());
                tell(&agent, &joined, healthy, finding.reason());
            }
        }
        let pause = if thresholds.is_fresh() {
            // It may only be starting.
            backoff.fail().min(plan.interval)
        } else {
            jittered(plan.interval, spread.take().unwrap_or(AROUND))
        };
        match timeout(pause, sightings.recv()).await {
            // Out already; its next successes bring it back.
            Ok(Some(Sighting::Refused)) => {
                away = true;
                thresholds.refused();
                tokio::time::sleep(jittered(FIRST_RETRY, AROUND)).await;
            }
            Ok(Some(Sighting::Lost)) => match connect(joined.address, plan.timeout).await {
                Ok(()) => agent.ask_again(&joined.registration),
                Err(reason) => {
                    away = true;
                    thresholds.refused();
                    tell(&agent, &joined, false, &reason);
                }
            },
            Ok(None) => return,
            Err(_) => {}
        }
    }
}

/// No check of its own: looks only when a worker saw something, and then until the address accepts again.
async fn watch_passive(agent: Agent, joined: Joined, mut sightings: mpsc::Receiver<Sighting>) {
    while let Some(sighting) = sightings.recv().await {
        let mut out = sighting == Sighting::Refused;
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        if out {
            tokio::time::sleep(backoff.fail()).await;
        }
        while let Err(reason) = connect(joined.address, joined.plan.timeout).await {
            if !out {
                tell(&agent, &joined, false, &reason);
                out = true;
            }
            tokio::time::sleep(backoff.fail()).await;
        }
        agent.ask_again(&joined.registration);
        if out {
            // What was seen while it was out is answered by this.
            while sightings.try_recv().is_ok() {}
            tell(&agent, &joined, true, "");
        }
    }
}

fn tell(agent: &Agent, joined: &Joined, healthy: bool, reason: &str) {
    let health = if healthy {
        Health::Healthy
    } else {
        Health::Unhealthy
    };
    agent.set_health(&joined.key, &joined.registration, health, reason);
}

/// An instance's own words as they may stand in a reason: bounded, in one line.
fn printable(words: &str) -> String {
    const MOST: usize = 200;
    let one = |c: char| if c.is_control() { ' ' } else { c };
    words.chars().take(MOST).map(one).collect()
}
