//! The node session: reports this node's instances to the control plane. Input: views of the instances. It sends the
//! difference to what was acknowledged last, so nothing is lost or sent twice while the control plane is away. Output:
//! answers about removals. It reconnects without limit, over several replicas. Instances of other nodes come by xDS, not
//! here.

mod handle;
mod stream;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use heddle_pacing::{Backoff, jittered};
use heddle_proto::control::v1::{
    ControlMessage, Hello, LocalInstance, NodeMessage, control_message, node_message,
    node_session_client::NodeSessionClient,
};
use heddle_proto::error_text::status_text;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tracing::{error, info, warn};

use super::{Agent, instance_table::Views, listeners::network_stack, removal_log::Causes};
use crate::control_urls::{Rotation, dial};

use handle::Removal;
pub use handle::{Acknowledged, SessionHandle};
use stream::{Open, Stream, cause_text, span};

/// How this node presents itself.
#[derive(Clone, Debug)]
pub struct Identity {
    pub node: String,
    /// Random, new with each process start.
    pub process_id: String,
    pub advertise: String,
    pub region: String,
    pub zone: String,
}

/// The status of the session, for readiness, `/config` and `Deregister`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionStatus {
    /// No control plane is configured.
    Off,
    /// Not connected, with the reason.
    Connecting(String),
    /// Connected to this replica.
    Connected(String),
    /// Another process has taken this node's name; the control plane's message.
    Superseded(String),
    /// This process is stopping, and has left the node to its successor.
    Ended,
}

/// The most removals that wait for an answer; further ones are answered as not acknowledged.
const MAX_REMOVALS: usize = 256;
/// The time from dialling to Welcome.
const OPENING: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(3);
/// The name belongs to another living process: retry rarely, do not compete for it.
const SUPERSEDED_RETRY: Duration = Duration::from_secs(15);

/// The session's task.
pub struct Session {
    agent: Agent,
    identity: Identity,
    urls: Vec<String>,
    revision: Arc<AtomicU64>,
    epoch: u64,
    /// The number of Hellos so far.
    attempts: u64,
    removals: mpsc::Receiver<Removal>,
    status: watch::Sender<SessionStatus>,
    lost: watch::Sender<Option<Instant>>,
    stop: CancellationToken,
}

/// How one connection ended.
enum End {
    /// Try again.
    Broken(String),
    /// Another living process has this node's name.
    Superseded(String),
    /// This process is stopping, and has reported it to the control plane.
    Stopped,
}

impl Session {
    /// The agent has restored what the last process left. `revision` is the newest one seen on any stream. Without URLs there is no session, only the answer to removals.
    #[must_use]
    pub fn new(
        agent: Agent,
        identity: Identity,
        urls: Vec<String>,
        revision: Arc<AtomicU64>,
    ) -> (Self, SessionHandle) {
        let (requests, removals) = mpsc::channel(MAX_REMOVALS);
        let first = if urls.is_empty() {
            SessionStatus::Off
        } else {
            SessionStatus::Connecting("not tried yet".into())
        };
        let status = watch::Sender::new(first);
        // The last process of this node had a session, which is broken now.
        let lost = watch::Sender::new(agent.had_predecessor().then(Instant::now));
        let stop = CancellationToken::new();
        let handle = SessionHandle {
            stop: stop.clone(),
            removals: requests,
            status: status.subscribe(),
            lost: lost.subscribe(),
        };
        (
            Self {
                agent,
                identity,
                urls,
                revision,
                epoch: 0,
                attempts: 0,
                removals,
                status,
                lost,
                stop,
            },
            handle,
        )
    }

    /// Sets the address at which other nodes reach this one; it is known only once inbound is bound.
    pub fn set_advertise(&mut self, advertise: String) {
        self.identity.advertise = advertise;
    }

    /// Connects and serves, again and again, until its process stops.
    pub async fn run(mut self) {
        self.connect_until_stopped().await;
        if self.stop.is_cancelled() {
            self.status.send_replace(SessionStatus::Ended);
        }
    }

    async fn connect_until_stopped(&mut self) {
        let stop = self.stop.clone();
        let urls = std::mem::take(&mut self.urls);
        let Some(mut replicas) = Rotation::new(&urls) else {
            return;
        };
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            let url = replicas.take();
            let started = Instant::now();
            let Some(opened) = stop.run_until_cancelled(self.connect(url)).await else {
                return;
            };
            let end = match opened {
                Ok(open) => {
                    let end = self.serve(open).await;
                    self.agent.session_open(false);
                    self.lost.send_replace(Some(Instant::now()));
                    end
                }
                Err(end) => end,
            };
            if started.elapsed() > OPENING {
                backoff.reset();
            }
            let pause = match end {
                End::Broken(why) => {
                    self.log_broken(url, why);
                    backoff.fail()
                }
                End::Superseded(by) => {
                    error!(
                        "another process runs as node \"{}\" ({by}): this one keeps serving, but \
                         its instances are not in the mesh; stop one of the two or give it \
                         another --node",
                        self.identity.node
                    );
                    self.status.send_replace(SessionStatus::Superseded(by));
                    jittered(SUPERSEDED_RETRY, 0.8..1.2)
                }
                End::Stopped => return,
            };
            self.let_go_of_removals();
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// Logs one line when the session breaks and one when the reason changes, not one per attempt.
    fn log_broken(&self, url: &str, why: String) {
        let known = matches!(&*self.status.borrow(), SessionStatus::Connecting(old) if *old == why);
        if !known {
            warn!(
                "cannot reach the control plane at {url}: {why}; calls continue, retrying every \
                 0.25 to 3 s"
            );
            self.status.send_replace(SessionStatus::Connecting(why));
        }
    }

    /// Drops the waiting removals. Their callers see that the session broke and decide whether to ask the next one.
    fn let_go_of_removals(&mut self) {
        while self.removals.try_recv().is_ok() {}
    }

    async fn connect(&mut self, url: &str) -> Result<Open, End> {
        let opening = async {
            let channel = dial(url).await.map_err(End::Broken)?;
            let (requests, stream) = mpsc::channel(16);
            let (version, views, gone) = self.agent.unreported(0);
            let hello = self.hello(&views, gone);
            // The channel is new and empty, so it has room.
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
                return Err(End::Broken("it did not answer with Welcome".into()));
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

    fn hello(&mut self, views: &Views, gone: Causes) -> Hello {
        self.attempts += 1;
        Hello {
            node: self.identity.node.clone(),
            process_id: self.identity.process_id.clone(),
            epoch: self.epoch,
            attempt: self.attempts,
            advertise: self.identity.advertise.clone(),
            region: self.identity.region.clone(),
            zone: self.identity.zone.clone(),
            instances: self.in_order_of_claims(views),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.revision.load(Ordering::Relaxed),
            listeners: self.listeners(),
            host: network_stack(),
            gone: gone
                .into_iter()
                .map(|(key, cause)| key.to_gone(cause_text(cause)))
                .collect(),
        }
    }

    fn listeners(&self) -> Vec<String> {
        let all = self.agent.listeners().addresses();
        all.iter().map(ToString::to_string).collect()
    }

    /// Oldest claims of paths first: the control plane grants them in this order.
    fn in_order_of_claims(&self, views: &Views) -> Vec<LocalInstance> {
        let claims = self.agent.claims();
        let mut instances: Vec<_> = views.iter().collect();
        instances.sort_by_key(|(key, _)| claims.oldest(&key.full_service()).unwrap_or(u64::MAX));
        instances
            .into_iter()
            .map(|(_, view)| view.to_local())
            .collect()
    }

    fn end_of(&self, status: &Status) -> End {
        let info = status.get_details_error_info();
        if status.code() == Code::Aborted && info.is_some_and(|i| i.reason == "SUPERSEDED") {
            return End::Superseded(status.message().to_owned());
        }
        End::Broken(status_text(status))
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
        self.lost.send_replace(None);
        self.status
            .send_replace(SessionStatus::Connected(welcome.replica.clone()));
        let ttl = span(welcome.lease_ttl, Duration::from_secs(10));
        let beat = span(welcome.renew_interval, Duration::from_secs(3));
        let max_silence = max_silence(ttl, beat);
        let sent = views.keys().cloned().collect();
        let mut stream = Stream::new(requests, responses, max_silence, version, views);
        stream.take_verdict(&self.agent, sent, &welcome.rejected);
        self.agent.session_open(true);
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
            let silent = stream.silent_at();
            tokio::select! {
                () = self.stop.cancelled() => {
                    stream.stopping().await;
                    return Err(End::Stopped);
                }
                message = stream.responses.message() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return Err(End::Broken("it ended the session".into())),
                        Err(status) => return Err(self.end_of(&status)),
                    };
                    let missing = stream.take(&self.agent, message, &self.revision);
                    stream.upload(&self.agent, &missing).await.map_err(End::Broken)?;
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Err(End::Broken("this proxy is stopping".into()));
                    }
                }
                removal = self.removals.recv() => {
                    match removal {
                        Some(removal) if stream.waiting.len() < MAX_REMOVALS => {
                            stream.waiting.push(removal);
                        }
                        Some(removal) => drop(removal.answer.send(handle::too_many())),
                        None => {}
                    }
                }
                _ = beats.tick() => stream.beat().await.map_err(End::Broken)?,
                () = sleep_until(silent.into()) => {
                    return Err(End::Broken("it has been silent for half the time of a lease".into()));
                }
            }
        }
    }
}

/// How long a replica may be silent. A replica that is cut off from the store or from this node stops renewing the
/// lease without notice. Half the lease is left for moving to another replica, so that the node's instances never leave
/// the mesh. Never less than one and a half beats, because each beat is answered.
fn max_silence(ttl: Duration, beat: Duration) -> Duration {
    (ttl / 2).max(beat * 3 / 2)
}
