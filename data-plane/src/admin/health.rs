//! `grpc.health.v1.Health`: "" is the proxy itself; on outbound also every mesh service (`users`, `users.shop`) and
//! every proto service of the mesh by its name. The status comes from the routing table. A query counts as a use of its
//! services, so that their endpoints are fetched first, as for a call. Instances are not queried.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health,
};

use crate::{
    agent::key::full_name,
    mesh::Mesh,
    readiness::Readiness,
    route::{RouteTable, Service},
    xds::{client::Uses, demand::FETCH_TIMEOUT},
};

/// See the module documentation. Without a mesh it answers for the proxy alone.
#[derive(Clone)]
pub struct ProxyHealth {
    readiness: watch::Receiver<Readiness>,
    mesh: Option<(watch::Receiver<Mesh>, Uses)>,
}

impl ProxyHealth {
    #[must_use]
    pub fn own(readiness: watch::Receiver<Readiness>) -> Self {
        Self {
            readiness,
            mesh: None,
        }
    }

    #[must_use]
    pub fn mesh(
        readiness: watch::Receiver<Readiness>,
        mesh: watch::Receiver<Mesh>,
        uses: Uses,
    ) -> Self {
        Self {
            readiness,
            mesh: Some((mesh, uses)),
        }
    }

    fn status(&self, name: &str) -> Option<ServingStatus> {
        let serving = |yes: bool| {
            if yes {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            }
        };
        if name.is_empty() {
            return Some(serving(self.readiness.borrow().is_ready()));
        }
        let (mesh, _) = self.mesh.as_ref()?;
        status_in(&mesh.borrow().table, name).map(serving)
    }

    /// Reports a use of the services with this name.
    fn report_use(&self, name: &str) {
        if let Some((mesh, uses)) = &self.mesh {
            let mesh = mesh.borrow();
            for service in services_of(&mesh.table, name) {
                uses.report(Arc::clone(&service.name));
            }
        }
    }

    /// Waits until the endpoints of the services with this name are known, at most as long as a call would.
    async fn fetched(&self, name: &str) {
        let Some((mesh, _)) = self.mesh.as_ref().filter(|_| !name.is_empty()) else {
            return;
        };
        self.report_use(name);
        let known = |mesh: &Mesh| {
            let mut services = services_of(&mesh.table, name);
            status_in(&mesh.table, name) == Some(true)
                || services.all(|service| service.endpoints_known)
        };
        let mut mesh = mesh.clone();
        let _ = timeout(FETCH_TIMEOUT, mesh.wait_for(known)).await;
    }
}

/// The mesh service with this name, else those that implement the proto service with this name.
fn services_of<'t>(table: &'t RouteTable, name: &'t str) -> impl Iterator<Item = &'t Arc<Service>> {
    let named = table.service(&full_name(name.strip_suffix(".mesh").unwrap_or(name)));
    let implements = move |s: &&Arc<Service>| s.protos.iter().any(|p| p.name == name);
    let claims = table.services().filter(implements);
    let claims = claims.take(if named.is_some() { 0 } else { usize::MAX });
    named.into_iter().chain(claims)
}

/// Whether one of the services has a usable endpoint; `None` if the name is unknown.
fn status_in(table: &RouteTable, name: &str) -> Option<bool> {
    let usable = |service: &Service| {
        let mut endpoints = service.endpoints.endpoints.iter();
        endpoints.any(|e| e.health.usable())
    };
    let mut services = services_of(table, name).peekable();
    services.peek()?;
    Some(services.any(|service| usable(service)))
}

#[tonic::async_trait]
impl Health for ProxyHealth {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        self.fetched(&name).await;
        let status = self.status(&name).ok_or_else(|| {
            let shown: String = name.chars().take(80).collect();
            Status::not_found(format!(
                "no mesh service and no proto service here is called \"{shown}\""
            ))
        })?;
        Ok(Response::new(HealthCheckResponse {
            status: status.into(),
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, stream) = mpsc::channel(4);
        tokio::spawn(watch_one(
            self.clone(),
            request.into_inner().service,
            answers,
        ));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Sends the current status, then each different one. An unknown name is SERVICE_UNKNOWN until it is known (the
/// protocol's rule).
async fn watch_one(
    mut health: ProxyHealth,
    name: String,
    answers: mpsc::Sender<Result<HealthCheckResponse, Status>>,
) {
    health.fetched(&name).await;
    let mut last = None;
    loop {
        health.readiness.borrow_and_update();
        if let Some((mesh, _)) = &mut health.mesh {
            mesh.borrow_and_update();
        }
        let now = health
            .status(&name)
            .unwrap_or(ServingStatus::ServiceUnknown);
        if last != Some(now) {
            last = Some(now);
            if answers
                .send(Ok(HealthCheckResponse { status: now.into() }))
                .await
                .is_err()
            {
                return;
            }
        }
        let ProxyHealth { readiness, mesh } = &mut health;
        let mesh_changed = async {
            match mesh {
                Some((mesh, uses)) => timeout(uses.again, mesh.changed()).await,
                None => std::future::pending().await,
            }
        };
        let goes_on = tokio::select! {
            changed = readiness.changed() => changed.is_ok(),
            // A watch is a continuing use.
            changed = mesh_changed => !matches!(changed, Ok(Err(_))),
            () = answers.closed() => false,
        };
        if !goes_on {
            return;
        }
        health.report_use(&name);
    }
}
