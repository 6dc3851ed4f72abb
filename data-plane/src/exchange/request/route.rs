//! Routing of a call: finds its service (outbound) or instance (inbound), then admits it and begins its first attempt, or
//! makes it wait for a table or endpoints. The rules are in `route`.

use std::sync::Arc;

use heddle_proto::Reason;

use crate::caller::{CallerKey, Role};
use crate::connection::Conn;
use crate::exchange::headers::{self, TO};
use crate::exchange::owner::Exchange;
use crate::failure::{Failure, Fault};
use crate::keys::CallKey;
use crate::route::authority::{self, explain_ambiguous, explain_no_route, is_socket_path};
use crate::route::instance::{self, Inbound};
use crate::route::{Decision, Protocol, Route, RouteTable, Service};

impl Exchange {
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
