//! All resources at one point in time, and what changed since the one before. Immutable and shared between snapshots
//! and audiences where they are equal.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::{Audience, Kind, PerKind, Resource};

/// Resources of one kind by name.
pub type Table = BTreeMap<Arc<str>, Arc<Resource>>;

/// The number of steps that are kept; a stream that is further behind compares everything once.
const LOG_STEPS: usize = 64;

/// The names that one step changed, in any audience.
#[derive(Clone, Debug, Default)]
pub struct Changed(PerKind<BTreeSet<Arc<str>>>);

impl Changed {
    pub fn insert(&mut self, kind: Kind, name: Arc<str>) {
        self.0.get_mut(kind).insert(name);
    }

    #[must_use]
    pub fn of(&self, kind: Kind) -> &BTreeSet<Arc<str>> {
        self.0.get(kind)
    }
}

/// All resources at one revision of the store.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The store's revision that it represents.
    pub revision: u64,
    /// Counts the snapshots of this process.
    pub generation: u64,
    shared: PerKind<Arc<Table>>,
    proxy_endpoints: Arc<Table>,
    local_endpoints: Arc<Table>,
    remote_endpoints: Arc<Table>,
    /// The last steps, newest last; the last one led to this snapshot.
    log: VecDeque<Arc<Changed>>,
}

impl Snapshot {
    #[must_use]
    pub fn table(&self, kind: Kind, audience: Audience) -> &Table {
        match (kind, audience) {
            (Kind::Endpoint, Audience::Proxy) => &self.proxy_endpoints,
            (Kind::Endpoint, Audience::DirectLocal) => &self.local_endpoints,
            (Kind::Endpoint, Audience::DirectRemote) => &self.remote_endpoints,
            _ => self.shared.get(kind),
        }
    }

    #[must_use]
    pub fn get(&self, kind: Kind, audience: Audience, name: &str) -> Option<&Arc<Resource>> {
        self.table(kind, audience).get(name)
    }

    /// The steps since an older snapshot; none if it is too old for the log.
    pub fn steps_since(&self, generation: u64) -> Option<impl Iterator<Item = &Changed>> {
        let steps = usize::try_from(self.generation.checked_sub(generation)?).ok()?;
        let skip = self.log.len().checked_sub(steps)?;
        Some(self.log.iter().skip(skip).map(AsRef::as_ref))
    }

    /// Sets or removes a resource; true if that changed its version.
    pub(super) fn set(
        &mut self,
        kind: Kind,
        audience: Audience,
        name: &Arc<str>,
        resource: Option<Arc<Resource>>,
    ) -> bool {
        let old = self.get(kind, audience, name).map(|old| &old.version);
        if old == resource.as_ref().map(|new| &new.version) {
            return false;
        }
        let table = match (kind, audience) {
            (Kind::Endpoint, Audience::Proxy) => &mut self.proxy_endpoints,
            (Kind::Endpoint, Audience::DirectLocal) => &mut self.local_endpoints,
            (Kind::Endpoint, Audience::DirectRemote) => &mut self.remote_endpoints,
            _ => self.shared.get_mut(kind),
        };
        // Copied only while a stream still has the older snapshot: pointers, not content.
        let table = Arc::make_mut(table);
        match resource {
            Some(resource) => table.insert(Arc::clone(name), resource),
            None => table.remove(name),
        };
        true
    }

    pub(super) fn step(&mut self, revision: u64, changed: Changed) {
        self.revision = self.revision.max(revision);
        self.generation += 1;
        self.log.push_back(Arc::new(changed));
        if self.log.len() > LOG_STEPS {
            self.log.pop_front();
        }
    }
}
