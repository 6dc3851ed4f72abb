//! SETTINGS both ways (RFC 9113 §6.5): what we ask for, what the peer asks for, and when each
//! holds. [`Config`] is what the shell may choose; the peer's values are checked here before any of
//! them is used. Effects on streams and windows may not come in: `recv.rs` applies them.

use std::time::Duration;

/// What the shell chooses for one connection. The defaults are those of the mesh.
#[derive(Clone, Debug)]
pub struct Config {
    /// Decoded header list: names, values and 32 per field. Default 32 KiB.
    pub header_list_bytes: usize,
    /// Fields in a list, cookie crumbs included. Default 256.
    pub header_fields: usize,
    /// Streams that a client may have open at once; above, REFUSED_STREAM. Default 1000.
    pub max_concurrent_streams: u32,
    /// Window of each stream at its start. Default 64 KiB.
    pub stream_window: u32,
    /// How far a stream's window may grow with the bandwidth-delay product. Default 4 MiB.
    pub max_stream_window: u32,
    /// Window of the connection; credited on receipt. Default 1 MiB.
    pub connection_window: u32,
    /// How far the connection's window may grow. Default 16 MiB.
    pub max_connection_window: u32,
    /// Largest frame we take, 16 KiB to 16 MiB - 1. Default 16 KiB.
    pub max_frame_size: u32,
    /// Above this much unwritten output DATA waits in its stream's queue. Default 256 KiB.
    pub output_high_water: usize,
    /// How long the peer may take to acknowledge our SETTINGS. Default 10 s.
    pub settings_ack_timeout: Duration,
    /// How long a header block, the preface or any frame but DATA may be under way. Default 10 s.
    pub header_block_timeout: Duration,
    /// Servers: offer extended CONNECT (RFC 8441). Default false.
    pub enable_connect_protocol: bool,
    /// Answers that the peer drew from us and does not read (acknowledgements, resets); above, the
    /// connection is closed. Default 1000.
    pub control_queue: usize,
    /// Whether windows may grow; see [`crate::Connection::set_grow_windows`]. Default true.
    pub grow_windows: bool,
    /// Servers: RST_STREAMs that a client may send, in one burst and per second. Default 1000, 100.
    pub resets: Rate,
    /// RST_STREAMs that the peer's errors may draw from us. Default 200, 33 per second.
    pub provoked_resets: Rate,
    /// PING, SETTINGS, WINDOW_UPDATE, PRIORITY, unknown and empty frames beyond what the traffic
    /// explains (each HEADERS or DATA frame either way earns four). Default 2000, 100 per second.
    pub control_frames: Rate,
}

/// A rate with a burst: so many at once, and so many more each second.
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
