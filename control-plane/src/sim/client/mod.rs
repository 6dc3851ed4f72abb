//! The simulated xDS clients: our proxies and stock clients, in either variant of the protocol. They subscribe,
//! acknowledge, reject, fall behind and reconnect. The invariants can read what a client has.

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::config::core::v3::Node,
    google::protobuf::{Struct, Value, value::Kind as ValueKind},
};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    invariants,
    link::{Socket, dial},
    random::Random,
    reconnect::Reconnect,
    simulation::{ClientState, Simulation, Who, lock},
};
use crate::{
    access::Caller,
    snapshot::Kind,
    xds::{Delta, Sotw, Variant},
};

mod delta;
mod resources;
mod sotw;

pub(super) use resources::ClientResources;

/// The kind of client: what it requests, and in which variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavor {
    /// Our proxy: clusters and proto services by wildcard, endpoints by name. Delta.
    Proxy,
    /// All of a proxy's types by wildcard. Delta.
    Everything,
    /// Envoy by delta.
    EnvoyDelta,
    /// Envoy by state of the world.
    Envoy,
    /// Stock gRPC: one listener by name and what it refers to. State of the world.
    Grpc,
}

impl Flavor {
    pub(super) const ALL: [Self; 5] = [
        Self::Proxy,
        Self::Grpc,
        Self::Envoy,
        Self::Everything,
        Self::EnvoyDelta,
    ];

    /// Stock clients do not get draining instances.
    pub(super) const fn receives(self, health: i32) -> bool {
        const DRAINING: i32 = 3;
        self.is_proxy() || health != DRAINING
    }

    pub(super) const fn is_proxy(self) -> bool {
        matches!(self, Self::Proxy | Self::Everything)
    }
}

/// Starts a process of a client, with the resources of its predecessor.
pub(super) fn start(simulation: &Simulation, random: Random, n: usize, resources: ClientResources) {
    let life = CancellationToken::new();
    let flavor = resources.flavor;
    simulation.log(format_args!("{} starts: {flavor:?}", Who::Client(n)));
    let state = ClientState {
        resources,
        life: life.clone(),
        connected: None,
        lost_there: CancellationToken::new(),
        rejected: false,
    };
    lock(&simulation.client_states).insert(n, state);
    let client = Client {
        simulation: simulation.clone(),
        random,
        n,
        who: Who::Client(n),
        life,
        flavor,
    };
    tokio::spawn(client.run());
}

/// Kills it. Returns what it has on disk, for the next process.
pub(super) fn kill(simulation: &Simulation, n: usize) -> Option<ClientResources> {
    let state = lock(&simulation.client_states).remove(&n)?;
    simulation.log(format_args!("{} is killed", Who::Client(n)));
    state.life.cancel();
    Some(state.resources)
}

struct Client {
    simulation: Simulation,
    random: Random,
    n: usize,
    who: Who,
    life: CancellationToken,
    flavor: Flavor,
}

/// What a variant of the protocol needs to drive a client.
trait ClientVariant: Variant<Request: Send, Response: Send> + Sized {
    /// What was requested on this stream.
    type Requested: Default + Send;

    fn first(client: &Client, requested: &mut Self::Requested) -> Vec<Self::Request>;
    fn kind(response: &Self::Response) -> Option<Kind>;
    fn revision_of_view(response: &Self::Response) -> Option<u64>;
    /// Applies a response.
    fn apply(
        resources: &mut ClientResources,
        kind: Kind,
        response: &Self::Response,
    ) -> Result<(), String>;
    /// The answer to a response, and the requests that follow it.
    fn answers(
        client: &Client,
        requested: &mut Self::Requested,
        kind: Kind,
        response: &Self::Response,
        rejected: bool,
    ) -> Vec<Self::Request>;
    fn accept(
        replica: &super::replica::Replica,
        caller: Caller,
        requests: ReceiverStream<Result<Self::Request, Status>>,
    ) -> ReceiverStream<Result<Self::Response, Status>> {
        replica.ads.begin::<Self>(caller, requests)
    }
}

impl Client {
    async fn run(mut self) {
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
            let why = match self.flavor {
                Flavor::Envoy | Flavor::Grpc => self.run_stream::<Sotw>(replica).await,
                Flavor::Proxy | Flavor::Everything | Flavor::EnvoyDelta => {
                    self.run_stream::<Delta>(replica).await
                }
            };
            self.state(|state| state.connected = None);
            self.simulation
                .log(format_args!("{}: stream of r{replica}: {why}", self.who));
            reconnect.ended(started.elapsed());
            sleep(reconnect.pause(&mut self.random)).await;
            self.simulation.until_awake(self.who).await;
        }
    }

    fn state<R>(&self, look: impl FnOnce(&mut ClientState) -> R) -> Option<R> {
        lock(&self.simulation.client_states)
            .get_mut(&self.n)
            .map(look)
    }

    /// One stream from its first request to its end; returns why it ended.
    async fn run_stream<V: ClientVariant>(&mut self, replica: usize) -> String {
        let caller = self.who.caller();
        let accept = |replica: &super::replica::Replica, requests| {
            V::accept(replica, caller.clone(), requests)
        };
        let opened = dial(
            &self.simulation,
            &mut self.random,
            self.who,
            &self.life,
            replica,
            accept,
        )
        .await;
        let mut socket: Socket<V::Request, V::Response> = match opened {
            Ok(socket) => socket,
            Err(why) => return why.to_owned(),
        };
        let now = self.simulation.now();
        self.state(|state| {
            state.connected = Some((replica, now));
            state.lost_there = socket.lost_there.clone();
            state.rejected = false;
            state.resources.answered.clear();
        });
        let mut requested = V::Requested::default();
        for request in V::first(self, &mut requested) {
            if socket.out.send(Ok(request)).await.is_err() {
                return "it ended the stream".to_owned();
            }
        }
        let mut leave_at = None;
        loop {
            let leave = async {
                match leave_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let response = tokio::select! {
                biased;
                response = socket.inn.recv() => response,
                () = leave => return "it leaves after a rejection".to_owned(),
            };
            let response = match response {
                Some(Ok(response)) => response,
                Some(Err(status)) => return format!("{:?}: {}", status.code(), status.message()),
                None => return "it ended the stream".to_owned(),
            };
            if self.random.chance(10) {
                // It is busy with something else.
                sleep(self.random.millis(100..=3000)).await;
            }
            self.simulation.until_awake(self.who).await;
            let rejected = self.on_response::<V>(&response);
            if rejected && leave_at.is_none() {
                let pause = self.random.millis(100..=3000);
                leave_at = Some(Instant::now() + pause);
            }
            let Some(kind) = V::kind(&response) else {
                continue;
            };
            for request in V::answers(self, &mut requested, kind, &response, rejected) {
                if socket.out.send(Ok(request)).await.is_err() {
                    return "it ended the stream".to_owned();
                }
            }
        }
    }

    /// Applies a response or rejects it, at random.
    fn on_response<V: ClientVariant>(&mut self, response: &V::Response) -> bool {
        let Some(kind) = V::kind(response) else {
            self.simulation.broken(
                "protocol",
                format_args!("{}: a type that was not requested", self.who),
            );
            return true;
        };
        let revision = V::revision_of_view(response).unwrap_or(0);
        let rejected = self.random.chance(6);
        let done = self.state(|state| {
            invariants::on_revision(
                &self.simulation,
                self.who,
                &mut state.resources,
                kind,
                revision,
            );
            if rejected {
                state.rejected = true;
                return Ok::<_, String>(Vec::new());
            }
            state.resources.answered.insert(kind);
            let before = state.resources.addresses();
            V::apply(&mut state.resources, kind, response)?;
            invariants::on_taken(
                &self.simulation,
                self.who,
                &before,
                &state.resources.addresses(),
            );
            // After a rejection, missing resources are the client's own fault.
            Ok(if state.rejected {
                vec![]
            } else {
                state.resources.faults()
            })
        });
        let verb = if rejected { "rejects" } else { "takes" };
        let size = prost::Message::encoded_len(response);
        self.simulation.log(format_args!(
            "{}: {verb} {} at revision {revision} ({size} bytes)",
            self.who,
            kind.word()
        ));
        match done {
            Some(Ok(faults)) => {
                for fault in faults {
                    self.simulation.broken(
                        "I6 make before break",
                        format_args!("{}: {fault}", self.who),
                    );
                }
            }
            Some(Err(why)) => self
                .simulation
                .broken("protocol", format_args!("{}: {why}", self.who)),
            None => {}
        }
        rejected
    }

    /// The node for the first request of a stream.
    fn node(&self) -> Node {
        let seen = self.state(|state| state.resources.seen).unwrap_or(0);
        let mut words = vec![];
        if self.flavor.is_proxy() {
            words.push(("role", "proxy".to_owned()));
            words.push(("revision", seen.to_string()));
        }
        if matches!(self.flavor, Flavor::Envoy | Flavor::EnvoyDelta) {
            words.push(("heddle.outbound", "127.0.0.1:15001".to_owned()));
        }
        let value = |text: String| Value {
            kind: Some(ValueKind::StringValue(text)),
        };
        let fields = words
            .into_iter()
            .map(|(key, text)| (key.to_owned(), value(text)));
        Node {
            id: format!("c{}", self.n),
            metadata: Some(Struct {
                fields: fields.collect(),
            }),
            ..Node::default()
        }
    }
}

/// `<revision>`, `<revision>+` or `<revision>/<hash>`.
pub(super) fn revision_of(version: &str) -> Option<u64> {
    version.split(['/', '+']).next()?.parse().ok()
}

type Versions = BTreeMap<String, String>;
