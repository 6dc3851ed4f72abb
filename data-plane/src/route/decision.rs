//! The result of routing a call: the service, the rule that led to it and the policy, as one value. Only these types;
//! `authority` (outbound) and `instance` (inbound) do the routing.

use std::sync::Arc;

use super::table::Service;
use crate::policy::CallPolicy;

/// The service of a call, the rule that led to it, and its policy.
#[derive(Clone, Debug)]
pub struct Route {
    /// The service.
    pub service: Arc<Service>,
    /// The rule that led to it.
    pub rule: Rule,
    /// The policy of the call.
    pub policy: CallPolicy,
}

/// The rule by which a call was routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The authority names the service.
    Authority,
    /// The path names a proto service, whose calls this service gets.
    Path,
    /// The caller's proxy names the service and an instance of it in `heddle-to`.
    Instance,
}

/// Result of routing an outbound call.
#[derive(Clone, Debug)]
pub enum Decision<'t> {
    /// To this service.
    Route(Route),
    /// To the proxy itself: health and reflection, routed by path.
    Internal,
    /// Several services claim the path of the proto service, and no rule prefers one of them.
    Ambiguous(&'t [Arc<Service>]),
    /// No service.
    NoRoute,
}
