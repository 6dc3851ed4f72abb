//! The agent's behaviour as its callers see it: in process, over real sockets on free ports.

mod api;
mod instance_table;
mod files;
mod reflection;
mod saved;
mod session;
mod validate;

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use heddle_proto::registry::v1::Instance;
use prost::bytes::Bytes;
use tokio::sync::watch;

use super::{
    Agent,
    key::InstanceKey,
    removal::{Calls, Remover},
    session::{Identity, Session},
    validate::{Checked, Origin, check},
};

/// A valid instance.
pub(super) fn instance(service: &str, id: &str, address: &str) -> Instance {
    Instance {
        service: service.into(),
        id: id.into(),
        address: address.into(),
        protos: vec!["test.Test".into()],
        ..Instance::default()
    }
}

pub(super) fn checked(instance: Instance) -> Checked {
    check(instance, &Bytes::new(), Origin::Registration, &|_| true).unwrap()
}

/// With a timeout that is never reached on a working machine, however busy.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(60), future).await;
    done.unwrap_or_else(|_| panic!("{what}: not within 60 s"))
}

/// Waits for a state of the agent.
pub(super) async fn until(
    agent: &Agent,
    what: &str,
    f: impl Fn(&super::instance_table::Views) -> bool,
) {
    let mut changes: watch::Receiver<u64> = agent.changes();
    soon(what, async {
        loop {
            changes.borrow_and_update();
            if f(&agent.views().1) {
                return;
            }
            changes.changed().await.unwrap();
        }
    })
    .await;
}

/// A bound listener and its address, for a server in this process.
pub(super) async fn listener() -> (tokio::net::TcpListener, SocketAddr) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// An address where nobody listens, on a loopback host that is used once. Tests run in parallel, and on a shared host
/// another test could be given this port.
pub(super) async fn free_address() -> SocketAddr {
    static HOSTS: AtomicU32 = AtomicU32::new(1);
    let host = HOSTS.fetch_add(1, Ordering::Relaxed);
    let host = std::net::IpAddr::from((0x7f01_0000 + host).to_be_bytes());
    let listener = tokio::net::TcpListener::bind((host, 0)).await.unwrap();
    listener.local_addr().unwrap()
}

/// A data path with no calls.
struct NoCalls;

#[tonic::async_trait]
impl Calls for NoCalls {
    fn endpoint(&self, _: &InstanceKey) -> Option<u64> {
        None
    }

    async fn ended(&self, _: u64, _: Duration) -> usize {
        0
    }
}

/// A remover without a control plane, whose routing table has applied every change.
pub(super) fn remover(agent: &Agent) -> Remover {
    let identity = Identity {
        node: "a".into(),
        process_id: "p1".into(),
        advertise: "127.0.0.1:15008".into(),
        region: String::new(),
        zone: String::new(),
    };
    let (_, handle) = Session::new(agent.clone(), identity, vec![], Arc::default());
    let (_, applied) = watch::channel(u64::MAX);
    Remover::new(agent.clone(), handle, applied, Arc::new(NoCalls))
}
