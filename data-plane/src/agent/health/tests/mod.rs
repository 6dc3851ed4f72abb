//! Checks against real servers on free ports: how each response is classified, and what happens without one.

mod auto;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use heddle_proto::registry::v1::{Health, HealthCheck, Instance, health_check::Kind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::ServingStatus;

use super::{probe::Probe, thresholds::Finding};
use crate::agent::{
    Agent, InstanceFailure,
    instance_table::{Joined, UNCHECKED},
    key::InstanceKey,
    tests::{checked, free_address, instance, listener, soon, until},
};

fn with_check(address: SocketAddr, check: HealthCheck) -> Instance {
    Instance {
        health: Some(check),
        ..instance("echo", "e1", &address.to_string())
    }
}

fn of(kind: Kind) -> HealthCheck {
    let ms = |ms: i32| prost_types::Duration {
        seconds: 0,
        nanos: ms * 1_000_000,
    };
    HealthCheck {
        kind: kind.into(),
        interval: Some(ms(50)),
        timeout: Some(ms(800)),
        ..HealthCheck::default()
    }
}

fn probe(address: SocketAddr, check: HealthCheck) -> Probe {
    let checked = checked(with_check(address, check));
    Probe::new(&Joined {
        key: InstanceKey::of(&checked.instance),
        registration: "r1".into(),
        address,
        checked_by: checked.check.checked_by(Kind::Unspecified),
        plan: checked.check,
        has_reflection: false,
        ousted: None,
    })
}

/// A server that sends these bytes on every connection and then keeps it open.
async fn saying(bytes: &'static [u8]) -> SocketAddr {
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(bytes).await;
                while stream.read(&mut request).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    addr
}

#[tokio::test]
async fn what_http_answers_are_taken_for() {
    let http = || HealthCheck {
        path: "/up".into(),
        ..of(Kind::Http)
    };
    for (answer, words) in [
        (&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], ""),
        (
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            "",
        ),
        // A body without an end: the check does not wait for it.
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx",
            "",
        ),
        (
            b"HTTP/1.1 302 Found\r\nlocation: /login\r\n\r\n",
            "answers 302 to /login",
        ),
        (
            b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
            "GET /up answers 503",
        ),
        (b"\0\0\0\x04\0\0\0\0\0", "no HTTP/1.1 answer"),
        (b"HTTP/1.1 200 OK\r\nserver: slow", "no answer within 800ms"),
        (b"", "no answer within 800ms"),
    ] {
        let finding = probe(saying(answer).await, http()).run().await;
        match words {
            "" => assert_eq!(finding, Finding::Passed, "{answer:?}"),
            words => assert!(finding.reason().contains(words), "{answer:?}: {finding:?}"),
        }
    }
    let finding = probe(free_address().await, http()).run().await;
    assert!(finding.reason().contains("refused"), "{finding:?}");
}

#[tokio::test]
async fn what_grpc_answers_are_taken_for() {
    let (reporter, health) = tonic_health::server::health_reporter();
    let (listener, addr) = listener().await;
    let server = tonic::transport::Server::builder().add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let named = |name: &str| HealthCheck {
        grpc_service: name.into(),
        ..of(Kind::Grpc)
    };
    reporter
        .set_service_status("down", ServingStatus::NotServing)
        .await;
    reporter
        .set_service_status("lost", ServingStatus::Unknown)
        .await;
    assert_eq!(probe(addr, of(Kind::Grpc)).run().await, Finding::Passed);
    for (name, word) in [("down", "NOT_SERVING"), ("lost", "UNKNOWN")] {
        let finding = probe(addr, named(name)).run().await;
        assert!(
            matches!(&finding, Finding::Declined(why) if why.contains(word)),
            "{finding:?}"
        );
    }
    let finding = probe(addr, named("nobody")).run().await;
    let known = "does not know \"nobody\"";
    assert!(
        matches!(&finding, Finding::Failed(why) if why.contains(known)),
        "{finding:?}"
    );

    // A gRPC server without the health service; a port without a server; a server that hangs.
    let (listener, bare) = listener_of_reflection().await;
    drop(listener);
    for (addr, word) in [
        (bare, "use health kind auto, tcp or none"),
        (
            saying(b"HTTP/1.1 400 Bad Request\r\n\r\n").await,
            "health check failed",
        ),
        (saying(b"").await, "no answer within 800ms"),
        (free_address().await, "refused"),
    ] {
        let finding = probe(addr, of(Kind::Grpc)).run().await;
        assert!(finding.reason().contains(word), "{word}: {finding:?}");
    }
}

async fn listener_of_reflection() -> (tokio::task::JoinHandle<()>, SocketAddr) {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(heddle_proto::DESCRIPTOR_SET)
        .build_v1()
        .unwrap();
    let (listener, addr) = listener().await;
    let server = tonic::transport::Server::builder().add_service(reflection);
    let serving = tokio::spawn(async move {
        let _ = server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await;
    });
    (serving, addr)
}

#[tokio::test]
async fn a_connection_that_was_closed_between_two_checks_is_no_failure() {
    let (listener, addr) = listener().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let (_, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().add_service(health.clone());
    let incoming = TcpListenerStream::new(listener);
    let first =
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
    let mut probe = probe(addr, of(Kind::Grpc));
    assert_eq!(probe.run().await, Finding::Passed);
    // The process is replaced by another one on the same port.
    stop.cancel();
    soon("the first server's end", first)
        .await
        .unwrap()
        .unwrap();
    let listener = TcpListener::bind(addr).await.unwrap();
    let server = tonic::transport::Server::builder().add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    assert_eq!(probe.run().await, Finding::Passed);
}

#[tokio::test]
async fn its_own_word_is_taken_at_once_and_the_reason_shows() {
    let (reporter, health) = tonic_health::server::health_reporter();
    let (listener, addr) = listener().await;
    let server = tonic::transport::Server::builder().add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let agent = Agent::new("a");
    let check = HealthCheck {
        unhealthy_threshold: 100,
        ..of(Kind::Grpc)
    };
    agent.register(checked(with_check(addr, check))).unwrap();
    until(&agent, "healthy", |views| {
        views.values().all(|v| v.health == Health::Healthy)
    })
    .await;
    reporter
        .set_service_status("", ServingStatus::NotServing)
        .await;
    until(&agent, "not serving", |views| {
        views
            .values()
            .all(|v| v.health == Health::Unhealthy && v.reason.contains("NOT_SERVING"))
    })
    .await;
    reporter
        .set_service_status("", ServingStatus::Serving)
        .await;
    until(&agent, "healthy again", |views| {
        views
            .values()
            .all(|v| v.health == Health::Healthy && v.reason.is_empty())
    })
    .await;
}

#[tokio::test]
async fn one_that_is_only_starting_is_not_left_for_a_whole_interval() {
    let address = free_address().await;
    let agent = Agent::new("a");
    let check = HealthCheck {
        interval: Some(prost_types::Duration {
            seconds: 3600,
            nanos: 0,
        }),
        ..of(Kind::Tcp)
    };
    agent.register(checked(with_check(address, check))).unwrap();
    until(&agent, "its first failure", |views| {
        views.values().all(|v| v.reason != UNCHECKED)
    })
    .await;
    let _listener = TcpListener::bind(address).await.unwrap();
    until(&agent, "healthy", |views| {
        views.values().all(|v| v.health == Health::Healthy)
    })
    .await;
}

#[tokio::test]
async fn hanging_instances_delay_no_others_and_are_bounded_in_number() {
    let open = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let begun = Arc::new(AtomicUsize::new(0));
    let (listener, hangs) = listener().await;
    let (counted, seen, every) = (Arc::clone(&open), Arc::clone(&most), Arc::clone(&begun));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let open = Arc::clone(&counted);
            every.fetch_add(1, Ordering::SeqCst);
            seen.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut sink = Vec::new();
                let _ = stream.read_to_end(&mut sink).await;
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    let agent = Agent::new("a");
    for number in 0..1000 {
        let mut one = with_check(hangs, of(Kind::Http));
        one.id = format!("h{number}");
        agent.register(checked(one)).unwrap();
    }
    // All of them have failed once: from now on they use the slow slots.
    until(&agent, "all have failed", |views| {
        views.values().all(|v| v.reason.contains("no answer"))
    })
    .await;
    let answering = saying(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let mut one = with_check(answering, of(Kind::Http));
    one.service = "quick".into();
    let before = begun.load(Ordering::SeqCst);
    agent.register(checked(one)).unwrap();
    until(&agent, "the one that answers", |views| {
        views
            .iter()
            .any(|(k, v)| k.service == "quick" && v.health == Health::Healthy)
    })
    .await;
    // If it had waited behind them, all 1,000 would have been checked first.
    let meanwhile = begun.load(Ordering::SeqCst) - before;
    assert!(meanwhile < 600, "{meanwhile} checks that hang came first");
    let most = most.load(Ordering::SeqCst);
    assert!(most <= 256 + 64 + 64, "{most} checks at once");
}

/// Issue 10, B1: an instance whose address refused a call is checked soon again also if the first check comes too early.
#[tokio::test]
async fn a_refused_instance_is_checked_again_soon_until_it_is_back() {
    let (server, addr) = listener().await;
    let long = HealthCheck {
        interval: prost_types::Duration::try_from(Duration::from_secs(40)).ok(),
        ..of(Kind::Tcp)
    };
    let agent = Agent::new("a");
    agent.register(checked(with_check(addr, long))).unwrap();
    until(&agent, "healthy", |views| {
        views.values().all(|view| view.health == Health::Healthy)
    })
    .await;
    drop(server);
    let (key, _) = agent.views().1.into_iter().next().unwrap();
    agent.report_failure(&key, InstanceFailure::Refused);
    // Longer than until the first check, which still finds nobody.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let _server = TcpListener::bind(addr).await.unwrap();
    let begun = Instant::now();
    until(&agent, "healthy again", |views| {
        views.values().all(|view| view.health == Health::Healthy)
    })
    .await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "only after {took:?}");
}
