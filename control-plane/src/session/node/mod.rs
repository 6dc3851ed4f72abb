//! One node session: one stream, one node, one lease. Each message of the agent is checked, written under the node's
//! lease, then answered; messages that wait at the same time are written together. A session has no state that another
//! replica needs, and a newer session of the node ends it.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream::Fuse};
use heddle_proto::control::v1::{
    Ack, Change, ControlMessage, NodeMessage, Rejection, RemovalAnswer, RemovalQuery, SchemaUpload,
    ack, control_message, node_message,
};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    Removals, refusal,
    rejected::{self, Rejected},
    validate,
};
use crate::registry::{LeaseError, Node, NodeLease, NodeWrite, Registry, View};

mod instance_charge;
mod open;

use instance_charge::InstanceCharge;
#[cfg(test)]
pub(crate) use open::Sessions;
pub use open::{MAX_MESSAGE_BYTES, service};

type Answer = Result<ControlMessage, Status>;

/// The messages of a node, from gRPC or from the simulation's own transport.
type Inbound = Fuse<Pin<Box<dyn Stream<Item = Result<NodeMessage, Status>> + Send>>>;

/// The most messages of one node that are written together, and their bytes.
const MAX_TOGETHER: usize = 256;
const MAX_TOGETHER_BYTES: usize = 4 << 20;
/// The most concurrent removal queries per node.
const MAX_QUERIES: usize = 256;
/// The default and the upper limit of a removal query's wait.
const MAX_REMOVAL_WAIT: Duration = Duration::from_secs(5);

/// Why a session ends.
enum End {
    /// The node closed the stream, or the connection broke.
    Closed,
    /// The node gets this status.
    Refused(Box<Status>),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl From<LeaseError> for End {
    fn from(error: LeaseError) -> Self {
        refusal::lost_lease(&error).into()
    }
}

struct Session {
    node: Arc<str>,
    registry: Registry,
    removals: Arc<dyn Removals>,
    lease: NodeLease,
    answers: mpsc::Sender<Answer>,
    /// The sequence of the last Change.
    sequence: u64,
    /// The descriptors that this node was asked for; others are ignored.
    wanted: std::collections::HashSet<String>,
    queries: JoinSet<()>,
    /// `Registry::listener_changes` when the instances were last checked.
    judged: u64,
    /// The memory charge of its instances.
    instance_charge: InstanceCharge,
    /// When the session last tried to renew the lease.
    tried: Instant,
}

/// Changes that are written together.
#[derive(Default)]
struct PendingWrites {
    /// Each Change's sequence and rejected instances.
    changes: Vec<(u64, Vec<Rejection>)>,
    writes: Vec<NodeWrite>,
}

impl Session {
    async fn run(&mut self, mut inbound: Inbound, stop: CancellationToken) -> Result<(), End> {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Err(stopping().into()),
            () = self.registry.reached(self.lease.session()) => {}
        }
        let mut holder = self.registry.watch_node(&self.node);
        loop {
            let now = holder.borrow_and_update().clone();
            if let Some(error) = self.lost(now.as_ref()) {
                return Err(error.into());
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(stopping().into()),
                changed = holder.changed() => if changed.is_err() { return Err(End::Closed) },
                Some(done) = self.queries.join_next(), if !self.queries.is_empty() => {
                    if done.is_err() {
                        tracing::error!(node = %self.node, "a removal query failed");
                    }
                }
                messages = ready(&mut inbound) => {
                    if messages.is_empty() {
                        return Err(End::Closed);
                    }
                    let given_up = given_up(self.answers.clone(), self.registry.options().lease_ttl);
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Err(stopping().into()),
                        () = given_up => return Err(End::Closed),
                        done = self.on_messages(messages) => done?,
                    }
                }
            }
        }
    }

    /// Why this session no longer has the node; none if it has it.
    fn lost(&self, now: Option<&Node>) -> Option<LeaseError> {
        let node = self.node.to_string();
        match now {
            Some(now) if now.session == self.lease.session() => None,
            Some(now) if now.epoch != self.lease.epoch() => {
                let (process_id, epoch) = (now.process_id.clone(), now.epoch);
                Some(LeaseError::Superseded {
                    node,
                    process_id,
                    epoch,
                })
            }
            Some(now) if now.alive => Some(LeaseError::Replaced { node }),
            _ => Some(LeaseError::Lapsed { node }),
        }
    }

    async fn on_messages(&mut self, messages: Vec<Result<NodeMessage, Status>>) -> Result<(), End> {
        let mut pending = PendingWrites::default();
        // Any message shows that the node is alive: heartbeats may be queued behind long uploads.
        self.renew().await?;
        for message in messages {
            let message = match message {
                Ok(message) => message.message,
                Err(status) => {
                    self.write(&mut pending).await?;
                    return Err(broken(status));
                }
            };
            if let Some(node_message::Message::Change(change)) = message {
                if let Err(end) = self.on_change(change, &mut pending) {
                    // The Changes before it are valid.
                    self.write(&mut pending).await?;
                    return Err(end);
                }
                continue;
            }
            self.write(&mut pending).await?;
            match message {
                Some(node_message::Message::Beat(beat)) => self.on_beat(beat.sequence).await?,
                Some(node_message::Message::Schema(schema)) => self.on_schema(schema).await?,
                Some(node_message::Message::RemovalQuery(query)) => self.on_query(query).await?,
                Some(node_message::Message::Leave(_)) => return self.on_leave().await,
                Some(node_message::Message::Stopping(_)) => return self.on_stopping().await,
                Some(node_message::Message::Hello(_)) => {
                    return Err(
                        refusal::invalid("hello", "may be sent only once per stream").into(),
                    );
                }
                // A message of a newer version: its sender needs no answer.
                Some(node_message::Message::Change(_)) | None => {}
            }
        }
        self.write(&mut pending).await
    }

    fn on_change(&mut self, change: Change, pending: &mut PendingWrites) -> Result<(), End> {
        let expected = self.sequence + 1;
        if change.sequence != expected {
            let found = change.sequence;
            let text =
                format!("is {found} where {expected} was expected: changes are numbered from 1");
            return Err(refusal::invalid("change.sequence", text).into());
        }
        self.instance_charge
            .add(&self.registry, &self.node, &change.upserted)
            .map_err(Status::from)?;
        let validate::Changes { writes, rejected } = validate::change(&self.node, change)?;
        let (writes, rejected) = self.fit(writes, rejected);
        pending.writes.extend(writes);
        pending
            .changes
            .push((expected, rejected::for_node(rejected)));
        self.sequence = expected;
        Ok(())
    }

    /// Rejects instances with the address of a proxy's listener. The earlier state of each rejected instance is
    /// removed.
    fn fit(
        &self,
        mut writes: Vec<NodeWrite>,
        mut rejected: Vec<Rejected>,
    ) -> (Vec<NodeWrite>, Vec<Rejected>) {
        self.registry.read(|view| {
            let on = view.node(&self.node);
            let at_a_proxy = |write: &mut NodeWrite| match write {
                NodeWrite::Put(key, local) => {
                    rejected::at_a_proxy(view, on?, key, rejected::address(local)?)
                }
                NodeWrite::Remove(..) => None,
            };
            let lost = writes.extract_if(.., |write| {
                let found = at_a_proxy(write);
                let is_one = found.is_some();
                rejected.extend(found);
                is_one
            });
            lost.for_each(drop);
            writes.extend(removals(view, &rejected));
        });
        for one in &rejected {
            one.log(&self.node);
        }
        (writes, rejected)
    }

    async fn write(&mut self, pending: &mut PendingWrites) -> Result<(), End> {
        let PendingWrites { changes, writes } = std::mem::take(pending);
        if changes.is_empty() {
            return Ok(());
        }
        let schemas = writes.iter().filter_map(|write| match write {
            NodeWrite::Put(_, local) => Some(local.schema_sha256.as_str()),
            NodeWrite::Remove(..) => None,
        });
        let mut missing = missing(&self.registry, schemas);
        let revision = self.lease.change(writes).await?;
        if self.wanted.len() + missing.len() > validate::MAX_INSTANCES {
            // The node does not send the descriptors that it is asked for. It is asked again when it refers to them
            // again.
            self.wanted.clear();
        }
        self.wanted.extend(missing.iter().cloned());
        for (sequence, rejected) in changes {
            let missing_schemas = std::mem::take(&mut missing);
            let of = Some(ack::Of::Change(sequence));
            let ack = Ack {
                of,
                revision: revision.0,
                missing_schemas,
                rejected,
            };
            self.answer(control_message::Message::Ack(ack)).await?;
        }
        Ok(())
    }

    /// Skips the renewal if the last one is recent, so that queued heartbeats cost one request to the store.
    async fn renew(&mut self) -> Result<(), End> {
        if self.tried.elapsed() >= self.registry.options().renew_interval / 2 {
            self.lease.beat().await?;
            self.tried = Instant::now();
        }
        Ok(())
    }

    async fn on_beat(&mut self, sequence: u64) -> Result<(), End> {
        self.renew().await?;
        let rejected = self.judge_again().await?;
        let revision = self.registry.read(|view| view.revision().0);
        let of = Some(ack::Of::Beat(sequence));
        let ack = Ack {
            of,
            revision,
            missing_schemas: Vec::new(),
            rejected: rejected::for_node(rejected),
        };
        self.answer(control_message::Message::Ack(ack)).await
    }

    /// Removes instances whose address has become that of a proxy's listener. Checks only if a listener's address has
    /// changed since the last check.
    async fn judge_again(&mut self) -> Result<Vec<Rejected>, End> {
        let changes = self.registry.listener_changes();
        if changes == self.judged {
            return Ok(Vec::new());
        }
        let found = |view: &View| {
            let rejected = rejected::at_proxies(view, &self.node);
            let writes = removals(view, &rejected);
            (rejected, writes)
        };
        let (rejected, writes) = self.registry.read(found);
        if !writes.is_empty() {
            for one in &rejected {
                one.log(&self.node);
            }
            self.lease.change(writes).await?;
        }
        self.judged = changes;
        Ok(rejected)
    }

    /// Invalid descriptors do not end the session: the node would upload them again in the next one.
    async fn on_schema(&mut self, upload: SchemaUpload) -> Result<(), End> {
        let SchemaUpload {
            sha256,
            file_descriptor_set,
        } = upload;
        if !self.wanted.remove(&sha256) {
            tracing::debug!(node = %self.node, sha256, "ignoring descriptors that were not requested");
            return Ok(());
        }
        match self
            .registry
            .keep_schema(&sha256, file_descriptor_set)
            .await
        {
            Ok(()) => tracing::info!(node = %self.node, sha256, "descriptors are stored"),
            Err(crate::registry::SchemaError::Store(error)) => {
                return Err(LeaseError::Store(error).into());
            }
            Err(error) => tracing::warn!(node = %self.node, %error, "descriptors are refused"),
        }
        Ok(())
    }

    async fn on_query(&mut self, query: RemovalQuery) -> Result<(), End> {
        let instance = validate::removed_instance(&self.node, query.instance)?;
        while self.queries.try_join_next().is_some() {}
        if self.queries.len() >= MAX_QUERIES {
            // This does not end the session: the removal itself is done.
            let why = format!("({MAX_QUERIES} removal queries of this node are under way)");
            return self.answer(removal_answer(query.id, vec![why])).await;
        }
        let wait = query
            .max_wait
            .and_then(|wait| Duration::try_from(wait).ok());
        let wait = wait.unwrap_or(MAX_REMOVAL_WAIT).min(MAX_REMOVAL_WAIT);
        let (registry, removals) = (self.registry.clone(), Arc::clone(&self.removals));
        let (answers, revision) = (self.answers.clone(), self.lease.last());
        self.queries.spawn(async move {
            let until = Instant::now() + wait;
            let unacknowledged = match timeout_at(until, registry.reached(revision)).await {
                Ok(()) => {
                    let left = until.saturating_duration_since(Instant::now());
                    removals.acknowledged(instance, revision, left).await
                }
                Err(_) => vec!["(this replica has not seen the removal yet)".to_owned()],
            };
            let message = Some(removal_answer(query.id, unacknowledged));
            // If the node has disconnected, nobody waits for the answer.
            let _ = answers.send(Ok(ControlMessage { message })).await;
        });
        Ok(())
    }

    async fn on_leave(&mut self) -> Result<(), End> {
        let revision = self.lease.leave().await?;
        tracing::info!(event = "node-left", node = %self.node, %revision, "a node leaves");
        Err(End::Closed)
    }

    async fn on_stopping(&mut self) -> Result<(), End> {
        let revision = self.lease.stopping().await?;
        tracing::info!(event = "node-left", node = %self.node, %revision, "the proxy of a node stops");
        Err(End::Closed)
    }

    async fn answer(&self, message: control_message::Message) -> Result<(), End> {
        let message = ControlMessage {
            message: Some(message),
        };
        let patience = self.registry.options().lease_ttl;
        match timeout(patience, self.answers.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            // The node has disconnected or does not read. A session that waited forever would not notice that it was
            // replaced.
            Ok(Err(_)) | Err(_) => Err(End::Closed),
        }
    }

    fn report(&self, end: &Result<(), End>) {
        let (node, epoch) = (&self.node, self.lease.epoch());
        match end {
            Err(End::Refused(status)) => {
                let cause = status.message();
                tracing::warn!(event = "session-ended", %node, epoch, cause, "a node session ends");
            }
            _ => {
                tracing::info!(event = "session-closed", %node, epoch, "a node closed its session");
            }
        }
    }
}

/// Removes the earlier states of rejected instances, with the cause.
fn removals(view: &View, rejected: &[Rejected]) -> Vec<NodeWrite> {
    let taken_before = rejected.iter().filter_map(|one| {
        let key = one.key.clone()?;
        view.instance(&key)?;
        Some(NodeWrite::Remove(key, Some(one.cause())))
    });
    taken_before.collect()
}

/// Completes one TTL after the node disconnected. A write may wait for a store that does not answer; after that time
/// the lease has expired anyway.
async fn given_up(answers: mpsc::Sender<Answer>, lease_ttl: Duration) {
    answers.closed().await;
    tokio::time::sleep(lease_ttl).await;
}

/// Why receiving messages failed. A node that exceeded a limit of this server gets the status.
fn broken(status: Status) -> End {
    match status.code() {
        tonic::Code::ResourceExhausted => status.into(),
        _ => End::Closed,
    }
}

fn removal_answer(id: u64, unacknowledged: Vec<String>) -> control_message::Message {
    control_message::Message::RemovalAnswer(RemovalAnswer {
        id,
        acknowledged: unacknowledged.is_empty(),
        unacknowledged,
    })
}

/// Waits for a message, and returns it with those that have already arrived; empty if the stream has ended.
async fn ready(inbound: &mut Inbound) -> Vec<Result<NodeMessage, Status>> {
    let mut messages = Vec::new();
    let Some(first) = inbound.next().await else {
        return messages;
    };
    let mut bytes = first.as_ref().map_or(0, NodeMessage::encoded_len);
    messages.push(first);
    while messages.len() < MAX_TOGETHER && bytes < MAX_TOGETHER_BYTES {
        let Some(Some(next)) = inbound.next().now_or_never() else {
            break;
        };
        bytes += next.as_ref().map_or(0, NodeMessage::encoded_len);
        messages.push(next);
    }
    messages
}

/// The hashes for which the store has no descriptors, without duplicates.
fn missing<'a>(registry: &Registry, hashes: impl Iterator<Item = &'a str>) -> Vec<String> {
    registry.read(|view| {
        let missing = hashes.filter(|hash| !hash.is_empty() && !view.has_schema(hash));
        let missing: std::collections::BTreeSet<&str> = missing.collect();
        missing.into_iter().map(str::to_owned).collect()
    })
}

fn stopping() -> Status {
    Status::unavailable("this replica of the control plane is stopping; connect again")
}

#[cfg(test)]
mod tests;
