//! The health kind `auto`: which check it chooses, and when it chooses again.

use std::{net::SocketAddr, time::Duration};

use heddle_proto::registry::v1::{Health, Protocol, health_check::Kind};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;

use super::{Agent, free_address, listener_of_reflection, of, saying, until, with_check};
use crate::agent::{
    instance_table::View,
    tests::{checked, listener, soon},
};

fn start(address: SocketAddr) -> Agent {
    let agent = Agent::new("a");
    register(&agent, address);
    agent
}

fn register(agent: &Agent, address: SocketAddr) {
    let mut check = of(Kind::Auto);
    check.timeout = prost_types::Duration::try_from(Duration::from_millis(400)).ok();
    agent.register(checked(with_check(address, check))).unwrap();
}

async fn one_is(agent: &Agent, what: &str, is: impl Fn(&View) -> bool) {
    until(agent, what, |views| views.values().all(|view| is(view))).await;
}

async fn checked_by(agent: &Agent, kind: Kind) {
    one_is(agent, kind.as_str_name(), |view| {
        view.checked_by == kind && view.health == Health::Healthy
    })
    .await;
}

/// A server of gRPC health that ends with `stop`, its connections included.
async fn health_server(
    listener: TcpListener,
) -> (
    tonic_health::server::HealthReporter,
    CancellationToken,
    tokio::task::JoinHandle<()>,
) {
    let (reporter, health) = tonic_health::server::health_reporter();
    let stop = CancellationToken::new();
    let server = tonic::transport::Server::builder().add_service(health);
    let incoming = TcpListenerStream::new(listener);
    let stopped = stop.clone().cancelled_owned();
    let serving = tokio::spawn(async move {
        let _ = server.serve_with_incoming_shutdown(incoming, stopped).await;
    });
    (reporter, stop, serving)
}

/// A server of gRPC health behind a forwarder that keeps its connections but forwards no more once it is hung.
async fn answering_until_hung(outer: TcpListener) -> CancellationToken {
    let (inner, behind) = listener().await;
    let hang = CancellationToken::new();
    let hung = hang.clone();
    tokio::spawn(async move {
        let _server = health_server(inner).await;
        while let Ok((mut from, _)) = outer.accept().await {
            let hung = hung.clone();
            tokio::spawn(async move {
                let mut to = tokio::net::TcpStream::connect(behind).await.unwrap();
                let copied = tokio::io::copy_bidirectional(&mut from, &mut to);
                if hung.run_until_cancelled(copied).await.is_none() {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    hang
}

#[tokio::test]
async fn a_program_with_grpc_health_leaves_the_choice_by_its_own_word() {
    let (listener, address) = listener().await;
    let (reporter, _stop, _serving) = health_server(listener).await;
    let agent = start(address);
    checked_by(&agent, Kind::Grpc).await;
    reporter
        .set_service_status("", ServingStatus::NotServing)
        .await;
    one_is(&agent, "not serving", |view| {
        view.health == Health::Unhealthy && view.reason.contains("NOT_SERVING")
    })
    .await;
    // A program that is still starting, and says so.
    let late = start(address);
    one_is(&late, "not serving yet", |view| {
        view.checked_by == Kind::Grpc && view.reason.contains("NOT_SERVING")
    })
    .await;
    reporter
        .set_service_status("", ServingStatus::Serving)
        .await;
    checked_by(&agent, Kind::Grpc).await;
    checked_by(&late, Kind::Grpc).await;
}

#[tokio::test]
async fn a_program_without_grpc_health_is_checked_by_connections() {
    let (serving, grpc) = listener_of_reflection().await;
    let http = saying(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let silent = saying(b"").await;
    for address in [grpc, http, silent] {
        checked_by(&start(address), Kind::Tcp).await;
    }
    serving.abort();
    // One that speaks HTTP is not asked: this one would hang.
    let agent = Agent::new("a");
    let mut web = with_check(silent, of(Kind::Auto));
    web.protocol = Protocol::Http.into();
    web.protos.clear();
    let checked = checked(web);
    assert_eq!(checked.check.kind, Kind::Tcp);
    agent.register(checked).unwrap();
    checked_by(&agent, Kind::Tcp).await;
}

/// A gRPC program whose health service has answered is not healthy because its port is open.
#[tokio::test]
async fn a_program_that_hangs_later_is_not_checked_by_connections_instead() {
    let (listener, address) = listener().await;
    let hang = answering_until_hung(listener).await;
    let agent = start(address);
    checked_by(&agent, Kind::Grpc).await;
    // From now on connections are accepted, and nothing is answered.
    hang.cancel();
    one_is(&agent, "its failure", |view| {
        view.health == Health::Unhealthy
    })
    .await;
    assert_eq!(
        agent.views().1.values().next().unwrap().checked_by,
        Kind::Grpc
    );
    // Nor by a new registration of the same program.
    register(&agent, address);
    tokio::time::sleep(Duration::from_secs(1)).await;
    one_is(&agent, "still failing", |view| {
        view.health == Health::Unhealthy && view.checked_by == Kind::Grpc
    })
    .await;
}

#[tokio::test]
async fn another_program_at_the_address_is_asked_anew() {
    let (listener, address) = listener().await;
    let agent = start(address);
    let (_reporter, stop, serving) = health_server(listener).await;
    checked_by(&agent, Kind::Grpc).await;
    stop.cancel();
    soon("the end of the first server", serving).await.unwrap();
    one_is(&agent, "refused", |view| view.reason.contains("refused")).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let plain = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    checked_by(&agent, Kind::Tcp).await;
    plain.abort();
    let _ = plain.await;
    one_is(&agent, "refused again", |view| {
        view.reason.contains("refused")
    })
    .await;
    let listener = TcpListener::bind(address).await.unwrap();
    let (_reporter, _stop, _serving) = health_server(listener).await;
    checked_by(&agent, Kind::Grpc).await;
}

/// A server that listens before it has loaded what it needs answers its first check late.
#[tokio::test]
async fn a_program_that_answers_late_is_asked_again() {
    let (listener, address) = listener().await;
    let agent = start(address);
    checked_by(&agent, Kind::Tcp).await;
    let (_reporter, _stop, _serving) = health_server(listener).await;
    checked_by(&agent, Kind::Grpc).await;
}

#[tokio::test]
async fn where_nothing_listens_nothing_is_chosen() {
    let agent = start(free_address().await);
    one_is(&agent, "refused", |view| view.reason.contains("refused")).await;
    let used = agent.views().1.values().next().unwrap().checked_by;
    assert_eq!(used, Kind::Unspecified);
}
