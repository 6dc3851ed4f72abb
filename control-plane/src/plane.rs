//! What all parts of the process share, and the gRPC services built from it, with their health and reflection.
//! Sockets are not known here.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::{
    load_stats::v3::load_reporting_service_server::LoadReportingServiceServer,
    status::v3::client_status_discovery_service_server::ClientStatusDiscoveryServiceServer,
};
use heddle_listen::Connections;
use heddle_proto::{
    control::v1::{node_session_server::NodeSessionServer, replica_server::ReplicaServer},
    registry::v1::registry_server::RegistryServer,
    status::v1::mesh_status_server::MeshStatusServer,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    budget::{Admission, Budget, MeshSize},
    load::{self, Loads},
    registry::{Lag, Membership, Registry},
    replica::{self, MeshConfigs, MeshRemovals, Peers},
    session,
    snapshot::Publisher,
    status,
    xds::{self, Ads, Clients},
};

/// What every part of the process shares.
#[derive(Clone)]
pub(crate) struct Plane {
    pub(crate) registry: Registry,
    pub(crate) membership: Membership,
    pub(crate) publisher: Publisher,
    pub(crate) clients: Clients,
    pub(crate) loads: Loads,
    pub(crate) configs: MeshConfigs,
    pub(crate) budget: Budget,
    pub(crate) load_interval: Duration,
    pub(crate) peers: Peers,
    pub(crate) grpc_connections: Connections,
    pub(crate) http_connections: Connections,
    pub(crate) stop: CancellationToken,
}

/// The names of services for health and reflection; the empty one, which only health has, stands for the whole process.
const SERVED: &[&str] = &[
    "",
    NodeSessionServer::<()>::NAME,
    RegistryServer::<()>::NAME,
    MeshStatusServer::<()>::NAME,
    ReplicaServer::<()>::NAME,
    Ads::NAME,
    ClientStatusDiscoveryServiceServer::<()>::NAME,
    LoadReportingServiceServer::<()>::NAME,
];

impl Plane {
    pub(crate) fn admission(&self) -> Admission {
        let (registry, clients) = (self.registry.clone(), self.clients.clone());
        Admission::new(self.budget.clone(), move || {
            let (services, instances, nodes) = registry.read(|view| {
                let (services, nodes) = (view.services().count(), view.nodes().count());
                (services, view.instance_count(), nodes)
            });
            MeshSize {
                services,
                instances,
                nodes,
                clients: clients.len(),
            }
        })
    }

    pub(crate) fn routes(
        &self,
    ) -> Result<(HealthReporter, Routes), tonic_reflection::server::Error> {
        let (health, health_server) = tonic_health::server::health_reporter();
        let removals = Arc::new(MeshRemovals::new(
            self.membership.clone(),
            self.publisher.clone(),
            self.clients.clone(),
            self.peers.clone(),
        ));
        let ads = xds::service(
            self.membership.clone(),
            self.publisher.clone(),
            self.clients.clone(),
            self.stop.clone(),
        );
        let mesh = status::service(
            self.membership.clone(),
            self.clients.clone(),
            self.loads.clone(),
            self.peers.clone(),
        );
        let replica = replica::service(
            self.membership.clone(),
            self.publisher.clone(),
            self.clients.clone(),
            self.loads.clone(),
        );
        let loads = load::service(
            self.registry.clone(),
            self.loads.clone(),
            self.load_interval,
            self.stop.clone(),
        );
        let mut routes = Routes::builder();
        routes
            .add_service(session::service(self.registry.clone(), removals))
            .add_service(session::registry_service(self.registry.clone()))
            .add_service(ads)
            .add_service(status::csds(self.configs.clone()))
            .add_service(loads)
            .add_service(mesh)
            .add_service(replica)
            .add_service(health_server)
            .add_service(describe().build_v1()?)
            .add_service(describe().build_v1alpha()?);
        let (reporter, stop) = (health.clone(), self.stop.clone());
        let membership = self.membership.clone();
        self.registry.options().tasks.restarted("health", move || {
            let report = report_health(reporter.clone(), membership.lag());
            stop.clone().run_until_cancelled_owned(report)
        });
        Ok((health, routes.routes()))
    }
}

/// Sets all services to "not serving" in health.
pub(crate) async fn set_not_serving(health: &HealthReporter) {
    for name in SERVED {
        health
            .set_service_status(*name, ServingStatus::NotServing)
            .await;
    }
}

/// While this replica lags, health reports xDS and the whole process as not serving, and all else as serving.
async fn report_health(health: HealthReporter, mut lag: watch::Receiver<Option<Lag>>) {
    for name in SERVED {
        health
            .set_service_status(*name, ServingStatus::Serving)
            .await;
    }
    loop {
        let lags = lag.borrow_and_update().is_some();
        let status = match lags {
            true => ServingStatus::NotServing,
            false => ServingStatus::Serving,
        };
        for name in ["", Ads::NAME] {
            health.set_service_status(name, status).await;
        }
        if lag.changed().await.is_err() {
            return;
        }
    }
}

/// What reflection lists: everything that is served here.
fn describe() -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(heddle_proto::DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(xds::DESCRIPTOR_SET)
        // The details of refusals: without them grpcurl shows bytes.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET);
    let served = SERVED.iter().filter(|name| !name.is_empty());
    served
        .fold(builder, |builder, name| builder.with_service_name(*name))
        .with_service_name("grpc.health.v1.Health")
        .with_service_name("grpc.reflection.v1.ServerReflection")
        .with_service_name("grpc.reflection.v1alpha.ServerReflection")
}
