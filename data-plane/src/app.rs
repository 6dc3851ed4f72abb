//! The composition: what starts in which order, what is waited for, and how it all stops. Options come in, an exit code
//! goes out. One `start_*` per room; no room's work is done here.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use heddle_proto::registry::v1::registry_server::RegistryServer;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use tonic::service::Routes;
use tracing::{info, warn};

use crate::{
    admin::{
        health::ProxyHealth,
        http::{self, Sources},
        reflection::Reflection,
        serve,
    },
    agent::{
        Agent, Sighting,
        api::AgentApi,
        saved,
        schema::MAX_SCHEMA_BYTES,
        services_dir::ServicesDir,
        session::{Identity, Session, SessionHandle},
    },
    listener::{ListenAddr, ListenError},
    mesh::{Mesh, Place, Weaver},
    options::{LowOptions, Options, OptionsError, is_own_address},
    readiness::{self, Readiness},
    state_dir::{StateDir, StateDirError},
    worker::{Report, Role, WorkerOptions, Workers},
    xds::{
        client::{Asker, XdsClient, XdsHandle},
        last_good,
        resources::Resources,
        schemas::{Schemas, Wanted},
    },
};

/// Outbound opens at the latest this long after everything else (DESIGN §6).
const LONGEST_START: Duration = Duration::from_secs(2);
/// Of which so much for the first checks and descriptors of the node's own instances.
const LONGEST_SETTLE: Duration = Duration::from_secs(1);
/// Reports of workers that may wait; a lost one is made good by the next call that fails or the next check.
const MAX_REPORTS: usize = 4096;

/// The whole program: `args[0]` is its name.
#[must_use]
pub fn run(args: Vec<OsString>) -> ExitCode {
    let low: LowOptions = heddle_options::parse("HEDDLE_PROXY", args);
    heddle_options::init_logging("info");
    let options = match low.resolve() {
        Ok(options) => options,
        Err(OptionsError(faults)) => {
            for fault in faults {
                heddle_options::fail(fault);
            }
            return ExitCode::from(2);
        }
    };
    // Beats, health and xDS are small work: one thread beside this one.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(serve(options));
            // What still runs has nothing left to do for anyone.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(StartError::Threads(error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => heddle_options::fail(error),
    }
}

/// Why the proxy cannot start: one line, exit code 2.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error("--{listener}: {source}")]
    Listen {
        listener: &'static str,
        source: ListenError,
    },
    #[error("no threads for the data path: {0}; give this process more, or fewer --workers")]
    Threads(#[from] io::Error),
    #[error(
        "--inbound has no TCP address that other nodes could dial: give --advertise HOST:PORT, or --control none"
    )]
    Advertise,
}

/// What runs once everything is up.
struct Proxy {
    options: Options,
    state: Option<StateDir>,
    agent: Agent,
    workers: Arc<Workers>,
    mesh: watch::Receiver<Mesh>,
    xds: XdsHandle,
    /// Calls may be routed.
    routable: watch::Sender<bool>,
    readiness: watch::Sender<Readiness>,
    listeners: watch::Sender<BTreeMap<&'static str, Vec<String>>>,
}

async fn serve(options: Options) -> Result<(), StartError> {
    let incarnation = uuid::Uuid::new_v4().to_string();
    let revision = Arc::new(AtomicU64::new(0));
    let (readiness, _) = readiness::channel();
    let state = options
        .state_dir
        .as_deref()
        .map(StateDir::open)
        .transpose()?;
    let agent = Agent::new(&options.node);
    if let Some(state) = &state {
        agent.restore(saved::load(state, &options.node));
        tokio::spawn(saved::keep(state.clone(), agent.clone()));
    }
    tokio::spawn(agent.clone().sweep());

    let (schemas, wanted) = Schemas::new();
    let xds = start_xds(&options, state.as_ref(), &revision, wanted);
    let (workers, reports, internal) = start_workers(&options, &incarnation)?;
    let (routable, mesh) = start_weaver(&options, &agent, &xds, &workers);
    tokio::spawn(take_reports(reports, mesh.clone(), agent.clone()));

    let health = ProxyHealth::mesh(readiness.subscribe(), mesh.clone());
    let reflection = Reflection::mesh(mesh.clone(), agent.clone(), schemas);
    tokio::spawn(serve::internal(internal, serve::common(health, reflection)));

    if let Some(dir) = &options.services_dir {
        let mut dir = ServicesDir::new(dir, agent.clone(), is_own_address);
        dir.look();
        tokio::spawn(dir.run());
    }
    let identity = Identity {
        node: options.node.clone(),
        process_id: incarnation,
        advertise: String::new(),
        region: options.region.clone(),
        zone: options.zone.clone(),
    };
    let (mut session, handle) =
        Session::new(agent.clone(), identity, options.control.clone(), revision);
    let listeners = watch::Sender::new(BTreeMap::new());
    let proxy = Proxy {
        options,
        state,
        agent,
        workers,
        mesh,
        xds,
        routable,
        readiness,
        listeners,
    };
    proxy.start_admin(&handle)?;
    proxy.start_agent(&handle)?;
    let inbound = proxy.listen(Role::Inbound, &proxy.options.inbound)?;
    session.set_advertise(proxy.advertise(&inbound)?);
    tokio::spawn(session.run());

    proxy.until_routable().await;
    proxy.listen(Role::Outbound, &proxy.options.outbound)?;
    proxy.readiness.send_replace(Readiness::Ready);
    heddle_options::ready(&proxy.ready_line());
    heddle_options::terminated().await;
    proxy.stop().await;
    Ok(())
}

fn start_xds(
    options: &Options,
    state: Option<&StateDir>,
    revision: &Arc<AtomicU64>,
    wanted: mpsc::Receiver<Wanted>,
) -> XdsHandle {
    let last_good = state.and_then(|state| last_good::load(state, &options.node));
    let (resources, seen) = last_good.unwrap_or((Resources::default(), 0));
    revision.store(seen, std::sync::atomic::Ordering::Relaxed);
    let asker = Asker {
        node: options.node.clone(),
        region: options.region.clone(),
        zone: options.zone.clone(),
    };
    let (client, handle) = XdsClient::new(
        asker,
        options.control.clone(),
        resources,
        Arc::clone(revision),
        wanted,
    );
    if let Some(state) = state {
        tokio::spawn(last_good::keep(
            state.clone(),
            options.node.clone(),
            handle.snapshot.clone(),
        ));
    }
    tokio::spawn(client.run());
    handle
}

type Started = (
    Arc<Workers>,
    mpsc::Receiver<Report>,
    mpsc::Receiver<std::os::unix::net::UnixStream>,
);

fn start_workers(options: &Options, incarnation: &str) -> Result<Started, StartError> {
    let (reports_in, reports) = mpsc::channel(MAX_REPORTS);
    // Each worker makes one, and a new one should it break.
    let (internal_in, internal) = mpsc::channel(options.workers * 4);
    let worker_options = WorkerOptions {
        workers: options.workers,
        node: options.node.clone(),
        incarnation: incarnation.to_owned(),
        drain_timeout: options.drain_timeout,
        own_names: options.own_names.clone(),
        ..WorkerOptions::default()
    };
    let workers = Workers::start(worker_options, reports_in, internal_in)?;
    Ok((Arc::new(workers), reports, internal))
}

fn start_weaver(
    options: &Options,
    agent: &Agent,
    xds: &XdsHandle,
    workers: &Arc<Workers>,
) -> (watch::Sender<bool>, watch::Receiver<Mesh>) {
    let place = Place {
        node: options.node.clone(),
        own_names: options.own_names.clone(),
        region: options.region.clone(),
        zone: options.zone.clone(),
    };
    let routable = watch::Sender::new(false);
    let (weaver, mesh) = Weaver::new(place, agent.clone(), xds.view.clone(), routable.subscribe());
    let publisher = Arc::clone(workers);
    tokio::spawn(weaver.run(move |table| publisher.publish(table)));
    (routable, mesh)
}

/// What the workers saw of this node's instances, told to the agent.
async fn take_reports(
    mut reports: mpsc::Receiver<Report>,
    mesh: watch::Receiver<Mesh>,
    agent: Agent,
) {
    while let Some(report) = reports.recv().await {
        let (uid, sighting) = match report {
            Report::EndpointRefused { uid } => (uid, Sighting::Refused),
            Report::EndpointLost { uid } => (uid, Sighting::Lost),
        };
        let key = mesh.borrow().locals.get(&uid).cloned();
        if let Some(key) = key {
            agent.sighted(&key, sighting);
        }
    }
}

impl Proxy {
    /// Admin answers from the first moment, to say why the rest does not yet.
    fn start_admin(&self, session: &SessionHandle) -> Result<(), StartError> {
        let sources = Arc::new(Sources {
            options: self.options.given.clone(),
            workers: Arc::clone(&self.workers),
            agent: self.agent.clone(),
            mesh: self.mesh.clone(),
            xds: self.xds.clone(),
            session: session.status(),
            readiness: self.readiness.subscribe(),
            listeners: self.listeners.subscribe(),
        });
        let grpc = serve::common(
            ProxyHealth::own(self.readiness.subscribe()),
            Reflection::admin(),
        );
        for addr in &self.options.admin {
            let bound = self.bind("admin", addr)?;
            tokio::spawn(http::serve(bound, Arc::clone(&sources), grpc.clone()));
        }
        Ok(())
    }

    fn start_agent(&self, session: &SessionHandle) -> Result<(), StartError> {
        let applied = self.applied();
        let api = AgentApi::new(self.agent.clone(), session.clone(), applied, is_own_address);
        // A registration brings its descriptors along.
        let registry =
            RegistryServer::new(api).max_decoding_message_size(MAX_SCHEMA_BYTES + 64 * 1024);
        let health = ProxyHealth::own(self.readiness.subscribe());
        let routes: Routes = serve::common(health, Reflection::agent()).add_service(registry);
        for addr in &self.options.agent {
            let bound = self.bind("agent", addr)?;
            tokio::spawn(serve::grpc(bound, routes.clone()));
        }
        Ok(())
    }

    /// The agent's change that the workers have, as a number of its own.
    fn applied(&self) -> watch::Receiver<u64> {
        let mut mesh = self.mesh.clone();
        let (tell, applied) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let version = mesh.borrow_and_update().agent_version;
                tell.send_replace(version);
                if mesh.changed().await.is_err() {
                    return;
                }
            }
        });
        applied
    }

    fn bind(&self, listener: &'static str, addr: &ListenAddr) -> Result<serve::Bound, StartError> {
        let (at, bound) =
            serve::bind(addr).map_err(|source| StartError::Listen { listener, source })?;
        self.note(listener, &at);
        Ok(bound)
    }

    fn listen(&self, role: Role, addrs: &[ListenAddr]) -> Result<Vec<ListenAddr>, StartError> {
        let listener = role.name();
        let mut bound = Vec::new();
        for addr in addrs {
            let at = self
                .workers
                .listen(role, addr)
                .map_err(|source| StartError::Listen { listener, source })?;
            self.note(listener, &at);
            bound.push(at);
        }
        Ok(bound)
    }

    fn note(&self, listener: &'static str, at: &ListenAddr) {
        self.listeners
            .send_modify(|all| all.entry(listener).or_default().push(at.to_string()));
    }

    /// Where other nodes reach inbound: as told, else where it is bound.
    fn advertise(&self, inbound: &[ListenAddr]) -> Result<String, StartError> {
        if let Some(told) = self.options.advertise {
            return Ok(told.to_string());
        }
        let bound = inbound.iter().find_map(|at| match at {
            ListenAddr::Tcp(addr) => Some(*addr),
            ListenAddr::Unix(_) => None,
        });
        match bound {
            Some(addr) if addr.ip().is_unspecified() => {
                Ok(SocketAddr::new(self.outgoing(), addr.port()).to_string())
            }
            Some(addr) => Ok(addr.to_string()),
            None if self.options.control.is_empty() => Ok(String::new()),
            None => Err(StartError::Advertise),
        }
    }

    /// The address by which this host speaks to the control plane: nothing is sent.
    fn outgoing(&self) -> IpAddr {
        let control = self
            .options
            .control
            .first()
            .map(|url| url.trim_start_matches("http://").trim_end_matches('/'));
        let found = control.and_then(|control| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
            socket.connect(control).ok()?;
            Some(socket.local_addr().ok()?.ip())
        });
        let ip = found.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        if ip.is_loopback() {
            info!(
                "inbound is told to other nodes as {ip}: if they are on other hosts, give --advertise HOST:PORT"
            );
        }
        ip
    }

    /// Until the mesh is known: by the state dir or a first full answer, with this node's own instances, or 2 s.
    async fn until_routable(&self) {
        self.readiness.send_replace(Readiness::Starting(
            "no full answer of the control plane yet",
        ));
        let end = Instant::now() + LONGEST_START;
        let settled = timeout(LONGEST_SETTLE, self.agent.settled());
        let mut view = self.xds.view.clone();
        let known = timeout_at(end, view.wait_for(|view| view.complete));
        let (_, known) = tokio::join!(settled, async { matches!(known.await, Ok(Ok(_))) });
        if !known {
            warn!(
                "no full answer of the control plane within {LONGEST_START:?}: outbound opens with this node's own instances"
            );
        }
        let (version, _) = self.agent.views();
        self.routable.send_replace(true);
        let mut mesh = self.mesh.clone();
        // The weaver lives as long as the process.
        let _ = mesh
            .wait_for(|mesh| mesh.table.is_ready() && mesh.agent_version >= version)
            .await;
    }

    fn ready_line(&self) -> String {
        let listeners = self.listeners.borrow();
        let mut line = format!("heddle-proxy ready: node {}", self.options.node);
        for name in ["outbound", "inbound", "agent", "admin"] {
            if let Some(at) = listeners.get(name) {
                line.push_str(&format!(", {name} {}", at.join("+")));
            }
        }
        line
    }

    /// Drains: no call is cut before the drain timeout, and none is waited for after it. Instances stay registered.
    async fn stop(self) {
        info!(
            "stopping: calls may go on for {:?}",
            self.options.drain_timeout
        );
        self.readiness.send_replace(Readiness::Draining);
        self.workers.drain();
        // The workers cut what is left at their timeout; the margin is for their last words.
        let longest = self.options.drain_timeout + Duration::from_secs(2);
        tokio::select! {
            drained = timeout(longest, self.workers.drained()) => {
                if drained.is_err() {
                    warn!("calls were left when the drain timeout ended");
                }
            }
            () = heddle_options::terminated() => warn!("told to stop twice: stopping at once"),
        }
        if let Some(state) = &self.state {
            let snapshot = self.xds.snapshot.borrow().clone();
            if snapshot.resources.complete()
                && let Err(error) = last_good::write(state, &self.options.node, snapshot).await
            {
                warn!("the state dir cannot be written: {error}");
            }
            saved::save(state, &self.agent).await;
        }
        info!("stopped");
    }
}
