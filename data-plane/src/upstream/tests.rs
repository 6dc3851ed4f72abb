use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::dial::Dial;
use super::pools::Io;
use super::*;
use crate::caller::Account;
use crate::connection::Connections;
use crate::keys::{CallKey, ConnKey, PoolKey};
use crate::settings::WorkerOptions;
use crate::timers::{Timer, Timers};

/// Pools without a worker: what they need, and a clock that the test moves.
struct Bench {
    _poll: mio::Poll,
    pools: Pools,
    conns: Connections,
    timers: Timers,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let poll = mio::Poll::new().unwrap();
        let now = Instant::now();
        let options = Arc::new(WorkerOptions::default());
        Self {
            pools: Pools::new(
                options,
                Arc::default(),
                mpsc::channel(1).0,
                mpsc::channel(1).0,
            ),
            conns: Connections::new(poll.registry().try_clone().unwrap()),
            timers: Timers::new(now),
            now,
            _poll: poll,
        }
    }

    fn with_io<T>(&mut self, work: impl FnOnce(&mut Pools, Io<'_>) -> T) -> T {
        let io = Io {
            conns: &mut self.conns,
            timers: &mut self.timers,
            now: self.now,
            low_memory: false,
        };
        work(&mut self.pools, io)
    }

    /// The pool of an address where nothing listens.
    fn pool(&mut self) -> PoolKey {
        let dial = Dial::Local(([127, 0, 0, 1], 1).into());
        self.pools.pool_for(dial).unwrap()
    }
}

fn account(caller: u64) -> Account {
    Account {
        service: 1,
        caller: ConnKey::unpack(caller).into(),
    }
}

#[test]
fn the_calls_that_wait_for_a_failed_dial_come_out_in_turn() {
    let mut bench = Bench::new();
    let pool = bench.pool();
    for (call, caller) in [(1, 1), (2, 1), (3, 2)] {
        let call = CallKey::unpack(call);
        let failed = bench.with_io(|pools, io| pools.wait(pool, account(caller), call, io));
        assert!(failed.is_none(), "the socket is being connected");
    }
    assert_eq!(bench.conns.opened(), 1, "one dial for all of them");
    let key = bench.conns.keys()[0];
    bench.conns.remove(key, &mut bench.timers);
    bench.pools.remove_connection(pool, key);
    let failed = bench.with_io(|pools, io| pools.on_dial_failed(pool, "refused", true, io));
    let failed = failed.expect("no other connection is left");
    assert_eq!((failed.pool, &*failed.why), (pool, "refused"));
    let waiting = std::iter::from_fn(|| bench.pools.next_waiting(pool));
    let waiting: Vec<u64> = waiting.map(CallKey::pack).collect();
    assert_eq!(waiting, [1, 3, 2], "callers take turns");
}

#[test]
fn an_address_whose_further_dial_failed_is_reachable_once_its_connections_have_left() {
    let mut bench = Bench::new();
    let pool = bench.pool();
    let failed = bench.with_io(|pools, io| pools.on_dial_failed(pool, "refused", false, io));
    assert!(failed.is_some());
    let ready = ConnKey::unpack(1 << 32);
    bench.pools.arena.get_mut(pool).unwrap().conns.push(ready);
    bench.now += Duration::from_secs(1);
    let failed = bench.with_io(|pools, io| pools.on_timer(pool, io));
    assert!(failed.is_none());
    bench.pools.remove_connection(pool, ready);
    assert!(!bench.pools.get(pool).unwrap().is_unreachable());
}

/// Issue 10, A6: otherwise an address that cannot be dialled would never be used again.
#[test]
fn a_pool_whose_timer_a_panic_swallowed_dials_again() {
    let mut bench = Bench::new();
    let pool = bench.pool();
    let failed = bench.with_io(|pools, io| pools.on_dial_failed(pool, "refused", false, io));
    assert!(failed.is_some());
    let timer = bench.pools.arena.get_mut(pool).unwrap().timer.take();
    bench.timers.unset(timer.unwrap());
    let soon = bench.now + Duration::from_secs(1);
    bench.pools.recover(&mut bench.timers, soon);
    let due = bench.timers.due(soon + Duration::from_secs(1));
    assert!(
        matches!(due, Some(Timer::Pool(key)) if key == pool),
        "{due:?}"
    );
}
