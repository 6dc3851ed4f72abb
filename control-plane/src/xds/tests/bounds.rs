use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::super::{
    Limits, NodeInfo, Refusal,
    admission::StreamAdmission,
    pacing::{StreamCheck, StreamPacing},
};
use crate::{
    budget::{Peer, Who},
    snapshot::Audience,
};

fn who(host: u8) -> Who {
    Who {
        peer: Peer::of(Some([10, 0, 0, host].into())),
        connection: 0,
    }
}

fn node(id: &str) -> NodeInfo {
    NodeInfo {
        id: id.to_owned(),
        role: String::new(),
        audience: Audience::Proxy,
        outbound: None,
        revision: 0,
        process_id: String::new(),
    }
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn streams_are_admitted_at_a_rate_and_bounded_by_client_and_in_all() {
    let now = Instant::now();
    let admission = StreamAdmission::new(Limits {
        streams: 6,
        streams_per_client: 2,
        streams_per_second: 10,
        streams_at_once: 2,
        admission_wait: MS * 100,
        ..Limits::default()
    });
    let slots: Vec<_> = (0..5)
        .map(|host| admission.open(who(host)).unwrap())
        .collect();
    assert_eq!(admission.open(who(9)).err(), Some(Refusal::Full(6)));
    let admit = |slot: usize, address: &str, id: &str| {
        admission.admit(&slots[slot], address, &node(id), now)
    };
    assert_eq!(admit(0, "10.0.0.1:1", "a"), Ok(Duration::ZERO));
    assert_eq!(admit(1, "10.0.0.1:2", "a"), Ok(Duration::ZERO));
    let most = Refusal::Client {
        node: "a".to_owned(),
        most: 2,
    };
    assert_eq!(
        admit(2, "10.0.0.1:3", "a"),
        Err(most.clone()),
        "whatever its port"
    );
    assert_eq!(
        admit(2, "10.0.0.2:3", "a"),
        Ok(MS * 100),
        "another host, a little later"
    );
    assert_eq!(
        admit(3, "10.0.0.3:3", "b"),
        Err(Refusal::Busy { per_second: 10 })
    );
    let soon = now + MS * 200;
    assert_eq!(
        admission.admit(&slots[3], "10.0.0.3:3", &node("b"), soon),
        Ok(Duration::ZERO)
    );
    // The transport still has its responses: the slot is taken.
    let held = Arc::clone(&slots[0]);
    let mut slots = slots;
    slots.remove(0);
    let again = admission.admit(&slots[3], "10.0.0.1:9", &node("a"), soon);
    assert_eq!(again, Err(most));
    drop(held);
    let later = now + MS * 1_000;
    let again = admission.admit(&slots[3], "10.0.0.1:9", &node("a"), later);
    assert_eq!(again, Ok(Duration::ZERO));
    assert!(admission.open(who(9)).is_ok());
}

/// Issue 10, D1: even if it makes up node ids and opens many connections.
#[test]
fn one_peer_cannot_take_all_streams() {
    let admission = StreamAdmission::new(Limits {
        streams: 1_000,
        ..Limits::default()
    });
    let mut greedy = Vec::new();
    let refusal = loop {
        let connection = greedy.len() as u64 / 10;
        match admission.open(Who {
            connection,
            ..who(1)
        }) {
            Ok(slot) => greedy.push(slot),
            Err(refusal) => break refusal,
        }
    };
    assert!((780..=800).contains(&greedy.len()), "{}", greedy.len());
    let text = refusal.to_string();
    assert!(text.contains("clients of 10.0.0.1 have"), "{text}");
    let others: Vec<_> = (2..50)
        .map(|host| admission.open(who(host)).unwrap())
        .collect();
    assert_eq!(others.len(), 48, "others find room");
    greedy.truncate(500);
    assert!(admission.open(who(1)).is_ok());
}

fn pacing(now: Instant) -> StreamPacing {
    let limits = Limits {
        units_per_second: 100,
        units_at_once: 10,
        stuck_after: MS * 60,
        max_age: MS * 1_000,
        ..Limits::default()
    };
    StreamPacing::new(&limits, 1, now)
}

#[test]
fn only_a_client_without_any_sign_of_life_is_stuck() {
    let start = Instant::now();
    let at = |ms: u32| start + MS * ms;
    let mut pacing = pacing(start);
    assert_eq!(
        pacing.check(at(500), false, 0, true),
        StreamCheck::Fine,
        "owes nothing"
    );
    pacing.sent(at(510));
    assert_eq!(pacing.check(at(569), true, 1, true), StreamCheck::Fine);
    assert_eq!(
        pacing.check(at(575), true, 1, true),
        StreamCheck::Stuck,
        "neither read nor answered"
    );
    assert_eq!(
        pacing.check(at(576), true, 0, true),
        StreamCheck::Fine,
        "the transport took it"
    );
    assert_eq!(pacing.check(at(630), true, 0, true), StreamCheck::Fine);
    pacing.on_request(0, at(631));
    assert_eq!(
        pacing.check(at(690), true, 0, true),
        StreamCheck::Fine,
        "it spoke: slow, but alive"
    );
    assert_eq!(pacing.check(at(691), true, 0, true), StreamCheck::Stuck);
}

#[test]
fn who_speaks_too_fast_has_to_wait() {
    let now = Instant::now();
    let mut pacing = pacing(now);
    for _ in 0..10 {
        assert!(!pacing.on_request(3, now));
    }
    assert!(pacing.on_request(3, now));
    assert_eq!(pacing.paused_until(), Some(now + MS * 10));
    pacing.resume();
    let later = now + MS * 1_000;
    assert!(
        !pacing.on_request(9 * 50, later),
        "many names cost as much as many requests"
    );
    assert!(pacing.on_request(0, later));
}

#[test]
fn streams_end_when_they_are_old_quiet_and_have_a_choice() {
    let start = Instant::now();
    let at = |ms: u32| start + MS * ms;
    assert_eq!(
        pacing(start).check(at(799), false, 0, false),
        StreamCheck::Fine
    );
    assert_eq!(
        pacing(start).check(at(1_201), false, 0, false),
        StreamCheck::Old
    );
    let mut alone = pacing(start);
    assert_eq!(alone.check(at(1_201), false, 0, true), StreamCheck::Fine);
    assert_eq!(
        alone.check(at(1_900), false, 0, false),
        StreamCheck::Fine,
        "begins anew"
    );
    let mut busy = pacing(start);
    busy.on_request(0, at(1_200));
    assert_eq!(
        busy.check(at(1_201), true, 0, false),
        StreamCheck::Fine,
        "owes an answer"
    );
    assert_eq!(busy.check(at(1_202), false, 0, false), StreamCheck::Old);
    let limits = Limits {
        max_age: MS * 1_000,
        ..Limits::default()
    };
    let ends: std::collections::BTreeSet<_> = (0..100)
        .map(|seed| {
            let mut pacing = StreamPacing::new(&limits, seed, start);
            (790..1_210).find(|ms| pacing.check(at(*ms), false, 0, false) == StreamCheck::Old)
        })
        .collect();
    assert!(ends.len() > 50 && !ends.contains(&None), "{ends:?}");
}
