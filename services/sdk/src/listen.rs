//! The listeners of a service: `IP:port` (0 for a free one), `localhost:port` or `unix:/path`. Input: the address as
//! written. Output: bound sockets, or an error that names the address and the remedy. A service may listen beyond
//! loopback without consent, because it is no listener of the mesh; it must protect itself there.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use heddle_listen::{AddressError, BindError, Bound, ListenOption, Socket};

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// An open socket. The file of a Unix socket is removed when this is dropped.
#[derive(Debug)]
pub struct Listener(pub(crate) Socket);

impl Listener {
    /// Binds `address`; `localhost:port` and `loopback:port` mean both loopback addresses if the host has both.
    ///
    /// # Errors
    /// It is not an address, is in use, or cannot be bound.
    #[allow(clippy::unused_async)] // inside a runtime only
    pub async fn bind_each(address: &str) -> Result<Vec<Self>, ListenError> {
        let option: ListenOption = address.parse()?;
        let bound = heddle_listen::bind(&option)?.into_iter();
        let opened: Result<Vec<_>, _> = bound.map(Bound::listen).collect();
        Ok(opened?.into_iter().map(Self).collect())
    }

    /// Binds `address`; only the first socket if it means two.
    ///
    /// # Errors
    /// As [`Listener::bind_each`].
    pub async fn bind(address: &str) -> Result<Self, ListenError> {
        let first = Self::bind_each(address).await?.into_iter().next();
        first.ok_or(ListenError::Address(AddressError::Form))
    }

    /// The address to register: that of a TCP socket, with loopback instead of a wildcard. `None` for a Unix socket.
    #[must_use]
    pub fn advertised(&self) -> Option<SocketAddr> {
        let Socket::Tcp(_, address) = &self.0 else {
            return None;
        };
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Some(SocketAddr::new(ip, address.port()))
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
