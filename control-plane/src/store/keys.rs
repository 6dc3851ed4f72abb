//! The key schema of the store: one function per kind of key, and the way back. The only place that formats or
//! takes apart a key; the values are the messages of heddle/store/v1/records.proto. No engine and no view comes
//! in here.

use crate::registry::{InstanceKey, ServiceName};

pub const NODES: &str = "node/";
pub const ALIVE: &str = "alive/";
pub const INSTANCES: &str = "instance/";
pub const SERVICES: &str = "service/";
pub const SCHEMAS: &str = "schema/";

/// `NodeRecord`: who the node is, and its epoch. Stays when the node goes.
#[must_use]
pub fn node(node: &str) -> String {
    format!("{NODES}{node}")
}

/// `AliveRecord`: the only key on the node's lease.
#[must_use]
pub fn alive(node: &str) -> String {
    format!("{ALIVE}{node}")
}

/// `InstanceRecord`.
#[must_use]
pub fn instance(key: &InstanceKey) -> String {
    format!("{INSTANCES}{}/{}/{}", key.node, key.service, key.id)
}

/// All instances of one node.
#[must_use]
pub fn instances_of(node: &str) -> String {
    format!("{INSTANCES}{node}/")
}

/// `ServiceRecord`: what is known of a service, with or without instances.
#[must_use]
pub fn service(service: &ServiceName) -> String {
    format!("{SERVICES}{service}")
}

/// `SchemaRecord`, by the hex SHA-256 of its content.
#[must_use]
pub fn schema(sha256: &str) -> String {
    format!("{SCHEMAS}{sha256}")
}

/// A key taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    Node(&'a str),
    Alive(&'a str),
    Instance(InstanceKey),
    Service(ServiceName),
    Schema(&'a str),
}

/// What a key names; none for keys of another kind (of a newer version, say).
#[must_use]
pub fn parse(key: &str) -> Option<Key<'_>> {
    if let Some(rest) = key.strip_prefix(INSTANCES) {
        let mut parts = rest.splitn(3, '/');
        let (node, service, id) = (parts.next()?, parts.next()?, parts.next()?);
        let service = ServiceName::parse(service)?;
        return Some(Key::Instance(InstanceKey {
            node: node.into(),
            service,
            id: id.into(),
        }));
    }
    if let Some(service) = key.strip_prefix(SERVICES) {
        return ServiceName::parse(service).map(Key::Service);
    }
    if let Some(node) = key.strip_prefix(NODES) {
        return Some(Key::Node(node));
    }
    if let Some(node) = key.strip_prefix(ALIVE) {
        return Some(Key::Alive(node));
    }
    key.strip_prefix(SCHEMAS).map(Key::Schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_formatted_and_found_again() {
        let key = InstanceKey {
            node: "a".into(),
            service: ServiceName::parse("users.shop").unwrap(),
            id: "u-1".into(),
        };
        let check = |text: String, want: &str, parsed: Key<'_>| {
            assert_eq!(text, want);
            assert_eq!(parse(want), Some(parsed));
        };
        check(node("a"), "node/a", Key::Node("a"));
        check(alive("a"), "alive/a", Key::Alive("a"));
        check(
            service(&key.service),
            "service/users.shop",
            Key::Service(key.service.clone()),
        );
        check(schema("00ff"), "schema/00ff", Key::Schema("00ff"));
        check(
            instance(&key),
            "instance/a/users.shop/u-1",
            Key::Instance(key.clone()),
        );
        assert!(instance(&key).starts_with(&instances_of("a")));
        assert!(!instance(&key).starts_with(&instances_of("aa")));
        assert_eq!(parse("instance/a/users"), None);
        assert_eq!(parse("config/x"), None);
    }
}
