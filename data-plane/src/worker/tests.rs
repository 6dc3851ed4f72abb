use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::mailbox::{Peer, Shared, WorkerInit};
use super::turn::Worker;
use super::*;
use crate::observe::Counter;

fn worker() -> Worker {
    worker_with(WorkerOptions {
        node: "a".to_owned(),
        ..WorkerOptions::default()
    })
}

fn worker_with(options: WorkerOptions) -> Worker {
    let poll = mio::Poll::new().unwrap();
    let (mailbox, commands) = std::sync::mpsc::sync_channel(8);
    let peer = Peer {
        mailbox,
        waker: mio::Waker::new(poll.registry(), workers::WAKER).unwrap(),
        load: 0.into(),
        metrics: Arc::default(),
        table: arc_swap::ArcSwap::from_pointee(crate::route::RouteTable::empty("a")),
    };
    let shared = Arc::new(Shared {
        options: Arc::new(options),
        peers: vec![peer],
        reports: mpsc::channel(1).0,
        internal: mpsc::channel(1).0,
        draining: false.into(),
        drained: watch::Sender::new(0),
    });
    Worker::new(WorkerInit {
        index: 0,
        registries: [(); 2].map(|()| poll.registry().try_clone().unwrap()),
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
    let key = worker.exchange.conns.keys()[0];
    worker.exchange.guard(key, |_| panic!("a bug"));
    assert_eq!(worker.exchange.metrics.counters.get(Counter::Panics), 1);
    assert_eq!(
        (
            worker.exchange.conns.keys().len(),
            worker.exchange.conns.accepted()
        ),
        (1, 1)
    );
    let mut byte = [0];
    assert_eq!(
        std::io::Read::read(&mut theirs, &mut byte).unwrap(),
        0,
        "it is closed"
    );
}

#[test]
fn an_idle_connection_is_small() {
    // Its HTTP/2 state machine has tables and buffers besides; together they must stay below 8 KiB.
    assert!(
        size_of::<crate::connection::Conn>() <= 4096,
        "{}",
        size_of::<crate::connection::Conn>()
    );
    assert!(
        size_of::<crate::exchange::state::Call>() <= 768,
        "{}",
        size_of::<crate::exchange::state::Call>()
    );
}

fn socket() -> (
    std::os::unix::net::UnixStream,
    std::os::unix::net::UnixStream,
) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (ours, theirs)
}

#[test]
fn a_drain_waits_for_the_first_bytes_of_a_connection_that_has_just_come() {
    let mut worker = worker();
    let (ours, _theirs) = socket();
    worker.take_unix(Role::Outbound, ours);
    worker.begin_drain();
    worker.check_drained();
    assert!(!worker.drain.is_done(), "its call may lie in the socket");
    worker.exchange.now += std::time::Duration::from_secs(1);
    worker.check_drained();
    assert!(
        worker.drain.is_done(),
        "whoever says nothing is not waited for"
    );
}

#[test]
fn a_connection_that_is_passed_on_to_a_drained_worker_is_carried() {
    let mut worker = worker();
    worker.begin_drain();
    worker.check_drained();
    assert_eq!(*worker.shared.drained.borrow(), 1);
    let (ours, _theirs) = socket();
    worker.take_unix(Role::Outbound, ours);
    worker.check_drained();
    assert_eq!(*worker.shared.drained.borrow(), 0);
    worker.exchange.now += std::time::Duration::from_secs(1);
    worker.check_drained();
    assert_eq!(*worker.shared.drained.borrow(), 1);
}

#[test]
fn after_a_panic_outside_of_any_connection_each_is_looked_at_again() {
    let mut worker = worker();
    let (ours, _theirs) = socket();
    worker.take_unix(Role::Outbound, ours);
    let key = worker.exchange.conns.keys()[0];
    worker.exchange.conns.take_to_flush(&mut Vec::new());
    worker.recover();
    worker.recover();
    assert_eq!(
        worker.exchange.conns.marked(),
        (&[key][..], &[key][..]),
        "once, and though it was marked before"
    );
}

/// The timers due within a second after the sweep's interval.
fn due(worker: &mut Worker) -> Vec<crate::timers::Timer> {
    let later = worker.exchange.now + turn::SWEEP_EVERY + std::time::Duration::from_secs(1);
    std::iter::from_fn(|| worker.exchange.timers.due(later)).collect()
}

/// Issue 10, A6.
#[test]
fn a_sweep_that_panics_is_done_again() {
    use heddle_h2::{Config, Connection, Fields};
    use std::io::Write as _;
    let mut worker = worker_with(WorkerOptions {
        // Cannot be added to any time, so the sweep panics.
        stall_timeout: std::time::Duration::MAX,
        ..WorkerOptions::default()
    });
    let (ours, mut theirs) = socket();
    worker.take_unix(Role::Outbound, ours);
    let key = worker.exchange.conns.keys()[0];
    let mut caller = Connection::client(Config::default(), worker.exchange.now);
    let mut request = Fields::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/test.Echo/Get"),
        (":authority", "echo"),
    ] {
        request.push(name.as_bytes(), value.as_bytes());
    }
    caller.open(&request, 1, false).unwrap();
    theirs.write_all(caller.output()).unwrap();
    worker.read(key);
    let call = worker.exchange.calls.keys()[0];
    let now = worker.exchange.now;
    worker
        .exchange
        .calls
        .get_mut(call)
        .unwrap()
        .queue_for_caller(1, now);
    worker.exchange.admission.buffers.fill();
    let fired = std::panic::AssertUnwindSafe(|| worker.fire(crate::timers::Timer::Sweep));
    let _ = std::panic::catch_unwind(fired);
    assert_eq!(worker.exchange.metrics.counters.get(Counter::Panics), 1);
    let due = due(&mut worker);
    assert!(
        due.iter()
            .any(|timer| matches!(timer, crate::timers::Timer::Sweep)),
        "{due:?}"
    );
}

#[test]
fn what_left_the_table_is_forgotten_once_its_last_call_has_ended() {
    use crate::balance::{Endpoint, EndpointSet};
    let endpoint = Arc::new(Endpoint::of_test(7));
    let mut service = crate::route::Service::new("echo", "default");
    service.endpoints = Arc::new(EndpointSet {
        endpoints: vec![Arc::clone(&endpoint)],
    });
    let mut builder = crate::route::RouteTable::builder("a", &[]);
    builder.service(service);
    let mut worker = worker();
    worker.exchange.table = Arc::new(builder.build());
    worker.exchange.pools.pool_of(&endpoint).unwrap();
    worker.exchange.sweep_upstream();
    assert_eq!(
        (
            worker.exchange.pools.counts().0,
            worker.exchange.pools.is_swept()
        ),
        (1, true)
    );

    let peer = &worker.shared.peers[0];
    peer.table
        .store(Arc::new(crate::route::RouteTable::empty("a")));
    worker.swap_table();
    worker.exchange.pools.load_mut(7).unwrap().pending = 1;
    worker.exchange.sweep_upstream();
    assert_eq!(
        (
            worker.exchange.pools.counts().0,
            worker.exchange.pools.is_swept()
        ),
        (1, false)
    );
    worker.exchange.pools.load_mut(7).unwrap().pending = 0;
    worker.exchange.sweep_upstream();
    assert_eq!(
        (
            worker.exchange.pools.counts().0,
            worker.exchange.pools.is_swept()
        ),
        (0, true)
    );
    assert_eq!(worker.exchange.pools.counts().1, 0);
}

#[test]
fn a_write_that_fails_does_not_lose_what_the_peer_said_before() {
    use std::io::Write;
    let mut worker = worker();
    let (ours, mut theirs) = socket();
    worker.take_unix(Role::Outbound, ours);
    let key = worker.exchange.conns.keys()[0];
    theirs
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    worker.read(key);
    theirs.write_all(b"\0\0\x08\x06\0\0\0\0\0pingping").unwrap();
    theirs.shutdown(std::net::Shutdown::Read).unwrap();
    let before = worker.exchange.conns.get(key).unwrap().output_bytes();
    worker.exchange.flush(key);
    assert_eq!(
        worker.exchange.conns.marked().0,
        [key],
        "it is to be read to its end"
    );
    worker
        .exchange
        .conns
        .get_mut(key)
        .unwrap()
        .set_write_error(None);
    worker.read(key);
    let conn = worker.exchange.conns.get(key).unwrap();
    assert_eq!(conn.output_bytes(), before + 17, "its PING was heard");
    let broken = Some("broken pipe".to_owned());
    worker
        .exchange
        .conns
        .get_mut(key)
        .unwrap()
        .set_write_error(broken);
    worker.read(key);
    assert_eq!(worker.exchange.conns.keys(), [], "and then it is gone");
}
