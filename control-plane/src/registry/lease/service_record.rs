//! The record of a service that must be written together with one of its instances, if any. Pure.

use heddle_proto::control::v1::LocalInstance;

use crate::{
    names::InstanceKey,
    registry::{model::KnownService, view::View},
};

/// The record to write together with an instance; none if the stored record is right. The first instance of an empty
/// service always writes it, so that a concurrent deletion of the service fails.
pub(super) fn record_for(
    view: &View,
    key: &InstanceKey,
    local: &LocalInstance,
) -> Option<KnownService> {
    let reported = KnownService::of_local(local);
    let Some(held) = view.recorded(&key.service) else {
        return Some(reported);
    };
    let next = held.followed_by(reported.clone());
    if view.instances(&key.service).next().is_none() {
        return Some(next);
    }
    if next == *held {
        return None;
    }
    // An instance that repeats what it registered before (when only its health changed, for example) does not override
    // an instance that registered later: during a rollout, the two versions would overwrite each other in turn.
    let says_it_again = view
        .instance(key)
        .is_some_and(|before| KnownService::of(before) == reported);
    (!says_it_again).then_some(next)
}
