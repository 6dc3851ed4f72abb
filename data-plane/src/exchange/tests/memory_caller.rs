//! A protocol of callers that is not HTTP/2: its callers are programs in memory. It stands where the gateway's protocols
//! will, and shows what each of them has to do.

use std::cell::RefCell;
use std::time::Instant;

use heddle_h2::Fields;

use crate::exchange::answer::FailureForm;
use crate::failure::{Failure, FailureContext};
use crate::keys::CallKey;

/// Something that a caller was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The status, and whether the response has ended.
    Headers(u16, bool),
    Data(Vec<u8>, bool),
    Trailers,
    /// The reason's code.
    Failure(&'static str),
    Cut,
}

/// What one caller has been sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Inbox {
    pub(super) call: Option<CallKey>,
    pub(super) answers: Vec<Answer>,
    /// Bytes of its request that it may send again.
    pub(super) credit: usize,
    /// It takes nothing, so that data is queued.
    pub(super) is_slow: bool,
}

thread_local! {
    static INBOXES: RefCell<Vec<Inbox>> = const { RefCell::new(Vec::new()) };
}

/// A caller of the thread's test, by number.
#[derive(Clone, Copy, Debug)]
pub(in crate::exchange) struct MemoryCaller(pub(in crate::exchange) usize);

impl MemoryCaller {
    pub(super) fn new() -> Self {
        INBOXES.with_borrow_mut(|all| {
            all.push(Inbox::default());
            Self(all.len() - 1)
        })
    }

    pub(super) fn inbox(self) -> Inbox {
        self.with(|inbox| inbox.clone())
    }

    pub(super) fn be_slow(self) {
        self.with(|inbox| inbox.is_slow = true);
    }

    fn with<T>(self, work: impl FnOnce(&mut Inbox) -> T) -> T {
        INBOXES.with_borrow_mut(|all| work(&mut all[self.0]))
    }

    fn push(self, answer: Answer) {
        self.with(|inbox| inbox.answers.push(answer));
    }

    // ---- the methods of a caller's stream

    pub(in crate::exchange) fn begin(self, call: CallKey) {
        self.with(|inbox| inbox.call = Some(call));
    }

    pub(in crate::exchange) fn informational(self, _fields: &Fields) {}

    pub(in crate::exchange) fn has_room(self) -> bool {
        !self.inbox().is_slow
    }

    pub(in crate::exchange) fn headers(self, fields: &Fields, end: bool) -> usize {
        self.push(Answer::Headers(fields.status().unwrap_or(0), end));
        0
    }

    pub(in crate::exchange) fn data(self, data: &[u8], end: bool) -> Option<usize> {
        self.push(Answer::Data(data.to_vec(), end));
        Some(if self.inbox().is_slow { data.len() } else { 0 })
    }

    pub(in crate::exchange) fn trailers(self, _fields: &Fields) -> usize {
        self.push(Answer::Trailers);
        0
    }

    #[allow(clippy::unnecessary_wraps, reason = "as the other protocols do")]
    pub(in crate::exchange) fn fail(
        self,
        failure: &Failure,
        _context: FailureContext<'_>,
        _form: &FailureForm<'_>,
        _lists: &mut Fields,
    ) -> Option<usize> {
        self.push(Answer::Failure(failure.reason.code()));
        Some(0)
    }

    pub(in crate::exchange) fn credit(self, bytes: usize) {
        self.with(|inbox| inbox.credit += bytes);
    }

    pub(in crate::exchange) fn cut(self) {
        self.push(Answer::Cut);
    }

    pub(in crate::exchange) fn discard(self) -> usize {
        0
    }

    pub(in crate::exchange) fn ignore_rest(self, _now: Instant) {}
}
