//! `heddle.registry.v1.Registry`, served by the node's agent for the services on this host. Valid instances are passed
//! to the agent; every fault is returned with its field and remedy. Instances of other nodes are not known here.

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use heddle_proto::registry::v1::{
    DeregisterRequest, DeregisterResponse, Health, InstanceStatus, KeepAliveRequest,
    KeepAliveResponse, ListInstancesRequest, ListInstancesResponse, ListServicesRequest,
    ListServicesResponse, RegisterRequest, RegisterResponse, Service, WatchInstancesRequest,
    WatchInstancesResponse, registry_server::Registry,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{
    Agent,
    instance_table::{Refused, View, Views},
    keep_alive::{EndsItself, KeepAlive, STOPPING, Stop, unknown},
    key::{InstanceKey, full_name},
    removal::{MAX_WAIT, Remover, USUAL_FINISH},
    removal_log::Cause,
    session::Acknowledged,
    validate::{ADDRESS, Origin, Violation, check},
};

/// See the module documentation.
#[derive(Clone)]
pub struct AgentApi {
    agent: Agent,
    remover: Remover,
    is_own: fn(IpAddr) -> bool,
    stop: Stop,
}

impl AgentApi {
    #[must_use]
    pub fn new(agent: Agent, remover: Remover, is_own: fn(IpAddr) -> bool, stop: Stop) -> Self {
        Self {
            agent,
            remover,
            is_own,
            stop,
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Registry for AgentApi {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let request = request.into_inner();
        let Some(instance) = request.instance else {
            return Err(bad_request(&[Violation {
                field: "instance".into(),
                description: "is missing: set service, id and address".into(),
                alone: false,
            }]));
        };
        let checked = check(
            instance,
            &request.file_descriptor_set,
            Origin::Registration,
            &self.is_own,
        )
        .map_err(|violations| bad_request(&violations))?;
        let registration = self
            .agent
            .register(checked)
            .map_err(|refused| match refused {
                Refused::Stopping => Status::unavailable(refused.to_string()),
                Refused::Full => Status::resource_exhausted(refused.to_string()),
                Refused::OwnListener { .. } => bad_request(&[Violation::of_address(&refused)]),
                Refused::OwnedByFile { .. } | Refused::OwnedByRegistration { .. } => {
                    Status::already_exists(refused.to_string())
                }
            })?;
        let refusal = self.agent.refusal(&registration).await;
        if let Some(refusal) = refusal.filter(|refusal| refusal.field == ADDRESS) {
            let cause = Cause::from_text(&refusal.to_string());
            self.agent.remove_instance(&registration, cause);
            return Err(bad_request(&[Violation::of_address(&refusal.description)]));
        }
        Ok(Response::new(RegisterResponse {
            node: self.agent.node().to_owned(),
            registration: registration.to_string(),
            beat_interval: prost_types::Duration::try_from(self.agent.inner.beat).ok(),
            ttl: prost_types::Duration::try_from(self.agent.inner.ttl).ok(),
        }))
    }

    type KeepAliveStream = Answers<KeepAliveResponse>;

    async fn keep_alive(
        &self,
        request: Request<Streaming<KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let (answers, stream) = mpsc::channel(4);
        let keep_alive = KeepAlive {
            agent: self.agent.clone(),
            remover: self.remover.clone(),
            stop: self.stop.clone(),
            beats: request.into_inner(),
            answers,
        };
        tokio::spawn(keep_alive.run());
        let answers: Self::KeepAliveStream = Box::pin(ReceiverStream::new(stream));
        let mut response = Response::new(answers);
        response.extensions_mut().insert(EndsItself);
        Ok(response)
    }

    async fn deregister(
        &self,
        request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        let request = request.into_inner();
        let registration = &request.registration;
        let unasked = Cause::from_text(&request.cause);
        if !request.wait_acknowledged && !request.wait_finished {
            let done = self.remover.now(registration, unasked).await;
            done.ok_or_else(unknown)?;
            return Ok(Response::new(DeregisterResponse::default()));
        }
        let span = |given: Option<prost_types::Duration>, usual| {
            let given = given.and_then(|span| Duration::try_from(span).ok());
            given.unwrap_or(usual)
        };
        let max_wait = span(request.max_wait, MAX_WAIT);
        let max_finish = span(request.max_finish, USUAL_FINISH);
        let max_finish = request.wait_finished.then_some(max_finish);
        let retired = self
            .remover
            .acknowledged(registration, unasked, max_wait, max_finish)
            .await
            .ok_or_else(unknown)?;
        let Acknowledged {
            acknowledged,
            unacknowledged,
        } = retired.acknowledged;
        let in_flight = retired.in_flight.unwrap_or(0);
        if !acknowledged && in_flight == 0 && self.agent.is_stopping() {
            // This process has no session any more, so that it cannot ask the clients. The next one can: it knows that
            // the instance leaves.
            self.stop.begun.cancelled().await;
            return Err(Status::unavailable(STOPPING));
        }
        Ok(Response::new(DeregisterResponse {
            acknowledged,
            unacknowledged,
            finished: retired.in_flight == Some(0),
            in_flight: u32::try_from(in_flight).unwrap_or(u32::MAX),
        }))
    }

    async fn list_services(
        &self,
        _: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let (_, views) = self.agent.views();
        let mut services: Vec<Service> = Vec::new();
        for (key, view) in &views {
            let name = key.full_service();
            let at = match services.iter().position(|s| s.name == name) {
                Some(at) => at,
                None => {
                    services.push(Service {
                        name,
                        ..Service::default()
                    });
                    services.len() - 1
                }
            };
            if let Some(service) = services.get_mut(at) {
                service.instances += 1;
                service.healthy_instances += u32::from(view.health == Health::Healthy);
                service
                    .protos
                    .extend(view.protos.iter().map(|p| p.name.clone()));
                service.protos.sort();
                service.protos.dedup();
            }
        }
        services.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(ListServicesResponse { services }))
    }

    async fn list_instances(
        &self,
        request: Request<ListInstancesRequest>,
    ) -> Result<Response<ListInstancesResponse>, Status> {
        let wanted = request.into_inner().service;
        let (_, views) = self.agent.views();
        let mut found: Vec<_> = views
            .iter()
            .filter(|(key, _)| is_of(key, &wanted))
            .collect();
        found.sort_by_key(|(key, _)| (key.full_service(), key.id.clone()));
        let instances = found
            .into_iter()
            .map(|(_, view)| status(self.agent.node(), view))
            .collect();
        Ok(Response::new(ListInstancesResponse { instances }))
    }

    type WatchInstancesStream = Answers<WatchInstancesResponse>;

    async fn watch_instances(
        &self,
        request: Request<WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        let (answers, stream) = mpsc::channel(4);
        tokio::spawn(watch_instances(
            self.agent.clone(),
            request.into_inner().service,
            answers,
        ));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Sends the current state, then every change as the difference to what was sent last: a slow reader gets fewer, larger
/// steps.
async fn watch_instances(
    agent: Agent,
    wanted: String,
    answers: mpsc::Sender<Result<WatchInstancesResponse, Status>>,
) {
    let mut changes = agent.changes();
    let mut sent = Views::new();
    let mut initial = true;
    loop {
        changes.borrow_and_update();
        let (_, mut now) = agent.views();
        now.retain(|key, _| is_of(key, &wanted));
        let changed: Vec<_> = now
            .iter()
            .filter(|(key, view)| {
                sent.get(*key)
                    .is_none_or(|old| !Arc::ptr_eq(old, view) && old != *view)
            })
            .map(|(_, view)| status(agent.node(), view))
            .collect();
        let removed: Vec<_> = sent
            .keys()
            .filter(|key| !now.contains_key(*key))
            .map(|key| format!("{}/{key}", agent.node()))
            .collect();
        if initial || !changed.is_empty() || !removed.is_empty() {
            let step = WatchInstancesResponse {
                changed,
                removed,
                initial_done: initial,
            };
            if answers.send(Ok(step)).await.is_err() {
                return;
            }
        }
        initial = false;
        sent = now;
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = answers.closed() => return,
        }
    }
}

fn is_of(key: &InstanceKey, wanted: &str) -> bool {
    wanted.is_empty() || key.full_service() == full_name(wanted)
}

fn status(node: &str, view: &View) -> InstanceStatus {
    InstanceStatus {
        instance: Some(view.instance.clone()),
        node: node.to_owned(),
        health: view.health.into(),
        health_reason: view.reason.clone(),
        schema_reason: view.schema_reason.clone(),
        checked_by: view.checked_by.into(),
    }
}

fn bad_request(violations: &[Violation]) -> Status {
    let mut details = ErrorDetails::new();
    let mut words = Vec::new();
    for violation in violations {
        details.add_bad_request_violation(&violation.field, &violation.description);
        words.push(format!("{}: {}", violation.field, violation.description));
    }
    Status::with_error_details(tonic::Code::InvalidArgument, words.join("; "), details)
}
