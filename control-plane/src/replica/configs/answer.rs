//! The answer to another replica: the clients of this one alone, so that no question goes in circles. In comes the
//! question as that replica was asked it, out go messages of bounded size, each made when the one before has been read.

use std::pin::Pin;

use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use futures_util::{Stream, stream};
use heddle_proto::control::v1::{ClientConfigsRequest, ClientConfigsResponse};
use prost::Message as _;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use crate::xds::{
    Clients,
    csds::{Own, Part, Parts},
};

/// Answers under way at once; more are refused. Each holds one message.
pub(in crate::replica) const MAX_ANSWERS: usize = 256;
/// A message is ended before it is longer; a single resource may be up to 1 MiB.
const MESSAGE_BYTES: usize = 256 << 10;

pub(in crate::replica) struct Answer {
    own: Own,
    parts: Parts,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

impl Answer {
    pub(in crate::replica) fn new(
        clients: &Clients,
        request: ClientConfigsRequest,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, Status> {
        let question = ClientStatusRequest::decode(request.question).map_err(|error| {
            Status::invalid_argument(format!(
                "question: must be an envoy.service.status.v3.ClientStatusRequest: {error}"
            ))
        })?;
        let own = Own::new(clients, question);
        Ok(Self {
            own: own.map_err(|unclear| Status::invalid_argument(unclear.to_string()))?,
            parts: Parts::new(MESSAGE_BYTES),
            ended: false,
            _place: place,
        })
    }

    pub(in crate::replica) fn into_stream(self) -> ConfigStream {
        Box::pin(stream::unfold(self, async |mut answer| {
            let part = answer.next().await?;
            let message = ClientConfigsResponse {
                part: part.response.encode_to_vec().into(),
                continued: part.continued,
            };
            Some((Ok(message), answer))
        }))
    }

    async fn next(&mut self) -> Option<Part> {
        while !self.ended {
            match self.own.next().await {
                Some(piece) => {
                    if let Some(full) = self.parts.add(piece) {
                        return Some(full);
                    }
                }
                None => self.ended = true,
            }
        }
        Some(self.parts.take()).filter(|left| !left.is_empty())
    }
}

pub(in crate::replica) type ConfigStream =
    Pin<Box<dyn Stream<Item = Result<ClientConfigsResponse, Status>> + Send>>;
