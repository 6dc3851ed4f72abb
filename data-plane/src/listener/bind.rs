//! Opens the listening sockets of the workers, one for each on the same TCP port (`SO_REUSEPORT`). Addresses come in,
//! sockets go out, or an error that names the address and the remedy. Nothing is accepted here.

use std::io;
use std::net::{SocketAddr, TcpListener};

use heddle_listen::BindError;
use socket2::{Domain, Protocol, Socket, Type};

pub use heddle_listen::ListenAddr;

/// Connections that the kernel may hold for each socket until a worker accepts them.
const BACKLOG: i32 = 1024;

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The workers are gone.
    #[error("cannot listen on {address}: the workers have stopped")]
    Stopped {
        /// The address as asked for.
        address: ListenAddr,
    },
}

/// Binds `count` sockets to one TCP address. The first bind is done without `SO_REUSEPORT`, or a second proxy
/// would share the port silently.
pub fn bind_tcp(
    address: SocketAddr,
    count: usize,
) -> Result<(SocketAddr, Vec<TcpListener>), BindError> {
    let system = |source: io::Error| BindError::tcp(address, source);
    let probe = tcp_socket(address, false).map_err(system)?;
    let bound = probe
        .local_addr()
        .map_err(system)?
        .as_socket()
        .unwrap_or(address);
    drop(probe);
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        sockets.push(tcp_socket(bound, true).map_err(system)?.into());
    }
    Ok((bound, sockets))
}

/// A port that the system chose and nobody listens on yet; free again when it is dropped.
#[derive(Debug)]
pub struct Reserved {
    _socket: Socket,
}

/// Reserves a free port for an address with port 0 whose listener opens later.
pub fn reserve_tcp(address: SocketAddr) -> io::Result<(SocketAddr, Reserved)> {
    // Without SO_REUSEADDR, so that the system gives the port to nobody else meanwhile.
    let socket = unbound(address)?;
    socket.bind(&address.into())?;
    let chosen = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((chosen, Reserved { _socket: socket }))
}

fn tcp_socket(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = unbound(address)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_is_chosen_accepts_nothing_and_can_be_bound_once_it_is_free() {
        let (chosen, reserved) = reserve_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_ne!(chosen.port(), 0);
        assert!(std::net::TcpStream::connect(chosen).is_err());
        drop(reserved);
        let (bound, _held) = bind_tcp(chosen, 2).unwrap();
        assert_eq!(bound, chosen);
    }

    #[test]
    fn a_port_in_use_is_named_even_if_its_owner_shares_it() {
        let (first, _held) = bind_tcp("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let error = bind_tcp(first, 1).unwrap_err().to_string();
        assert!(
            error.contains(&first.port().to_string()) && error.contains("choose another"),
            "{error}"
        );
    }
}
