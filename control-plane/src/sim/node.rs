//! A simulated node: an agent that follows the protocol of node sessions as ours does (`data-plane/src/agent/session`),
//! with instances that are registered and removed.

use std::{collections::BTreeMap, time::Duration};

use heddle_proto::{
    control::v1::{
        Beat, Change, ControlMessage, GoneInstance, Hello, InstanceRef, LocalInstance, NodeMessage,
        ProtoService, RemovalQuery, ack, control_message, node_message,
    },
    registry::v1::{Health, Instance},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    invariants::{Went, went},
    link::{Socket, dial},
    random::Random,
    simulation::{Simulation, Who, lock},
};

const OPENING: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(3);
/// As in the agent: it leaves a replica that is silent for half a lease.
const SILENCE: Duration = Duration::from_secs(5);
const SUPERSEDED_PAUSE: Duration = Duration::from_secs(15);

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

    fn tell(&self) {
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
    let mut book = NodeState::new();
    for name in names {
        book.add(node, process, name);
    }
    simulation.say(format_args!("{who} starts with {} instances", names.len()));
    let agent = Agent {
        simulation: simulation.clone(),
        random,
        who,
        life: book.life.clone(),
        changes: book.changed.subscribe(),
        epoch: 0,
        attempts: 0,
        seen: 0,
    };
    lock(&simulation.books).insert(who, book);
    tokio::spawn(agent.run());
}

/// Starts a process, unless another one of the node was started meanwhile.
pub(super) fn start_again(simulation: &Simulation, random: Random, node: usize, names: &[Name]) {
    let is_of_it = |who: &Who| matches!(who, Who::Node(n, _) if *n == node);
    let lives = lock(&simulation.books).keys().any(is_of_it);
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
    if let Some(book) = lock(&simulation.books).remove(&who) {
        simulation.say(format_args!("{who} is killed"));
        book.life.cancel();
    }
}

pub(super) fn register(simulation: &Simulation, who: Who, name: &Name) {
    let Who::Node(node, process) = who else {
        return;
    };
    if let Some(book) = lock(&simulation.books).get_mut(&who)
        && !book.instances.contains_key(name)
    {
        simulation.say(format_args!("{who} registers {}/{}", name.0, name.1));
        if let Some((address, _)) = book.gone.remove(name) {
            went(simulation, &address, Went::BackAgain);
        }
        book.add(node, process, name);
        book.tell();
    }
}

pub(super) fn deregister(simulation: &Simulation, who: Who, name: &Name) {
    if let Some(book) = lock(&simulation.books).get_mut(&who)
        && let Some((address, how)) = book.remove(name)
    {
        simulation.say(format_args!("{who} deregisters {}/{}", name.0, name.1));
        went(simulation, &address, how);
        book.removed.push(name.clone());
        book.tell();
    }
}

pub(super) fn set_health(simulation: &Simulation, who: Who, name: &Name, health: Health) {
    if let Some(book) = lock(&simulation.books).get_mut(&who)
        && let Some(local) = book.instances.get_mut(name)
    {
        simulation.say(format_args!(
            "{who}: {}/{} is {}",
            name.0,
            name.1,
            health.as_str_name()
        ));
        local.set_health(health);
        book.tell();
    }
}

struct Agent {
    simulation: Simulation,
    random: Random,
    who: Who,
    life: CancellationToken,
    changes: watch::Receiver<u64>,
    epoch: u64,
    attempts: u64,
    seen: u64,
}

enum End {
    Broken(String),
    Superseded,
}

impl Agent {
    async fn run(mut self) {
        let life = self.life.clone();
        tokio::select! {
            biased;
            () = life.cancelled() => {}
            () = self.connect_for_ever() => {}
        }
    }

    async fn connect_for_ever(&mut self) {
        let replicas = self.simulation.profile.replicas;
        let mut next = self.random.index(replicas);
        let mut wait = 250;
        loop {
            let replica = next % replicas;
            next += 1;
            let started = Instant::now();
            let opened = match timeout(OPENING, self.open(replica)).await {
                Ok(opened) => opened,
                Err(_) => Err(End::Broken("no Welcome in time".into())),
            };
            let end = match opened {
                Ok((socket, sent)) => self.serve(socket, sent).await,
                Err(end) => end,
            };
            if started.elapsed() > OPENING {
                wait = 250;
            }
            let pause = match end {
                End::Broken(why) => {
                    self.simulation
                        .say(format_args!("{}: session with r{replica}: {why}", self.who));
                    let pause = self.random.millis(wait * 6 / 10..=wait);
                    wait = (wait * 2).min(3000);
                    pause
                }
                End::Superseded => {
                    self.simulation
                        .say(format_args!("{}: superseded", self.who));
                    SUPERSEDED_PAUSE
                }
            };
            sleep(pause).await;
            self.simulation.until_awake(self.who).await;
        }
    }

    fn instances(&self) -> BTreeMap<Name, LocalInstance> {
        let books = lock(&self.simulation.books);
        books
            .get(&self.who)
            .map(|book| book.instances.clone())
            .unwrap_or_default()
    }

    fn gone(&self) -> BTreeMap<Name, (String, String)> {
        let books = lock(&self.simulation.books);
        let book = books.get(&self.who);
        book.map(|book| book.gone.clone()).unwrap_or_default()
    }

    async fn open(&mut self, replica: usize) -> Result<(Talk, BTreeMap<Name, LocalInstance>), End> {
        let Who::Node(node, process) = self.who else {
            return Err(End::Broken("no node".into()));
        };
        let accept = |replica: &super::replica::Replica, requests| {
            replica
                .sessions
                .begin(requests, false, crate::budget::Account::default())
        };
        let mut socket: Talk = dial(
            &self.simulation,
            &mut self.random,
            self.who,
            &self.life,
            replica,
            accept,
        )
        .await
        .map_err(|why| End::Broken(why.into()))?;
        self.changes.mark_unchanged();
        let (instances, gone) = (self.instances(), self.gone());
        self.attempts += 1;
        let hello = Hello {
            node: format!("n{node}"),
            process_id: process_id(node, process),
            epoch: self.epoch,
            attempt: self.attempts,
            advertise: format!("10.{node}.0.1:15008"),
            instances: instances.values().cloned().collect(),
            version: "0.1.0".to_owned(),
            revision: self.seen,
            gone: gone
                .into_iter()
                .map(|(name, (_, cause))| gone_instance(&name, cause))
                .collect(),
            ..Hello::default()
        };
        say(&socket, node_message::Message::Hello(hello)).await?;
        match socket.inn.recv().await {
            Some(Ok(ControlMessage {
                message: Some(control_message::Message::Welcome(welcome)),
            })) => {
                self.simulation.say(format_args!(
                    "{}: welcome by r{replica}, epoch {}, revision {}",
                    self.who, welcome.epoch, welcome.revision
                ));
                self.epoch = welcome.epoch;
                self.seen = self.seen.max(welcome.revision);
                Ok((socket, instances))
            }
            Some(Err(status)) => Err(end_of(&status)),
            _ => Err(End::Broken("it ended the session".into())),
        }
    }

    async fn serve(&mut self, mut socket: Talk, mut sent: BTreeMap<Name, LocalInstance>) -> End {
        let mut beats = interval(RENEW);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut sequence, mut beat, mut queries) = (0, 0, 0);
        let mut in_flight = false;
        let mut heard = Instant::now();
        loop {
            self.simulation.until_awake(self.who).await;
            if !in_flight {
                let now = self.instances();
                let change = difference(&sent, &now, &self.gone());
                sent = now;
                if !(change.upserted.is_empty() && change.removed.is_empty()) {
                    sequence += 1;
                    in_flight = true;
                    let change = Change { sequence, ..change };
                    if let Err(end) = say(&socket, node_message::Message::Change(change)).await {
                        return end;
                    }
                } else if let Err(end) = self.ask_removals(&socket, &mut queries).await {
                    return end;
                }
            }
            tokio::select! {
                biased;
                message = socket.inn.recv() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(message)) => {
                            if let Some(control_message::Message::Ack(ack)) = message.message {
                                self.seen = self.seen.max(ack.revision);
                                in_flight &= ack.of != Some(ack::Of::Change(sequence));
                            }
                        }
                        Some(Err(status)) => return end_of(&status),
                        None => return End::Broken("it ended the session".into()),
                    }
                }
                _ = self.changes.changed() => {}
                () = sleep_until(heard + SILENCE) => return End::Broken("it is silent".into()),
                _ = beats.tick() => {
                    beat += 1;
                    let message = node_message::Message::Beat(Beat { sequence: beat });
                    if let Err(end) = say(&socket, message).await {
                        return end;
                    }
                }
            }
        }
    }

    async fn ask_removals(&self, socket: &Talk, queries: &mut u64) -> Result<(), End> {
        let removed = {
            let mut books = lock(&self.simulation.books);
            books
                .get_mut(&self.who)
                .map(|book| std::mem::take(&mut book.removed))
        };
        for (service, id) in removed.unwrap_or_default() {
            if self
                .instances()
                .contains_key(&(service.clone(), id.clone()))
            {
                continue;
            }
            *queries += 1;
            let query = RemovalQuery {
                id: *queries,
                instance: Some(InstanceRef {
                    service,
                    namespace: "default".to_owned(),
                    id,
                }),
                max_wait: None,
            };
            say(socket, node_message::Message::RemovalQuery(query)).await?;
        }
        Ok(())
    }
}

type Talk = Socket<NodeMessage, ControlMessage>;

async fn say(socket: &Talk, message: node_message::Message) -> Result<(), End> {
    let message = NodeMessage {
        message: Some(message),
    };
    match timeout(SILENCE, socket.out.send(Ok(message))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Broken("it ended the session".into())),
        Err(_) => Err(End::Broken("it reads nothing".into())),
    }
}

/// The id shows which process wrote something.
fn process_id(node: usize, process: u32) -> String {
    format!("n{node}-{process}")
}

fn end_of(status: &Status) -> End {
    if status.code() == Code::Aborted && status.message().contains("is held by process") {
        return End::Superseded;
    }
    End::Broken(format!("{:?}: {}", status.code(), status.message()))
}

fn difference(
    sent: &BTreeMap<Name, LocalInstance>,
    now: &BTreeMap<Name, LocalInstance>,
    gone: &BTreeMap<Name, (String, String)>,
) -> Change {
    let cause = |name: &Name| gone.get(name).map(|(_, cause)| cause.clone());
    let upserted = now
        .iter()
        .filter(|(name, local)| sent.get(*name) != Some(local));
    let removed = sent.keys().filter(|name| !now.contains_key(*name));
    Change {
        sequence: 0,
        upserted: upserted.map(|(_, local)| local.clone()).collect(),
        removed: removed
            .map(|name| gone_instance(name, cause(name).unwrap_or_default()))
            .collect(),
    }
}

fn gone_instance((service, id): &Name, cause: String) -> GoneInstance {
    GoneInstance {
        service: service.clone(),
        namespace: "default".to_owned(),
        id: id.clone(),
        cause,
    }
}
