//! The start of a call: its headers are read, checked and cleaned, then it is routed and admitted. Takes request
//! headers; the call then begins its first attempt, waits for a table or endpoints, or fails with a reason.

use std::sync::Arc;

use heddle_h2::Fields;
use heddle_proto::Reason;

use super::caller_stream::{CallerStream, CallerStreamId};
use super::deadline::{self, GRPC_TIMEOUT};
use super::headers::{self, CALL, TO};
use super::owner::Exchange;
use super::queued::Queued;
use super::state::{Call, CallId, Downstream, Phase, ResponseProgress};
use crate::balance::passive::End;
use crate::caller::{Account, CallerKey, Role};
use crate::connection::Conn;
use crate::failure::{Failure, Fault};
use crate::keys::{CallKey, ConnKey};
use crate::policy::buffers::CallCharge;
use crate::route::authority::{self, explain_ambiguous, explain_no_route, is_socket_path};
use crate::route::instance::{self, Inbound};
use crate::route::{Decision, Protocol, Route, RouteTable, Service};
use crate::timers::Timer;

impl Exchange {
    /// Creates the call and moves its headers into it.
    pub(super) fn new_call(
        &mut self,
        conn: ConnKey,
        stream: CallerStreamId,
        end: bool,
        fields: &mut Fields,
    ) -> Option<CallKey> {
        let found = self.conns.get_mut(conn)?;
        let role = found.role()?;
        let (mut request, replay) = self.calls.take_buffers();
        std::mem::swap(&mut request, fields);
        let given = match role {
            Role::Inbound => request.get(CALL).and_then(CallId::parse),
            Role::Outbound => None,
        };
        let id = given.unwrap_or_else(|| CallId::New(rand::Rng::random(&mut self.rng)));
        let grpc = headers::is_grpc(request.get(b"content-type"));
        let (now, kept) = (self.now, request.held_bytes());
        let policy = self.options.policy();
        let slot = found.calls().len();
        let key = self.calls.insert_with(|| Call {
            role,
            phase: Phase::Backoff,
            down: Downstream { conn, stream, slot },
            up: None,
            grpc,
            id,
            request,
            replay,
            request_trailers: None,
            request_ended: end,
            received: 0,
            credited: 0,
            sent: ResponseProgress::Nothing,
            service: None,
            rule: None,
            policy,
            account: Account {
                service: 0,
                caller: conn.into(),
            },
            endpoint: None,
            wanted: None,
            attempts: 0,
            seen: 0,
            charged: false,
            tried: Vec::new(),
            repeats: 0,
            last_failure: None,
            down_queued: Queued::new(now),
            up_queued: Queued::new(now),
            charge: CallCharge::default(),
            started: now,
            deadline: None,
            deadline_timer: None,
            wait_timer: None,
            waits_since: None,
            status: None,
            http_status: 0,
            reason: None,
        })?;
        if let Some(call) = self.calls.get_mut(key) {
            let buffers = &mut self.admission.buffers;
            call.charge = buffers.charge_new(found.buffered_mut(), kept);
        }
        found.begin_call(key);
        CallerStream::on(found, stream).begin(key);
        Some(key)
    }

    /// Reads `grpc-timeout`. If it is invalid or zero, answers the call and returns false.
    pub(super) fn start_deadline(&mut self, key: CallKey) -> bool {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key).filter(|call| call.grpc) else {
            return true;
        };
        let Some(value) = call.request.get(GRPC_TIMEOUT) else {
            return true;
        };
        let Some(timeout) = deadline::parse(value) else {
            let value = String::from_utf8_lossy(value);
            let text = format!(
                "grpc-timeout {value:?} is not one to eight digits and a unit of H, M, S, m, u, n"
            );
            self.fail(
                key,
                &Failure::new(Reason::ProtocolError, text).by(Fault::Caller),
            );
            return false;
        };
        if timeout.is_zero() {
            // Sent by clients whose deadline passed meanwhile. A timer could fire too late: an answer could arrive
            // before its next tick.
            let text = "the caller's deadline had passed when the call arrived";
            self.fail(key, &Failure::new(Reason::DeadlineExceeded, text));
            return false;
        }
        // A deadline beyond the clock's range counts as none.
        call.deadline = now.checked_add(timeout);
        if let Some(at) = call.deadline {
            call.deadline_timer = Some(self.timers.set(at, Timer::Deadline(key)));
        }
        true
    }

    /// Finds the service (outbound) or the instance (inbound), then admits the call and begins it.
    pub(super) fn route_call(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        match call.role {
            Role::Outbound => self.route_outbound(key),
            Role::Inbound => self.route_inbound(key),
        }
    }

    fn route_outbound(&mut self, key: CallKey) {
        let (table, policy) = (self.table(), self.options().policy());
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let Some(caller) = self.conns.get(call.down.conn).and_then(Conn::caller) else {
            return;
        };
        headers::strip(&mut call.request);
        headers::mend_authority(&mut call.request);
        // An older table may have set a service for which the call waited.
        call.service = None;
        // A request may name its authority in Host alone (RFC 9113 §8.3.1).
        let authority = call
            .request
            .authority()
            .or_else(|| call.request.get(b"host"));
        let path = call.request.path().unwrap_or_default();
        let decision = authority::route(&table, caller, authority, path, policy);
        if matches!(decision, Decision::NoRoute) && authority.is_some_and(is_socket_path) {
            // Servers that parse the authority strictly (the http crate) would refuse it as sent.
            call.request.set(b":authority", b"localhost");
            return self.route_outbound(key);
        }
        let failure = match decision {
            Decision::Route(route) if route.service.protocol == Protocol::Grpc => {
                return self.begin_outbound(key, route);
            }
            Decision::Route(route) => unsupported_protocol(&route.service),
            Decision::Internal => {
                if self.admit_call(key) {
                    self.attempt_internal(key);
                }
                return;
            }
            _ if !table.is_ready() => {
                if self.admit_call(key) {
                    self.await_table(key);
                }
                return;
            }
            Decision::Ambiguous(services) if services.iter().any(|s| !s.endpoints_known) => {
                if self.admit_call(key) {
                    self.await_claims(key, services);
                }
                return;
            }
            Decision::Ambiguous(services) => {
                Failure::new(Reason::AmbiguousRoute, explain_ambiguous(services, path))
            }
            Decision::NoRoute => Failure::new(
                Reason::NoRoute,
                explain_no_route(&table, caller, authority, path),
            ),
        };
        self.fail(key, &failure);
    }

    /// An outbound call has a route: it is admitted, and begins once the endpoints of its service are known.
    fn begin_outbound(&mut self, key: CallKey, route: Route) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let service = Arc::clone(&route.service);
        call.set_route(route);
        if self.admit_call(key) && (service.endpoints_known || self.has_endpoints(key, &service)) {
            self.begin_attempts(key);
        }
    }

    fn await_table(&mut self, key: CallKey) {
        let bound = self.options().pending_calls;
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let places = &mut self.admission.for_table;
        if let Err(no_place) = places.push(key, call.account.caller, bound) {
            self.count(no_place.counter());
            let node = &self.options().node;
            let text = format!(
                "{} for the first state of the proxy on node {node}",
                no_place.text()
            );
            return self.fail(key, &Failure::new(Reason::Overloaded, text));
        }
        call.phase = Phase::Table;
        self.start_wait(key);
    }

    fn route_inbound(&mut self, key: CallKey) {
        let (table, policy) = (self.table(), self.options().policy());
        let mut text = std::mem::take(&mut self.text);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        text.clear();
        text.extend_from_slice(call.request.get(TO).unwrap_or_default());
        call.account.caller =
            CallerKey::behind(call.down.conn, headers::caller_number(&call.request));
        headers::strip(&mut call.request);
        let failure = match instance::route(&table, &text, policy) {
            Inbound::Route(route, wanted) => {
                call.wanted = wanted;
                call.set_route(route);
                None
            }
            Inbound::UnknownService { namespace, service } => {
                Some(not_on_this_node(&table, service, namespace))
            }
            Inbound::NotNamed => Some(not_from_a_proxy(table.node())),
        };
        self.text = text;
        match failure {
            Some(failure) => self.fail(key, &failure),
            None if self.admit_call(key) => self.begin_attempts(key),
            None => {}
        }
    }

    /// Marks a failure that happened before the application can have seen the call, so that the caller's proxy may try
    /// another instance.
    pub(super) fn mark_unprocessed(&self, key: CallKey, failure: Failure) -> Failure {
        match self.calls.get(key).map(|call| call.role) {
            Some(Role::Inbound) => failure.unprocessed(),
            _ => failure,
        }
    }

    /// The wait of a call (for a table, for endpoints, for a stream or before a retry) is over.
    pub(super) fn on_call_wait(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.wait_timer = None;
        match call.phase {
            Phase::Table => {
                let node = &self.options().node;
                let text = format!(
                    "the proxy on node {node} has not received any state from its control plane yet"
                );
                self.fail(key, &Failure::new(Reason::NotReady, text));
            }
            Phase::Endpoints => {
                let failure = self.no_endpoints_yet(key);
                self.fail(key, &failure);
            }
            Phase::Backoff => {
                self.refresh_service(key);
                self.begin_attempt(key);
            }
            Phase::Pending(pool) => self.on_pending_timeout(key, pool),
            _ => {}
        }
    }

    pub(super) fn on_call_deadline(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.deadline_timer = None;
        let waited = match call.phase {
            Phase::Finishing => return,
            Phase::Table => "before the proxy had any state".to_owned(),
            Phase::Endpoints => format!(
                "while it waited for the endpoints of {} from the control plane",
                call.target_name()
            ),
            Phase::Pending(pool) => {
                let (_, held) = self.what_holds(key, pool);
                format!("while it waited {held}")
            }
            Phase::Backoff => format!(
                "while it waited to be tried again: {} attempts did not reach {}",
                call.attempts,
                call.target_name()
            ),
            Phase::Attempting | Phase::Committed => format!("at {}", call.target_name()),
        };
        // Has an effect only if an attempt was in progress.
        self.unanswered(key, End::Deadline);
        let text = format!("the caller's deadline passed {waited}");
        self.fail(key, &Failure::new(Reason::DeadlineExceeded, text));
    }
}

fn unsupported_protocol(service: &Service) -> Failure {
    let protocol = format!("{:?}", service.protocol).to_lowercase();
    let text = format!(
        "{} speaks {protocol}, and this proxy carries gRPC and HTTP/2 only: call it directly",
        service.name
    );
    Failure::new(Reason::NoRoute, text)
}

/// Fails at once, even while this node waits for its first state: the caller's proxy can try other nodes.
fn not_on_this_node(table: &RouteTable, service: &str, namespace: &str) -> Failure {
    let node = table.node();
    match table.is_ready() {
        true => {
            let text = format!("node {node} has no instance of {service}.{namespace}");
            Failure::new(Reason::NoEndpoints, text).unprocessed()
        }
        false => {
            let text = format!("node {node} has no state yet");
            Failure::new(Reason::NotReady, text).unprocessed()
        }
    }
}

fn not_from_a_proxy(node: &str) -> Failure {
    let text = format!(
        "this is the inbound listener of node {node}: it takes calls from other proxies, which \
         set heddle-to; call the outbound listener of your own node"
    );
    Failure::new(Reason::NoRoute, text).by(Fault::Caller)
}

pub(super) fn too_large_headers(what: &str) -> Failure {
    let text = format!("the {what} exceeds 32 KiB or 256 fields (decoded): send less metadata");
    Failure::new(Reason::RequestTooLarge, text).by(Fault::CallerHeaders)
}
