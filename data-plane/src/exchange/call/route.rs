//! The route of a call: its service, the rule that led to it, and its policy.

use std::sync::Arc;

use crate::policy::CallPolicy;
use crate::route::{Route, RouteTable, Rule, Service};

#[derive(Debug)]
pub(in crate::exchange) struct CallRoute {
    service: Option<Arc<Service>>,
    rule: Option<Rule>,
    /// The worker's default until the call is routed.
    policy: CallPolicy,
    /// Inbound: the uid of the instance that the caller's proxy chose, if it is on this node.
    wanted: Option<u64>,
}

impl CallRoute {
    #[inline]
    pub(super) fn new(policy: CallPolicy) -> Self {
        Self {
            service: None,
            rule: None,
            policy,
            wanted: None,
        }
    }

    /// Stores the result of routing.
    #[inline]
    pub(in crate::exchange) fn set(&mut self, route: Route, wanted: Option<u64>) {
        self.service = Some(route.service);
        self.rule = Some(route.rule);
        self.policy = route.policy;
        self.wanted = wanted;
    }

    /// The call waits for the endpoints of this service, and is routed again when they are known.
    pub(super) fn set_service(&mut self, service: Arc<Service>) {
        self.service = Some(service);
    }

    /// The call is routed again.
    #[inline]
    pub(in crate::exchange) fn clear(&mut self) {
        self.service = None;
    }

    /// Updates the service to the latest table. Not if the table has just dropped the endpoints as unused: then the
    /// call's own state is better.
    pub(in crate::exchange) fn refresh(&mut self, table: &RouteTable) {
        let Some(service) = &mut self.service else {
            return;
        };
        let latest = table.service(&service.name);
        if let Some(latest) =
            latest.filter(|latest| latest.endpoints_known || !service.endpoints_known)
        {
            *service = Arc::clone(latest);
        }
    }

    #[inline]
    pub(in crate::exchange) fn service(&self) -> Option<&Arc<Service>> {
        self.service.as_ref()
    }

    #[inline]
    pub(in crate::exchange) fn service_name(&self) -> Option<&str> {
        self.service.as_ref().map(|service| &*service.name)
    }

    pub(in crate::exchange) fn rule(&self) -> Option<Rule> {
        self.rule
    }

    #[inline]
    pub(in crate::exchange) fn policy(&self) -> &CallPolicy {
        &self.policy
    }

    /// The uid of the instance that the caller's proxy chose.
    #[inline]
    pub(in crate::exchange) fn wanted(&self) -> Option<u64> {
        self.wanted
    }
}
