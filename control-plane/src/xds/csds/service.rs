//! The gRPC service: one answer, or a stream of questions with answers in parts. In come requests, out go responses;
//! clients are read one at a time, so that a slow reader holds one part and no list of everything.

use std::pin::Pin;

use envoy_types::pb::envoy::service::status::v3::{
    ClientStatusRequest, ClientStatusResponse,
    client_status_discovery_service_server::{
        ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
    },
};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{asked::Asked, holding::Holding, parts::Parts};
use crate::{
    snapshot::Kind,
    xds::{Client, Clients},
};

/// A whole answer: gRPC's default bound of a received message is 4 MiB.
const MAX_ANSWER_BYTES: usize = 3 << 20;
/// One part of an answer on a stream.
const PART_BYTES: usize = 1 << 20;
/// Parts that wait for a reader.
const PARTS: usize = 2;

/// Answers questions about the clients of this replica.
#[derive(Clone)]
pub struct ClientConfigs {
    clients: Clients,
}

/// The gRPC service.
#[must_use]
pub fn csds(clients: Clients) -> ClientStatusDiscoveryServiceServer<ClientConfigs> {
    ClientStatusDiscoveryServiceServer::new(ClientConfigs { clients })
}

type Answer = Result<ClientStatusResponse, Status>;

#[tonic::async_trait]
impl ClientStatusDiscoveryService for ClientConfigs {
    type StreamClientStatusStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let (answers, receiver) = mpsc::channel(PARTS);
        let service = self.clone();
        tokio::spawn(async move {
            if let Err(status) = service.serve(request.into_inner(), &answers).await {
                // A reader that has gone needs no last word.
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        let (asked, mut parts) = read(request.into_inner(), MAX_ANSWER_BYTES)?;
        for client in self.clients.sorted() {
            if asked.is_about(&client.node.id)
                && !parts.add(&client.node, &holdings(&client)).is_empty()
            {
                return Err(Status::resource_exhausted(
                    "the answer is longer than 3 MiB: name nodes in node_matchers, set exclude_resource_contents, or ask \
                     by StreamClientStatus, which answers in parts",
                ));
            }
            // Thousands of names are no reason to hold up the rest.
            tokio::task::yield_now().await;
        }
        Ok(Response::new(parts.take()))
    }
}

impl ClientConfigs {
    async fn serve(
        &self,
        mut requests: Streaming<ClientStatusRequest>,
        answers: &mpsc::Sender<Answer>,
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
            let (asked, mut parts) = read(request, PART_BYTES)?;
            for client in self.clients.sorted() {
                if !asked.is_about(&client.node.id) {
                    continue;
                }
                for part in parts.add(&client.node, &holdings(&client)) {
                    if answers.send(Ok(part)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            // Also if it is empty: each question has an answer.
            if answers.send(Ok(parts.take())).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn read(request: ClientStatusRequest, limit: usize) -> Result<(Asked, Parts), Status> {
    let asked = Asked::parse(request.node_matchers)
        .map_err(|unclear| Status::invalid_argument(unclear.to_string()))?;
    let parts = Parts::new(limit, !request.exclude_resource_contents);
    Ok((asked, parts))
}

/// Names and counted references are copied while the client's session stands still; encoding comes after.
fn holdings(client: &Client) -> Vec<Holding> {
    let session = client.session();
    Kind::ALL
        .into_iter()
        .flat_map(|kind| session.subscription(kind).holdings())
        .collect()
}
