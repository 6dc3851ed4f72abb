//! One connection of the node session: what was sent, what is not acknowledged yet, and who waits for an answer. Input:
//! views and queries. Output: messages. It does not connect or reconnect.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use heddle_proto::control::v1::{
    Beat, Change, ControlMessage, LocalInstance, NodeMessage, Rejection, RemovalAnswer,
    RemovalQuery, SchemaUpload, Stopping, Welcome, ack, control_message, node_message,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::Streaming;

use super::{
    MAX_REMOVALS,
    handle::{Acknowledged, Removal, STOP_TIMEOUT, too_many},
};
use crate::agent::{
    Agent,
    instance_table::{ClaimOrder, Refusal, View, Views},
    key::InstanceKey,
    removal_log::{Cause, Causes},
    schema::MAX_SCHEMA_BYTES,
};

/// An opened session. The control plane has what was sent with Hello.
pub(super) struct Open {
    pub(super) requests: mpsc::Sender<NodeMessage>,
    pub(super) responses: Streaming<ControlMessage>,
    pub(super) welcome: Welcome,
    pub(super) version: u64,
    pub(super) views: Views,
}

/// A Change that is not acknowledged yet.
struct InFlight {
    sequence: u64,
    /// The version of the agent that it brings the control plane to.
    version: u64,
    upserted: Vec<InstanceKey>,
}

/// One connection's state.
pub(super) struct Stream {
    requests: mpsc::Sender<NodeMessage>,
    pub(super) responses: Streaming<ControlMessage>,
    /// How long the control plane may be silent.
    max_silence: Duration,
    /// When it last sent a message.
    last_received: Instant,
    sequence: u64,
    beats: u64,
    /// The version of the agent up to which the control plane has stored everything durably.
    acknowledged: u64,
    /// The views that the control plane has, or will have once `in_flight` is acknowledged.
    sent: Views,
    /// The Change in flight. There is one at a time: later changes go into the next one.
    in_flight: Option<InFlight>,
    /// The instances that the control plane rejected, as they were sent. One is sent again once its content changes, or
    /// with the next Hello.
    rejected: BTreeMap<InstanceKey, (LocalInstance, Refusal)>,
    pub(super) waiting: Vec<Removal>,
    pending_removals: BTreeMap<u64, oneshot::Sender<Acknowledged>>,
    removal_queries: u64,
}

impl Stream {
    /// `views`, of the agent's `version`, were sent with Hello.
    pub(super) fn new(
        requests: mpsc::Sender<NodeMessage>,
        responses: Streaming<ControlMessage>,
        max_silence: Duration,
        version: u64,
        views: Views,
    ) -> Self {
        Self {
            requests,
            responses,
            max_silence,
            last_received: Instant::now(),
            sequence: 0,
            beats: 0,
            acknowledged: version,
            sent: views,
            in_flight: None,
            rejected: BTreeMap::new(),
            waiting: Vec::new(),
            pending_removals: BTreeMap::new(),
            removal_queries: 0,
        }
    }

    /// Sends what is due: the next difference, and the queries of removals that are durable.
    pub(super) async fn step(&mut self, agent: &Agent) -> Result<(), String> {
        if self.in_flight.is_none() {
            let (version, now, mut gone) = agent.unreported(self.acknowledged);
            self.refuse_again(agent, &now);
            let (change, upserted) = self.difference(&now, &mut gone, &agent.claims());
            self.rejected.retain(|key, _| now.contains_key(key));
            self.sent = now;
            if change.upserted.is_empty() && change.removed.is_empty() {
                self.acknowledged = version;
            } else {
                self.sequence += 1;
                self.in_flight = Some(InFlight {
                    sequence: self.sequence,
                    version,
                    upserted,
                });
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
            self.query_removal(removal).await?;
        }
        self.pending_removals
            .retain(|_, answer| !answer.is_closed());
        Ok(())
    }

    async fn query_removal(&mut self, removal: Removal) -> Result<(), String> {
        if self.pending_removals.len() >= MAX_REMOVALS {
            let _ = removal.answer.send(too_many());
            return Ok(());
        }
        self.removal_queries += 1;
        let left = removal.until.saturating_duration_since(Instant::now());
        let query = RemovalQuery {
            id: self.removal_queries,
            instance: Some(removal.key.to_ref()),
            max_wait: prost_types::Duration::try_from(left).ok(),
        };
        self.pending_removals
            .insert(self.removal_queries, removal.answer);
        self.send(node_message::Message::RemovalQuery(query)).await
    }

    /// Handles one message. Returns the schemas that the control plane lacks.
    pub(super) fn take(
        &mut self,
        agent: &Agent,
        message: ControlMessage,
        revision: &AtomicU64,
    ) -> Vec<String> {
        self.last_received = Instant::now();
        match message.message {
            Some(control_message::Message::Ack(ack)) => {
                revision.fetch_max(ack.revision, Ordering::Relaxed);
                let is_of = |change: &mut InFlight| match ack.of {
                    Some(ack::Of::Change(sequence)) => sequence >= change.sequence,
                    _ => false,
                };
                let mut answered = Vec::new();
                if let Some(change) = self.in_flight.take_if(is_of) {
                    self.acknowledged = change.version;
                    answered = change.upserted;
                }
                self.take_verdict(agent, answered, &ack.rejected);
                ack.missing_schemas
            }
            Some(control_message::Message::RemovalAnswer(RemovalAnswer {
                id,
                acknowledged,
                unacknowledged,
            })) => {
                if let Some(answer) = self.pending_removals.remove(&id) {
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

    /// The control plane has decided on these instances as they were sent: it accepts all except the rejected ones, and may
    /// have accepted an earlier version of a rejected one.
    pub(super) fn take_verdict(
        &mut self,
        agent: &Agent,
        mut sent: Vec<InstanceKey>,
        rejected: &[Rejection],
    ) {
        for rejection in rejected {
            let key = InstanceKey::from_ref(rejection.instance.clone().unwrap_or_default());
            sent.retain(|taken| *taken != key);
            // Removed meanwhile, or not an instance of this node.
            let Some(view) = self.sent.get(&key) else {
                continue;
            };
            let refusal = Refusal {
                field: rejection.field.clone(),
                description: rejection.description.clone(),
            };
            agent.set_refused(&key, &view.registration, Some(&refusal));
            let content = content(view, &refusal.field);
            self.rejected.insert(key, (content, refusal));
        }
        for key in sent {
            self.rejected.remove(&key);
            if let Some(view) = self.sent.get(&key) {
                agent.set_refused(&key, &view.registration, None);
            }
        }
    }

    /// The change from `sent` to `now`, with the causes of removals and without what the control plane has rejected or
    /// would reject again; and the keys that it upserts.
    fn difference(
        &self,
        now: &Views,
        gone: &mut Causes,
        claims: &ClaimOrder,
    ) -> (Change, Vec<InstanceKey>) {
        let mut change = Change::default();
        let mut keys = Vec::new();
        let is_other = |key: &InstanceKey, view: &Arc<View>| {
            let old = self.sent.get(key);
            old.is_none_or(|old| !Arc::ptr_eq(old, view))
        };
        let mut others: Vec<_> = now
            .iter()
            .filter(|(key, view)| is_other(key, view))
            .collect();
        // Oldest claims of paths first: the control plane grants them in this order.
        others.sort_by_key(|(key, _)| claims.oldest(&key.full_service()).unwrap_or(u64::MAX));
        for (key, view) in others {
            let old = self.sent.get(key);
            let local = view.to_local();
            // A new registration of the same instance is no change for the mesh.
            let is_same = old.is_some_and(|old| old.to_local() == local);
            if !is_same && self.was_rejected(key, view).is_none() {
                keys.push(key.clone());
                change.upserted.push(local);
            }
        }
        // The control plane has removed those that it refused, and has reported that.
        let left = self
            .sent
            .keys()
            .filter(|key| !now.contains_key(*key) && !self.rejected.contains_key(*key));
        change.removed = left
            .map(|key| match gone.remove(key) {
                Some(cause) => key.to_gone(cause_text(cause)),
                // More instances were removed than are remembered.
                None => key.to_gone(
                    "the reason is no longer known: too many instances were removed".to_owned(),
                ),
            })
            .collect();
        (change, keys)
    }

    /// The refusal of the same content.
    fn was_rejected(&self, key: &InstanceKey, view: &View) -> Option<&Refusal> {
        let (rejected, refusal) = self.rejected.get(key)?;
        // Health is compared only if it was the rejected field.
        let field = if rejected.health == 0 { "" } else { "health" };
        (*rejected == content(view, field)).then_some(refusal)
    }

    /// A new registration of what was rejected is not sent again, and is refused as before.
    fn refuse_again(&self, agent: &Agent, now: &Views) {
        for key in self.rejected.keys() {
            let (Some(view), Some(sent)) = (now.get(key), self.sent.get(key)) else {
                continue;
            };
            if view.registration != sent.registration
                && let Some(refusal) = self.was_rejected(key, view)
            {
                agent.set_refused(key, &view.registration, Some(refusal));
            }
        }
    }

    /// When the control plane counts as silent for too long: each beat is answered.
    pub(super) fn silent_at(&self) -> Instant {
        self.last_received + self.max_silence
    }

    pub(super) async fn beat(&mut self) -> Result<(), String> {
        self.beats += 1;
        self.send(node_message::Message::Beat(Beat {
            sequence: self.beats,
        }))
        .await
    }

    /// Reports that this process stops, and waits until the control plane has ended the session.
    pub(super) async fn stopping(&mut self) {
        let report = async {
            let sent = self.send(node_message::Message::Stopping(Stopping {}));
            if sent.await.is_ok() {
                while let Ok(Some(_)) = self.responses.message().await {}
            }
        };
        let _ = timeout(STOP_TIMEOUT, report).await;
    }

    pub(super) async fn upload(&mut self, agent: &Agent, missing: &[String]) -> Result<(), String> {
        for sha256 in missing {
            // Removed meanwhile: nobody needs its schema any more.
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
            self.max_silence,
            self.requests.send(NodeMessage {
                message: Some(message),
            }),
        )
        .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("it ended the session".into()),
            Err(_) => Err(format!("it has read nothing for {:?}", self.max_silence)),
        }
    }
}

/// The part of an instance that the control plane decides on. Health is excluded, as it changes without a new registration,
/// unless health itself was rejected.
fn content(view: &View, field: &str) -> LocalInstance {
    let mut local = view.to_local();
    local.schema_reason.clear();
    local.checked_by = 0;
    if field != "health" {
        local.health = 0;
        local.health_reason.clear();
    }
    local
}

/// The cause as it is sent; empty if the instance deregistered.
pub(super) fn cause_text(cause: Option<Cause>) -> String {
    cause.map(|cause| cause.to_string()).unwrap_or_default()
}

pub(super) fn span(given: Option<prost_types::Duration>, default: Duration) -> Duration {
    let given = given.and_then(|d| Duration::try_from(d).ok());
    given
        .filter(|d| (Duration::from_millis(10)..Duration::from_secs(3600)).contains(d))
        .unwrap_or(default)
}
