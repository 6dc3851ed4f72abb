//! `heddle.registry.v1.Registry` of the control plane: the whole mesh, read-only. Lists are answered from the view, and
//! watches follow its changes. Instances are registered with the agent of their node, not here.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::Stream;
use heddle_proto::registry::v1::{
    self as pb, DeregisterRequest, DeregisterResponse, Health, InstanceStatus, KeepAliveRequest,
    KeepAliveResponse, ListInstancesRequest, ListInstancesResponse, ListServicesRequest,
    ListServicesResponse, RegisterRequest, RegisterResponse, WatchInstancesRequest,
    WatchInstancesResponse,
    registry_server::{Registry as Api, RegistryServer},
};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::refusal;
use crate::{
    access::Caller,
    budget::{Account, Charge, Refusal},
    names::ServiceName,
    registry::{ChangedInstances, Instance, InstanceId, Registry, View, ViewChanges},
};

/// The most instances in one message of a watch, and their bytes. A larger instance is sent in a message of its own.
const CHUNK_INSTANCES: usize = 500;
const CHUNK_BYTES: usize = 256 << 10;
/// The most messages queued for a watcher. Further changes are merged.
const ANSWER_QUEUE: usize = 1;
/// The bytes charged for a watch, with a queued message and one being built; and for each instance that was sent.
const WATCH_COST: usize = 64 << 10;
const INSTANCE_COST: usize = 128;
/// How long the final status waits for the client to read.
const FINAL_SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Changes within this time are sent together, so that a service that changes all the time does not cause a message per
/// change.
const PAUSE: Duration = Duration::from_millis(10);

/// The gRPC service for the control plane's server.
#[must_use]
pub fn registry_service(registry: Registry) -> RegistryServer<RegistryApi> {
    RegistryServer::new(RegistryApi { registry })
}

/// Answers from the view.
pub struct RegistryApi {
    registry: Registry,
}

type Answer = Result<WatchInstancesResponse, Status>;

#[tonic::async_trait]
impl Api for RegistryApi {
    type KeepAliveStream = Pin<Box<dyn Stream<Item = Result<KeepAliveResponse, Status>> + Send>>;
    type WatchInstancesStream = ReceiverStream<Answer>;

    async fn register(
        &self,
        _: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        Err(go_to_the_agent())
    }

    async fn keep_alive(
        &self,
        _: Request<Streaming<KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        Err(go_to_the_agent())
    }

    async fn deregister(
        &self,
        _: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        Err(go_to_the_agent())
    }

    async fn list_services(
        &self,
        _: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let services = self.registry.read(|view| {
            view.services()
                .map(|service| describe_service(view, service))
                .collect()
        });
        Ok(Response::new(ListServicesResponse { services }))
    }

    async fn list_instances(
        &self,
        request: Request<ListInstancesRequest>,
    ) -> Result<Response<ListInstancesResponse>, Status> {
        let wanted = parse_filter(&request.get_ref().service)?;
        let instances = self.registry.read(|view| {
            let services = view
                .services()
                .filter(|name| wanted.as_ref().is_none_or(|it| it == *name));
            let sorted = services.flat_map(|service| {
                let mut instances: Vec<_> = view.instances(service).collect();
                instances.sort_by_key(|instance| (&instance.id, &instance.node));
                instances
            });
            sorted.map(|instance| describe(view, instance)).collect()
        });
        Ok(Response::new(ListInstancesResponse { instances }))
    }

    async fn watch_instances(
        &self,
        request: Request<WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        let wanted = parse_filter(&request.get_ref().service)?;
        let (out, answers) = mpsc::channel(ANSWER_QUEUE);
        let account = Caller::of(&request)?.account().clone();
        let mut watcher = Watcher {
            changes: self.registry.subscribe(),
            registry: self.registry.clone(),
            wanted,
            sent: BTreeMap::new(),
            instances: 0,
            charge: account.charge(),
            account,
            last: None,
            out,
        };
        watcher.admit(0)?;
        let stop = self.registry.options().stop.clone();
        tokio::spawn(stop.run_until_cancelled_owned(watcher.run()));
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// One watch and what its client was sent.
struct Watcher {
    registry: Registry,
    changes: ViewChanges,
    /// None for all services.
    wanted: Option<ServiceName>,
    /// The instances that the client has; shared with the registry, not copied.
    sent: BTreeMap<ServiceName, BTreeMap<InstanceId, Sent>>,
    /// The number of instances in `sent`.
    instances: usize,
    /// The memory charge of `sent`.
    charge: Charge,
    account: Account,
    /// The last message of the first answer, held back until it is known whether more follow.
    last: Option<WatchInstancesResponse>,
    out: mpsc::Sender<Answer>,
}

/// An instance as it was sent to the client.
struct Sent {
    instance: Arc<Instance>,
    health: Health,
}

impl Sent {
    fn is(&self, instance: &Arc<Instance>, health: Health) -> bool {
        let same = Arc::ptr_eq(&self.instance, instance) || self.instance == *instance;
        same && self.health == health
    }
}

/// Why a watch ends.
enum End {
    /// Its client has disconnected.
    Gone,
    Refused(Refusal),
}

/// The difference between the view and what a client was sent of one service.
#[derive(Default)]
struct Difference {
    changed: Vec<Changed>,
    removed: Vec<InstanceId>,
}

type Changed = (InstanceId, Arc<Instance>, Health);

impl Watcher {
    async fn run(mut self) {
        if let Err(End::Refused(refusal)) = self.watch().await {
            let Self { account, out, .. } = self;
            account.count_refused();
            // A client that does not read never gets this status; nothing more is charged to it meanwhile.
            let sent = out.send(Err(refusal.into()));
            let _ = tokio::time::timeout(FINAL_SEND_TIMEOUT, sent).await;
        }
    }

    async fn watch(&mut self) -> Result<(), End> {
        let present = match &self.wanted {
            Some(service) => BTreeSet::from([service.clone()]),
            None => self
                .registry
                .read(|view| view.services().cloned().collect()),
        };
        self.last = Some(WatchInstancesResponse::default());
        for service in present {
            self.send_changes(&service, ChangedInstances::All).await?;
        }
        let mut last = self.last.take().unwrap_or_default();
        last.initial_done = true;
        self.send(last).await?;
        loop {
            let mut batch = tokio::select! {
                batch = self.changes.next() => batch,
                () = self.out.closed() => return Err(End::Gone),
            };
            for service in batch.services {
                if self
                    .wanted
                    .as_ref()
                    .is_some_and(|wanted| *wanted != service)
                {
                    continue;
                }
                let changed = batch.instances.remove(&service);
                self.send_changes(&service, changed.unwrap_or_default())
                    .await?;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sends the changes of a service among `changed` that the client does not have yet.
    async fn send_changes(
        &mut self,
        service: &ServiceName,
        changed: ChangedInstances,
    ) -> Result<(), End> {
        // All instances of a service may be many. A client that opens watches and cancels them costs no more than its turns.
        let slot = match changed {
            ChangedInstances::All => self.account.take_work_slot().await,
            ChangedInstances::These(_) => None,
        };
        if self.out.is_closed() {
            return Err(End::Gone);
        }
        let held = self.sent.entry(service.clone()).or_default();
        let difference = self
            .registry
            .read(|view| difference(view, service, held, changed));
        let before = held.len();
        for id in &difference.removed {
            held.remove(id);
        }
        for (id, instance, health) in &difference.changed {
            let sent = Sent {
                instance: Arc::clone(instance),
                health: *health,
            };
            held.insert(id.clone(), sent);
        }
        let now = held.len();
        if now == 0 {
            self.sent.remove(service);
        }
        drop(slot);
        self.admit(self.instances - before + now)?;
        self.send_all(service, difference).await
    }

    /// Charges the client for this many instances.
    fn admit(&mut self, instances: usize) -> Result<(), Refusal> {
        self.instances = instances;
        let bytes = WATCH_COST + instances * INSTANCE_COST;
        self.charge.set("this watch of instances", bytes)
    }

    async fn send_all(&mut self, service: &ServiceName, difference: Difference) -> Result<(), End> {
        let mut changed = difference.changed.into_iter().peekable();
        while changed.peek().is_some() {
            let slot = self.account.take_work_slot().await;
            let message = WatchInstancesResponse {
                changed: self.registry.read(|view| next_chunk(view, &mut changed)),
                ..WatchInstancesResponse::default()
            };
            drop(slot);
            self.send(message).await?;
        }
        for ids in difference.removed.chunks(CHUNK_INSTANCES) {
            let removed = ids.iter();
            let message = WatchInstancesResponse {
                removed: removed
                    .map(|(node, id)| format!("{node}/{service}/{id}"))
                    .collect(),
                ..WatchInstancesResponse::default()
            };
            self.send(message).await?;
        }
        Ok(())
    }

    /// Sends a message. During the first answer the latest message is held back, because the last one must have
    /// `initial_done`.
    async fn send(&mut self, message: WatchInstancesResponse) -> Result<(), End> {
        let message = match &mut self.last {
            Some(last) => std::mem::replace(last, message),
            None => message,
        };
        if message == WatchInstancesResponse::default() {
            return Ok(());
        }
        self.out.send(Ok(message)).await.map_err(|_| End::Gone)
    }
}

/// The next instances of a watch that one message holds: at most [`CHUNK_INSTANCES`] and [`CHUNK_BYTES`], but at least one.
fn next_chunk(
    view: &View,
    changed: &mut Peekable<impl Iterator<Item = Changed>>,
) -> Vec<InstanceStatus> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    while chunk.len() < CHUNK_INSTANCES
        && let Some((_, instance, _)) = changed.peek()
    {
        let status = describe(view, instance);
        let length = status.encoded_len();
        if bytes > 0 && bytes + length > CHUNK_BYTES {
            break;
        }
        bytes += length;
        chunk.push(status);
        changed.next();
    }
    chunk
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn difference(
    view: &View,
    service: &ServiceName,
    held: &BTreeMap<InstanceId, Sent>,
    changed: ChangedInstances,
) -> Difference {
    let mut difference = Difference::default();
    let mut look = |id: &InstanceId, instance: &Arc<Instance>| {
        let health = view.health(instance);
        if held.get(id).is_none_or(|sent| !sent.is(instance, health)) {
            let changed = (id.clone(), Arc::clone(instance), health);
            difference.changed.push(changed);
        }
    };
    match changed {
        ChangedInstances::All => {
            for instance in view.instances(service) {
                look(
                    &(Arc::clone(&instance.node), Arc::clone(&instance.id)),
                    instance,
                );
            }
            let gone = |id: &&InstanceId| view.instance_at(service, id).is_none();
            difference.removed = held.keys().filter(gone).cloned().collect();
        }
        ChangedInstances::These(ids) => {
            for id in ids {
                match view.instance_at(service, &id) {
                    Some(instance) => look(&id, instance),
                    None if held.contains_key(&id) => difference.removed.push(id),
                    None => {}
                }
            }
        }
    }
    difference
}

fn go_to_the_agent() -> Status {
    refusal::with_reason(
        Code::FailedPrecondition,
        "REGISTER_WITH_THE_AGENT",
        "instances register with the agent of their own node (127.0.0.1:15002 by default, HEDDLE_AGENT \
         where it is set), not with the control plane",
        [],
    )
}

fn parse_filter(service: &str) -> Result<Option<ServiceName>, Status> {
    if service.is_empty() {
        return Ok(None);
    }
    let parsed = ServiceName::parse(service).ok_or_else(|| {
        refusal::invalid(
            "service",
            format!("{service:?}: write <service> or <service>.<namespace>"),
        )
    })?;
    Ok(Some(parsed))
}

fn describe_service(view: &View, service: &ServiceName) -> pb::Service {
    let mut protos = BTreeSet::new();
    let (mut instances, mut healthy_instances) = (0, 0);
    for instance in view.instances(service) {
        instances += 1;
        healthy_instances += u32::from(view.health(instance) == Health::Healthy);
        protos.extend(instance.protos.iter().map(|proto| proto.name.clone()));
    }
    if let Some(known) = view.stands_in(service) {
        protos.extend(known.protos.iter().map(|proto| proto.name.clone()));
    }
    let protos = protos.into_iter().collect();
    pb::Service {
        name: service.to_string(),
        protos,
        instances,
        healthy_instances,
    }
}

fn describe(view: &View, instance: &Arc<Instance>) -> InstanceStatus {
    InstanceStatus {
        instance: Some(pb::Instance {
            service: instance.service.service.clone(),
            namespace: instance.service.namespace.clone(),
            id: instance.id.to_string(),
            version: instance.version.to_string(),
            address: instance.address.to_string(),
            protocol: instance.protocol.into(),
            weight: instance.weight,
            protos: instance
                .protos
                .iter()
                .map(|proto| proto.name.clone())
                .collect(),
            health: instance.health_check.clone(),
            labels: instance.labels.clone().into_iter().collect(),
            claim_paths: (!instance.claim_paths).then_some(false),
        }),
        node: instance.node.to_string(),
        health: view.health(instance).into(),
        health_reason: view.health_reason(instance),
        schema_reason: instance.schema_reason.clone(),
        checked_by: instance.checked_by,
    }
}

#[cfg(test)]
mod tests;
