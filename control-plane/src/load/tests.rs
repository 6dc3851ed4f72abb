use std::time::Duration;

use envoy_types::pb::{
    envoy::config::{
        core::v3::Locality,
        endpoint::v3::{ClusterStats, EndpointLoadMetricStats, UpstreamLocalityStats},
    },
    google::protobuf::Duration as WireDuration,
};

use tokio::time::Instant;

use super::*;
use crate::budget::{Peer, Who};

const USUAL: Duration = Duration::from_secs(10);

fn known(cluster: &str) -> Option<String> {
    (cluster == "users.default" || cluster == "orders.shop").then(|| cluster.to_owned())
}

fn read(stats: &[ClusterStats]) -> Report {
    Report::read(stats, USUAL, known)
}

fn row(zone: &str, issued: u64, succeeded: u64, failed: u64) -> UpstreamLocalityStats {
    let locality = Locality {
        region: "eu".to_owned(),
        zone: zone.to_owned(),
        sub_zone: "ignored".to_owned(),
    };
    UpstreamLocalityStats {
        locality: (!zone.is_empty()).then_some(locality),
        total_issued_requests: issued,
        total_successful_requests: succeeded,
        total_error_requests: failed,
        total_requests_in_progress: 3,
        ..UpstreamLocalityStats::default()
    }
}

fn cluster(name: &str, rows: Vec<UpstreamLocalityStats>) -> ClusterStats {
    ClusterStats {
        cluster_name: name.to_owned(),
        upstream_locality_stats: rows,
        load_report_interval: Some(WireDuration {
            seconds: 2,
            nanos: 0,
        }),
        ..ClusterStats::default()
    }
}

fn latency(name: &str, count: u64, total: f64) -> EndpointLoadMetricStats {
    EndpointLoadMetricStats {
        metric_name: name.to_owned(),
        num_requests_finished_with_metric: count,
        total_metric_value: total,
    }
}

#[test]
fn a_report_says_rates_success_and_latency_by_locality() {
    let mut a = row("a", 20, 15, 5);
    a.load_metric_stats = vec![latency(LATENCY_METRIC, 10, 25.0), latency("other", 1, 1e9)];
    let mut again = row("a", 4, 4, 0);
    again.priority = 1;
    let mut users = cluster("users.default", vec![a, row("", 2, 0, 0), again]);
    users.total_dropped_requests = 7;
    let report = read(&[users]);
    assert_eq!(report.left_out, 0);
    let places: Vec<_> = report
        .loads
        .iter()
        .map(|(destination, load)| (destination.locality.as_str(), load))
        .collect();
    let [(nowhere, far), (zone, near)] = places.as_slice() else {
        panic!("{report:?}")
    };
    assert_eq!((*nowhere, *zone), ("", "eu/a"));
    assert_eq!(
        near.requests_per_second(),
        12.0,
        "both priorities, over 2 s"
    );
    assert_eq!(near.success_ratio(), 19.0 / 24.0);
    assert_eq!(near.mean_latency_ms(), 2.5);
    assert_eq!((near.in_progress, near.dropped), (6, 7));
    assert_eq!(near.interval, Duration::from_secs(2));
    assert_eq!((far.success_ratio(), far.mean_latency_ms()), (1.0, 0.0));
    assert_eq!((far.requests_per_second(), far.dropped), (1.0, 0));
}

#[test]
fn calls_that_were_all_dropped_are_shown_too() {
    let mut users = cluster("users.default", vec![]);
    users.total_dropped_requests = 4;
    let report = read(&[users]);
    let (destination, load) = report.loads.first_key_value().unwrap();
    assert_eq!((destination.locality.as_str(), load.dropped), ("", 4));
}

#[test]
fn strange_figures_do_no_harm() {
    let mut huge = row("", u64::MAX, u64::MAX, u64::MAX);
    huge.load_metric_stats = [f64::NAN, f64::INFINITY, -1.0, 8.0]
        .map(|total| latency(LATENCY_METRIC, 2, total))
        .to_vec();
    let report = read(&[cluster("users.default", vec![huge.clone(), huge])]);
    let load = report.loads.values().next().unwrap();
    assert_eq!((load.issued, load.failed), (u64::MAX, u64::MAX));
    assert_eq!(load.success_ratio(), 1.0, "saturated, never above");
    assert_eq!(
        load.mean_latency_ms(),
        4.0,
        "what is no latency is not counted"
    );
    for (seconds, nanos, expected) in [
        (0, 0, USUAL),
        (-5, 0, USUAL),
        (1, -1, USUAL),
        (1, i32::MAX, USUAL),
        (i64::MAX, 0, USUAL),
        (0, 500_000_000, Duration::from_millis(500)),
    ] {
        let mut users = cluster("users.default", vec![row("", 1, 1, 0)]);
        users.load_report_interval = Some(WireDuration { seconds, nanos });
        let report = read(&[users]);
        let load = report.loads.values().next().unwrap();
        assert_eq!(load.interval, expected, "{seconds} s {nanos} ns");
    }
}

#[test]
fn what_is_of_no_service_or_badly_named_or_too_much_is_left_out_and_counted() {
    let mut long = row("a", 1, 1, 0);
    long.locality.as_mut().unwrap().zone = "z".repeat(300);
    let report = read(&[
        cluster("xds_cluster", vec![row("", 1, 1, 0), row("a", 1, 1, 0)]),
        cluster(&"x".repeat(5000), vec![]),
        cluster("users.default", vec![long, row("b", 1, 1, 0)]),
    ]);
    assert_eq!((report.loads.len(), report.left_out), (1, 2 + 1 + 1));

    let many: Vec<_> = (0..10_001)
        .map(|n| row(&format!("z{n}"), 1, 1, 0))
        .collect();
    let report = read(&[
        cluster("users.default", many),
        cluster("orders.shop", vec![row("a", 1, 1, 0)]),
    ]);
    let services: Vec<_> = report
        .loads
        .keys()
        .map(|destination| &*destination.service)
        .collect();
    assert_eq!(
        services,
        ["orders.shop"],
        "one that is too large takes no other's place"
    );
    assert_eq!(report.left_out, 10_001);
}

fn now() -> Instant {
    Instant::now()
}

fn edges_at(loads: &Loads, at: Instant) -> Vec<String> {
    let edges = loads.edges(at);
    edges
        .iter()
        .map(|edge| format!("{} {} {}", edge.caller, edge.service, edge.locality))
        .collect()
}

fn edges(loads: &Loads) -> Vec<String> {
    edges_at(loads, now())
}

#[test]
fn an_edge_lives_as_long_as_the_last_report_of_its_stream() {
    let loads = Loads::default();
    let proxy = loads.join(Who::default(), "node-b", "proxy").unwrap();
    let stock = loads.join(Who::default(), "a", "grpc-go").unwrap();
    proxy.report(
        read(&[
            cluster("users.default", vec![row("b", 1, 1, 0), row("a", 1, 1, 0)]),
            cluster("orders.shop", vec![row("", 1, 0, 1)]),
        ]),
        USUAL,
        now(),
    );
    stock.report(
        read(&[cluster("users.default", vec![row("", 2, 2, 0)])]),
        USUAL,
        now(),
    );
    assert_eq!(
        edges(&loads),
        [
            "a users.default ",
            "node-b orders.shop ",
            "node-b users.default eu/a",
            "node-b users.default eu/b"
        ]
    );
    assert_eq!(loads.edges(now())[1].role, "proxy");
    proxy.report(
        read(&[cluster("orders.shop", vec![row("", 1, 1, 0)])]),
        USUAL,
        now(),
    );
    assert_eq!(edges(&loads), ["a users.default ", "node-b orders.shop "]);
    assert_eq!(loads.size(), (2, 2));
    drop(proxy);
    assert_eq!(edges(&loads), ["a users.default "]);
    drop(stock);
    assert_eq!((edges(&loads).len(), loads.size()), (0, (0, 0)));
    let totals = loads.totals();
    let orders = totals
        .iter()
        .find(|of| of.service == "orders.shop")
        .unwrap();
    assert_eq!(
        (orders.succeeded, orders.failed),
        (1, 1),
        "sums outlive the streams"
    );
}

#[test]
fn a_client_that_falls_silent_has_no_calls() {
    let loads = Loads::default();
    let stream = loads.join(Who::default(), "a", "grpc-go").unwrap();
    let start = now();
    let users = cluster("users.default", vec![row("", 1, 1, 0)]);
    stream.report(read(&[users]), USUAL, start);
    assert_eq!(edges_at(&loads, start + USUAL * 2).len(), 1);
    assert_eq!(edges_at(&loads, start + USUAL * 3).len(), 0);
    stream.report(read(&[]), USUAL, start + USUAL * 4);
    assert_eq!(loads.size(), (1, 0));
}

#[test]
fn the_newest_stream_of_a_proxy_speaks_for_it() {
    let loads = Loads::default();
    let dead = loads.join(Who::default(), "node-a", "proxy").unwrap();
    dead.report(
        read(&[cluster("users.default", vec![row("a", 1, 1, 0)])]),
        USUAL,
        now(),
    );
    let lives = loads.join(Who::default(), "node-a", "proxy").unwrap();
    lives.report(
        read(&[cluster("users.default", vec![row("b", 1, 1, 0)])]),
        USUAL,
        now(),
    );
    assert_eq!(edges(&loads), ["node-a users.default eu/b"]);
    // Several stock clients may share a node id.
    let first = loads.join(Who::default(), "stock", "grpc-go").unwrap();
    let second = loads.join(Who::default(), "stock", "grpc-go").unwrap();
    for stream in [&first, &second] {
        stream.report(
            read(&[cluster("users.default", vec![row("", 1, 1, 0)])]),
            USUAL,
            now(),
        );
    }
    assert_eq!(edges(&loads).len(), 3);
    // A stock client may even have the node id of a proxy.
    let namesake = loads.join(Who::default(), "node-a", "grpc-go").unwrap();
    namesake.report(
        read(&[cluster("orders.shop", vec![row("", 1, 1, 0)])]),
        USUAL,
        now(),
    );
    assert_eq!(
        edges(&loads)[..2],
        ["node-a orders.shop ", "node-a users.default eu/b"]
    );
}

#[test]
fn streams_rows_and_sums_are_bounded() {
    let loads = Loads::default();
    let who = |host: u8| Who {
        peer: Peer::of(Some([10, 0, 0, host].into())),
        connection: 0,
    };
    let mut streams = Vec::new();
    while let Ok(stream) = loads.join(who(1), &format!("c{}", streams.len()), "x") {
        streams.push(stream);
    }
    assert!((7_500..8_000).contains(&streams.len()), "{}", streams.len());
    assert_eq!(loads.refused(), 1);
    // Clients of other hosts get streams, up to the limit.
    let mut others = Vec::new();
    let host = |n: usize| who(u8::try_from(2 + n / 20).unwrap());
    while let Ok(stream) = loads.join(host(others.len()), "other", "x") {
        others.push(stream);
    }
    let open = streams.len() + others.len();
    assert!(others.len() > 1_000 && open <= MAX_STREAMS, "{open}");
    let last = others.pop().unwrap();

    let everything = |cluster: &str| Some(cluster.to_owned());
    let large = |from: usize| {
        let clusters: Vec<_> = (from..from + 4000)
            .map(|n| cluster(&format!("s{n}.default"), vec![row("", 1, 1, 0)]))
            .collect();
        Report::read(&clusters, USUAL, everything)
    };
    for (n, stream) in streams.iter().take(30).enumerate() {
        stream.report(large(n * 4000), USUAL, now());
    }
    last.report(large(0), USUAL, now());
    let (open_now, rows) = loads.size();
    assert_eq!(open_now, open);
    assert!(rows > 80_000 && rows <= MAX_ENTRIES, "{rows}");
    assert!(loads.left_out() > 0, "one peer cannot fill it");
    assert_eq!(loads.left_out(), (31 * 4_000 - rows) as u64);
    let totals = loads.totals();
    assert_eq!(totals.len(), 1001);
    let sum: u64 = totals.iter().map(|of| of.succeeded).sum();
    assert_eq!(
        sum, rows as u64,
        "what has no sum of its own is in the others'"
    );
}
