//! A TCP load balancer in front of several replicas: round robin, with a health check by `/readyz` that ends the
//! connections of a replica that does not answer. It knows no HTTP/2 and no xDS. Stock gRPC clients need it, because
//! they can have only one address of the control plane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::faults::relay;
use crate::http_get::get;

/// Between two checks of one replica.
const CHECK_EVERY: Duration = Duration::from_millis(200);
/// A check has so long: much longer than a busy machine needs.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// One replica behind the load balancer.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

struct Backend {
    target: Target,
    up: watch::Sender<bool>,
}

/// Passes connections on until it is dropped.
pub struct LoadBalancer {
    pub addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl LoadBalancer {
    /// Listens on a free loopback port; all targets count as up until a check says otherwise.
    pub async fn start(targets: &[Target]) -> Self {
        let addr = crate::temp::free_addr();
        let listener = TcpListener::bind(addr).await.expect("a free port");
        let backends: Arc<Vec<Backend>> = Arc::new(
            targets
                .iter()
                .map(|&target| Backend {
                    target,
                    up: watch::Sender::new(true),
                })
                .collect(),
        );
        let mut tasks = JoinSet::new();
        for number in 0..backends.len() {
            tasks.spawn(check(Arc::clone(&backends), number));
        }
        tasks.spawn(accept(listener, backends));
        Self {
            addr,
            _tasks: tasks,
        }
    }
}

async fn check(backends: Arc<Vec<Backend>>, number: usize) {
    let Backend { target, up } = &backends[number];
    loop {
        let page = timeout(CHECK_TIMEOUT, get(target.http, "/readyz")).await;
        let ready = matches!(page, Ok(Ok((200, _))));
        up.send_if_modified(|up| std::mem::replace(up, ready) != ready);
        sleep(CHECK_EVERY).await;
    }
}

async fn accept(listener: TcpListener, backends: Arc<Vec<Backend>>) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(pass(near, Arc::clone(&backends), Arc::clone(&next)));
    }
}

/// Forwards to the next replica that is up and accepts the connection.
async fn pass(near: TcpStream, backends: Arc<Vec<Backend>>, next: Arc<AtomicUsize>) {
    let first = next.fetch_add(1, Ordering::Relaxed);
    for step in 0..backends.len() {
        let Backend { target, up } = &backends[(first + step) % backends.len()];
        let mut up = up.subscribe();
        if !*up.borrow_and_update() {
            continue;
        }
        let connecting = timeout(CHECK_TIMEOUT, TcpStream::connect(target.grpc));
        let Ok(Ok(far)) = connecting.await else {
            continue;
        };
        return relay(near, far, up).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    use super::{LoadBalancer, Target};
    use crate::temp::free_addr;
    use crate::wait::{seen, until};

    /// Answers each connection with its number, and `/readyz` with 200.
    async fn replica(number: u8) -> (Target, JoinHandle<()>) {
        let [grpc, http] = [free_addr(), free_addr()];
        let listeners = [
            TcpListener::bind(grpc).await.unwrap(),
            TcpListener::bind(http).await.unwrap(),
        ];
        let [serving, ready] = listeners;
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            loop {
                tokio::select! {
                    Ok((mut socket, _)) = serving.accept() => {
                        let _ = socket.write_all(&[number]).await;
                        held.push(socket);
                    }
                    Ok((mut socket, _)) = ready.accept() => {
                        // Who closes with something unread resets the connection, and the answer may be lost with it.
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n")
                            && let Ok(byte) = socket.read_u8().await
                        {
                            head.push(byte);
                        }
                        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                    }
                }
            }
        });
        (Target { grpc, http }, task)
    }

    async fn answered(balancer: &LoadBalancer) -> Result<(u8, TcpStream), String> {
        let connected = TcpStream::connect(balancer.addr).await;
        let mut socket = connected.map_err(|error| error.to_string())?;
        let number = socket.read_u8().await.map_err(|error| error.to_string())?;
        Ok((number, socket))
    }

    #[tokio::test]
    async fn a_replica_that_goes_loses_its_connections_to_another() {
        let (first, serving) = replica(1).await;
        let (second, _other) = replica(2).await;
        let balancer = LoadBalancer::start(&[first, second]).await;
        let (number, mut socket) = answered(&balancer).await.unwrap();
        assert_eq!(number, 1);
        serving.abort();
        assert!(matches!(socket.read(&mut [0]).await, Ok(0) | Err(_)));
        until("all come to the one that is left", async || {
            let mut numbers = Vec::new();
            for _ in 0..3 {
                numbers.push(answered(&balancer).await?.0);
            }
            seen(numbers == [2, 2, 2], format!("{numbers:?}"))
        })
        .await;
    }
}
