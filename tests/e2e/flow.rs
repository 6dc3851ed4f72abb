//! Large messages, long streams and stalled streams: all bytes arrive in order, and a peer that does not read stops
//! only its own stream.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use heddle_proto::echo::v1::EchoRequest;
use heddle_tests::echo::{echo, payload, reach};
use heddle_tests::mesh::Mesh;
use heddle_tests::raw::{Call, Client, body, frame, read};
use heddle_tests::wait::TIMEOUT;
use http::HeaderMap;

use crate::raw_service::{RAW, RawMesh, ok};

/// Bytes that differ by position, so that a lost or doubled piece is noticed.
fn pattern(len: usize) -> Vec<u8> {
    let byte = |at: usize| u8::try_from((at % 251) ^ (at >> 16 & 0x7f)).unwrap();
    (0..len).map(byte).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_16_mib_passes_both_ways() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("b", "e1").await;
    let large: Bytes = pattern(16 << 20).into();
    for node in ["b", "a"] {
        let channel = mesh.channel(node);
        reach(&channel, &["e1"]).await;
        let request = EchoRequest {
            payload: large.clone(),
            ..EchoRequest::default()
        };
        let answer = echo(channel).unary(request).await.unwrap().into_inner();
        assert!(
            answer.payload == large,
            "through {node}: {} bytes",
            answer.payload.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_messages_pass_on_one_stream_in_their_order() {
    const COUNT: u32 = 10_000;
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("b", "e1").await;
    for node in ["b", "a"] {
        let channel = mesh.channel(node);
        reach(&channel, &["e1"]).await;
        let mut client = echo(channel);
        let requests = tokio_stream::iter((0..COUNT).map(|number| payload(&number.to_string())));
        let mut answers = client.bidi_stream(requests).await.unwrap().into_inner();
        let mut next = 0;
        while let Some(answer) = answers.next().await {
            assert_eq!(answer.unwrap().payload, next.to_string());
            next += 1;
        }
        assert_eq!(next, COUNT, "through {node}");

        let request = EchoRequest {
            response_count: COUNT,
            ..payload("down")
        };
        let stream = client.server_stream(request).await.unwrap().into_inner();
        let count = stream.map(Result::unwrap).count().await;
        assert_eq!(count, 10_000, "through {node}");
    }
}

/// More than all windows and buffers on the way together hold.
const FLOOD: usize = 32 << 20;

/// Answers `/Flood` with a flood, `/Drain` only when it has read everything, after `/Go` was called; the rest at once.
async fn flooding() -> RawMesh {
    let go = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    RawMesh::start(move |mut call: Call| {
        let go = std::sync::Arc::clone(&go);
        async move {
            match call.request.uri().path() {
                "/raw.Raw/Flood" => {
                    let mut stream = call.respond.send_response(Call::head(), false).unwrap();
                    let mut left = frame(&pattern(FLOOD));
                    while !left.is_empty() {
                        stream.reserve_capacity(left.len().min(1 << 20));
                        match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                            Some(Ok(room)) => stream
                                .send_data(left.split_to(room.min(left.len())), false)
                                .unwrap(),
                            _ => return,
                        }
                    }
                    stream.send_trailers(ok()).unwrap();
                }
                "/raw.Raw/Drain" => {
                    go.acquire().await.unwrap().forget();
                    let all = body(call.request.body_mut()).await.unwrap();
                    assert!(all == frame(&pattern(FLOOD)), "{} bytes", all.len());
                    call.answer(&[b"all"], ok());
                }
                path => {
                    if path == "/raw.Raw/Go" {
                        go.add_permits(1);
                    }
                    let _ = body(call.request.body_mut()).await;
                    call.answer(&[b"small"], ok());
                }
            }
        }
    })
    .await
}

async fn neighbours_pass(client: &Client, way: &str) {
    let none = HeaderMap::new();
    for number in 0..100 {
        let call = client.call(RAW, "/raw.Raw/Small", &none, b"x");
        let answer = tokio::time::timeout(TIMEOUT, call).await;
        let answer = answer.unwrap_or_else(|_| panic!("{way}: neighbour {number} is stuck"));
        assert_eq!(
            answer.last("grpc-status").as_deref(),
            Some("0"),
            "{way}: {answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_does_not_read_stops_only_its_own_stream() {
    let raw = flooding().await;
    for (way, addr) in raw.ways() {
        let client = Client::connect_with_window(addr, 65_535).await;
        let (response, mut stream) = client.begin(RAW, "/raw.Raw/Flood", &HeaderMap::new()).await;
        stream.send_data(frame(b"x"), true).unwrap();
        let response = response.await.unwrap();
        neighbours_pass(&client, way).await;
        // And the stalled one continues where it stopped.
        let mut stalled = response.into_body();
        let all = tokio::time::timeout(TIMEOUT, body(&mut stalled)).await;
        let all = all.expect("the flood ends").unwrap();
        assert!(all == frame(&pattern(FLOOD)), "{way}: {} bytes", all.len());
        assert_eq!(stalled.trailers().await.unwrap(), Some(ok()), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_read_stops_only_its_own_stream() {
    let raw = flooding().await;
    for (way, addr) in raw.ways() {
        let client = Client::connect(addr).await;
        let (response, mut stream) = client.begin(RAW, "/raw.Raw/Drain", &HeaderMap::new()).await;
        let upload = tokio::spawn(async move {
            let mut left = frame(&pattern(FLOOD));
            while !left.is_empty() {
                stream.reserve_capacity(left.len().min(1 << 20));
                let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                let room = room.unwrap().unwrap().min(left.len());
                let last = room == left.len();
                stream.send_data(left.split_to(room), last).unwrap();
            }
        });
        neighbours_pass(&client, way).await;
        assert!(
            !upload.is_finished(),
            "{way}: {FLOOD} bytes fit into the buffers on the way"
        );
        client
            .call(RAW, "/raw.Raw/Go", &HeaderMap::new(), b"x")
            .await;
        let answer = tokio::time::timeout(TIMEOUT, read(response)).await;
        let answer = answer.expect("the upload ends");
        assert_eq!(
            answer.last("grpc-status").as_deref(),
            Some("0"),
            "{way}: {answer:?}"
        );
        upload.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_outlives_every_default_timeout_of_a_few_seconds() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("b", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
    let request = EchoRequest {
        delay_ms: 6_000,
        ..payload("late")
    };
    let start = tokio::time::Instant::now();
    let answer = echo(mesh.channel("a")).unary(request).await.unwrap();
    assert_eq!(answer.into_inner().payload, "late");
    assert!(start.elapsed() >= Duration::from_secs(6));
}
