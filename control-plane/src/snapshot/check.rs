//! Each reference resolves, or the snapshot is not published: a client that is told of a route to a cluster that
//! does not exist fails calls. Looks at what the last step changed only, and at what may have pointed there.

use std::{fmt, sync::Arc};

use super::{Audience, Changed, Kind, ROUTES, Resource, Snapshot, TARGETS};

/// A resource that points at one that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dangling {
    pub from: (Kind, Arc<str>),
    pub to: (Kind, Arc<str>),
}

impl fmt::Display for Dangling {
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

/// The references of a snapshot that its last step broke or brought.
#[must_use]
pub fn check(snapshot: &Snapshot) -> Vec<Dangling> {
    let Some(step) = snapshot.last_step() else {
        return Vec::new();
    };
    let mut dangling = Vec::new();
    for kind in Kind::ALL {
        for name in step.of(kind) {
            if let Some(resource) = snapshot.get(kind, Audience::Proxy, name) {
                look(snapshot, resource, &mut dangling);
            }
        }
    }
    if took_targets(snapshot, step) {
        for &kind in ROUTES.iter().chain(TARGETS) {
            for resource in snapshot.table(kind, Audience::Proxy).values() {
                look(snapshot, resource, &mut dangling);
            }
        }
    }
    dangling
}

/// Something went that others may point at. Rare: a service without instances stays for long.
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

fn look(snapshot: &Snapshot, resource: &Resource, dangling: &mut Vec<Dangling>) {
    for (kind, name) in &resource.refs {
        let there = Audience::ALL
            .iter()
            .all(|&audience| snapshot.get(*kind, audience, name).is_some());
        if !there {
            let fault = Dangling {
                from: (resource.kind, Arc::clone(&resource.name)),
                to: (*kind, Arc::clone(name)),
            };
            if !dangling.contains(&fault) {
                dangling.push(fault);
            }
        }
    }
}
