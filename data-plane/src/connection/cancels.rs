//! Sends cancels of calls to the server. A server may count them against all callers of a connection and close it, so
//! they are sent to an instance at a limited rate, and to another proxy in a way that it does not count. A waiting
//! cancel keeps its stream until it is sent or the server has ended the stream, and the stream stays charged to its
//! caller. A connection with many of them takes no new calls. Takes streams; gives RST_STREAM.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use heddle_h2::{ErrorCode, StreamId};
use heddle_pacing::TokenBucket;

use super::conn::{Conn, LATE, Side};
use crate::caller::Account;

/// Payload of a PING whose answer shows which streams another proxy has received.
const PING_SETTLED: [u8; 8] = *b"heddle\0s";

/// Cancels that one connection may send at once, and per second: fewer than make servers close it.
const RATE: (u32, u32) = (100, 50);
const BURST: usize = RATE.0 as usize;
/// Age from which a stream can be reset without harm. Servers on the `h2` crate (hyper, tonic) close a connection with
/// 21 streams that were reset before they had been accepted. A proxy does not count resets of streams that it has had
/// for 25 ms (heddle-h2's `abuse`); it has a stream when it answers a PING that was sent after it.
const SETTLED: Duration = Duration::from_millis(30);
/// Least time between two such PINGs, since they are counted too.
const PING_EVERY: Duration = Duration::from_millis(50);
/// With this many waiting cancels, or with half as many as the server allows streams, a connection takes no new calls.
/// It is closed when its last call has ended, which cancels them all.
const MOST: usize = 256;

/// The cancels of one connection.
#[derive(Debug)]
pub(super) struct Cancels {
    rate: TokenBucket,
    /// In order of arrival. Each belongs to a live stream, so their number is limited by the connection's streams.
    late: VecDeque<Late>,
    /// Earliest time of the next PING to a proxy.
    ping_at: Instant,
    /// When cancels can be sent, or a PING for them.
    due: Option<Instant>,
}

/// A waiting cancel.
#[derive(Clone, Copy, Debug)]
struct Late {
    stream: StreamId,
    account: Account,
    /// The stream is charged to the account in its pool.
    charged: bool,
    ready: Ready,
}

/// When a cancel may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    /// To a proxy: after the next PING.
    NeedsPing,
    /// To a proxy: after the answer to the PING that has been sent.
    PingSent,
    /// At this time; to an instance only if the rate allows it.
    At(Instant),
}

impl Cancels {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rate: TokenBucket::new(RATE.0, RATE.1),
            late: VecDeque::new(),
            ping_at: now,
            due: None,
        }
    }

    /// When the cancels have to be checked.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether so many cancels wait that the connection takes no new calls. `limit` is the server's limit of streams.
    #[inline]
    pub(super) fn is_burdened(&self, limit: u32) -> bool {
        let half = usize::try_from(limit / 2).unwrap_or(MOST).max(1);
        self.late.len() >= half.min(MOST)
    }

    /// The accounts to which streams of waiting cancels are charged in the pool.
    pub(super) fn charged(&self) -> impl Iterator<Item = Account> {
        let charged = self.late.iter().filter(|late| late.charged);
        charged.map(|late| late.account)
    }

    /// The connection has left its pool: its streams are no longer charged there.
    pub(super) fn uncharge(&mut self) {
        for late in &mut self.late {
            late.charged = false;
        }
    }

    /// Whether a cancel that may be sent at `ready` can be sent now. Cancels keep their order, and a token is spent
    /// only for one that is sent.
    fn goes_now(&mut self, ready: Instant, now: Instant) -> bool {
        self.late.is_empty() && ready <= now && self.rate.try_take(now).is_ok()
    }

    /// Takes the next cancel that may be sent; to an instance no more than the rate allows.
    fn next(&mut self, link: bool, now: Instant) -> Option<Late> {
        let wait = match self.late.front()?.ready {
            Ready::At(at) if at > now => at - now,
            Ready::At(_) if link => return self.late.pop_front(),
            Ready::At(_) => match self.rate.try_take(now) {
                Ok(()) => return self.late.pop_front(),
                Err(wait) => wait,
            },
            Ready::NeedsPing | Ready::PingSent => return None,
        };
        self.due = Some(now + wait);
        None
    }

    /// Whether to send a PING now for the waiting cancels.
    fn needs_ping(&mut self, now: Instant) -> bool {
        if self
            .late
            .back()
            .is_none_or(|last| last.ready != Ready::NeedsPing)
        {
            return false;
        }
        if self.ping_at > now {
            self.due = Some(self.due.map_or(self.ping_at, |due| due.min(self.ping_at)));
            return false;
        }
        true
    }

    /// The PING was sent.
    fn on_ping_sent(&mut self, now: Instant) {
        self.ping_at = now + PING_EVERY;
        let needs_ping = |late: &&mut Late| late.ready == Ready::NeedsPing;
        for late in self.late.iter_mut().filter(needs_ping) {
            late.ready = Ready::PingSent;
        }
    }

    /// The PING was acknowledged.
    fn on_ping_ack(&mut self, now: Instant) {
        let sent = |late: &&mut Late| late.ready == Ready::PingSent;
        for late in self.late.iter_mut().filter(sent) {
            late.ready = Ready::At(now + SETTLED);
        }
    }

    fn remove(&mut self, stream: StreamId) -> Option<Late> {
        let at = self.late.iter().position(|late| late.stream == stream)?;
        self.late.remove(at)
    }
}

/// The attempt of a call that is to be cancelled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempted {
    pub(crate) stream: StreamId,
    pub(crate) started: Instant,
    pub(crate) account: Account,
    /// The stream is charged to the account in its pool.
    pub(crate) charged: bool,
}

/// Result of a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cancelled {
    Sent,
    /// It waits, and keeps the charge of its stream.
    Waits {
        /// It waits for the rate limit, not only until the stream is old enough.
        at_bound: bool,
    },
    /// The stream has already ended.
    Gone,
}

/// The cancels that were sent.
#[derive(Debug, Default)]
pub(crate) struct SentCancels {
    pub(crate) any: bool,
    /// The accounts to which their streams were charged.
    pub(crate) charged: Vec<Account>,
}

impl Conn {
    /// Cancels an attempt on an opened connection, at once or when the server's protection allows it.
    pub(crate) fn cancel(&mut self, attempt: Attempted, now: Instant) -> Cancelled {
        let stream = attempt.stream;
        let Some(answered) = self.h2.answered(stream) else {
            return Cancelled::Gone;
        };
        let Side::Opened(opened) = &mut self.side else {
            return Cancelled::Gone;
        };
        let link = opened.is_link();
        // To a proxy the rate allows so few that it may count them.
        let ready = match answered || link {
            true => now,
            false => attempt.started + SETTLED,
        };
        // A proxy does not count streams that it has begun to answer.
        let free = link && answered;
        let cancels = &mut opened.cancels;
        if free || cancels.goes_now(ready, now) {
            self.h2.reset(stream, ErrorCode::CANCEL);
            return Cancelled::Sent;
        }
        cancels.late.push_back(Late {
            stream,
            account: attempt.account,
            charged: attempt.charged,
            ready: match link {
                true => Ready::NeedsPing,
                false => Ready::At(ready),
            },
        });
        let at_bound = ready <= now || cancels.late.len() > BURST;
        // Until it is sent, the stream gets no credit, so that the server stops sending, and its unsent bytes are
        // discarded, with their end.
        self.h2.set_token(stream, LATE);
        self.h2.abandon(stream);
        Cancelled::Waits { at_bound }
    }

    /// Sends the cancels that are allowed now, and notes when others will be.
    pub(crate) fn send_cancels(&mut self, now: Instant) -> SentCancels {
        let mut sent = SentCancels::default();
        let Side::Opened(opened) = &mut self.side else {
            return sent;
        };
        let link = opened.is_link();
        let cancels = &mut opened.cancels;
        cancels.due = None;
        while let Some(late) = cancels.next(link, now) {
            self.h2.reset(late.stream, ErrorCode::CANCEL);
            sent.any = true;
            sent.charged.extend(late.charged.then_some(late.account));
        }
        // If another PING is in flight, its answer leads here again.
        if link && cancels.needs_ping(now) && self.h2.ping(PING_SETTLED) {
            cancels.on_ping_sent(now);
        }
        sent
    }

    /// A PING was acknowledged: the server has received everything sent before it. True if cancels wait.
    pub(crate) fn on_ping_ack(&mut self, payload: [u8; 8], now: Instant) -> bool {
        match &mut self.side {
            Side::Accepted(accepted) => {
                accepted.on_ping_ack();
                false
            }
            Side::Opened(opened) => {
                opened.keepalive.reset();
                if payload == PING_SETTLED {
                    opened.cancels.on_ping_ack(now);
                }
                !opened.cancels.late.is_empty()
            }
        }
    }

    /// Something arrived on a stream whose cancel waits. `None` while the stream is open; otherwise the account to
    /// which it was charged, if any.
    #[allow(
        clippy::option_option,
        reason = "whether it has ended, and what that frees"
    )]
    pub(crate) fn end_cancelled(&mut self, stream: StreamId) -> Option<Option<Account>> {
        let Side::Opened(opened) = &mut self.side else {
            return None;
        };
        match self.h2.answered(stream) {
            Some(true) if opened.is_link() => self.h2.reset(stream, ErrorCode::CANCEL),
            Some(_) => return None,
            None => {}
        }
        let late = opened.cancels.remove(stream);
        Some(late.filter(|late| late.charged).map(|late| late.account))
    }

    /// Returns the accounts to which streams of waiting cancels are charged, and removes the charges.
    pub(crate) fn uncharge_cancels(&mut self) -> Vec<Account> {
        let Side::Opened(opened) = &mut self.side else {
            return Vec::new();
        };
        let charged = opened.cancels.charged().collect();
        opened.cancels.uncharge();
        charged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ConnKey;

    fn late(stream: StreamId, ready: Ready) -> Late {
        Late {
            stream,
            account: Account {
                service: 1,
                caller: ConnKey::unpack(1).into(),
            },
            charged: true,
            ready,
        }
    }

    /// Stream ids from an HTTP/2 state machine.
    fn streams(count: usize) -> Vec<StreamId> {
        let config = heddle_h2::Config::default();
        let mut h2 = heddle_h2::Connection::client(config, Instant::now());
        let mut request = heddle_h2::Fields::new();
        request.push(b":method", b"POST");
        let open = |_| {
            let stream = h2.open(&request, 0, true).unwrap();
            h2.reset(stream, ErrorCode::CANCEL);
            stream
        };
        (0..count).map(open).collect()
    }

    #[test]
    fn a_flood_of_cancels_spends_tokens_only_on_what_is_sent() {
        // Issue 10, A3: a thousand per second for ten seconds, half of which the server ends by itself.
        let start = Instant::now();
        let mut cancels = Cancels::new(start);
        let mut sent = 0;
        for (ms, stream) in (0..).zip(streams(10_000)) {
            let now = start + Duration::from_millis(ms);
            match cancels.goes_now(now, now) {
                true => sent += 1,
                false => cancels.late.push_back(late(stream, Ready::At(now))),
            }
            sent += std::iter::from_fn(|| cancels.next(false, now)).count();
            if ms % 2 == 0 {
                cancels.remove(stream);
            }
        }
        assert!((590..=601).contains(&sent), "{sent}: a burst, and the rate");
        assert!(cancels.late.len() <= 5000, "those that have ended are gone");
        // The rate applies to all of them.
        let later = start + Duration::from_secs(20);
        let burst = std::iter::from_fn(|| cancels.next(false, later)).count();
        assert_eq!(burst, 100);
    }

    #[test]
    fn to_an_instance_a_cancel_goes_when_it_can_have_accepted_the_stream() {
        let now = Instant::now();
        let mut cancels = Cancels::new(now);
        let ready = now + SETTLED;
        assert!(!cancels.goes_now(ready, now));
        for stream in streams(100) {
            cancels.late.push_back(late(stream, Ready::At(ready)));
        }
        assert!(cancels.next(false, now).is_none());
        assert_eq!(cancels.due(), Some(ready));
        let sent = std::iter::from_fn(|| cancels.next(false, ready)).count();
        assert_eq!(sent, 100, "no token was spent before");
    }

    #[test]
    fn to_a_proxy_a_cancel_goes_when_its_stream_has_settled() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut cancels = Cancels::new(start);
        let streams = streams(3);
        let [first, second, third] = streams[..] else {
            panic!("three");
        };
        cancels.late.push_back(late(first, Ready::NeedsPing));
        assert!(cancels.needs_ping(ms(0)));
        cancels.on_ping_sent(ms(0));
        cancels.late.push_back(late(second, Ready::NeedsPing));
        assert!(!cancels.needs_ping(ms(1)), "not so soon again");
        assert_eq!(cancels.due(), Some(ms(50)));
        assert!(cancels.next(true, ms(10)).is_none(), "no answer yet");
        cancels.on_ping_ack(ms(10));
        assert!(cancels.next(true, ms(39)).is_none());
        assert_eq!(cancels.next(true, ms(40)).unwrap().stream, first);
        assert!(
            cancels.next(true, ms(40)).is_none(),
            "its PING was not sent"
        );
        assert!(cancels.needs_ping(ms(50)));
        cancels.on_ping_sent(ms(50));
        cancels.late.push_back(late(third, Ready::NeedsPing));
        cancels.on_ping_ack(ms(60));
        assert_eq!(cancels.next(true, ms(90)).unwrap().stream, second);
        assert!(cancels.next(true, ms(90)).is_none());
    }

    #[test]
    fn a_connection_with_many_waiting_cancels_takes_no_calls() {
        let mut cancels = Cancels::new(Instant::now());
        assert!(!cancels.is_burdened(0) && !cancels.is_burdened(1));
        let streams = streams(256);
        for (n, stream) in streams.into_iter().enumerate() {
            assert_eq!(cancels.is_burdened(100), n >= 50);
            assert!(!cancels.is_burdened(u32::MAX));
            cancels.late.push_back(late(stream, Ready::NeedsPing));
        }
        assert!(cancels.is_burdened(u32::MAX));
    }
}
