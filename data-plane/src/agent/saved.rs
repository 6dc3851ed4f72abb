//! Saves registered instances in the state dir, so that a proxy starts with those of its last run. Health check plans
//! are not saved but derived again on load. Instances of services files are not saved: the files are still there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use heddle_proto::control::v1::LocalInstance;
use heddle_proto::registry::v1::{Health, health_check::Kind};
use prost::Message;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use super::{
    Agent,
    check_plan::CheckPlan,
    health,
    instance_table::View,
    key::InstanceKey,
    left::{self, LeftInstance, SavedLeft},
    removal_log::Cause,
    schema::Schema,
    validate::{Origin, check},
};
use crate::state_dir::{StateDir, StateWriter};

const FILE: &str = "instances";
/// Bound on the descriptors that are saved with the instances. Those over it are requested again after a restart.
const MAX_SCHEMA_TOTAL: usize = 64 * 1024 * 1024;
/// The least time between two writes. The first change is written at once, so that a kill loses no registration;
/// changes within this time go into one more write. Each write saves the whole set and syncs the disk.
const REST: Duration = Duration::from_millis(200);
/// How long, at the start, all instances of the last run together are looked for. A local address without a program
/// refuses at once.
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);
/// How many at once: each takes a socket.
const MAX_CONCURRENT_PROBES: usize = 256;
/// How often the last process's word about its instances is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(message, repeated, tag = "2")]
    instances: Vec<SavedInstance>,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    schemas: Vec<Bytes>,
    /// The services and the paths they claimed, the oldest claim first.
    #[prost(message, repeated, tag = "4")]
    claims: Vec<SavedClaim>,
    /// Instances that drain, or were removed without the control plane's knowledge.
    #[prost(message, repeated, tag = "5")]
    left: Vec<SavedLeft>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedClaim {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    proto: String,
}

/// The instances and claims of this node's last process.
#[derive(Default)]
pub struct Restored {
    pub instances: Vec<(View, CheckPlan)>,
    /// Service and proto service, the oldest claim first.
    pub claims: Vec<(String, String)>,
    /// Those that left it. They are not among `instances`, or left later.
    pub left: Vec<LeftInstance>,
}

impl Restored {
    /// Moves the instances where no program listens any more to those that left: they ended while this node had no
    /// proxy to report it to. One that lives registers again in any case.
    pub async fn drop_ended(&mut self) {
        let until = Instant::now() + PROBE_TIMEOUT;
        let mut ended = BTreeSet::new();
        for some in self.instances.chunks(MAX_CONCURRENT_PROBES) {
            let mut checks = JoinSet::new();
            for (view, _) in some {
                let (address, registration) = (view.address, Arc::clone(&view.registration));
                let within = until.saturating_duration_since(Instant::now());
                checks.spawn(async move {
                    (health::refuses(address, within).await).then_some(registration)
                });
            }
            ended.extend(checks.join_all().await.into_iter().flatten());
        }
        let (gone, stay) = std::mem::take(&mut self.instances)
            .into_iter()
            .partition(|(view, _)| ended.contains(&view.registration));
        self.instances = stay;
        let gone: Vec<(View, CheckPlan)> = gone;
        self.left.extend(gone.into_iter().map(|(view, _)| {
            let left = LeftInstance {
                key: InstanceKey::of(&view.instance),
                registration: view.registration,
                cause: Some(Cause::EndedBefore),
            };
            info!(instance = %left.key, "an instance of the last run: {}", Cause::EndedBefore);
            left
        }));
    }
}

#[derive(Clone, PartialEq, Message)]
struct SavedInstance {
    #[prost(message, optional, tag = "1")]
    local: Option<LocalInstance>,
    #[prost(string, tag = "2")]
    registration: String,
}

/// Loads what this node's last process saved. Whether an address belongs to this host was checked when the instance
/// registered, and is not checked again.
#[must_use]
pub fn load(dir: &StateDir, node: &str) -> Restored {
    let saved = dir.read(FILE).map(|bytes| parse(dir, bytes, node));
    let mut restored = saved.unwrap_or_default();
    restored.left.extend(left::of_earlier_processes(dir, node));
    let left: BTreeSet<_> = restored.left.iter().map(|one| &one.registration).collect();
    restored
        .instances
        .retain(|(view, _)| !left.contains(&view.registration));
    if !restored.instances.is_empty() {
        info!(
            "from the last run, in use until they register again or the TTL ends: {}",
            heddle_proto::count(restored.instances.len(), "instance")
        );
    }
    restored
}

/// Content of another node, or content that cannot be decoded, is set aside.
pub(super) fn parse(dir: &StateDir, bytes: Bytes, node: &str) -> Restored {
    let saved = match Saved::decode(bytes) {
        Ok(saved) if saved.node == node => saved,
        Ok(saved) => {
            dir.set_aside(
                FILE,
                &format!(
                    "it belongs to node \"{}\", and this is node \"{node}\"",
                    saved.node
                ),
            );
            return Restored::default();
        }
        Err(error) => {
            dir.set_aside(FILE, &error.to_string());
            return Restored::default();
        }
    };
    let schemas: Vec<_> = saved
        .schemas
        .into_iter()
        .filter_map(|bytes| Schema::parse(bytes).ok())
        .collect();
    let restored: Vec<_> = saved
        .instances
        .into_iter()
        .filter_map(|one| restore(one, &schemas))
        .collect();
    let claims = saved.claims.into_iter().map(|it| (it.service, it.proto));
    Restored {
        instances: restored,
        claims: claims.collect(),
        left: saved.left.into_iter().filter_map(SavedLeft::read).collect(),
    }
}

fn restore(saved: SavedInstance, schemas: &[Schema]) -> Option<(View, CheckPlan)> {
    let local = saved.local?;
    let checked = check(
        local.instance?,
        &Bytes::new(),
        Origin::Registration,
        &|_| true,
    )
    .ok()?;
    let health = Health::try_from(local.health).unwrap_or(Health::Unhealthy);
    let used = Kind::try_from(local.checked_by).unwrap_or_default();
    let view = View {
        instance: checked.instance,
        address: checked.address,
        health,
        reason: local.health_reason,
        checked_by: checked.check.checked_by(used),
        protos: local.protos,
        schema: schemas
            .iter()
            .find(|s| s.sha256 == local.schema_sha256)
            .cloned(),
        schema_reason: local.schema_reason,
        registration: saved.registration.into(),
    };
    Some((view, checked.check))
}

/// Everything that is saved.
struct Content {
    views: Vec<Arc<View>>,
    claims: Vec<(String, String)>,
    left: Vec<LeftInstance>,
}

impl Content {
    fn of(agent: &Agent) -> Self {
        Self {
            views: agent.registered(),
            claims: agent.claims().in_order(),
            left: agent.left(),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        let mut both = self.views.iter().zip(&other.views);
        self.views.len() == other.views.len()
            && both.all(|(a, b)| Arc::ptr_eq(a, b))
            && (&self.claims, &self.left) == (&other.claims, &other.left)
    }
}

/// Writes at once and after every change, until the process ends. As long as instances of the last process may come back, it also
/// looks what that process says about them: it may still be finishing its calls.
pub async fn keep(dir: StateDir, agent: Agent) {
    let loss = "after a restart instances are known once they register again";
    let mut keeper = StateWriter::new(dir.clone(), FILE, REST, loss);
    let mut changes = agent.changes();
    let mut written: Option<Arc<Content>> = None;
    let mut tidy = false;
    loop {
        changes.borrow_and_update();
        let now = Arc::new(Content::of(&agent));
        if !written.as_ref().is_some_and(|written| now.is_same(written)) {
            let (node, content) = (agent.node().to_owned(), Arc::clone(&now));
            if !keeper.write(move || encode(&node, &content)).await {
                continue;
            }
            written = Some(now);
        }
        let awaits = agent.awaits_return();
        if !awaits && !tidy {
            // All that they say is in the file that was just written.
            forget(&dir, &agent).await;
            tidy = true;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep(LOOK_EVERY), if awaits => look(&dir, &agent).await,
        }
    }
}

/// Takes over what the last process says about instances that left it.
async fn look(dir: &StateDir, agent: &Agent) {
    let (dir, node) = (dir.clone(), agent.node().to_owned());
    let read = move || left::of_earlier_processes(&dir, &node);
    if let Ok(left) = tokio::task::spawn_blocking(read).await {
        agent.restore_left(left);
    }
}

async fn forget(dir: &StateDir, agent: &Agent) {
    if agent.is_stopping() {
        return;
    }
    let dir = dir.clone();
    let _ = tokio::task::spawn_blocking(move || left::forget_earlier_processes(&dir)).await;
}

/// Writes the registered instances now. Returns the instances that left, if they are saved with them.
pub async fn save(dir: &StateDir, agent: &Agent) -> Vec<LeftInstance> {
    let (node, content) = (agent.node().to_owned(), Content::of(agent));
    let left = content.left.clone();
    let written = dir.write_off_thread(FILE, move || encode(&node, &content));
    match written.await {
        Ok(()) => left,
        Err(error) => {
            warn!("cannot write to the state dir: {error}");
            Vec::new()
        }
    }
}

fn encode(node: &str, content: &Content) -> Vec<u8> {
    let views = &content.views;
    let mut seen = BTreeSet::new();
    let mut total = 0;
    let mut schemas = Vec::new();
    for schema in views.iter().filter_map(|v| v.schema.as_ref()) {
        if seen.insert(schema.sha256.as_str()) && total + schema.bytes.len() <= MAX_SCHEMA_TOTAL {
            total += schema.bytes.len();
            schemas.push(schema.bytes.clone());
        }
    }
    let instances = views
        .iter()
        .map(|v| SavedInstance {
            local: Some(v.to_local()),
            registration: v.registration.to_string(),
        })
        .collect();
    Saved {
        node: node.to_owned(),
        instances,
        schemas,
        claims: content
            .claims
            .iter()
            .cloned()
            .map(|(service, proto)| SavedClaim { service, proto })
            .collect(),
        left: content.left.iter().map(SavedLeft::of).collect(),
    }
    .encode_to_vec()
}
