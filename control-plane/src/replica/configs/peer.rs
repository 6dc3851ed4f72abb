//! One other replica's part of one answer, read on its own connection, which lives as long as the request. At most one
//! message (256 KiB, or one resource of 1 MiB) and the connection's buffers are kept in memory.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use envoy_types::pb::envoy::service::status::v3::ClientStatusResponse;
use heddle_proto::control::v1::{
    ClientConfigsRequest, ClientConfigsResponse, replica_client::ReplicaClient,
};
use prost::Message as _;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Streaming, transport::Endpoint};

use super::{
    super::peers::{Peer, addressed, endpoint},
    Unanswered,
};
use crate::xds::csds::{Part, Piece};

/// The flow-control window: what arrives before it is read.
const WINDOW: u32 = 256 << 10;

pub(super) struct PeerConfigs {
    name: Arc<str>,
    state: State,
    pieces: VecDeque<Piece>,
    /// A piece was received.
    begun: bool,
}

enum State {
    Unsent(Option<Box<(Endpoint, Request<ClientConfigsRequest>)>>),
    Answering(Box<Streaming<ClientConfigsResponse>>),
    Ended,
}

impl PeerConfigs {
    /// The request is sent with the first `next`.
    pub(super) fn new(peer: &Peer, encoded: Bytes) -> Self {
        // Without a client the replica cannot be reached, or is beyond the limit.
        let reached = peer.client.as_ref().and_then(|_| endpoint(&peer.replica));
        let unsent = reached.map(|endpoint| {
            let endpoint = endpoint.initial_stream_window_size(WINDOW);
            let endpoint = endpoint.initial_connection_window_size(WINDOW);
            let request = ClientConfigsRequest { question: encoded };
            Box::new((endpoint, addressed(&peer.replica, request)))
        });
        Self {
            name: Arc::clone(&peer.replica.name),
            state: State::Unsent(unsent),
            pieces: VecDeque::new(),
            begun: false,
        }
    }

    /// The next piece; none at the end. Must not be called again after an error.
    pub(super) async fn next(&mut self, until: Instant) -> Result<Option<Piece>, Unanswered> {
        if let Some(piece) = self.pieces.pop_front() {
            return Ok(Some(piece));
        }
        let received = timeout_at(until, self.receive()).await;
        let cause = match received {
            Ok(Ok(())) => return Ok(self.pieces.pop_front()),
            Ok(Err(cause)) => cause,
            Err(_) => "it is silent".to_owned(),
        };
        self.state = State::Ended;
        Err(Unanswered {
            name: self.name.to_string(),
            cause,
        })
    }

    /// Receives until there are pieces, or the answer has ended.
    async fn receive(&mut self) -> Result<(), String> {
        while self.pieces.is_empty() {
            match &mut self.state {
                State::Unsent(unsent) => {
                    let (endpoint, question) = *unsent.take().ok_or("it cannot be reached")?;
                    let answers = open(&endpoint, question).await?;
                    self.state = State::Answering(Box::new(answers));
                }
                State::Answering(answers) => match answers.message().await {
                    Ok(Some(answer)) => self.take(answer)?,
                    Ok(None) => self.state = State::Ended,
                    Err(status) => return Err(status.message().to_owned()),
                },
                State::Ended => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, answer: ClientConfigsResponse) -> Result<(), String> {
        let response = ClientStatusResponse::decode(answer.part);
        let part = Part {
            response: response.map_err(|error| error.to_string())?,
            // The first part cannot continue another.
            continued: answer.continued && self.begun,
        };
        self.begun |= !part.is_empty();
        self.pieces.extend(part.into_pieces());
        Ok(())
    }
}

/// A separate connection: what a slow reader leaves unread on it must not block other requests.
async fn open(
    endpoint: &Endpoint,
    question: Request<ClientConfigsRequest>,
) -> Result<Streaming<ClientConfigsResponse>, String> {
    let mut client = ReplicaClient::new(endpoint.connect_lazy());
    let answers = client
        .client_configs(question)
        .await
        .map_err(|status| status.message().to_owned())?;
    Ok(answers.into_inner())
}
