//! `heddle.registry.v1.Registry` as the control plane answers it: the whole mesh, read only. In come questions of
//! people and tools; out go sorted answers from the view and, for watches, its changes. Registration is not taken
//! here: an instance registers with the agent of its own node.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
};

use futures_util::Stream;
use heddle_proto::registry::v1::{
    self as pb, DeregisterRequest, DeregisterResponse, Health, InstanceStatus, KeepAliveRequest,
    KeepAliveResponse, ListInstancesRequest, ListInstancesResponse, ListServicesRequest,
    ListServicesResponse, RegisterRequest, RegisterResponse, WatchInstancesRequest,
    WatchInstancesResponse,
    registry_server::{Registry as Api, RegistryServer},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::refusal;
use crate::registry::{Instance, Registry, ServiceName, Subscription, View};

/// Instances in one message of a watch.
const CHUNK: usize = 500;
/// Messages that wait for a watcher; then its changes coalesce.
const WAITING: usize = 4;

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
        let (out, answers) = mpsc::channel(WAITING);
        let watcher = Watcher {
            changes: self.registry.subscribe(),
            registry: self.registry.clone(),
            wanted,
            sent: BTreeMap::new(),
            out,
        };
        let stop = self.registry.options().stop.clone();
        tokio::spawn(stop.run_until_cancelled_owned(watcher.run()));
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// One watch and what its client holds.
struct Watcher {
    registry: Registry,
    changes: Subscription,
    /// None: all services.
    wanted: Option<ServiceName>,
    sent: BTreeMap<ServiceName, BTreeMap<String, InstanceStatus>>,
    out: mpsc::Sender<Answer>,
}

impl Watcher {
    async fn run(mut self) {
        let present = match &self.wanted {
            Some(service) => BTreeSet::from([service.clone()]),
            None => self
                .registry
                .read(|view| view.services().cloned().collect()),
        };
        let mut initial = self.difference(&present);
        match initial.last_mut() {
            Some(last) => last.initial_done = true,
            None => initial.push(WatchInstancesResponse {
                initial_done: true,
                ..Default::default()
            }),
        }
        if !self.send(initial).await {
            return;
        }
        loop {
            let batch = tokio::select! {
                batch = self.changes.next() => batch,
                () = self.out.closed() => return,
            };
            let mut services = batch.services;
            if let Some(wanted) = &self.wanted {
                services.retain(|service| service == wanted);
            }
            let messages = self.difference(&services);
            if !self.send(messages).await {
                return;
            }
        }
    }

    async fn send(&self, messages: Vec<WatchInstancesResponse>) -> bool {
        for message in messages {
            if self.out.send(Ok(message)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// What the client does not hold yet of these services, and what it holds too much.
    fn difference(&mut self, services: &BTreeSet<ServiceName>) -> Vec<WatchInstancesResponse> {
        let mut changed = Vec::new();
        let mut removed = Vec::new();
        for service in services {
            let now: BTreeMap<String, InstanceStatus> = self.registry.read(|view| {
                let instances = view.instances(service);
                instances
                    .map(|it| (it.key().to_string(), describe(view, it)))
                    .collect()
            });
            let before = self.sent.remove(service).unwrap_or_default();
            let news = now
                .iter()
                .filter(|(key, status)| before.get(*key) != Some(*status));
            changed.extend(news.map(|(_, status)| status.clone()));
            removed.extend(before.into_keys().filter(|key| !now.contains_key(key)));
            if !now.is_empty() {
                self.sent.insert(service.clone(), now);
            }
        }
        let mut messages: Vec<_> = changed
            .chunks(CHUNK)
            .map(|chunk| WatchInstancesResponse {
                changed: chunk.to_vec(),
                ..Default::default()
            })
            .collect();
        messages.extend(removed.chunks(CHUNK).map(|chunk| WatchInstancesResponse {
            removed: chunk.to_vec(),
            ..Default::default()
        }));
        messages
    }
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
        }),
        node: instance.node.to_string(),
        health: view.health(instance).into(),
        health_reason: view.health_reason(instance),
        schema_reason: instance.schema_reason.clone(),
    }
}

#[cfg(test)]
mod tests;
