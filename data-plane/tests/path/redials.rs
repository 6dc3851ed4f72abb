//! An address without a connection: reconnected by its back-off, however many calls want it, and used again once it is
//! back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use heddle_proxy::balance::{Endpoint, Target};
use heddle_proxy::route::Service;
use heddle_proxy::worker::WorkerOptions;
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::*;

/// So many show that the waits grow, and come within a second.
const ATTEMPTS: usize = 5;

/// A listener that closes at once whatever comes, until it is opened: then it passes it on.
struct ClosingListener {
    address: SocketAddr,
    attempts: Arc<AtomicUsize>,
    open: Arc<AtomicBool>,
}

impl ClosingListener {
    async fn closed(behind: SocketAddr) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = Self {
            address: socket.local_addr().unwrap(),
            attempts: Arc::default(),
            open: Arc::default(),
        };
        let (attempts, open) = (Arc::clone(&listener.attempts), Arc::clone(&listener.open));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = socket.accept().await {
                attempts.fetch_add(1, Ordering::SeqCst);
                if open.load(Ordering::SeqCst) {
                    tokio::spawn(async move {
                        let mut far = TcpStream::connect(behind).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    });
                }
            }
        });
        listener
    }

    fn attempts(&self) -> usize {
        self.attempts.load(Ordering::SeqCst)
    }
}

/// The most attempts in so long a time, the first at once: each wait is at least half of 50 ms, doubled up to 3 s
/// (docs/health.md). However slow the machine is, there cannot be more.
fn most(elapsed: Duration) -> usize {
    let (mut at, mut wait, mut count) = (Duration::ZERO, Duration::from_millis(25), 1);
    while at + wait <= elapsed {
        at += wait;
        wait = (wait * 2).min(Duration::from_millis(1_500));
        count += 1;
    }
    count
}

fn one_worker() -> Node {
    Node::with(WorkerOptions {
        workers: 1,
        ..options("a")
    })
}

/// Calls, eight at a time, until the listener was dialled that often, and checks how often that was in the time.
async fn press(node: &Node, listener: &ClosingListener, service: Service, check: impl Fn(&Reply)) {
    let client = node.client().await;
    let start = Instant::now();
    node.publish(vec![service]);
    within(async {
        while listener.attempts() < ATTEMPTS {
            for reply in join_all((0..8).map(|_| client.put(b"x"))).await {
                check(&reply);
            }
        }
    })
    .await;
    let attempts = listener.attempts();
    let elapsed = start.elapsed();
    assert!(attempts <= most(elapsed), "{attempts} in {elapsed:?}");
}

/// Beside another instance, for which it costs no call.
async fn stays_away_and_comes_back(
    behind: SocketAddr,
    served: &Backend,
    to: fn(SocketAddr) -> Endpoint,
) {
    let other = Backend::echo().await;
    let listener = ClosingListener::closed(behind).await;
    let node = one_worker();
    let service = echo(vec![to(listener.address), local("e2", other.address)]);
    let answered = |reply: &Reply| assert_eq!(reply.status(), "0", "{}", reply.message());
    press(&node, &listener, service, answered).await;
    assert_eq!(served.calls(), 0, "the listener is closed");

    listener.open.store(true, Ordering::SeqCst);
    let client = node.client().await;
    within(async {
        while served.calls() == 0 {
            answered(&client.put(b"x").await);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_closes_its_connections_is_left_alone_and_used_once_it_is_back() {
    let served = Backend::echo().await;
    let to = |address| local("e1", address);
    stays_away_and_comes_back(served.address, &served, to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_closes_its_links_is_left_alone_and_used_once_it_is_back() {
    let served = Backend::echo().await;
    let b = Node::start("b");
    b.publish(vec![on_b("e1", served.address)]);
    let to = |address| endpoint("e1", "b", Target::Node(address));
    stays_away_and_comes_back(b.inbound, &served, to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_instance_is_left_alone_too_and_its_callers_are_told() {
    let served = Backend::echo().await;
    let listener = ClosingListener::closed(served.address).await;
    let node = one_worker();
    let service = echo(vec![local("e1", listener.address)]);
    let refused = |reply: &Reply| assert_eq!(reply.reason(), "CONNECT_FAILED", "{reply:?}");
    press(&node, &listener, service, refused).await;

    listener.open.store(true, Ordering::SeqCst);
    let client = node.client().await;
    within(async {
        while client.put(b"x").await.status() != "0" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
