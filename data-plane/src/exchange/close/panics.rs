//! Contains panics: a bug costs the connection whose work it is in, and the proxy continues.

use std::panic::{AssertUnwindSafe, catch_unwind};

use heddle_h2::Fields;

use crate::exchange::call::Call;
use crate::exchange::owner::Exchange;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;

impl Exchange {
    /// Runs `work` for a call; if it panics, its caller's connection is closed.
    pub(in crate::exchange) fn guard_call(&mut self, call: CallKey, work: impl FnOnce(&mut Self)) {
        if let Some(conn) = self.calls.get(call).map(Call::caller) {
            self.guard(conn, work);
        }
    }

    /// Runs `work` for a connection; if it panics, only that connection is closed.
    pub(in crate::exchange) fn guard(&mut self, key: ConnKey, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_ok() {
            return;
        }
        self.count(Counter::Panics);
        // `work` may have taken the buffer and not returned it.
        self.fields = Fields::new();
        let closed = catch_unwind(AssertUnwindSafe(|| {
            self.lose(key, "handling it failed inside the proxy");
        }));
        if closed.is_err() {
            tracing::error!("closing a connection after a panic panicked; it is dropped");
            if let Some(conn) = self.conns.remove(key, &mut self.timers) {
                self.admission.discharge_conn(conn.buffered());
            }
        }
    }
}
