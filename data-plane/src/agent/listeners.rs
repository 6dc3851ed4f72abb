//! The addresses on which this proxy itself listens. An instance with such an address would make a routing loop. Input:
//! the listeners, including those that are only planned. Output: which listener an address reaches. No socket is used
//! here.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

/// See the module documentation. Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Listeners(Arc<RwLock<BTreeMap<SocketAddr, &'static str>>>);

impl Listeners {
    /// Adds a listener, bound or planned, by its name (such as `outbound`). Port 0 is ignored: its port is known only
    /// once it is bound.
    pub(super) fn add(&self, name: &'static str, at: SocketAddr) {
        if at.port() != 0 {
            let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
            all.insert(canonical(at), name);
        }
    }

    /// The listener that a connection from this host to `address` reaches.
    pub(super) fn at(&self, address: SocketAddr) -> Option<&'static str> {
        let address = canonical(address);
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let reached = all.iter().find(|(at, _)| reaches(address, **at));
        reached.map(|(_, name)| *name)
    }

    /// The addresses of all listeners; wildcard addresses are not resolved.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.keys().copied().collect()
    }
}

fn reaches(address: SocketAddr, at: SocketAddr) -> bool {
    // An IPv6 wildcard accepts IPv4 connections too.
    let wildcard = at.ip().is_unspecified() && (at.is_ipv6() || address.is_ipv4());
    at.port() == address.port() && (at.ip() == address.ip() || wildcard)
}

fn canonical(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip().to_canonical(), at.port())
}

/// Identifies the network stack of this process: equal for processes that share their loopback addresses. Empty if the
/// system does not report it.
#[must_use]
pub fn network_stack() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let (boot, namespace) = (boot.trim(), namespace.to_string_lossy());
    if boot.is_empty() || namespace.is_empty() {
        return String::new();
    }
    format!("{boot}/{namespace}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 10, B3.
    #[test]
    fn an_address_reaches_the_listener_that_is_bound_there_or_to_all() {
        let listeners = Listeners::default();
        for (name, at) in [
            ("outbound", "127.0.0.1:15001"),
            ("inbound", "0.0.0.0:15008"),
            ("agent", "[::1]:15002"),
            ("admin", "[::]:15000"),
            ("admin", "127.0.0.1:0"),
        ] {
            listeners.add(name, at.parse().unwrap());
        }
        assert_eq!(listeners.addresses().len(), 4);
        for (address, expected) in [
            ("127.0.0.1:15001", Some("outbound")),
            ("[::ffff:127.0.0.1]:15001", Some("outbound")),
            ("127.0.0.2:15001", None),
            ("10.0.0.7:15008", Some("inbound")),
            ("[::1]:15008", None),
            ("[::1]:15002", Some("agent")),
            ("127.0.0.1:15002", None),
            ("127.0.0.1:15000", Some("admin")),
            ("[fd00::7]:15000", Some("admin")),
            ("127.0.0.1:21001", None),
        ] {
            assert_eq!(
                listeners.at(address.parse().unwrap()),
                expected,
                "{address}"
            );
        }
    }

    #[test]
    fn a_process_has_its_network_stack_in_common_with_itself() {
        assert_eq!(network_stack(), network_stack());
        assert!(network_stack().contains("net:["), "{}", network_stack());
    }
}
