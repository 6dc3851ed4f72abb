//! Decides which process gets a node's name when processes claim it, based on the node's record, whether its current
//! holder is alive, and the claimant. Pure: the result is the record that the claim would write, or the process that
//! has the name.

use heddle_proto::store::v1::{NodeRecord, Superseded};

use super::LeaseError;
use crate::registry::{core::events::NewEvent, model::NodeIdentity};

/// How many superseded processes a node remembers.
const MAX_SUPERSEDED: usize = 8;
/// How much higher a claimant's epoch may be than the highest known one. It may be higher because a store that was lost
/// or restored from a backup knows less than the processes of that time. Epochs grow by one with each take-over, so a
/// valid epoch never reaches this limit, and invalid ones cannot exhaust the numbers.
const MAX_AHEAD: u64 = 1 << 32;

/// A new process takes over at once. The same process keeps its epoch. A superseded process gets the name back only if
/// its successor is dead. A node without a record gets an epoch above `floor`: its record may have been removed while
/// one of its processes still ran.
pub(super) fn claim(
    held: Option<&NodeRecord>,
    holder_lives: bool,
    identity: &NodeIdentity,
    floor: u64,
) -> Result<NodeRecord, LeaseError> {
    let known = held.map_or(floor, |held| held.epoch.max(floor));
    if identity.epoch > known.saturating_add(MAX_AHEAD) {
        return Err(LeaseError::EpochTooHigh {
            node: identity.name.clone(),
            epoch: identity.epoch,
            known,
        });
    }
    let (epoch, mut superseded) = match held {
        None => (identity.epoch.max(floor.saturating_add(1)), Vec::new()),
        Some(held) if held.process_id == identity.process_id => {
            (held.epoch, held.superseded.clone())
        }
        Some(held) => {
            let was_superseded = held
                .superseded
                .iter()
                .any(|old| old.process_id == identity.process_id);
            // It has an epoch that is not newer: it had the name so long ago that it is no longer in `superseded`.
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
            (held.epoch.max(identity.epoch).saturating_add(1), superseded)
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
        suspect_ms: 0,
        left: false,
        expired: false,
        superseded,
        listeners: identity.listeners.iter().map(ToString::to_string).collect(),
        host: identity.host.clone(),
    })
}

/// The event of a granted claim; none for a session that resumes.
pub(super) fn event_of(
    held: Option<&NodeRecord>,
    holder_lived: bool,
    record: &NodeRecord,
) -> Option<NewEvent> {
    let (process, epoch) = (&record.process_id, record.epoch);
    let who = format!("process {process} (epoch {epoch}) at {}", record.advertise);
    let Some(held) = held else {
        return Some(NewEvent::of_node(
            "node-joined",
            &record.name,
            &format!("{who} connected"),
        ));
    };
    let before = format!("process {} (epoch {})", held.process_id, held.epoch);
    let was = if held.suspect { "; it was suspect" } else { "" };
    let (kind, cause) = match (held.process_id == record.process_id, holder_lived) {
        (true, true) => return None,
        (true, false) => (
            "node-returned",
            format!("{who} reconnected after its lease had expired{was}"),
        ),
        (false, _) if held.left => (
            "node-returned",
            format!("{who} connected after {before} had been stopped"),
        ),
        (false, false) => (
            "node-returned",
            format!("{who} connected after the lease of {before} had expired{was}"),
        ),
        (false, true) => (
            "node-superseded",
            format!(
                "{who} took the name over from {before}, whose lease was still valid: a restart, \
                 or two nodes with one name"
            ),
        ),
    };
    Some(NewEvent::of_node(kind, &record.name, &cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(process: &str, epoch: u64) -> NodeIdentity {
        NodeIdentity {
            name: "a".into(),
            process_id: process.into(),
            epoch,
            attempt: 0,
            advertise: "10.0.0.1:15008".parse().unwrap(),
            region: String::new(),
            zone: String::new(),
            version: "0.1.0".into(),
            loopback: false,
            listeners: vec![],
            host: String::new(),
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
        let first = claim(None, false, &identity("p1", 0), 0).unwrap();
        assert_eq!((first.epoch, &*first.process_id), (1, "p1"));
        let second = claim(Some(&first), true, &identity("p2", 0), 0).unwrap();
        assert_eq!((second.epoch, &*second.process_id), (2, "p2"));
        let old = identity("p1", 1);
        assert_eq!(
            blocked_by(claim(Some(&second), true, &old, 0)),
            ("p2".into(), 2)
        );
        let back = claim(Some(&second), false, &old, 0).unwrap();
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
        let mut held = claim(None, false, &identity("p1", 0), 0).unwrap();
        (held.suspect, held.suspect_ms) = (true, 60_000);
        let again = claim(Some(&held), true, &identity("p1", 1), 0).unwrap();
        let suspect = (again.suspect, again.suspect_ms);
        assert_eq!((again.epoch, suspect), (1, (false, 0)));
        // Its Welcome was lost: it does not know its epoch yet.
        assert_eq!(
            claim(Some(&held), true, &identity("p1", 0), 0)
                .unwrap()
                .epoch,
            1
        );
    }

    #[test]
    fn an_old_process_that_nobody_remembers_waits_too() {
        let mut held = claim(None, false, &identity("p0", 0), 0).unwrap();
        for n in 1..20 {
            held = claim(Some(&held), true, &identity(&format!("p{n}"), 0), 0).unwrap();
        }
        assert_eq!((held.epoch, held.superseded.len()), (20, MAX_SUPERSEDED));
        assert_eq!(
            blocked_by(claim(Some(&held), true, &identity("p0", 1), 0)),
            ("p19".into(), 20)
        );
    }

    #[test]
    fn epochs_go_on_where_the_store_was_lost_or_set_back() {
        assert_eq!(claim(None, false, &identity("p1", 7), 0).unwrap().epoch, 7);
        let held = claim(None, false, &identity("p1", 0), 0).unwrap();
        assert_eq!(
            claim(Some(&held), true, &identity("p2", 9), 0)
                .unwrap()
                .epoch,
            10
        );
    }

    /// Issue 10, D2: an epoch of 2^64-1 was accepted, and the next one wrapped to 0.
    #[test]
    fn an_epoch_that_nobody_can_have_given_is_refused() {
        let held = claim(None, false, &identity("p1", 0), 0).unwrap();
        for epoch in [u64::MAX, u64::MAX - 1, 1 << 63, 2 + MAX_AHEAD] {
            for held in [None, Some(&held)] {
                for process in ["p1", "p2"] {
                    let error = claim(held, false, &identity(process, epoch), 0).unwrap_err();
                    assert!(
                        matches!(&error, LeaseError::EpochTooHigh { node, .. } if node == "a"),
                        "{error}"
                    );
                }
            }
        }
        let far = claim(Some(&held), false, &identity("p2", 1 + MAX_AHEAD), 0).unwrap();
        assert_eq!(far.epoch, 2 + MAX_AHEAD);
        // The store has the highest epoch from an older version: the epoch stays there and does not wrap.
        let last = NodeRecord {
            epoch: u64::MAX,
            ..held
        };
        let next = claim(Some(&last), false, &identity("p2", 0), 0).unwrap();
        assert_eq!(next.epoch, u64::MAX);
        let floor = claim(None, false, &identity("p2", 0), u64::MAX).unwrap();
        assert_eq!(floor.epoch, u64::MAX);
    }

    #[test]
    fn a_forgotten_name_begins_above_all_that_may_still_be_about() {
        let forgotten = claim(None, false, &identity("p1", 4), 0).unwrap().epoch;
        let new = claim(None, false, &identity("p2", 0), forgotten).unwrap();
        assert_eq!(new.epoch, 5);
        let old = claim(Some(&new), true, &identity("p1", 4), 0);
        assert_eq!(blocked_by(old), ("p2".into(), 5));
    }

    #[test]
    fn the_event_names_the_new_and_the_old_process() {
        let check = |held: Option<&NodeRecord>, lived, record: &NodeRecord| {
            event_of(held, lived, record).map(|event| event.kind_and_cause())
        };
        let first = claim(None, false, &identity("p1", 0), 0).unwrap();
        let (kind, _) = check(None, false, &first).unwrap();
        assert_eq!(kind, "node-joined");
        assert_eq!(check(Some(&first), true, &first), None, "a resumed session");
        let (kind, cause) = check(Some(&first), false, &first).unwrap();
        assert_eq!(kind, "node-returned");
        assert!(cause.contains("after its lease had expired"), "{cause}");
        let second = claim(Some(&first), true, &identity("p2", 0), 0).unwrap();
        let (kind, cause) = check(Some(&first), true, &second).unwrap();
        assert_eq!(kind, "node-superseded");
        let wanted =
            "process p2 (epoch 2) at 10.0.0.1:15008 took the name over from process p1 (epoch 1)";
        assert!(cause.starts_with(wanted), "{cause}");
        let suspect = NodeRecord {
            suspect: true,
            ..first
        };
        let (kind, cause) = check(Some(&suspect), false, &second).unwrap();
        assert_eq!(kind, "node-returned");
        assert!(cause.ends_with("it was suspect"), "{cause}");
    }
}
