//! The delta ADS stream: subscribes to the names of all services and to clusters and endpoints of those in use,
//! acknowledges every response, and reconnects with the versions that it has. Input: responses and uses of services.
//! Output: views. While the control plane is away it retries without limit (every 0.25 to 3 s) and the last view stays in
//! use. `translate` decodes resources; `demand` decides what is in use.

mod handle;
mod stream;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use heddle_pacing::Backoff;
use heddle_proto::error_text::status_text;
use heddle_proto::{BEHIND, ERROR_DOMAIN};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;
use tracing::{debug, info, warn};

use super::{
    Callers, INDEX, SCHEMA, StreamStatus, View,
    demand::Demand,
    last_good::Snapshot,
    resources::{Applied, Resources},
    schemas::Wanted,
};
use crate::control_urls::{Rotation, dial};

pub use handle::{ClientIdentity, Uses, XdsHandle};
use stream::Stream;
pub(super) use stream::node;

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(3);
/// Timeout for opening the stream and for sending a request.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest response, in bytes; one may contain the whole mesh.
const MAX_RESPONSE: usize = 256 * 1024 * 1024;
/// The most requests for descriptors that wait for an answer.
const MAX_WANTED: usize = 1024;
/// The most uses that wait to be processed; a use that is dropped is reported again by the next call.
const MAX_USES: usize = 4096;
/// How often late fetches are counted, and at most how often unused services are looked for.
const TICK: Duration = Duration::from_secs(1);

/// If all replicas report for this long that they are behind this proxy, they are right: their store was set back or
/// replaced.
const LONGEST_BEHIND: Duration = Duration::from_secs(10);

/// The stream's task and its state.
pub struct XdsClient {
    asker: ClientIdentity,
    urls: Vec<String>,
    resources: Resources,
    demand: Demand,
    revision: Arc<AtomicU64>,
    wanted: mpsc::Receiver<Wanted>,
    uses: mpsc::Receiver<Arc<str>>,
    callers: Arc<dyn Callers>,
    looked: Instant,
    view: watch::Sender<Arc<View>>,
    status: watch::Sender<StreamStatus>,
    snapshot: watch::Sender<Snapshot>,
    channel: watch::Sender<Option<Channel>>,
    draining: CancellationToken,
}

/// Why there is no stream.
#[derive(Debug, PartialEq, Eq)]
struct Broken {
    why: String,
    /// The replica shows an older revision than this proxy has seen.
    behind: bool,
}

impl From<String> for Broken {
    fn from(why: String) -> Self {
        Self { why, behind: false }
    }
}

impl Broken {
    /// Read from the status details. A control plane up to 0.1.0 has it only in its message.
    fn of(status: &Status) -> Self {
        let behind = match status.get_details_error_info() {
            Some(info) => info.reason == BEHIND && info.domain == ERROR_DOMAIN,
            None => status.message().starts_with("this replica is at revision "),
        };
        Self {
            why: status_text(status),
            behind,
        }
    }
}

impl XdsClient {
    /// Begins with `resources`: empty, or the last good state.
    #[must_use]
    pub fn new(
        asker: ClientIdentity,
        urls: Vec<String>,
        mut resources: Resources,
        mut demand: Demand,
        revision: Arc<AtomicU64>,
        wanted: mpsc::Receiver<Wanted>,
        callers: Arc<dyn Callers>,
    ) -> (Self, XdsHandle) {
        if urls.is_empty() {
            // There is no control plane: the view is complete as it is.
            resources.set_restored();
        }
        let now = Instant::now();
        for name in resources.clusters.keys() {
            demand.restore(name, now);
        }
        let (report, uses) = Uses::new(demand.check_interval());
        let view = watch::Sender::new(Arc::new(resources.view()));
        let status = watch::Sender::new(StreamStatus::default());
        let snapshot = watch::Sender::new(Snapshot::default());
        let channel = watch::Sender::new(None);
        let draining = CancellationToken::new();
        let handle = XdsHandle {
            view: view.subscribe(),
            status: status.subscribe(),
            snapshot: snapshot.subscribe(),
            channel: channel.subscribe(),
            uses: report,
            draining: draining.clone(),
        };
        let client = Self {
            asker,
            urls,
            resources,
            demand,
            revision,
            wanted,
            uses,
            callers,
            looked: now,
            view,
            status,
            snapshot,
            channel,
            draining,
        };
        client.show_demand();
        (client, handle)
    }

    /// Connects, handles responses, and reconnects, until the process ends.
    pub async fn run(mut self) {
        let urls = std::mem::take(&mut self.urls);
        let Some(mut replicas) = Rotation::new(&urls) else {
            // There is no replica to connect to.
            return self.handling_uses(true, std::future::pending()).await;
        };
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        let mut behind_since = None;
        loop {
            let url = replicas.take();
            let started = Instant::now();
            let Broken { why, behind } = match self.connect(url).await {
                Ok((mut stream, responses)) => {
                    self.status
                        .send_modify(|s| s.connected = Some(url.to_owned()));
                    info!(url, "xDS stream open");
                    self.drive(&mut stream, responses).await
                }
                Err(broken) => broken,
            };
            self.channel.send_replace(None);
            self.note_behind(behind, &mut behind_since);
            self.log_broken(url, why);
            if started.elapsed() > OPEN_TIMEOUT {
                backoff.reset();
            }
            self.handling_uses(true, sleep(backoff.fail())).await;
        }
    }

    /// What a client has seen never goes back, unless the store itself did. After [`LONGEST_BEHIND`] this proxy accepts
    /// an older revision.
    fn note_behind(&self, behind: bool, since: &mut Option<Instant>) {
        if !behind {
            *since = None;
            return;
        }
        if since.get_or_insert_with(Instant::now).elapsed() >= LONGEST_BEHIND {
            warn!(
                "the control plane's store was restored or replaced: using its state from now on"
            );
            self.revision.store(0, Ordering::Relaxed);
            *since = None;
        }
    }

    /// Runs `work` while there is no stream. Uses are recorded for the first requests. Requests for descriptors wait
    /// or, if `away`, are answered with none.
    async fn handling_uses<T>(&mut self, away: bool, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        let mut ticks = interval(TICK);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some(service) = self.uses.recv() => self.note_uses(&service),
                Some(wanted) = self.wanted.recv(), if away => { let _ = wanted.answer.send(None); }
                _ = ticks.tick() => self.count_late(),
            }
        }
    }

    /// Logs one line when the stream breaks and one when the reason changes, not one per attempt.
    fn log_broken(&self, url: &str, why: String) {
        let known = {
            let status = self.status.borrow();
            status.connected.is_none() && status.error == why
        };
        if !known {
            warn!(
                "no xDS stream to the control plane at {url}: {why}; serving with the last known \
                 state, retrying every 0.25 to 3 s"
            );
            self.status.send_modify(|s| {
                s.connected = None;
                s.error = why;
            });
        }
    }

    async fn connect(
        &mut self,
        url: &str,
    ) -> Result<(Stream, Streaming<DeltaDiscoveryResponse>), Broken> {
        let channel = self.handling_uses(false, in_time(dial(url))).await?;
        // Room for the first requests; later there is one per response and change.
        let (requests, questions) = mpsc::channel(32);
        let mut stream = Stream::new(requests);
        let seen = self.revision.load(Ordering::Relaxed);
        stream.first_questions(&self.asker, seen, &self.resources, &self.demand)?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_RESPONSE);
        let open = async {
            let questions = ReceiverStream::new(questions);
            let opened = client.delta_aggregated_resources(questions).await;
            opened.map_err(|status| Broken::of(&status))
        };
        let responses = self.handling_uses(false, in_time(open)).await?.into_inner();
        // Subscribes to services that were used since the first requests.
        stream.follow(&self.demand).await?;
        self.channel.send_replace(Some(channel));
        Ok((stream, responses))
    }

    /// Serves the stream until it ends. Returns the reason.
    async fn drive(
        &mut self,
        stream: &mut Stream,
        mut responses: Streaming<DeltaDiscoveryResponse>,
    ) -> Broken {
        let mut ticks = interval(TICK.min(self.demand.check_interval()));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told_draining = false;
        loop {
            let done = tokio::select! {
                () = self.draining.cancelled(), if !told_draining => {
                    told_draining = true;
                    stream.send_draining(&self.asker).await
                }
                response = responses.message() => match response {
                    Ok(Some(response)) => self.take(stream, &response).await,
                    Ok(None) => return "it ended the stream".to_owned().into(),
                    Err(status) => return Broken::of(&status),
                },
                Some(service) = self.uses.recv() => {
                    self.note_uses(&service);
                    stream.follow(&self.demand).await
                }
                Some(wanted) = self.wanted.recv() => stream.subscribe(wanted).await,
                _ = ticks.tick() => {
                    self.count_late();
                    self.drop_unused(stream).await
                }
            };
            if let Err(why) = done {
                return why.into();
            }
        }
    }

    /// Records a use and all others that are waiting.
    fn note_uses(&mut self, first: &Arc<str>) {
        let now = Instant::now();
        self.note_use(first, now);
        while let Ok(next) = self.uses.try_recv() {
            self.note_use(&next, now);
        }
        self.show_demand();
    }

    fn note_use(&mut self, service: &str, now: Instant) {
        // A service that the control plane has not named does not exist.
        if self.resources.indexes.contains_key(service) && self.demand.want(service, now) {
            debug!(service, "first use: subscribing to its endpoints");
        }
    }

    fn count_late(&mut self) {
        if self.demand.count_late(Instant::now()) {
            self.show_demand();
        }
    }

    /// Called only while there is a control plane from which the service can be fetched again.
    async fn drop_unused(&mut self, stream: &mut Stream) -> Result<(), String> {
        if self.looked.elapsed() < self.demand.check_interval() {
            return Ok(());
        }
        self.looked = Instant::now();
        let gone = self.demand.drop_unused(&self.callers.used(), self.looked);
        if gone.is_empty() {
            return Ok(());
        }
        debug!(services = gone.len(), "unused for too long: unsubscribed");
        self.resources.leave(&gone);
        self.publish();
        let names: HashSet<Arc<str>> = gone.iter().map(|name| Arc::from(name.as_str())).collect();
        self.callers.forget(&Arc::new(names));
        stream.follow(&self.demand).await
    }

    async fn take(
        &mut self,
        stream: &mut Stream,
        response: &DeltaDiscoveryResponse,
    ) -> Result<(), String> {
        let applied = if response.type_url == SCHEMA {
            stream.take_schemas(response)
        } else {
            let (demand, now) = (&mut self.demand, Instant::now());
            self.resources.apply(response, demand, now)
        };
        self.note(response, &applied);
        stream.answer(response, &applied.faults).await?;
        if response.type_url == SCHEMA {
            return stream.release_schemas(response).await;
        }
        if applied.changed {
            self.publish();
        }
        if response.type_url == INDEX {
            stream.follow(&self.demand).await?;
        }
        Ok(())
    }

    fn publish(&self) {
        self.view.send_replace(Arc::new(self.resources.view()));
        let revision = self.revision.load(Ordering::Relaxed);
        self.snapshot.send_replace(Snapshot {
            resources: self.resources.clone(),
            revision,
        });
        self.show_demand();
    }

    fn show_demand(&self) {
        let wanted = self.demand.names().count();
        let (held, fetches) = (self.resources.held(), self.demand.fetches());
        self.status.send_modify(|status| {
            (status.held, status.wanted, status.fetches) = (held, wanted, fetches);
        });
    }

    fn note(&self, response: &DeltaDiscoveryResponse, applied: &Applied) {
        // "<revision>", "<revision>/<hash>" or, if more parts follow, "<revision>+".
        let revision = response
            .system_version_info
            .split(['/', '+'])
            .next()
            .and_then(|r| r.parse::<u64>().ok());
        if let Some(revision) = revision {
            self.revision.fetch_max(revision, Ordering::Relaxed);
        }
        let type_url = response.type_url.clone();
        debug!(
            type_url,
            changed = applied.changed,
            resources = response.resources.len(),
            "xDS response"
        );
        self.status.send_modify(|status| {
            status.error.clear();
            status
                .versions
                .insert(type_url.clone(), response.system_version_info.clone());
            if applied.faults.is_empty() {
                status.accepted += 1;
                status.rejections.remove(&type_url);
            } else {
                let why = applied.faults.join("; ");
                warn!("rejected a resource of {type_url}: {why}; the last good one stays in use");
                status.rejected += 1;
                status.rejections.insert(type_url, why);
            }
        });
    }
}

/// Limits the wait for a replica that does not answer.
async fn in_time<T, E: From<String>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    match timeout(OPEN_TIMEOUT, work).await {
        Ok(done) => done,
        Err(_) => Err(format!("no answer within {OPEN_TIMEOUT:?}").into()),
    }
}

#[cfg(test)]
mod tests;
