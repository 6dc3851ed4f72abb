//! `heddle.control.v1.Replica`: answers the other replicas. Answers are about the clients of this replica alone, so
//! that requests never loop.

use std::{sync::Arc, time::Duration};

use heddle_proto::control::v1::{
    AwaitRemovalRequest, AwaitRemovalResponse, ClientConfigsRequest, GetRevisionRequest,
    GetRevisionResponse, ListClientsRequest, ListClientsResponse,
    replica_server::{Replica, ReplicaServer},
};
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Request, Response, Status};

use super::{
    clients::own_clients,
    configs::{Answer, ConfigStream, MAX_ANSWERS},
    peers::FOR_PROCESS,
    removals::OwnClients,
};
use crate::{
    load::Loads,
    names::{InstanceKey, ServiceName},
    registry::{Membership, View},
    snapshot::Publisher,
    store::Revision,
    xds::Clients,
};

/// Longest wait for a removal.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Most waits at a time; more are refused.
const MAX_WAITS: usize = 10_000;

/// Answers other replicas.
#[derive(Clone)]
pub struct ReplicaService {
    own: OwnClients,
    loads: Loads,
    waits: Arc<Semaphore>,
    answers: Arc<Semaphore>,
}

/// The gRPC service of this replica.
#[must_use]
pub fn service(
    membership: Membership,
    publisher: Publisher,
    clients: Clients,
    loads: Loads,
) -> ReplicaServer<ReplicaService> {
    ReplicaServer::new(ReplicaService {
        own: OwnClients {
            membership,
            publisher,
            clients,
        },
        loads,
        waits: Arc::new(Semaphore::new(MAX_WAITS)),
        answers: Arc::new(Semaphore::new(MAX_ANSWERS)),
    })
}

impl ReplicaService {
    fn name(&self) -> &str {
        &self.own.registry().options().replica
    }

    /// Refuses requests that were meant for another replica. Older replicas do not send this metadata.
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let own = &self.own.registry().options().process_id;
        match request.metadata().get(FOR_PROCESS) {
            Some(process) if process != own.as_str() => {
                let name = self.name();
                Err(Status::failed_precondition(format!(
                    "this is replica {name}, but the request is for another one: give that one \
                     its own --advertise"
                )))
            }
            _ => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Replica for ReplicaService {
    type ClientConfigsStream = ConfigStream;

    async fn client_configs(
        &self,
        request: Request<ClientConfigsRequest>,
    ) -> Result<Response<ConfigStream>, Status> {
        self.check(&request)?;
        let place = Arc::clone(&self.answers).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{MAX_ANSWERS} requests are in progress, the limit: try again later"
            ))
        })?;
        let answer = Answer::new(&self.own.clients, request.into_inner(), place)?;
        Ok(Response::new(answer.into_stream()))
    }

    async fn await_removal(
        &self,
        request: Request<AwaitRemovalRequest>,
    ) -> Result<Response<AwaitRemovalResponse>, Status> {
        self.check(&request)?;
        let _place = self.waits.try_acquire().map_err(|_| {
            Status::resource_exhausted(format!(
                "{MAX_WAITS} waits for removals are in progress, the limit: try again later"
            ))
        })?;
        let request = request.into_inner();
        let until = Instant::now() + wait(&request);
        let (instance, revision) = (instance(&request)?, Revision(request.revision));
        let unacknowledged = self.own.unacknowledged(instance, revision, until).await;
        let unacknowledged = unacknowledged.unwrap_or_else(|| {
            vec![format!(
                "(replica {} has not seen the removal yet)",
                self.name()
            )]
        });
        Ok(Response::new(AwaitRemovalResponse { unacknowledged }))
    }

    async fn get_revision(
        &self,
        request: Request<GetRevisionRequest>,
    ) -> Result<Response<GetRevisionResponse>, Status> {
        self.check(&request)?;
        let Revision(revision) = self.own.registry().read(View::revision);
        Ok(Response::new(GetRevisionResponse { revision }))
    }

    async fn list_clients(
        &self,
        request: Request<ListClientsRequest>,
    ) -> Result<Response<ListClientsResponse>, Status> {
        self.check(&request)?;
        Ok(Response::new(ListClientsResponse {
            clients: own_clients(self.own.registry(), &self.own.clients),
            edges: self.loads.edges(Instant::now()),
        }))
    }
}

fn wait(request: &AwaitRemovalRequest) -> Duration {
    let wait = request
        .max_wait
        .and_then(|wait| Duration::try_from(wait).ok());
    wait.unwrap_or(MAX_WAIT).min(MAX_WAIT)
}

/// The names need only be set: a removal of an unknown instance counts as acknowledged by all.
fn instance(request: &AwaitRemovalRequest) -> Result<InstanceKey, Status> {
    let Some(instance) = request
        .instance
        .as_ref()
        .filter(|_| !request.node.is_empty())
    else {
        return Err(Status::invalid_argument("node and instance: must be set"));
    };
    let name = format!("{}.{}", instance.service, instance.namespace);
    let service = ServiceName::parse(&name).ok_or_else(|| {
        Status::invalid_argument(format!("instance: {name:?} is not <service>.<namespace>"))
    })?;
    Ok(InstanceKey {
        node: request.node.as_str().into(),
        service,
        id: instance.id.as_str().into(),
    })
}
