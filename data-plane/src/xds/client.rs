//! The delta ADS stream: asks for clusters, proto services and endpoints, answers every response, and connects again
//! with what it holds. Responses go to `resources`, views go out; a control plane that is gone is tried for ever
//! (0.25–3 s) while the last view stays. What a resource means is `translate`'s.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{Locality, Node, node::UserAgentVersionType},
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::{
        protobuf::{Struct, Value, value::Kind},
        rpc::Status as RpcStatus,
    },
};
use prost::bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use tracing::{debug, info, warn};

use super::{
    ASSIGNMENT, CLUSTER, INDEX, SCHEMA, StreamStatus, View, dial,
    last_good::Snapshot,
    resources::{Applied, Resources},
    schemas::Wanted,
    translate,
};
use crate::{
    agent::reflect::status_words,
    retry::{Retry, any_of},
};

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(3);
/// From dialling to the first response.
const OPENING: Duration = Duration::from_secs(10);
/// A response may hold the whole mesh.
const MAX_RESPONSE: usize = 256 * 1024 * 1024;
/// Questions for descriptors under way at once.
const MAX_WANTED: usize = 1024;

/// Replicas that all say for so long that they are behind what this proxy has seen are right: their store was set
/// back or replaced.
const LONGEST_BEHIND: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Clone, Debug)]
pub struct Asker {
    pub node: String,
    pub region: String,
    pub zone: String,
}

/// What the other rooms see of the stream.
#[derive(Clone)]
pub struct XdsHandle {
    pub view: watch::Receiver<Arc<View>>,
    pub status: watch::Receiver<StreamStatus>,
    pub snapshot: watch::Receiver<Snapshot>,
}

/// The stream's task.
pub struct XdsClient {
    asker: Asker,
    urls: Vec<String>,
    resources: Resources,
    revision: Arc<AtomicU64>,
    wanted: mpsc::Receiver<Wanted>,
    view: watch::Sender<Arc<View>>,
    status: watch::Sender<StreamStatus>,
    snapshot: watch::Sender<Snapshot>,
}

impl XdsClient {
    /// Begins with `resources` (empty, or the last good state).
    #[must_use]
    pub fn new(
        asker: Asker,
        urls: Vec<String>,
        mut resources: Resources,
        revision: Arc<AtomicU64>,
        wanted: mpsc::Receiver<Wanted>,
    ) -> (Self, XdsHandle) {
        if urls.is_empty() {
            // Nothing will come: what is here is all there is.
            resources.set_restored();
        }
        let view = watch::Sender::new(Arc::new(resources.view()));
        let status = watch::Sender::new(StreamStatus::default());
        let snapshot = watch::Sender::new(Snapshot::default());
        let handle = XdsHandle {
            view: view.subscribe(),
            status: status.subscribe(),
            snapshot: snapshot.subscribe(),
        };
        (
            Self {
                asker,
                urls,
                resources,
                revision,
                wanted,
                view,
                status,
                snapshot,
            },
            handle,
        )
    }

    /// Connects, takes responses, and connects again, for ever.
    pub async fn run(mut self) {
        if self.urls.is_empty() {
            // Nobody to ask.
            while let Some(wanted) = self.wanted.recv().await {
                let _ = wanted.answer.send(None);
            }
            return;
        }
        let mut next = any_of(self.urls.len());
        let mut retry = Retry::new(FIRST_RETRY, LAST_RETRY);
        let mut behind = None;
        loop {
            let url = self
                .urls
                .get(next % self.urls.len())
                .cloned()
                .unwrap_or_default();
            next = next.wrapping_add(1);
            let started = Instant::now();
            let why = match self.connect(&url).await {
                Ok(mut stream) => {
                    self.status.send_modify(|s| s.connected = Some(url.clone()));
                    info!(url, "xDS stream open");
                    self.drive(&mut stream).await
                }
                Err(why) => why,
            };
            self.note_behind(&why, &mut behind);
            self.tell_broken(&url, why);
            if started.elapsed() > OPENING {
                retry.reset();
            }
            self.pause(retry.wait()).await;
        }
    }

    /// What a client has seen never goes back, unless the store itself did.
    fn note_behind(&self, why: &str, since: &mut Option<Instant>) {
        if !why.contains("is at revision") {
            *since = None;
            return;
        }
        if since.get_or_insert_with(Instant::now).elapsed() >= LONGEST_BEHIND {
            warn!(
                "the control plane's store was set back or replaced: taking its state from now on"
            );
            self.revision.store(0, Ordering::Relaxed);
            *since = None;
        }
    }

    /// Waits; who wants descriptors meanwhile is told that there are none now.
    async fn pause(&mut self, wait: Duration) {
        let end = sleep(wait);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                Some(wanted) = self.wanted.recv() => { let _ = wanted.answer.send(None); }
            }
        }
    }

    /// One line when it breaks or its reason changes, not one per attempt.
    fn tell_broken(&self, url: &str, why: String) {
        let known = {
            let status = self.status.borrow();
            status.connected.is_none() && status.error == why
        };
        if !known {
            warn!(
                "no xDS from the control plane at {url}: {why}; serving on with what is known and trying again every 0.25 to 3 s"
            );
            self.status.send_modify(|s| {
                s.connected = None;
                s.error = why;
            });
        }
    }

    async fn connect(&self, url: &str) -> Result<Stream, String> {
        let opening = async {
            let channel = dial(url).await?;
            // Three first questions, then one per response and change.
            let (requests, stream) = mpsc::channel(32);
            let mut stream_out = Stream {
                requests,
                responses: None,
                eds: BTreeSet::new(),
                wanted: BTreeMap::new(),
            };
            let seen = self.revision.load(Ordering::Relaxed);
            stream_out.first_questions(&self.asker, seen, &self.resources)?;
            let mut client = AggregatedDiscoveryServiceClient::new(channel)
                .max_decoding_message_size(MAX_RESPONSE);
            let opened = client
                .delta_aggregated_resources(ReceiverStream::new(stream))
                .await;
            stream_out.responses = Some(opened.map_err(|s| status_words(&s))?.into_inner());
            Ok(stream_out)
        };
        match timeout(OPENING, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(format!("no answer within {OPENING:?}")),
        }
    }

    /// Until the stream ends; its reason.
    async fn drive(&mut self, stream: &mut Stream) -> String {
        let Some(mut responses) = stream.responses.take() else {
            return "it was not opened".into();
        };
        loop {
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        if let Err(why) = self.take(stream, &response).await {
                            return why;
                        }
                    }
                    Ok(None) => return "it ended the stream".into(),
                    Err(status) => return status_words(&status),
                },
                Some(wanted) = self.wanted.recv() => {
                    if let Err(why) = stream.want(wanted).await {
                        return why;
                    }
                }
            }
        }
    }

    async fn take(
        &mut self,
        stream: &mut Stream,
        response: &DeltaDiscoveryResponse,
    ) -> Result<(), String> {
        let applied = if response.type_url == SCHEMA {
            stream.take_schemas(response)
        } else {
            self.resources.apply(response)
        };
        self.note(response, &applied);
        stream.answer(response, &applied.faults).await?;
        if response.type_url == SCHEMA {
            return stream.release_schemas(response).await;
        }
        if response.type_url == CLUSTER {
            stream.follow_clusters(&self.resources).await?;
        }
        if applied.changed {
            self.view.send_replace(Arc::new(self.resources.view()));
            let revision = self.revision.load(Ordering::Relaxed);
            self.snapshot.send_replace(Snapshot {
                resources: self.resources.clone(),
                revision,
            });
        }
        Ok(())
    }

    fn note(&self, response: &DeltaDiscoveryResponse, applied: &Applied) {
        // "<revision>" or "<revision>/<hash>".
        let revision = response
            .system_version_info
            .split('/')
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
                warn!("rejected of {type_url}: {why}; the last good ones stay");
                status.rejected += 1;
                status.rejections.insert(type_url, why);
            }
        });
    }
}

/// One connection's state.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Option<Streaming<DeltaDiscoveryResponse>>,
    /// Assignments asked for on this stream.
    eds: BTreeSet<String>,
    /// Who waits for which descriptors.
    wanted: BTreeMap<String, Vec<oneshot::Sender<Option<Bytes>>>>,
}

impl Stream {
    /// Clusters, proto services, and the endpoints of the clusters held already. The node stands on the first
    /// request only; what is held is named, so that the answer is the difference.
    fn first_questions(
        &mut self,
        asker: &Asker,
        seen: u64,
        resources: &Resources,
    ) -> Result<(), String> {
        let everything = vec!["*".to_owned()];
        let held: Vec<String> = resources.clusters.keys().cloned().collect();
        self.eds = held.iter().cloned().collect();
        let mut questions = vec![
            question(CLUSTER, everything.clone(), resources.versions(CLUSTER)),
            question(INDEX, everything, resources.versions(INDEX)),
        ];
        if !held.is_empty() {
            questions.push(question(ASSIGNMENT, held, resources.versions(ASSIGNMENT)));
        }
        if let Some(first) = questions.first_mut() {
            first.node = Some(node(asker, seen));
        }
        for one in questions {
            self.requests.try_send(one).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// ACK, or NACK with the reason of each rejected resource.
    async fn answer(
        &self,
        response: &DeltaDiscoveryResponse,
        faults: &[String],
    ) -> Result<(), String> {
        let error_detail = (!faults.is_empty()).then(|| RpcStatus {
            code: Code::InvalidArgument.into(),
            // A mesh full of faults would not fit: the first ones say enough.
            message: faults.join("; ").chars().take(4000).collect(),
            details: Vec::new(),
        });
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await
    }

    /// Endpoints are asked for by name: of new clusters, and no longer of those that are gone.
    async fn follow_clusters(&mut self, resources: &Resources) -> Result<(), String> {
        let now: BTreeSet<String> = resources.clusters.keys().cloned().collect();
        let new: Vec<String> = now.difference(&self.eds).cloned().collect();
        let gone: Vec<String> = self.eds.difference(&now).cloned().collect();
        self.eds = now;
        if new.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let mut request = question(ASSIGNMENT, new, HashMap::new());
        request.resource_names_unsubscribe = gone;
        self.send(request).await
    }

    async fn want(&mut self, wanted: Wanted) -> Result<(), String> {
        let Wanted { sha256, answer } = wanted;
        self.wanted
            .retain(|_, waiting| waiting.iter().any(|w| !w.is_closed()));
        if self.wanted.len() >= MAX_WANTED {
            let _ = answer.send(None);
            return Ok(());
        }
        let waiting = self.wanted.entry(sha256.clone()).or_default();
        waiting.push(answer);
        if waiting.len() > 1 {
            return Ok(());
        }
        self.send(question(SCHEMA, vec![sha256], HashMap::new()))
            .await
    }

    fn take_schemas(&mut self, response: &DeltaDiscoveryResponse) -> Applied {
        let mut applied = Applied::default();
        for resource in &response.resources {
            let bytes = resource
                .resource
                .as_ref()
                .map(|any| Bytes::copy_from_slice(&any.value))
                .unwrap_or_default();
            let found = translate::descriptors(&resource.name, &bytes);
            if let Err(fault) = &found {
                applied.faults.push(format!("{}: {fault}", resource.name));
            }
            self.tell_wanted(&resource.name, found.ok().as_ref());
        }
        for name in &response.removed_resources {
            self.tell_wanted(name, None);
        }
        applied
    }

    fn tell_wanted(&mut self, sha256: &str, bytes: Option<&Bytes>) {
        for answer in self.wanted.remove(sha256).unwrap_or_default() {
            let _ = answer.send(bytes.cloned());
        }
    }

    /// Content by hash never changes: once it has come the subscription has no use.
    async fn release_schemas(&self, response: &DeltaDiscoveryResponse) -> Result<(), String> {
        let names = response.resources.iter().map(|r| r.name.clone());
        let gone = names
            .chain(response.removed_resources.iter().cloned())
            .collect();
        let mut request = question(SCHEMA, Vec::new(), HashMap::new());
        request.resource_names_unsubscribe = gone;
        self.send(request).await
    }

    async fn send(&self, request: DeltaDiscoveryRequest) -> Result<(), String> {
        match timeout(OPENING, self.requests.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("it ended the stream".into()),
            Err(_) => Err(format!("it has read nothing for {OPENING:?}")),
        }
    }
}

fn question(
    type_url: &str,
    subscribe: Vec<String>,
    held: HashMap<String, String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: subscribe,
        initial_resource_versions: held,
        ..DeltaDiscoveryRequest::default()
    }
}

/// `seen` is the newest revision this proxy knows of: a replica that is behind it waits or refuses.
fn node(asker: &Asker, seen: u64) -> Node {
    let word = |w: &str| Value {
        kind: Some(Kind::StringValue(w.to_owned())),
    };
    let fields = [
        ("role".to_owned(), word("proxy")),
        ("node".to_owned(), word(&asker.node)),
        ("revision".to_owned(), word(&seen.to_string())),
    ]
    .into_iter()
    .collect();
    Node {
        id: asker.node.clone(),
        metadata: Some(Struct { fields }),
        locality: Some(Locality {
            region: asker.region.clone(),
            zone: asker.zone.clone(),
            sub_zone: String::new(),
        }),
        user_agent_name: "heddle-proxy".to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        )),
        ..Node::default()
    }
}
