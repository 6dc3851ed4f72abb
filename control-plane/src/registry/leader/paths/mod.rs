//! Maintains the claims of paths, which decide which service owns the path of a proto service. Each claim is a key of
//! its own in the store, and the oldest claim owns the path, so replicas need no further agreement. Sessions write
//! claims (`lease/paths`). The leader deletes claims that no instance has served for a long time, writes missing ones,
//! and records conflicts. This module must not contain routing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_proto::{paths::Owner, store::v1::ClaimRecord};
use prost::Message as _;

use super::{election::FencingToken, now};
use crate::{
    names::{ServiceName, keys},
    registry::{
        core::{Registry, events::NewEvent},
        view::{PathOf, StoredClaim, View},
    },
    store::{Compare, MAX_TXN_OPS, Op, StoreError},
};

mod events;
mod vacant;
#[cfg(test)]
mod tests;

use events::{Conflict, conflict, handed_on, over};
use vacant::Vacant;

/// Claims per transaction: each has a condition and a write, and may have an event.
const MAX_PER_TXN: usize = MAX_TXN_OPS / 2 - 4;
/// The pause before a failed write is retried.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

pub(super) async fn run(registry: &Registry, token: FencingToken) {
    let mut changes = registry.subscribe();
    let options = registry.options().claims.clone();
    let mut keeper = PathJob {
        registry,
        token,
        changed: registry.read(all_paths),
        owners: BTreeMap::new(),
        vacant: Vacant::new(options),
        retry: None,
    };
    loop {
        if let Err(error) = keeper.work().await {
            registry.on_store_result::<()>(&Err(error.clone()));
            tracing::warn!(%error, "cannot update path claims; retrying");
            keeper.retry = Some(now() + RETRY_PAUSE);
        }
        let next = [keeper.vacant.next(), keeper.retry]
            .into_iter()
            .flatten()
            .min();
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            batch = changes.next() => keeper.changed.extend(batch.paths),
            () = due => {}
        }
    }
}

/// All paths that services claim now or for which the store has a claim.
fn all_paths(view: &View) -> BTreeSet<PathOf> {
    let claimed = view.services().flat_map(|service| {
        let claims = view.path_claims(service).into_iter();
        claims.map(move |(proto, _)| (proto, service.clone()))
    });
    let stored = view.claiming_services().flat_map(|service| {
        let stored = view.stored_claims(service);
        stored.map(move |(proto, _)| (Arc::clone(proto), service.clone()))
    });
    claimed.chain(stored).collect()
}

struct PathJob<'a> {
    registry: &'a Registry,
    token: FencingToken,
    /// The paths to check.
    changed: BTreeSet<PathOf>,
    /// Who owned each path and got its calls at its last check, by namespace and proto service.
    owners: BTreeMap<(String, Arc<str>), Conflict>,
    vacant: Vacant,
    /// When a failed write is retried.
    retry: Option<Instant>,
}

/// A write of one claim.
enum ClaimWrite {
    /// An instance makes the claim, but the store does not have it.
    Create,
    /// The service has an instance again: resets how long the claim has been vacant.
    Revive(StoredClaim),
    /// Another service owns the path, and that, or who gets the calls now, is not recorded yet.
    ReportConflict(StoredClaim, Conflict),
}

impl PathJob<'_> {
    async fn work(&mut self) -> Result<(), StoreError> {
        if self.retry.is_some_and(|at| at <= now()) {
            self.retry = None;
        }
        if self.retry.is_none() {
            let changed = std::mem::take(&mut self.changed);
            if let Err(error) = self.check(&changed).await {
                self.changed.extend(changed);
                return Err(error);
            }
        }
        self.release().await?;
        self.note().await
    }

    async fn check(&mut self, changed: &BTreeSet<PathOf>) -> Result<(), StoreError> {
        let registry = self.registry;
        let writes = registry.read(|view| self.writes(view, changed));
        let mut missing = Vec::new();
        let mut rest = Vec::new();
        for (path, writes) in writes {
            match writes {
                ClaimWrite::Create => missing.push(path),
                ClaimWrite::Revive(_) | ClaimWrite::ReportConflict(..) => rest.push((path, writes)),
            }
        }
        for round in registry.read(|view| rounds(view, missing)) {
            for some in round.chunks(MAX_PER_TXN) {
                self.make(some).await?;
            }
        }
        for some in rest.chunks(MAX_PER_TXN) {
            self.update(some).await?;
        }
        Ok(())
    }

    fn writes(&mut self, view: &View, changed: &BTreeSet<PathOf>) -> Vec<(PathOf, ClaimWrite)> {
        let mut to_see = changed.clone();
        for (proto, service) in changed {
            let place = (service.namespace.clone(), Arc::clone(proto));
            let owner = who_serves(view, proto, service);
            // Services that conflicted with the former owner conflict with the new one.
            if self.owners.get(&place) != owner.as_ref() {
                let all = view.path_claimants(proto).map(|it| it.service);
                let here = all.filter(|it| it.namespace == service.namespace);
                to_see.extend(here.map(|it| (Arc::clone(proto), it.clone())));
            }
            match owner {
                Some(owner) => self.owners.insert(place, owner),
                None => self.owners.remove(&place),
            };
        }
        let now = now();
        to_see
            .into_iter()
            .filter_map(|path| {
                let writes = self.write_for(view, &path, now)?;
                Some((path, writes))
            })
            .collect()
    }

    fn write_for(&mut self, view: &View, path: &PathOf, now: Instant) -> Option<ClaimWrite> {
        let (proto, service) = path;
        let stored = view.stored_claim(service, proto);
        if !view.serves_path(service, proto) {
            match stored {
                Some(stored) => self.vacant.on_vacant(path, &stored.record, now),
                None => self.vacant.on_other(path),
            }
            return None;
        }
        self.vacant.on_other(path);
        let Some(stored) = stored else {
            return fits(view, service, self.registry).then_some(ClaimWrite::Create);
        };
        let conflict = who_serves(view, proto, service);
        if let Some(conflict) = conflict.filter(|it| it.owner != *service) {
            let record = &stored.record;
            let is_known = record.conflict_with == conflict.owner.to_string()
                && record.stand_in == conflict.stand_in();
            if !is_known {
                return Some(ClaimWrite::ReportConflict(stored.clone(), conflict));
            }
        }
        (stored.record.vacant_ms > 0).then(|| ClaimWrite::Revive(stored.clone()))
    }

    async fn make(&mut self, paths: &[PathOf]) -> Result<(), StoreError> {
        let keys: Vec<_> = paths
            .iter()
            .map(|(proto, service)| keys::claim(proto, service))
            .collect();
        let compare = keys.iter().map(|key| Compare::absent(key)).collect();
        let put = |key: &String| Op::put(key, ClaimRecord::default().encode_to_vec());
        self.write(compare, keys.iter().map(put).collect(), &[], paths)
            .await
    }

    async fn update(&mut self, claims: &[(PathOf, ClaimWrite)]) -> Result<(), StoreError> {
        let (mut compare, mut then, mut paths) = (Vec::new(), Vec::new(), Vec::new());
        let mut conflicts: BTreeMap<(&ServiceName, &Conflict), Vec<&str>> = BTreeMap::new();
        for ((proto, service), writes) in claims {
            let (stored, record) = match writes {
                ClaimWrite::Create => continue,
                ClaimWrite::Revive(stored) => (stored, stored.record.clone()),
                ClaimWrite::ReportConflict(stored, with) => {
                    conflicts.entry((service, with)).or_default().push(proto);
                    let record = ClaimRecord {
                        conflict_with: with.owner.to_string(),
                        stand_in: with.stand_in(),
                        ..ClaimRecord::default()
                    };
                    (stored, record)
                }
            };
            let key = keys::claim(proto, service);
            compare.push(Compare::unchanged(&key, stored.modified));
            let record = ClaimRecord {
                vacant_ms: 0,
                ..record
            };
            then.push(Op::put(&key, record.encode_to_vec()));
            paths.push((Arc::clone(proto), service.clone()));
        }
        let conflicts = conflicts.into_iter();
        let events: Vec<_> = conflicts
            .map(|((service, with), protos)| conflict(service, with, protos))
            .collect();
        self.write(compare, then, &events, &paths).await
    }

    /// Deletes the claims that have been vacant for too long.
    async fn release(&mut self) -> Result<(), StoreError> {
        let due = self.vacant.due(now());
        for some in due.chunks(MAX_PER_TXN) {
            let (mut compare, mut then) = (Vec::new(), Vec::new());
            let mut released: BTreeMap<(&ServiceName, Released), Vec<&str>> = BTreeMap::new();
            self.registry.read(|view| {
                for (proto, service) in some {
                    let Some(stored) = view.stored_claim(service, proto) else {
                        continue;
                    };
                    let key = keys::claim(proto, service);
                    compare.push(Compare::unchanged(&key, stored.modified));
                    then.push(Op::delete(&key));
                    if let Some(what) = Released::of(view, proto, service, stored) {
                        released.entry((service, what)).or_default().push(proto);
                    }
                }
            });
            let after = self.registry.options().claims.release_after;
            let event =
                |((service, what), protos): ((&ServiceName, Released), Vec<&str>)| match what {
                    Released::HandedOn(next) => handed_on(service, &next, protos, after),
                    Released::Over(owner) => over(service, &owner, protos, after),
                };
            let events: Vec<_> = released.into_iter().map(event).collect();
            self.write(compare, then, &events, some).await?;
        }
        Ok(())
    }

    /// Records how long claims have been vacant, for the next leader.
    async fn note(&mut self) -> Result<(), StoreError> {
        let due = self.vacant.due_for_note(now());
        for some in due.chunks(MAX_PER_TXN) {
            let (mut compare, mut then) = (Vec::new(), Vec::new());
            self.registry.read(|view| {
                for ((proto, service), vacant_for) in some {
                    let Some(stored) = view.stored_claim(service, proto) else {
                        continue;
                    };
                    let key = keys::claim(proto, service);
                    compare.push(Compare::unchanged(&key, stored.modified));
                    let record = ClaimRecord {
                        vacant_ms: u64::try_from(vacant_for.as_millis()).unwrap_or(u64::MAX),
                        ..stored.record.clone()
                    };
                    then.push(Op::put(&key, record.encode_to_vec()));
                }
            });
            self.write(compare, then, &[], &[]).await?;
        }
        Ok(())
    }

    /// If the transaction's conditions fail, `paths` are checked again.
    async fn write(
        &mut self,
        compare: Vec<Compare>,
        then: Vec<Op>,
        events: &[NewEvent],
        paths: &[PathOf],
    ) -> Result<(), StoreError> {
        if then.is_empty() {
            return Ok(());
        }
        let registry = self.registry;
        let txn = registry.txn_of_leader(self.token, compare, then, events);
        if txn.await? {
            for event in events {
                event.log("who gets the calls of a path");
            }
        } else {
            self.changed.extend(paths.iter().cloned());
            self.retry.get_or_insert(now() + RETRY_PAUSE);
        }
        Ok(())
    }
}

/// Who owns the path in the namespace of this service, and who gets its calls.
fn who_serves(view: &View, proto: &str, service: &ServiceName) -> Option<Conflict> {
    match view.path_owner(proto, &service.namespace) {
        Owner::One { owner, serves } => Some(Conflict {
            owner: owner.clone(),
            serves: serves.clone(),
        }),
        Owner::Unclaimed | Owner::Unclear(_) => None,
    }
}

/// What the end of a claim means for the path.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Released {
    /// The service owned it; this is the next owner.
    HandedOn(ServiceName),
    /// The service was in conflict with this owner.
    Over(ServiceName),
}

impl Released {
    fn of(view: &View, proto: &str, service: &ServiceName, stored: &StoredClaim) -> Option<Self> {
        let owner = who_serves(view, proto, service)?.owner;
        if owner != *service {
            let was_told = !stored.record.conflict_with.is_empty();
            return was_told.then_some(Self::Over(owner));
        }
        let others = view.path_claimants(proto);
        let others = others.filter(|it| it.service != service);
        match crate::registry::model::owner_among(others, &service.namespace) {
            Owner::One { owner, .. } => Some(Self::HandedOn(owner.clone())),
            Owner::Unclaimed | Owner::Unclear(_) => None,
        }
    }
}

fn fits(view: &View, service: &ServiceName, registry: &Registry) -> bool {
    let options = &registry.options().claims;
    let (all, here) = view.claim_counts(&service.namespace);
    all < options.at_most && here < options.at_most_in_namespace
}

/// Groups missing claims into rounds, the oldest service first: no two claims of a round are about the same path.
fn rounds(view: &View, mut missing: Vec<PathOf>) -> Vec<Vec<PathOf>> {
    missing.sort_by_key(|(_, service)| (view.known_since(service), service.clone()));
    let mut ranks: BTreeMap<(String, Arc<str>), usize> = BTreeMap::new();
    let mut rounds: Vec<Vec<PathOf>> = Vec::new();
    for (proto, service) in missing {
        let place = (service.namespace.clone(), Arc::clone(&proto));
        let rank = ranks.entry(place).or_default();
        if rounds.len() <= *rank {
            rounds.push(Vec::new());
        }
        if let Some(round) = rounds.get_mut(*rank) {
            round.push((proto, service));
        }
        *rank += 1;
    }
    rounds
}
