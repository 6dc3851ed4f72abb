//! One HTTP/2 connection of the load generator or a backend: a socket and a heddle-h2 connection. A stack slower than
//! the measured one would distort every ratio.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use heddle_h2::{Config, Connection, Event, Fields};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// Enough for one turn of the busiest connection.
pub(crate) const READ_BUFFER: usize = 256 * 1024;

pub(crate) struct Wire {
    socket: TcpStream,
    pub(crate) machine: Connection,
}

/// Flow control windows so large that neither end limits a call.
pub(crate) fn config() -> Config {
    Config {
        stream_window: 1 << 20,
        connection_window: 16 << 20,
        output_high_water: 4 << 20,
        ..Config::default()
    }
}

impl Wire {
    pub(crate) fn new(
        mut socket: TcpStream,
        machine: Connection,
        registry: &Registry,
        at: usize,
    ) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        registry.register(
            &mut socket,
            Token(at),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        Ok(Self { socket, machine })
    }

    /// Reads what is available and passes every event to `on_event`. False if the other side has closed the connection.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        fields: &mut Fields,
        mut on_event: impl FnMut(&mut Connection, Event<'_>, &Fields),
    ) -> io::Result<bool> {
        loop {
            let read = match self.socket.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
                Err(error) => return Err(error),
            };
            let mut input = &buffer[..read];
            let now = Instant::now();
            while let Some(event) = self
                .machine
                .recv(&mut input, fields, now)
                .map_err(io::Error::other)?
            {
                on_event(&mut self.machine, event, fields);
            }
            while self.machine.poll_drained().is_some() {}
            if read < buffer.len() {
                return Ok(true);
            }
        }
    }

    /// Writes as much pending output as the socket accepts.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.machine.output().is_empty() {
            match self.socket.write(self.machine.output()) {
                Ok(written) => self.machine.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            while self.machine.poll_drained().is_some() {}
        }
        Ok(())
    }
}
