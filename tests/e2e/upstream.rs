//! Services that are full, retire their connections, or are down: the proxy queues, moves and retries what provably was
//! not processed, and the caller gets a response.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use heddle_tests::echo::{call, payload};
use heddle_tests::http_get::json;
use heddle_tests::mesh::Mesh;
use heddle_tests::raw::{Answer, Behaviour, Call, Client, body};
use heddle_tests::temp::free_addr;
use heddle_tests::wait::{seen, until};
use http::HeaderMap;

use crate::raw_service::{RAW, RawMesh, ok};

fn answered(answer: &Answer, way: &str) {
    assert_eq!(
        answer.last("grpc-status").as_deref(),
        Some("0"),
        "{way}: {answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_allows_few_streams_is_given_no_more_and_all_calls_are_answered() {
    const ALLOWED: usize = 4;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counter, maximum) = (Arc::clone(&now), Arc::clone(&most));
    let behaviour = Behaviour {
        max_streams: Some(u32::try_from(ALLOWED).unwrap()),
        ..Behaviour::default()
    };
    let mesh = Mesh::builder()
        .proxy_arg("--upstream-connections")
        .proxy_arg("2");
    let raw = RawMesh::start_in(mesh, behaviour, move |mut call: Call| {
        let (now, most) = (Arc::clone(&counter), Arc::clone(&maximum));
        async move {
            let _ = body(call.request.body_mut()).await;
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
            now.fetch_sub(1, Ordering::Relaxed);
            call.answer(&[b"y"], ok());
        }
    })
    .await;
    for (way, addr) in raw.ways() {
        let client = Client::connect(addr).await;
        let none = HeaderMap::new();
        let calls = (0..64).map(|_| client.call(RAW, "/raw.Raw/Slow", &none, b"x"));
        for answer in join_all(calls).await {
            answered(&answer, way);
        }
    }
    // Two connections of each of at most four workers.
    let most = most.load(Ordering::Relaxed);
    assert!(
        (1..=ALLOWED * 2 * 4).contains(&most),
        "{most} calls at once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_retires_its_connections_costs_no_call() {
    let behaviour = Behaviour {
        retire_after: Some(7),
        ..Behaviour::default()
    };
    let connections = Arc::new(AtomicUsize::new(0));
    let seen_connections = Arc::clone(&connections);
    let raw = RawMesh::start_with(behaviour, move |mut call: Call| {
        let connections = Arc::clone(&seen_connections);
        async move {
            connections.fetch_max(call.connections, Ordering::Relaxed);
            let _ = body(call.request.body_mut()).await;
            call.answer(&[b"y"], ok());
        }
    })
    .await;
    for (way, addr) in raw.ways() {
        let client = Client::connect(addr).await;
        let none = HeaderMap::new();
        for _ in 0..20 {
            let calls = (0..10).map(|_| client.call(RAW, "/raw.Raw/Any", &none, b"x"));
            for answer in join_all(calls).await {
                answered(&answer, way);
            }
        }
    }
    let connections = connections.load(Ordering::Relaxed);
    assert!(
        connections > 10,
        "only {connections} connections: none was retired"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_refuses_connections_costs_no_call() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("b", "e1").await;
    // A second instance at an address without a listener, healthy until it refuses a connection.
    let file = format!(
        "service: heddle-echo\nprotos: [heddle.echo.v1.Echo]\nhealth: {{kind: none}}\n\
         instances:\n  - {{id: dead, address: \"{}\"}}\n",
        free_addr()
    );
    mesh.write_services_file("b", "dead.yaml", &file);
    until("the dead instance is registered", async || {
        let service = mesh.service("heddle-echo").await?;
        seen(service.instances == 2, format!("{service:?}"))
    })
    .await;
    for node in ["b", "a"] {
        until("the node knows the service", async || {
            let config = json(mesh.node(node).admin, "/config").await?;
            let service = &config["routing_table"]["services"]["heddle-echo.default"];
            seen(service.is_object(), service)
        })
        .await;
    }
    for node in ["b", "a"] {
        for _ in 0..40 {
            let answer = call(mesh.node(node).outbound, payload("x")).await;
            assert_eq!(answer.expect("an answer").instance, "e1");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_which_no_instance_is_there_says_so_at_once() {
    let file = format!(
        "service: gone\nprotos: [heddle.echo.v1.Echo]\nhealth: {{kind: none}}\n\
         instances:\n  - {{id: g1, address: \"{}\"}}\n",
        free_addr()
    );
    let mesh = Mesh::builder()
        .nodes(2)
        .services_file("b", "gone.yaml", &file)
        .start()
        .await;
    for node in ["b", "a"] {
        let addr = mesh.node(node).outbound;
        let failed = until("the call is routed and fails", async || {
            match call(addr, payload("x")).await {
                Err(failed) if failed.code == tonic::Code::Unavailable => Ok(failed),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let reason = failed.reason.clone().unwrap_or_default();
        let fits = ["CONNECT_FAILED", "NO_HEALTHY_ENDPOINTS"].contains(&reason.as_str());
        assert!(fits && failed.message.contains("gone"), "{failed:?}");
        assert_eq!(failed.info, failed.reason);
    }
}
