//! A transport for tests with what TLS will have: a handshake of a read and a write on either side, and reads that must
//! write first, as after a renewal of keys. The test says when its socket has room and when keys are renewed.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::net::UnixStream;

use super::transport::{Handshake, ReadOutcome, WriteOutcome};

/// What the peer has to send first, and what it gets.
pub(crate) const HELLO: u8 = b'?';
pub(crate) const ANSWER: u8 = b'!';
/// What must be written before the next read if keys are renewed.
pub(crate) const RENEWAL: u8 = b'+';

/// What the test sets.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) has_room: AtomicBool,
    pub(crate) renews: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct Scripted {
    socket: UnixStream,
    script: Arc<Script>,
    greeted: bool,
    /// What must be written before anything else.
    unsent: Vec<u8>,
}

impl Scripted {
    pub(crate) fn new(socket: UnixStream, script: Arc<Script>) -> Self {
        Self {
            socket,
            script,
            greeted: false,
            unsent: Vec::new(),
        }
    }

    pub(super) fn socket(&mut self) -> &mut UnixStream {
        &mut self.socket
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Writes what must be written first; false if the socket is full.
    fn send_first(&mut self) -> io::Result<bool> {
        if self.has_unsent() {
            if !self.script.has_room.load(Ordering::Relaxed) {
                return Ok(false);
            }
            self.socket.write_all(&self.unsent)?;
            self.unsent.clear();
        }
        Ok(true)
    }

    pub(super) fn handshake(&mut self) -> io::Result<Handshake> {
        if !self.greeted {
            let mut hello = [0];
            match self.socket.read(&mut hello) {
                Ok(1) if hello == [HELLO] => {}
                Ok(_) => return Err(io::Error::other("the handshake failed")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Handshake::Pending);
                }
                Err(error) => return Err(error),
            }
            self.greeted = true;
            self.unsent.push(ANSWER);
        }
        Ok(match self.send_first()? {
            true => Handshake::Done,
            false => Handshake::Pending,
        })
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<ReadOutcome> {
        if self.script.renews.swap(false, Ordering::Relaxed) {
            self.unsent.push(RENEWAL);
        }
        if !self.send_first()? {
            return Ok(ReadOutcome::WantsWrite);
        }
        match self.socket.read(buffer) {
            Ok(0) => Ok(ReadOutcome::End),
            // A short read says nothing about what is left.
            Ok(len) => Ok(ReadOutcome::Bytes { len, more: true }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(ReadOutcome::Blocked),
            Err(error) => Err(error),
        }
    }

    /// Without room it takes the bytes of one call, which wait in it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<WriteOutcome> {
        if !self.send_first()? {
            return Ok(WriteOutcome {
                written: 0,
                blocked: true,
            });
        }
        self.unsent.extend_from_slice(bytes);
        Ok(WriteOutcome {
            written: bytes.len(),
            blocked: !self.send_first()?,
        })
    }
}
