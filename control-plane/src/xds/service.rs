//! `envoy.service.discovery.v3.AggregatedDiscoveryService` on tonic, with both variants. Not generated, because
//! responses contain bytes that are already encoded. It makes no decisions.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{Body as HttpBody, BoxFuture, Service, StdError},
    server::{Grpc, NamedService, StreamingService},
};
use tonic_prost::ProstCodec;

use super::{
    Clients, Delta, Limits, Sotw, Variant,
    admission::{Slot, StreamAdmission},
    metrics::count,
    shed::Shedding,
    stream::{RESPONSE_QUEUE, run},
    wire::{DeltaDiscoveryResponse, DiscoveryResponse},
};
use crate::{
    access::Caller,
    registry::{Membership, Registry},
    snapshot::Publisher,
};

/// The descriptors that reflection serves for this and Envoy's other services: a serialized
/// `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));

/// The service. Clones share the clients and the snapshots.
#[derive(Clone)]
pub struct Ads(Arc<Inner>);

struct Inner {
    membership: Membership,
    publisher: Publisher,
    clients: Clients,
    admission: StreamAdmission,
    shedding: Mutex<Shedding>,
    stop: CancellationToken,
}

/// Serves the publisher's snapshots; streams end when `stop` is cancelled.
#[must_use]
pub fn service(
    membership: Membership,
    publisher: Publisher,
    clients: Clients,
    stop: CancellationToken,
) -> Ads {
    let limits = Limits::default();
    service_within(membership, publisher, clients, limits, stop)
}

/// Like `service`, with other limits.
#[must_use]
pub fn service_within(
    membership: Membership,
    publisher: Publisher,
    clients: Clients,
    limits: Limits,
    stop: CancellationToken,
) -> Ads {
    // Other replicas publish their numbers at most once per renewal.
    let shedding = Shedding::new(&limits, membership.registry().options().renew_interval * 3);
    let counted = clients.clone();
    membership.count_streams_by(move || counted.len());
    Ads(Arc::new(Inner {
        membership,
        publisher,
        clients,
        admission: StreamAdmission::new(limits),
        shedding: Mutex::new(shedding),
        stop,
    }))
}

impl Ads {
    /// Serves one stream in its own task; returns the responses.
    #[cfg(test)]
    pub(crate) fn begin<V: Variant>(
        &self,
        caller: Caller,
        requests: impl Stream<Item = Result<V::Request, Status>> + Send + Unpin + 'static,
    ) -> ReceiverStream<Result<V::Response, Status>> {
        self.accept::<V>(caller, requests).queue
    }

    fn accept<V: Variant>(
        &self,
        caller: Caller,
        requests: impl Stream<Item = Result<V::Request, Status>> + Send + Unpin + 'static,
    ) -> Responses<V::Response> {
        let (sender, receiver) = mpsc::channel(RESPONSE_QUEUE);
        let slot = match self.admission().open(caller.account().who()) {
            Ok(slot) => {
                let held = Arc::clone(&slot);
                tokio::spawn(run::<V>(self.clone(), caller, held, requests, sender));
                Some(slot)
            }
            Err(refusal) => {
                count(&self.clients().metrics().refused);
                // The queue is empty, so there is room.
                let _ = sender.try_send(Err(Status::resource_exhausted(refusal.to_string())));
                None
            }
        };
        Responses {
            queue: ReceiverStream::new(receiver),
            _slot: slot,
        }
    }

    pub(super) fn admission(&self) -> &StreamAdmission {
        &self.0.admission
    }

    pub(super) fn shedding(&self) -> MutexGuard<'_, Shedding> {
        let shedding = &self.0.shedding;
        shedding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn membership(&self) -> &Membership {
        &self.0.membership
    }

    pub(super) fn registry(&self) -> &Registry {
        self.0.membership.registry()
    }

    pub(super) fn publisher(&self) -> &Publisher {
        &self.0.publisher
    }

    pub(super) fn clients(&self) -> &Clients {
        &self.0.clients
    }

    pub(super) fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }
}

/// The responses of a stream. The stream has its slot until the transport drops them; otherwise a client that reads
/// nothing could open any number of streams one after the other.
struct Responses<T> {
    queue: ReceiverStream<Result<T, Status>>,
    _slot: Option<Arc<Slot>>,
}

impl<T> Stream for Responses<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.queue.poll_next_unpin(context)
    }
}

impl NamedService for Ads {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<B> Service<http::Request<B>> for Ads
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let ads = self.clone();
        match request.uri().path().rsplit('/').next() {
            Some("StreamAggregatedResources") => Box::pin(async move {
                let codec = ProstCodec::<DiscoveryResponse, DiscoveryRequest>::default();
                let method = Method::<Sotw>(ads, PhantomData);
                Ok(Grpc::new(codec).streaming(method, request).await)
            }),
            Some("DeltaAggregatedResources") => Box::pin(async move {
                let codec = ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default();
                let method = Method::<Delta>(ads, PhantomData);
                Ok(Grpc::new(codec).streaming(method, request).await)
            }),
            _ => Box::pin(ready(Ok(
                Status::unimplemented("no such method").into_http()
            ))),
        }
    }
}

struct Method<V>(Ads, PhantomData<V>);

impl<V: Variant> StreamingService<V::Request> for Method<V> {
    type Response = V::Response;
    type ResponseStream = Responses<V::Response>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<V::Request>>) -> Self::Future {
        let accepted = Caller::of(&request).map(|caller| {
            let responses = self.0.accept::<V>(caller, request.into_inner());
            Response::new(responses)
        });
        ready(accepted.map_err(Status::from))
    }
}
