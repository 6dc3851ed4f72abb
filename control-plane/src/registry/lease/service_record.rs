//! What must be written of a service together with one of its instances, if anything. Pure.

use heddle_proto::control::v1::LocalInstance;

use crate::{
    names::InstanceKey,
    registry::{model::KnownService, view::View},
};

/// What must be written of its service together with an instance; none if the record is right. The first instance of
/// an empty service writes it whatever it says: who is about to forget the service sees that it is too late.
pub(super) fn record_for(
    view: &View,
    key: &InstanceKey,
    local: &LocalInstance,
) -> Option<KnownService> {
    let told = KnownService::of_local(local);
    let Some(held) = view.recorded(&key.service) else {
        return Some(told);
    };
    let next = held.followed_by(told.clone());
    if view.instances(&key.service).next().is_none() {
        return Some(next);
    }
    if next == *held {
        return None;
    }
    // Who says the same as before (its health changed, say) does not overrule who came later: while a new version is
    // rolled out the two would write in turns.
    let says_it_again = view
        .instance(key)
        .is_some_and(|before| KnownService::of(before) == told);
    (!says_it_again).then_some(next)
}
