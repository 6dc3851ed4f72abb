//! One connection of the node session: what was sent, what is under way, what waits for an answer. Views and questions
//! come in, messages go out; it connects and reconnects nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use heddle_proto::control::v1::{
    Beat, Change, ControlMessage, NodeMessage, RemovalAnswer, RemovalQuery, SchemaUpload, Welcome,
    ack, control_message, node_message,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::Streaming;

use super::{
    MAX_REMOVALS,
    handle::{Acknowledged, Removal, too_many},
};
use crate::agent::{
    Agent,
    book::Views,
    gone::{Cause, Causes},
    key::InstanceKey,
    schema::MAX_SCHEMA_BYTES,
};

/// An opened session: what was sent with Hello is what the control plane has.
pub(super) struct Open {
    pub(super) requests: mpsc::Sender<NodeMessage>,
    pub(super) responses: Streaming<ControlMessage>,
    pub(super) welcome: Welcome,
    pub(super) version: u64,
    pub(super) views: Views,
}

/// One connection's state.
pub(super) struct Stream {
    requests: mpsc::Sender<NodeMessage>,
    pub(super) responses: Streaming<ControlMessage>,
    /// The control plane may be silent for so long.
    patience: Duration,
    /// When it last said anything.
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
    pub(super) waiting: Vec<Removal>,
    asked: BTreeMap<u64, oneshot::Sender<Acknowledged>>,
    asks: u64,
}

impl Stream {
    /// `views` of the agent's change `version` went with Hello.
    pub(super) fn new(
        requests: mpsc::Sender<NodeMessage>,
        responses: Streaming<ControlMessage>,
        patience: Duration,
        version: u64,
        views: Views,
    ) -> Self {
        Self {
            requests,
            responses,
            patience,
            heard: Instant::now(),
            sequence: 0,
            beats: 0,
            acknowledged: version,
            sent: views,
            in_flight: None,
            waiting: Vec::new(),
            asked: BTreeMap::new(),
            asks: 0,
        }
    }

    /// Sends what is to be sent: the next difference, and the questions whose removals are durable.
    pub(super) async fn step(&mut self, agent: &Agent) -> Result<(), String> {
        if self.in_flight.is_none() {
            let (version, now, mut gone) = agent.untold(self.acknowledged);
            let change = difference(&self.sent, &now, &mut gone);
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
            let _ = removal.answer.send(too_many());
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
    pub(super) fn take(&mut self, message: ControlMessage, revision: &AtomicU64) -> Vec<String> {
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

    /// Until when it must have said something: each beat is answered.
    pub(super) fn silent_at(&self) -> Instant {
        self.heard + self.patience
    }

    pub(super) async fn beat(&mut self) -> Result<(), String> {
        self.beats += 1;
        self.send(node_message::Message::Beat(Beat {
            sequence: self.beats,
        }))
        .await
    }

    pub(super) async fn upload(&mut self, agent: &Agent, missing: &[String]) -> Result<(), String> {
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
            self.patience,
            self.requests.send(NodeMessage {
                message: Some(message),
            }),
        )
        .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("it ended the session".into()),
            Err(_) => Err(format!("it has read nothing for {:?}", self.patience)),
        }
    }
}

/// What turns `sent` into `now`; and why it went what has gone.
fn difference(sent: &Views, now: &Views, gone: &mut Causes) -> Change {
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
            .map(|key| match gone.remove(key) {
                Some(cause) => key.to_gone(words(cause)),
                // More have gone than are remembered.
                None => key.to_gone("why is not remembered: too many went".to_owned()),
            })
            .collect(),
    }
}

/// As it is sent: empty for one that asked to go.
pub(super) fn words(cause: Option<Cause>) -> String {
    cause.map(|cause| cause.to_string()).unwrap_or_default()
}

pub(super) fn span(given: Option<prost_types::Duration>, default: Duration) -> Duration {
    let given = given.and_then(|d| Duration::try_from(d).ok());
    given
        .filter(|d| (Duration::from_millis(10)..Duration::from_secs(3600)).contains(d))
        .unwrap_or(default)
}
