//! `envoy.service.status.v3.ClientStatusDiscoveryService`: one answer, or a stream of requests, about the clients of
//! all replicas. Clients are read one at a time, so that a slow reader keeps only a few parts in memory and not the
//! whole list. Missing replicas are named in metadata, because the service has no field for them.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use envoy_types::pb::envoy::service::status::v3::{
    ClientStatusRequest, ClientStatusResponse,
    client_status_discovery_service_server::{
        ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
    },
};
use futures_util::{Stream, StreamExt as _};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    replica::{MeshConfigs, QueryError, TimeLimit, WHOLE},
    xds::csds::{Part, Parts},
};

/// Largest complete answer: gRPC's default limit of a received message is 4 MiB.
const MAX_ANSWER_BYTES: usize = 3 << 20;
/// Largest part of an answer on a stream.
const PART_BYTES: usize = 1 << 20;
/// Parts that are queued for a reader.
const PART_QUEUE: usize = 2;
/// The answer to a reader that takes no part for this long is ended: others wait for its place.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Metadata of a response, or of the end of a stream: the names of the replicas whose clients are missing.
const UNANSWERED: &str = "heddle-unanswered-replicas";
/// Most replicas that are named in it; a client may refuse longer headers.
const MAX_NAMED: usize = 32;

/// Answers requests about the clients of all replicas.
#[derive(Clone)]
pub struct Csds {
    configs: MeshConfigs,
}

/// The gRPC service.
#[must_use]
pub fn csds(configs: MeshConfigs) -> ClientStatusDiscoveryServiceServer<Csds> {
    ClientStatusDiscoveryServiceServer::new(Csds { configs })
}

type Answer = Result<ClientStatusResponse, Status>;

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let (answers, receiver) = mpsc::channel(PART_QUEUE);
        let service = self.clone();
        tokio::spawn(async move {
            let mut unanswered = BTreeSet::new();
            let requests = request.into_inner();
            let served = service.serve(requests, &answers, &mut unanswered).await;
            let mut status = match served {
                Ok(()) if unanswered.is_empty() => return,
                Ok(()) => Status::new(Code::Ok, ""),
                Err(status) => status,
            };
            name(&unanswered, status.metadata_mut());
            // If the reader has left, the status is not needed.
            let _ = answers.send(Err(status)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        let opened = self.configs.query(request.into_inner(), TimeLimit::All);
        let mut merged = opened.await.map_err(|error| refusal(&error))?;
        let mut parts = Parts::new(MAX_ANSWER_BYTES);
        while let Some(piece) = merged.next().await {
            if parts.add(piece).is_some() {
                return Err(Status::resource_exhausted(
                    "the response is larger than 3 MiB: select nodes with node_matchers, set \
                     exclude_resource_contents, or call StreamClientStatus, which responds in \
                     parts",
                ));
            }
        }
        let mut response = Response::new(parts.take().response);
        name(merged.unanswered(), response.metadata_mut());
        Ok(response)
    }
}

impl Csds {
    async fn serve(
        &self,
        mut requests: Streaming<ClientStatusRequest>,
        answers: &mpsc::Sender<Answer>,
        unanswered: &mut BTreeSet<String>,
    ) -> Result<(), Status> {
        loop {
            let next = tokio::select! {
                biased;
                () = answers.closed() => return Ok(()),
                next = requests.next() => next,
            };
            let Some(request) = next.transpose()? else {
                return Ok(());
            };
            let answer = self.answer(request, answers, unanswered);
            let answered = timeout(WHOLE, answer).await;
            let stuck = &self.configs.counters().stuck;
            let late = |_| {
                Err(left(
                    stuck,
                    "the response was not read completely within",
                    WHOLE,
                ))
            };
            answered.unwrap_or_else(late)?;
        }
    }

    async fn answer(
        &self,
        request: ClientStatusRequest,
        answers: &mpsc::Sender<Answer>,
        unanswered: &mut BTreeSet<String>,
    ) -> Result<(), Status> {
        let opened = self.configs.query(request, TimeLimit::Each);
        let mut merged = opened.await.map_err(|error| refusal(&error))?;
        let mut parts = Parts::new(PART_BYTES);
        loop {
            let next = tokio::select! {
                biased;
                () = answers.closed() => return Ok(()),
                next = merged.next() => next,
            };
            let Some(piece) = next else { break };
            if let Some(full) = parts.add(piece) {
                self.send_part(answers, full).await?;
            }
        }
        unanswered.extend(merged.unanswered().iter().cloned());
        drop(merged);
        // Sent even if it is empty: each request has an answer.
        self.send_part(answers, parts.take()).await
    }

    async fn send_part(&self, answers: &mpsc::Sender<Answer>, part: Part) -> Result<(), Status> {
        send(answers, part, &self.configs.counters().stuck).await
    }
}

async fn send(answers: &mpsc::Sender<Answer>, part: Part, stuck: &AtomicU64) -> Result<(), Status> {
    match timeout(READ_TIMEOUT, answers.send(Ok(part.response))).await {
        Ok(sent) => sent.map_err(|_| Status::cancelled("the client has gone")),
        Err(_) => Err(left(
            stuck,
            "no part of the response was read for",
            READ_TIMEOUT,
        )),
    }
}

fn left(stuck: &AtomicU64, what: &str, within: Duration) -> Status {
    stuck.fetch_add(1, Ordering::Relaxed);
    Status::resource_exhausted(format!(
        "{what} {within:?}: try again and keep reading, or select nodes with node_matchers"
    ))
}

fn refusal(error: &QueryError) -> Status {
    let text = error.to_string();
    match error {
        QueryError::InvalidMatcher(_) => Status::invalid_argument(text),
        QueryError::Busy => Status::resource_exhausted(text),
    }
}

/// Names the missing replicas; adds nothing if none is missing.
fn name(unanswered: &BTreeSet<String>, metadata: &mut MetadataMap) {
    if unanswered.is_empty() {
        return;
    }
    let named: Vec<_> = unanswered
        .iter()
        .take(MAX_NAMED)
        .map(String::as_str)
        .collect();
    let mut text = named.join(", ");
    if unanswered.len() > MAX_NAMED {
        text += &format!(", and {} more", unanswered.len() - MAX_NAMED);
    }
    // A name that --replica did not set is a host name; a valid one has no character that a header cannot carry.
    let text = text.replace(|each: char| !(' '..='~').contains(&each), "?");
    if let Ok(text) = text.parse() {
        metadata.insert(UNANSWERED, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_reads_nothing_is_left_and_one_that_is_slow_is_not() {
        let stuck = AtomicU64::new(0);
        let (answers, mut reader) = mpsc::channel(1);
        let sent = send(&answers, Part::default(), &stuck).await;
        assert!(sent.is_ok(), "there is room");
        let slow = async {
            tokio::time::sleep(READ_TIMEOUT - Duration::from_secs(1)).await;
            reader.recv().await
        };
        let (sent, read) = tokio::join!(send(&answers, Part::default(), &stuck), slow);
        assert!(sent.is_ok() && read.is_some());
        assert_eq!(stuck.load(Ordering::Relaxed), 0);

        let begun = tokio::time::Instant::now();
        let left = send(&answers, Part::default(), &stuck).await.unwrap_err();
        assert_eq!(left.code(), Code::ResourceExhausted);
        assert_eq!(begun.elapsed(), READ_TIMEOUT);
        assert_eq!(stuck.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn who_is_missing_is_named_in_headers_that_clients_take() {
        let header = |names: &[String]| {
            let mut metadata = MetadataMap::new();
            name(&names.iter().cloned().collect(), &mut metadata);
            let text = metadata.get(UNANSWERED);
            text.map(|text| text.to_str().unwrap().to_owned())
        };
        assert_eq!(header(&[]), None);
        let two = ["r2".to_owned(), "r10\u{e9}".to_owned()];
        assert_eq!(header(&two).as_deref(), Some("r10?, r2"));
        let many: Vec<_> = (0..40)
            .map(|n| format!("r{n:02}{}", "x".repeat(125)))
            .collect();
        let text = header(&many).unwrap();
        assert!(text.ends_with(", and 8 more"), "{text}");
        assert!(text.len() < 8 << 10, "{}", text.len());
    }
}
