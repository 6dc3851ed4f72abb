//! Decides which claims of paths a session writes before the instances that make them. Claims are returned in rounds:
//! an earlier round is written first, so its claims are older. Pure.

use std::collections::{BTreeMap, BTreeSet};

use heddle_proto::{control::v1::LocalInstance, store::v1::ClaimRecord};
use prost::Message as _;

use crate::{
    names::{ServiceName, keys},
    registry::{model::service::claims_paths, options::ClaimOptions, view::View},
    store::Op,
};

/// The claims to write.
#[derive(Debug, Default)]
pub(super) struct ClaimsToWrite {
    /// No two operations of a round are about the same path, so their order does not matter.
    pub(super) rounds: Vec<Vec<Op>>,
    /// Claims that exceed the limits.
    pub(super) refused: usize,
}

/// A stored claim that an instance already serves is not written again, so only a service's first instance writes it.
/// When a service returns, its claim is written unchanged, so that a concurrent deletion fails.
pub(super) fn claims_to_write<'a>(
    view: &View,
    options: &ClaimOptions,
    joining: impl Iterator<Item = (&'a ServiceName, &'a LocalInstance)>,
) -> ClaimsToWrite {
    let mut claims_to_write = ClaimsToWrite::default();
    let mut seen = BTreeSet::new();
    let mut ranks: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut added: BTreeMap<&str, usize> = BTreeMap::new();
    let mut all_added = 0;
    for (service, local) in joining.filter(|(_, it)| claims_paths(it.instance.as_ref())) {
        for proto in &local.protos {
            let stored = view.stored_claim(service, &proto.name);
            let is_good = stored.is_some() && view.serves_path(service, &proto.name);
            if is_good || !seen.insert((service, proto.name.as_str())) {
                continue;
            }
            if stored.is_none() {
                let (all, here) = view.claim_counts(&service.namespace);
                let added = added.entry(&service.namespace).or_default();
                if all + all_added >= options.at_most
                    || here + *added >= options.at_most_in_namespace
                {
                    claims_to_write.refused += 1;
                    continue;
                }
                *added += 1;
                all_added += 1;
            }
            let record = ClaimRecord {
                vacant_ms: 0,
                ..stored.map(|it| it.record.clone()).unwrap_or_default()
            };
            let rank = ranks.entry((&service.namespace, &proto.name)).or_default();
            if claims_to_write.rounds.len() <= *rank {
                claims_to_write.rounds.push(Vec::new());
            }
            if let Some(round) = claims_to_write.rounds.get_mut(*rank) {
                let key = keys::claim(&proto.name, service);
                round.push(Op::put(&key, record.encode_to_vec()));
            }
            *rank += 1;
        }
    }
    claims_to_write
}
