//! Frame headers and payload layouts (RFC 9113 §4.1, §6), parsing and writing. Checks lengths and
//! padding; knows no states of streams or connections.

use crate::error::{ConnectionError, ErrorCode};

/// Bytes of a frame's head.
pub(crate) const HEAD_BYTES: usize = 9;
/// SETTINGS_MAX_FRAME_SIZE until the peer says otherwise, and its lower bound (§6.5.2).
pub(crate) const DEFAULT_MAX_FRAME_SIZE: u32 = 1 << 14;
/// Upper bound of SETTINGS_MAX_FRAME_SIZE.
pub(crate) const LARGEST_MAX_FRAME_SIZE: u32 = (1 << 24) - 1;
/// Every stream id and window is below 2^31; the bit above is reserved and ignored.
pub(crate) const MAX_31: u32 = (1 << 31) - 1;
/// What a client sends before its first frame (§3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub(crate) mod flag {
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) len: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    #[inline]
    pub(crate) fn parse(bytes: &[u8; HEAD_BYTES]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *bytes;
        Self {
            len: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & MAX_31,
        }
    }

    #[inline]
    pub(crate) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let [_, l0, l1, l2] = self.len.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }

    #[inline]
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Checks what the head shows: the stream that a frame type belongs to, and fixed lengths (§6.1 –
    /// §6.10). PRIORITY of a wrong length is a stream error, which the caller handles.
    #[inline]
    pub(crate) fn check(&self, max_frame_size: u32) -> Result<(), ConnectionError> {
        if self.len > max_frame_size {
            return Err(ConnectionError::frame_size(
                "frame is longer than SETTINGS_MAX_FRAME_SIZE",
            ));
        }
        match self.kind {
            kind::DATA | kind::HEADERS | kind::CONTINUATION => self.on_stream(),
            kind::WINDOW_UPDATE => self.exactly(4),
            kind::PRIORITY | kind::PUSH_PROMISE => self.on_stream(),
            kind::RST_STREAM => self.on_stream().and_then(|()| self.exactly(4)),
            kind::PING => self.on_connection().and_then(|()| self.exactly(8)),
            kind::SETTINGS => self.on_connection().and_then(|()| self.settings_length()),
            kind::GOAWAY if self.len < 8 => Err(WRONG_LENGTH),
            kind::GOAWAY => self.on_connection(),
            _ => Ok(()),
        }
    }

    fn on_stream(&self) -> Result<(), ConnectionError> {
        match self.stream {
            0 => Err(ConnectionError::protocol(
                "frame of a stream names stream 0",
            )),
            _ => Ok(()),
        }
    }

    fn on_connection(&self) -> Result<(), ConnectionError> {
        match self.stream {
            0 => Ok(()),
            _ => Err(ConnectionError::protocol(
                "frame of the connection names a stream",
            )),
        }
    }

    fn exactly(&self, len: u32) -> Result<(), ConnectionError> {
        if self.len == len {
            Ok(())
        } else {
            Err(WRONG_LENGTH)
        }
    }

    fn settings_length(&self) -> Result<(), ConnectionError> {
        let fits = if self.has(flag::ACK) {
            self.len == 0
        } else {
            self.len.is_multiple_of(6)
        };
        if fits { Ok(()) } else { Err(WRONG_LENGTH) }
    }
}

const WRONG_LENGTH: ConnectionError = ConnectionError::new(
    ErrorCode::FRAME_SIZE_ERROR,
    "frame has a length that its type does not allow",
);

/// The header block in a HEADERS payload, without padding and priority fields (§6.2).
#[inline]
pub(crate) fn header_block<'a>(
    head: &Head,
    payload: &'a [u8],
) -> Result<&'a [u8], ConnectionError> {
    let mut block = payload;
    if head.has(flag::PADDED) {
        let Some((&pad, rest)) = block.split_first() else {
            return Err(WRONG_LENGTH);
        };
        let len = rest.len().checked_sub(usize::from(pad));
        block = len.and_then(|len| rest.get(..len)).ok_or(TOO_PADDED)?;
    }
    if head.has(flag::PRIORITY) {
        // RFC 9113 §5.3.2: the five bytes are present and have no meaning.
        block = match block.split_first_chunk::<5>() {
            Some((_, rest)) => rest,
            None if head.has(flag::PADDED) => return Err(TOO_PADDED),
            None => return Err(WRONG_LENGTH),
        };
    }
    Ok(block)
}

/// Padding may not reach into the frame's other fields (§6.1).
pub(crate) const TOO_PADDED: ConnectionError =
    ConnectionError::protocol("padding is as long as the frame or longer");
/// A padded frame without the byte that says how much.
pub(crate) const NO_PAD_LENGTH: ConnectionError = WRONG_LENGTH;

/// The first four bytes of a payload as a number.
#[inline]
pub(crate) fn number(payload: &[u8]) -> u32 {
    payload
        .first_chunk::<4>()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Six bytes each of a SETTINGS payload: identifier and value (§6.5.1).
pub(crate) fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> + '_ {
    payload.chunks_exact(6).map(|chunk| match *chunk {
        [i0, i1, v0, v1, v2, v3] => (
            u16::from_be_bytes([i0, i1]),
            u32::from_be_bytes([v0, v1, v2, v3]),
        ),
        _ => (0, 0),
    })
}
