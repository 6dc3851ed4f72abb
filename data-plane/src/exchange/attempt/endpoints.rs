//! Waits for the endpoints of a service: the first calls to a service that this proxy has not subscribed
//! to. The control side is notified once, fetches the endpoints and installs a new table; then the calls continue in
//! order. Their number per service is limited, and each waits within its deadline. Calls to subscribed services never
//! wait here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_proto::Reason;

use crate::exchange::admission::{QueueFull, must_wait};
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::CallKey;
use crate::route::Service;
use crate::timers::Timer;

/// A wait ends before the deadline, so that the caller still gets the reason: by this part of the remaining time, ...
const MARGIN_PART: u32 = 10;
/// ... but at most by this.
const LONGEST_MARGIN: Duration = Duration::from_millis(100);

impl Exchange {
    /// Whether a call to this service can continue with the current table; if not, it has been parked or answered.
    pub(in crate::exchange) fn has_endpoints(
        &mut self,
        key: CallKey,
        service: &Arc<Service>,
    ) -> bool {
        let requested = self.endpoint_requests.request(service);
        if !must_wait(service) {
            return true;
        }
        self.await_endpoints(key, service, requested);
        false
    }

    /// Several services claim the path, and it is not known yet which of them have instances.
    pub(in crate::exchange) fn await_claims(&mut self, key: CallKey, services: &[Arc<Service>]) {
        let mut first = None;
        for service in services.iter().filter(|service| !service.endpoints_known) {
            let requested = self.endpoint_requests.request(service);
            first.get_or_insert((service, requested));
        }
        if let Some((service, requested)) = first {
            self.await_endpoints(key, service, requested);
        }
    }

    /// Makes a call wait for the endpoints of a service.
    pub(super) fn wait_for_endpoints(&mut self, key: CallKey, service: &Arc<Service>) {
        let requested = self.endpoint_requests.request(service);
        self.await_endpoints(key, service, requested);
    }

    fn await_endpoints(&mut self, key: CallKey, service: &Arc<Service>, requested: bool) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        let queued = match requested {
            true => {
                let caller = call.account().caller;
                self.admission
                    .wait_for_endpoints(&service.name, key, caller)
            }
            false => Err(QueueFull::Full {
                bound: self.options().pending_calls,
            }),
        };
        if let Err(full) = queued {
            self.count(full.counter());
            let node = &self.options().node;
            let why = match requested {
                true => format!("{} for its endpoints", full.text()),
                false => "too many services were called for the first time at once".to_owned(),
            };
            let text = format!(
                "{} is not known yet on node {node}, and {why}",
                service.name
            );
            return self.fail(key, &Failure::new(Reason::Overloaded, text));
        }
        if let Some(call) = self.calls.get_mut(key) {
            call.wait_for_endpoints(service);
        }
        self.start_wait(key);
    }

    /// Starts a call's wait for the control plane. The time counts from the first wait, even if tables change in
    /// between.
    pub(in crate::exchange) fn start_wait(&mut self, key: CallKey) {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if !call.timing.has_wait_timer() {
            let longest = call.route.policy().ready_timeout;
            let until = end_of_wait(now, longest, call.timing.deadline());
            call.timing
                .begin_wait(self.timers.set(until, Timer::Wait(key)));
        }
    }

    /// The failure of a call that has waited too long for endpoints.
    pub(in crate::exchange) fn no_endpoints_yet(&self, key: CallKey) -> Failure {
        let node = &self.options().node;
        let call = self.calls.get(key);
        let service = call
            .and_then(|call| call.route.service_name())
            .unwrap_or("it");
        let text = format!(
            "the control plane has not answered the proxy on node {node}, which has requested the \
             endpoints of {service} since its first call"
        );
        Failure::new(Reason::NotReady, text)
    }
}

/// The end of a wait of at most `longest`, for a call with this deadline.
fn end_of_wait(now: Instant, longest: Duration, deadline: Option<Instant>) -> Instant {
    let end = now + longest;
    let Some(deadline) = deadline else {
        return end;
    };
    let margin = deadline.saturating_duration_since(now) / MARGIN_PART;
    end.min(
        deadline
            .checked_sub(margin.min(LONGEST_MARGIN))
            .unwrap_or(now),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_a_little_before_the_deadline() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        for (deadline, expect) in [
            (None, 5000),
            (Some(60_000), 5000),
            (Some(5001), 4901),
            (Some(2000), 1900),
            (Some(100), 90),
            (Some(0), 0),
        ] {
            let end = end_of_wait(now, ms(5000), deadline.map(|d| now + ms(d)));
            assert_eq!(end, now + ms(expect), "{deadline:?}");
        }
    }
}
