//! One stream from its first request to its end: reads requests, follows snapshots, fetches schemas, and sends the
//! responses that the client's state allows. At most one response per type is unacknowledged, so a client that does not
//! read delays no other client and costs a bounded number of bytes.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream as Requests, StreamExt as _};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tonic::Status;

use super::{
    Ads, ClientState, ClientView, LARGE, NodeError, NodeInfo, Refusal, RequestOutcome, Variant,
    admission::Slot, clients::ConnectedClient, metrics::count, node::says_draining,
    pacing::StreamPacing, schema::SCHEMA_RETRY, stream_end::left_behind,
};
use crate::{
    access::{Caller, ConnectionEnd},
    budget::{Account, Charge},
    snapshot::{Kind, Snapshot, outbound_listener},
};

/// Capacity of the queue to the transport: each type has at most one unanswered response.
pub(super) const RESPONSE_QUEUE: usize = Kind::ALL.len() + 2;
/// The first request must come within this time.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client that saw a newer revision waits for this replica to reach it.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// Most bytes kept for a name besides the name itself.
const NAME_OVERHEAD: usize = 256;
/// The client's memory is counted again once this much may have been added: counting takes time in proportion to the
/// names.
const RECOUNT_BYTES: usize = 64 << 10;

/// Shortest time between two logged rejections of one client.
const REJECTION_PAUSE: Duration = Duration::from_secs(1);

/// Runs a stream. The client is sent the reason why it ends.
pub(super) async fn run<V: Variant>(
    ads: Ads,
    caller: Caller,
    slot: Arc<Slot>,
    mut requests: impl Requests<Item = Result<V::Request, Status>> + Unpin,
    responses: mpsc::Sender<Result<V::Response, Status>>,
) {
    let connection = caller.connection().clone();
    let ended = tokio::select! {
        biased;
        () = ads.stop().cancelled() => Err(Status::unavailable("the control plane is stopping")),
        () = responses.closed() => Ok(()),
        status = left_behind(&ads, slot.number()) => {
            connection.begin();
            Err(status)
        }
        ended = serve::<V>(&ads, caller, &slot, &mut requests, &responses) => ended,
    };
    if let Err(status) = ended {
        // There is room in the queue: each type has at most one unanswered response.
        let _ = responses.try_send(Err(status));
    }
}

async fn serve<V: Variant>(
    ads: &Ads,
    caller: Caller,
    slot: &Slot,
    requests: &mut (impl Requests<Item = Result<V::Request, Status>> + Unpin),
    responses: &mpsc::Sender<Result<V::Response, Status>>,
) -> Result<(), Status> {
    let Ok(first) = tokio::time::timeout(FIRST_REQUEST_TIMEOUT, requests.next()).await else {
        return Err(Status::deadline_exceeded("no request came within 30 s"));
    };
    let Some(first) = first.transpose()? else {
        return Ok(());
    };
    let node = NodeInfo::parse(V::node(&first), caller.is_local()).map_err(|error| {
        tracing::warn!(peer = %caller, %error, "an xDS stream is refused");
        refuse(ads, &error)
    })?;
    admit(ads, &caller, slot, &node).await?;
    let mut stream = Stream::<V>::begin(ads, &caller, node, responses);
    stream.catch_up(stream.member.client.node.revision).await?;
    stream.on_request(&first).await?;
    drop(first);
    let mut fetch = None;
    let tick = tokio::time::sleep(stream.pacing.tick());
    tokio::pin!(tick);
    loop {
        stream.send_all()?;
        if fetch.is_none() {
            fetch = stream.fetch_schema().map(Box::pin);
        }
        let paused = stream.pacing.paused_until();
        let large = stream.pacing.large_from();
        let missing = stream.member.client.state().has_missing_schemas();
        tokio::select! {
            biased;
            changed = stream.snapshots.changed() => {
                if changed.is_err() {
                    return Err(Status::unavailable("the control plane is stopping"));
                }
                stream.observe();
            }
            (name, descriptors) = wait_for(&mut fetch) => {
                fetch = None;
                stream.send_schema(&name, descriptors)?;
            }
            request = requests.next(), if paused.is_none() => match request.transpose()? {
                Some(request) => stream.on_request(&request).await?,
                None => return Ok(()),
            },
            () = tokio::time::sleep(SCHEMA_RETRY), if missing => {
                stream.member.client.state().retry_schemas();
            }
            () = tokio::time::sleep_until(paused.unwrap_or_else(Instant::now)), if paused.is_some() => {
                stream.pacing.resume();
            }
            () = tokio::time::sleep_until(large.unwrap_or_else(Instant::now)), if large.is_some() => {
                stream.pacing.release_large();
                stream.member.client.state().hold_back_large(false);
            }
            () = &mut tick => {
                stream.check()?;
                tick.as_mut().reset(Instant::now() + stream.pacing.tick());
            }
        }
    }
}

/// The status for a client whose request breaks a bound or is malformed.
fn refuse(ads: &Ads, error: &NodeError) -> Status {
    count(&ads.clients().metrics().violations);
    Status::invalid_argument(error.to_string())
}

/// Waits for the stream's turn, for a bounded time.
async fn admit(ads: &Ads, caller: &Caller, slot: &Slot, node: &NodeInfo) -> Result<(), Status> {
    let admission = ads.admission();
    match admission.admit(slot, &caller.to_string(), node, Instant::now()) {
        Ok(wait) if wait.is_zero() => Ok(()),
        Ok(wait) => {
            tokio::time::sleep(wait).await;
            Ok(())
        }
        Err(refusal) => {
            count(&ads.clients().metrics().refused);
            tracing::info!(peer = %caller, node = %node.id, %refusal, "an xDS stream is refused");
            let text = refusal.to_string();
            Err(match refusal {
                Refusal::Busy { .. } => Status::unavailable(text),
                Refusal::Full(_) | Refusal::Share { .. } | Refusal::Client { .. } => {
                    Status::resource_exhausted(text)
                }
            })
        }
    }
}

async fn wait_for<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

pub(super) struct Stream<'a, V: Variant> {
    pub(super) ads: &'a Ads,
    pub(super) responses: &'a mpsc::Sender<Result<V::Response, Status>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) member: ConnectedClient,
    pub(super) pacing: StreamPacing,
    pub(super) connection: ConnectionEnd,
    /// The client was shed and has reconnected here: it is not shed again.
    pub(super) stays: bool,
    /// The client asked for a type that is not served, and this was logged.
    warned: bool,
    /// When a rejection was logged last.
    rejection_logged: Option<Instant>,
    /// The charge for what is kept of the client's subscriptions.
    charge: Charge,
    account: Account,
    /// Most bytes that may have been added since the charge was last counted.
    added: usize,
}

impl<'a, V: Variant> Stream<'a, V> {
    fn begin(
        ads: &'a Ads,
        caller: &Caller,
        node: NodeInfo,
        responses: &'a mpsc::Sender<Result<V::Response, Status>>,
    ) -> Self {
        let mut snapshots = ads.publisher().subscribe();
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let mut view = ClientView::new(node.audience);
        view.outbound = node
            .outbound
            .map(|address| outbound_listener(address, ads.publisher().encodes()));
        let state = ClientState::new(view, &snapshot);
        let member = ads.clients().join(node, caller.to_string(), V::WORD, state);
        let now = Instant::now();
        let pacing = StreamPacing::new(ads.admission().limits(), member.id, now);
        let client = &member.client;
        let stays = ads
            .shedding()
            .is_back(&client.address, &client.node.id, now);
        Self {
            ads,
            responses,
            snapshots,
            snapshot,
            member,
            pacing,
            connection: caller.connection().clone(),
            charge: caller.account().charge(),
            account: caller.account().clone(),
            added: 0,
            stays,
            warned: false,
            rejection_logged: None,
        }
    }

    /// The revision that a client sees never decreases: if it saw a newer one, this waits for it.
    async fn catch_up(&mut self, seen: u64) -> Result<(), Status> {
        if seen <= self.snapshot.revision {
            return Ok(());
        }
        let reached = self
            .snapshots
            .wait_for(|snapshot| snapshot.revision >= seen);
        let reached = tokio::time::timeout(CATCH_UP_TIMEOUT, reached)
            .await
            .map(drop);
        self.observe();
        if reached.is_ok() {
            return Ok(());
        }
        count(&self.ads.clients().metrics().behind);
        let text = format!(
            "this replica is at revision {} and the client has seen {seen}: try another replica, or again later",
            self.snapshot.revision
        );
        tracing::warn!(
            node = %self.member.client.node.id,
            "{text} (if the store was replaced by an older or an empty one, restart the client)"
        );
        Err(self.behind(self.snapshot.revision, seen, text))
    }

    async fn on_request(&mut self, request: &V::Request) -> Result<(), Status> {
        if self.pacing.on_request(V::names(request), Instant::now()) {
            count(&self.ads.clients().metrics().muted);
        }
        let node = &self.member.client.node;
        node.check_same(V::node(request)).map_err(|error| {
            tracing::warn!(node = %node.id, %error, "an xDS stream is ended");
            refuse(self.ads, &error)
        })?;
        if says_draining(V::node(request)) {
            self.member.client.drains();
        }
        let Some(kind) = Kind::from_url(V::type_url(request)) else {
            count(&self.ads.clients().metrics().unknown_types);
            if !self.warned {
                self.warned = true;
                let node = &self.member.client.node.id;
                let url = super::node::cut(V::type_url(request), 256);
                tracing::info!(%node, url, "a client subscribes to a type that is not served; ignored");
            }
            return Ok(());
        };
        self.catch_up(V::revision(request)).await?;
        let client = &self.member.client;
        let outcome = client
            .state()
            .on_request::<V>(kind, request)
            .map_err(|violation| {
                count(&self.ads.clients().metrics().violations);
                tracing::warn!(node = %client.node.id, %violation, "an xDS stream is ended");
                Status::resource_exhausted(violation.to_string())
            })?;
        self.ads.clients().metrics().count_outcome(kind, outcome);
        if matches!(
            outcome,
            RequestOutcome::Rejected | RequestOutcome::Acknowledged
        ) {
            client.has_answered(Instant::now());
        }
        self.added += request.encoded_len() + V::names(request) * NAME_OVERHEAD;
        self.count_cost()?;
        match outcome {
            RequestOutcome::Rejected => self.log_rejection(kind),
            RequestOutcome::Acknowledged if kind == Kind::Endpoint => {
                self.ads.clients().progressed();
            }
            RequestOutcome::Subscribed | RequestOutcome::Acknowledged | RequestOutcome::Stale => {}
        }
        Ok(())
    }

    /// At most once a second: a client may reject as fast as it can send requests.
    fn log_rejection(&mut self, kind: Kind) {
        if self
            .rejection_logged
            .is_some_and(|at| at.elapsed() < REJECTION_PAUSE)
        {
            return;
        }
        self.rejection_logged = Some(Instant::now());
        let client = &self.member.client;
        let state = client.state();
        let status = state.subscription(kind).status();
        if let Some(rejected) = status.and_then(|status| status.rejected) {
            tracing::warn!(
                node = %client.node.id,
                kind = kind.word(),
                version = rejected.version,
                reason = rejected.reason,
                "a client rejected a response (NACK)"
            );
        }
    }

    /// Takes the newest snapshot. A caller that waits until all clients have acknowledged a removal first waits for the
    /// snapshot with that removal, and ignores clients that have not subscribed to the service. So a client that
    /// subscribes a moment later must not get an older snapshot.
    fn follow(&mut self) {
        // An error means that the publisher has ended, which the main loop notices.
        if self.snapshots.has_changed().unwrap_or(false) {
            self.observe();
        }
    }

    fn observe(&mut self) {
        self.snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        self.member.client.state().observe(&self.snapshot);
    }

    fn send_all(&mut self) -> Result<(), Status> {
        self.follow();
        let before = self.examined();
        loop {
            let next = self.member.client.state().next::<V>(&self.snapshot);
            let Some((kind, response)) = next else {
                break;
            };
            self.send(kind, response)?;
        }
        if self.examined() != before {
            // A state that changed nothing for this client counts as acknowledged.
            self.ads.clients().progressed();
        }
        Ok(())
    }

    fn examined(&self) -> u64 {
        self.member
            .client
            .state()
            .subscription(Kind::Endpoint)
            .examined()
    }

    pub(super) fn send(&mut self, kind: Kind, response: V::Response) -> Result<(), Status> {
        let bytes = response.encoded_len();
        self.ads.clients().metrics().sent(kind, bytes);
        self.added += bytes;
        self.count_cost()?;
        if kind == Kind::Endpoint && bytes > LARGE {
            self.pace_large(bytes);
        }
        let now = Instant::now();
        self.pacing.sent(now);
        self.member.client.was_sent(now);
        self.responses
            .try_send(Ok(response))
            .map_err(|_| Status::resource_exhausted("the client does not read its responses"))
    }

    /// A large response is sent: newer states of its resources wait for a time that depends on its size.
    fn pace_large(&mut self, bytes: usize) {
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
        let now = Instant::now();
        let others = self.ads.admission().sent_large(kib, now);
        if self.pacing.sent_large(kib, others, now) {
            count(&self.ads.clients().metrics().held_back);
            self.member.client.state().hold_back_large(true);
        }
    }

    /// Charges the client for what is kept of it.
    fn count_cost(&mut self) -> Result<(), Status> {
        if self.added < RECOUNT_BYTES.max(self.charge.bytes() / 4) && self.charge.bytes() > 0 {
            return Ok(());
        }
        self.added = 0;
        let client = &self.member.client;
        let cost = client.state().cost();
        self.charge.set("this stream", cost).map_err(|refusal| {
            self.account.count_refused();
            tracing::warn!(node = %client.node.id, %refusal, "an xDS stream is ended");
            refusal.into()
        })
    }
}
