//! Ports and folders for one test. Ports come from below the kernel's ephemeral range, so that a process that is
//! stopped and started again finds its port free; each is tried before it is given out.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// The range to choose from; Linux hands out ports of its own from 32768 on.
const FIRST: u16 = 10_240;
const COUNT: u16 = 20_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A TCP port on which nothing listens, not given out before in this process.
pub fn free_port() -> u16 {
    // Test binaries may run side by side: each begins somewhere else.
    let start = u16::try_from((std::process::id().wrapping_mul(7919)) % u32::from(COUNT)).unwrap();
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(step) % COUNT;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
    panic!("no free TCP port between {FIRST} and {}", FIRST + COUNT);
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
