//! The sequence of the demo: check, start the control plane, the nodes and the instances, wait for a call through each
//! node, print what to try, keep calls running, and finally stop everything in reverse order. Owns the child processes
//! and the folder, and removes both in every case.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    plan::{self, NODES, Options, Part, Ready},
    report::{self, Addresses, NodeAddresses, Reporter},
    supervise::{Environment, Event, Readiness, Supervised},
    traffic::{Traffic, first_answer},
};

/// How long a part may take to become ready, even on a slow machine.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const FIRST_CALL_TIMEOUT: Duration = Duration::from_secs(60);
const EVENTS: usize = 256;

/// Runs the demo until `stop`, or until a part cannot be kept running.
pub(super) async fn run_demo(
    options: &Options,
    stop: impl Future<Output = ()>,
) -> Result<(), String> {
    plan::check_ports(options)?;
    let folder = Folder::make(options)?;
    let program = std::env::current_exe()
        .map_err(|why| format!("cannot find the path of this program: {why}"))?;
    let (sender, events) = mpsc::channel(EVENTS);
    let hurry = CancellationToken::new();
    let environment = Environment {
        program,
        events: sender,
        leftover: folder.temporary(),
        hurry,
    };
    let mut running = Running {
        environment,
        events,
        verbose: options.verbose,
        groups: Groups::default(),
        reporter: Reporter::new(),
    };
    let data = folder.path();
    let mut stop = std::pin::pin!(stop);
    let end = tokio::select! {
        biased;
        () = &mut stop => Ok(()),
        end = running.run(options, &data) => end,
    };
    running.clear(heddle_options::terminated_again()).await;
    folder.remove();
    end
}

/// The data folder: given and kept, or temporary and removed.
enum Folder {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Folder {
    fn make(options: &Options) -> Result<Self, String> {
        let Some(path) = &options.data else {
            let made = tempfile::Builder::new().prefix("heddle-demo-").tempdir();
            return made.map(Self::Temporary).map_err(|why| {
                format!("cannot create a temporary folder: {why}; give one with --data DIR")
            });
        };
        std::fs::create_dir_all(path)
            .and_then(|()| path.canonicalize())
            .map(Self::Kept)
            .map_err(|why| format!("--data {}: {why}", path.display()))
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Kept(path) => path.clone(),
            Self::Temporary(folder) => folder.path().to_owned(),
        }
    }

    fn temporary(&self) -> Option<PathBuf> {
        match self {
            Self::Kept(_) => None,
            Self::Temporary(folder) => Some(folder.path().to_owned()),
        }
    }

    fn remove(self) {
        if let Self::Temporary(folder) = self {
            let path = folder.path().to_owned();
            if let Err(why) = folder.close() {
                tracing::warn!("cannot remove {}: {why}", path.display());
            }
        }
    }
}

/// The processes, in the order in which they are stopped.
#[derive(Default)]
struct Groups {
    instances: Vec<Supervised>,
    nodes: Vec<Supervised>,
    control: Vec<Supervised>,
}

struct Running {
    environment: Environment,
    events: mpsc::Receiver<Event>,
    verbose: bool,
    groups: Groups,
    reporter: Reporter,
}

impl Running {
    async fn run(&mut self, options: &Options, data: &Path) -> Result<(), String> {
        let control = self.start_control(options, data).await?;
        let mut addresses = Addresses {
            control: address_of(&control, "control plane", "grpc")?,
            http: address_of(&control, "control plane", "http")?,
            nodes: Vec::new(),
        };
        addresses.nodes = self.start_nodes(options, data, addresses.control).await?;
        self.start_instances(options, &addresses.nodes).await?;
        self.first_calls(&addresses.nodes).await?;
        heddle_options::ready(&report::ready(&addresses));
        self.reporter.print_line(&report::instructions(
            &addresses,
            options.instances,
            &own_name(),
        ));
        self.keep_calling(options, &addresses.nodes).await
    }

    async fn start_control(&mut self, options: &Options, data: &Path) -> Result<Ready, String> {
        self.reporter.step("starting the control plane");
        let control = Supervised::start(plan::control(options, data), self.environment.clone());
        let readiness = control.readiness();
        self.groups.control.push(control);
        self.await_ready(readiness).await
    }

    async fn start_nodes(
        &mut self,
        options: &Options,
        data: &Path,
        control: SocketAddr,
    ) -> Result<Vec<NodeAddresses>, String> {
        let text = format!(
            "control plane ready at {control}; starting the proxies of {} nodes",
            NODES.len()
        );
        self.reporter.step(&text);
        // If the demo is killed, the control plane removes the folder.
        let environment = Environment {
            leftover: None,
            ..self.environment.clone()
        };
        for (index, name) in NODES.iter().enumerate() {
            let services = plan::services_dir(data, name);
            std::fs::create_dir_all(&services)
                .map_err(|why| format!("cannot make {}: {why}", services.display()))?;
            let part = plan::node(index, name, options, data, control);
            self.groups
                .nodes
                .push(Supervised::start(part, environment.clone()));
        }
        let waits: Vec<Readiness> = self
            .groups
            .nodes
            .iter()
            .map(Supervised::readiness)
            .collect();
        let mut nodes = Vec::new();
        for (readiness, name) in waits.into_iter().zip(NODES) {
            let ready = self.await_ready(readiness).await?;
            let services_dir = plan::services_dir(data, name);
            let addresses = node_addresses(name, services_dir, &ready)?;
            self.reporter
                .step(&format!("{name} ready, outbound {}", addresses.outbound));
            nodes.push(addresses);
        }
        Ok(nodes)
    }

    async fn start_instances(
        &mut self,
        options: &Options,
        nodes: &[NodeAddresses],
    ) -> Result<(), String> {
        let environment = Environment {
            leftover: None,
            ..self.environment.clone()
        };
        let parts: Vec<Part> = nodes
            .iter()
            .flat_map(|node| {
                (1..=options.instances).map(|number| plan::echo(&node.name, number, node.agent))
            })
            .collect();
        self.reporter
            .step(&format!("starting {} echo instances", parts.len()));
        for part in parts {
            self.groups
                .instances
                .push(Supervised::start(part, environment.clone()));
        }
        let waits: Vec<Readiness> = self
            .groups
            .instances
            .iter()
            .map(Supervised::readiness)
            .collect();
        for readiness in waits {
            self.await_ready(readiness).await?;
        }
        Ok(())
    }

    async fn first_calls(&mut self, nodes: &[NodeAddresses]) -> Result<(), String> {
        for NodeAddresses { name, outbound, .. } in nodes {
            match self
                .run_beside_events(first_answer(*outbound, FIRST_CALL_TIMEOUT))
                .await?
            {
                Ok(instance) => self.reporter.step(&format!(
                    "first call through {name}: answered by {instance}"
                )),
                Err(why) => return Err(format!("no call through {name} succeeds: {why}")),
            }
        }
        Ok(())
    }

    async fn keep_calling(
        &mut self,
        options: &Options,
        nodes: &[NodeAddresses],
    ) -> Result<(), String> {
        let targets: Vec<(String, SocketAddr)> = nodes
            .iter()
            .map(|node| (node.name.clone(), node.outbound))
            .collect();
        let mut traffic = Traffic::start(&targets, options.rate)?;
        let mut ticks = interval(self.reporter.pause());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            tokio::select! {
                event = self.events.recv() => self.handle_event(event)?,
                Some(failure) = traffic.failures.recv() => self.reporter.failure(&failure),
                _ = ticks.tick(), if options.rate > 0 => self.reporter.tally(&traffic.counts()),
            }
        }
    }

    async fn await_ready(&mut self, readiness: Readiness) -> Result<Ready, String> {
        match self
            .run_beside_events(timeout(READY_TIMEOUT, readiness.ready()))
            .await?
        {
            Ok(ready) => ready,
            Err(_) => Err(format!(
                "a process was not ready within {} s; see --verbose",
                READY_TIMEOUT.as_secs()
            )),
        }
    }

    /// Handles events until `what` is done; a part that gave up ends the wait.
    async fn run_beside_events<T>(&mut self, what: impl Future<Output = T>) -> Result<T, String> {
        let mut what = std::pin::pin!(what);
        loop {
            tokio::select! {
                done = &mut what => return Ok(done),
                event = self.events.recv() => self.handle_event(event)?,
            }
        }
    }

    fn handle_event(&mut self, event: Option<Event>) -> Result<(), String> {
        match event {
            Some(Event::Line { part, line }) if self.verbose => {
                self.reporter.print_line(&format!("{part}: {line}"));
            }
            Some(Event::Line { .. }) | None => {}
            Some(Event::Exited {
                part,
                how,
                last_lines,
                again_in,
            }) => {
                self.reporter.print_line(&format!(
                    "{part} ended ({how}); restarting it in {again_in:?}"
                ));
                for line in last_lines {
                    self.reporter.print_line(&format!("  {part}: {line}"));
                }
            }
            Some(Event::Back { part }) => self
                .reporter
                .print_line(&format!("{part} is running again")),
            Some(Event::Killed { part }) => {
                self.reporter
                    .print_line(&format!("{part} did not stop in time and was killed"));
            }
            Some(Event::GaveUp { why }) => return Err(why),
        }
        Ok(())
    }

    /// Stops instances first, so that they leave a working mesh; a second signal ends the waiting. The graces of the
    /// three groups add up to 13 s, within the documented 15 s.
    async fn clear(mut self, hurry: impl Future<Output = ()>) {
        self.reporter
            .print_line("stopping: instances, then proxies, then the control plane");
        let Groups {
            instances,
            nodes,
            control,
        } = std::mem::take(&mut self.groups);
        let all = async {
            for group in [instances, nodes, control] {
                for part in &group {
                    part.stop();
                }
                for part in group {
                    part.stopped().await;
                }
            }
        };
        let mut all = std::pin::pin!(all);
        let mut hurry = std::pin::pin!(hurry);
        loop {
            tokio::select! {
                () = &mut all => return,
                () = &mut hurry, if !self.environment.hurry.is_cancelled() => self.environment.hurry.cancel(),
                event = self.events.recv() => {
                    let _ = self.handle_event(event);
                }
            }
        }
    }
}

fn address_of(ready: &Ready, part: &str, key: &str) -> Result<SocketAddr, String> {
    ready
        .address(key)
        .ok_or_else(|| format!("the ready line of the {part} has no address for {key}"))
}

fn node_addresses(
    name: &str,
    services_dir: PathBuf,
    ready: &Ready,
) -> Result<NodeAddresses, String> {
    Ok(NodeAddresses {
        name: name.to_owned(),
        outbound: address_of(ready, name, "outbound")?,
        agent: address_of(ready, name, "agent")?,
        admin: address_of(ready, name, "admin")?,
        services_dir,
    })
}

/// The name with which this program was called, for command lines to copy.
fn own_name() -> String {
    std::env::args_os().next().map_or_else(
        || "heddle".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}
