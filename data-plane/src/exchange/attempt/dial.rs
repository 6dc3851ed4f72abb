//! Dials for the calls that wait in a pool, and fails or retries them when no connection can be made. When to dial is
//! decided by `upstream`; what happens with the new connection is in `connect`.

use heddle_proto::Reason;

use crate::exchange::call::Call;
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::PoolKey;
use crate::upstream::pools::DialFailed;

impl Exchange {
    pub(super) fn dial_if_needed(&mut self, pool: PoolKey) {
        let (pools, io) = self.pools_io();
        let failed = pools.dial_if_needed(pool, io);
        self.fail_waiting(failed);
    }

    pub(in crate::exchange) fn on_pool_timer(&mut self, pool: PoolKey) {
        let (pools, io) = self.pools_io();
        let failed = pools.on_timer(pool, io);
        self.fail_waiting(failed);
    }

    pub(in crate::exchange) fn connect_failed(&mut self, pool: PoolKey, why: &str, refused: bool) {
        let (pools, io) = self.pools_io();
        let failed = pools.on_dial_failed(pool, why, refused, io);
        self.fail_waiting(failed);
    }

    /// A pool has no connection, and the dial for which its calls waited has failed.
    pub(super) fn fail_waiting(&mut self, failed: Option<DialFailed>) {
        let Some(DialFailed { pool: key, why }) = failed else {
            return;
        };
        let Some(name) = self.pools.get(key).map(|pool| pool.dial().name()) else {
            return;
        };
        while let Some(call) = self.pools.next_waiting(key) {
            self.stop_waiting_for_stream(call);
            let target = self.calls.get(call).map(Call::target_name);
            let target = target.unwrap_or_default();
            let text = format!("{target}: no connection to {name}: {why}");
            self.dial_failed(call, Failure::new(Reason::ConnectFailed, text));
        }
    }
}
