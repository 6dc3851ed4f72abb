//! What the callers of one worker share, and who may have more of it: the memory of its buffers (`policy/buffers`), the
//! queues of waiting calls, and the retry budget of each service. Admission is the one step between routing and the
//! choice of an endpoint that accepts or refuses a call ([`Admission::admit`]). Takes callers, services and amounts;
//! gives permissions and charges. Rate limits and authorization belong here; calls, routing and responses do not. Shares
//! of streams belong to the pool that has them (`upstream`).

mod endpoint_waits;
mod services;
mod stream_waits;
mod wait_queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use endpoint_waits::EndpointWaits;
use services::Services;
use stream_waits::StreamWaits;
use wait_queue::WaitQueue;

pub(in crate::exchange) use endpoint_waits::must_wait;
pub(in crate::exchange) use wait_queue::QueueFull;

use crate::caller::{Account, Caller, CallerKey, Role};
use crate::keys::CallKey;
use crate::policy::buffers::{Amounts, Buffers, CallCharge, ConnCharge, OverShare, Sharer};
use crate::route::RouteTable;
use crate::settings::WorkerOptions;

/// What the callers of one worker share.
#[derive(Debug)]
pub(in crate::exchange) struct Admission {
    buffers: Buffers,
    services: Services,
    /// Calls that wait for the first table.
    for_table: WaitQueue,
    /// Calls that wait for the endpoints of their service.
    for_endpoints: EndpointWaits,
    for_streams: StreamWaits,
    /// Length of each queue: of the one for the table, and of those of each service.
    queue_bound: usize,
    /// Connections save memory. See [`Admission::switch_low_memory`].
    low_memory: bool,
}

/// As what a caller's connection and a service share the buffers: (connection, service).
///
/// A connection of the outbound listener is one caller. An inbound connection is a link, which carries the calls of many
/// callers to many services. So on outbound the caller is the user and the service is the group; on inbound it is the
/// other way round, so that a slow reader of one service does not make the link's other services fail.
fn sharers(caller: &Caller) -> (Sharer, Sharer) {
    match caller.role {
        Role::Outbound => (Sharer::User, Sharer::Group),
        Role::Inbound => (Sharer::Group, Sharer::User),
    }
}

impl Admission {
    /// `workers`: their number on this node, which share the retry budgets.
    pub(in crate::exchange) fn new(options: &WorkerOptions, workers: usize) -> Self {
        Self {
            buffers: Buffers::new(options.buffered_bytes),
            services: Services::new(workers),
            for_table: WaitQueue::default(),
            for_endpoints: EndpointWaits::default(),
            for_streams: StreamWaits::default(),
            queue_bound: options.pending_calls,
            low_memory: false,
        }
    }

    // ---- the step

    /// Whether a call with a route may continue: its caller's connection and its service are within their shares of the
    /// buffers. It has no service if the proxy answers it itself, or if its service is not known yet.
    #[inline]
    pub(in crate::exchange) fn admit(
        &self,
        caller: &Caller,
        of_caller: &ConnCharge,
        service: Option<&str>,
    ) -> Result<(), OverShare> {
        match self.over_share(caller, of_caller, service) {
            Some(over) => Err(over),
            None => Ok(()),
        }
    }

    // ---- buffers

    /// Up to half of the limit nobody can exceed a share.
    #[inline]
    pub(in crate::exchange) fn is_far_from_full(&self) -> bool {
        self.buffers.is_far_from_full()
    }

    /// How long a receiver may take almost nothing now, if at most `most`; unlimited while there is room.
    pub(in crate::exchange) fn stall_limit(&self, most: Duration) -> Option<Duration> {
        self.buffers.stall_limit(most)
    }

    pub(in crate::exchange) fn buffered_bytes(&self) -> usize {
        self.buffers.total()
    }

    /// Whether a caller's connection has buffered more than its share.
    pub(in crate::exchange) fn over_caller(
        &self,
        caller: &Caller,
        of_caller: &ConnCharge,
    ) -> Option<OverShare> {
        let (as_a, _) = sharers(caller);
        self.buffers.over_caller(of_caller, as_a)
    }

    /// Whether the caller or the service of a call has buffered more than its share.
    #[inline]
    pub(in crate::exchange) fn over_share(
        &self,
        caller: &Caller,
        of_caller: &ConnCharge,
        service: Option<&str>,
    ) -> Option<OverShare> {
        match self.is_far_from_full() {
            true => None,
            false => self.over_share_when_full(caller, of_caller, service),
        }
    }

    #[cold]
    fn over_share_when_full(
        &self,
        caller: &Caller,
        of_caller: &ConnCharge,
        service: Option<&str>,
    ) -> Option<OverShare> {
        let (_, as_a) = sharers(caller);
        let of_service = || self.services.buffered(service?);
        self.over_caller(caller, of_caller)
            .or_else(|| self.buffers.over_service(of_service()?, as_a))
    }

    /// Charges a new call for its request's headers. Its service is charged once it is known.
    pub(in crate::exchange) fn charge_new(
        &mut self,
        caller: &mut ConnCharge,
        kept: usize,
    ) -> CallCharge {
        self.buffers.charge_new(caller, kept)
    }

    /// Updates the charges of a call, its caller and its service to what the call has buffered now. Calls `caller` only
    /// if the caller's part has changed.
    #[inline]
    pub(in crate::exchange) fn charge<'c>(
        &mut self,
        call: &mut CallCharge,
        buffered: Amounts,
        caller: impl FnOnce() -> Option<&'c mut ConnCharge>,
        service: Option<&Arc<str>>,
        now: Instant,
    ) {
        if let Some(bytes) = self.buffers.charge(call, buffered, caller) {
            self.charge_service(call, service, bytes, now);
        }
    }

    #[cold]
    fn charge_service(
        &mut self,
        call: &mut CallCharge,
        service: Option<&Arc<str>>,
        bytes: usize,
        now: Instant,
    ) {
        let new = service.map(|name| (Arc::clone(name), bytes));
        let old = call.set_service(new);
        self.discharge_service(old);
        if let Some(name) = service {
            self.services.charge(name, bytes, now);
        }
    }

    fn discharge_service(&mut self, charged: Option<(Arc<str>, usize)>) {
        if let Some((name, bytes)) = charged {
            self.services.discharge(&name, bytes);
        }
    }

    /// A call has ended: removes its charges.
    pub(in crate::exchange) fn discharge(
        &mut self,
        call: &mut CallCharge,
        caller: Option<&mut ConnCharge>,
    ) {
        let of_service = self.buffers.end(call, caller);
        self.discharge_service(of_service);
    }

    /// Charges a connection for what is queued in it now; false if that has not changed.
    pub(in crate::exchange) fn charge_conn(&mut self, conn: &mut ConnCharge, bytes: usize) -> bool {
        self.buffers.charge_conn(conn, bytes)
    }

    /// A connection has been closed: removes its charge.
    pub(in crate::exchange) fn discharge_conn(&mut self, conn: &ConnCharge) {
        self.buffers.forget_conn(conn);
    }

    /// Whether connections save memory: windows do not grow, and less output is kept for peers that do not read.
    pub(in crate::exchange) fn is_low_memory(&self) -> bool {
        self.low_memory
    }

    /// Connections save memory once more than half of the buffers is in use, until at most a quarter is. Returns the new
    /// state if it has changed.
    pub(in crate::exchange) fn switch_low_memory(&mut self) -> Option<bool> {
        let low_memory = match self.low_memory {
            false => !self.buffers.is_far_from_full(),
            true => !self.buffers.is_nearly_empty(),
        };
        let changed = std::mem::replace(&mut self.low_memory, low_memory) != low_memory;
        changed.then_some(low_memory)
    }

    // ---- services

    /// A call to a service begins. Returns the number under which it is charged.
    pub(in crate::exchange) fn begin_call(&mut self, service: &Arc<str>, now: Instant) -> u32 {
        self.services.begin_call(service, now)
    }

    /// Takes one retry from the budget of a service; false if it is used up.
    pub(in crate::exchange) fn take_retry(&mut self, service: &Arc<str>, now: Instant) -> bool {
        self.services.take_retry(service, now)
    }

    /// Removes the state of services that are not known any more.
    pub(in crate::exchange) fn retain_services(&mut self, known: impl Fn(&str) -> bool) {
        self.services.retain(known);
    }

    // ---- waiting calls

    /// Number of calls that wait for a table or for endpoints.
    pub(in crate::exchange) fn waiting_for_state(&self) -> usize {
        self.for_table.len() + self.for_endpoints.len()
    }

    /// Number of calls that wait for a stream.
    pub(in crate::exchange) fn waiting_for_streams(&self) -> usize {
        self.for_streams.len()
    }

    /// A call waits for the first table.
    pub(in crate::exchange) fn wait_for_table(
        &mut self,
        call: CallKey,
        caller: CallerKey,
    ) -> Result<(), QueueFull> {
        self.for_table.push(call, caller, self.queue_bound)
    }

    /// A call waits for the endpoints of a service.
    pub(in crate::exchange) fn wait_for_endpoints(
        &mut self,
        service: &Arc<str>,
        call: CallKey,
        caller: CallerKey,
    ) -> Result<(), QueueFull> {
        let bound = self.queue_bound;
        self.for_endpoints.push(service, call, caller, bound)
    }

    /// Whether one more call of this account may wait for a stream.
    pub(in crate::exchange) fn may_wait_for_stream(
        &self,
        account: Account,
    ) -> Result<(), QueueFull> {
        self.for_streams.may_wait(account, self.queue_bound)
    }

    /// A call waits for a stream, even if it is beyond the limit: it may have lost its stream again.
    pub(in crate::exchange) fn wait_for_stream(&mut self, account: Account) {
        self.for_streams.add(account);
    }

    pub(in crate::exchange) fn stop_wait_for_table(&mut self, call: CallKey) {
        self.for_table.remove(call);
    }

    pub(in crate::exchange) fn stop_wait_for_endpoints(&mut self, service: &str, call: CallKey) {
        self.for_endpoints.remove(service, call);
    }

    pub(in crate::exchange) fn stop_wait_for_stream(&mut self, account: Account) {
        self.for_streams.remove(account);
    }

    /// Removes and returns the calls that waited for a table.
    pub(in crate::exchange) fn take_waits_for_table(&mut self) -> Vec<CallKey> {
        self.for_table.take()
    }

    pub(in crate::exchange) fn has_waits_for_endpoints(&self) -> bool {
        self.for_endpoints.len() > 0
    }

    /// Removes and returns the calls that need not wait for endpoints any longer by this table.
    pub(in crate::exchange) fn take_waits_for_endpoints(
        &mut self,
        table: &RouteTable,
    ) -> Vec<CallKey> {
        self.for_endpoints.take(table)
    }

    /// The services for whose endpoints calls wait.
    pub(in crate::exchange) fn services_waited_for(&self) -> Vec<Arc<str>> {
        self.for_endpoints.services()
    }

    #[cfg(test)]
    pub(in crate::exchange) fn half_fill_buffers(&mut self) {
        self.buffers.fill_half();
    }
}
