//! Starts and stops the process: store, registry, snapshots, then the listeners. No listener opens before the view is
//! loaded, because an empty answer would remove every client's endpoints.

use std::{pin::pin, sync::Arc, time::Duration};

use heddle_listen::{Connections, Limits};
use heddle_options::Tasks;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    access::Authorizer,
    budget::{Budget, default_memory},
    grpc, http,
    load::Loads,
    options::Options,
    plane::{self, Plane},
    registry::{Membership, Registry, RegistryError, RegistryOptions},
    replica::{self, MeshConfigs, Peers},
    snapshot::Publisher,
    xds::Clients,
};

mod addresses;
mod error;
mod listeners;
mod open_store;

use addresses::{advertised, replica_name};
pub use error::AppError;
use listeners::{bind, bound_by_files, check_exposure, guard, joined, open};

/// How long connections may take to end after their streams have ended.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the control plane until `stop` completes.
///
/// # Errors
/// If it cannot start; each error says what to do.
pub async fn serve(mut options: Options, stop: impl Future<Output = ()>) -> Result<(), AppError> {
    if options.renew_interval * 2 > options.lease_ttl {
        return Err(AppError::RenewInterval);
    }
    check_exposure(&options)?;
    let reduced = bound_by_files(&mut options);
    let token = CancellationToken::new();
    let mut stop = pin!(stop);
    let (store, store_name) = open_store::open(&options)?;
    let tasks = Tasks::default();
    tasks.vital("store", {
        let store = Arc::clone(&store);
        let ended = async move { store.ended().await };
        token.clone().run_until_cancelled_owned(ended)
    });
    let registry_options = RegistryOptions {
        replica: options
            .replica
            .clone()
            .unwrap_or_else(|| replica_name(&*store, &options)),
        lease_ttl: options.lease_ttl,
        renew_interval: options.renew_interval,
        tasks: tasks.clone(),
        stop: token.clone(),
        ..RegistryOptions::default()
    };
    let loading = open_store::until_store_answers(async || {
        Registry::load(Arc::clone(&store), registry_options.clone()).await
    });
    let Some(registry) = unless_stopped(&mut stop, loading).await? else {
        return Ok(());
    };
    let clients = Clients::default();
    let membership = Membership::new(registry.clone());
    let peers = Peers::follow(registry.clone(), token.clone());
    let replica = &registry.options().replica;
    let plane = Plane {
        publisher: Publisher::start(registry.clone(), token.clone()),
        configs: MeshConfigs::new(replica, clients.clone(), peers.clone()),
        clients,
        loads: Loads::default(),
        load_interval: options.load_report_interval,
        peers,
        membership,
        registry,
        grpc_connections: Connections::new("grpc", Limits::of(options.listen_connections)),
        http_connections: Connections::new("http", Limits::of(options.http_connections)),
        budget: Budget::new(options.client_memory.unwrap_or_else(default_memory)),
        stop: token.clone(),
    };
    let (health, routes) = plane.routes()?;
    let grpc = bind("--listen", &options.listen)?;
    let web = bind("--http", &options.http)?;
    replica::watch_lag(plane.membership.clone(), plane.peers.clone(), token.clone());
    // Before the first answer: other replicas must already know this one when they ask it about its clients.
    let advertised = advertised(&options, &grpc);
    let joining =
        open_store::until_store_answers(async || plane.membership.serve_at(&advertised).await);
    if unless_stopped(&mut stop, joining).await?.is_none() {
        token.cancel();
        return Ok(());
    }
    let (grpc, web) = match (open("--listen", grpc), open("--http", web)) {
        (Ok(grpc), Ok(web)) => (grpc, web),
        (Err(error), _) | (_, Err(error)) => {
            token.cancel();
            plane.membership.left().await;
            return Err(error);
        }
    };
    let ready = format!(
        "heddle-control ready: grpc {}, http {}, store {store_name}",
        joined(&grpc),
        joined(&web),
    );
    let mut servers = JoinSet::new();
    let guard = Arc::new(guard(&options));
    // One for all requests of both listeners.
    let authorizer = Authorizer::default();
    for socket in grpc {
        let (places, guard) = (plane.grpc_connections.clone(), Arc::clone(&guard));
        let (routes, admission) = (routes.clone(), plane.admission());
        servers.spawn(grpc::serve_within(
            socket,
            routes,
            admission,
            places,
            guard,
            authorizer.clone(),
            token.clone(),
        ));
    }
    for socket in web {
        let (places, guard) = (plane.http_connections.clone(), Arc::clone(&guard));
        servers.spawn(http::serve(
            socket,
            plane.clone(),
            places,
            guard,
            authorizer.clone(),
            token.clone(),
        ));
    }
    if let Some(reduced) = reduced {
        tracing::info!("{reduced}");
    }
    heddle_options::ready(&ready);
    let failed = tokio::select! {
        biased;
        () = &mut stop => None,
        name = tasks.failed() => Some(name),
        _ = servers.join_next() => Some("listener"),
    };
    tracing::info!("stopping");
    plane::set_not_serving(&health).await;
    token.cancel();
    // Frees its duties now, before its lease ends.
    plane.membership.left().await;
    let ended = async { while servers.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
        tracing::warn!("some connections were still open after {STOP_TIMEOUT:?}; closed");
    }
    failed.map_or(Ok(()), |name| Err(AppError::TaskEnded(name)))
}

/// Does the work; there is no result if `stop` completes first.
async fn unless_stopped<T>(
    stop: &mut (impl Future<Output = ()> + Unpin),
    work: impl Future<Output = Result<T, RegistryError>>,
) -> Result<Option<T>, RegistryError> {
    tokio::select! {
        biased;
        () = stop => Ok(None),
        done = work => done.map(Some),
    }
}
