//! The endpoints of one service as the control side knows them, immutable and shared by all workers. The current load
//! is not here: each worker has its own, by [`Endpoint::uid`].

use std::net::SocketAddr;
use std::sync::Arc;

use super::slow_start::{self, Warming};

/// Health of an endpoint, from health checks and the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Accepts calls.
    Healthy,
    /// Not known yet, or in doubt because many nodes were lost at once: stays in use.
    Unknown,
    /// Accepts no calls.
    Unhealthy,
    /// Accepts no new calls; calls in flight finish.
    Draining,
}

impl Health {
    /// Whether new calls may be sent to it.
    #[must_use]
    pub fn usable(self) -> bool {
        matches!(self, Self::Healthy | Self::Unknown)
    }
}

/// The address that a call to an endpoint is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// An instance on this node: its own address.
    Local(SocketAddr),
    /// An instance on another node: the address of that node's inbound listener.
    Node(SocketAddr),
}

impl Target {
    /// The address to dial.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Local(address) | Self::Node(address) => address,
        }
    }
}

/// One instance, for the balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The same number for the same (service, node, id, target) in every table; load and connections are kept by it.
    pub uid: u64,
    /// The instance's id, unique per node and service.
    pub id: Arc<str>,
    /// The node on which it runs.
    pub node: Arc<str>,
    /// The version with which it registered.
    pub version: Arc<str>,
    /// Where its calls are sent.
    pub target: Target,
    /// Its share of the calls relative to the others; 0 counts as 1.
    pub weight: u32,
    /// Its health.
    pub health: Health,
    /// Empty unless its node has one.
    pub region: Arc<str>,
    /// Empty unless its node has one.
    pub zone: Arc<str>,
}

#[cfg(test)]
impl Endpoint {
    /// A healthy endpoint of node `a`; tests change the fields that they need.
    pub(crate) fn of_test(uid: u64) -> Self {
        Self {
            uid,
            id: format!("e{uid}").into(),
            node: "a".into(),
            version: "".into(),
            target: Target::Local(([127, 0, 0, 1], 1).into()),
            weight: 1,
            health: Health::Healthy,
            region: "".into(),
            zone: "".into(),
        }
    }
}

/// All endpoints of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// In any order; unique by uid.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// The endpoints to which new calls may be sent, nearest locality first. Computed once per table, so that a pick
/// neither filters nor allocates.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    groups: Vec<Group>,
}

/// The usable endpoints of one locality distance.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// The endpoints, each with the sum of the weights up to and including its own.
    pub members: Vec<(Arc<Endpoint>, u64)>,
    /// Those in slow start, sorted by uid; almost always empty.
    pub warming: Vec<Warming>,
}

impl Group {
    /// The sum of all weights.
    #[must_use]
    pub fn total_weight(&self) -> u64 {
        self.members.last().map_or(0, |(_, sum)| *sum)
    }
}

impl Candidates {
    /// The usable endpoints of `set` in three groups, as seen from a locality: same zone, same region, the rest.
    /// `warming`, sorted by uid, has those in slow start.
    #[must_use]
    pub fn new(set: &EndpointSet, region: &str, zone: &str, warming: &[Warming]) -> Self {
        let mut groups = vec![Group::default(), Group::default(), Group::default()];
        for endpoint in set.endpoints.iter().filter(|e| e.health.usable()) {
            let distance = match (*endpoint.region == *region, *endpoint.zone == *zone) {
                (true, true) => 0,
                (true, false) => 1,
                (false, _) => 2,
            };
            if let Some(group) = groups.get_mut(distance) {
                let sum = group.total_weight() + u64::from(endpoint.weight.max(1));
                group.members.push((Arc::clone(endpoint), sum));
                if let Some(since) = slow_start::since(warming, endpoint.uid) {
                    group.warming.push((endpoint.uid, since));
                }
            }
        }
        groups.retain(|group| !group.members.is_empty());
        for group in &mut groups {
            group.warming.sort_unstable();
        }
        Self { groups }
    }

    /// Nearest first; none is empty.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Number of endpoints.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.iter().map(|group| group.members.len()).sum()
    }

    /// Whether no endpoint accepts new calls.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}
