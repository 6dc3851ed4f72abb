//! Waits of a call and its deadline: what happens when one is over, and which calls continue with a new table.

use heddle_proto::Reason;

use crate::balance::passive::End;
use crate::exchange::call::Phase;
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::CallKey;

impl Exchange {
    /// A new table has arrived: continues the calls that have what they waited for. Even a table that is not ready may
    /// be enough, since this node's own instances are in the first one.
    pub(in crate::exchange) fn resume_waiting(&mut self) {
        for call in self.admission.take_waits_for_table() {
            self.guard_call(call, |exchange| exchange.route_call(call));
        }
        self.endpoint_requests.on_table();
        if !self.admission.has_waits_for_endpoints() {
            return;
        }
        let table = self.table();
        let free = self.admission.take_waits_for_endpoints(&table);
        for call in free {
            self.guard_call(call, |exchange| exchange.route_call(call));
        }
        // The remaining services were requested under an older table, so they are requested again.
        let waiting = self.admission.services_waited_for();
        for name in waiting {
            if let Some(service) = table.service(&name) {
                self.endpoint_requests.request(service);
            }
        }
    }

    /// The wait of a call (for a table, for endpoints, for a stream or before a retry) is over.
    pub(in crate::exchange) fn on_call_wait(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.timing.end_wait();
        match call.phase() {
            Phase::Table => {
                let node = &self.options().node;
                let text = format!(
                    "the proxy on node {node} has not received any state from its control plane yet"
                );
                self.fail(key, &Failure::new(Reason::NotReady, text));
            }
            Phase::Endpoints => {
                let failure = self.no_endpoints_yet(key);
                self.fail(key, &failure);
            }
            Phase::Backoff => {
                self.refresh_service(key);
                self.begin_attempt(key);
            }
            Phase::Pending(pool) => self.on_pending_timeout(key, pool),
            _ => {}
        }
    }

    pub(in crate::exchange) fn on_call_deadline(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.timing.on_deadline();
        let waited = match call.phase() {
            Phase::Finishing => return,
            Phase::Table => "before the proxy had any state".to_owned(),
            Phase::Endpoints => format!(
                "while it waited for the endpoints of {} from the control plane",
                call.target_name()
            ),
            Phase::Pending(pool) => {
                let (_, wait) = self.what_blocks(key, pool);
                format!("while it waited {wait}")
            }
            Phase::Backoff => format!(
                "while it waited to be tried again: {} attempts did not reach {}",
                call.history.attempts(),
                call.target_name()
            ),
            Phase::Attempting | Phase::Committed => format!("at {}", call.target_name()),
        };
        // Has an effect only if an attempt was in progress.
        self.unanswered(key, End::Deadline);
        let text = format!("the caller's deadline passed {waited}");
        self.fail(key, &Failure::new(Reason::DeadlineExceeded, text));
    }

    pub(super) fn await_table(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if let Err(full) = self.admission.wait_for_table(key, call.account().caller) {
            self.count(full.counter());
            let node = &self.options().node;
            let text = format!(
                "{} for the first state of the proxy on node {node}",
                full.text()
            );
            return self.fail(key, &Failure::new(Reason::Overloaded, text));
        }
        call.wait_for_table();
        self.start_wait(key);
    }
}
