//! Health thresholds: how many results in a row change the health of an instance. Input: results, one by one. Output: a
//! health, when it is to be reported. Pure: no clock, no sockets.

use crate::agent::check_plan::CheckPlan;

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Passed,
    /// It failed, with the reason as a sentence for people. The next check may pass.
    Failed(String),
    /// The instance itself reports that it does not serve: one such result is enough.
    Declined(String),
}

impl Finding {
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Passed => "",
            Self::Failed(why) | Self::Declined(why) => why,
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Thresholds {
    healthy: bool,
    /// It has never passed: one success is enough.
    fresh: bool,
    streak: u32,
    healthy_threshold: u32,
    unhealthy_threshold: u32,
}

impl Thresholds {
    #[must_use]
    pub(super) fn new(plan: &CheckPlan) -> Self {
        Self {
            healthy: false,
            fresh: true,
            streak: 0,
            healthy_threshold: plan.healthy_threshold.max(1),
            unhealthy_threshold: plan.unhealthy_threshold.max(1),
        }
    }

    /// Whether it has never passed.
    #[must_use]
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Takes one result. Returns the health if it is to be reported; before the first success each failure is, for its
    /// reason.
    pub(super) fn take(&mut self, finding: &Finding) -> Option<bool> {
        let success = *finding == Finding::Passed;
        if self.fresh {
            self.fresh = !success;
            self.healthy = success;
            self.streak = 0;
            return Some(success);
        }
        if success == self.healthy {
            self.streak = 0;
            return None;
        }
        self.streak += 1;
        let needed = match finding {
            Finding::Passed => self.healthy_threshold,
            Finding::Failed(_) => self.unhealthy_threshold,
            Finding::Declined(_) => 1,
        };
        if self.streak < needed {
            return None;
        }
        self.healthy = success;
        self.streak = 0;
        Some(success)
    }

    /// A refused connection makes it unhealthy at once.
    pub(super) fn refused(&mut self) {
        self.healthy = false;
        self.fresh = false;
        self.streak = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::{Finding, Thresholds};
    use crate::agent::check_plan::CheckPlan;
    use heddle_proto::registry::v1::health_check::Kind;
    use std::time::Duration;

    #[test]
    fn verdicts_follow_the_thresholds() {
        let plan = CheckPlan {
            kind: Kind::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 2,
            healthy_threshold: 3,
            path: String::new(),
            grpc_service: String::new(),
        };
        let (passed, failed) = (Finding::Passed, Finding::Failed("x".into()));
        let declined = Finding::Declined("x".into());
        let mut thresholds = Thresholds::new(&plan);
        // Not up yet: each failure is reported for its reason; one success is enough.
        let first = [
            (&failed, Some(false)),
            (&declined, Some(false)),
            (&passed, Some(true)),
            (&passed, None),
        ];
        // One failure changes nothing, two do; then three successes are needed.
        let later = [
            (&failed, None),
            (&passed, None),
            (&failed, None),
            (&failed, Some(false)),
            (&passed, None),
            (&failed, None),
            (&passed, None),
            (&passed, None),
            (&passed, Some(true)),
            // What the instance itself reports counts at once.
            (&declined, Some(false)),
            (&declined, None),
        ];
        for (index, (finding, expect)) in first.into_iter().chain(later).enumerate() {
            assert_eq!(thresholds.take(finding), expect, "answer {index}");
        }
        thresholds.refused();
        let back = [
            thresholds.take(&passed),
            thresholds.take(&passed),
            thresholds.take(&passed),
        ];
        assert_eq!(back, [None, None, Some(true)]);
    }
}
