use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use heddle_proto::echo::v1::{EchoRequest, EchoResponse, echo_client::EchoClient};
use heddle_sdk::{Finish, Listener, serve_until_drained};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, metadata::MetadataValue, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{Identity, MAX_MESSAGE_BYTES, Options, PROTO_SERVICE, router};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

struct Server {
    url: String,
    stop: Arc<Notify>,
    serving: JoinHandle<Finish>,
}

async fn start() -> (Server, EchoClient<Channel>) {
    let identity = Identity {
        service: "echo".into(),
        version: "v7".into(),
        instance: "e1".into(),
        node: None,
    };
    let router = router(identity).await.unwrap();
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{listener}");
    let stop = Arc::new(Notify::new());
    let signal = stop.clone();
    let serving = tokio::spawn(async move {
        let stop = async move { signal.notified().await };
        serve_until_drained(router, vec![listener], None, stop)
            .await
            .unwrap()
    });
    let client = EchoClient::connect(url.clone())
        .await
        .unwrap()
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    (Server { url, stop, serving }, client)
}

fn channel(url: &str) -> Channel {
    Channel::from_shared(url.to_owned()).unwrap().connect_lazy()
}

fn payload(text: &str) -> EchoRequest {
    EchoRequest {
        payload: Bytes::copy_from_slice(text.as_bytes()),
        ..EchoRequest::default()
    }
}

fn texts(responses: &[EchoResponse]) -> Vec<&str> {
    responses
        .iter()
        .map(|r| std::str::from_utf8(&r.payload).unwrap())
        .collect()
}

#[tokio::test]
async fn unary_echoes_and_says_who_answered_and_what_came() {
    let (_server, mut client) = start().await;
    let mut request = Request::new(payload("hello"));
    let metadata = request.metadata_mut();
    metadata.append("x-team", MetadataValue::from_static("a"));
    metadata.append("x-team", MetadataValue::from_static("b"));
    metadata.insert_bin(
        "x-raw-bin",
        MetadataValue::from_bytes(&[0xff, 0x00, 0x10, 0x80]),
    );
    let response = client.unary(request).await.unwrap().into_inner();
    assert_eq!(&response.payload[..], b"hello");
    assert_eq!(
        (&*response.service, &*response.version, &*response.instance),
        ("echo", "v7", "e1")
    );
    assert_eq!(response.metadata["x-team"], "a,b");
    assert_eq!(response.metadata["x-raw-bin"], "/wAQgA==");
    assert_eq!(response.metadata["content-type"], "application/grpc");
}

#[tokio::test]
async fn a_request_chooses_status_size_and_delay() {
    let (_server, mut client) = start().await;
    let sized = EchoRequest {
        response_size: 3,
        ..payload("hello")
    };
    assert_eq!(
        &client.unary(sized).await.unwrap().into_inner().payload[..],
        [0, 0, 0]
    );
    let failing = EchoRequest {
        status_code: 5,
        status_message: "nöt here".into(),
        ..EchoRequest::default()
    };
    let status = client.unary(failing).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "nöt here")
    );
    let slow = EchoRequest {
        delay_ms: 80,
        ..EchoRequest::default()
    };
    let began = std::time::Instant::now();
    client.unary(slow).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(80));
}

#[tokio::test]
async fn requests_that_cannot_be_fulfilled_name_the_field() {
    let (_server, mut client) = start().await;
    for (request, field) in [
        (
            EchoRequest {
                status_code: 17,
                ..EchoRequest::default()
            },
            "status_code",
        ),
        (
            EchoRequest {
                delay_ms: 600_001,
                ..EchoRequest::default()
            },
            "delay_ms",
        ),
        (
            EchoRequest {
                response_size: u32::MAX,
                ..EchoRequest::default()
            },
            "response_size",
        ),
    ] {
        let status = client.unary(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{status}");
    }
}

#[tokio::test]
async fn a_server_stream_counts_and_then_gives_its_status() {
    let (_server, mut client) = start().await;
    let request = EchoRequest {
        response_count: 3,
        ..payload("x")
    };
    let stream = client
        .server_stream(request.clone())
        .await
        .unwrap()
        .into_inner();
    let responses: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert_eq!(texts(&responses), ["x", "x", "x"]);
    let failing = EchoRequest {
        status_code: 8,
        ..request
    };
    let mut stream = client.server_stream(failing).await.unwrap().into_inner();
    for _ in 0..3 {
        assert!(stream.message().await.unwrap().is_some());
    }
    assert_eq!(
        stream.message().await.unwrap_err().code(),
        Code::ResourceExhausted
    );
    let mut none = client
        .server_stream(EchoRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(none.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_client_stream_joins_and_a_bidi_stream_answers_each_in_order() {
    let (_server, mut client) = start().await;
    let three = || tokio_stream::iter(["a", "b", "c"].map(payload));
    let joined = client.client_stream(three()).await.unwrap().into_inner();
    assert_eq!(&joined.payload[..], b"abc");
    let stream = client.bidi_stream(three()).await.unwrap().into_inner();
    let responses: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert_eq!(texts(&responses), ["a", "b", "c"]);
    let failing = [
        payload("a"),
        EchoRequest {
            status_code: 6,
            ..EchoRequest::default()
        },
        payload("never"),
    ];
    let status = client
        .client_stream(tokio_stream::iter(failing.clone()))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let mut stream = client
        .bidi_stream(tokio_stream::iter(failing))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(&stream.message().await.unwrap().unwrap().payload[..], b"a");
    assert_eq!(
        stream.message().await.unwrap_err().code(),
        Code::AlreadyExists
    );
}

#[tokio::test]
async fn large_messages_and_long_streams_pass() {
    let (_server, mut client) = start().await;
    let size = 17 * 1024 * 1024;
    let large = EchoRequest {
        payload: vec![7; size].into(),
        ..EchoRequest::default()
    };
    let response = timeout(TEST_TIMEOUT, client.unary(large))
        .await
        .unwrap()
        .unwrap()
        .into_inner();
    assert_eq!(response.payload.len(), size);
    assert!(size < MAX_MESSAGE_BYTES);
    let requests = tokio_stream::iter((0..10_000).map(|n: u32| payload(&n.to_string())));
    let mut stream = client.bidi_stream(requests).await.unwrap().into_inner();
    let mut next = 0_u32;
    while let Some(response) = timeout(TEST_TIMEOUT, stream.message())
        .await
        .unwrap()
        .unwrap()
    {
        assert_eq!(texts(&[response]), [next.to_string()]);
        next += 1;
    }
    assert_eq!(next, 10_000);
}

#[tokio::test]
async fn health_and_reflection_know_the_service() {
    let (server, _client) = start().await;
    let mut health = HealthClient::new(channel(&server.url));
    for service in ["", PROTO_SERVICE] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        assert_eq!(
            health.check(request).await.unwrap().into_inner().status,
            1,
            "{service}"
        );
    }
    let mut reflection = ServerReflectionClient::new(channel(&server.url));
    let ask = |request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let questions = tokio_stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(PROTO_SERVICE.into())),
        ask(MessageRequest::FileContainingSymbol(
            "heddle.registry.v1.Registry".into(),
        )),
    ]);
    let mut answers = reflection
        .server_reflection_info(questions)
        .await
        .unwrap()
        .into_inner();
    let mut next = async || {
        answers
            .message()
            .await
            .unwrap()
            .unwrap()
            .message_response
            .unwrap()
    };
    let MessageResponse::ListServicesResponse(list) = next().await else {
        panic!("no list")
    };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    assert!(names.contains(&PROTO_SERVICE.to_owned()), "{names:?}");
    assert!(
        !names.iter().any(|name| name.starts_with("heddle.registry")),
        "{names:?}"
    );
    assert!(matches!(
        next().await,
        MessageResponse::FileDescriptorResponse(_)
    ));
    let other = answers.message().await;
    assert!(
        other.is_err()
            || matches!(
                other.unwrap().unwrap().message_response,
                Some(MessageResponse::ErrorResponse(_))
            ),
        "only its own file is served"
    );
}

#[tokio::test]
async fn a_stop_finishes_the_calls_in_flight() {
    let (server, mut client) = start().await;
    let request = EchoRequest {
        delay_ms: 300,
        response_count: 2,
        ..payload("x")
    };
    let mut stream = client.server_stream(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    server.stop.notify_one();
    assert!(stream.message().await.unwrap().is_some());
    assert!(stream.message().await.unwrap().is_none());
    assert!(
        timeout(TEST_TIMEOUT, server.serving)
            .await
            .unwrap()
            .unwrap()
            .complete
    );
}

#[test]
fn the_options_of_the_design_are_read() {
    let line = "heddle-echo --listen 127.0.0.1:7 --listen unix:/x --service s --namespace n --version v2 \
                --instance i --agent none";
    let args = line.split_whitespace().map(Into::into);
    let options = heddle_options::try_parse::<Options>("HEDDLE_ECHO", args, &BTreeMap::new())
        .unwrap()
        .options;
    assert_eq!(options.listen, ["127.0.0.1:7", "unix:/x"]);
    assert_eq!((&*options.service, &*options.namespace), ("s", "n"));
    assert_eq!(
        (&*options.version, &*options.instance, &*options.agent),
        ("v2", "i", "none")
    );
    let none = ["heddle-echo".into()];
    let default = heddle_options::try_parse::<Options>("HEDDLE_ECHO", none, &BTreeMap::new())
        .unwrap()
        .options;
    assert_eq!(default.service, "heddle-echo");
    assert_eq!(default.agent, "http://127.0.0.1:15002");
    assert!(
        default.instance.starts_with("echo-") && default.instance.len() == 13,
        "{}",
        default.instance
    );
}

#[tokio::test]
async fn localhost_is_both_loopback_addresses() {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    let taken = |listeners: &[Listener]| -> Vec<IpAddr> {
        let advertised = listeners.iter().filter_map(Listener::advertised);
        advertised.map(|address| address.ip()).collect()
    };
    for word in ["localhost:0", "loopback:0"] {
        let found = taken(&Listener::bind_each(word).await.unwrap());
        let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
        let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
        let has_v6 = std::net::UdpSocket::bind("[::1]:0").is_ok();
        assert_eq!(
            found,
            if has_v6 { vec![v4, v6] } else { vec![v4] },
            "{word}"
        );
    }
    assert!(Listener::bind_each("localhost:x").await.is_err());
    let found = taken(&Listener::bind_each("127.0.0.1:0").await.unwrap());
    assert_eq!(found.len(), 1);
}
