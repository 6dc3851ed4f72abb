use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::mailbox::{Shared, WorkerHandle, WorkerInit};
use super::turn::Worker;
use super::*;

fn worker() -> Worker {
    let options = WorkerOptions {
        node: "a".to_owned(),
        ..WorkerOptions::default()
    };
    let poll = mio::Poll::new().unwrap();
    let (mailbox, commands) = std::sync::mpsc::sync_channel(8);
    let handle = WorkerHandle {
        mailbox,
        waker: mio::Waker::new(poll.registry(), workers::WAKER).unwrap(),
        load: 0.into(),
        metrics: Arc::default(),
        table: arc_swap::ArcSwap::from_pointee(crate::route::RouteTable::empty("a")),
    };
    let shared = Arc::new(Shared {
        options: Arc::new(options),
        handles: vec![handle],
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
    second_passes(&mut worker);
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
    second_passes(&mut worker);
    worker.check_drained();
    assert_eq!(*worker.shared.drained.borrow(), 1);
}

fn second_passes(worker: &mut Worker) {
    let later = worker.exchange.now() + std::time::Duration::from_secs(1);
    worker.exchange.begin_turn(later, &mut []);
}
