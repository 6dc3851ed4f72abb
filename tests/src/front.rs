//! One address for several replicas, as a load balancer in front of them gives it: TCP, in turn, with a health check by
//! `/readyz` that ends the connections of a replica that has gone silent. It knows no HTTP/2 and no xDS; a stock gRPC
//! client, which knows one address of the control plane, needs it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::page::get;

/// Between two checks of one replica.
const CHECK_EVERY: Duration = Duration::from_millis(200);
/// A check has so long: much longer than a busy machine needs.
const CHECK_WITHIN: Duration = Duration::from_secs(2);

/// One replica behind a front.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

struct Behind {
    target: Target,
    up: watch::Sender<bool>,
}

/// Passes connections on until it is dropped.
pub struct Front {
    pub addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Front {
    /// Listens on a free loopback port; all targets count as up until a check says otherwise.
    pub async fn over(targets: &[Target]) -> Self {
        let addr = crate::place::free_addr();
        let listener = TcpListener::bind(addr).await.expect("a free port");
        let behind: Arc<Vec<Behind>> = Arc::new(
            targets
                .iter()
                .map(|&target| Behind {
                    target,
                    up: watch::Sender::new(true),
                })
                .collect(),
        );
        let mut tasks = JoinSet::new();
        for number in 0..behind.len() {
            tasks.spawn(check(Arc::clone(&behind), number));
        }
        tasks.spawn(accept(listener, behind));
        Self {
            addr,
            _tasks: tasks,
        }
    }
}

async fn check(behind: Arc<Vec<Behind>>, number: usize) {
    let Behind { target, up } = &behind[number];
    loop {
        let page = timeout(CHECK_WITHIN, get(target.http, "/readyz")).await;
        let ready = matches!(page, Ok(Ok((200, _))));
        up.send_if_modified(|up| std::mem::replace(up, ready) != ready);
        sleep(CHECK_EVERY).await;
    }
}

async fn accept(listener: TcpListener, behind: Arc<Vec<Behind>>) {
    let turn = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(pass(near, Arc::clone(&behind), Arc::clone(&turn)));
    }
}

/// To the first replica in turn that is up and takes the connection.
async fn pass(mut near: TcpStream, behind: Arc<Vec<Behind>>, turn: Arc<AtomicUsize>) {
    let first = turn.fetch_add(1, Ordering::Relaxed);
    for step in 0..behind.len() {
        let Behind { target, up } = &behind[(first + step) % behind.len()];
        let mut up = up.subscribe();
        if !*up.borrow_and_update() {
            continue;
        }
        let connecting = timeout(CHECK_WITHIN, TcpStream::connect(target.grpc));
        let Ok(Ok(mut far)) = connecting.await else {
            continue;
        };
        let _ = near.set_nodelay(true);
        let _ = far.set_nodelay(true);
        tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => {}
            _ = up.wait_for(|up| !up) => {}
        }
        return;
    }
}
