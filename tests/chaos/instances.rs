//! Instances stopped and killed, under load from their own node and from another.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use heddle_tests::echo::reach;
use heddle_tests::http_get::json;
use heddle_tests::load::{CallLog, Kind, Load, Plan};
use heddle_tests::mesh::Mesh;
use heddle_tests::wait::{seen, until};
use serde_json::Value;
use tonic::Code;

use heddle_tests::open_stream::OpenStream;

/// Two nodes with two instances each, all reached from both.
async fn four_instances() -> Mesh {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    for (node, id) in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2")] {
        mesh.echo(node, id).await;
    }
    for node in ["a", "b"] {
        reach(&mesh.channel(node), &["a1", "a2", "b1", "b2"]).await;
    }
    mesh
}

fn plan(mesh: &Mesh, kind: Kind) -> Plan {
    Plan::new(kind, &[mesh.node("a").outbound, mesh.node("b").outbound])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_stops_costs_no_call() {
    let mut mesh = four_instances().await;
    let load = Load::start(&plan(&mesh, Kind::Unsafe));
    load.more(200).await;
    mesh.stop_instance("b", "b1").await;
    let stopped = Instant::now();
    load.more(200).await;
    mesh.stop_instance("a", "a2").await;
    load.more(200).await;
    let log = load.finish().await;
    log.assert_none_failed(600);
    assert!(!log.answered_since(stopped).contains_key("b1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_flight_on_an_instance_that_stops_are_finished() {
    let mut mesh = four_instances().await;
    let load = Load::start(&Plan {
        delay_ms: 1_500,
        ..plan(&mesh, Kind::Unsafe)
    });
    load.more(8).await;
    mesh.stop_instance("b", "b1").await;
    load.more(8).await;
    load.finish().await.assert_none_failed(16);
}

/// Callers on each of the two nodes.
const CALLERS: usize = 10;
/// How a failure names the killed instance.
const VICTIM: &str = "instance b1 of heddle-echo.default on node b";

/// What happened when `b1` was killed under load.
struct Kill {
    log: CallLog,
    /// Before the signal.
    killed: Instant,
    /// It has been reaped, so the kernel has closed its connections and refuses new ones, and its proxy knows it before
    /// any later call. Calls begun between the two may still have been in flight on it.
    dead: Instant,
}

async fn kill_under(kind: Kind) -> Kill {
    let mut mesh = four_instances().await;
    // Long calls with short pauses: at any time nearly every caller has one in flight, and some of them on b1.
    let load = Load::start(&Plan {
        delay_ms: 200,
        callers: CALLERS,
        ..plan(&mesh, kind)
    });
    load.more(200).await;
    // Its calls in flight stay so until the kill, however long that takes, because it is frozen. The further calls passed
    // the proxies after its last answer.
    mesh.freeze_instance("b", "b1");
    load.more(5).await;
    let address = has_calls(&mesh, "b", "b1").await;
    let killed = Instant::now();
    mesh.kill_instance("b", "b1").await;
    let dead = Instant::now();
    load.more(300).await;
    // A second later and some calls later, no connection to the dead instance's address is attempted.
    tokio::time::sleep((killed + Duration::from_secs(1)).saturating_duration_since(Instant::now()))
        .await;
    let there = TcpListener::bind(address).expect("its address is free");
    there.set_nonblocking(true).unwrap();
    load.more(300).await;
    let knock = there.accept().map(|(_, from)| from);
    assert!(knock.is_err(), "a connection from {knock:?}");
    Kill {
        log: load.finish().await,
        killed,
        dead,
    }
}

/// Waits for calls in flight on an instance, as its node's proxy sees them: at a given moment the balancer may have sent it
/// none. Returns its address.
async fn has_calls(mesh: &Mesh, node: &str, id: &str) -> SocketAddr {
    let admin = mesh.node(node).admin;
    until("calls are in flight on the instance", async || {
        let config = json(admin, "/config").await?;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let endpoints =
            list(&config["routing_table"]["services"]["heddle-echo.default"]["endpoints"]);
        let endpoint = endpoints.iter().find(|endpoint| endpoint["id"] == id);
        let address = endpoint.and_then(|endpoint| endpoint["address"].as_str());
        let address = address.ok_or_else(|| format!("no {id} in {endpoints:?}"))?;
        let streams = list(&config["connections"])
            .iter()
            .filter(|conn| conn["kind"] == "upstream" && conn["peer"] == address)
            .map(|conn| conn["streams"].as_u64().unwrap_or(0))
            .sum::<u64>();
        seen(streams >= 2, format!("{streams} calls at {address}"))?;
        Ok::<_, String>(address.parse().expect("an address"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_may_be_repeated_survive_the_death_of_their_instance() {
    kill_under(Kind::Safe).await.log.assert_none_failed(800);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_rest_only_those_in_flight_fail_and_say_why() {
    let Kill { log, killed, dead } = kill_under(Kind::Unsafe).await;
    for entry in log.failed() {
        let words = format!("{entry:?}, killed at {killed:?}, dead at {dead:?}");
        assert!(entry.begun < dead, "sent to the dead: {words}");
        assert!(entry.ended >= killed, "failed before the kill: {words}");
        let failed = entry.answer.as_ref().unwrap_err();
        failed.assert(Code::Unavailable, "CONNECTION_LOST", &[VICTIM]);
    }
    // Each caller had one call in flight at most.
    let failed = log.failed().len();
    assert!((1..=CALLERS * 2).contains(&failed), "{}", log.summary());
    let after = log.answered_since(dead);
    let answered: Vec<_> = after.keys().collect();
    assert_eq!(answered, ["a1", "a2", "b2"], "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_open_streams_exactly_those_on_it_are_lost() {
    const EACH_WAY: usize = 3;
    let mut mesh = four_instances().await;
    let mut open = Vec::new();
    for node in ["a", "b"] {
        let mut on_it = 0;
        while on_it < EACH_WAY {
            let stream = OpenStream::start(mesh.channel(node)).await;
            on_it += usize::from(stream.instance == "b1");
            open.push(stream);
            assert!(open.len() < 200, "{on_it} streams through {node} are on b1");
        }
    }
    mesh.kill_instance("b", "b1").await;
    let (lost, others): (Vec<_>, Vec<_>) = open.into_iter().partition(|s| s.instance == "b1");
    assert!(!others.is_empty(), "the others have their part");
    for stream in lost {
        let failed = stream.fails().await;
        failed.assert(Code::Unavailable, "CONNECTION_LOST", &[VICTIM]);
    }
    for stream in others {
        stream.continues().await;
    }
}

/// Repeated kills, each instance restarted under its own name.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: ./test --long"]
async fn twenty_kills_in_a_row_cost_no_call_that_may_be_repeated() {
    let mut mesh = four_instances().await;
    let load = Load::start(&plan(&mesh, Kind::Safe));
    for round in 0..20 {
        let (node, id) = [("a", "a1"), ("b", "b1"), ("a", "a2"), ("b", "b2")][round % 4];
        load.more(200).await;
        mesh.kill_instance(node, id).await;
        load.more(200).await;
        mesh.echo(node, id).await;
        reach(&mesh.channel("a"), &["a1", "a2", "b1", "b2"]).await;
    }
    load.finish().await.assert_none_failed(8_000);
}
