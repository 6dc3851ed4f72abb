//! The node session: tells the control plane what runs here. Views of the instances come in as differences to what was
//! acknowledged last, so nothing is lost or sent twice however long the control plane is away; answers about removals
//! go out. Reconnects for ever over several replicas; what other nodes run comes by xDS, not here.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use heddle_proto::control::v1::{
    Beat, Change, ControlMessage, Hello, NodeMessage, RemovalAnswer, RemovalQuery, SchemaUpload,
    Welcome, ack, control_message, node_message, node_session_client::NodeSessionClient,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;
use tracing::{error, info, warn};

use super::{
    Agent, book::Views, key::InstanceKey, reflect::status_words, schema::MAX_SCHEMA_BYTES,
};
use crate::{
    retry::{Retry, any_of, jittered},
    xds::dial,
};

/// Who this node is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub node: String,
    /// Random, new with each process start.
    pub process_id: String,
    pub advertise: String,
    pub region: String,
    pub zone: String,
}

/// How the session stands, for readiness, `/config` and `Deregister`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionStatus {
    /// No control plane is configured.
    Off,
    /// Not connected, and why.
    Connecting(String),
    /// Connected to this replica.
    Connected(String),
    /// Another process has taken this node's name; its words.
    Superseded(String),
}

/// What became of a removal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    pub acknowledged: bool,
    /// Clients that had not acknowledged.
    pub unacknowledged: Vec<String>,
}

struct Removal {
    key: InstanceKey,
    /// The change of the agent that took it out.
    version: u64,
    until: Instant,
    answer: oneshot::Sender<Acknowledged>,
}

/// Asks the session. Clones are one.
#[derive(Clone)]
pub struct SessionHandle {
    removals: mpsc::Sender<Removal>,
    status: watch::Receiver<SessionStatus>,
}

/// Removals asked for and not yet answered; over this they are answered as not acknowledged.
const MAX_REMOVALS: usize = 256;
/// From dialling to Welcome.
const OPENING: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(3);
/// A name taken by another living process is not fought for.
const SUPERSEDED_RETRY: Duration = Duration::from_secs(15);

impl SessionHandle {
    /// The status now; wakes on each change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<SessionStatus> {
        self.status.clone()
    }

    /// Waits, within bounds, until every client has acknowledged that the instance is gone. With no control plane at
    /// hand the answer comes at once.
    pub async fn removal(
        &self,
        key: &InstanceKey,
        version: u64,
        max_wait: Duration,
    ) -> Acknowledged {
        let away = |why: &str| Acknowledged {
            acknowledged: false,
            unacknowledged: vec![why.to_owned()],
        };
        match &*self.status.borrow() {
            // This node is the whole mesh, and its own table has changed.
            SessionStatus::Off => {
                return Acknowledged {
                    acknowledged: true,
                    unacknowledged: Vec::new(),
                };
            }
            SessionStatus::Connected(_) => {}
            _ => return away("(the control plane is not connected)"),
        }
        let (answer, answered) = oneshot::channel();
        let removal = Removal {
            key: key.clone(),
            version,
            until: Instant::now() + max_wait,
            answer,
        };
        if self.removals.try_send(removal).is_err() {
            return away("(too many removals wait already)");
        }
        // The control plane keeps to max_wait; the margin is for the way.
        match timeout(max_wait + Duration::from_millis(500), answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => away("(the session broke)"),
            Err(_) => away("(the control plane did not answer in time)"),
        }
    }
}

/// The session's task.
pub struct Session {
    agent: Agent,
    identity: Identity,
    urls: Vec<String>,
    revision: Arc<AtomicU64>,
    epoch: u64,
    removals: mpsc::Receiver<Removal>,
    status: watch::Sender<SessionStatus>,
}

/// How one connection ended.
enum End {
    /// Try again.
    Broken(String),
    /// Another process of this name lives.
    Superseded(String),
}

impl Session {
    /// `revision` is the newest one seen on any stream. Without URLs it only answers removals.
    #[must_use]
    pub fn new(
        agent: Agent,
        identity: Identity,
        urls: Vec<String>,
        revision: Arc<AtomicU64>,
    ) -> (Self, SessionHandle) {
        let (ask, removals) = mpsc::channel(MAX_REMOVALS);
        let first = if urls.is_empty() {
            SessionStatus::Off
        } else {
            SessionStatus::Connecting("not tried yet".into())
        };
        let status = watch::Sender::new(first);
        let handle = SessionHandle {
            removals: ask,
            status: status.subscribe(),
        };
        (
            Self {
                agent,
                identity,
                urls,
                revision,
                epoch: 0,
                removals,
                status,
            },
            handle,
        )
    }

    /// Where other nodes reach this one; known only once inbound is bound.
    pub fn set_advertise(&mut self, advertise: String) {
        self.identity.advertise = advertise;
    }

    /// Connects, serves, and connects again, for ever.
    pub async fn run(mut self) {
        if self.urls.is_empty() {
            return;
        }
        let mut next = any_of(self.urls.len());
        let mut retry = Retry::new(FIRST_RETRY, LAST_RETRY);
        loop {
            let url = self
                .urls
                .get(next % self.urls.len())
                .cloned()
                .unwrap_or_default();
            next = next.wrapping_add(1);
            let started = Instant::now();
            let end = match self.connect(&url).await {
                Ok(open) => self.serve(open).await,
                Err(end) => end,
            };
            if started.elapsed() > OPENING {
                retry.reset();
            }
            let pause = match end {
                End::Broken(why) => {
                    self.tell_broken(&url, why);
                    retry.wait()
                }
                End::Superseded(by) => {
                    error!(
                        "another process runs as node \"{}\" ({by}): this one serves on, but its instances are not in \
                         the mesh; stop one of the two or give it another --node",
                        self.identity.node
                    );
                    self.status.send_replace(SessionStatus::Superseded(by));
                    jittered(SUPERSEDED_RETRY, 0.8..1.2)
                }
            };
            self.refuse_removals();
            sleep(pause).await;
        }
    }

    /// One line when it breaks and when its reason changes, not one per attempt.
    fn tell_broken(&self, url: &str, why: String) {
        let known = matches!(&*self.status.borrow(), SessionStatus::Connecting(old) if *old == why);
        if !known {
            warn!(
                "the control plane at {url} is not reachable: {why}; serving on and trying again every 0.25 to 3 s"
            );
            self.status.send_replace(SessionStatus::Connecting(why));
        }
    }

    fn refuse_removals(&mut self) {
        while let Ok(removal) = self.removals.try_recv() {
            let unacknowledged = vec!["(the control plane is not connected)".to_owned()];
            let _ = removal.answer.send(Acknowledged {
                acknowledged: false,
                unacknowledged,
            });
        }
    }

    async fn connect(&mut self, url: &str) -> Result<Open, End> {
        let opening = async {
            let channel = dial(url).await.map_err(End::Broken)?;
            let (requests, stream) = mpsc::channel(16);
            let (version, views) = self.agent.views();
            let hello = self.hello(&views);
            // Room for it was made a line above.
            let _ = requests.try_send(NodeMessage {
                message: Some(node_message::Message::Hello(hello)),
            });
            let mut client = NodeSessionClient::new(channel);
            let opened = client
                .open(ReceiverStream::new(stream))
                .await
                .map_err(|s| self.end_of(&s))?;
            let mut responses = opened.into_inner();
            let first = responses.message().await.map_err(|s| self.end_of(&s))?;
            let Some(ControlMessage {
                message: Some(control_message::Message::Welcome(welcome)),
            }) = first
            else {
                return Err(End::Broken(
                    "it answered something else than Welcome".into(),
                ));
            };
            Ok(Open {
                requests,
                responses,
                welcome,
                version,
                views,
            })
        };
        match timeout(OPENING, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(End::Broken(format!("no Welcome within {OPENING:?}"))),
        }
    }

    fn hello(&self, views: &Views) -> Hello {
        Hello {
            node: self.identity.node.clone(),
            process_id: self.identity.process_id.clone(),
            epoch: self.epoch,
            advertise: self.identity.advertise.clone(),
            region: self.identity.region.clone(),
            zone: self.identity.zone.clone(),
            instances: views.values().map(|v| v.to_local()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.revision.load(Ordering::Relaxed),
        }
    }

    fn end_of(&self, status: &Status) -> End {
        let info = status.get_details_error_info();
        if status.code() == Code::Aborted && info.is_some_and(|i| i.reason == "SUPERSEDED") {
            return End::Superseded(status.message().to_owned());
        }
        End::Broken(status_words(status))
    }

    async fn serve(&mut self, open: Open) -> End {
        let Open {
            requests,
            responses,
            welcome,
            version,
            views,
        } = open;
        self.epoch = welcome.epoch;
        self.revision.fetch_max(welcome.revision, Ordering::Relaxed);
        info!(replica = %welcome.replica, epoch = welcome.epoch, instances = views.len(), "session with the control plane");
        self.status
            .send_replace(SessionStatus::Connected(welcome.replica.clone()));
        let ttl = span(welcome.lease_ttl, Duration::from_secs(10));
        let beat = span(welcome.renew_interval, Duration::from_secs(3));
        let mut stream = Stream {
            requests,
            responses,
            ttl,
            heard: Instant::now(),
            sequence: 0,
            beats: 0,
            acknowledged: version,
            sent: views,
            in_flight: None,
            waiting: Vec::new(),
            asked: BTreeMap::new(),
            asks: 0,
        };
        if let Err(why) = stream.upload(&self.agent, &welcome.missing_schemas).await {
            return End::Broken(why);
        }
        match self.drive(&mut stream, beat).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn drive(
        &mut self,
        stream: &mut Stream,
        beat: Duration,
    ) -> Result<std::convert::Infallible, End> {
        let mut changes = self.agent.changes();
        let mut beats = tokio::time::interval(beat);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            stream.step(&self.agent).await.map_err(End::Broken)?;
            tokio::select! {
                message = stream.responses.message() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return Err(End::Broken("it ended the session".into())),
                        Err(status) => return Err(self.end_of(&status)),
                    };
                    let missing = stream.take(message, &self.revision);
                    stream.upload(&self.agent, &missing).await.map_err(End::Broken)?;
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Err(End::Broken("this proxy stops".into()));
                    }
                }
                removal = self.removals.recv() => {
                    // Over the bound it is dropped, and with it answered.
                    if let Some(removal) = removal && stream.waiting.len() < MAX_REMOVALS {
                        stream.waiting.push(removal);
                    }
                }
                _ = beats.tick() => stream.beat().await.map_err(End::Broken)?,
            }
        }
    }
}

/// An opened session: what was sent with Hello is what the control plane has.
struct Open {
    requests: mpsc::Sender<NodeMessage>,
    responses: Streaming<ControlMessage>,
    welcome: Welcome,
    version: u64,
    views: Views,
}

/// One connection's state.
struct Stream {
    requests: mpsc::Sender<NodeMessage>,
    responses: Streaming<ControlMessage>,
    ttl: Duration,
    /// When the control plane last said anything.
    heard: Instant,
    sequence: u64,
    beats: u64,
    /// The agent's change up to which all is durable there.
    acknowledged: u64,
    /// What it has, or will have once `in_flight` is acknowledged.
    sent: Views,
    /// The Change under way: its sequence and the agent's change that it brings up to. One at a time: what
    /// happens meanwhile goes into the next one.
    in_flight: Option<(u64, u64)>,
    waiting: Vec<Removal>,
    asked: BTreeMap<u64, oneshot::Sender<Acknowledged>>,
    asks: u64,
}

impl Stream {
    /// Sends what is to be sent: the next difference, and the questions whose removals are durable.
    async fn step(&mut self, agent: &Agent) -> Result<(), String> {
        if self.in_flight.is_none() {
            let (version, now) = agent.views();
            let change = difference(&self.sent, &now);
            self.sent = now;
            if change.upserted.is_empty() && change.removed.is_empty() {
                self.acknowledged = version;
            } else {
                self.sequence += 1;
                self.in_flight = Some((self.sequence, version));
                let change = Change {
                    sequence: self.sequence,
                    ..change
                };
                self.send(node_message::Message::Change(change)).await?;
            }
        }
        let acknowledged = self.acknowledged;
        let (ready, waiting) = self
            .waiting
            .drain(..)
            .partition(|r| r.version <= acknowledged);
        self.waiting = waiting;
        for removal in ready {
            self.ask(removal).await?;
        }
        self.asked.retain(|_, answer| !answer.is_closed());
        Ok(())
    }

    async fn ask(&mut self, removal: Removal) -> Result<(), String> {
        if self.asked.len() >= MAX_REMOVALS {
            return Ok(());
        }
        self.asks += 1;
        let left = removal.until.saturating_duration_since(Instant::now());
        let query = RemovalQuery {
            id: self.asks,
            instance: Some(removal.key.to_ref()),
            max_wait: prost_types::Duration::try_from(left).ok(),
        };
        self.asked.insert(self.asks, removal.answer);
        self.send(node_message::Message::RemovalQuery(query)).await
    }

    /// Takes one message; the schemas that it names as missing.
    fn take(&mut self, message: ControlMessage, revision: &AtomicU64) -> Vec<String> {
        self.heard = Instant::now();
        match message.message {
            Some(control_message::Message::Ack(ack)) => {
                revision.fetch_max(ack.revision, Ordering::Relaxed);
                if let (Some(ack::Of::Change(sequence)), Some((wanted, version))) =
                    (ack.of, self.in_flight)
                    && sequence >= wanted
                {
                    self.in_flight = None;
                    self.acknowledged = version;
                }
                ack.missing_schemas
            }
            Some(control_message::Message::RemovalAnswer(RemovalAnswer {
                id,
                acknowledged,
                unacknowledged,
            })) => {
                if let Some(answer) = self.asked.remove(&id) {
                    let _ = answer.send(Acknowledged {
                        acknowledged,
                        unacknowledged,
                    });
                }
                Vec::new()
            }
            Some(control_message::Message::Welcome(_)) | None => Vec::new(),
        }
    }

    async fn beat(&mut self) -> Result<(), String> {
        if self.heard.elapsed() > self.ttl {
            return Err(format!("it has been silent for {:?}", self.ttl));
        }
        self.beats += 1;
        self.send(node_message::Message::Beat(Beat {
            sequence: self.beats,
        }))
        .await
    }

    async fn upload(&mut self, agent: &Agent, missing: &[String]) -> Result<(), String> {
        for sha256 in missing {
            // Gone meanwhile: nobody needs it any more.
            let Some(schema) = agent
                .schema(sha256)
                .filter(|s| s.bytes.len() <= MAX_SCHEMA_BYTES)
            else {
                continue;
            };
            let upload = SchemaUpload {
                sha256: schema.sha256,
                file_descriptor_set: schema.bytes,
            };
            self.send(node_message::Message::Schema(upload)).await?;
        }
        Ok(())
    }

    async fn send(&self, message: node_message::Message) -> Result<(), String> {
        match timeout(
            self.ttl,
            self.requests.send(NodeMessage {
                message: Some(message),
            }),
        )
        .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("it ended the session".into()),
            Err(_) => Err(format!("it has read nothing for {:?}", self.ttl)),
        }
    }
}

/// What turns `sent` into `now`.
fn difference(sent: &Views, now: &Views) -> Change {
    let other = |key: &InstanceKey, view| sent.get(key).is_none_or(|old| !Arc::ptr_eq(old, view));
    Change {
        sequence: 0,
        upserted: now
            .iter()
            .filter(|(key, view)| other(key, view))
            .map(|(key, view)| (sent.get(key).map(|v| v.to_local()), view.to_local()))
            // Another registration of the same instance is no change for the mesh.
            .filter(|(old, new)| old.as_ref() != Some(new))
            .map(|(_, new)| new)
            .collect(),
        removed: sent
            .keys()
            .filter(|key| !now.contains_key(*key))
            .map(InstanceKey::to_ref)
            .collect(),
    }
}

fn span(given: Option<prost_types::Duration>, default: Duration) -> Duration {
    let given = given.and_then(|d| Duration::try_from(d).ok());
    given
        .filter(|d| (Duration::from_millis(10)..Duration::from_secs(3600)).contains(d))
        .unwrap_or(default)
}
