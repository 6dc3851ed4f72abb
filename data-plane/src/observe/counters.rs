//! The plain counters of a worker, with their Prometheus names and labels. Written by the worker only, read by the
//! control runtime. Every limit that can be hit has its counter here.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal, $labels:literal;)*) => {
        /// What is counted besides calls.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Counter {
            /// All counters; those of one name are adjacent.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The metric's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Its labels as between the braces; may be empty.
            #[must_use]
            pub const fn labels(self) -> &'static str {
                match self { $(Self::$variant => $labels,)* }
            }

            /// Its help text.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*).trim_ascii(),)* }
            }
        }
    };
}

counters! {
    /// Connections accepted from callers.
    AcceptedOutbound = "heddle_connections_accepted_total", "listener=\"outbound\"";
    /// Connections accepted from other proxies.
    AcceptedInbound = "heddle_connections_accepted_total", "listener=\"inbound\"";
    /// Downstream connections that ended.
    ClosedDownstream = "heddle_connections_closed_total", "side=\"downstream\"";
    /// Upstream connections that ended.
    ClosedUpstream = "heddle_connections_closed_total", "side=\"upstream\"";
    /// Accepted sockets passed on to a worker with less load.
    Rebalanced = "heddle_connections_rebalanced_total", "";
    /// Upstream connections that were opened.
    Connects = "heddle_upstream_connects_total", "";
    /// Upstream connections that could not be opened.
    ConnectFailures = "heddle_upstream_connect_failures_total", "";
    /// Retries, by kind: `unprocessed` (the application had not seen the call) or `idempotent` (its method may be repeated).
    RetriesSafe = "heddle_retries_total", "kind=\"unprocessed\"";
    /// Retries of idempotent methods.
    RetriesIdempotent = "heddle_retries_total", "kind=\"idempotent\"";
    /// Instances ejected because calls in a row ended without an answer, and ejections lengthened by a probe that failed.
    Ejections = "heddle_ejections_total", "";
    /// Downstream connections closed because the peer violated HTTP/2.
    ProtocolErrorsDownstream = "heddle_protocol_errors_total", "side=\"downstream\"";
    /// Upstream connections closed because the server violated HTTP/2.
    ProtocolErrorsUpstream = "heddle_protocol_errors_total", "side=\"upstream\"";
    /// Connections closed because handling them panicked: a bug in Heddle.
    Panics = "heddle_panics_total", "";
    /// Connections of callers that spoke HTTP/1.1.
    Http1Refused = "heddle_http1_refused_total", "";
    /// Times a limit was hit, by `bound`; pending_calls: calls refused because too many of their service were waiting.
    BoundPending = "heddle_bounds_hit_total", "bound=\"pending_calls\"";
    /// Calls refused because their caller's connection already used its share of the waiting places.
    BoundPendingShare = "heddle_bounds_hit_total", "bound=\"pending_share\"";
    /// Calls refused because they had waited for a stream to their instance for the maximum time.
    BoundPendingTimeout = "heddle_bounds_hit_total", "bound=\"pending_timeout\"";
    /// Calls that had to wait because all streams of all allowed connections to the endpoint were in use.
    BoundUpstreamStreams = "heddle_bounds_hit_total", "bound=\"upstream_streams\"";
    /// Calls that had to wait because their caller's connection or service already used its share of the endpoint's streams.
    BoundStreamShare = "heddle_bounds_hit_total", "bound=\"upstream_stream_share\"";
    /// Calls refused or ended because the worker's buffers were full.
    BoundMemory = "heddle_bounds_hit_total", "bound=\"buffered_bytes\"";
    /// Calls refused or ended because their caller's connection held more than its share of the worker's buffers.
    BoundCallerShare = "heddle_bounds_hit_total", "bound=\"buffered_bytes_of_caller\"";
    /// Calls refused or ended because the calls of their service held more than their share of the worker's buffers.
    BoundServiceShare = "heddle_bounds_hit_total", "bound=\"buffered_bytes_of_service\"";
    /// Calls that outgrew the replay buffer and can no longer be retried.
    BoundReplay = "heddle_bounds_hit_total", "bound=\"replay_buffer\"";
    /// Retries not made because the service's retry budget was used up.
    BoundRetryBudget = "heddle_bounds_hit_total", "bound=\"retry_budget\"";
    /// New connections on outbound beyond the worker's limit: the one idle longest was closed for each.
    BoundOutboundConnections = "heddle_bounds_hit_total", "bound=\"connections\",listener=\"outbound\"";
    /// New connections on inbound beyond the worker's limit: the one idle longest was closed for each.
    BoundInboundConnections = "heddle_bounds_hit_total", "bound=\"connections\",listener=\"inbound\"";
    /// Header lists over the limit.
    BoundHeaders = "heddle_bounds_hit_total", "bound=\"header_list\"";
    /// Cancels that had to wait because a connection had sent many.
    BoundCancels = "heddle_bounds_hit_total", "bound=\"cancel_rate\"";
    /// Connections closed at the idle timeout.
    BoundIdle = "heddle_bounds_hit_total", "bound=\"idle_timeout\"";
    /// Connections closed because their handshake took too long.
    BoundHandshake = "heddle_bounds_hit_total", "bound=\"handshake_timeout\"";
    /// Connections closed because they sent no request in time.
    BoundFirstRequest = "heddle_bounds_hit_total", "bound=\"first_request_timeout\"";
    /// Calls cut off because the peer read almost nothing for a long time while buffers were nearly full.
    BoundStall = "heddle_bounds_hit_total", "bound=\"stall_timeout\"";
    /// Connections closed because the peer left too much output unread.
    BoundOutput = "heddle_bounds_hit_total", "bound=\"unread_output\"";
    /// Streams refused because their connection had too many.
    BoundStreams = "heddle_bounds_hit_total", "bound=\"concurrent_streams\"";
    /// Connections closed with ENHANCE_YOUR_CALM because expensive frames without content came too fast.
    BoundFloods = "heddle_bounds_hit_total", "bound=\"flood\"";
    /// Connections closed because a keep-alive was not answered.
    KeepAliveLost = "heddle_keepalive_lost_total", "";
}

/// The counters of one worker.
#[derive(Debug)]
pub struct Counters {
    values: [AtomicU64; Counter::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            values: [const { AtomicU64::new(0) }; Counter::ALL.len()],
        }
    }
}

impl Counters {
    /// Adds one. Only the owning worker calls this, so a load and a store suffice.
    pub fn add(&self, counter: Counter) {
        self.add_many(counter, 1);
    }

    /// Adds `n`.
    pub fn add_many(&self, counter: Counter, n: u64) {
        if let Some(value) = self.values.get(counter as usize) {
            bump(value, n);
        }
    }

    /// The current value.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.values
            .get(counter as usize)
            .map_or(0, |v| v.load(Ordering::Relaxed))
    }
}

/// Adds without a locked instruction; correct only if one thread writes.
pub(crate) fn bump(value: &AtomicU64, n: u64) {
    value.store(
        value.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}
