//! The name and the address by which other replicas know this one, from the options and the bound sockets. Sends
//! nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use heddle_listen::{Bound, ListenAddr, ListenOption};

use crate::{options::Options, store::Store};

/// A documentation address (RFC 5737), used only to look up the route to other hosts.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Several replicas on one host may share a store: the port distinguishes them.
pub(super) fn replica_name(store: &dyn Store, options: &Options) -> String {
    let port = options.listen.iter().find_map(ListenOption::port);
    match (store.is_shared(), port) {
        (true, Some(0)) => format!("{}-{}", host_name(), std::process::id()),
        (true, Some(port)) => format!("{}-{port}", host_name()),
        _ => host_name(),
    }
}

/// The address at which other replicas reach this one; empty if they cannot.
pub(super) fn advertised(options: &Options, grpc: &[Bound]) -> String {
    if let Some(advertise) = &options.advertise {
        return format!("http://{advertise}");
    }
    let first = grpc.iter().find_map(|bound| match bound.address() {
        ListenAddr::Tcp(address) => Some(address),
        ListenAddr::Unix(_) => None,
    });
    match first {
        Some(address) if !address.ip().is_unspecified() => format!("http://{address}"),
        Some(address) => match own_address() {
            Some(ip) => format!("http://{}", SocketAddr::new(ip, address.port())),
            None => {
                tracing::warn!(
                    "cannot determine this host's own address: other replicas cannot reach this \
                     one; give --advertise HOST:PORT"
                );
                String::new()
            }
        },
        None => String::new(),
    }
}

/// The address from which this host reaches others. Nothing is sent: connecting a datagram socket only looks up the
/// route.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((ELSEWHERE, 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified() && !own.is_loopback()).then_some(own)
}

pub(super) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "control".to_owned())
}
