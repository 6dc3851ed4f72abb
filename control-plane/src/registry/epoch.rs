//! Who holds a node's name when processes claim it. In come the record of the node, whether its holder lives, and
//! who claims; out comes the record that the claim would write, or who is in the way. Pure; it writes nothing.

use heddle_proto::store::v1::{NodeRecord, Superseded};

use super::{LeaseError, NodeIdentity};

/// How many superseded processes a node remembers.
const MAX_SUPERSEDED: usize = 8;

/// A new process takes over at once. The same process keeps its epoch. One that was superseded comes back only
/// when its successor does not live.
pub(super) fn claim(
    held: Option<&NodeRecord>,
    holder_lives: bool,
    identity: &NodeIdentity,
) -> Result<NodeRecord, LeaseError> {
    let (epoch, mut superseded) = match held {
        None => (identity.epoch.max(1), Vec::new()),
        Some(held) if held.process_id == identity.process_id => {
            (held.epoch, held.superseded.clone())
        }
        Some(held) => {
            let was_superseded = held
                .superseded
                .iter()
                .any(|old| old.process_id == identity.process_id);
            // An epoch of its own that is not newer: it held the name so long ago that nobody remembers.
            let is_old = identity.epoch != 0 && identity.epoch <= held.epoch;
            if holder_lives && (was_superseded || is_old) {
                return Err(LeaseError::Superseded {
                    node: identity.name.clone(),
                    process_id: held.process_id.clone(),
                    epoch: held.epoch,
                });
            }
            let mut superseded = held.superseded.clone();
            superseded.push(Superseded {
                process_id: held.process_id.clone(),
                epoch: held.epoch,
            });
            (held.epoch.max(identity.epoch) + 1, superseded)
        }
    };
    superseded.retain(|old| old.process_id != identity.process_id);
    let too_many = superseded.len().saturating_sub(MAX_SUPERSEDED);
    superseded.drain(..too_many);
    Ok(NodeRecord {
        name: identity.name.clone(),
        epoch,
        process_id: identity.process_id.clone(),
        advertise: identity.advertise.to_string(),
        region: identity.region.clone(),
        zone: identity.zone.clone(),
        version: identity.version.clone(),
        loopback: identity.loopback,
        suspect: false,
        superseded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(process: &str, epoch: u64) -> NodeIdentity {
        NodeIdentity {
            name: "a".into(),
            process_id: process.into(),
            epoch,
            advertise: "10.0.0.1:15008".parse().unwrap(),
            region: String::new(),
            zone: String::new(),
            version: "0.1.0".into(),
            loopback: false,
        }
    }

    fn blocked_by(result: Result<NodeRecord, LeaseError>) -> (String, u64) {
        match result.unwrap_err() {
            LeaseError::Superseded {
                process_id, epoch, ..
            } => (process_id, epoch),
            error => panic!("{error}"),
        }
    }

    #[test]
    fn a_new_process_takes_over_and_the_old_one_waits_while_it_lives() {
        let first = claim(None, false, &identity("p1", 0)).unwrap();
        assert_eq!((first.epoch, &*first.process_id), (1, "p1"));
        let second = claim(Some(&first), true, &identity("p2", 0)).unwrap();
        assert_eq!((second.epoch, &*second.process_id), (2, "p2"));
        let old = identity("p1", 1);
        assert_eq!(
            blocked_by(claim(Some(&second), true, &old)),
            ("p2".into(), 2)
        );
        let back = claim(Some(&second), false, &old).unwrap();
        assert_eq!((back.epoch, &*back.process_id), (3, "p1"));
        assert_eq!(
            back.superseded
                .iter()
                .map(|old| &*old.process_id)
                .collect::<Vec<_>>(),
            ["p2"]
        );
    }

    #[test]
    fn the_same_process_keeps_its_epoch() {
        let mut held = claim(None, false, &identity("p1", 0)).unwrap();
        held.suspect = true;
        let again = claim(Some(&held), true, &identity("p1", 1)).unwrap();
        assert_eq!((again.epoch, again.suspect), (1, false));
        // Its Welcome was lost: it does not know its epoch yet.
        assert_eq!(
            claim(Some(&held), true, &identity("p1", 0)).unwrap().epoch,
            1
        );
    }

    #[test]
    fn an_old_process_that_nobody_remembers_waits_too() {
        let mut held = claim(None, false, &identity("p0", 0)).unwrap();
        for n in 1..20 {
            held = claim(Some(&held), true, &identity(&format!("p{n}"), 0)).unwrap();
        }
        assert_eq!((held.epoch, held.superseded.len()), (20, MAX_SUPERSEDED));
        assert_eq!(
            blocked_by(claim(Some(&held), true, &identity("p0", 1))),
            ("p19".into(), 20)
        );
    }

    #[test]
    fn epochs_go_on_where_the_store_was_lost_or_set_back() {
        assert_eq!(claim(None, false, &identity("p1", 7)).unwrap().epoch, 7);
        let held = claim(None, false, &identity("p1", 0)).unwrap();
        assert_eq!(
            claim(Some(&held), true, &identity("p2", 9)).unwrap().epoch,
            10
        );
    }
}
