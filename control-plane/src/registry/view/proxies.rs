//! The addresses on which the proxies of living nodes listen, by port. Used to reject an instance with a proxy's
//! address: a call to it would loop. The cost of a lookup does not depend on the size of the mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::registry::model::Node;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Proxies(BTreeMap<u16, BTreeSet<(Arc<str>, IpAddr)>>);

impl Proxies {
    /// Applies the change of a node. True if the addresses of its proxy's listeners changed.
    pub(super) fn change(&mut self, old: Option<&Node>, new: Option<&Node>) -> bool {
        let (old, new) = (addresses(old), addresses(new));
        for gone in old.difference(&new) {
            self.remove(gone);
        }
        for (node, at) in new.difference(&old) {
            let of_port = self.0.entry(at.port()).or_default();
            of_port.insert((Arc::clone(node), at.ip()));
        }
        old != new
    }

    fn remove(&mut self, (node, at): &(Arc<str>, SocketAddr)) {
        if let Some(of_port) = self.0.get_mut(&at.port()) {
            of_port.remove(&(Arc::clone(node), at.ip()));
            if of_port.is_empty() {
                self.0.remove(&at.port());
            }
        }
    }

    /// The node whose proxy listens at the address of an instance on the node `on`: `on` itself, or another. `node`
    /// returns a node by name.
    pub(super) fn at<'a>(
        &self,
        on: &Node,
        address: SocketAddr,
        node: impl Fn(&str) -> Option<&'a Node>,
    ) -> Option<Arc<str>> {
        let mut own = every(on);
        if own.any(|at| at.port() == address.port() && reaches(on, address.ip(), on, at.ip())) {
            return Some(Arc::clone(&on.name));
        }
        let of_port = self.0.get(&address.port())?;
        let others = of_port.iter().filter(|(name, _)| *name != on.name);
        let mut others = others.filter_map(|(name, ip)| Some((node(name)?, *ip)));
        let reached = others.find(|(owner, ip)| reaches(on, address.ip(), owner, *ip));
        reached.map(|(owner, _)| Arc::clone(&owner.name))
    }
}

fn addresses(node: Option<&Node>) -> BTreeSet<(Arc<str>, SocketAddr)> {
    let living = node.filter(|node| node.alive).into_iter();
    living
        .flat_map(|node| every(node).map(|at| (Arc::clone(&node.name), at)))
        .collect()
}

fn every(node: &Node) -> impl Iterator<Item = SocketAddr> {
    let all = node.listeners.iter().chain([&node.advertise]);
    all.map(|at| SocketAddr::new(at.ip().to_canonical(), at.port()))
}

/// Whether a connection to `address` from the host of `on` reaches a listener at `at` of `owner`'s proxy.
fn reaches(on: &Node, address: IpAddr, owner: &Node, at: IpAddr) -> bool {
    let here = || *on.name == *owner.name || on.shares_host(owner);
    if at.is_unspecified() {
        // An IPv6 wildcard also accepts IPv4 connections.
        let takes = at.is_ipv6() || address.is_ipv4();
        return takes && (here() || address == owner.advertise.ip().to_canonical());
    }
    address == at && (!at.is_loopback() || here())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::model::Node;

    fn node(name: &str, host: &str, advertise: &str, listeners: &[&str]) -> Node {
        let record = heddle_proto::store::v1::NodeRecord {
            name: name.into(),
            epoch: 1,
            advertise: advertise.into(),
            host: host.into(),
            listeners: listeners.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let mut node = Node::parse(name, record).unwrap();
        node.alive = true;
        node
    }

    /// Issue 10, B3.
    #[test]
    fn an_address_reaches_the_proxy_that_listens_there() {
        let nodes = [
            node(
                "a",
                "h1",
                "10.0.0.1:15008",
                &["127.0.0.1:15001", "0.0.0.0:15008"],
            ),
            node("b", "h1", "10.0.0.1:25008", &["[::]:25001", "[::1]:25002"]),
            node(
                "far",
                "h2",
                "10.0.0.9:15008",
                &["127.0.0.1:15001", "10.0.0.9:15003"],
            ),
        ];
        let mut proxies = Proxies::default();
        for node in &nodes {
            assert!(proxies.change(None, Some(node)));
            assert!(!proxies.change(Some(node), Some(node)));
        }
        let find = |name: &str| nodes.iter().find(|node| *node.name == *name);
        let at = |on: &str, address: &str| {
            let on = find(on).unwrap();
            let owner = proxies.at(on, address.parse().unwrap(), find);
            owner.map(|owner| owner.to_string())
        };
        for (on, address, owner) in [
            ("a", "127.0.0.1:15001", Some("a")),
            ("a", "127.0.0.2:15001", None),
            ("b", "127.0.0.1:15001", Some("a")),
            ("far", "127.0.0.1:15001", Some("far")),
            ("a", "10.0.0.1:15008", Some("a")),
            ("a", "192.168.7.7:15008", Some("a")),
            ("b", "127.0.0.1:15008", Some("a")),
            ("far", "10.0.0.1:15008", Some("a")),
            ("far", "127.0.0.1:15008", None),
            // Only the agent knows its node's addresses: a wildcard listener matches the address of every instance on
            // the node.
            ("a", "10.0.0.9:15008", Some("a")),
            ("a", "127.0.0.1:25001", Some("b")),
            ("a", "[::1]:25001", Some("b")),
            ("far", "[::1]:25001", None),
            ("a", "[::1]:25002", Some("b")),
            ("a", "127.0.0.1:25002", None),
            ("a", "10.0.0.9:15003", Some("far")),
            ("a", "127.0.0.1:21001", None),
        ] {
            assert_eq!(at(on, address).as_deref(), owner, "{address} on {on}");
        }
        let mut gone = nodes[2].clone();
        gone.alive = false;
        assert!(proxies.change(Some(&nodes[2]), Some(&gone)));
        let owner = proxies.at(&nodes[0], "10.0.0.9:15003".parse().unwrap(), find);
        assert_eq!(owner, None, "a proxy that has gone listens nowhere");
        for node in &nodes[..2] {
            proxies.change(Some(node), None);
        }
        assert_eq!(proxies, Proxies::default());
    }

    #[test]
    fn of_older_proxies_those_that_run_beside_the_control_plane_share_a_host() {
        let mut a = node("a", "", "127.0.0.1:15108", &[]);
        let mut b = node("b", "", "127.0.0.1:15208", &[]);
        (a.loopback, b.loopback) = (true, true);
        let mut proxies = Proxies::default();
        proxies.change(None, Some(&b));
        let at = |on: &Node| proxies.at(on, b.advertise, |_| Some(&b)).is_some();
        assert!(at(&a));
        a.loopback = false;
        assert!(!at(&a), "a loopback address of another host is another");
    }
}
