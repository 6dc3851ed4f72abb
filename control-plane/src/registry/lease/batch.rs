//! Groups the writes of one session into transactions of bounded size. Each transaction includes the records of
//! services and the events that belong to its writes. This module writes nothing itself.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message as _;

use crate::{
    names::{InstanceKey, ServiceName, keys},
    registry::{
        core::{
            events::{EventEntry, NewEvent},
            instance_events::MAX_SINGLE_EVENTS,
        },
        model::KnownService,
    },
    store::{MAX_TXN_BYTES, MAX_TXN_OPS, Op},
};

/// Writes per transaction: each may need a second operation, for the record of its service or for an event.
pub(super) const WRITES_PER_TXN: usize = MAX_TXN_OPS / 2;
/// The size of an event without its names and cause, rounded up.
const EVENT_BYTES: usize = 256;

/// One operation on an instance.
pub(super) struct Write {
    pub(super) op: Op,
    /// The new record of its service, if it may have changed.
    pub(super) record: Option<(ServiceName, KnownService)>,
    /// Set if the instance is removed without having requested it.
    pub(super) unrequested: Option<UnrequestedRemoval>,
}

/// An instance that is removed without having requested it, and the cause.
pub(super) struct UnrequestedRemoval {
    key: InstanceKey,
    cause: String,
}

impl Write {
    /// A write without a record or an event.
    pub(super) fn of(op: Op) -> Self {
        Self {
            op,
            record: None,
            unrequested: None,
        }
    }

    pub(super) fn delete(key: &InstanceKey, cause: Option<String>) -> Self {
        let unrequested = cause.map(|cause| UnrequestedRemoval {
            key: key.clone(),
            cause,
        });
        Self {
            unrequested,
            ..Self::of(Op::delete(&keys::instance(key)))
        }
    }
}

/// The operations of one transaction and their events.
pub(super) struct Transaction {
    pub(super) ops: Vec<Op>,
    events: Vec<NewEvent>,
    /// The events with their keys: a retry records no event twice.
    pub(super) entries: Vec<EventEntry>,
}

impl Transaction {
    /// Logs the events once the transaction is committed.
    pub(super) fn log(&self) {
        for event in &self.events {
            event.log("removed although it did not deregister");
        }
    }
}

/// A service's record is written with the first of its instances, and again only if a later instance changes it.
pub(super) fn transactions(
    writes: Vec<Write>,
    entry: impl Fn(&NewEvent) -> EventEntry,
) -> Vec<Transaction> {
    let mut written: BTreeMap<ServiceName, KnownService> = BTreeMap::new();
    let mut transactions = Vec::new();
    let mut open = Open::default();
    for write in writes {
        let Write {
            op,
            record,
            unrequested,
        } = write;
        let known = record.map(|(service, reported)| {
            let known = match written.get(&service) {
                Some(known) => known.followed_by(reported),
                None => reported,
            };
            (service, known)
        });
        let news = known.filter(|(service, known)| written.get(service) != Some(known));
        let record = news.map(|(service, known)| {
            let record = known.record().encode_to_vec();
            let key = keys::service(&service);
            written.insert(service, known);
            Op::put(&key, record)
        });
        let of_event = unrequested
            .as_ref()
            .map_or(0, |it| it.cause.len() + EVENT_BYTES);
        let bytes = op.value_bytes() + record.as_ref().map_or(0, Op::value_bytes) + of_event;
        if open.is_full(bytes) {
            transactions.push(std::mem::take(&mut open).close(&entry));
        }
        open.add(op, record, unrequested, bytes);
    }
    if open.writes > 0 {
        transactions.push(open.close(&entry));
    }
    transactions
}

/// A transaction that is being filled.
#[derive(Default)]
struct Open {
    writes: usize,
    bytes: usize,
    ops: Vec<Op>,
    /// Records of services by key: if a transaction has two of one service, the later one counts.
    records: BTreeMap<Arc<str>, Op>,
    unrequested: Vec<UnrequestedRemoval>,
}

impl Open {
    fn is_full(&self, more_bytes: usize) -> bool {
        self.writes == WRITES_PER_TXN
            || (self.writes > 0 && self.bytes + more_bytes > MAX_TXN_BYTES)
    }

    fn add(
        &mut self,
        op: Op,
        record: Option<Op>,
        unrequested: Option<UnrequestedRemoval>,
        bytes: usize,
    ) {
        self.writes += 1;
        self.bytes += bytes;
        self.ops.push(op);
        if let Some(record) = record {
            self.records.insert(Arc::clone(record.key()), record);
        }
        self.unrequested.extend(unrequested);
    }

    fn close(self, entry: impl Fn(&NewEvent) -> EventEntry) -> Transaction {
        let mut ops = self.ops;
        ops.extend(self.records.into_values());
        let events = events_of(&self.unrequested);
        let entries = events.iter().map(entry).collect();
        Transaction {
            ops,
            events,
            entries,
        }
    }
}

const EXPIRED: &str = "instance-expired";

fn alone(gone: &UnrequestedRemoval) -> NewEvent {
    NewEvent::of_instance(EXPIRED, &gone.key, &gone.cause)
}

/// If more than [`MAX_SINGLE_EVENTS`] instances of one service are removed for one cause, they share an event.
fn events_of(gone: &[UnrequestedRemoval]) -> Vec<NewEvent> {
    let mut groups: BTreeMap<(&ServiceName, &str), Vec<&UnrequestedRemoval>> = BTreeMap::new();
    for one in gone {
        let group = groups.entry((&one.key.service, &one.cause)).or_default();
        group.push(one);
    }
    let mut events = Vec::new();
    for ((_, cause), group) in groups {
        match &*group {
            [first, .., last] if group.len() > MAX_SINGLE_EVENTS => {
                let (count, first, last) = (group.len(), &first.key, &last.key);
                let cause = format!("{count} instances, {} to {}: {cause}", first.id, last.id);
                events.push(NewEvent::of_instances(EXPIRED, first, &cause));
            }
            few => events.extend(few.iter().map(|one| alone(one))),
        }
    }
    events
}
