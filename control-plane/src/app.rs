//! The process: store, view, snapshots, then listeners; and the way back at the end. In come options and the wish to
//! stop, out goes the ready line. No listener opens before the view is loaded: an empty answer would take every
//! client's endpoints away.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::envoy::service::{
    load_stats::v3::load_reporting_service_server::LoadReportingServiceServer,
    status::v3::client_status_discovery_service_server::ClientStatusDiscoveryServiceServer,
};
use heddle_listen::{
    BindError, Bound, Connections, Consent, Guard, Limits, ListenAddr, ListenOption, Socket,
    files::{Asked, within_files},
};
use heddle_options::Tasks;
use heddle_proto::{
    control::v1::{node_session_server::NodeSessionServer, replica_server::ReplicaServer},
    registry::v1::registry_server::RegistryServer,
    status::v1::mesh_status_server::MeshStatusServer,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    budget::{Admission, Budget, MeshSize, default_memory},
    grpc, http,
    load::{self, Loads},
    opening,
    options::Options,
    registry::{Lag, Membership, Registry, RegistryError, RegistryOptions},
    replica::{self, MeshConfigs, MeshRemovals, Peers},
    session,
    snapshot::Publisher,
    status,
    store::{Store, StoreError},
    xds::{self, Ads, Clients},
};

/// An address that belongs to nobody (RFC 5737), to ask the routes for the way to others.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// So long connections have to end after their streams did.
const STOP: Duration = Duration::from_secs(5);

/// Why the process could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{option} {address}: {source}")]
    Listen {
        option: &'static str,
        address: ListenOption,
        source: BindError,
    },
    #[error("{0}")]
    Exposed(String),
    #[error("the descriptors built into this program cannot be read: {0}")]
    Descriptors(#[from] tonic_reflection::server::Error),
    #[error(
        "--renew-interval must be at most half of --lease-ttl: one lost beat would end a node's lease"
    )]
    RenewInterval,
    #[error(
        "{option} is for an etcd store, but the mesh is kept in {store}: give --store etcd:URL,… or leave it out"
    )]
    NotForStore { option: &'static str, store: String },
    #[error(
        "the background task {0} has ended, which is a fault of Heddle (the log says how): this process has stopped so that \
         it is started anew"
    )]
    TaskEnded(&'static str),
    #[error("{0} and {1} go together: give both or none")]
    Together(&'static str, &'static str),
    #[error("{option} {path}: {cause}")]
    Unreadable {
        option: &'static str,
        path: String,
        cause: String,
    },
    #[error(
        "--store-ca, --store-cert and --store-key need https addresses in --store etcd:https://…"
    )]
    PlainStore,
}

/// Runs the control plane until `stop`.
///
/// # Errors
/// If it cannot start; each says what to do.
pub async fn serve(mut options: Options, stop: impl Future<Output = ()>) -> Result<(), AppError> {
    if options.renew_interval * 2 > options.lease_ttl {
        return Err(AppError::RenewInterval);
    }
    consented(&options)?;
    let reduced = bound_by_files(&mut options);
    let token = CancellationToken::new();
    let mut stop = pin!(stop);
    let (store, store_name) = opening::open(&options)?;
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
    let loading = opening::when_it_answers(async || {
        Registry::load(Arc::clone(&store), registry_options.clone()).await
    });
    let Some(registry) = unless(&mut stop, loading).await? else {
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
    // Before the first answer: whoever asks another replica about this one's clients must find it.
    let advertised = advertised(&options, &grpc);
    let joining = opening::when_it_answers(async || plane.membership.serve_at(&advertised).await);
    if unless(&mut stop, joining).await?.is_none() {
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
    for socket in grpc {
        let (places, guard) = (plane.grpc_connections.clone(), Arc::clone(&guard));
        let (routes, admission) = (routes.clone(), plane.admission());
        servers.spawn(grpc::serve_within(
            socket,
            routes,
            admission,
            places,
            guard,
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
    for name in SERVED {
        health
            .set_service_status(*name, ServingStatus::NotServing)
            .await;
    }
    token.cancel();
    // Its duties are free now, not when its lease ends.
    plane.membership.left().await;
    let ended = async { while servers.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP, ended).await.is_err() {
        tracing::warn!("some connections were still open after {STOP:?}; closed");
    }
    failed.map_or(Ok(()), |name| Err(AppError::TaskEnded(name)))
}

/// What whoever reaches a listener can do: nothing tells yet who calls.
const GRPC_RISK: &str = "can register instances, watch the mesh and act as any node";
const HTTP_RISK: &str = "can read the state of the mesh";

/// Refuses listeners beyond loopback that the operator has not named, and warns of the others.
fn consented(options: &Options) -> Result<(), AppError> {
    let mut consent = Consent::new(options.insecure_listen.iter().cloned());
    let grpc = options.listen.iter().map(|at| ("--listen", at, GRPC_RISK));
    let http = options.http.iter().map(|at| ("--http", at, HTTP_RISK));
    let all: Vec<_> = grpc.chain(http).collect();
    for (option, address, risk) in &all {
        consent
            .ask(option, address, risk)
            .map_err(AppError::Exposed)?;
    }
    consent.unused().map_err(AppError::Exposed)?;
    for (option, address, risk) in all {
        if let Some(warning) = Consent::warning(option, address, risk) {
            tracing::warn!("{warning}");
        }
    }
    Ok(())
}

/// Reduces the bounds of connections to what the process may open files for; says so once it has started.
fn bound_by_files(options: &mut Options) -> Option<String> {
    let files = heddle_options::raise_file_limit()?;
    let asked = [options.listen_connections, options.http_connections];
    let asked = asked.map(|bound| Asked { bound, times: 1 });
    let bounds = within_files(usize::try_from(files).unwrap_or(usize::MAX), &asked);
    let &[grpc, http] = &bounds[..] else {
        return None;
    };
    let reduced = grpc < options.listen_connections || http < options.http_connections;
    (options.listen_connections, options.http_connections) = (grpc, http);
    reduced.then(|| {
        format!(
            "this process may open {files} files (ulimit -Hn), too few for all connections that it may have: it takes \
             {grpc} on --listen and {http} on --http"
        )
    })
}

/// Binds every address of one option.
fn bind(option: &'static str, addresses: &[ListenOption]) -> Result<Vec<Bound>, AppError> {
    let mut all = Vec::new();
    for address in addresses {
        let bound = heddle_listen::bind(address).map_err(|source| AppError::Listen {
            option,
            address: address.clone(),
            source,
        })?;
        all.extend(bound);
    }
    Ok(all)
}

/// Opens what was bound.
fn open(option: &'static str, bound: Vec<Bound>) -> Result<Vec<Socket>, AppError> {
    let opened = bound.into_iter().map(|bound| {
        let address = ListenOption::At(bound.address());
        bound.listen().map_err(|source| AppError::Listen {
            option,
            address,
            source,
        })
    });
    opened.collect()
}

/// As the ready line says it: the real addresses, joined with "+".
fn joined(sockets: &[Socket]) -> String {
    let addresses: Vec<String> = sockets.iter().map(ToString::to_string).collect();
    addresses.join("+")
}

/// The names by which others mean this process.
fn guard(options: &Options) -> Guard {
    let advertised = options.advertise.as_deref().and_then(|told| {
        let (host, _) = told.rsplit_once(':')?;
        Some(host.to_owned())
    });
    let names = options.own_name.iter().cloned();
    Guard::new(names.chain([host_name()]).chain(advertised))
}

/// Does the work unless it is to stop before: then there is no result.
async fn unless<T>(
    stop: &mut (impl Future<Output = ()> + Unpin),
    work: impl Future<Output = Result<T, RegistryError>>,
) -> Result<Option<T>, RegistryError> {
    tokio::select! {
        biased;
        () = stop => Ok(None),
        done = work => done.map(Some),
    }
}

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
    load_interval: Duration,
    peers: Peers,
    pub(crate) grpc_connections: Connections,
    pub(crate) http_connections: Connections,
    pub(crate) stop: CancellationToken,
}

/// Services by the names that health answers to and reflection lists; the empty one, which only health knows, is the
/// whole process.
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
    fn admission(&self) -> Admission {
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

    fn routes(&self) -> Result<(HealthReporter, Routes), AppError> {
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
            let tell = tell_health(reporter.clone(), membership.lag());
            stop.clone().run_until_cancelled_owned(tell)
        });
        Ok((health, routes.routes()))
    }
}

/// While this replica lags it is no place for xDS clients; all else goes on.
async fn tell_health(health: HealthReporter, mut lag: watch::Receiver<Option<Lag>>) {
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
        // Of the details that refusals carry: without them grpcurl shows bytes.
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

/// Several replicas on one host share a store: the port tells them apart.
fn replica_name(store: &dyn Store, options: &Options) -> String {
    let port = options.listen.iter().find_map(ListenOption::port);
    match (store.is_shared(), port) {
        (true, Some(0)) => format!("{}-{}", host_name(), std::process::id()),
        (true, Some(port)) => format!("{}-{port}", host_name()),
        _ => host_name(),
    }
}

/// Where other replicas reach this one; empty: nowhere.
fn advertised(options: &Options, grpc: &[Bound]) -> String {
    if let Some(told) = &options.advertise {
        return format!("http://{told}");
    }
    let first = grpc.iter().find_map(|bound| match bound.address() {
        ListenAddr::Tcp(address) => Some(address),
        ListenAddr::Unix(_) => None,
    });
    match first {
        Some(address) if !address.ip().is_unspecified() => format!("http://{address}"),
        Some(address) => match own_address() {
            Some(ip) => format!("http://{}", SocketAddr::new(ip, address.port())),
            None => {
                tracing::warn!(
                    "this host's own address is not known: other replicas cannot ask this one; give --advertise HOST:PORT"
                );
                String::new()
            }
        },
        None => String::new(),
    }
}

/// The address from which this host reaches others. Nothing is sent: a datagram socket only looks up its route.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((ELSEWHERE, 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified() && !own.is_loopback()).then_some(own)
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "control".to_owned())
}
