//! Clients spread evenly over replicas: the decision alone, many replicas with old numbers, and two real ones.

use std::time::Duration;

use envoy_types::pb::envoy::{
    config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest,
};
use proptest::prelude::*;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::super::{
    shed::{Shedding, excess},
    *,
};
use crate::{
    registry::{fixture::Replicas, is_significant},
    snapshot::{Kind, Publisher},
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn what_is_too_many() {
    for (own, others, away, expected) in [
        (1_000, &[][..], 0, 0),
        (0, &[0, 0], 0, 0),
        (4, &[0, 0], 0, 0),
        (6, &[0, 0], 0, 0),
        (12, &[0, 0], 0, 4),
        (120, &[90, 90], 0, 0),
        (121, &[90, 90], 0, 1),
        (150, &[150, 0], 0, 30),
        (140, &[150, 0], 10, 20),
        (90, &[500, 0], 0, 0),
        (10_000, &[u32::MAX as usize, u32::MAX as usize], 0, 0),
    ] {
        assert_eq!(
            excess(own, others, away),
            expected,
            "{own} {others:?} {away}"
        );
    }
}

#[test]
fn streams_go_at_a_rate_and_no_more_in_a_life_than_there_were() {
    let start = Instant::now();
    let limits = Limits {
        sheds_per_second: 10,
        max_age: SECOND * 100,
        ..Limits::default()
    };
    let mut shedding = Shedding::new(&limits, SECOND);
    // All shed clients reconnect here, as if the other replica could not be reached.
    let mut gone = |from: u32, to: u32| {
        let moments = (from * 100..to * 100).map(|each| start + SECOND * each / 100);
        moments.filter(|now| shedding.take(*now, 50, &[0])).count()
    };
    let first = gone(0, 1);
    assert!((9..=11).contains(&first), "{first} in a second");
    assert_eq!(first + gone(1, 100), 50);
    assert_eq!(gone(100, 200), 50, "it tries again");
}

#[test]
fn who_comes_back_at_once_is_known() {
    let start = Instant::now();
    let mut shedding = Shedding::new(&Limits::default(), SECOND);
    shedding.sent("10.0.0.1:5000", "a", start);
    let is_back = |address, node, after| shedding.is_back(address, node, start + SECOND * after);
    assert!(is_back("10.0.0.1:6000", "a", 59), "whatever its port");
    assert!(!is_back("10.0.0.1:6000", "a", 60), "it was elsewhere");
    assert!(!is_back("10.0.0.2:5000", "a", 1));
    assert!(!is_back("10.0.0.1:5000", "b", 1));
}

proptest! {
    /// Each replica knows the others' numbers only as published: after a significant change, and up to three seconds
    /// ago.
    #[test]
    fn replicas_come_to_rest_near_the_mean(
        mut streams in prop::collection::vec(0..300_usize, 1..6),
        dice in prop::collection::vec(any::<prop::sample::Index>(), 64),
    ) {
        let start = Instant::now();
        let (all, replicas) = (streams.iter().sum::<usize>(), streams.len());
        let mut published = streams.clone();
        let limits = Limits::default();
        let mut each: Vec<_> = streams.iter().map(|_| Shedding::new(&limits, SECOND * 9)).collect();
        let (mut dice, mut last) = (dice.iter().cycle(), 0);
        // A check each tenth of a second, for three minutes; a client that moved may move again at once.
        for look in 0..1_800_u32 {
            let now = start + SECOND * look / 10;
            for place in 0..replicas {
                if look % 30 == 0 && is_significant(published[place], streams[place]) {
                    published[place] = streams[place];
                }
                let others: Vec<_> = (0..replicas).filter(|it| *it != place).collect();
                let numbers: Vec<_> = others.iter().map(|it| published[*it]).collect();
                if each[place].take(now, streams[place], &numbers) {
                    streams[place] -= 1;
                    streams[*dice.next().unwrap().get(&others)] += 1;
                    last = look;
                }
            }
        }
        prop_assert!(last < 1_500, "restless until {last}: {streams:?}");
        let most = (all / replicas + 4).max(all * 6 / 5 / replicas);
        // The others' numbers may be wrong by 10 % or 10 streams.
        let slack = 10.max(most / 10);
        for it in &streams {
            prop_assert!(*it <= most + slack, "{streams:?}");
        }
    }
}

/// A client that knows both replicas and connects to the other one when its stream ends.
async fn client(id: String, replicas: [Ads; 2]) {
    for ads in replicas.iter().cycle() {
        let request = |nonce: &str| DeltaDiscoveryRequest {
            node: Some(Node {
                id: id.clone(),
                ..Node::default()
            }),
            type_url: Kind::Cluster.url().to_owned(),
            resource_names_subscribe: super::clients::strings(if nonce.is_empty() {
                &["a.default"]
            } else {
                &[]
            }),
            response_nonce: nonce.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        let (requests, stream) = mpsc::channel(4);
        let mut answers = ads.begin::<Delta>(super::caller(), ReceiverStream::new(stream));
        requests.send(Ok(request(""))).await.unwrap();
        loop {
            match answers.next().await.unwrap() {
                Ok(answer) => requests.send(Ok(request(&answer.nonce))).await.unwrap(),
                Err(status) if status.code() == Code::Unavailable => break,
                Err(status) => panic!("{status:?}"),
            }
        }
    }
}

#[tokio::test]
async fn clients_that_are_all_at_one_replica_go_half_to_the_other_and_then_stay() {
    let mesh = Replicas::new();
    let stop = CancellationToken::new();
    let limits = Limits {
        sheds_per_second: 50,
        shed_after: Duration::from_millis(400),
        ..Limits::default()
    };
    let mut planes = Vec::new();
    for name in ["c1", "c2"] {
        let (member, _) = mesh.member(Replicas::options(name, SECOND * 6)).await;
        let publisher = Publisher::start(member.registry().clone(), stop.clone());
        let clients = Clients::default();
        let (limits, stop) = (limits.clone(), stop.clone());
        let ads = service_within(member, publisher, clients.clone(), limits, stop);
        planes.push((ads, clients));
    }
    let ads = [planes[0].0.clone(), planes[1].0.clone()];
    let mut running = JoinSet::new();
    for id in 0..40 {
        running.spawn(client(format!("n{id}"), ads.clone()));
    }
    let counts = || [planes[0].1.len(), planes[1].1.len()];
    let shed = || {
        let of = |it: &(Ads, Clients)| {
            it.1.metrics()
                .shed
                .load(std::sync::atomic::Ordering::Relaxed)
        };
        planes.iter().map(of).sum::<u64>()
    };
    // At rest: no stream was shed for longer than the numbers are old (three renewals).
    let rest = async {
        let (mut seen, mut since) = (0, Instant::now());
        while seen == 0 || since.elapsed() < SECOND * 8 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if shed() != seen {
                (seen, since) = (shed(), Instant::now());
            }
        }
    };
    let rested = tokio::time::timeout(SECOND * 60, rest).await;
    rested.unwrap_or_else(|_| panic!("never at rest: {:?}, {} moved", counts(), shed()));
    let [first, second] = counts();
    assert_eq!(first + second, 40, "nobody is lost");
    assert!((14..=26).contains(&first), "{first} and {second}");
    assert!(shed() <= 26, "{} moved where 16 would do", shed());
    assert!(running.try_join_next().is_none(), "no client failed");
}
