//! `grpc.health.v1.Health`: "" is the proxy itself, and on outbound every mesh service (`users`, `users.shop`) and every
//! proto service of the mesh by its name. Names come in, what the routing table says of them goes out; nobody is asked
//! over the network.

use std::pin::Pin;

use futures_util::Stream;
use tokio::sync::{mpsc, watch};
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
};

/// See the room sign. Without a mesh it speaks for the proxy alone.
#[derive(Clone)]
pub struct ProxyHealth {
    readiness: watch::Receiver<Readiness>,
    mesh: Option<watch::Receiver<Mesh>>,
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
    pub fn mesh(readiness: watch::Receiver<Readiness>, mesh: watch::Receiver<Mesh>) -> Self {
        Self {
            readiness,
            mesh: Some(mesh),
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
        let mesh = self.mesh.as_ref()?.borrow();
        status_in(&mesh.table, name).map(serving)
    }
}

/// Whether somebody serves it; `None` if nobody knows the name.
fn status_in(table: &RouteTable, name: &str) -> Option<bool> {
    let usable = |service: &Service| {
        service
            .endpoints
            .endpoints
            .iter()
            .any(|e| e.health.usable())
    };
    if let Some(service) = table.service(&full_name(name.strip_suffix(".mesh").unwrap_or(name))) {
        return Some(usable(service));
    }
    let mut claims = table
        .services()
        .filter(|s| s.protos.iter().any(|p| p.name == name))
        .peekable();
    claims.peek()?;
    Some(claims.any(|service| usable(service)))
}

#[tonic::async_trait]
impl Health for ProxyHealth {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
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

/// The status now, then each other one. An unknown name is SERVICE_UNKNOWN until it is known (the protocol's rule).
async fn watch_one(
    mut health: ProxyHealth,
    name: String,
    answers: mpsc::Sender<Result<HealthCheckResponse, Status>>,
) {
    let mut last = None;
    loop {
        health.readiness.borrow_and_update();
        if let Some(mesh) = &mut health.mesh {
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
                Some(mesh) => mesh.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let goes_on = tokio::select! {
            changed = readiness.changed() => changed.is_ok(),
            changed = mesh_changed => changed,
            () = answers.closed() => false,
        };
        if !goes_on {
            return;
        }
    }
}
