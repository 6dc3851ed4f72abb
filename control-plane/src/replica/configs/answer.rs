//! The answer to another replica about the clients of this one alone, so that requests never loop. Each message has a
//! bounded size and is built when the one before has been read.

use std::{pin::pin, time::Duration};

use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use futures_util::{Stream, StreamExt as _, stream};
use heddle_proto::control::v1::{ClientConfigsRequest, ClientConfigsResponse};
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::xds::{
    Clients,
    csds::{OwnPieces, Part, Parts},
};

/// Most answers at a time; more are refused. Each keeps one message in memory.
pub(in crate::replica) const MAX_ANSWERS: usize = 256;
/// A message ends before it grows larger; a single resource may have up to 1 MiB.
const MESSAGE_BYTES: usize = 256 << 10;
/// Longest time to read an answer to its end; then it is ended, because others wait for its place. The replica that
/// asks reads as fast as its own reader, which has the same time (`status/csds`).
pub(crate) const WHOLE: Duration = Duration::from_secs(15 * 60);

pub(in crate::replica) struct Answer {
    own: OwnPieces,
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
        let own = OwnPieces::new(clients, question);
        Ok(Self {
            own: own.map_err(|unclear| Status::invalid_argument(unclear.to_string()))?,
            parts: Parts::new(MESSAGE_BYTES),
            ended: false,
            _place: place,
        })
    }

    pub(in crate::replica) fn into_stream(self) -> ConfigStream {
        bounded(stream::unfold(self, async |mut answer| {
            let part = answer.next().await?;
            let message = ClientConfigsResponse {
                part: part.response.encode_to_vec().into(),
                continued: part.continued,
            };
            Some((message, answer))
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

pub(in crate::replica) type ConfigStream = ReceiverStream<Result<ClientConfigsResponse, Status>>;

/// Read in its own task, which ends in time: a stream that is never polled would keep its place forever.
fn bounded<T: Send + 'static>(
    messages: impl Stream<Item = T> + Send + 'static,
) -> ReceiverStream<Result<T, Status>> {
    let (sender, reader) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut messages = pin!(messages);
        let send_all = async {
            while let Some(message) = messages.next().await {
                if sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        };
        if timeout(WHOLE, send_all).await.is_err() {
            let left = Status::resource_exhausted(format!("not read completely within {WHOLE:?}"));
            // A reader that reads nothing does not get this either.
            let _ = sender.try_send(Err(left));
        }
    });
    ReceiverStream::new(reader)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{sync::Semaphore, time::Instant};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_gives_its_place_back_in_time_and_one_that_goes_does_at_once() {
        let places = Arc::new(Semaphore::new(1));
        let answer = async || {
            let place = Arc::clone(&places).acquire_owned().await.unwrap();
            bounded(stream::repeat_with(move || place.num_permits()))
        };
        let begun = Instant::now();
        let stopped = answer().await;
        let mut goes = answer().await;
        assert_eq!(begun.elapsed(), WHOLE);
        assert!(matches!(goes.next().await, Some(Ok(1))));
        drop(goes);
        drop(answer().await);
        assert_eq!(begun.elapsed(), WHOLE);
        drop(stopped);
    }
}
