//! Authority and path → the service of a call (outbound). Takes the table, the caller and both values as bytes; gives a
//! decision.
//! The text of a failure is made only if there is one. A mistyped name never falls back to the path.

use std::net::Ipv6Addr;
use std::sync::Arc;

use super::decision::{Decision, Route, Rule};
use super::nearest::nearest;
use super::table::{Claim, RouteTable, Service};
use crate::caller::Caller;
use crate::policy::CallPolicy;

/// Finds the service of a call. `policy` applies unless a rule has another one.
#[must_use]
pub(crate) fn route<'t>(
    table: &'t RouteTable,
    caller: &Caller,
    authority: Option<&[u8]>,
    path: &[u8],
    policy: CallPolicy,
) -> Decision<'t> {
    let namespace = caller.namespace();
    let to = |service: &Arc<Service>, rule| {
        Decision::Route(Route {
            service: Arc::clone(service),
            rule,
            policy,
        })
    };
    let host = host_of(authority.unwrap_or_default());
    let mut name = Name::default();
    if is_literal(host) || name.own(table, host) {
        if path.starts_with(b"/grpc.health.") || path.starts_with(b"/grpc.reflection.") {
            return Decision::Internal;
        }
        return match by_path(table, path, namespace) {
            Claim::One(service) => to(service, Rule::Path),
            Claim::Many(services) => Decision::Ambiguous(services),
            Claim::None => Decision::NoRoute,
        };
    }
    match name
        .full(host, namespace)
        .and_then(|full| table.service(full))
    {
        Some(service) => to(service, Rule::Authority),
        None => Decision::NoRoute,
    }
}

fn by_path<'t>(table: &'t RouteTable, path: &[u8], namespace: &str) -> Claim<'t> {
    match proto_service_of(path) {
        Some(proto_service) => table.claim(proto_service, namespace),
        None => Claim::None,
    }
}

/// `/package.Service/Method` → `package.Service`. As strict as [`split_path`], and faster for the usual paths.
fn proto_service_of(path: &[u8]) -> Option<&[u8]> {
    if !path.is_ascii() {
        return split_path(path).map(|(proto_service, _)| proto_service.as_bytes());
    }
    let path = path.strip_prefix(b"/")?;
    let end = path.iter().position(|byte| *byte == b'/')?;
    let has_method = end + 1 < path.len();
    path.get(..end)
        .filter(|service| !service.is_empty() && has_method)
}

/// `/package.Service/Method` → its two parts.
#[must_use]
pub fn split_path(path: &[u8]) -> Option<(&str, &str)> {
    let path = std::str::from_utf8(path).ok()?.strip_prefix('/')?;
    path.split_once('/')
        .filter(|(service, method)| !service.is_empty() && !method.is_empty())
}

/// The message of a `NoRoute` decision.
#[must_use]
pub(crate) fn explain_no_route(
    table: &RouteTable,
    caller: &Caller,
    authority: Option<&[u8]>,
    path: &[u8],
) -> String {
    let namespace = caller.namespace();
    let host = host_of(authority.unwrap_or_default());
    let node = table.node();
    if is_literal(host) || Name::default().own(table, host) {
        let Some((proto_service, _)) = split_path(path) else {
            let path = String::from_utf8_lossy(path);
            return format!(
                "node {node} cannot route path {path:?}: it is not /package.Service/Method, \
                and the authority names no service"
            );
        };
        let mut unclaimed = table.unclaimed(proto_service).map(|service| &*service.name);
        if let Some(first) = unclaimed.next() {
            let names: Vec<&str> = std::iter::once(first).chain(unclaimed).take(3).collect();
            return format!(
                "no service that node {node} knows claims the path of {proto_service}; it is implemented by {}: call it \
                 by its name, for example by the authority {first} (grpcurl -authority {first})",
                names.join(", ")
            );
        }
        let near = nearest(proto_service, table.proto_services(), 3);
        let none = table.proto_services().next().is_none();
        let hint = offer(
            &near,
            if none {
                "no proto service is known yet"
            } else {
                ""
            },
        );
        let unknown = unknown_protos(table);
        return format!(
            "node {node} knows no service that implements {proto_service}{hint}{unknown}"
        );
    }
    let host = String::from_utf8_lossy(host);
    let sent = String::from_utf8_lossy(authority.unwrap_or_default());
    let mut full = Name::default();
    let full = full.full(host.as_bytes(), namespace).unwrap_or(&sent);
    let mut near = nearest(full, table.services().map(|s| &*s.name), 3);
    for name in nearest(&host, table.services().map(|s| &*s.service), 3) {
        if near.len() < 3
            && !near
                .iter()
                .any(|known| known.split('.').next() == Some(name))
        {
            near.push(name);
        }
    }
    let hint = offer(&near, "");
    format!("node {node} knows no service {full}, which the authority {sent:?} names{hint}")
}

fn offer(near: &[&str], otherwise: &str) -> String {
    match (near.is_empty(), otherwise.is_empty()) {
        (false, _) => format!("; nearest: {}", near.join(", ")),
        (true, false) => format!("; {otherwise}"),
        (true, true) => String::new(),
    }
}

/// How many services with unknown proto services one message names, since one of them may be meant.
const MAX_UNKNOWN: usize = 3;
/// Longest reason given for each, in letters.
const MAX_UNKNOWN_REASON: usize = 100;

/// Names the services whose proto services are unknown, with the reason. They may implement anything.
fn unknown_protos(table: &RouteTable) -> String {
    let mut unknown = table
        .services()
        .filter(|service| service.protos.is_empty() && !service.protos_unknown.is_empty());
    let named: Vec<String> = unknown
        .by_ref()
        .take(MAX_UNKNOWN)
        .map(|service| {
            // "cause: remedy"; the remedy is the same for all of them.
            let cause = service
                .protos_unknown
                .split(": ")
                .next()
                .unwrap_or_default();
            let cause: String = cause.chars().take(MAX_UNKNOWN_REASON).collect();
            format!("{} ({cause})", service.name)
        })
        .collect();
    if named.is_empty() {
        return String::new();
    }
    let more = match unknown.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "; the proto services of these services are unknown: {}{more}; name them with `protos:` or --proto, or call the services by authority",
        named.join(", ")
    )
}

/// The message of an `Ambiguous` decision.
#[must_use]
pub fn explain_ambiguous(services: &[Arc<Service>], path: &[u8]) -> String {
    let proto_service = split_path(path).map_or("this proto service", |(service, _)| service);
    let names: Vec<&str> = services.iter().map(|s| &*s.name).collect();
    let first = names.first().copied().unwrap_or_default();
    let mut namespaces = services.iter().map(|s| &s.namespace);
    let of_one = namespaces
        .next()
        .is_some_and(|first| namespaces.all(|other| other == first));
    let why = if of_one {
        "there is no order among them, as the control plane is older than this proxy"
    } else {
        "no service of the caller's namespace does"
    };
    format!(
        "the path of {proto_service} is claimed by {}, and {why}: choose one by authority, for example {first} \
         (grpcurl -authority {first})",
        names.join(", ")
    )
}

/// The host of an authority, without the port and without the final dot of an absolute name.
fn host_of(authority: &[u8]) -> &[u8] {
    let end = match authority.first() {
        Some(b'[') => authority.iter().position(|b| *b == b']').map(|at| at + 1),
        _ => authority.iter().rposition(|b| *b == b':'),
    };
    let host = end
        .and_then(|end| authority.get(..end))
        .unwrap_or(authority);
    match host {
        [name @ .., b'.'] if !name.is_empty() => name,
        _ => host,
    }
}

/// The authority without the zone of its IPv6 address, if it has one: `[fe80::1%25eth0]:80` is `[fe80::1]:80`.
#[must_use]
pub fn without_zone(authority: &[u8]) -> Option<Vec<u8>> {
    // The cheapest check first: almost no authority is such an address.
    let percent = match authority {
        [b'[', ..] => authority.iter().position(|b| *b == b'%')?,
        _ => return None,
    };
    let end = authority.iter().position(|b| *b == b']')?;
    if !is_literal(host_of(authority)) {
        return None;
    }
    Some([authority.get(..percent)?, authority.get(end..)?].concat())
}

/// Whether this is the path of a Unix socket, as gRPC's C core sends it for a server that it dialled there: with `%2F`
/// for each slash, which no service name contains.
#[must_use]
pub fn is_socket_path(authority: &[u8]) -> bool {
    authority
        .windows(3)
        .any(|three| three.eq_ignore_ascii_case(b"%2F"))
}

/// IP literals (IPv6 also with a zone), `localhost`, and the empty host.
fn is_literal(host: &[u8]) -> bool {
    match host {
        [] => true,
        [b'[', v6 @ .., b']'] => is_v6(v6),
        [b'0'..=b'9', ..] => is_v4(host),
        _ => host.eq_ignore_ascii_case(b"localhost"),
    }
}

fn is_v6(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    let (address, zone) = text.split_once('%').unwrap_or((text, "any"));
    !zone.is_empty() && address.parse::<Ipv6Addr>().is_ok()
}

/// Four numbers up to 255 without leading zeros, as in the standard library, whose parser takes three times as long:
/// most calls that are routed by path have the proxy's address as authority.
fn is_v4(text: &[u8]) -> bool {
    let (mut dots, mut digits, mut number) = (0, 0, 0u16);
    for byte in text {
        match byte {
            b'0'..=b'9' if digits < 3 && (digits == 0 || number > 0) => {
                number = number * 10 + u16::from(byte - b'0');
                digits += 1;
            }
            b'.' if digits > 0 && number <= 255 => {
                dots += 1;
                (digits, number) = (0, 0);
            }
            _ => return false,
        }
    }
    dots == 3 && digits > 0 && number <= 255
}

/// Buffer for one full name in lower case, so that nothing is allocated: two DNS labels, a dot and `.mesh`.
pub(super) struct Name {
    letters: [u8; Self::MAX],
}

impl Default for Name {
    fn default() -> Self {
        Self {
            letters: [0; Self::MAX],
        }
    }
}

impl Name {
    const MAX: usize = 255;

    fn lower(&mut self, parts: &[&[u8]]) -> Option<&str> {
        let mut len = 0;
        for part in parts {
            self.letters
                .get_mut(len..len + part.len())?
                .copy_from_slice(part);
            len += part.len();
        }
        let letters = self.letters.get_mut(..len)?;
        letters.make_ascii_lowercase();
        std::str::from_utf8(letters).ok()
    }

    /// `users` and `shop` → `users.shop`.
    pub(super) fn join(&mut self, service: &[u8], namespace: &[u8]) -> Option<&str> {
        self.lower(&[service, b".", namespace])
    }

    fn own(&mut self, table: &RouteTable, host: &[u8]) -> bool {
        self.lower(&[host])
            .is_some_and(|host| table.is_own_name(host))
    }

    /// `users`, `users.shop` and `users.shop.mesh` → `users.shop`.
    fn full(&mut self, host: &[u8], namespace: &str) -> Option<&str> {
        let mut labels = host.split(|b| *b == b'.');
        match (labels.next()?, labels.next(), labels.next(), labels.next()) {
            (service, None, ..) => self.join(service, namespace.as_bytes()),
            (service, Some(namespace), None, _) => self.join(service, namespace),
            (service, Some(namespace), Some(mesh), None) if mesh.eq_ignore_ascii_case(b"mesh") => {
                self.join(service, namespace)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
