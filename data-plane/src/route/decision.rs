//! What routing says of a call: the service, the rule that led there and the policy that applies, as one value. Only
//! these types; how they are found stands in `authority` for outbound and `instance` for inbound.

use std::sync::Arc;

use super::table::Service;
use crate::policy::CallPolicy;

/// Where a call goes, why, and under which policy.
#[derive(Clone, Debug)]
pub struct Route {
    /// The service.
    pub service: Arc<Service>,
    /// What named it.
    pub rule: Rule,
    /// What applies to the call.
    pub policy: CallPolicy,
}

/// The rule by which a call was routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The authority names the service.
    Authority,
    /// The path names a proto service, which this service has the calls of.
    Path,
    /// The caller's proxy names the service and an instance of it in `heddle-to`.
    Instance,
}

/// Where a call of outbound goes.
#[derive(Clone, Debug)]
pub enum Decision<'t> {
    /// To this service.
    Route(Route),
    /// To the proxy itself: health and reflection, routed by path.
    Internal,
    /// Several services claim the path of the proto service, and none of them comes first.
    Ambiguous(&'t [Arc<Service>]),
    /// Nowhere.
    NoRoute,
}
