//! A mesh for one test: the real control plane, one real proxy per node, and instances, each in its own process on free
//! loopback ports with its state in a temporary folder. Everything started here is stopped here.
//!
//! ```no_run
//! # async fn test() {
//! let mut mesh = heddle_tests::mesh::Mesh::builder().nodes(2).start().await;
//! mesh.echo("b", "e1").await;
//! heddle_tests::echo::reach(&mesh.channel("a"), &["e1"]).await;
//! # }
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use heddle_proto::registry::v1::{Health, registry_client::RegistryClient};
use heddle_proto::status::v1::{GetServiceRequest, Service};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::echo::channel;
use crate::netns::Network;
use crate::process::{Process, Start};
use crate::replicas::{REPLICAS, Replica};
use crate::temp::{folder, free_addr, free_port};
use crate::tools::binary;
use crate::wait::{seen, until};

/// Names of nodes in their order.
pub const NODES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// What to start.
#[derive(Default)]
pub struct Builder {
    nodes: usize,
    replicas: usize,
    store: Option<String>,
    network: Option<Network>,
    proxy_args: Vec<String>,
    files: Vec<(String, String, String)>,
}

impl Builder {
    /// How many nodes, named `a`, `b`, …
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// How many replicas of the control plane, named `r1`, `r2`, …, all on this `--store`.
    pub fn replicas(mut self, count: usize, store: &str) -> Self {
        self.replicas = count;
        self.store = Some(store.to_owned());
        self
    }

    /// Each replica on a host of its own in this network; nodes and instances stay on this one.
    pub fn network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// A further argument for every proxy.
    pub fn proxy_arg(mut self, arg: &str) -> Self {
        self.proxy_args.push(arg.to_owned());
        self
    }

    /// A file of a node's `--services-dir`.
    pub fn services_file(mut self, node: &str, name: &str, text: &str) -> Self {
        self.files
            .push((node.to_owned(), name.to_owned(), text.to_owned()));
        self
    }

    /// Starts all of it and returns when every part has reported that it is ready.
    pub async fn start(mut self) -> Mesh {
        let folder = folder();
        let replicas: Vec<_> = REPLICAS[..self.replicas]
            .iter()
            .map(|name| Replica::new(name, self.network.as_mut()))
            .collect();
        let embedded = format!("embedded:{}", folder.path().join("store").display());
        let mut mesh = Mesh {
            instances: BTreeMap::new(),
            nodes: BTreeMap::new(),
            grpc: replicas[0].grpc,
            http: replicas[0].http,
            replicas,
            store: self.store.unwrap_or(embedded),
            _network: self.network,
            proxy_args: self.proxy_args,
            folder,
        };
        for name in &NODES[..self.nodes] {
            let node = Node::new(&mesh, name);
            std::fs::create_dir_all(&node.services_dir).expect("a services dir");
            mesh.nodes.insert((*name).to_owned(), node);
        }
        for (node, file, text) in &self.files {
            mesh.write_services_file(node, file, text);
        }
        mesh.start_replicas().await;
        let mut starting = Vec::new();
        for name in &NODES[..self.nodes] {
            starting.push((*name, mesh.spawn_proxy(name)));
        }
        for (name, mut process) in starting {
            process.ready().await;
            mesh.node_mut(name).proxy = Some(process);
        }
        mesh
    }
}

/// One node: its addresses, which stay the same over restarts, and its proxy while it runs.
pub struct Node {
    pub name: String,
    pub outbound: SocketAddr,
    pub inbound: SocketAddr,
    pub agent: SocketAddr,
    pub admin: SocketAddr,
    pub state_dir: PathBuf,
    pub services_dir: PathBuf,
    proxy: Option<Process>,
}

impl Node {
    fn new(mesh: &Mesh, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            outbound: free_addr(),
            inbound: free_addr(),
            agent: free_addr(),
            admin: free_addr(),
            state_dir: mesh.path(&format!("state-{name}")),
            services_dir: mesh.path(&format!("services-{name}")),
            proxy: None,
        }
    }

    /// The proxy's process id; panics while there is none.
    pub fn pid(&self) -> u32 {
        self.proxy().pid()
    }

    pub fn proxy(&self) -> &Process {
        self.proxy.as_ref().expect("the proxy runs")
    }
}

/// A running mesh. Dropping it kills what still runs: instances first, then proxies, then the control plane.
pub struct Mesh {
    instances: BTreeMap<(String, String), Process>,
    nodes: BTreeMap<String, Node>,
    pub(crate) replicas: Vec<Replica>,
    /// As `--store` has it.
    pub(crate) store: String,
    /// Goes after the replicas, whose hosts are on it.
    _network: Option<Network>,
    /// The gRPC address of the control plane, of its first replica if there are several.
    pub grpc: SocketAddr,
    /// Its HTTP address.
    pub http: SocketAddr,
    proxy_args: Vec<String>,
    folder: TempDir,
}

impl Mesh {
    pub fn builder() -> Builder {
        Builder {
            nodes: 1,
            replicas: 1,
            ..Builder::default()
        }
    }

    /// A path in the mesh's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    // ---- nodes ----

    /// A service as the control plane has it.
    pub async fn service(&self, name: &str) -> Result<Service, String> {
        let request = GetServiceRequest {
            name: name.to_owned(),
        };
        let service = self.status().get_service(request).await;
        Ok(service.map_err(|status| status.to_string())?.into_inner())
    }

    /// Awaits that the control plane has these instances of heddle-echo.
    pub async fn control_has(&self, expected: &[&str]) {
        until("the instances in the control plane", async || {
            let service = self.service("heddle-echo").await?;
            let endpoints = service.endpoints.iter();
            let ids: Vec<_> = endpoints.map(|endpoint| endpoint.id.as_str()).collect();
            seen(ids == expected, format!("{ids:?}"))
        })
        .await;
    }

    /// Awaits that the control plane shows this instance of heddle-echo, the only one, as draining.
    pub async fn drains(&self, id: &str) {
        until("that it drains", async || {
            let service = self.service("heddle-echo").await?;
            let mut endpoints = service.endpoints.iter();
            let all = format!("{:?}", service.endpoints);
            let drains = endpoints.all(|e| e.id == id && e.health() == Health::Draining);
            seen(drains && service.endpoints.len() == 1, all)
        })
        .await;
    }

    pub fn node(&self, name: &str) -> &Node {
        self.nodes.get(name).expect("a node of this mesh")
    }

    fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).expect("a node of this mesh")
    }

    /// A channel to a node's outbound; calls are routed by path.
    pub fn channel(&self, node: &str) -> Channel {
        channel(self.node(node).outbound)
    }

    pub fn agent(&self, node: &str) -> RegistryClient<Channel> {
        RegistryClient::new(channel(self.node(node).agent))
    }

    /// The command that starts a node's proxy.
    pub fn proxy_start(&self, name: &str) -> Start {
        let node = self.node(name);
        let control: Vec<_> = self
            .replicas
            .iter()
            .map(|replica| format!("http://{}", replica.grpc))
            .collect();
        Start::new(&format!("heddle-proxy {name}"), &binary("heddle-proxy"))
            .args(["--node", name])
            .args(["--control", &control.join(",")])
            .args(["--outbound", &node.outbound.to_string()])
            .args(["--inbound", &node.inbound.to_string()])
            .args(["--agent", &node.agent.to_string()])
            .args(["--admin", &node.admin.to_string()])
            .arg("--state-dir")
            .arg(&node.state_dir)
            .arg("--services-dir")
            .arg(&node.services_dir)
            .args(&self.proxy_args)
    }

    fn spawn_proxy(&self, name: &str) -> Process {
        self.proxy_start(name).spawn()
    }

    /// Starts a node's proxy again, at the same addresses and with the same state dir.
    pub async fn start_proxy(&mut self, name: &str) {
        let mut process = self.spawn_proxy(name);
        process.ready().await;
        self.node_mut(name).proxy = Some(process);
    }

    /// Stops a node's proxy with SIGTERM; it must exit with 0.
    pub async fn stop_proxy(&mut self, name: &str) {
        self.node_mut(name)
            .proxy
            .take()
            .expect("the proxy runs")
            .stop_cleanly()
            .await;
    }

    /// Gives away a node's proxy, which is stopping: its successor may be started beside it.
    pub fn give_proxy(&mut self, name: &str) -> Process {
        self.node_mut(name).proxy.take().expect("the proxy runs")
    }

    /// Waits for the end of a node's proxy that is stopping; it must exit with 0.
    pub async fn proxy_exits(&mut self, name: &str) {
        self.node_mut(name)
            .proxy
            .take()
            .expect("the proxy runs")
            .exit_cleanly()
            .await;
    }

    /// Kills a node's proxy with SIGKILL.
    pub async fn kill_proxy(&mut self, name: &str) {
        self.node_mut(name)
            .proxy
            .take()
            .expect("the proxy runs")
            .kill()
            .await;
    }

    /// Waits until a file of a node's state dir contains this word: state is written shortly after it is in use, and a
    /// SIGKILL before that would rightly forget it.
    pub async fn saved(&self, node: &str, file: &str, word: &str) {
        let path = self.node(node).state_dir.join(file);
        until("the state is on disk", async || {
            let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
            let found = bytes
                .windows(word.len())
                .any(|part| part == word.as_bytes());
            seen(found, format!("no {word:?} in {}", path.display()))
        })
        .await;
    }

    /// Writes a file into a node's services dir, whole or not at all.
    pub fn write_services_file(&self, node: &str, name: &str, text: &str) {
        let folder = &self.node(node).services_dir;
        let draft = folder.join(format!(".{name}.draft"));
        std::fs::write(&draft, text).expect("the services dir can be written");
        std::fs::rename(&draft, folder.join(name)).expect("the services dir can be written");
    }

    // ---- instances ----

    /// The command that starts an echo instance on a node.
    pub fn echo_start(&self, node: &str, id: &str) -> Start {
        self.echo_on(node, id, IpAddr::from([127, 0, 0, 1]))
    }

    /// The same, at an address that other hosts can reach. Its port is not reused after it has gone: late calls to it reach no
    /// instance of another test.
    pub fn echo_on(&self, node: &str, id: &str, ip: IpAddr) -> Start {
        let listen = SocketAddr::new(ip, free_port());
        Start::new(
            &format!("heddle-echo {id} on {node}"),
            &binary("heddle-echo"),
        )
        .args(["--listen", &listen.to_string()])
        .args(["--instance", id])
        .args(["--agent", &format!("http://{}", self.node(node).agent)])
        .env("HEDDLE_NODE", node)
    }

    /// Starts an instance of `heddle-echo.default` on a node; returns its address when it says that it is ready.
    pub async fn echo(&mut self, node: &str, id: &str) -> SocketAddr {
        let start = self.echo_start(node, id);
        self.instance(node, id, start).await
    }

    /// Starts an instance with a command of the test's own.
    pub async fn instance(&mut self, node: &str, id: &str, start: Start) -> SocketAddr {
        let mut process = start.spawn();
        let ready = process.ready().await;
        self.instances
            .insert((node.to_owned(), id.to_owned()), process);
        ready.get("listen").parse().expect("an address")
    }

    /// All output of an instance.
    pub fn instance_output(&self, node: &str, id: &str) -> String {
        let key = (node.to_owned(), id.to_owned());
        let instance = self.instances.get(&key).expect("an instance of this mesh");
        instance.output()
    }

    /// SIGSTOP to an instance: it keeps its connections and answers nothing.
    pub fn freeze_instance(&self, node: &str, id: &str) {
        let key = (node.to_owned(), id.to_owned());
        let instance = self.instances.get(&key).expect("an instance of this mesh");
        instance.signal("STOP");
    }

    /// Stops an instance with SIGTERM; it must exit with 0.
    pub async fn stop_instance(&mut self, node: &str, id: &str) {
        let key = (node.to_owned(), id.to_owned());
        self.instances
            .remove(&key)
            .expect("an instance of this mesh")
            .stop_cleanly()
            .await;
    }

    /// Kills an instance with SIGKILL.
    pub async fn kill_instance(&mut self, node: &str, id: &str) {
        let key = (node.to_owned(), id.to_owned());
        self.instances
            .remove(&key)
            .expect("an instance of this mesh")
            .kill()
            .await;
    }
}
