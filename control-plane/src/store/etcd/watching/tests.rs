use std::{
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
};

use http_body_util::StreamBody;
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use super::{super::EtcdOptions, *};

#[test]
fn versions_are_compared_by_their_numbers() {
    for old in ["3.5.1", "3.5.7", "3.4.40", "2.3.8"] {
        assert!(is_too_old(old), "{old}");
    }
    for new in [
        "3.5.8",
        "3.5.10",
        "3.6.0",
        "3.7.0-rc.1",
        "4.0.0",
        "",
        "main",
    ] {
        assert!(!is_too_old(new), "{new}");
    }
}

/// An etcd of one member that supports just the opening of a watch.
#[derive(Clone, Default)]
struct Member {
    /// The error of a request for etcd's revision; none if it returns the revision.
    range_fails: Option<&'static str>,
    /// The reason with which it cancels each watch that is opened.
    watch_fails: Option<&'static str>,
    /// The number of failures that it returned.
    failures: Arc<AtomicU64>,
}

/// Its revision, which is lower than the one that was read before.
const MEMBER_AT: i64 = 5;
/// The revision that was read before.
const GIVEN: Revision = Revision(10);

impl Member {
    async fn serve(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let member = self.clone();
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let answer = member.answer(request.uri().path());
                    async { Ok::<_, Infallible>(answer) }
                });
                let connection = http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        url
    }

    fn answer(&self, path: &str) -> http::Response<Body> {
        let header = Some(api::ResponseHeader {
            revision: MEMBER_AT,
            ..api::ResponseHeader::default()
        });
        match path {
            api::STATUS => store_revision(&api::StatusResponse {
                header,
                version: "3.6.0".to_owned(),
            }),
            api::WATCH => {
                self.count(self.watch_fails);
                store_revision(&api::WatchResponse {
                    header,
                    created: true,
                    canceled: self.watch_fails.is_some(),
                    cancel_reason: self.watch_fails.unwrap_or_default().to_owned(),
                    ..api::WatchResponse::default()
                })
            }
            api::RANGE => match self.range_fails {
                None => store_revision(&api::RangeResponse {
                    header,
                    ..api::RangeResponse::default()
                }),
                Some(text) => {
                    self.count(self.range_fails);
                    tonic::Status::unavailable(text).into_http()
                }
            },
            other => tonic::Status::unimplemented(other).into_http(),
        }
    }

    fn count(&self, failure: Option<&str>) {
        let failures = u64::from(failure.is_some());
        self.failures.fetch_add(failures, Ordering::SeqCst);
    }
}

type Body = tonic::body::Body;

/// A message and the trailers that end its call.
fn store_revision(message: &impl prost::Message) -> http::Response<Body> {
    let encoded = message.encode_to_vec();
    let length = u32::try_from(encoded.len()).unwrap().to_be_bytes();
    let framed = [&[0][..], &length, &encoded].concat();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let frames = [
        Ok::<_, tonic::Status>(Frame::data(bytes::Bytes::from(framed))),
        Ok(Frame::trailers(trailers)),
    ];
    let body = StreamBody::new(tokio_stream::iter(frames));
    let response = http::Response::builder().header("content-type", "application/grpc");
    response.body(Body::new(body)).unwrap()
}

/// A watch that has reached a higher revision than etcd's, over these members.
fn watching(members: Vec<String>) -> Watching {
    let options = EtcdOptions::new(members);
    let client = Arc::new(Client::new(&options).unwrap());
    let space = Space::new("heddle/");
    let mut assembly = Assembly::new(space.clone(), GIVEN);
    assembly.on_progress(GIVEN);
    while assembly.pop().is_some() {}
    assert_eq!(assembly.given(), GIVEN);
    Watching {
        assembly,
        seen: client.seen(),
        prefix: String::new(),
        live: None,
        ended: false,
        client,
        space,
    }
}

#[tokio::test]
async fn a_fault_while_a_watch_opens_is_counted_once() {
    let no_leader = Some("etcdserver: no leader");
    let range = Member {
        range_fails: no_leader,
        ..Member::default()
    };
    let watch = Member {
        watch_fails: no_leader,
        ..Member::default()
    };
    for member in [range, watch] {
        let failures = Arc::clone(&member.failures);
        let mut watching = watching(vec![member.serve().await]);
        for times in 1..=2 {
            let broken = watching.connect().await;
            assert!(matches!(broken, Err(StreamError::Fault(Fault::NotDone(_)))));
            assert_eq!(failures.load(Ordering::SeqCst), times);
            assert_eq!(watching.client.faults.load(Ordering::SeqCst), times);
        }
    }
}

#[tokio::test]
async fn a_fault_counts_for_the_queried_member_and_the_next_one_is_queried_then() {
    let bad = Member {
        range_fails: Some("etcdserver: no leader"),
        ..Member::default()
    };
    let urls = vec![bad.clone().serve().await, Member::default().serve().await];
    // The first member in use is random.
    let mut watching = std::iter::repeat_with(|| watching(urls.clone()))
        .find(|watching| watching.client.current() == 0)
        .unwrap();
    let opened = watching.connect().await;
    assert!(matches!(opened, Err(StreamError::Fault(_))));
    assert_eq!(watching.client.current(), 1, "the one that failed is left");
    let opened = watching.connect().await;
    let Err(StreamError::Compacted { first: begin }) = opened else {
        panic!("etcd went back, and nobody noticed");
    };
    assert_eq!(begin, Revision(6));
    assert_eq!(watching.client.current(), 1, "it did nothing wrong");
    assert_eq!(bad.failures.load(Ordering::SeqCst), 1);
    assert_eq!(watching.client.faults.load(Ordering::SeqCst), 1);
}
