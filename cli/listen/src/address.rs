//! The address of a listener: `IP:PORT` (port 0: any free one), `localhost:PORT` or `unix:/PATH`. Input: words. Output:
//! types, or what is wrong with the word. Nothing is bound here.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

/// `sun_path` takes 108 bytes, including the terminating zero.
const LONGEST_PATH: usize = 107;

/// The address of one socket, bound or planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// IP and port; port 0 means any free one.
    Tcp(SocketAddr),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl ListenAddr {
    /// Whether other hosts may reach it.
    #[must_use]
    pub fn is_beyond_loopback(&self) -> bool {
        matches!(self, Self::Tcp(address) if !address.ip().to_canonical().is_loopback())
    }
}

/// One value of a listener option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenOption {
    /// One socket.
    At(ListenAddr),
    /// 127.0.0.1 and, where the host has it, `[::1]`.
    Localhost(u16),
}

impl ListenOption {
    /// Its sockets; the second one of `localhost` may not exist on this host.
    #[must_use]
    pub fn each(&self) -> Vec<ListenAddr> {
        match self {
            Self::At(address) => vec![address.clone()],
            Self::Localhost(port) => {
                let ips: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
                ips.map(|ip| ListenAddr::Tcp(SocketAddr::new(ip, *port)))
                    .to_vec()
            }
        }
    }

    /// The port, if it has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::At(ListenAddr::Tcp(address)) => Some(address.port()),
            Self::At(ListenAddr::Unix(_)) => None,
            Self::Localhost(port) => Some(*port),
        }
    }

    /// Whether other hosts may reach it.
    #[must_use]
    pub fn is_beyond_loopback(&self) -> bool {
        matches!(self, Self::At(address) if address.is_beyond_loopback())
    }
}

impl fmt::Display for ListenOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Localhost(port) => write!(f, "localhost:{port}"),
        }
    }
}

/// What is wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error(
        "this is not an address: write IP:PORT (port 0 takes a free one), localhost:PORT or \
         unix:/PATH"
    )]
    Form,
    #[error("the port must be a number from 0 to 65535")]
    Port,
    #[error("the path of a Unix socket must be absolute: write unix:/PATH")]
    RelativePath,
    #[error("the path of a Unix socket may have at most {LONGEST_PATH} bytes")]
    LongPath,
}

impl FromStr for ListenOption {
    type Err = AddressError;

    fn from_str(word: &str) -> Result<Self, AddressError> {
        if let Some(path) = word.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(AddressError::RelativePath);
            }
            if path.len() > LONGEST_PATH {
                return Err(AddressError::LongPath);
            }
            return Ok(Self::At(ListenAddr::Unix(path.into())));
        }
        let port = ["localhost:", "loopback:"]
            .iter()
            .find_map(|name| word.strip_prefix(name));
        if let Some(port) = port {
            return port
                .parse()
                .map(Self::Localhost)
                .map_err(|_| AddressError::Port);
        }
        let address = word.parse().map_err(|_| AddressError::Form)?;
        Ok(Self::At(ListenAddr::Tcp(address)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_the_same() {
        for word in [
            "[::1]:0",
            "127.0.0.1:80",
            "unix:/run/h.sock",
            "localhost:80",
        ] {
            let read: ListenOption = word.parse().unwrap();
            assert_eq!(read.to_string(), word);
        }
        let loopback: ListenOption = "loopback:7".parse().unwrap();
        assert_eq!(loopback, ListenOption::Localhost(7));
        assert_eq!(loopback.each().len(), 2);
    }

    #[test]
    fn a_wrong_word_is_refused_with_the_reason() {
        let long = format!("unix:/{}", "x".repeat(LONGEST_PATH));
        for (word, expect) in [
            ("127.0.0.1", AddressError::Form),
            ("host:80", AddressError::Form),
            ("", AddressError::Form),
            ("localhost:x", AddressError::Port),
            ("localhost:70000", AddressError::Port),
            ("unix:", AddressError::RelativePath),
            ("unix:h.sock", AddressError::RelativePath),
            (&long, AddressError::LongPath),
        ] {
            assert_eq!(word.parse::<ListenOption>(), Err(expect), "{word}");
        }
    }

    #[test]
    fn loopback_is_distinguished_from_the_rest() {
        for (word, beyond) in [
            ("127.0.0.1:1", false),
            ("127.8.0.1:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("localhost:1", false),
            ("unix:/x", false),
            ("0.0.0.0:1", true),
            ("[::]:1", true),
            ("10.0.0.5:1", true),
            ("[::ffff:10.0.0.5]:1", true),
        ] {
            let read: ListenOption = word.parse().unwrap();
            assert_eq!(read.is_beyond_loopback(), beyond, "{word}");
        }
    }
}
