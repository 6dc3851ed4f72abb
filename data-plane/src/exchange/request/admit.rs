//! Admission of a routed call: refuses it if its caller or its service is over its share.

use crate::exchange::owner::Exchange;
use crate::keys::CallKey;
use crate::policy::buffers::OverShare;

impl Exchange {
    /// Whether a routed call may continue: its caller's connection and its service are within their shares of the
    /// worker's memory. If false, the call has been answered.
    #[inline]
    pub(super) fn admit_call(&mut self, key: CallKey) -> bool {
        match self.over_share(key) {
            None => true,
            Some(over) => self.refuse_over_share(key, over),
        }
    }

    #[cold]
    fn refuse_over_share(&mut self, key: CallKey, over: OverShare) -> bool {
        let failure = self.mark_unprocessed(key, self.overloaded(key, over));
        self.fail(key, &failure);
        false
    }
}
