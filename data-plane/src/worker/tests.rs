use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::mailbox::{Peer, Seat, Shared};
use super::state::Worker;
use super::*;
use crate::observe::Counter;

fn worker() -> Worker {
    let poll = mio::Poll::new().unwrap();
    let (mailbox, commands) = std::sync::mpsc::sync_channel(8);
    let options = WorkerOptions {
        node: "a".to_owned(),
        ..WorkerOptions::default()
    };
    let peer = Peer {
        mailbox,
        waker: mio::Waker::new(poll.registry(), workers::WAKER).unwrap(),
        load: 0.into(),
        metrics: Arc::default(),
        table: arc_swap::ArcSwap::from_pointee(crate::route::RouteTable::empty("a")),
    };
    let shared = Arc::new(Shared {
        options,
        peers: vec![peer],
        reports: mpsc::channel(1).0,
        internal: mpsc::channel(1).0,
        draining: false.into(),
        drained: watch::Sender::new(0),
    });
    Worker::new(Seat {
        index: 0,
        poll,
        commands,
        shared,
    })
}

#[test]
fn a_panic_costs_one_connection_and_the_worker_lives() {
    let mut worker = worker();
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (other, _kept) = std::os::unix::net::UnixStream::pair().unwrap();
    other.set_nonblocking(true).unwrap();
    worker.take_unix(Role::Outbound, ours);
    worker.take_unix(Role::Outbound, other);
    let key = worker.conns.keys()[0];
    worker.guard(key, |_| panic!("a bug"));
    assert_eq!(worker.metrics.counters.get(Counter::Panics), 1);
    assert_eq!((worker.conns.len(), worker.downstream), (1, 1));
    let mut byte = [0];
    assert_eq!(
        std::io::Read::read(&mut theirs, &mut byte).unwrap(),
        0,
        "it is closed"
    );
}

#[test]
fn an_idle_connection_is_small() {
    // Its machine keeps tables and buffers beside: all of it is to stay under 8 KiB.
    assert!(
        size_of::<conn::Conn>() <= 4096,
        "{}",
        size_of::<conn::Conn>()
    );
    assert!(
        size_of::<crate::exchange::state::Call>() <= 768,
        "{}",
        size_of::<crate::exchange::state::Call>()
    );
}
