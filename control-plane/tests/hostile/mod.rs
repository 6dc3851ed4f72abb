//! Broken, stuck and malicious clients over real gRPC streams: each is answered or disconnected, and the others are not
//! affected.

use std::time::Duration;

use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc,
};
use heddle_control::{registry::IdleOptions, snapshot::Kind, xds::Limits};
use heddle_proto::control::v1::control_message;
use tonic::{Code, Status};

use crate::{
    ECHO, endpoints, names,
    plane::{DeltaStream, Plane, client, echo, proxy, until, within},
};

async fn plane(folder: &tempfile::TempDir, limits: Limits) -> Plane {
    Plane::bounded(&folder.path().join("store"), limits).await
}

fn read(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(std::sync::atomic::Ordering::Relaxed)
}

/// Reads until the stream ends, and returns its status.
async fn end(stream: &mut DeltaStream) -> Status {
    loop {
        match stream.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a reason"),
            Err(status) => return status,
        }
    }
}

fn delta(kind: Kind) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

#[tokio::test]
async fn a_stuck_client_is_cut_off_and_holds_up_no_removal() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        // Long enough that a client that answers is in time, even if the machine stalls.
        stuck_after: Duration::from_secs(3),
        ..Limits::default()
    };
    let plane = plane(&folder, limits).await;
    let instances = vec![echo("1", "127.0.0.1:7001"), echo("2", "127.0.0.1:7002")];
    let mut node = plane.node("a", instances).await;
    let mut stuck = plane.delta(proxy("stuck")).await;
    let mut idle = plane.delta(proxy("idle")).await;
    for stream in [&mut stuck, &mut idle] {
        stream.subscribe(Kind::Endpoint, &[ECHO]).await;
        let first = stream.next().await;
        stream.ack(&first).await;
    }
    node.change(vec![], &["1"]).await;
    let second = idle.next().await;
    idle.ack(&second).await;
    within(async {
        loop {
            node.ask_removal("1", Duration::from_secs(5)).await;
            let control_message::Message::RemovalAnswer(answer) = node.next().await else {
                panic!()
            };
            if answer.acknowledged {
                break;
            }
            assert_eq!(answer.unacknowledged, ["stuck"], "until it has gone");
        }
    })
    .await;
    let cut = end(&mut stuck).await;
    assert_eq!(cut.code(), Code::ResourceExhausted);
    assert!(cut.message().contains("neither read nor answered"), "{cut}");
    assert_eq!(read(&plane.clients.metrics().stuck), 1);

    node.change(vec![echo("3", "127.0.0.1:7003")], &[]).await;
    assert_eq!(
        endpoints(&idle.next().await),
        2,
        "silent, but it owes nothing"
    );
}

#[tokio::test]
async fn many_streams_of_one_client_are_refused_and_others_served() {
    let folder = tempfile::tempdir().unwrap();
    let plane = plane(&folder, Limits::default()).await;
    let _node = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let mut streams = plane.many(300, |_| proxy("greedy")).await;
    let (mut served, mut refused) = (Vec::new(), 0);
    for mut stream in streams.drain(..) {
        stream.subscribe(Kind::Cluster, &[]).await;
        match stream.try_next().await {
            Ok(_) => served.push(stream),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                assert!(status.message().contains("node greedy has 16"), "{status}");
                refused += 1;
            }
        }
    }
    assert_eq!((served.len(), refused), (16, 284));
    let mut other = plane.delta(proxy("modest")).await;
    other.subscribe(Kind::Cluster, &[]).await;
    assert_eq!(names(&other.next().await), [ECHO]);
    drop(served);
    until(|| plane.clients.len() <= 1).await;
    let mut again = plane.delta(proxy("greedy")).await;
    again.subscribe(Kind::Cluster, &[]).await;
    assert_eq!(
        names(&again.next().await),
        [ECHO],
        "its places are free again"
    );
}

#[tokio::test]
async fn a_storm_of_clients_is_admitted_at_a_rate() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        streams_per_second: 1,
        streams_at_once: 3,
        admission_wait: Duration::ZERO,
        ..Limits::default()
    };
    let plane = plane(&folder, limits).await;
    let mut refused = 0;
    let mut streams = plane.many(50, |number| proxy(&format!("p{number}"))).await;
    for stream in &mut streams {
        stream.subscribe(Kind::Cluster, &[]).await;
    }
    for stream in &mut streams {
        if let Err(status) = stream.try_next().await {
            assert_eq!(status.code(), Code::Unavailable);
            assert!(status.message().contains("try again"), "{status}");
            refused += 1;
        }
    }
    assert!((1..=47).contains(&refused), "{refused} refused");
    assert_eq!(read(&plane.clients.metrics().refused), refused);
}

#[tokio::test]
async fn streams_are_spread_anew_where_there_is_a_choice() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        max_age: Duration::from_millis(200),
        ..Limits::default()
    };
    let store = Plane::store(&folder.path().join("store"));
    let idle = IdleOptions::default();
    let plane = Plane::build(store.clone(), "one", idle.clone(), limits).await;
    let mut node = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let mut stream = plane.delta(proxy("b")).await;
    stream.subscribe(Kind::Endpoint, &[ECHO]).await;
    let first = stream.next().await;
    stream.ack(&first).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let revision = node.change(vec![echo("2", "127.0.0.1:7002")], &[]).await;
    let second = stream.next().await;
    assert_eq!(endpoints(&second), 2, "alone: nowhere else to go");
    stream.ack(&second).await;
    let other = Plane::replica(store, "other", idle).await;
    let ended = end(&mut stream).await;
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(ended.message().contains("reconnect"), "{ended}");

    other.has(revision).await;
    let mut stream = other.delta(proxy("b")).await;
    let held = second.resources.iter();
    stream
        .send(DeltaDiscoveryRequest {
            resource_names_subscribe: vec![ECHO.to_owned()],
            initial_resource_versions: held
                .map(|each| (each.name.clone(), each.version.clone()))
                .collect(),
            ..delta(Kind::Endpoint)
        })
        .await;
    let answer = stream.next().await;
    assert_eq!(
        (answer.resources.len(), answer.removed_resources.len()),
        (0, 0)
    );
}

#[tokio::test]
async fn what_breaks_a_bound_ends_its_stream_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let plane = plane(&folder, Limits::default()).await;
    let many = |count: usize| {
        (0..count)
            .map(|each| format!("name-{each}"))
            .collect::<Vec<_>>()
    };
    let requests = [
        (
            DeltaDiscoveryRequest {
                resource_names_subscribe: vec!["x".repeat(513)],
                ..delta(Kind::Endpoint)
            },
            Code::ResourceExhausted,
            "a name of 513 bytes",
        ),
        (
            DeltaDiscoveryRequest {
                resource_names_subscribe: many(50_001),
                ..delta(Kind::Cluster)
            },
            Code::ResourceExhausted,
            "more than 50000 names",
        ),
        (
            DeltaDiscoveryRequest {
                resource_names_subscribe: vec!["x".repeat(5 << 20)],
                ..delta(Kind::Cluster)
            },
            Code::OutOfRange,
            "too large",
        ),
    ];
    for (request, code, text) in requests {
        let mut stream = plane.delta(client("giant", &[])).await;
        stream.send(request).await;
        let ended = end(&mut stream).await;
        assert_eq!(
            (ended.code(), ended.message().contains(text)),
            (code, true),
            "{ended}"
        );
    }
    let mut huge = plane
        .delta(client("huge", &[("blob", &"x".repeat(600 << 10))]))
        .await;
    huge.send(delta(Kind::Cluster)).await;
    let ended = end(&mut huge).await;
    assert_eq!(ended.code(), Code::InvalidArgument);
    assert!(ended.message().contains("shorten its metadata"), "{ended}");

    let mut nameless = plane.delta(client("later", &[])).await;
    nameless.say(delta(Kind::Cluster)).await; // the node only with the second request
    let ended = end(&mut nameless).await;
    assert!(ended.message().contains("must carry the node"), "{ended}");

    let mut changed = plane.delta(client("first", &[])).await;
    changed.subscribe(Kind::Cluster, &[]).await;
    changed.next().await;
    let mut request = delta(Kind::Cluster);
    request.node = Some(client("second", &[]));
    changed.say(request).await;
    let ended = end(&mut changed).await;
    assert!(
        ended.message().contains("was \"first\" and is \"second\""),
        "{ended}"
    );
    assert_eq!(read(&plane.clients.metrics().violations), 5);
}

#[tokio::test]
async fn a_flood_is_slowed_down_and_others_are_served_meanwhile() {
    const REQUESTS: u64 = 600;
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        // So few that every machine reads faster.
        units_per_second: 500,
        units_at_once: 100,
        ..Limits::default()
    };
    let plane = plane(&folder, limits).await;
    let mut node = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let mut flood = plane.delta(proxy("flood")).await;
    let mut other = plane.delta(proxy("other")).await;
    other.subscribe(Kind::Endpoint, &[ECHO]).await;
    let first = other.next().await;
    other.ack(&first).await;
    for round in 0..REQUESTS {
        let mut request = delta(Kind::Endpoint);
        request.resource_names_subscribe = vec![ECHO.to_owned()];
        request.response_nonce = format!("wrong{round}");
        if round % 2 == 0 {
            request.type_url = "type.googleapis.com/no.such.Type".to_owned();
            request.error_detail = Some(rpc::Status::default());
        }
        flood.send(request).await;
    }
    node.change(vec![echo("2", "127.0.0.1:7002")], &[]).await;
    assert_eq!(endpoints(&other.next().await), 2);
    assert!(!names(&flood.next().await).is_empty(), "it is answered too");
    let metrics = plane.clients.metrics();
    let half = REQUESTS / 2;
    let all_read = || read(&metrics.unknown_types) >= half && read(&metrics.stale) >= half;
    until(all_read).await;
    assert!(read(&metrics.muted) > 0);
    assert_eq!(
        read(metrics.rejected.get(Kind::Endpoint)),
        0,
        "nobody rejected anything"
    );
}

#[tokio::test]
async fn a_bad_resource_is_found_over_a_real_stream() {
    let folder = tempfile::tempdir().unwrap();
    let plane = plane(&folder, Limits::default()).await;
    let _node = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let mut stream = plane.sotw(client("stock", &[])).await;
    stream
        .subscribe(Kind::Endpoint, &[ECHO, "none.default"], "", "")
        .await;
    let mut refused = 0;
    let mut accepted = Vec::new();
    let mut next = stream.next().await;
    for _ in 0..3 {
        let bad = next.resources.iter().any(|any| {
            let text = String::from_utf8_lossy(&any.value);
            text.contains("none.default")
        });
        refused += usize::from(bad);
        if !bad {
            accepted.push(next.resources.len());
        }
        stream
            .send(DiscoveryRequest {
                type_url: next.type_url.clone(),
                resource_names: vec![ECHO.to_owned(), "none.default".to_owned()],
                response_nonce: next.nonce.clone(),
                error_detail: bad.then(|| rpc::Status {
                    code: 3,
                    message: "cannot take it".to_owned(),
                    ..rpc::Status::default()
                }),
                ..DiscoveryRequest::default()
            })
            .await;
        if refused + accepted.len() == 3 {
            break;
        }
        next = stream.next().await;
    }
    assert_eq!((refused, accepted), (2, vec![1]));
    until(|| {
        let statuses = plane.clients.statuses();
        let refused: Vec<_> = statuses
            .iter()
            .flat_map(|each| &each.kinds)
            .flat_map(|kind| &kind.refused)
            .map(|each| (each.name.as_str(), each.reason.as_str()))
            .collect();
        refused == [("none.default", "cannot take it")]
    })
    .await;
}
