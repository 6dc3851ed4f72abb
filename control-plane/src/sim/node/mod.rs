//! The simulated nodes: the state of each process, and the actions of the simulation on it. `session` is its agent.

use std::collections::BTreeMap;

use heddle_proto::{
    control::v1::{LocalInstance, ProtoService},
    registry::v1::{Health, Instance},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    invariants::{Went, went},
    random::Random,
    simulation::{Simulation, Who, lock},
};

mod session;

use session::Agent;

/// All services serve it, and each claims its path.
pub(super) const SHARED: &str = "shared.v1.Api";

/// Service and id.
pub(super) type Name = (String, String);

/// The state of one process of a node.
pub(super) struct NodeState {
    pub(super) instances: BTreeMap<Name, LocalInstance>,
    pub(super) changed: watch::Sender<u64>,
    pub(super) life: CancellationToken,
    /// The number of addresses used so far.
    ports: u16,
    /// Removals whose acknowledgement it requests.
    removed: Vec<Name>,
    /// Instances that were removed and not registered again: address and cause. Never cleared, because a run is short.
    gone: BTreeMap<Name, (String, String)>,
    /// The number of removed instances.
    count: usize,
}

impl NodeState {
    fn new() -> Self {
        Self {
            instances: BTreeMap::new(),
            changed: watch::Sender::new(0),
            life: CancellationToken::new(),
            ports: 0,
            removed: Vec::new(),
            gone: BTreeMap::new(),
            count: 0,
        }
    }

    fn add(&mut self, node: usize, process: u32, name: &Name) {
        self.ports += 1;
        let local = LocalInstance {
            instance: Some(Instance {
                service: name.0.clone(),
                namespace: "default".to_owned(),
                id: name.1.clone(),
                version: "v1".to_owned(),
                address: format!("10.{node}.{process}.1:{}", 20_000 + self.ports),
                weight: 1,
                protocol: 1,
                ..Instance::default()
            }),
            health: Health::Healthy.into(),
            protos: [&format!("{}.v1.Api", name.0), SHARED]
                .map(|name| ProtoService {
                    name: name.to_owned(),
                    idempotent_methods: vec![],
                })
                .into(),
            ..LocalInstance::default()
        };
        self.instances.insert(name.clone(), local);
    }

    /// Every second instance is removed without a request.
    fn remove(&mut self, name: &Name) -> Option<(String, Went)> {
        let address = self.instances.remove(name)?.instance?.address;
        self.count += 1;
        let cause = match self.count % 2 {
            0 => String::new(),
            _ => format!("{address} is lost"),
        };
        self.gone
            .insert(name.clone(), (address.clone(), cause.clone()));
        let how = if cause.is_empty() {
            Went::Asked
        } else {
            Went::Lost(cause)
        };
        Some((address, how))
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

/// Starts a new process of a node with these instances; it becomes the node's rightful process.
pub(super) fn start(simulation: &Simulation, random: Random, node: usize, names: &[Name]) {
    let process = {
        let mut rightful = lock(&simulation.rightful);
        let process = rightful.entry(node).or_insert(0);
        *process += 1;
        *process
    };
    let who = Who::Node(node, process);
    let mut state = NodeState::new();
    for name in names {
        state.add(node, process, name);
    }
    simulation.log(format_args!("{who} starts with {} instances", names.len()));
    let agent = Agent {
        simulation: simulation.clone(),
        random,
        who,
        life: state.life.clone(),
        changes: state.changed.subscribe(),
        epoch: 0,
        attempts: 0,
        seen: 0,
    };
    lock(&simulation.nodes).insert(who, state);
    tokio::spawn(agent.run());
}

/// Starts a process, unless another one of the node was started meanwhile.
pub(super) fn start_again(simulation: &Simulation, random: Random, node: usize, names: &[Name]) {
    let is_of_it = |who: &Who| matches!(who, Who::Node(n, _) if *n == node);
    let lives = lock(&simulation.nodes).keys().any(is_of_it);
    if !lives {
        start(simulation, random, node, names);
    }
}

pub(super) fn is_rightful(simulation: &Simulation, who: Who) -> bool {
    let Who::Node(node, process) = who else {
        return false;
    };
    lock(&simulation.rightful).get(&node) == Some(&process)
}

/// kill -9 of the agent and of all that runs beside it.
pub(super) fn kill(simulation: &Simulation, who: Who) {
    if let Some(state) = lock(&simulation.nodes).remove(&who) {
        simulation.log(format_args!("{who} is killed"));
        state.life.cancel();
    }
}

pub(super) fn register(simulation: &Simulation, who: Who, name: &Name) {
    let Who::Node(node, process) = who else {
        return;
    };
    if let Some(state) = lock(&simulation.nodes).get_mut(&who)
        && !state.instances.contains_key(name)
    {
        simulation.log(format_args!("{who} registers {}/{}", name.0, name.1));
        if let Some((address, _)) = state.gone.remove(name) {
            went(simulation, &address, Went::BackAgain);
        }
        state.add(node, process, name);
        state.notify();
    }
}

pub(super) fn deregister(simulation: &Simulation, who: Who, name: &Name) {
    if let Some(state) = lock(&simulation.nodes).get_mut(&who)
        && let Some((address, how)) = state.remove(name)
    {
        simulation.log(format_args!("{who} deregisters {}/{}", name.0, name.1));
        went(simulation, &address, how);
        state.removed.push(name.clone());
        state.notify();
    }
}

pub(super) fn set_health(simulation: &Simulation, who: Who, name: &Name, health: Health) {
    if let Some(state) = lock(&simulation.nodes).get_mut(&who)
        && let Some(local) = state.instances.get_mut(name)
    {
        simulation.log(format_args!(
            "{who}: {}/{} is {}",
            name.0,
            name.1,
            health.as_str_name()
        ));
        local.set_health(health);
        state.notify();
    }
}
