//! Attempts of a call: picks an endpoint (`pick`), finds a connection or waits for one (`queue`, `dial`) or for the
//! endpoints of the service (`endpoints`), sends what has arrived of the request (`send`, `request_data`), and tries
//! again if the attempt fails (`retry`). Takes an admitted call; gives an upstream stream, a wait in a queue or a failure.

mod dial;
mod endpoints;
mod pick;
mod queue;
mod request_data;
mod retry;
mod send;

use pick::Picker;

use crate::caller::Role;
use crate::exchange::owner::Exchange;
use crate::keys::CallKey;
use crate::upstream::dial::Dial;

impl Exchange {
    /// Begins the first attempt of a call whose service is known.
    pub(in crate::exchange) fn begin_attempts(&mut self, key: CallKey) {
        let now = self.now;
        if let Some(call) = self.calls.get_mut(key) {
            if let Some(service) = call.route.service() {
                let number = self.admission.begin_call(&service.name, now);
                call.set_service_number(number);
            }
            let timer = call.timing.end_wait();
            self.unset(timer);
        }
        self.begin_attempt(key);
    }

    /// Health and reflection: the control side answers, over this worker's own connection to it.
    pub(in crate::exchange) fn attempt_internal(&mut self, key: CallKey) {
        if let Some(pool) = self.pools.pool_for(Dial::Internal) {
            self.send_or_wait(key, pool);
        }
    }

    /// Picks an endpoint and sends the call there, or makes it wait for a connection.
    pub(in crate::exchange) fn begin_attempt(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        let Some(service) = call.route.service().cloned() else {
            return self.attempt_internal(key);
        };
        let role = call.role();
        let picker = Picker::new(&self.pools, &self.passive, self.now);
        let Some(endpoint) = picker.pick(call, &mut self.rng) else {
            return self.on_no_endpoint(key, &service);
        };
        let Some(pool) = self.pools.pool_of(&endpoint) else {
            return;
        };
        if role == Role::Outbound && self.passive.has_ejected() {
            let random = self.random();
            self.passive.chosen(endpoint.uid, self.now, random);
        }
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if let Some(load) = self.pools.load_mut(endpoint.uid) {
            let (metrics, at) = (&self.metrics, &endpoint);
            let reported = || metrics.load(&service.name, &at.region, &at.zone);
            load.begin((role == Role::Outbound).then_some(reported));
        }
        call.upstream.choose(endpoint);
        call.timing.reset_stream_wait();
        self.send_or_wait(key, pool);
    }
}
