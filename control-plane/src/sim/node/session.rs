//! The agent of a simulated node. It follows the protocol of node sessions as the proxy's does
//! (`data-plane/src/agent/session`).

use std::{collections::BTreeMap, time::Duration};

use heddle_proto::control::v1::{
    Beat, Change, ControlMessage, GoneInstance, Hello, InstanceRef, LocalInstance, NodeMessage,
    RemovalQuery, ack, control_message, node_message,
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::Name;
use crate::sim::{
    link::{Socket, dial},
    random::Random,
    reconnect::Reconnect,
    replica::Replica,
    simulation::{Simulation, Who, lock},
};

const OPENING: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(3);
/// As in the agent: it leaves a replica that is silent for half a lease.
const SILENCE: Duration = Duration::from_secs(5);
const SUPERSEDED_PAUSE: Duration = Duration::from_secs(15);

pub(super) struct Agent {
    pub(super) simulation: Simulation,
    pub(super) random: Random,
    pub(super) who: Who,
    pub(super) life: CancellationToken,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) epoch: u64,
    pub(super) attempts: u64,
    pub(super) seen: u64,
}

enum End {
    Broken(String),
    Superseded,
}

impl Agent {
    pub(super) async fn run(mut self) {
        let life = self.life.clone();
        tokio::select! {
            biased;
            () = life.cancelled() => {}
            () = self.keep_connected() => {}
        }
    }

    async fn keep_connected(&mut self) {
        let replicas = self.simulation.profile.replicas;
        let mut reconnect = Reconnect::new(replicas, &mut self.random);
        loop {
            let replica = reconnect.replica();
            let started = Instant::now();
            let opened = match timeout(OPENING, self.open(replica)).await {
                Ok(opened) => opened,
                Err(_) => Err(End::Broken("no Welcome in time".into())),
            };
            let end = match opened {
                Ok((socket, sent)) => self.serve(socket, sent).await,
                Err(end) => end,
            };
            reconnect.ended(started.elapsed());
            let pause = match end {
                End::Broken(why) => {
                    self.simulation
                        .log(format_args!("{}: session with r{replica}: {why}", self.who));
                    reconnect.pause(&mut self.random)
                }
                End::Superseded => {
                    self.simulation
                        .log(format_args!("{}: superseded", self.who));
                    SUPERSEDED_PAUSE
                }
            };
            sleep(pause).await;
            self.simulation.until_awake(self.who).await;
        }
    }

    fn instances(&self) -> BTreeMap<Name, LocalInstance> {
        let nodes = lock(&self.simulation.nodes);
        nodes
            .get(&self.who)
            .map(|state| state.instances.clone())
            .unwrap_or_default()
    }

    fn gone(&self) -> BTreeMap<Name, (String, String)> {
        let nodes = lock(&self.simulation.nodes);
        let state = nodes.get(&self.who);
        state.map(|state| state.gone.clone()).unwrap_or_default()
    }

    async fn open(
        &mut self,
        replica: usize,
    ) -> Result<(AgentSocket, BTreeMap<Name, LocalInstance>), End> {
        let Who::Node(node, process) = self.who else {
            return Err(End::Broken("no node".into()));
        };
        let caller = self.who.caller();
        let accept = |replica: &Replica, requests| replica.sessions.begin(requests, &caller);
        let mut socket: AgentSocket = dial(
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
        send(&socket, node_message::Message::Hello(hello)).await?;
        match socket.inn.recv().await {
            Some(Ok(ControlMessage {
                message: Some(control_message::Message::Welcome(welcome)),
            })) => {
                self.simulation.log(format_args!(
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

    async fn serve(
        &mut self,
        mut socket: AgentSocket,
        mut sent: BTreeMap<Name, LocalInstance>,
    ) -> End {
        let mut beats = interval(RENEW);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut sequence, mut beat, mut queries) = (0, 0, 0);
        let mut in_flight = false;
        let mut last_received = Instant::now();
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
                    if let Err(end) = send(&socket, node_message::Message::Change(change)).await {
                        return end;
                    }
                } else if let Err(end) = self.ask_removals(&socket, &mut queries).await {
                    return end;
                }
            }
            tokio::select! {
                biased;
                message = socket.inn.recv() => {
                    last_received = Instant::now();
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
                () = sleep_until(last_received + SILENCE) => return End::Broken("it is silent".into()),
                _ = beats.tick() => {
                    beat += 1;
                    let message = node_message::Message::Beat(Beat { sequence: beat });
                    if let Err(end) = send(&socket, message).await {
                        return end;
                    }
                }
            }
        }
    }

    async fn ask_removals(&self, socket: &AgentSocket, queries: &mut u64) -> Result<(), End> {
        let removed = {
            let mut nodes = lock(&self.simulation.nodes);
            nodes
                .get_mut(&self.who)
                .map(|state| std::mem::take(&mut state.removed))
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
            send(socket, node_message::Message::RemovalQuery(query)).await?;
        }
        Ok(())
    }
}

type AgentSocket = Socket<NodeMessage, ControlMessage>;

async fn send(socket: &AgentSocket, message: node_message::Message) -> Result<(), End> {
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
