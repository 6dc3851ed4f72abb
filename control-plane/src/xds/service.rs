//! `envoy.service.discovery.v3.AggregatedDiscoveryService` on tonic: both variants in one service. Written by hand where
//! others are generated, because responses carry bytes that are encoded already. Nothing is decided here.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures_util::Stream;
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
    Clients, Delta, Sotw, Variant,
    stream::{Peer, RESPONSES, run},
    wire::{DeltaDiscoveryResponse, DiscoveryResponse},
};
use crate::{registry::Registry, snapshot::Publisher};

/// What reflection says of this service and of the others of Envoy: a serialized `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));

/// The service. Clones share the clients and the snapshots.
#[derive(Clone)]
pub struct Ads(Arc<Inner>);

struct Inner {
    registry: Registry,
    publisher: Publisher,
    clients: Clients,
    stop: CancellationToken,
}

/// Serves the publisher's snapshots; streams end when `stop` does.
#[must_use]
pub fn service(
    registry: Registry,
    publisher: Publisher,
    clients: Clients,
    stop: CancellationToken,
) -> Ads {
    Ads(Arc::new(Inner {
        registry,
        publisher,
        clients,
        stop,
    }))
}

impl Ads {
    /// Serves one stream in a task of its own; gives what the client is told. `local`: it reaches us over loopback
    /// or a Unix socket.
    pub(crate) fn begin<V: Variant>(
        &self,
        address: String,
        local: bool,
        requests: impl Stream<Item = Result<V::Request, Status>> + Send + Unpin + 'static,
    ) -> ReceiverStream<Result<V::Response, Status>> {
        let (sender, receiver) = mpsc::channel(RESPONSES);
        let peer = Peer { address, local };
        tokio::spawn(run::<V>(self.clone(), peer, requests, sender));
        ReceiverStream::new(receiver)
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.0.registry
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
    type ResponseStream = ReceiverStream<Result<V::Response, Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<V::Request>>) -> Self::Future {
        let (address, local) = match request.remote_addr() {
            Some(address) => (
                address.to_string(),
                address.ip().to_canonical().is_loopback(),
            ),
            None => ("unix".to_owned(), true),
        };
        let responses = self.0.begin::<V>(address, local, request.into_inner());
        ready(Ok(Response::new(responses)))
    }
}
