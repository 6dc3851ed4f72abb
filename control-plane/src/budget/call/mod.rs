//! Calls under the memory budget: a call is charged before it begins, each message of a client before it is buffered,
//! and each part of an answer until its reader has taken it. Calls whose answers take long to build wait
//! for a slot. Services are not known here.

use std::{
    convert::Infallible,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body, codegen::Service as _, service::Routes};

use super::{
    Account, Budget, Charge, Peer, Refusal,
    costs::{self, MeshSize, Work},
    count,
};

/// A message up to this size is covered by the charge of its call.
const SMALL_MESSAGE_BYTES: usize = 16 << 10;
/// The memory of a message in multiples of its size: its bytes until they are complete, and what is decoded from them.
const MESSAGE_COST_FACTOR: usize = 3;
/// The longest message of any method (`session::MAX_MESSAGE_BYTES`). A message with a larger announced length is
/// refused by its method, and nothing of it is kept.
const MAX_MESSAGE: usize = 16 << 20;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Admits connections and their calls. Clones share the budget.
#[derive(Clone)]
pub struct Admission {
    budget: Budget,
    mesh: Arc<dyn Fn() -> MeshSize + Send + Sync>,
}

impl Admission {
    /// `mesh` returns the size of the mesh, from which answers that list it are estimated.
    #[must_use]
    pub fn new(budget: Budget, mesh: impl Fn() -> MeshSize + Send + Sync + 'static) -> Self {
        Self {
            budget,
            mesh: Arc::new(mesh),
        }
    }

    pub(crate) fn connect(
        &self,
        address: Option<SocketAddr>,
    ) -> Result<(Account, Charge), Refusal> {
        let peer = Peer::of(address.map(|address| address.ip()));
        self.budget.connect(peer)
    }

    pub(crate) async fn call<B>(
        &self,
        account: Account,
        request: Request<B>,
        mut routes: Routes,
    ) -> Result<Response<Body>, Infallible>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let mut held = account.charge();
        let work = costs::work(request.uri().path());
        let cost = costs::of(request.uri().path(), || (self.mesh)());
        if let Err(refusal) = held.set("this call", cost) {
            count(&self.budget.refused().calls);
            return Ok(Status::from(refusal).into_http());
        }
        let message = Arc::new(Mutex::new(account.charge()));
        let counted = Arc::clone(&message);
        let request = request.map(|body| {
            Body::new(Inbound {
                body,
                message: counted,
                framing: Framing::default(),
                budget: self.budget.clone(),
            })
        });
        let outbound = |body| Outbound {
            body,
            part: account.charge(),
            refused: false,
            first: None,
            budget: self.budget.clone(),
            _held: (held, message),
        };
        if work == Work::Little {
            let response = routes.call(request).await?;
            return Ok(response.map(outbound).map(Body::new));
        }
        let request = match whole(request).await {
            Ok(request) => request,
            Err(status) => return Ok(status.into_http()),
        };
        let (response, slot) = match work {
            Work::Encodes => (routes.call(request).await?, account.take_work_slot().await),
            _ => {
                let slot = account.take_work_slot().await;
                (routes.call(request).await?, slot)
            }
        };
        let (head, body) = response.into_parts();
        let mut body = outbound(body);
        body.encode().await;
        drop(slot);
        Ok(Response::from_parts(head, Body::new(body)))
    }
}

/// Reads a request to its end, so that a slot never waits for a client.
async fn whole(request: Request<Body>) -> Result<Request<Body>, Status> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, SMALL_MESSAGE_BYTES)
        .collect()
        .await
        .map_err(|error| match error.downcast_ref::<LengthLimitError>() {
            Some(_) => Status::invalid_argument("the request is longer than 16 KiB"),
            None => Status::from_error(error),
        });
    Ok(Request::from_parts(head, Body::new(body?)))
}

/// What a client sends. The charge of a message lasts until the next one, or until the call ends: its method may still
/// use the message.
struct Inbound<B> {
    body: B,
    message: Arc<Mutex<Charge>>,
    framing: Framing,
    budget: Budget,
}

impl<B> HttpBody for Inbound<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        if let Some(data) = frame.data_ref() {
            let message = this.message.lock();
            let mut message = message.unwrap_or_else(PoisonError::into_inner);
            let admitted = this.framing.feed(data, |length| {
                let kept = length > SMALL_MESSAGE_BYTES && length <= MAX_MESSAGE;
                message.set(
                    "this message",
                    if kept {
                        length * MESSAGE_COST_FACTOR
                    } else {
                        0
                    },
                )
            });
            if let Err(refusal) = admitted {
                count(&this.budget.refused().messages);
                return Poll::Ready(Some(Err(Box::new(Status::from(refusal)))));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The position of a body in a stream of gRPC messages: a prefix of five bytes, whose last four are the length, and
/// then that many bytes.
#[derive(Debug, Default)]
struct Framing {
    prefix: [u8; 5],
    have: usize,
    left: usize,
}

impl Framing {
    /// Calls `begins` with the length of each message that begins in these bytes.
    fn feed(
        &mut self,
        mut data: &[u8],
        mut begins: impl FnMut(usize) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        loop {
            let skipped = self.left.min(data.len());
            self.left -= skipped;
            data = data.get(skipped..).unwrap_or_default();
            let Some((byte, rest)) = data.split_first() else {
                return Ok(());
            };
            if let Some(place) = self.prefix.get_mut(self.have) {
                *place = *byte;
            }
            self.have += 1;
            data = rest;
            if self.have == self.prefix.len() {
                let [_, a, b, c, d] = self.prefix;
                self.have = 0;
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                begins(self.left)?;
            }
        }
    }
}

/// The answer to a client. A part is charged until the transport asks for the next one: by then the part is sent,
/// except for what is in the transport's buffer.
struct Outbound {
    body: Body,
    part: Charge,
    /// The call was ended, and the client was sent the reason.
    refused: bool,
    /// The first part, if it was encoded before the transport asked for it.
    first: Option<Result<Frame<Bytes>, Status>>,
    budget: Budget,
    _held: (Charge, Arc<Mutex<Charge>>),
}

impl Outbound {
    /// Encodes the first part. The transport would do so only when its client reads.
    async fn encode(&mut self) {
        self.first = poll_fn(|context| Pin::new(&mut *self).poll_frame(context)).await;
    }
}

impl HttpBody for Outbound {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(first));
        }
        if this.refused {
            return Poll::Ready(None);
        }
        if this.part.bytes() > 0 {
            // Reducing a charge cannot fail.
            let _ = this.part.set("this answer", 0);
        }
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            ended => return Poll::Ready(ended),
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        if bytes > SMALL_MESSAGE_BYTES
            && let Err(refusal) = this.part.set("this answer", bytes)
        {
            count(&this.budget.refused().answers);
            this.refused = true;
            let mut trailers = HeaderMap::new();
            // A sentence of printable characters always fits into a header.
            let _ = Status::from(refusal).add_header(&mut trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && (self.refused || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self.first {
            // The body's hint does not count it.
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests;
