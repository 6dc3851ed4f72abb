//! Opens a node session: the gRPC service, the Hello and the claim of the node. Nothing is written before the Hello is
//! checked. A refusal includes its cause.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use heddle_proto::control::v1::{
    Hello, NodeMessage, Welcome, control_message, node_message,
    node_session_server::{NodeSession, NodeSessionServer},
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{Answer, End, Inbound, InstanceCharge, Session, broken, changes::missing, stopping};
use crate::{
    access::Caller,
    budget::Account,
    registry::{MAX_SCHEMA_BYTES, Node, NodeLease, Registry},
    session::{Removals, refusal, rejected, validate},
};

/// The longest message of a node: a Hello with thousands of instances, or a SchemaUpload.
pub const MAX_MESSAGE_BYTES: usize = 4 * MAX_SCHEMA_BYTES;
/// A stream without a Hello is closed after this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// The most queued answers. If the node does not read them, the session waits too, and the lease expires.
const ANSWER_QUEUE: usize = 64;
/// How long the final status waits for room in the queue.
const FINAL_SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The gRPC service for the control plane's server.
#[must_use]
pub fn service(registry: Registry, removals: Arc<dyn Removals>) -> NodeSessionServer<Sessions> {
    NodeSessionServer::new(Sessions::new(registry, removals))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Opens sessions.
pub struct Sessions {
    registry: Registry,
    removals: Arc<dyn Removals>,
}

#[tonic::async_trait]
impl NodeSession for Sessions {
    type OpenStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn open(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let caller = Caller::of(&request)?;
        let answers = self.begin(request.into_inner(), &caller);
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Sessions {
    pub(crate) fn new(registry: Registry, removals: Arc<dyn Removals>) -> Self {
        Self { registry, removals }
    }

    /// Serves one stream in a task of its own, and returns the answers to the node.
    pub(crate) fn begin(
        &self,
        inbound: impl Stream<Item = Result<NodeMessage, Status>> + Send + 'static,
        caller: &Caller,
    ) -> ReceiverStream<Answer> {
        let (answers, out) = mpsc::channel(ANSWER_QUEUE);
        let inbound: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(inbound);
        let opening = Opening {
            registry: self.registry.clone(),
            removals: Arc::clone(&self.removals),
            loopback: caller.is_local(),
            account: caller.account().clone(),
            inbound: inbound.fuse(),
            answers: answers.clone(),
        };
        let stop = self.registry.options().stop.clone();
        tokio::spawn(async move {
            let end = opening.run(stop).await;
            if let Err(End::Refused(status)) = end {
                // The node may have disconnected, or may not read: its lease expires in any case.
                let _ = tokio::time::timeout(FINAL_SEND_TIMEOUT, answers.send(Err(*status))).await;
            }
        });
        ReceiverStream::new(out)
    }
}

/// A stream that has not sent its Hello.
struct Opening {
    registry: Registry,
    removals: Arc<dyn Removals>,
    loopback: bool,
    account: Account,
    inbound: Inbound,
    answers: mpsc::Sender<Answer>,
}

impl Opening {
    async fn run(mut self, stop: CancellationToken) -> Result<(), End> {
        let hello = tokio::select! {
            biased;
            hello = tokio::time::timeout(HELLO_TIMEOUT, self.inbound.next()) => hello,
            () = stop.cancelled() => return Err(stopping().into()),
        };
        let hello = match hello {
            Err(_) => {
                return Err(Status::deadline_exceeded("no Hello was received within 10 s").into());
            }
            Ok(Some(Err(status))) => return Err(broken(status)),
            Ok(None) => return Err(End::Closed),
            Ok(Some(Ok(message))) => match message.message {
                Some(node_message::Message::Hello(hello)) => hello,
                _ => return Err(refusal::invalid("hello", "must be the first message").into()),
            },
        };
        let answers = self.answers.clone();
        let (mut session, inbound) = tokio::select! {
            biased;
            // The agent gave up and connects again: this Hello is older than the next one and must not replace it.
            () = answers.closed() => return Err(End::Closed),
            () = stop.cancelled() => return Err(stopping().into()),
            opened = self.welcome(hello) => opened?,
        };
        let end = session.run(inbound, stop).await;
        session.report(&end);
        end
    }

    async fn welcome(self, hello: Hello) -> Result<(Session, Inbound), End> {
        let seen = hello.revision;
        let mut instance_charge = InstanceCharge::new(self.account);
        let node = hello.node.as_str();
        instance_charge.begin(&self.registry, node, &hello.instances)?;
        let validate::ValidHello {
            identity,
            mut instances,
            mut gone,
            mut rejected,
        } = validate::hello(hello, self.loopback).inspect_err(|status| {
            let cause = status.message();
            tracing::warn!(
                event = "session-refused",
                cause,
                "a node's Hello is refused"
            );
        })?;
        let mut lease = NodeLease::claim(&self.registry, &identity).await.inspect_err(|error| {
            tracing::warn!(event = "session-refused", node = identity.name, process = identity.process_id,
                %error, "a node session is refused");
        })?;
        let opened = Instant::now();
        let validated_at = self.registry.listener_changes();
        // The view may not include the node's new record yet.
        let on = Node::described(&identity);
        self.registry.read(|view| {
            instances.retain(|(key, local)| {
                let address = rejected::address(local);
                let found = address.and_then(|at| rejected::at_a_proxy(view, &on, key, at));
                let fits = found.is_none();
                rejected.extend(found);
                fits
            });
        });
        for one in &rejected {
            one.log(&identity.name);
            if let Some(key) = &one.key {
                gone.insert(key.clone(), Some(one.cause()));
            }
        }
        let schemas = instances
            .iter()
            .map(|(_, local)| local.schema_sha256.as_str());
        let missing = missing(&self.registry, schemas);
        let count = instances.len();
        let revision = lease.resume(instances, &gone).await?;
        tracing::info!(
            event = "session-opened", node = identity.name, epoch = lease.epoch(), instances = count,
            %revision, advertise = %identity.advertise, "a node session is open"
        );
        if seen > revision.0 {
            tracing::warn!(
                node = identity.name, seen, %revision,
                "the node has seen a newer revision than the store has: was the store replaced or \
                 restored from a backup?"
            );
        }
        let options = self.registry.options();
        let welcome = Welcome {
            epoch: lease.epoch(),
            lease_ttl: duration(options.lease_ttl),
            renew_interval: duration(options.renew_interval),
            revision: revision.0,
            missing_schemas: missing.clone(),
            replica: options.replica.clone(),
            rejected: rejected::for_node(rejected),
        };
        let session = Session {
            node: identity.name.as_str().into(),
            registry: self.registry,
            removals: self.removals,
            lease,
            answers: self.answers,
            sequence: 0,
            wanted: missing.into_iter().collect(),
            queries: JoinSet::new(),
            validated_at,
            instance_charge,
            // The time of the claim, which is a while ago: the first message renews the lease.
            tried: opened,
        };
        session
            .answer(control_message::Message::Welcome(welcome))
            .await?;
        Ok((session, self.inbound))
    }
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}
