//! One node session: one stream, one node, one lease. Each message of the agent is checked, written under the node's
//! lease, then answered; messages that wait at the same time are written together. A session has no state that another
//! replica needs, and a newer session of the node ends it.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream::Fuse};
use heddle_proto::control::v1::{
    Ack, ControlMessage, NodeMessage, SchemaUpload, ack, control_message, node_message,
};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Removals, refusal, rejected};
use crate::registry::{LeaseError, Node, NodeLease, Registry};

mod changes;
mod instance_charge;
mod open;
mod queries;

use changes::PendingWrites;
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
    validated_at: u64,
    /// The memory charge of its instances.
    instance_charge: InstanceCharge,
    /// When the session last tried to renew the lease.
    tried: Instant,
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
        let rejected = self.revalidate().await?;
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

    async fn on_leave(&mut self) -> Result<(), End> {
        let revision = self.lease.leave().await?;
        tracing::info!(event = "node-left", node = %self.node, %revision, "a node leaves");
        Err(End::Closed)
    }

    async fn on_stopping(&mut self) -> Result<(), End> {
        let revision = self.lease.stopping().await?;
        tracing::info!(event = "node-left", node = %self.node, %revision, "the proxy of a node stops");
        let (node, ended) = (Arc::clone(&self.node), self.lease.end_if_not_back());
        tokio::spawn(async move {
            match ended.await {
                Ok(revision) => {
                    tracing::info!(event = "node-left", %node, %revision, "a node without a proxy is removed");
                }
                Err(why) => {
                    tracing::debug!(%node, "a stopping node is not removed: {why}");
                }
            }
        });
        Err(End::Closed)
    }

    async fn answer(&self, message: control_message::Message) -> Result<(), End> {
        let message = ControlMessage {
            message: Some(message),
        };
        let send_timeout = self.registry.options().lease_ttl;
        match timeout(send_timeout, self.answers.send(Ok(message))).await {
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

fn stopping() -> Status {
    Status::unavailable("this replica of the control plane is stopping; connect again")
}

#[cfg(test)]
mod tests;
