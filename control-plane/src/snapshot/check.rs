//! Checks that every reference resolves before a snapshot is published: a client with a route to a missing cluster
//! fails calls. Only what changed since the last published snapshot, and what may refer to it, is checked.

use std::{fmt, sync::Arc};

use super::{Audience, Changed, Kind, ROUTES, Resource, Snapshot, TARGETS};

/// A resource that refers to a missing one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnresolvedReference {
    pub from: (Kind, Arc<str>),
    pub to: (Kind, Arc<str>),
}

impl fmt::Display for UnresolvedReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((from_kind, from), (to_kind, to)) = (&self.from, &self.to);
        write!(
            f,
            "{} {from} points at {} {to}, which does not exist",
            from_kind.word(),
            to_kind.word()
        )
    }
}

/// The broken references of a snapshot, as far as the changes since the snapshot of generation `published` could have
/// caused them. That one passed the check. Those between did not, and their faults remain until a later step repairs
/// them. If it is too old for the steps to be known, everything is checked.
#[must_use]
pub fn check(snapshot: &Snapshot, published: u64) -> Vec<UnresolvedReference> {
    let mut unresolved = Vec::new();
    let Some(steps) = snapshot.steps_since(published) else {
        for kind in Kind::ALL {
            look_at_all(snapshot, kind, &mut unresolved);
        }
        return unresolved;
    };
    let steps: Vec<&Changed> = steps.collect();
    for kind in Kind::ALL {
        for name in steps.iter().flat_map(|step| step.of(kind)) {
            if let Some(resource) = snapshot.get(kind, Audience::Proxy, name) {
                check_resource(snapshot, resource, &mut unresolved);
            }
        }
    }
    if steps.iter().any(|step| took_targets(snapshot, step)) {
        for &kind in ROUTES.iter().chain(TARGETS) {
            look_at_all(snapshot, kind, &mut unresolved);
        }
    }
    unresolved
}

fn look_at_all(snapshot: &Snapshot, kind: Kind, unresolved: &mut Vec<UnresolvedReference>) {
    for resource in snapshot.table(kind, Audience::Proxy).values() {
        check_resource(snapshot, resource, unresolved);
    }
}

/// The step removed something that others may refer to. Rare: a service without instances stays for long.
fn took_targets(snapshot: &Snapshot, step: &Changed) -> bool {
    [Kind::Cluster, Kind::Endpoint, Kind::Route]
        .into_iter()
        .any(|kind| {
            step.of(kind).iter().any(|name| {
                Audience::ALL
                    .iter()
                    .any(|&audience| snapshot.get(kind, audience, name).is_none())
            })
        })
}

fn check_resource(
    snapshot: &Snapshot,
    resource: &Resource,
    unresolved: &mut Vec<UnresolvedReference>,
) {
    for (kind, name) in &resource.refs {
        let there = Audience::ALL
            .iter()
            .all(|&audience| snapshot.get(*kind, audience, name).is_some());
        if !there {
            let fault = UnresolvedReference {
                from: (resource.kind, Arc::clone(&resource.name)),
                to: (*kind, Arc::clone(name)),
            };
            if !unresolved.contains(&fault) {
                unresolved.push(fault);
            }
        }
    }
}
