//! The control plane's own state in the view: its replicas, their duties, and recent events. This module does not know
//! nodes and services.

use std::{collections::BTreeMap, sync::Arc};

use heddle_proto::store::v1::{DutyRecord, EventRecord, ReplicaRecord};
use prost::Message as _;

use crate::{
    registry::model::{Event, Replica},
    store::{KeyValue, Revision},
};

/// The replica that performs a duty, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) struct DutyHolder {
    pub(in crate::registry) replica: String,
    pub(in crate::registry) process_id: String,
    pub(in crate::registry) at: Revision,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ControlPlaneState {
    replicas: BTreeMap<Arc<str>, Replica>,
    duties: BTreeMap<Arc<str>, DutyHolder>,
    events: BTreeMap<Arc<str>, Arc<Event>>,
}

impl ControlPlaneState {
    pub(super) fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.values()
    }

    pub(super) fn replica(&self, name: &str) -> Option<&Replica> {
        self.replicas.get(name)
    }

    pub(super) fn duty_holder(&self, name: &str) -> Option<&DutyHolder> {
        self.duties.get(name)
    }

    pub(super) fn events(
        &self,
    ) -> impl DoubleEndedIterator<Item = &Arc<Event>> + ExactSizeIterator {
        self.events.values()
    }

    pub(super) fn other_replicas(&self, older: &Self) -> bool {
        (&self.replicas, &self.duties) != (&older.replicas, &older.duties)
    }

    pub(super) fn other_events(&self, older: &Self) -> bool {
        // An event never changes.
        !self.events.keys().eq(older.events.keys())
    }

    /// True if something changed.
    pub(super) fn set_replica(&mut self, name: &str, value: Option<&KeyValue>) -> bool {
        let new = value.map(|value| {
            // The key's existence alone means that the replica serves, even if its record cannot be decoded.
            let record = ReplicaRecord::decode(value.value.clone()).unwrap_or_default();
            let duties = self.duties_of(name, &record.process_id);
            Replica::new(name, record, duties)
        });
        if self.replicas.get(name) == new.as_ref() {
            return false;
        }
        match new {
            Some(new) => self.replicas.insert(name.into(), new),
            None => self.replicas.remove(name),
        };
        true
    }

    pub(super) fn set_duty(&mut self, name: &str, value: Option<&KeyValue>) -> bool {
        let new = value.map(|value| {
            let record = DutyRecord::decode(value.value.clone()).unwrap_or_default();
            DutyHolder {
                replica: record.replica,
                process_id: record.process_id,
                at: value.mod_revision,
            }
        });
        if self.duties.get(name) == new.as_ref() {
            return false;
        }
        match new {
            Some(new) => self.duties.insert(name.into(), new),
            None => self.duties.remove(name),
        };
        let mut replicas = std::mem::take(&mut self.replicas);
        for (name, replica) in &mut replicas {
            replica.duties = self.duties_of(name, &replica.process_id);
        }
        self.replicas = replicas;
        true
    }

    pub(super) fn set_event(&mut self, id: &str, value: Option<&KeyValue>) -> bool {
        match value {
            None => self.events.remove(id).is_some(),
            Some(value) => {
                let record = EventRecord::decode(value.value.clone()).unwrap_or_default();
                let event = Event {
                    id: id.into(),
                    record,
                };
                let held = self.events.insert(id.into(), Arc::new(event));
                held.is_none()
            }
        }
    }

    fn duties_of(&self, name: &str, process_id: &str) -> Vec<Arc<str>> {
        self.duties
            .iter()
            .filter(|(_, duty)| duty.replica == name && duty.process_id == process_id)
            .map(|(duty, _)| Arc::clone(duty))
            .collect()
    }
}
