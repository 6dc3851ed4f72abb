//! Ends calls that have buffered more than their share, and those whose receivers take too little: at once, ahead of what is
//! queued. Who is over its share is decided by `admission`.

use crate::exchange::answer::CallerStream;
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::CallKey;
use crate::policy::buffers::OverShare;

impl Exchange {
    /// Ends a call that would buffer more than a share allows. Discards what is queued for the caller, since the
    /// failure would have to wait behind it.
    pub(in crate::exchange) fn overload(&mut self, key: CallKey, over: OverShare) {
        let failure = self.overloaded(key, over);
        self.fail_now(key, &failure);
    }

    pub(in crate::exchange) fn fail_now(&mut self, key: CallKey, failure: &Failure) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if call.response.is_complete() {
            // The end of the response is already queued, so nothing can be added.
            return self.reset_call(key, &failure.message);
        }
        if let Some(mut caller) = CallerStream::of(&mut self.conns, call.down()) {
            call.response.discard_queued(caller.discard());
        }
        self.fail(key, failure);
    }
}
