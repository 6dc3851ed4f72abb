//! The delta ADS stream: asks for clusters, proto services and endpoints, answers every response, and connects again
//! with what it holds. Responses go to `resources`, views go out; a control plane that is gone is tried for ever
//! (0.25–3 s) while the last view stays. What a resource means is `translate`'s.

mod stream;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info, warn};

use super::{
    CLUSTER, SCHEMA, StreamStatus, View, dial,
    last_good::Snapshot,
    resources::{Applied, Resources},
    schemas::Wanted,
};
use crate::{
    agent::reflect::status_words,
    retry::{Retry, Rotation},
};

use stream::Stream;

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
        let urls = std::mem::take(&mut self.urls);
        let Some(mut replicas) = Rotation::new(&urls) else {
            // Nobody to ask.
            while let Some(wanted) = self.wanted.recv().await {
                let _ = wanted.answer.send(None);
            }
            return;
        };
        let mut retry = Retry::new(FIRST_RETRY, LAST_RETRY);
        let mut behind = None;
        loop {
            let url = replicas.take();
            let started = Instant::now();
            let why = match self.connect(url).await {
                Ok(mut stream) => {
                    self.status
                        .send_modify(|s| s.connected = Some(url.to_owned()));
                    info!(url, "xDS stream open");
                    self.drive(&mut stream).await
                }
                Err(why) => why,
            };
            self.note_behind(&why, &mut behind);
            self.tell_broken(url, why);
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
            let mut stream_out = Stream::new(requests);
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

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, atomic::Ordering},
        time::Instant,
    };

    use super::{Asker, LONGEST_BEHIND, Resources, XdsClient};
    use crate::xds::schemas::Schemas;

    #[tokio::test]
    async fn only_a_store_that_stays_behind_is_taken_for_a_new_one() {
        let (_, wanted) = Schemas::new();
        let asker = Asker {
            node: "a".into(),
            region: String::new(),
            zone: String::new(),
        };
        let urls = vec!["http://127.0.0.1:1".into()];
        let (client, _) = XdsClient::new(asker, urls, Resources::default(), Arc::default(), wanted);
        let seen = || client.revision.load(Ordering::Relaxed);
        client.revision.store(9, Ordering::Relaxed);
        let behind = "Unavailable: this replica is at revision 3 and the client has seen 9";
        let mut since = None;
        client.note_behind(behind, &mut since);
        assert_eq!(seen(), 9, "another replica may be up to date");
        let long_ago = Instant::now().checked_sub(LONGEST_BEHIND);
        since = long_ago;
        client.note_behind("connection refused", &mut since);
        assert_eq!((since, seen()), (None, 9), "that is another trouble");
        since = long_ago;
        client.note_behind(behind, &mut since);
        assert_eq!(seen(), 0);
    }
}
