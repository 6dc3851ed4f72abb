//! How instances enter the table: by registration, by a services file (`files`), or from the state dir of the last
//! process. One that returns unchanged keeps its health and what its reflection reported.

use std::{sync::Arc, time::Instant};

use heddle_proto::registry::v1::{Health, Protocol, health_check::Kind};

use super::{
    Entry, InstanceTable, Joined, MAX_INSTANCES, Refused, Source, UNCHECKED, Verdict, View,
};
use crate::agent::{
    key::InstanceKey,
    served::{Declared, Reflected, Served},
    validate::Checked,
};

impl InstanceTable {
    /// Adds an instance, or replaces an earlier registration of the same one.
    ///
    /// # Errors
    /// A file names it, or the node is full.
    pub fn register(
        &mut self,
        checked: Checked,
        registration: &Arc<str>,
        now: Instant,
    ) -> Result<Joined, Refused> {
        let key = InstanceKey::of(&checked.instance);
        if let Some(Entry {
            source: Source::File(file),
            ..
        }) = self.entries.get(&key)
        {
            return Err(Refused::OwnedByFile {
                key,
                file: file.clone(),
            });
        }
        if !self.entries.contains_key(&key) && self.entries.len() >= MAX_INSTANCES {
            return Err(Refused::Full);
        }
        let beat_by = now.checked_add(self.ttl);
        Ok(self.insert(key, checked, Source::Registered, registration, beat_by))
    }

    pub(super) fn insert(
        &mut self,
        key: InstanceKey,
        checked: Checked,
        source: Source,
        registration: &Arc<str>,
        beat_by: Option<Instant>,
    ) -> Joined {
        let previous = self.remove_entry(&key);
        self.removals.forget(&key);
        let passive = matches!(
            checked.check.kind,
            Kind::KeepAlive | Kind::None | Kind::Unspecified
        );
        let ousted = previous
            .as_ref()
            .filter(|p| p.stream.is_some() && p.view.address != checked.address)
            .map(|p| p.view.address);
        // The same process after a restart of the agent or of its stream keeps its health, so that it does not flap.
        let same = previous.filter(|p| {
            p.view.address == checked.address && p.view.instance.version == checked.instance.version
        });
        let fresh = same
            .as_ref()
            .is_none_or(|p| p.view.health == Health::Draining);
        let (health, reason) = match &same {
            _ if passive => (Health::Healthy, String::new()),
            // It is not known yet whether the control plane accepts the new registration.
            Some(p) if !fresh => match &p.refused {
                Some(checks) => (checks.health, checks.reason.clone()),
                None => (p.view.health, p.view.reason.clone()),
            },
            _ => (Health::Unhealthy, UNCHECKED.to_owned()),
        };
        let used = same.as_ref().map(|p| p.view.checked_by);
        let checked_by = checked.check.checked_by(used.unwrap_or_default());
        // The same content is not sent again, so the control plane does not decide on it again.
        let verdict = match &same {
            Some(p) if p.view.instance == checked.instance => p.verdict.clone(),
            _ => Verdict::Pending,
        };
        // New declared descriptors are newer than what reflection reported before.
        let report =
            same.filter(|p| checked.schema.is_none() || p.declared.schema == checked.schema);
        let (reflected, reflection_done, report_reason) = match report {
            Some(p) => (p.reflected, p.reflection_done, p.view.schema_reason.clone()),
            None => (None, false, String::new()),
        };
        let declared = Declared {
            named: checked.instance.protos.clone(),
            schema: checked.schema,
        };
        let Served { protos, schema } = Served::of(&declared, reflected.as_ref());
        let has_reflection = checked.instance.protocol == i32::from(Protocol::Grpc);
        let joined = Joined {
            key: key.clone(),
            registration: Arc::clone(registration),
            address: checked.address,
            plan: checked.check,
            checked_by,
            has_reflection,
            ousted,
        };
        let mut entry = Entry {
            view: Arc::new(View {
                instance: checked.instance,
                address: checked.address,
                health,
                reason,
                checked_by,
                protos,
                schema: None,
                schema_reason: report_reason,
                registration: Arc::clone(registration),
            }),
            source,
            beat_by,
            stream: None,
            unasked: None,
            declared,
            reflected,
            reflection_done,
            verdict,
            refused: None,
        };
        self.store_descriptors(&mut entry, schema);
        self.by_registration
            .insert(Arc::clone(registration), key.clone());
        self.claims.add(&entry.view);
        self.entries.insert(key, entry);
        self.version += 1;
        joined
    }

    /// Restores an instance of this node's last process. It is served, and removed after the TTL unless it registers or
    /// beats again.
    pub fn restore(&mut self, view: View, now: Instant) {
        let key = InstanceKey::of(&view.instance);
        if self.entries.contains_key(&key) || self.entries.len() >= MAX_INSTANCES {
            return;
        }
        self.by_registration
            .insert(Arc::clone(&view.registration), key.clone());
        self.removals.forget(&key);
        let named = view.instance.protos.clone();
        let names = view.protos.iter().map(|proto| proto.name.clone());
        let reflected = Reflected {
            names: names.filter(|name| !named.contains(name)).collect(),
            schema: view.schema.clone(),
        };
        let knows = !reflected.names.is_empty() || reflected.schema.is_some();
        self.claims.add(&view);
        let entry = Entry {
            view: Arc::new(view),
            source: Source::Restored,
            beat_by: now.checked_add(self.ttl),
            stream: None,
            unasked: None,
            declared: Declared {
                named,
                schema: None,
            },
            reflected: knows.then_some(reflected),
            reflection_done: false,
            verdict: Verdict::Pending,
            refused: None,
        };
        self.entries.insert(key, entry);
        self.version += 1;
    }
}
