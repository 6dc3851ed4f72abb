//! Who is connected to whom, as the kernel has it: the established TCP connections of one process, from /proc. It is
//! the proof that a call took the way that it was meant to take; proxies are not queried.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const ESTABLISHED: &str = "01";

/// The remote addresses of the established connections that the process holds.
pub fn peers_of(pid: u32) -> BTreeSet<SocketAddr> {
    let inodes = socket_inodes(pid);
    ["tcp", "tcp6"]
        .iter()
        .flat_map(|table| {
            let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            text.lines()
                .skip(1)
                .filter_map(|line| row(line, &inodes))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn socket_inodes(pid: u32) -> BTreeSet<String> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives");
    folder
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|link| {
            let link = link.to_str()?.to_owned();
            Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect()
}

/// Fields of /proc/net/tcp: sl, local, remote, state, …, uid, timeout, inode.
fn row(line: &str, inodes: &BTreeSet<String>) -> Option<SocketAddr> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (remote, state, inode) = (*fields.get(2)?, *fields.get(3)?, *fields.get(9)?);
    if state != ESTABLISHED || !inodes.contains(inode) {
        return None;
    }
    let (host, port) = remote.split_once(':')?;
    Some(SocketAddr::new(
        address(host)?,
        u16::from_str_radix(port, 16).ok()?,
    ))
}

/// The kernel prints addresses as 32-bit words in the byte order of the machine.
fn address(hex: &str) -> Option<IpAddr> {
    let words = hex
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
        .collect::<Option<Vec<u32>>>()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    match bytes.len() {
        4 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        16 => {
            let address = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
            Some(
                address
                    .to_ipv4_mapped()
                    .map_or(IpAddr::V6(address), IpAddr::V4),
            )
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn an_open_connection_is_seen_and_a_closed_one_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert!(!super::peers_of(std::process::id()).contains(&addr));
        let stream = TcpStream::connect(addr).unwrap();
        assert!(super::peers_of(std::process::id()).contains(&addr));
        drop(stream);
        assert!(!super::peers_of(std::process::id()).contains(&addr));
    }
}
