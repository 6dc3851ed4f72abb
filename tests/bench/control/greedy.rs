//! Clients that use as much memory of the control plane as they can: watches that nobody reads, and streams that
//! subscribe to many invented names, each with its own node id. Measures the memory of the process and the number of
//! refused calls.

use std::time::Duration;

use heddle_proto::registry::v1::{WatchInstancesRequest, registry_client::RegistryClient};
use heddle_proto::status::v1::{WatchEventsRequest, mesh_status_client::MeshStatusClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic_prost::ProstCodec;

use super::nodes;
use super::plane::Plane;
use super::wire::{DeltaRequest, DeltaResponse, ENDPOINTS, PATH, proxy};
use super::{Figures, REST, number};
use crate::options::Control;

/// The number of connections that they share.
const CONNECTIONS: usize = 20;
/// How many names a stream invents, and their length.
const NAMES: usize = 8_000;
const NAME: usize = 400;
/// The nodes and their instances, which the watches report.
const NODES: usize = 10;
const INSTANCES: usize = 1_000;
/// The longest wait for a call.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn run(options: &Control, figures: &mut Figures) -> anyhow::Result<()> {
    let plane = Plane::start(options.store.as_deref()).await?;
    let _nodes = nodes::open_all(|| plane.channel(), NODES, INSTANCES).await?;
    tokio::time::sleep(REST).await;
    figures.put(
        "greedy: memory before, MB",
        super::megabytes(plane.memory()?),
    );
    let (mut watches, mut events, mut streams) = (Vec::new(), Vec::new(), Vec::new());
    let mut refused = 0;
    let streams_each = options.greedy.div_ceil(CONNECTIONS);
    for each in 0..CONNECTIONS {
        let channel = narrow(plane.grpc)?;
        for number in 0..streams_each {
            let mut registry = RegistryClient::new(channel.clone());
            let watch = registry.watch_instances(WatchInstancesRequest::default());
            match tokio::time::timeout(TIMEOUT, watch).await {
                Ok(Ok(watch)) => watches.push(watch),
                _ => refused += 1,
            }
            let mut status = MeshStatusClient::new(channel.clone());
            let watch = status.watch_events(WatchEventsRequest::default());
            match tokio::time::timeout(TIMEOUT, watch).await {
                Ok(Ok(watch)) => events.push(watch),
                _ => refused += 1,
            }
            let asking = ask(channel.clone(), each * options.greedy + number);
            match tokio::time::timeout(TIMEOUT, asking).await {
                Ok(Ok(stream)) => streams.push(stream),
                _ => refused += 1,
            }
        }
    }
    tokio::time::sleep(REST).await;
    figures.put(
        "greedy: streams that were opened",
        number((streams_each * CONNECTIONS * 3) as u64),
    );
    figures.put("greedy: calls refused", number(refused));
    figures.put(
        "greedy: memory with them, MB",
        super::megabytes(plane.memory()?),
    );
    drop((watches, events, streams));
    tokio::time::sleep(REST).await;
    figures.put(
        "greedy: memory after, MB",
        super::megabytes(plane.memory()?),
    );
    Ok(())
}

/// A connection with small flow control windows.
fn narrow(address: std::net::SocketAddr) -> anyhow::Result<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(1 << 10)
        .initial_connection_window_size(64 << 10);
    Ok(endpoint.connect_lazy())
}

type Open = (tonic::Streaming<DeltaResponse>, mpsc::Sender<DeltaRequest>);

async fn ask(channel: tonic::transport::Channel, number: usize) -> anyhow::Result<Open> {
    let name = |name: usize| format!("{number}-{name:0>NAME$}");
    let request = DeltaRequest {
        node: Some(proxy(&format!("made-up-{number}"))),
        type_url: ENDPOINTS.to_owned(),
        subscribe: (0..NAMES).map(name).collect(),
        ..DeltaRequest::default()
    };
    let (requests, queue) = mpsc::channel(16);
    requests.send(request).await?;
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let codec = ProstCodec::<DeltaRequest, DeltaResponse>::default();
    let path = http::uri::PathAndQuery::from_static(PATH);
    let stream = tonic::Request::new(ReceiverStream::new(queue));
    let answers = grpc.streaming(stream, path, codec).await?.into_inner();
    Ok((answers, requests))
}
