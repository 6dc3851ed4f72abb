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
    /// Upstream connections that could not be made.
    ConnectFailures = "heddle_upstream_connect_failures_total", "";
    /// Attempts after a first one that provably did not reach the application.
    RetriesSafe = "heddle_retries_total", "kind=\"unprocessed\"";
    /// Attempts after a first one of an idempotent method.
    RetriesIdempotent = "heddle_retries_total", "kind=\"idempotent\"";
    /// Instances ejected because calls in a row ended without an answer, and ejections lengthened by a probe that failed.
    Ejections = "heddle_ejections_total", "";
    /// Connections closed because the peer broke HTTP/2.
    ProtocolErrorsDownstream = "heddle_protocol_errors_total", "side=\"downstream\"";
    /// Upstream connections closed because the server broke HTTP/2.
    ProtocolErrorsUpstream = "heddle_protocol_errors_total", "side=\"upstream\"";
    /// Connections closed because handling them panicked: a bug of ours.
    Panics = "heddle_panics_total", "";
    /// A caller's connection spoke HTTP/1.1.
    Http1Refused = "heddle_http1_refused_total", "";
    /// Times that a bound was hit: calls refused because too many of their service were waiting, and what else `bound` says.
    BoundPending = "heddle_bounds_hit_total", "bound=\"pending_calls\"";
    /// Calls refused because their caller's connection had its share of the places of waiting calls.
    BoundPendingShare = "heddle_bounds_hit_total", "bound=\"pending_share\"";
    /// Calls refused because they had waited for a stream to their instance for as long as any may.
    BoundPendingTimeout = "heddle_bounds_hit_total", "bound=\"pending_timeout\"";
    /// Calls that had to wait because all connections that an endpoint may have had their limit of streams in use.
    BoundUpstreamStreams = "heddle_bounds_hit_total", "bound=\"upstream_streams\"";
    /// Calls that had to wait because their caller's connection or service had its share of the streams to an endpoint.
    BoundStreamShare = "heddle_bounds_hit_total", "bound=\"upstream_stream_share\"";
    /// Calls refused or ended because the worker's buffers were full.
    BoundMemory = "heddle_bounds_hit_total", "bound=\"buffered_bytes\"";
    /// Calls refused or ended because their caller's connection held more than its share of the worker's buffers.
    BoundCallerShare = "heddle_bounds_hit_total", "bound=\"buffered_bytes_of_caller\"";
    /// Calls refused or ended because the calls of their service held more than their share of the worker's buffers.
    BoundServiceShare = "heddle_bounds_hit_total", "bound=\"buffered_bytes_of_service\"";
    /// Calls that outgrew the replay buffer and can no longer be tried again.
    BoundReplay = "heddle_bounds_hit_total", "bound=\"replay_buffer\"";
    /// Retries not made because the service's retry budget was used up.
    BoundRetryBudget = "heddle_bounds_hit_total", "bound=\"retry_budget\"";
    /// New connections that found outbound full on a worker: the idlest one was closed for them.
    BoundOutboundConnections = "heddle_bounds_hit_total", "bound=\"connections\",listener=\"outbound\"";
    /// New connections that found inbound full on a worker: the idlest one was closed for them.
    BoundInboundConnections = "heddle_bounds_hit_total", "bound=\"connections\",listener=\"inbound\"";
    /// Header lists over the limit.
    BoundHeaders = "heddle_bounds_hit_total", "bound=\"header_list\"";
    /// Cancels that had to wait because a connection had sent many.
    BoundCancels = "heddle_bounds_hit_total", "bound=\"cancel_rate\"";
    /// Connections closed at the idle timeout.
    BoundIdle = "heddle_bounds_hit_total", "bound=\"idle_timeout\"";
    /// Connections closed because their handshake took too long.
    BoundHandshake = "heddle_bounds_hit_total", "bound=\"handshake_timeout\"";
    /// Connections closed because no request came in time.
    BoundFirstRequest = "heddle_bounds_hit_total", "bound=\"first_request_timeout\"";
    /// Calls cut because the peer took nothing for long while buffers were nearly full.
    BoundStall = "heddle_bounds_hit_total", "bound=\"stall_timeout\"";
    /// Connections closed because the peer left too much of what was written for it unread.
    BoundOutput = "heddle_bounds_hit_total", "bound=\"unread_output\"";
    /// Streams refused because their connection had too many.
    BoundStreams = "heddle_bounds_hit_total", "bound=\"concurrent_streams\"";
    /// Connections closed with ENHANCE_YOUR_CALM: frames that cost much and carry nothing came too fast.
    BoundFloods = "heddle_bounds_hit_total", "bound=\"flood\"";
    /// Connections given up because a keep-alive was not answered.
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
