//! Free ports and temporary folders for one test. Ports come from outside the kernel's ephemeral range and are given to one process at
//! a time, so that a process that is restarted finds its port free, and no other process answers there in the meantime.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::{Range, RangeInclusive};
use std::sync::{Mutex, PoisonError};

/// Above the ports that Heddle itself has by default.
const FIRST: u16 = 16_000;
/// Ports that a process takes at a time: it listens on the first of them as long as it lives, so that no other test
/// process gives out the rest, even while nothing listens there.
const BLOCK: u16 = 100;

struct Reserved {
    held: Vec<TcpListener>,
    left: Range<u16>,
}

static RESERVED: Mutex<Reserved> = Mutex::new(Reserved {
    held: Vec::new(),
    left: 0..0,
});

/// A TCP port on which nothing listens, given out once: by this process, and by no other while this one lives.
pub fn free_port() -> u16 {
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(port) = reserved.left.find(|&port| listen(port).is_some()) {
            return port;
        }
        let (first, held) = free_block();
        reserved.held.push(held);
        reserved.left = first + 1..first + BLOCK;
    }
}

fn free_block() -> (u16, TcpListener) {
    let ephemeral = ephemeral();
    let blocks = || (FIRST..=u16::MAX - BLOCK).step_by(BLOCK.into());
    let outside =
        blocks().filter(|first| first + BLOCK <= *ephemeral.start() || first > ephemeral.end());
    // A machine whose range leaves nothing outside of it has nothing better.
    let mut blocks = outside.chain(blocks());
    blocks
        .find_map(|first| Some((first, listen(first)?)))
        .expect("of all blocks of ports one is free")
}

/// The kernel's range of ephemeral ports.
fn ephemeral() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let text = text.expect("Linux reports its ephemeral range");
    let mut ends = text
        .split_whitespace()
        .map(|end| end.parse().expect("a port"));
    let mut end = || ends.next().expect("a first and a last port");
    end()..=end()
}

fn listen(port: u16) -> Option<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).ok()
}

/// A free loopback address.
pub fn free_addr() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// A folder that is removed when it is dropped.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("heddle-test-")
        .tempdir()
        .expect("a temporary folder can be made")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{BLOCK, ephemeral, free_block, free_port};

    #[test]
    fn no_port_is_given_out_twice_nor_to_two_processes() {
        let ports: BTreeSet<u16> = (0..2 * BLOCK).map(|_| free_port()).collect();
        assert_eq!(ports.len(), usize::from(2 * BLOCK), "{ports:?}");
        assert!(!ports.iter().any(|port| ephemeral().contains(port)));
        // As another process would choose: it sees of this one what the kernel shows.
        let (first, _held) = free_block();
        let others = first..first + BLOCK;
        assert!(
            !ports.iter().any(|port| others.contains(port)),
            "{others:?}"
        );
    }
}
