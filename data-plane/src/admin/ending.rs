//! Ends the streams that the proxy itself answers (health watches, reflection, the agent's watches) when the proxy
//! stops: an open stream would keep the process from ending. Wraps a response body. After the stop, data that
//! is ready is still sent, so that the answer to a call in flight is complete; then the stream ends with UNAVAILABLE.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use crate::agent::keep_alive::STOPPING;

/// See the module documentation.
pub struct Ending<B> {
    body: B,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl<B> Ending<B> {
    #[must_use]
    pub fn new(body: B, stop: CancellationToken) -> Self {
        Self {
            body,
            stopped: Box::pin(stop.cancelled_owned()),
            ended: false,
        }
    }
}

impl<B: Body + Unpin> Body for Ending<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        if self.stopped.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.ended = true;
        let mut trailers = HeaderMap::new();
        // A message of plain ASCII always fits into a header.
        let _ = Status::unavailable(STOPPING).add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::body::Bytes;

    use super::*;

    fn frame(text: &'static str) -> Result<Frame<Bytes>, Infallible> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    #[tokio::test]
    async fn a_stream_that_waits_ends_with_unavailable_and_what_is_ready_is_sent() {
        let stop = CancellationToken::new();
        let answers = stream::iter([frame("a"), frame("b")]);
        let held = futures_util::StreamExt::chain(answers, stream::pending());
        let mut body = Ending::new(StreamBody::new(held), stop.clone());
        let first = body.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "a");
        stop.cancel();
        let second = body.frame().await.unwrap().unwrap();
        assert_eq!(second.into_data().unwrap(), "b");
        let last = body.frame().await.unwrap().unwrap();
        let trailers = last.into_trailers().unwrap();
        assert_eq!(trailers.get("grpc-status").unwrap(), "14");
        assert!(body.frame().await.is_none() && body.is_end_stream());
    }
}
