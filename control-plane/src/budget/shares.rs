//! Divides one limit among many users, so that none of them takes it from the others: decides whether a user may take
//! an amount. Pure: it only counts.
//!
//! The rule is a dynamic threshold: a user may have [`ALPHA`] times what is left, and no more. Alone it gets 80 % of
//! the limit; each further user finds room, and users that have much get nothing more until more is left. The rule
//! applies to each peer, and within it to each of its connections, because all programs of one host share its address.
//! A connection that has little gets some even if its peer's share is used up: until the peer has [`SMALL_ALPHA`] times
//! what is left. So programs that need little can run beside one on their host that takes all it can get.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// How many times what is left a user may have.
const ALPHA: usize = 4;
/// The same for connections that have at most 1/`SMALL` of the limit.
const SMALL_ALPHA: usize = 8;
const SMALL: usize = 256;

/// Whose use is counted together: identified by where a client comes from, because it can make up names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Programs of this host, by Unix sockets.
    #[default]
    Local,
    /// An IPv4 address, or the network of an IPv6 address (/64): a host has all addresses of its network.
    Address(IpAddr),
}

impl Peer {
    #[must_use]
    pub fn of(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            None => Self::Local,
            Some(IpAddr::V6(address)) if !address.is_loopback() => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                Self::Address(Ipv6Addr::from(network).into())
            }
            Some(address) => Self::Address(address),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("clients on the control plane's Unix socket"),
            Self::Address(IpAddr::V6(network)) if !network.is_loopback() => {
                write!(f, "clients of {network}/64")
            }
            Self::Address(address) => write!(f, "clients of {address}"),
        }
    }
}

/// One connection of a peer; the default is for calls without a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    pub peer: Peer,
    pub connection: u64,
}

/// A refused take: what its peer and all users together have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    pub peer: Peer,
    pub peer_used: usize,
    pub used: usize,
    pub limit: usize,
}

/// The limit and how much each user has. Its size is bounded by the number of users that have something.
#[derive(Debug)]
pub struct Shares {
    limit: usize,
    used: usize,
    peers: BTreeMap<Peer, usize>,
    connections: BTreeMap<Who, usize>,
}

impl Shares {
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            used: 0,
            peers: BTreeMap::new(),
            connections: BTreeMap::new(),
        }
    }

    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }

    /// What the peer with the most has.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.peers.values().copied().max().unwrap_or_default()
    }

    pub fn take(&mut self, who: Who, amount: usize) -> Result<(), Denied> {
        if amount == 0 {
            return Ok(());
        }
        let of_peer = self.peers.get(&who.peer).copied().unwrap_or_default();
        let of_connection = self.connections.get(&who).copied().unwrap_or_default();
        let denied = Denied {
            peer: who.peer,
            peer_used: of_peer,
            used: self.used,
            limit: self.limit,
        };
        // Computed as after the take, so that the rule treats one large take like many small ones.
        let left = (self.limit - self.used.min(self.limit)).checked_sub(amount);
        let left = left.ok_or(denied)?;
        let is_small = of_connection + amount <= self.limit / SMALL;
        let alpha = if is_small { SMALL_ALPHA } else { ALPHA };
        let peer_left = left.saturating_mul(alpha).checked_sub(of_peer + amount);
        let peer_left = peer_left.ok_or(denied)?;
        if !is_small && of_connection + amount > peer_left.saturating_mul(ALPHA) {
            return Err(denied);
        }
        self.used += amount;
        self.peers.insert(who.peer, of_peer + amount);
        self.connections.insert(who, of_connection + amount);
        Ok(())
    }

    /// Gives back what was taken.
    pub fn give(&mut self, who: Who, amount: usize) {
        self.used = self.used.saturating_sub(amount);
        if let Some(used) = self.peers.get_mut(&who.peer) {
            *used = used.saturating_sub(amount);
            if *used == 0 {
                self.peers.remove(&who.peer);
            }
        }
        if let Some(used) = self.connections.get_mut(&who) {
            *used = used.saturating_sub(amount);
            if *used == 0 {
                self.connections.remove(&who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(host: u8, connection: u64) -> Who {
        Who {
            peer: Peer::of(Some([10, 0, 0, host].into())),
            connection,
        }
    }

    /// Takes as much as it can get.
    fn all(shares: &mut Shares, who: Who) -> usize {
        let mut taken = 0;
        while shares.take(who, 1).is_ok() {
            taken += 1;
        }
        taken
    }

    #[test]
    fn one_peer_gets_most_of_it_and_the_next_one_finds_room() {
        let mut shares = Shares::new(10_000);
        let mut one = 0;
        for connection in 0..5 {
            one += all(&mut shares, who(1, connection));
        }
        assert!((7_900..=8_100).contains(&one), "{one}");
        let two = all(&mut shares, who(2, 0));
        assert!((1_300..=1_600).contains(&two), "{two}");
        assert!(all(&mut shares, who(3, 0)) >= 200);
        assert_eq!(all(&mut shares, who(1, 0)), 0, "it has enough");
    }

    #[test]
    fn one_connection_leaves_room_for_others_of_its_address() {
        let mut shares = Shares::new(21_000);
        assert_eq!(all(&mut shares, who(1, 1)), 16_000);
        let second = all(&mut shares, who(1, 2));
        assert!((600..=800).contains(&second), "{second}");
        assert_eq!(all(&mut shares, who(1, 1)), 0);
    }

    #[test]
    fn connections_that_ask_for_little_live_beside_greedy_ones_of_their_host() {
        let mut shares = Shares::new(256_000);
        for connection in 0..10 {
            all(&mut shares, who(1, connection));
        }
        let greedy = shares.used();
        for modest in 100..110 {
            assert!(shares.take(who(1, modest), 900).is_ok(), "{modest}");
            assert!(
                shares.take(who(1, modest), 1_000).is_err(),
                "no longer little"
            );
        }
        assert!(
            shares.take(who(2, 0), 5_000).is_ok(),
            "another host finds room"
        );
        let mut many = 0;
        while shares.take(who(1, 1_000 + many), 900).is_ok() {
            many += 1;
        }
        assert!(shares.used() < 256_000 * 9 / 10, "{greedy}, {many}");
        assert!(shares.take(who(3, 0), 5_000).is_ok(), "and yet another");
        assert!(shares.take(who(1, 0), 0).is_ok(), "nothing is always there");
    }

    #[test]
    fn what_is_given_back_is_there_again() {
        let mut shares = Shares::new(1_000);
        assert!(shares.take(who(1, 1), 700).is_ok());
        let denied = shares.take(who(1, 2), 200).unwrap_err();
        assert_eq!(
            (denied.peer_used, denied.used, denied.limit),
            (700, 700, 1_000)
        );
        shares.give(who(1, 1), 700);
        assert_eq!((shares.used(), shares.largest()), (0, 0));
        assert!(shares.peers.is_empty() && shares.connections.is_empty());
        assert!(shares.take(who(1, 2), 700).is_ok());
        assert!(
            shares.take(who(2, 1), usize::MAX).is_err(),
            "and nothing overflows"
        );
    }

    #[test]
    fn a_host_is_one_peer_whatever_address_of_its_network_it_has() {
        let of = |text: &str| Peer::of(Some(text.parse().unwrap()));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("2001:db8::1").to_string(), "clients of 2001:db8::/64");
        assert_eq!(of("::1").to_string(), "clients of ::1");
    }
}
