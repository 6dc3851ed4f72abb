//! Tests of an exchange without an event loop.

mod callers;
mod handshakes;
pub(super) mod memory_caller;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Exchange, ExchangeInit};
use crate::caller::Role;
use crate::connection::Transport;
use crate::keys::ConnKey;
use crate::observe::Counter;
use crate::observe::load::LocalityLoad;
use crate::settings::WorkerOptions;
use crate::timers::Timer;

const SECOND: Duration = Duration::from_secs(1);
/// See [`crate::upstream::load::Load::begin`].
const NOT_REPORTED: Option<fn() -> Arc<LocalityLoad>> = None;

fn exchange() -> Exchange {
    exchange_with(WorkerOptions {
        node: "a".to_owned(),
        ..WorkerOptions::default()
    })
}

fn exchange_with(options: WorkerOptions) -> Exchange {
    exchange_of(options, mpsc::channel(1).0)
}

/// `internal` gets the other end of the connection to the proxy's own services.
fn exchange_of(options: WorkerOptions, internal: mpsc::Sender<UnixStream>) -> Exchange {
    Exchange::new(ExchangeInit {
        registry: mio::Poll::new().unwrap().registry().try_clone().unwrap(),
        options: Arc::new(options),
        workers: 1,
        metrics: Arc::default(),
        reports: mpsc::channel(1).0,
        internal,
    })
}

fn socket() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (ours, theirs)
}

fn accept(exchange: &mut Exchange, socket: UnixStream) -> ConnKey {
    let socket = mio::net::UnixStream::from_std(socket);
    exchange
        .accept(Role::Outbound, Transport::Unix(socket))
        .unwrap()
}

#[test]
fn a_panic_costs_one_connection_and_the_worker_lives() {
    let mut exchange = exchange();
    let (ours, mut theirs) = socket();
    let (other, _kept) = socket();
    let key = accept(&mut exchange, ours);
    accept(&mut exchange, other);
    exchange.guard(key, |_| panic!("a bug"));
    assert_eq!(exchange.metrics.counters.get(Counter::Panics), 1);
    assert_eq!(
        (exchange.conns.keys().len(), exchange.conns.accepted()),
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
        size_of::<super::call::Call>() <= 768,
        "{}",
        size_of::<super::call::Call>()
    );
}

#[test]
fn after_a_panic_outside_of_any_connection_each_is_looked_at_again() {
    let mut exchange = exchange();
    let (ours, _theirs) = socket();
    let key = accept(&mut exchange, ours);
    exchange.conns.take_to_flush(&mut Vec::new());
    exchange.recover(SECOND);
    exchange.recover(SECOND);
    assert_eq!(
        exchange.conns.marked(),
        (&[key][..], &[key][..]),
        "once, and though it was marked before"
    );
}

/// Issue 10, A6.
#[test]
fn a_sweep_that_panics_is_done_again() {
    use heddle_h2::{Config, Connection, Fields};
    use std::io::Write as _;
    let mut exchange = exchange_with(WorkerOptions {
        // Cannot be added to any time, so the sweep panics.
        stall_timeout: Duration::MAX,
        ..WorkerOptions::default()
    });
    let (ours, mut theirs) = socket();
    let key = accept(&mut exchange, ours);
    let mut caller = Connection::client(Config::default(), exchange.now);
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
    exchange.read(key, &mut [0; 4096]);
    let call = exchange.calls.keys()[0];
    let now = exchange.now;
    exchange.calls.get_mut(call).unwrap().response.queue(1, now);
    exchange.admission.half_fill_buffers();
    exchange.on_timer(Timer::Sweep);
    assert_eq!(exchange.metrics.counters.get(Counter::Panics), 1);
    // The first one is set at the start.
    let later = exchange.now + super::owner::SWEEP_EVERY + SECOND;
    let due: Vec<Timer> = std::iter::from_fn(|| exchange.timers.due(later)).collect();
    let sweeps = due.iter().filter(|timer| matches!(timer, Timer::Sweep));
    assert_eq!(sweeps.count(), 2, "{due:?}");
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
    let mut exchange = exchange();
    exchange.table = Arc::new(builder.build());
    exchange.pools.pool_of(&endpoint).unwrap();
    exchange.sweep_upstream();
    assert_eq!(
        (exchange.pools.counts().0, exchange.pools.is_swept()),
        (1, true)
    );

    exchange.set_table(Arc::new(crate::route::RouteTable::empty("a")));
    exchange.pools.load_mut(7).unwrap().begin(NOT_REPORTED);
    exchange.sweep_upstream();
    assert_eq!(
        (exchange.pools.counts().0, exchange.pools.is_swept()),
        (1, false)
    );
    exchange.pools.load_mut(7).unwrap().end(None);
    exchange.sweep_upstream();
    assert_eq!(
        (exchange.pools.counts().0, exchange.pools.is_swept()),
        (0, true)
    );
    assert_eq!(exchange.pools.counts().1, 0);
}

#[test]
fn a_write_that_fails_does_not_lose_what_the_peer_sent_before() {
    use std::io::Write;
    let mut exchange = exchange();
    let (ours, mut theirs) = socket();
    let key = accept(&mut exchange, ours);
    theirs
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    exchange.read(key, &mut [0; 4096]);
    theirs.write_all(b"\0\0\x08\x06\0\0\0\0\0pingping").unwrap();
    theirs.shutdown(std::net::Shutdown::Read).unwrap();
    let before = exchange.conns.get(key).unwrap().output_bytes();
    exchange.flush(key);
    assert_eq!(
        exchange.conns.marked().0,
        [key],
        "it is to be read to its end"
    );
    exchange.conns.get_mut(key).unwrap().set_write_error(None);
    exchange.read(key, &mut [0; 4096]);
    let conn = exchange.conns.get(key).unwrap();
    assert_eq!(conn.output_bytes(), before + 17, "its PING was received");
    let broken = Some("broken pipe".to_owned());
    exchange.conns.get_mut(key).unwrap().set_write_error(broken);
    exchange.read(key, &mut [0; 4096]);
    assert_eq!(exchange.conns.keys(), [], "and then it is gone");
}
