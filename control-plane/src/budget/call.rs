//! Calls under the memory budget: a call is charged before it begins, each message of a client before it is buffered,
//! and each part of an answer until its reader has taken it. Services are not known here.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body, codegen::Service as _, service::Routes};

use super::{
    Account, Budget, Charge, Peer, Refusal,
    costs::{self, MeshSize},
    count,
};

/// A message up to this size is covered by the charge of its call.
const SMALL: usize = 16 << 10;
/// The memory of a message in multiples of its size: its bytes until they are complete, and what is decoded from them.
const FACTOR: usize = 3;
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
        let response = routes.call(request).await?;
        Ok(response.map(|body| {
            Body::new(Outbound {
                body,
                part: account.charge(),
                refused: false,
                budget: self.budget.clone(),
                _held: (held, message),
            })
        }))
    }
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
                let kept = length > SMALL && length <= MAX_MESSAGE;
                message.set("this message", if kept { length * FACTOR } else { 0 })
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
    budget: Budget,
    _held: (Charge, Arc<Mutex<Charge>>),
}

impl HttpBody for Outbound {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
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
        if bytes > SMALL
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
        self.refused || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::atomic::Ordering};

    use futures_util::stream;
    use http_body_util::{BodyExt as _, Empty, StreamBody};
    use tonic::Code;

    use super::*;

    const LIMIT: usize = 128 << 20;

    fn start(length: usize) -> Bytes {
        let length = u32::try_from(length).unwrap().to_be_bytes();
        let mut bytes = vec![0];
        bytes.extend(length);
        bytes.extend([7; 100]);
        bytes.into()
    }

    fn inbound(
        account: &Account,
        budget: &Budget,
        data: Vec<Bytes>,
    ) -> Inbound<impl HttpBody<Data = Bytes, Error = Infallible> + Unpin + use<>> {
        let frames = data.into_iter().map(|data| Ok(Frame::data(data)));
        Inbound {
            body: StreamBody::new(stream::iter(frames)),
            message: Arc::new(Mutex::new(account.charge())),
            framing: Framing::default(),
            budget: budget.clone(),
        }
    }

    fn peer(host: u8) -> Peer {
        Peer::of(Some([10, 0, 0, host].into()))
    }

    #[test]
    fn lengths_are_read_however_the_bytes_are_cut() {
        let mut wire = Vec::new();
        for length in [0, 3, 300, 70_000] {
            wire.push(0);
            wire.extend(u32::try_from(length).unwrap().to_be_bytes());
            wire.extend(vec![1; length]);
        }
        for cut in [1, 2, 5, 7, 1_000, wire.len()] {
            let (mut framing, mut seen) = (Framing::default(), Vec::new());
            for part in wire.chunks(cut) {
                let fed = framing.feed(part, |length| {
                    seen.push(length);
                    Ok(())
                });
                assert!(fed.is_ok());
            }
            assert_eq!(seen, [0, 3, 300, 70_000], "in parts of {cut}");
        }
    }

    /// Issue 10, D1: refused as soon as its length is known, before anything of it is buffered.
    #[tokio::test]
    async fn a_message_is_admitted_before_it_is_buffered() {
        let budget = Budget::new(LIMIT);
        let mut begun = Vec::new();
        let mut refused = None;
        for host in 0..9 {
            // One message of 15 MiB each, of which 100 bytes have arrived.
            let (account, charge) = budget.connect(peer(host / 3)).unwrap();
            let mut body = inbound(&account, &budget, vec![start(15 << 20)]);
            match body.frame().await.unwrap() {
                Ok(_) => begun.push((body, charge)),
                Err(error) => {
                    refused = Some(Status::from_error(error));
                    break;
                }
            }
        }
        let refused = refused.unwrap();
        assert_eq!((begun.len(), refused.code()), (2, Code::ResourceExhausted));
        let text = refused.message();
        assert!(text.contains("clients of 10.0.0.0 hold 90."), "{text}");
        assert!(text.contains("of the 128.0 MiB"), "{text}");
        assert!(text.contains("--client-memory"), "{text}");
        assert_eq!(budget.refused().messages.load(Ordering::Relaxed), 1);

        let (account, charge) = budget.connect(peer(5)).unwrap();
        let mut small = inbound(&account, &budget, vec![start(1 << 20), start(9)]);
        assert!(
            small.frame().await.unwrap().is_ok(),
            "another peer finds room"
        );
        drop((begun, small, charge, account));
        assert_eq!(
            budget.figures(),
            (LIMIT, 0, 0),
            "nothing is held for those that went"
        );
    }

    #[tokio::test]
    async fn an_answer_counts_until_it_is_read_and_ends_with_a_status_over_the_bound() {
        let budget = Budget::new(LIMIT);
        let (account, _charge) = budget.connect(peer(1)).unwrap();
        let part = |bytes: usize| Ok::<_, Status>(Frame::data(Bytes::from(vec![0; bytes])));
        let outbound = |bytes: usize| Outbound {
            body: Body::new(StreamBody::new(stream::iter([part(bytes), part(1)]))),
            part: account.charge(),
            refused: false,
            budget: budget.clone(),
            _held: (account.charge(), Arc::new(Mutex::new(account.charge()))),
        };
        let mut slow = outbound(80 << 20);
        assert!(slow.frame().await.unwrap().unwrap().is_data());
        assert!(budget.figures().1 > 80 << 20);
        let mut second = outbound(40 << 20);
        let end = second.frame().await.unwrap().unwrap();
        let trailers = end.into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "8");
        assert!(second.frame().await.is_none() && second.is_end_stream());
        assert_eq!(budget.refused().answers.load(Ordering::Relaxed), 1);

        assert!(
            slow.frame().await.unwrap().unwrap().is_data(),
            "it was read"
        );
        let mut third = outbound(40 << 20);
        assert!(third.frame().await.unwrap().unwrap().is_data());
    }

    #[tokio::test]
    async fn calls_and_connections_are_admitted() {
        let budget = Budget::new(LIMIT);
        let admission = Admission::new(budget.clone(), || MeshSize {
            instances: 40_000,
            ..MeshSize::default()
        });
        let call = async |account: &Account, path: &str| {
            let request = Request::builder().uri(path).body(Empty::new()).unwrap();
            let routes = Routes::default();
            admission
                .call(account.clone(), request, routes)
                .await
                .unwrap()
        };
        let (account, _charge) = admission.connect(None).unwrap();
        let list = "/heddle.registry.v1.Registry/ListInstances";
        assert_ne!(call(&account, list).await.headers()["grpc-status"], "8");
        let mut held = account.charge();
        held.set("what it holds", 60 << 20).unwrap();
        // Another 40 MiB would exceed its share.
        assert_eq!(call(&account, list).await.headers()["grpc-status"], "8");
        assert_eq!(budget.refused().calls.load(Ordering::Relaxed), 1);
        let answer = call(&account, "/heddle.status.v1.MeshStatus/GetMesh").await;
        assert_ne!(answer.headers()["grpc-status"], "8", "it asks for little");
        drop(held);
        let connections: Vec<_> = (0..1_000)
            .map_while(|_| admission.connect(Some(([10, 0, 0, 1], 1).into())).ok())
            .collect();
        assert!(
            (390..415).contains(&connections.len()),
            "{}",
            connections.len()
        );
        assert_eq!(budget.refused().connections.load(Ordering::Relaxed), 1);
        assert!(admission.connect(Some(([10, 0, 0, 2], 1).into())).is_ok());
        drop(connections);
    }
}
