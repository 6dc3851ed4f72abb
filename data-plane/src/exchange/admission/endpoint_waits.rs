//! Calls that wait for the endpoints of their service, by service. Their number per service is limited. Takes calls with
//! their callers; gives those that can continue with a new table.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::wait_queue::{QueueFull, WaitQueue};
use crate::caller::CallerKey;
use crate::keys::CallKey;
use crate::route::{RouteTable, Service};

/// Waiting calls by the full name of the service that they wait for.
#[derive(Debug, Default)]
pub(super) struct EndpointWaits {
    by_service: FxHashMap<Arc<str>, WaitQueue>,
    count: usize,
}

impl EndpointWaits {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// At most `bound` calls to one service may wait, of which one caller may have its share.
    pub(super) fn push(
        &mut self,
        service: &Arc<str>,
        call: CallKey,
        caller: CallerKey,
        bound: usize,
    ) -> Result<(), QueueFull> {
        let calls = self.by_service.entry(Arc::clone(service)).or_default();
        let pushed = calls.push(call, caller, bound);
        match pushed {
            Ok(()) => self.count += 1,
            Err(_) if calls.len() == 0 => drop(self.by_service.remove(service)),
            Err(_) => {}
        }
        pushed
    }

    pub(super) fn remove(&mut self, service: &str, call: CallKey) {
        let Some(calls) = self.by_service.get_mut(service) else {
            return;
        };
        if calls.remove(call) {
            self.count -= 1;
        }
        if calls.len() == 0 {
            self.by_service.remove(service);
        }
    }

    /// The services for which calls wait.
    pub(super) fn services(&self) -> Vec<Arc<str>> {
        self.by_service.keys().cloned().collect()
    }

    /// Removes and returns the calls that need not wait any longer by this table.
    pub(super) fn take(&mut self, table: &RouteTable) -> Vec<CallKey> {
        let mut free = Vec::new();
        self.by_service.retain(|name, calls| {
            let waits = table
                .service(name)
                .is_some_and(|service| must_wait(service));
            if !waits {
                free.extend(calls.take());
            }
            waits
        });
        self.count -= free.len();
        free
    }
}

/// No usable endpoint is known, and there may be some on other nodes.
pub(in crate::exchange) fn must_wait(service: &Service) -> bool {
    !service.endpoints_known && service.candidates.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ConnKey;

    #[test]
    fn calls_wait_until_the_endpoints_are_known_or_the_service_is_gone() {
        let mut waits = EndpointWaits::default();
        let names: [Arc<str>; 2] = ["a.default".into(), "b.default".into()];
        let calls = [1, 2, 3, 4].map(CallKey::unpack);
        for (call, name) in calls.iter().zip([0, 0, 0, 1]) {
            let caller = ConnKey::unpack(call.pack()).into();
            assert_eq!(waits.push(&names[name], *call, caller, 3), Ok(()));
        }
        let (fifth, caller) = (CallKey::unpack(5), ConnKey::unpack(5).into());
        assert_eq!(
            waits.push(&names[0], fifth, caller, 3),
            Err(QueueFull::Full { bound: 3 })
        );
        waits.remove("a.default", calls[1]);
        assert_eq!(waits.len(), 3);
        let table = |known: &[(&str, bool)]| {
            let mut builder = RouteTable::builder("n", &[]);
            for (name, known) in known {
                let mut service = Service::new(name, "default");
                service.endpoints_known = *known;
                builder.service(service);
            }
            builder.build()
        };
        assert!(waits.take(&table(&[("a", false), ("b", false)])).is_empty());
        let free = waits.take(&table(&[("a", true), ("b", false)]));
        assert_eq!(free, [calls[0], calls[2]], "in the order they came");
        assert_eq!(waits.take(&table(&[("a", true)])), [calls[3]], "b is gone");
        assert_eq!(waits.len(), 0);
    }
}
