//! The events about paths: who owns a path, who gets its calls, and when that ends. Input: services and proto services.
//! Output: events with a cause in one sentence. When they are written is not decided here.

use std::time::Duration;

use crate::{names::ServiceName, registry::core::events::NewEvent};

/// The most proto services that an event names.
const NAMED: usize = 3;

/// Who gets the calls of a path that a service claims but does not own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Conflict {
    pub(super) owner: ServiceName,
    /// The owner, or the service that stands in for it.
    pub(super) serves: ServiceName,
}

impl Conflict {
    /// The service that stands in for the owner, as claims record it; empty if none does.
    pub(super) fn stand_in(&self) -> String {
        if self.serves == self.owner {
            String::new()
        } else {
            self.serves.to_string()
        }
    }
}

pub(super) fn conflict(service: &ServiceName, with: &Conflict, protos: Vec<&str>) -> NewEvent {
    let Conflict { owner, serves } = with;
    let paths = some_of(protos);
    let mut cause = format!("{owner} claimed {paths} first and owns the path");
    if serves != owner {
        cause.push_str(&format!(
            ", but has no instance now: {serves} gets its calls"
        ));
    }
    if serves != service {
        let sign = if serves == owner { ':' } else { ';' };
        cause.push_str(&format!("{sign} {service} is called by its name only"));
    }
    NewEvent::of_service("path-conflict", &service.to_string(), &cause)
}

/// The owner's claim ended.
pub(super) fn handed_on(
    service: &ServiceName,
    next: &ServiceName,
    protos: Vec<&str>,
    after: Duration,
) -> NewEvent {
    let claims = gave_up(protos, after);
    let cause = format!("{claims}: {next} owns the path now");
    NewEvent::of_service("path-released", &service.to_string(), &cause)
}

/// The claim of a service that did not own the path ended, and with it the conflict.
pub(super) fn over(
    service: &ServiceName,
    owner: &ServiceName,
    protos: Vec<&str>,
    after: Duration,
) -> NewEvent {
    let claims = gave_up(protos, after);
    let cause = format!("{claims}: it no longer claims the path, which {owner} owns");
    NewEvent::of_service("path-released", &service.to_string(), &cause)
}

fn gave_up(protos: Vec<&str>, after: Duration) -> String {
    let paths = some_of(protos);
    format!(
        "no instance of it has served {paths} for {after:?} (or, of too many such paths, for the \
         longest time)"
    )
}

fn some_of(mut protos: Vec<&str>) -> String {
    let more = protos.len().saturating_sub(NAMED);
    protos.truncate(NAMED);
    let named = protos.join(", ");
    match more {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
