//! Groups the writes of one session into transactions of bounded size. Each transaction includes the records of
//! services and the events that belong to its writes. This module writes nothing itself.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message as _;

use crate::{
    names::{InstanceKey, ServiceName, keys},
    registry::{
        core::events::{EventEntry, NewEvent},
        model::KnownService,
    },
    store::{MAX_TXN_BYTES, MAX_TXN_OPS, Op},
};

/// Writes per transaction: each may need a second operation, for the record of its service or for an event.
pub(super) const WRITES_PER_TXN: usize = MAX_TXN_OPS / 2;
/// If a write removes more instances than this without a request, those of one transaction, service and cause share an
/// event; otherwise each has its own. Without this limit, a node that drops a thousand instances would displace all
/// other events.
pub(super) const MAX_SINGLE_EVENTS: usize = 100;
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
    let unrequested = writes.iter().filter(|write| write.unrequested.is_some());
    let one_by_one = unrequested.count() <= MAX_SINGLE_EVENTS;
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
            transactions.push(std::mem::take(&mut open).close(one_by_one, &entry));
        }
        open.add(op, record, unrequested, bytes);
    }
    if open.writes > 0 {
        transactions.push(open.close(one_by_one, &entry));
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

    fn close(self, one_by_one: bool, entry: impl Fn(&NewEvent) -> EventEntry) -> Transaction {
        let mut ops = self.ops;
        ops.extend(self.records.into_values());
        let events = if one_by_one {
            self.unrequested.iter().map(alone).collect()
        } else {
            together(&self.unrequested)
        };
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

/// One event for each service and cause.
fn together(gone: &[UnrequestedRemoval]) -> Vec<NewEvent> {
    let mut groups: BTreeMap<(&ServiceName, &str), Vec<&UnrequestedRemoval>> = BTreeMap::new();
    for one in gone {
        let group = groups.entry((&one.key.service, &one.cause)).or_default();
        group.push(one);
    }
    let event =
        |((_, cause), group): ((&ServiceName, &str), Vec<&UnrequestedRemoval>)| match &*group {
            [first, .., last] => {
                let (count, first, last) = (group.len(), &first.key, &last.key);
                let cause = format!("{count} instances, {} to {}: {cause}", first.id, last.id);
                Some(NewEvent::of_instances(EXPIRED, first, &cause))
            }
            [one] => Some(alone(one)),
            [] => None,
        };
    groups.into_iter().filter_map(event).collect()
}
