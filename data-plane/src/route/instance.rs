//! `heddle-to` → the service and the instance that the caller's proxy chose (inbound). Takes the header's value and the
//! table, gives a route. Services that are not on this node are not looked up elsewhere.

use std::sync::Arc;

use super::decision::{Route, Rule};
use super::table::RouteTable;
use crate::policy::CallPolicy;

/// Result of routing an inbound call.
#[derive(Clone, Debug)]
pub enum Inbound<'v> {
    /// To this service, and to the instance with this uid if it is on this node.
    Route(Route, Option<u64>),
    /// This node does not know the service.
    UnknownService {
        /// As in the header.
        namespace: &'v str,
        /// As in the header.
        service: &'v str,
    },
    /// The header is missing or invalid: the caller is not a proxy.
    NotNamed,
}

/// Finds the service of a call whose `heddle-to` header has this value.
#[must_use]
pub fn route<'v>(table: &RouteTable, to: &'v [u8], policy: CallPolicy) -> Inbound<'v> {
    let Some((namespace, service, instance)) = parse(to) else {
        return Inbound::NotNamed;
    };
    let Some(found) = table.service_of(service, namespace) else {
        return Inbound::UnknownService { namespace, service };
    };
    let route = Route {
        service: Arc::clone(found),
        rule: Rule::Instance,
        policy,
    };
    Inbound::Route(route, found.local_uid(instance))
}

/// `<namespace>/<service>/<instance>` → its parts.
fn parse(value: &[u8]) -> Option<(&str, &str, &str)> {
    let mut parts = std::str::from_utf8(value).ok()?.splitn(3, '/');
    match (parts.next()?, parts.next()?, parts.next()?) {
        ("", ..) | (_, "", _) | (_, _, "") => None,
        parts => Some(parts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::endpoints::{Endpoint, EndpointSet};
    use crate::route::Service;

    #[test]
    fn three_parts_name_an_instance() {
        assert_eq!(parse(b"default/users/u1"), Some(("default", "users", "u1")));
        assert_eq!(
            parse(b"default/users/a/b"),
            Some(("default", "users", "a/b"))
        );
        for bad in ["", "a/b", "a//c", "/b/c", "a/b/"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn an_instance_that_is_not_here_leaves_the_service_to_choose_from() {
        let mut builder = RouteTable::builder("a", &[]);
        let mut users = Service::new("users", "default");
        users.endpoints = Arc::new(EndpointSet {
            endpoints: vec![Arc::new(Endpoint::of_test(7))],
        });
        builder.service(users);
        let table = builder.build();
        let policy = CallPolicy::of_test();
        for (to, expect) in [("default/users/e7", Some(7)), ("default/users/gone", None)] {
            let Inbound::Route(route, uid) = route(&table, to.as_bytes(), policy) else {
                panic!("{to} has no route");
            };
            assert_eq!((&*route.service.name, uid), ("users.default", expect));
            assert_eq!((route.rule, route.policy), (Rule::Instance, policy));
        }
        assert!(matches!(
            route(&table, b"shop/users/e7", policy),
            Inbound::UnknownService {
                namespace: "shop",
                service: "users"
            }
        ));
        assert!(matches!(route(&table, b"", policy), Inbound::NotNamed));
    }
}
