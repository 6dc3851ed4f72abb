//! One HTTP/2 connection, either side: its state, and the methods that concern the whole
//! connection. The peer's bytes enter by [`Connection::recv`] (`recv.rs`), the application's
//! commands by the methods of `send.rs` and `shutdown.rs`; events, output and a deadline are the
//! results. No sockets, no clocks, no meaning of messages.

use std::collections::VecDeque;
use std::time::Instant;

use crate::abuse::{Abuse, Bucket, Resets};
use crate::control::Unprocessed;
use crate::error::{ConnectionError, ErrorCode};
use crate::event::{Drained, StreamId, Token};
use crate::flow::{Probe, RecvWindow, SendWindow, Targets};
use crate::frame::PREFACE;
use crate::hpack::{Decoder, Encoder};
use crate::message::Block;
use crate::output::Output;
use crate::recv::Reading;
use crate::settings::{Config, DEFAULT_WINDOW, Peer};
use crate::stream::{Half, Pending};
use crate::streams::{End, Streams};

/// Our SETTINGS_HEADER_TABLE_SIZE: the default, which is not sent (§6.5.2).
const HEADER_TABLE_BYTES: usize = 4096;
/// Number of queue buffers kept for later streams.
const POOLED: usize = 8;

/// High water of a connection that must save memory: still enough for a frame of the size that every
/// peer accepts (RFC 9113 §4.2).
const FRUGAL_HIGH_WATER: usize = 16 * 1024;

/// Payloads of the connection's own PINGs. The application may not use them.
pub(crate) const PROBE_PING: [u8; 8] = *b"hdlprobe";
pub(crate) const DRAIN_PING: [u8; 8] = *b"hdldrain";

/// Counters of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Streams opened, by either side.
    pub streams: u64,
    /// Streams refused over MAX_CONCURRENT_STREAMS.
    pub refused: u64,
    /// Header lists over their limits.
    pub too_large: u64,
    /// RST_STREAM frames received.
    pub resets_received: u64,
    /// RST_STREAM frames sent, for any reason.
    pub resets_sent: u64,
    /// Stream errors caused by the peer (malformed messages, frames in the wrong state, …).
    pub stream_errors: u64,
    /// PING frames received that were not acknowledgements.
    pub pings_received: u64,
    /// How often windows grew.
    pub window_growths: u64,
}

/// One HTTP/2 connection.
#[derive(Debug)]
pub struct Connection {
    pub(crate) config: Config,
    pub(crate) is_server: bool,
    /// The latest time given by the application; `start` is the first.
    pub(crate) now: Instant,
    start: Instant,
    pub(crate) failed: Option<ConnectionError>,

    pub(crate) reading: Reading,
    /// The beginning of a frame whose rest has not arrived.
    pub(crate) partial: Vec<u8>,
    pub(crate) block: Block,
    /// Since when a frame or header block has been incomplete.
    pub(crate) incomplete_since: Option<Instant>,
    pub(crate) unprocessed_above: Option<Unprocessed>,

    pub(crate) decoder: Decoder,
    pub(crate) encoder: Encoder,
    pub(crate) peer: Peer,
    /// When our SETTINGS were sent, until they are acknowledged.
    pub(crate) settings_sent: Option<Instant>,
    /// The receive window of a new stream. Until the peer has acknowledged a window smaller than the
    /// default, it may use the default.
    pub(crate) initial_recv: u32,

    pub(crate) streams: Streams,
    /// The id of the next stream that we open (client).
    pub(crate) next_id: u32,
    /// The highest id that the peer has used (server).
    pub(crate) last_id: u32,
    pub(crate) send_window: SendWindow,
    pub(crate) recv_window: RecvWindow,
    pub(crate) targets: Targets,
    pub(crate) probe: Probe,

    pub(crate) output: Output,
    /// With this much unwritten output, everything else waits: `output_high_water`, or less.
    pub(crate) high_water: usize,
    pub(crate) pending_bytes: usize,
    #[allow(clippy::vec_box)] // the boxes themselves move between here and their streams
    pub(crate) pool: Vec<Box<Pending>>,
    pub(crate) reports: VecDeque<Drained>,
    /// How many reports were taken: the number of the first one in the queue.
    pub(crate) reports_taken: u64,

    pub(crate) goaway_sent: Option<u32>,
    pub(crate) goaway_received: Option<u32>,
    /// When the second GOAWAY of a drain is due, if its PING is not answered before.
    pub(crate) drain_until: Option<Instant>,
    pub(crate) application_ping: Option<[u8; 8]>,
    pub(crate) abuse: Abuse,
    pub(crate) counters: Counters,
}

impl Connection {
    /// The client side. Preface and SETTINGS are in the output at once.
    pub fn client(config: Config, now: Instant) -> Self {
        Self::new(config, false, now)
    }

    /// The server side. SETTINGS are in the output at once.
    pub fn server(config: Config, now: Instant) -> Self {
        Self::new(config, true, now)
    }

    fn new(config: Config, is_server: bool, now: Instant) -> Self {
        let config = config.within_bounds();
        let mut output = Output::default();
        if !is_server {
            output.preface(PREFACE);
        }
        output.settings(&config.settings(is_server));
        if config.connection_window > DEFAULT_WINDOW {
            output.window_update(0, config.connection_window - DEFAULT_WINDOW);
        }
        Self {
            is_server,
            now,
            start: now,
            failed: None,
            reading: match is_server {
                true => Reading::Preface(PREFACE),
                false => Reading::Frame,
            },
            partial: Vec::new(),
            block: Block::default(),
            incomplete_since: None,
            unprocessed_above: None,
            decoder: Decoder::new(HEADER_TABLE_BYTES),
            encoder: Encoder::new(),
            peer: Peer::new(),
            settings_sent: Some(now),
            initial_recv: config.stream_window.max(DEFAULT_WINDOW),
            streams: Streams::new(),
            next_id: 1,
            last_id: 0,
            send_window: SendWindow::new(DEFAULT_WINDOW),
            recv_window: RecvWindow::new(config.connection_window),
            targets: Targets {
                stream: config.stream_window,
                max_stream: config.max_stream_window,
                connection: config.connection_window,
                max_connection: config.max_connection_window,
            },
            probe: Probe::default(),
            output,
            high_water: high_water(&config),
            pending_bytes: 0,
            pool: Vec::new(),
            reports: VecDeque::new(),
            reports_taken: 0,
            goaway_sent: None,
            goaway_received: None,
            drain_until: None,
            application_ping: None,
            abuse: Abuse {
                resets: Resets::new(config.resets, now),
                provoked: Bucket::new(config.provoked_resets, now),
                control: Bucket::new(config.control_frames, now),
            },
            counters: Counters::default(),
            config,
        }
    }

    /// The bytes to be written to the peer.
    #[inline]
    pub fn output(&self) -> &[u8] {
        self.output.pending()
    }

    /// Reports that this many bytes of the output were written. Queued DATA moves into the output; call
    /// [`Connection::poll_drained`] afterwards.
    pub fn advance(&mut self, written: usize) {
        self.output.advance(written);
        if self.streams.any_ready() {
            self.pump();
        }
        if self.streams.live() == 0 && self.output.len() == 0 {
            self.shrink();
        }
    }

    /// Memory that is kept for bytes to come, in buffers that are empty now.
    pub fn spare_bytes(&self) -> usize {
        let pool: usize = self.pool.iter().map(|pending| pending.capacity()).sum();
        let partial = match self.partial.is_empty() {
            true => self.partial.capacity(),
            false => 0,
        };
        self.output.spare_bytes() + partial + pool
    }

    /// Releases it.
    pub fn release_spare(&mut self) {
        self.output.shrink();
        self.pool.clear();
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
    }

    /// Releases memory that an idle connection does not need.
    fn shrink(&mut self) {
        const KEPT_BYTES: usize = 512;
        self.output.shrink();
        self.streams.shrink();
        if self.pool.capacity() > 0 {
            self.pool = Vec::new();
        }
        if self.reports.is_empty() && self.reports.capacity() > 8 {
            self.reports = VecDeque::new();
        }
        if self.partial.is_empty() && self.partial.capacity() > KEPT_BYTES {
            self.partial = Vec::new();
        }
        self.block.shrink();
    }

    /// Sends a PING; the answer is an [`crate::Event::PingAck`]. False if one is unanswered, or if the
    /// payload is reserved (`hdlprobe`, `hdldrain`).
    pub fn ping(&mut self, payload: [u8; 8]) -> bool {
        let own = payload == PROBE_PING || payload == DRAIN_PING;
        if self.application_ping.is_some() || self.failed.is_some() || own {
            return false;
        }
        self.application_ping = Some(payload);
        self.output.ping(payload);
        true
    }

    /// When to call [`Connection::on_deadline`], if nothing comes before.
    pub fn deadline(&self) -> Option<Instant> {
        if self.failed.is_some() {
            return None;
        }
        let ack = self.settings_sent;
        let ack = ack.map(|at| at + self.config.settings_ack_timeout);
        let block = self.incomplete_since;
        let block = block.map(|at| at + self.config.header_block_timeout);
        [ack, block, self.drain_until].into_iter().flatten().min()
    }

    /// Handles timeouts. May be called at any time.
    pub fn on_deadline(&mut self, now: Instant) -> Result<(), ConnectionError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.now = now;
        let past = |since: Option<Instant>, limit| since.is_some_and(|at| now >= at + limit);
        if past(self.settings_sent, self.config.settings_ack_timeout) {
            let error = ConnectionError::new(
                ErrorCode::SETTINGS_TIMEOUT,
                "SETTINGS were not acknowledged in time",
            );
            self.fail(error);
            return Err(error);
        }
        if past(self.incomplete_since, self.config.header_block_timeout) {
            let error =
                ConnectionError::enhance_your_calm("a frame or header block did not end in time");
            self.fail(error);
            return Err(error);
        }
        if self.drain_until.is_some_and(|at| now >= at) {
            self.finish_drain();
        }
        Ok(())
    }

    /// How many streams can be opened now (client), by the peer's MAX_CONCURRENT_STREAMS, which is
    /// taken as 100 before its SETTINGS arrive.
    pub fn open_slots(&self) -> usize {
        if self.is_draining() {
            return 0;
        }
        let max = usize::try_from(self.peer.max_concurrent_streams).unwrap_or(usize::MAX);
        max.saturating_sub(self.streams.live())
    }

    /// The peer's MAX_CONCURRENT_STREAMS (client), `u32::MAX` if it has no limit. Taken as 100 before
    /// its SETTINGS arrive.
    pub fn peer_stream_limit(&self) -> u32 {
        self.peer.max_concurrent_streams
    }

    /// Whether a stream is live, and if so, whether its response has started (client).
    pub fn answered(&mut self, stream: StreamId) -> Option<bool> {
        let stream = self.streams.get(stream.0)?;
        Some(stream.recv > Half::Headers)
    }

    /// The number of streams whose halves have not both ended, or whose data is not all written.
    pub fn live_streams(&self) -> usize {
        self.streams.live()
    }

    /// A GOAWAY was sent or received, or the connection is over.
    pub fn is_draining(&self) -> bool {
        self.goaway_sent.is_some() || self.goaway_received.is_some() || self.failed.is_some()
    }

    /// Whether the first GOAWAY of a drain was sent, and the second was not.
    pub fn is_drain_open(&self) -> bool {
        self.drain_until.is_some()
    }

    /// Bytes that wait to be sent: header lists and DATA of all streams, and output.
    pub fn queued_bytes(&self) -> usize {
        self.pending_bytes + self.output.len()
    }

    /// Received bytes of incomplete frames and header blocks.
    pub fn partial_bytes(&self) -> usize {
        self.partial.len() + self.block.len()
    }

    /// Whether the peer offers extended CONNECT (RFC 8441).
    pub fn peer_connect_protocol(&self) -> bool {
        self.peer.connect_protocol
    }

    /// The peer's MAX_HEADER_LIST_SIZE, if it gave one: it may reject larger lists.
    pub fn peer_header_list_bytes(&self) -> Option<u32> {
        self.peer.header_list_bytes
    }

    /// Whether the connection must save memory: windows do not grow, grown ones return to their
    /// initial size as they are used, and less output is kept unwritten.
    pub fn set_low_memory(&mut self, low_memory: bool) {
        self.config.low_memory = low_memory;
        self.high_water = high_water(&self.config);
        if low_memory {
            self.targets.stream = self.config.stream_window;
            self.targets.connection = self.config.connection_window;
        }
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Memory of the buffers, without HPACK tables.
    #[cfg(test)]
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.output.capacity()
            + self.streams.bytes()
            + self.partial.capacity()
            + self.block.capacity()
            + self.reports.capacity() * size_of::<Drained>()
            + self.pool.capacity() * size_of::<Box<Pending>>()
    }

    /// Milliseconds since the start of the connection, for ages of streams. Wraps after 49 days.
    pub(crate) fn clock_ms(&self) -> u32 {
        let since = self.now.saturating_duration_since(self.start);
        let ms = since.as_secs() * 1000 + u64::from(since.subsec_millis());
        u32::try_from(ms & u64::from(u32::MAX)).unwrap_or(0)
    }

    /// Removes a stream with its queue; returns the application's token.
    pub(crate) fn drop_stream(&mut self, id: u32, how: End) -> Option<Token> {
        let removed = self.streams.remove(id, how)?;
        if removed.completed {
            self.abuse.resets.completed();
        }
        if let Some(pending) = removed.pending {
            self.pending_bytes = self.pending_bytes.saturating_sub(pending.bytes());
            self.give_back(pending);
        }
        Some(removed.token)
    }

    /// Keeps an unused queue buffer for a later stream.
    pub(crate) fn give_back(&mut self, mut pending: Box<Pending>) {
        if self.pool.len() < POOLED {
            pending.recycle();
            self.pool.push(pending);
        }
    }
}

fn high_water(config: &Config) -> usize {
    match config.low_memory {
        true => config.output_high_water.min(FRUGAL_HIGH_WATER),
        false => config.output_high_water,
    }
}
