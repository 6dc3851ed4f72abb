//! Routing and admission of a call: finds its service (outbound) or instance (inbound), then admits it, then begins its
//! first attempt or makes it wait for a table or endpoints. The rules of routing are in `route`, those of admission in
//! `admission`.

use std::sync::Arc;

use heddle_proto::Reason;

use crate::caller::{Caller, CallerKey, Role};
use crate::exchange::call::Call;
use crate::exchange::headers::{self, TO};
use crate::exchange::owner::Exchange;
use crate::failure::{Failure, Fault};
use crate::keys::CallKey;
use crate::policy::CallPolicy;
use crate::policy::buffers::OverShare;
use crate::route::authority::{self, explain_ambiguous, explain_no_route, is_socket_path};
use crate::route::instance::{self, Inbound};
use crate::route::{Decision, Protocol, RouteTable, Service};

/// What a call with a route does once it is admitted.
enum Next<'t> {
    /// Its first attempt.
    Attempt,
    /// The control side of this proxy answers it.
    Internal,
    /// It waits for the first table.
    Table,
    /// The endpoints of its service are not known yet.
    Endpoints(Arc<Service>),
    /// Several services claim its path, and the endpoints of some are not known yet.
    Claims(&'t [Arc<Service>]),
}

impl Exchange {
    /// Routes a call, admits it, and begins its first attempt or makes it wait for what is missing.
    pub(super) fn route_call(&mut self, key: CallKey) {
        let (table, policy) = (self.table(), self.options.policy());
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let Some(conn) = self.conns.get(call.caller()) else {
            return;
        };
        let Some(caller) = conn.caller() else {
            return;
        };
        let routed = match call.role() {
            Role::Outbound => route_outbound(call, caller, &table, policy),
            Role::Inbound => route_inbound(call, &table, policy, &mut self.text),
        };
        let next = match routed {
            Ok(next) => next,
            Err(failure) => return self.fail(key, &failure),
        };
        // Every call is admitted here, and nowhere else.
        let admitted = self
            .admission
            .admit(caller, conn.buffered(), call.route.service_name());
        if let Err(over) = admitted {
            return self.refuse_over_share(key, over);
        }
        match next {
            Next::Attempt => self.begin_attempts(key),
            Next::Internal => self.attempt_internal(key),
            Next::Table => self.await_table(key),
            Next::Endpoints(service) if self.has_endpoints(key, &service) => {
                self.begin_attempts(key);
            }
            Next::Endpoints(_) => {}
            Next::Claims(services) => self.await_claims(key, services),
        }
    }

    #[cold]
    fn refuse_over_share(&mut self, key: CallKey, over: OverShare) {
        let failure = self.mark_unprocessed(key, self.overloaded(key, over));
        self.fail(key, &failure);
    }
}

/// Finds the service of a call of this node's services.
fn route_outbound<'t>(
    call: &mut Call,
    caller: &Caller,
    table: &'t RouteTable,
    policy: CallPolicy,
) -> Result<Next<'t>, Failure> {
    let request = call.request.fields_mut();
    headers::strip(request);
    headers::normalize_authority(request);
    // An older table may have set a service for which the call waited.
    call.route.clear();
    let mut decision = decide(call, caller, table, policy);
    if matches!(decision, Decision::NoRoute) && call.request.authority().is_some_and(is_socket_path)
    {
        // Servers that parse the authority strictly (the http crate) would refuse it as sent.
        headers::replace_authority(call.request.fields_mut(), b"localhost");
        decision = decide(call, caller, table, policy);
    }
    match decision {
        Decision::Route(route) if route.service.protocol == Protocol::Grpc => {
            let next = match route.service.endpoints_known {
                true => Next::Attempt,
                false => Next::Endpoints(Arc::clone(&route.service)),
            };
            call.route.set(route, None);
            Ok(next)
        }
        Decision::Route(route) => Err(unsupported_protocol(&route.service)),
        Decision::Internal => Ok(Next::Internal),
        _ if !table.is_ready() => Ok(Next::Table),
        Decision::Ambiguous(services) if services.iter().any(|s| !s.endpoints_known) => {
            Ok(Next::Claims(services))
        }
        Decision::Ambiguous(services) => {
            let text = explain_ambiguous(services, call.request.path());
            Err(Failure::new(Reason::AmbiguousRoute, text))
        }
        Decision::NoRoute => {
            let (authority, path) = (call.request.authority(), call.request.path());
            let text = explain_no_route(table, caller, authority, path);
            Err(Failure::new(Reason::NoRoute, text))
        }
    }
}

#[inline]
fn decide<'t>(
    call: &Call,
    caller: &Caller,
    table: &'t RouteTable,
    policy: CallPolicy,
) -> Decision<'t> {
    let (authority, path) = (call.request.authority(), call.request.path());
    authority::route(table, caller, authority, path, policy)
}

/// Finds the instance of a call from another proxy. `text` is lent.
fn route_inbound<'t>(
    call: &mut Call,
    table: &RouteTable,
    policy: CallPolicy,
    text: &mut Vec<u8>,
) -> Result<Next<'t>, Failure> {
    text.clear();
    let request = call.request.fields_mut();
    text.extend_from_slice(request.get(TO).unwrap_or_default());
    let number = headers::caller_number(request);
    headers::strip(request);
    call.set_caller(CallerKey::behind(call.caller(), number));
    match instance::route(table, text, policy) {
        Inbound::Route(route, wanted) => {
            call.route.set(route, wanted);
            Ok(Next::Attempt)
        }
        Inbound::UnknownService { namespace, service } => {
            Err(not_on_this_node(table, service, namespace))
        }
        Inbound::NotNamed => Err(not_from_a_proxy(table.node())),
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
