//! Reports how attempts ended: latencies to the balancer, unanswered attempts to passive health. Takes the ends of
//! attempts; gives estimates, ejections, and their logs and counters. Decisions about calls do not belong here.

use heddle_proto::Reason;

use crate::balance::passive::{Ejection, End, Unanswered};
use crate::caller::Role;
use crate::exchange::owner::Exchange;
use crate::keys::CallKey;
use crate::observe::{Counter, EjectedInstance};

/// What another proxy's failure means for the instance there. `None` if the instance cannot have seen the call, or if
/// the other proxy itself refused it.
fn end_of(reason: Reason) -> Option<End> {
    match reason {
        Reason::DeadlineExceeded => Some(End::Deadline),
        Reason::UpstreamReset | Reason::ProtocolError => Some(End::Reset),
        Reason::ConnectionLost => Some(End::Lost),
        _ => None,
    }
}

impl Exchange {
    /// Another proxy answered with a failure of its own.
    pub(in crate::exchange) fn failed_at_peer(&mut self, key: CallKey, reason: Reason) {
        if let Some(end) = end_of(reason) {
            self.unanswered(key, end);
        }
    }

    /// The first part of an answer arrived: the endpoint's latency is measured now.
    pub(in crate::exchange) fn answered(&mut self, key: CallKey) {
        let now = self.now;
        let Some(call) = self.calls.get(key) else {
            return;
        };
        let (Some(up), Some(endpoint)) = (call.upstream.attempt(), call.upstream.endpoint()) else {
            return;
        };
        if let Some(load) = self.pools.load_mut(endpoint.uid) {
            load.answered(now.saturating_duration_since(up.started), now);
        }
        if call.role() == Role::Outbound && self.passive.answered(endpoint.uid, now) {
            let (service, instance) = (call.route.service_name().unwrap_or_default(), &endpoint.id);
            tracing::info!(%service, %instance, node = %endpoint.node, "an ejected instance answers again and takes calls");
            self.publish_ejected();
        }
    }

    /// The call's current attempt ends without an answer. To be called before the attempt is removed.
    pub(in crate::exchange) fn unanswered(&mut self, key: CallKey, end: End) {
        let now = self.now;
        let Some(call) = self.calls.get(key) else {
            return;
        };
        let (Some(up), Some(endpoint), Some(service)) = (
            call.upstream.attempt(),
            call.upstream.endpoint(),
            call.route.service(),
        ) else {
            return;
        };
        // After the headers the caller decides how long the stream stays open.
        let answered = call.response.has_begun();
        if answered && matches!(end, End::Deadline | End::Cancelled) {
            return;
        }
        let Some(load) = self.pools.load_mut(endpoint.uid) else {
            return;
        };
        let unanswered = Unanswered {
            end,
            started: up.started,
            usual: load.estimate(now),
        };
        load.unanswered(unanswered.latency(now), now);
        // Only the caller's proxy chooses endpoints, and ejects by the calls of its own node.
        if call.role() != Role::Outbound {
            return;
        }
        let random = rand::Rng::random(&mut self.rng);
        let of = (&service.name, service.candidates.len());
        let ejection = self
            .passive
            .unanswered(of, endpoint.uid, unanswered, now, random);
        if let Some(ejection) = ejection {
            self.note_ejection(key, ejection);
        }
    }

    fn note_ejection(&mut self, key: CallKey, ejection: Ejection) {
        self.count(Counter::Ejections);
        let Ejection { time, times } = ejection;
        if let Some(call) = self.calls.get(key)
            && let Some(endpoint) = call.upstream.endpoint()
        {
            let (service, instance) = (call.route.service_name().unwrap_or_default(), &endpoint.id);
            tracing::info!(
                %service, %instance, node = %endpoint.node, times, probe_in_ms = time.as_millis(),
                "an instance is ejected: its calls end without an answer"
            );
        }
        self.publish_ejected();
    }

    /// After a change of the table: ejected instances must still exist, and at least half of a service must stay
    /// usable.
    pub(in crate::exchange) fn refit_ejected(&mut self) {
        if !self.passive.has_ejected() {
            return;
        }
        let table = self.table();
        let usable = |service: &str| {
            let service = table.service(service);
            let groups = service.map_or(&[][..], |service| service.candidates.groups());
            groups
                .iter()
                .flat_map(|group| group.members.iter().map(|(endpoint, _)| endpoint.uid))
        };
        if !self.passive.refit(usable).is_empty() {
            self.publish_ejected();
        }
    }

    /// Publishes the ejected instances to the control side.
    fn publish_ejected(&self) {
        let ejected = self.passive.ejected();
        let ejected = ejected.map(|(service, uid)| EjectedInstance {
            service: service.clone(),
            uid,
        });
        self.metrics.set_ejected(ejected.collect());
    }
}
