//! Bytes of calls: keeps the charges of `policy/buffers.rs` up to date with what calls have buffered, says which calls are
//! over a share, and returns flow-control credit to callers. Takes the buffered bytes; gives failures. Who is over its
//! share is decided by `admission`; calls are ended in `finish`.

use heddle_proto::Reason;

use crate::caller::Role;
use crate::connection::Conn;
use crate::exchange::call::Call;
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;
use crate::policy::buffers::OverShare;

impl Exchange {
    /// Updates the charges to what a call has buffered now.
    pub(super) fn update_charges(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (buffered, caller, now) = (call.buffered(), call.caller(), self.now);
        let conns = &mut self.conns;
        let service = call.route.service().map(|service| &service.name);
        self.admission.charge(
            &mut call.charge,
            buffered,
            move || conns.get_mut(caller).map(Conn::buffered_mut),
            service,
            now,
        );
    }

    /// A call has ended: removes its charges.
    pub(super) fn discharge(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let caller = self.conns.get_mut(call.caller());
        let caller = caller.map(Conn::buffered_mut);
        self.admission.discharge(&mut call.charge, caller);
    }

    /// Whether a caller's connection has buffered more than its share.
    pub(super) fn over_share_of_conn(&self, key: ConnKey) -> Option<OverShare> {
        let conn = self.conns.get(key)?;
        self.admission.over_caller(conn.caller()?, conn.buffered())
    }

    /// Whether a call may buffer no more, and whose share is used up. Called several times per call.
    #[inline]
    pub(super) fn over_share(&self, key: CallKey) -> Option<OverShare> {
        match self.admission.is_far_from_full() {
            true => None,
            false => self.over_share_when_full(key),
        }
    }

    #[cold]
    fn over_share_when_full(&self, key: CallKey) -> Option<OverShare> {
        let call = self.calls.get(key)?;
        let conn = self.conns.get(call.caller())?;
        self.admission
            .over_share(conn.caller()?, conn.buffered(), call.route.service_name())
    }

    /// The failure of a call that is refused or ended because a share is used up; counted.
    pub(super) fn overloaded(&self, key: CallKey, over: OverShare) -> Failure {
        let (counter, who) = match over {
            OverShare::Worker => (
                Counter::BoundMemory,
                "all calls together hold all".to_owned(),
            ),
            OverShare::Caller => {
                let role = self.calls.get(key).map(Call::role);
                let who = match role {
                    Some(Role::Inbound) => {
                        "the calls of this link have buffered more than its share"
                    }
                    _ => "the calls of this connection have buffered more than its share",
                };
                (Counter::BoundCallerShare, who.to_owned())
            }
            OverShare::Service => {
                let call = self.calls.get(key);
                let service = call.and_then(|call| call.route.service_name());
                let service = service.unwrap_or("the service");
                let who = format!("the calls to {service} have buffered more than their share");
                (Counter::BoundServiceShare, who)
            }
        };
        self.count(counter);
        let (node, mib) = (&self.options().node, self.options().buffered_bytes >> 20);
        let text = format!(
            "{who} of the {mib} MiB that a worker of the proxy on node {node} may buffer for receivers that have not \
             taken them yet"
        );
        Failure::new(Reason::Overloaded, text)
    }

    /// Credits to the caller what has been written upstream for the first time.
    pub(super) fn credit_request(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let fresh = call.request.credit_written(call.upstream.written());
        if fresh > 0 {
            let down = call.down();
            self.credit_caller(down, fresh);
        }
    }
}
