//! SETTINGS in both directions (RFC 9113 §6.5): our values, the peer's values, and when each
//! applies. [`Config`] is what the application can choose; the peer's values are checked here
//! before they are used. Their effects on streams and windows are applied in `control.rs`.

use std::time::Duration;

use crate::error::ConnectionError;
use crate::frame::{DEFAULT_MAX_FRAME_SIZE, LARGEST_MAX_FRAME_SIZE, MAX_31};

/// The default window of streams and connection (§6.9.2).
pub(crate) const DEFAULT_WINDOW: u32 = 65_535;
/// Streams that a client opens before it has seen the server's SETTINGS (the minimum that §6.5.2
/// recommends).
const SLOTS_BEFORE_SETTINGS: u32 = 100;

/// The one parameter of which every value counts, not just the last.
pub(crate) const HEADER_TABLE_SIZE: u16 = 1;

/// The other identifiers (§6.5.2, RFC 8441 §3).
mod id {
    pub(super) const ENABLE_PUSH: u16 = 2;
    pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(super) const MAX_FRAME_SIZE: u16 = 5;
    pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub(super) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// The options of one connection. The defaults are those of the mesh.
#[derive(Clone, Debug)]
pub struct Config {
    /// Decoded header list: names, values and 32 per field. Default 32 KiB.
    pub header_list_bytes: usize,
    /// Fields in a list, cookie crumbs included. Default 256.
    pub header_fields: usize,
    /// A header list over these limits is decoded and discarded up to this many bytes, both encoded and
    /// decoded, in little memory; above, the connection ends, because its HPACK table would be lost.
    /// Default 1 MiB.
    pub header_block_bytes: usize,
    /// Streams that a client may have open at once; above, REFUSED_STREAM. Default 1000.
    pub max_concurrent_streams: u32,
    /// Initial window of each stream. Default 64 KiB.
    pub stream_window: u32,
    /// How far a stream's window may grow with the bandwidth-delay product. Default 4 MiB.
    pub max_stream_window: u32,
    /// Window of the connection; credited on receipt. Default 1 MiB.
    pub connection_window: u32,
    /// How far the connection's window may grow. Default 16 MiB.
    pub max_connection_window: u32,
    /// Largest frame that we accept, 16 KiB to 16 MiB - 1. Default 16 KiB.
    pub max_frame_size: u32,
    /// Above this much unwritten output header lists and DATA wait in their streams. Default 256 KiB.
    pub output_high_water: usize,
    /// How long the peer may take to acknowledge our SETTINGS. Default 10 s.
    pub settings_ack_timeout: Duration,
    /// How long a header block, the preface or any frame except DATA may be incomplete. Default 10 s.
    pub header_block_timeout: Duration,
    /// Servers: offer extended CONNECT (RFC 8441). Default false.
    pub enable_connect_protocol: bool,
    /// Unread answers that the peer caused (acknowledgements, resets); above, the connection is
    /// closed. Default 1000.
    pub control_queue: usize,
    /// Whether windows may grow with the bandwidth-delay product. Default true.
    pub grow_windows: bool,
    /// Whether to save memory; see [`crate::Connection::set_low_memory`]. Default false.
    pub low_memory: bool,
    /// Servers: streams that a client may reset immediately after opening them, beyond four for each
    /// completed one; burst and per second. Resets of older streams, or after part of the response,
    /// cost less or nothing (`abuse.rs`). Default 1000, 100.
    pub resets: Rate,
    /// RST_STREAMs that the peer's errors may cause. Default 200, 33 per second.
    pub provoked_resets: Rate,
    /// PING, SETTINGS, WINDOW_UPDATE, PRIORITY, unknown and empty frames beyond what the traffic
    /// explains (each HEADERS or DATA frame either way earns four). Default 2000, 100 per second.
    pub control_frames: Rate,
}

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub burst: u32,
    pub per_second: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            header_list_bytes: 32 * 1024,
            header_fields: 256,
            header_block_bytes: 1024 * 1024,
            max_concurrent_streams: 1000,
            stream_window: 64 * 1024,
            max_stream_window: 4 * 1024 * 1024,
            connection_window: 1024 * 1024,
            max_connection_window: 16 * 1024 * 1024,
            max_frame_size: 16 * 1024,
            output_high_water: 256 * 1024,
            settings_ack_timeout: Duration::from_secs(10),
            header_block_timeout: Duration::from_secs(10),
            enable_connect_protocol: false,
            control_queue: 1000,
            grow_windows: true,
            low_memory: false,
            resets: Rate {
                burst: 1000,
                per_second: 100,
            },
            provoked_resets: Rate {
                burst: 200,
                per_second: 33,
            },
            control_frames: Rate {
                burst: 2000,
                per_second: 100,
            },
        }
    }
}

impl Config {
    /// Replaces values that the RFC does not allow by the nearest allowed ones.
    pub(crate) fn within_bounds(mut self) -> Self {
        self.max_frame_size = self
            .max_frame_size
            .clamp(DEFAULT_MAX_FRAME_SIZE, LARGEST_MAX_FRAME_SIZE);
        // A window of 0 could never be used: it is credited for what was used of it.
        self.stream_window = self.stream_window.clamp(1, MAX_31);
        self.max_stream_window = self.max_stream_window.clamp(self.stream_window, MAX_31);
        // The connection's window cannot be lowered, only raised by WINDOW_UPDATE (§6.9.2).
        self.connection_window = self.connection_window.clamp(DEFAULT_WINDOW, MAX_31);
        self.max_connection_window = self
            .max_connection_window
            .clamp(self.connection_window, MAX_31);
        self
    }

    /// The content of our SETTINGS frame.
    pub(crate) fn settings(&self, server: bool) -> Vec<(u16, u32)> {
        let list = u32::try_from(self.header_list_bytes).unwrap_or(u32::MAX);
        let mut values = vec![
            (id::INITIAL_WINDOW_SIZE, self.stream_window),
            (id::MAX_HEADER_LIST_SIZE, list),
        ];
        if self.max_frame_size != DEFAULT_MAX_FRAME_SIZE {
            values.push((id::MAX_FRAME_SIZE, self.max_frame_size));
        }
        if server {
            values.push((id::MAX_CONCURRENT_STREAMS, self.max_concurrent_streams));
            if self.enable_connect_protocol {
                values.push((id::ENABLE_CONNECT_PROTOCOL, 1));
            }
        } else {
            values.push((id::ENABLE_PUSH, 0));
        }
        values
    }
}

/// The peer's settings, initially the defaults.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its first SETTINGS frame has come.
    pub(crate) known: bool,
    pub(crate) max_concurrent_streams: u32,
    pub(crate) initial_window: u32,
    pub(crate) max_frame_size: u32,
    pub(crate) header_list_bytes: Option<u32>,
    pub(crate) connect_protocol: bool,
}

impl Peer {
    pub(crate) fn new() -> Self {
        Self {
            known: false,
            max_concurrent_streams: SLOTS_BEFORE_SETTINGS,
            initial_window: DEFAULT_WINDOW,
            max_frame_size: DEFAULT_MAX_FRAME_SIZE,
            header_list_bytes: None,
            connect_protocol: false,
        }
    }

    /// The first SETTINGS frame replaces the assumptions.
    pub(crate) fn first(&mut self) {
        if !std::mem::replace(&mut self.known, true) {
            self.max_concurrent_streams = u32::MAX;
        }
    }

    /// One parameter. Unknown ones are ignored (§6.5.2).
    pub(crate) fn set(
        &mut self,
        id: u16,
        value: u32,
        from_server: bool,
    ) -> Result<(), ConnectionError> {
        match id {
            id::ENABLE_PUSH if value > 1 || (from_server && value == 1) => {
                return Err(ConnectionError::protocol(
                    "SETTINGS_ENABLE_PUSH is not 0 or 1",
                ));
            }
            id::MAX_CONCURRENT_STREAMS => self.max_concurrent_streams = value,
            id::INITIAL_WINDOW_SIZE => {
                if value > MAX_31 {
                    return Err(ConnectionError::flow_control(
                        "SETTINGS_INITIAL_WINDOW_SIZE is over 2^31-1",
                    ));
                }
                self.initial_window = value;
            }
            id::MAX_FRAME_SIZE => {
                if !(DEFAULT_MAX_FRAME_SIZE..=LARGEST_MAX_FRAME_SIZE).contains(&value) {
                    return Err(ConnectionError::protocol(
                        "SETTINGS_MAX_FRAME_SIZE is outside 2^14 to 2^24-1",
                    ));
                }
                self.max_frame_size = value;
            }
            id::MAX_HEADER_LIST_SIZE => self.header_list_bytes = Some(value),
            id::ENABLE_CONNECT_PROTOCOL => {
                if value > 1 || (self.connect_protocol && value == 0) {
                    return Err(ConnectionError::protocol(
                        "SETTINGS_ENABLE_CONNECT_PROTOCOL is not 0 or 1, or was taken back",
                    ));
                }
                self.connect_protocol = value == 1;
            }
            _ => {}
        }
        Ok(())
    }
}
