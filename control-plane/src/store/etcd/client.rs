//! Calls the members of an etcd: one at a time, the next one after a failure, within a time limit. Errors name the
//! members and what to check. A request that may have been applied is repeated only if that is harmless. The streams of
//! watches and keep-alives are opened here too.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::Stream;
use heddle_pacing::Backoff;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tonic_prost::ProstCodec;

use super::{
    EtcdOptions,
    api::{self, Answer},
    fault::{Fault, classify},
};
use crate::store::{Revision, StoreError};

/// How long one member may take for an answer that another member could give too.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// The first and the longest pause between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The longest message: a page of the longest values.
const MAX_MESSAGE_BYTES: usize = 512 << 20;

/// Whether a request may be repeated if its answer was lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// It is idempotent.
    Harmless,
    /// It may be repeated only if it was certainly not applied.
    IfNotDone,
}

pub(super) struct Client {
    members: Vec<Member>,
    /// The index of the member in use.
    current: AtomicUsize,
    user: Option<User>,
    token: Mutex<Option<MetadataValue<Ascii>>>,
    /// The newest revision of any answer.
    seen: watch::Sender<Revision>,
    /// The time limit of a call.
    bound: Duration,
    /// The number of calls and streams that failed at a member.
    pub(super) faults: AtomicU64,
}

struct Member {
    url: String,
    channel: Channel,
}

#[derive(Clone)]
struct User {
    name: String,
    password: String,
}

impl Client {
    pub(super) fn new(options: &EtcdOptions) -> Result<Self, StoreError> {
        let members = options.members()?;
        let members: Vec<_> = members
            .into_iter()
            .map(|(url, endpoint)| Member {
                url,
                channel: endpoint.connect_lazy(),
            })
            .collect();
        // Replicas start with different members.
        let seed = uuid::Uuid::new_v4().as_u128() % members.len().max(1) as u128;
        Ok(Self {
            current: AtomicUsize::new(usize::try_from(seed).unwrap_or(0)),
            members,
            user: options
                .user
                .clone()
                .map(|(name, password)| User { name, password }),
            token: Mutex::default(),
            seen: watch::Sender::new(Revision(0)),
            bound: options.timeout,
            faults: AtomicU64::new(0),
        })
    }

    /// The index of the member in use.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Moves from a failed member to the next one, unless another call has already done so.
    fn leave(&self, member: usize) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        let next = (member + 1) % self.members.len().max(1);
        // If this fails, another call was faster and has already moved on.
        let _ = self
            .current
            .compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn url(&self, member: usize) -> &str {
        self.members.get(member).map_or("", |member| &member.url)
    }

    /// The newest revision that etcd has reported to this process.
    pub(super) fn seen(&self) -> watch::Receiver<Revision> {
        self.seen.subscribe()
    }

    fn on_answer(&self, answer: &impl Answer) {
        let store_revision = answer.store_revision();
        self.seen.send_if_modified(|seen| {
            let newer = store_revision > *seen;
            *seen = store_revision.max(*seen);
            newer
        });
    }

    /// Makes a call, and repeats it at other members as often as the time limit allows.
    pub(super) async fn call<M: Message + Clone + Sync + 'static, A: Answer>(
        &self,
        path: &'static str,
        request: M,
        again: Again,
    ) -> Result<A, Fault> {
        let end = Instant::now() + self.bound;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let member = self.current();
            let left = end.saturating_duration_since(Instant::now());
            let bound = match again {
                Again::Harmless => left.min(ATTEMPT_TIMEOUT),
                Again::IfNotDone => left,
            };
            let attempt = timeout(bound, self.attempt(member, path, request.clone()));
            let fault = match attempt.await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(fault)) => fault,
                Err(_) => Fault::Unknown(format!("no answer within {bound:?}")),
            };
            let fault = self.on_fault(member, fault);
            let may_again = match &fault {
                Fault::NotDone(_) | Fault::Token(_) => true,
                Fault::Unknown(_) => again == Again::Harmless,
                _ => false,
            };
            let pause = backoff.fail();
            if !may_again || Instant::now() + pause >= end {
                return Err(fault);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Handles a fault (moves to the next member or drops the token), and adds the member's URL to it.
    pub(super) fn on_fault(&self, member: usize, fault: Fault) -> Fault {
        let named = |text: String| format!("{}: {text}", self.url(member));
        match fault {
            Fault::NotDone(text) => {
                self.leave(member);
                Fault::NotDone(named(text))
            }
            Fault::Unknown(text) => {
                self.leave(member);
                Fault::Unknown(named(text))
            }
            Fault::Token(text) if self.user.is_some() => {
                self.set_token(None);
                Fault::Token(named(text))
            }
            // Without a user there is no token to renew.
            Fault::Token(text) | Fault::Refused(text) => Fault::Refused(named(text)),
            Fault::Full(text) => Fault::Full(named(text)),
            fault => fault,
        }
    }

    /// One call to one member.
    pub(super) async fn attempt<M: Message + Sync + 'static, A: Answer>(
        &self,
        member: usize,
        path: &'static str,
        request: M,
    ) -> Result<A, Fault> {
        let request = self.request(member, request).await?;
        let answer: A = self.send(member, path, request).await?;
        self.on_answer(&answer);
        Ok(answer)
    }

    async fn send<M: Message + Sync + 'static, A: Answer>(
        &self,
        member: usize,
        path: &'static str,
        request: Request<M>,
    ) -> Result<A, Fault> {
        let mut grpc = self.grpc(member).await?;
        let codec = ProstCodec::<M, A>::default();
        let answer = grpc
            .unary(request, PathAndQuery::from_static(path), codec)
            .await;
        Ok(answer.map_err(|status| classify(&status))?.into_inner())
    }

    /// Opens a stream to a member. The member may answer only after the first request, so that must be queued already.
    pub(super) async fn stream<S, A>(
        &self,
        member: usize,
        path: &'static str,
        requests: S,
    ) -> Result<Streaming<A>, Fault>
    where
        S: Stream + Send + 'static,
        S::Item: Message + Sync + 'static,
        A: Answer,
    {
        let open = async {
            let request = self.request(member, requests).await?;
            let mut grpc = self.grpc(member).await?;
            let codec = ProstCodec::<S::Item, A>::default();
            grpc.streaming(request, PathAndQuery::from_static(path), codec)
                .await
                .map_err(|status| classify(&status))
        };
        match timeout(ATTEMPT_TIMEOUT, open).await {
            Ok(opened) => Ok(opened?.into_inner()),
            Err(_) => Err(Fault::NotDone(format!(
                "no answer within {ATTEMPT_TIMEOUT:?}"
            ))),
        }
    }

    /// Processes a message of a stream; a broken stream becomes a fault.
    pub(super) fn received<A: Answer>(
        &self,
        message: Result<Option<A>, Status>,
    ) -> Result<A, Fault> {
        match message {
            Ok(Some(message)) => {
                self.on_answer(&message);
                Ok(message)
            }
            Ok(None) => Err(Fault::NotDone("it ended the stream".to_owned())),
            Err(status) => Err(classify(&status)),
        }
    }

    async fn grpc(&self, member: usize) -> Result<tonic::client::Grpc<Channel>, Fault> {
        let Some(member) = self.members.get(member) else {
            return Err(Fault::NotDone("no such member".to_owned()));
        };
        let mut grpc = tonic::client::Grpc::new(member.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        // If it is not ready, the connection's worker has ended and nothing was sent.
        match grpc.ready().await {
            Ok(()) => Ok(grpc),
            Err(error) => Err(Fault::NotDone(error.to_string())),
        }
    }

    async fn request<T>(&self, member: usize, message: T) -> Result<Request<T>, Fault> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        // A member without a leader must report that at once instead of waiting for one.
        metadata.insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = self.token(member).await? {
            metadata.insert("token", token);
        }
        Ok(request)
    }

    async fn token(&self, member: usize) -> Result<Option<MetadataValue<Ascii>>, Fault> {
        let Some(user) = &self.user else {
            return Ok(None);
        };
        let held = self
            .token
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if held.is_some() {
            return Ok(held);
        }
        let login = api::AuthenticateRequest {
            name: user.name.clone(),
            password: user.password.clone(),
        };
        let request = Request::new(login);
        let answer = self.send(member, api::AUTHENTICATE, request).await;
        let answer: api::AuthenticateResponse = answer.map_err(|fault| match fault {
            // A login may be repeated, so it does not matter whether this one was applied.
            Fault::Unknown(text) => Fault::NotDone(text),
            fault => fault,
        })?;
        let token = MetadataValue::try_from(answer.token)
            .map_err(|_| Fault::Refused("its token is not a valid header value".to_owned()))?;
        self.set_token(Some(token.clone()));
        Ok(Some(token))
    }

    fn set_token(&self, token: Option<MetadataValue<Ascii>>) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Converts a fault to the store's error.
    pub(super) fn to_store_error(&self, fault: Fault) -> StoreError {
        let urls: Vec<_> = self.members.iter().map(|member| &*member.url).collect();
        let urls = urls.join(", ");
        let cause = match fault {
            Fault::Refused(text) => {
                return StoreError::Refused {
                    cause: format!(
                        "{text}; check --store-user, --store-password-file, --store-cert and the \
                         user's permissions for --store-prefix"
                    ),
                };
            }
            Fault::Full(text) => {
                format!("{text}; compact and defragment etcd, then disarm its alarm (docs/etcd.md)")
            }
            Fault::Unknown(text) => format!(
                "{text}; it is unknown whether a change was made; check that etcd at {urls} has a \
                 quorum"
            ),
            Fault::NotDone(text) | Fault::Token(text) => {
                format!(
                    "{text}; check --store, and that etcd at {urls} is running and has a quorum"
                )
            }
            // Callers convert these to their own errors, with the revision or the lease.
            Fault::Compacted => "a revision is compacted".to_owned(),
            Fault::Future => "a revision is not reached yet".to_owned(),
            Fault::NoLease => "a lease does not exist".to_owned(),
        };
        StoreError::Unavailable { cause }
    }
}
