//! The sockets that listen on this host, as Linux shows them in `/proc/net/tcp` and `/proc/net/tcp6`. Input: the lines of
//! these files. Output: the inodes of the sockets at an address. No file is read here.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The state TCP_LISTEN.
const LISTEN: &str = "0A";

/// The inodes of listening sockets. A socket has one as long as any process has it open, and it is not used again soon.
pub(super) type Inodes = BTreeSet<u64>;

/// The listening sockets on some ports.
#[derive(Debug)]
pub(super) struct Listening(HashMap<u16, Vec<(IpAddr, u64)>>);

impl Listening {
    /// Nothing read yet. Only sockets on these ports are kept.
    pub(super) fn on(ports: impl IntoIterator<Item = u16>) -> Self {
        Self(ports.into_iter().map(|port| (port, Vec::new())).collect())
    }

    /// Takes the next line of a file. False from the first socket on that does not listen: listening ones stand first.
    pub(super) fn take(&mut self, line: &str) -> bool {
        let mut fields = line.split_whitespace();
        // After the number: local and remote address, state; after five more fields the inode.
        let (local, state) = (fields.nth(1), fields.nth(1));
        match state {
            Some(LISTEN) => {}
            // The title.
            Some("st") => return true,
            _ => return false,
        }
        let inode = fields.nth(5).and_then(|text| text.parse::<u64>().ok());
        if let (Some((ip, port)), Some(inode)) = (local.and_then(address), inode)
            && let Some(sockets) = self.0.get_mut(&port)
        {
            sockets.push((ip, inode));
        }
        true
    }

    /// The sockets that get connections to this address: those bound to it, else those bound to all addresses.
    pub(super) fn at(&self, address: SocketAddr) -> Inodes {
        let ip = address.ip().to_canonical();
        let all_v6 = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let all = match ip {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => all_v6,
        };
        // `[::]` takes connections of IPv4 as well, unless the program forbids it.
        let in_order = [ip, all, all_v6].map(|bound| self.bound_to(bound, address.port()));
        let mut found = in_order.into_iter().filter(|inodes| !inodes.is_empty());
        found.next().unwrap_or_default()
    }

    fn bound_to(&self, ip: IpAddr, port: u16) -> Inodes {
        let sockets = self.0.get(&port).into_iter().flatten();
        let bound = sockets.filter(|(bound, _)| *bound == ip);
        bound.map(|(_, inode)| *inode).collect()
    }
}

/// An address as these files have it: the bytes of each 32-bit word in the order of this machine, then the port.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = ip.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at)?);
            }
            IpAddr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some((ip, port))
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::{Inodes, Listening};

    const V4: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0000000000000000 100 0 0 10 0
   1: 00000000:07E9 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12 1 0000000000000000 100 0 0 10 0
   2: 0100007F:07E9 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1 0000000000000000 100 0 0 10 0
   3: 0100007F:07EA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 14 1 0000000000000000 100 0 0 10 0
   4: 0100007F:07EA 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 15 1 0000000000000000 100 0 0 10 0
   5: 0100007F:07E8 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 16 1 0000000000000000 100 0 0 10 0
   6: 0100007F:07ED 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1 0000000000000000 100 0 0 10 0
";
    const V6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:07EB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21 1 0000000000000000 100 0 0 10 0
   1: 00000000000000000000000000000000:07EC 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1 0000000000000000 100 0 0 10 0
   2: 0000000000000000FFFF00000100007F:07EE 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 23 1 0000000000000000 100 0 0 10 0
   3: B80D0120000000000000000001000000:07EE 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 24 1 0000000000000000 100 0 0 10 0
";

    fn read() -> Listening {
        let mut all = Listening::on(2024..2031);
        for file in [V4, V6] {
            for line in file.lines() {
                if !all.take(line) {
                    break;
                }
            }
        }
        all
    }

    #[test]
    fn sockets_are_found_by_address_and_port() {
        let all = read();
        for (address, expect) in [
            ("127.0.0.1:2024", &[11][..]),
            // The socket of this address gets its connections, not that of all addresses.
            ("127.0.0.1:2025", &[13]),
            ("10.0.0.1:2025", &[12]),
            // Of IPv4 only.
            ("[::1]:2025", &[]),
            // Shared by SO_REUSEPORT.
            ("127.0.0.1:2026", &[14, 15]),
            ("[::1]:2027", &[21]),
            ("127.0.0.1:2027", &[]),
            ("[2001:db8::1]:2028", &[22]),
            ("127.0.0.1:2028", &[22]),
            // Behind the first one that does not listen.
            ("127.0.0.1:2029", &[]),
            ("127.0.0.1:2030", &[23]),
            ("[::ffff:127.0.0.1]:2030", &[23]),
            ("[2001:db8::1]:2030", &[24]),
            // Not asked for.
            ("127.0.0.1:2031", &[]),
        ] {
            let found = all.at(address.parse().unwrap());
            assert_eq!(
                found,
                Inodes::from_iter(expect.iter().copied()),
                "{address}"
            );
        }
    }

    #[test]
    fn lines_that_cannot_be_read_are_no_sockets() {
        let mut all = Listening::on([2024]);
        for line in [
            "0: 0100007F:07E8 00000000:0000 0A",
            "0: 0100007F 00000000:0000 0A 0:0 0:0 0 0 0 11",
            "0: 01:07E8 00000000:0000 0A 0:0 0:0 0 0 0 11",
            "0: xyzäxyz:07E8 00000000:0000 0A 0:0 0:0 0 0 0 11",
        ] {
            assert!(all.take(line), "{line}");
        }
        assert!(!all.take(""));
        assert_eq!(all.at("127.0.0.1:2024".parse().unwrap()), Inodes::new());
    }
}
