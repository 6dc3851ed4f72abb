//! The running proxy: its listeners, what it waits for before outbound opens, and how it stops. Calls between services
//! do not pass here.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use heddle_listen::{Connections, Guard, Limits, ListenAddr, ListenOption, Socket, SocketFile};
use heddle_options::Tasks;
use heddle_proto::registry::v1::registry_server::RegistryServer;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tracing::{info, warn};

use super::{StartError, predecessor::Predecessor, until_stopped};
use crate::{
    admin::{
        health::ProxyHealth,
        http::{self, Sources},
        reflection::Reflection,
        serve::{self, Access},
    },
    agent::{
        Agent,
        api::AgentApi,
        keep_alive::Stop,
        key::InstanceKey,
        left::LeftRecord,
        removal::{Calls, Remover},
        saved,
        schema::MAX_SCHEMA_BYTES,
        session::SessionHandle,
    },
    listener::bind::{Reserved, reserve_tcp},
    mesh::Mesh,
    options::{Options, is_own_address},
    readiness::Readiness,
    state_dir::StateDir,
    worker::{Role, Workers},
    xds::{client::XdsHandle, last_good},
};

/// The longest time between opening everything else and opening outbound.
const LONGEST_START: Duration = Duration::from_secs(2);
/// The part of it for the first checks and descriptors of this node's instances.
const LONGEST_SETTLE: Duration = Duration::from_secs(1);
/// The longest time for writing and releasing the state dir.
const LONGEST_SAVE: Duration = Duration::from_secs(5);
/// For the last bytes: answers of the agent and of the admin port that are under way when the last call has ended, and
/// failures of calls that a second signal ended.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The parts of the running proxy.
pub(super) struct Proxy {
    pub(super) options: Options,
    pub(super) process_id: String,
    pub(super) state: Option<StateDir>,
    pub(super) agent: Agent,
    pub(super) workers: Arc<Workers>,
    pub(super) mesh: watch::Receiver<Mesh>,
    pub(super) xds: XdsHandle,
    pub(super) readiness: watch::Sender<Readiness>,
    pub(super) listeners: watch::Sender<BTreeMap<&'static str, Vec<String>>>,
    pub(super) own: OwnListeners,
    pub(super) tasks: Tasks,
    pub(super) predecessor: Predecessor,
}

/// The listeners of the control side.
pub(super) struct OwnListeners {
    agent: Access,
    admin: Access,
    stop: Stop,
    /// The socket files of the open Unix sockets.
    files: Mutex<Vec<SocketFile>>,
    /// Sockets and their connections.
    open: TaskTracker,
}

impl OwnListeners {
    pub(super) fn new(options: &Options, stop: Stop) -> Self {
        let guard = Arc::new(Guard::new(&options.host_names));
        let access = |listener, connections| Access {
            connections: Connections::new(listener, Limits::of(connections)),
            guard: Arc::clone(&guard),
        };
        Self {
            agent: access("agent", options.agent_connections),
            admin: access("admin", options.admin_connections),
            stop,
            files: Mutex::default(),
            open: TaskTracker::new(),
        }
    }

    /// Removes the socket files and ends the streams; a call in flight is still answered.
    fn close(&self) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files.drain(..) {
            file.remove();
        }
        self.stop.begun.cancel();
        self.open.close();
    }
}

impl Drop for OwnListeners {
    /// Also needed if the start fails halfway.
    fn drop(&mut self) {
        self.close();
    }
}

impl Proxy {
    /// Returns the addresses of inbound.
    pub(super) async fn open_all_but_outbound(
        &self,
        session: &SessionHandle,
        remover: Remover,
    ) -> Result<Vec<ListenAddr>, StartError> {
        self.start_admin(session).await?;
        self.start_agent(remover).await?;
        self.listen(Role::Inbound, &self.options.inbound).await
    }

    /// Opened first, so that it can show why the proxy is not ready yet.
    async fn start_admin(&self, session: &SessionHandle) -> Result<(), StartError> {
        let sources = Arc::new(Sources {
            options: self.options.given.clone(),
            workers: Arc::clone(&self.workers),
            agent: self.agent.clone(),
            mesh: self.mesh.clone(),
            xds: self.xds.clone(),
            session: session.status(),
            readiness: self.readiness.subscribe(),
            listeners: self.listeners.subscribe(),
            tasks: self.tasks.clone(),
            connections: [&self.own.agent, &self.own.admin]
                .map(|access| access.connections.clone())
                .to_vec(),
        });
        let grpc = serve::common(
            ProxyHealth::own(self.readiness.subscribe()),
            Reflection::admin(),
        );
        for socket in self.open("admin", &self.options.admin).await? {
            let (access, sources) = (self.own.admin.clone(), Arc::clone(&sources));
            let stop = self.own.stop.begun.clone();
            let served = http::serve(socket, access, sources, grpc.clone(), stop.clone());
            let served = self.own.open.track_future(served);
            self.tasks
                .vital("admin-listener", until_stopped(served, stop));
        }
        Ok(())
    }

    async fn start_agent(&self, remover: Remover) -> Result<(), StartError> {
        let stop = self.own.stop.clone();
        let api = AgentApi::new(self.agent.clone(), remover, is_own_address, stop);
        // A registration contains its descriptors.
        let registry =
            RegistryServer::new(api).max_decoding_message_size(MAX_SCHEMA_BYTES + 64 * 1024);
        let health = ProxyHealth::own(self.readiness.subscribe());
        let routes: Routes = serve::common(health, Reflection::agent()).add_service(registry);
        for socket in self.open("agent", &self.options.agent).await? {
            let (access, stop) = (self.own.agent.clone(), self.own.stop.begun.clone());
            let served = serve::grpc(socket, access, routes.clone(), stop.clone());
            let served = self.own.open.track_future(served);
            self.tasks
                .vital("agent-listener", until_stopped(served, stop));
        }
        Ok(())
    }

    async fn open(
        &self,
        listener: &'static str,
        options: &[ListenOption],
    ) -> Result<Vec<Socket>, StartError> {
        let mut all = Vec::new();
        for option in options {
            let open = || {
                serve::open(option).map_err(|source| StartError::Listen {
                    listener,
                    source: source.into(),
                })
            };
            let opened = self.predecessor.released(open).await?;
            for socket in opened {
                self.note(listener, &socket.address());
                let mut files = self
                    .own
                    .files
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                files.extend(socket.file().cloned());
                drop(files);
                all.push(socket);
            }
        }
        Ok(all)
    }

    pub(super) async fn listen(
        &self,
        role: Role,
        addrs: &[ListenAddr],
    ) -> Result<Vec<ListenAddr>, StartError> {
        let listener = role.name();
        let mut bound = Vec::new();
        for addr in addrs {
            let open = || {
                let opened = self.workers.listen(role, addr);
                opened.map_err(|source| StartError::Listen { listener, source })
            };
            let at = self.predecessor.released(open).await?;
            self.note(listener, &at);
            bound.push(at);
        }
        Ok(bound)
    }

    fn note(&self, listener: &'static str, at: &ListenAddr) {
        if let ListenAddr::Tcp(addr) = at {
            self.agent.add_listener(listener, *addr);
        }
        self.listeners
            .send_modify(|all| all.entry(listener).or_default().push(at.to_string()));
    }

    /// The address at which other nodes reach inbound: the configured one, else the bound one.
    pub(super) fn advertise(&self, inbound: &[ListenAddr]) -> Result<String, StartError> {
        if let Some(advertised) = self.options.advertise {
            return Ok(advertised.to_string());
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

    /// The local address of the route to the control plane. Connecting a UDP socket sends nothing.
    fn outgoing(&self) -> IpAddr {
        let control = self
            .options
            .control
            .first()
            .map(|url| url.trim_start_matches("http://").trim_end_matches('/'));
        let found = control.and_then(|control| {
            control.to_socket_addrs().ok()?.find_map(|there| {
                let any: IpAddr = match there {
                    SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let socket = UdpSocket::bind((any, 0)).ok()?;
                socket.connect(there).ok()?;
                Some(socket.local_addr().ok()?.ip())
            })
        });
        let ip = found.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        if ip.is_loopback() {
            info!(
                "inbound is advertised to other nodes as {ip}: if they are on other hosts, give \
                 --advertise HOST:PORT"
            );
        }
        ip
    }

    /// Waits until the mesh is known, from the state dir or from the first complete answer, and this node's own
    /// instances are checked; at most 2 s.
    pub(super) async fn until_routable(&self) {
        self.readiness.send_replace(Readiness::Starting(
            "waiting for the first complete state from the control plane",
        ));
        let end = Instant::now() + LONGEST_START;
        let checks_done = timeout(LONGEST_SETTLE, self.agent.checks_done());
        let mut view = self.xds.view.clone();
        let known = timeout_at(end, view.wait_for(|view| view.complete));
        let (_, known) = tokio::join!(checks_done, async { matches!(known.await, Ok(Ok(_))) });
        if !known {
            warn!(
                "no complete state from the control plane within {LONGEST_START:?}: outbound \
                 opens with this node's own instances"
            );
        }
        let (version, _) = self.agent.views();
        let mut mesh = self.mesh.clone();
        // The table builder lives as long as the process.
        let _ = mesh
            .wait_for(|m| m.agent_version >= version && (m.table.is_ready() || !known))
            .await;
    }

    pub(super) fn ready_line(&self) -> String {
        let listeners = self.listeners.borrow();
        let mut line = format!("heddle-proxy ready: node {}", self.options.node);
        for name in ["outbound", "inbound", "agent", "admin"] {
            if let Some(at) = listeners.get(name) {
                line.push_str(&format!(", {name} {}", at.join("+")));
            }
        }
        line
    }

    /// Drains: no call is cut before the drain timeout, and none is waited for after it. What a successor needs is
    /// released first: the node's registrations, the state dir, and every port. Instances stay registered.
    pub(super) async fn stop(self, session: &SessionHandle) {
        info!(
            "stopping: calls in flight may take up to {:?}",
            self.options.drain_timeout
        );
        self.readiness.send_replace(Readiness::Draining);
        self.agent.stop();
        self.xds.drain();
        let ((), mut left) = tokio::join!(session.end(), self.give_up_state());
        self.workers.drain();
        self.own.close();
        // The workers cut the remaining calls at their timeout; the margin is for their final responses.
        let longest = self.options.drain_timeout + Duration::from_secs(2);
        tokio::select! {
            drained = timeout(longest, self.workers.drained()) => {
                if drained.is_err() {
                    warn!("calls were still in flight when the drain timeout ended");
                }
                // Callers that waited for calls to end are being answered just now; instances that follow the drain
                // learn that it is over.
                self.own.stop.drained.cancel();
                let _ = timeout(LAST_ANSWERS, self.own.open.wait()).await;
            }
            () = heddle_options::terminated_again() => {
                warn!("a second signal to stop: ending all calls now");
                self.workers.end_calls();
                let _ = timeout(LAST_ANSWERS, self.workers.drained()).await;
            }
            () = left.keep(&self.agent) => {}
        }
        let _ = timeout(LAST_ANSWERS, left.update(&self.agent)).await;
        info!("stopped");
    }

    /// Writes the state for the next process and releases the state dir.
    /// Instances that leave after that are recorded by what it returns.
    async fn give_up_state(&self) -> LeftRecord {
        let record = |saved| LeftRecord::new(self.state.clone(), &self.process_id, saved);
        let Some(state) = &self.state else {
            return record(Vec::new());
        };
        let write = async {
            let snapshot = self.xds.snapshot.borrow().clone();
            if snapshot.resources.complete()
                && let Err(error) = last_good::write(state, &self.options.node, snapshot).await
            {
                warn!("cannot write to the state dir: {error}");
            }
            let saved = saved::save(state, &self.agent).await;
            let state = state.clone();
            // It waits for a write in progress.
            let _ = tokio::task::spawn_blocking(move || state.release()).await;
            saved
        };
        match timeout(LONGEST_SAVE, write).await {
            Ok(saved) => record(saved),
            Err(_) => {
                warn!(
                    "the state dir's disk does not answer: the next start will not have the latest \
                     state"
                );
                record(Vec::new())
            }
        }
    }
}

/// Chooses the ports of outbound listeners with port 0. They open last, and their addresses must be known before: the
/// control plane refuses instances that have one of them.
pub(super) fn choose_outbound_ports(options: &mut Options) -> Vec<Reserved> {
    let mut reserved = Vec::new();
    for addr in &mut options.outbound {
        if let ListenAddr::Tcp(addr) = addr
            && addr.port() == 0
            // If this fails, so does opening the listener, which says why.
            && let Ok((chosen, port)) = reserve_tcp(*addr)
        {
            *addr = chosen;
            reserved.push(port);
        }
    }
    reserved
}

/// Reserves the addresses of all listeners before the first instance is accepted, so that no instance gets one of them.
pub(super) fn plan_listeners(agent: &Agent, options: &Options) {
    let each = |options: &[ListenOption]| options.iter().flat_map(ListenOption::each).collect();
    for (listener, addrs) in [
        ("outbound", options.outbound.clone()),
        ("inbound", options.inbound.clone()),
        ("agent", each(&options.agent)),
        ("admin", each(&options.admin)),
    ] {
        for addr in addrs {
            if let ListenAddr::Tcp(addr) = addr {
                agent.add_listener(listener, addr);
            }
        }
    }
}

/// The calls to this node's instances.
pub(super) struct CallsOfInstances {
    pub(super) workers: Arc<Workers>,
    pub(super) mesh: watch::Receiver<Mesh>,
}

#[tonic::async_trait]
impl Calls for CallsOfInstances {
    fn endpoint(&self, key: &InstanceKey) -> Option<u64> {
        let mesh = self.mesh.borrow();
        let mut locals = mesh.locals.iter();
        locals.find_map(|(uid, local)| (local == key).then_some(*uid))
    }

    async fn ended(&self, endpoint: u64, within: Duration) -> usize {
        let mut calls = self.workers.calls_in_flight(endpoint);
        match timeout(within, calls.ended()).await {
            Ok(()) => 0,
            // At least one, because the wait did not end.
            Err(_) => calls.count().max(1),
        }
    }
}

/// The agent's version that the workers have, in a channel of its own.
pub(super) fn applied(mut mesh: watch::Receiver<Mesh>) -> watch::Receiver<u64> {
    let (sender, applied) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            let version = mesh.borrow_and_update().agent_version;
            sender.send_replace(version);
            if mesh.changed().await.is_err() {
                return;
            }
        }
    });
    applied
}
