//! One connection, either side: the verbs that the shell uses.

use std::time::Instant;

use crate::{
    Config, ConnectionError, Drained, ErrorCode, Event, Fields, Gone, OpenError, StreamId, Token,
};

/// What a connection has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Streams opened, by either side.
    pub streams: u64,
    /// Streams refused over MAX_CONCURRENT_STREAMS.
    pub refused: u64,
    /// Header lists over their bounds.
    pub too_large: u64,
    /// RST_STREAM frames received.
    pub resets_received: u64,
    /// RST_STREAM frames sent, for whatever reason.
    pub resets_sent: u64,
    /// Stream errors of the peer's (malformed messages, frames in the wrong state, …).
    pub stream_errors: u64,
    /// PING frames received that were not acknowledgements.
    pub pings_received: u64,
    /// Times that windows grew.
    pub window_growths: u64,
}

/// One HTTP/2 connection.
#[derive(Debug)]
pub struct Connection {
    config: Config,
    output: Vec<u8>,
    counters: Counters,
}

impl Connection {
    /// The client's side; preface and SETTINGS are in the output at once.
    pub fn client(config: Config, _now: Instant) -> Self {
        Self {
            config,
            output: Vec::new(),
            counters: Counters::default(),
        }
    }
    /// The server's side; SETTINGS are in the output at once.
    pub fn server(config: Config, _now: Instant) -> Self {
        Self {
            config,
            output: Vec::new(),
            counters: Counters::default(),
        }
    }
    /// Takes bytes of the peer; call until `None`.
    pub fn recv<'i>(
        &mut self,
        input: &mut &'i [u8],
        _fields: &mut Fields,
        _now: Instant,
    ) -> Result<Option<Event<'i>>, ConnectionError> {
        *input = &[];
        Ok(None)
    }
    /// Opens a stream (client).
    pub fn open(
        &mut self,
        _fields: &Fields,
        _token: Token,
        _end_stream: bool,
    ) -> Result<StreamId, OpenError> {
        Err(OpenError::Draining)
    }
    /// Sends response, 1xx or trailers.
    pub fn headers(
        &mut self,
        _stream: StreamId,
        _fields: &Fields,
        _end_stream: bool,
    ) -> Result<(), Gone> {
        Err(Gone)
    }
    /// Sends DATA; says how many bytes went into the output now.
    pub fn data(
        &mut self,
        _stream: StreamId,
        _data: &[u8],
        _end_stream: bool,
    ) -> Result<usize, Gone> {
        Err(Gone)
    }
    /// Received DATA has been passed on.
    pub fn release(&mut self, _stream: StreamId, _bytes: usize) {}
    /// Ends a stream with RST_STREAM.
    pub fn reset(&mut self, _stream: StreamId, _code: ErrorCode) {}
    /// Names a stream.
    pub fn set_token(&mut self, _stream: StreamId, _token: Token) {}
    /// Progress of queued DATA.
    pub fn poll_drained(&mut self) -> Option<Drained> {
        None
    }
    /// What is to be written.
    pub fn output(&self) -> &[u8] {
        &self.output
    }
    /// So much of it was written.
    pub fn advance(&mut self, _written: usize) {}
    /// Sends a PING; false if one is under way.
    pub fn ping(&mut self, _payload: [u8; 8]) -> bool {
        false
    }
    /// Graceful drain.
    pub fn drain(&mut self, _now: Instant) {}
    /// GOAWAY now.
    pub fn close(&mut self, _code: ErrorCode, _debug: &[u8]) {}
    /// When to call [`Connection::on_deadline`].
    pub fn deadline(&self) -> Option<Instant> {
        None
    }
    /// Time has come.
    pub fn on_deadline(&mut self, _now: Instant) -> Result<(), ConnectionError> {
        Ok(())
    }
    /// Streams that may still be opened.
    pub fn open_slots(&self) -> usize {
        0
    }
    /// Streams that are alive.
    pub fn live_streams(&self) -> usize {
        0
    }
    /// A GOAWAY was sent or received.
    pub fn is_draining(&self) -> bool {
        false
    }
    /// DATA waiting in all streams, and output.
    pub fn queued_bytes(&self) -> usize {
        self.output.len()
    }
    /// The peer offers extended CONNECT.
    pub fn peer_connect_protocol(&self) -> bool {
        false
    }
    /// Turns the growth of windows on or off.
    pub fn set_grow_windows(&mut self, grow: bool) {
        self.config.grow_windows = grow;
    }
    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
