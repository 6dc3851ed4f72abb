//! The keys of the store: one function per kind of key, and a parser. Keys are formatted and parsed only here. The
//! values are the messages of heddle/store/v1/records.proto. This module must not depend on a store engine or a view.

use super::{InstanceKey, ServiceName};

pub const NODES: &str = "node/";
pub const ALIVE: &str = "alive/";
pub const INSTANCES: &str = "instance/";
pub const SERVICES: &str = "service/";
pub const SCHEMAS: &str = "schema/";
pub const MARKED_SCHEMAS: &str = "condemned/";
pub const REPLICAS: &str = "replica/";
pub const DUTIES: &str = "duty/";
pub const EVENTS: &str = "event/";
pub const CLASHES: &str = "clash/";
pub const CLAIMS: &str = "claim/";
/// Claims of proto services. Other kinds of paths get folders of their own beside this one.
const CLAIMS_OF_PROTOS: &str = "claim/proto/";
/// A number: a node that is claimed without a record gets an epoch above it.
pub const EPOCH_FLOOR: &str = "epoch-floor";

/// `NodeRecord`: the node's identity and epoch. It stays after the node has left.
#[must_use]
pub fn node(node: &str) -> String {
    format!("{NODES}{node}")
}

/// `AliveRecord`: the only key attached to the node's lease.
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

/// `ServiceRecord`: what is known about a service, whether or not it has instances.
#[must_use]
pub fn service(service: &ServiceName) -> String {
    format!("{SERVICES}{service}")
}

/// `SchemaRecord`, keyed by the SHA-256 of its content in hex.
#[must_use]
pub fn schema(sha256: &str) -> String {
    format!("{SCHEMAS}{sha256}")
}

/// `SchemaRecord` with one part of content that is too long for one value.
#[must_use]
pub fn schema_part(sha256: &str, part: u32) -> String {
    format!("{SCHEMAS}{sha256}/{part}")
}

/// The prefix of all parts of one content. The key of the whole does not begin with it.
#[must_use]
pub fn schema_parts(sha256: &str) -> String {
    format!("{SCHEMAS}{sha256}/")
}

/// An empty value: nothing refers to these descriptors, and they will be deleted soon.
#[must_use]
pub fn marked_schema(sha256: &str) -> String {
    format!("{MARKED_SCHEMAS}{sha256}")
}

/// `ReplicaRecord`, attached to the replica's own lease.
#[must_use]
pub fn replica(name: &str) -> String {
    format!("{REPLICAS}{name}")
}

/// `DutyRecord`, attached to the lease of the replica that performs the duty.
#[must_use]
pub fn duty(name: &str) -> String {
    format!("{DUTIES}{name}")
}

/// `EventRecord`. Ids sort by the time of writing.
#[must_use]
pub fn event(id: &str) -> String {
    format!("{EVENTS}{id}")
}

/// `ClashRecord`.
#[must_use]
pub fn clash(node: &str) -> String {
    format!("{CLASHES}{node}")
}

/// The key of the whole, if `key` is that of a part of descriptors.
#[must_use]
pub fn whole_of_part(key: &str) -> Option<&str> {
    let (whole, part) = key.rsplit_once('/')?;
    let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && matches!(parse(whole), Some(Key::Schema(_)))).then_some(whole)
}

/// Whether nodes and replicas may not have this name. If another mesh's prefix ends with one of this mesh's folders,
/// its key of this name would look like that of a node or replica of this mesh.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    name == EPOCH_FLOOR
}

/// `ClaimRecord`: the service claims the path of a proto service in its namespace. If several services claim a path,
/// the key that was created first owns it.
#[must_use]
pub fn claim(proto: &str, service: &ServiceName) -> String {
    let ServiceName { service, namespace } = service;
    format!("{CLAIMS_OF_PROTOS}{namespace}/{proto}/{service}")
}

/// A parsed key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    Node(&'a str),
    Alive(&'a str),
    Instance(InstanceKey),
    Service(ServiceName),
    Schema(&'a str),
    MarkedSchema(&'a str),
    Replica(&'a str),
    Duty(&'a str),
    Event(&'a str),
    Clash(&'a str),
    Claim {
        proto: &'a str,
        service: ServiceName,
    },
}

/// What a key names; none for an unknown kind of key (such as one of a newer version).
#[must_use]
pub fn parse(key: &str) -> Option<Key<'_>> {
    if let Some(rest) = key.strip_prefix(INSTANCES) {
        let mut parts = rest.splitn(3, '/');
        let (node, service, id) = (parts.next()?, parts.next()?, parts.next()?);
        return Some(Key::Instance(InstanceKey {
            node: single(node)?.into(),
            service: full_name(service)?,
            id: single(id)?.into(),
        }));
    }
    if let Some(rest) = key.strip_prefix(CLAIMS_OF_PROTOS) {
        let mut parts = rest.splitn(3, '/');
        let (namespace, proto, service) = (parts.next()?, parts.next()?, parts.next()?);
        let service = ServiceName {
            service: single(service)?.to_owned(),
            namespace: single(namespace)?.to_owned(),
        };
        return Some(Key::Claim {
            proto: single(proto)?,
            service,
        });
    }
    if let Some(service) = key.strip_prefix(SERVICES) {
        return full_name(service).map(Key::Service);
    }
    if let Some(node) = key.strip_prefix(NODES) {
        return single(node).map(Key::Node);
    }
    if let Some(node) = key.strip_prefix(ALIVE) {
        return single(node).map(Key::Alive);
    }
    if let Some(sha256) = key.strip_prefix(SCHEMAS) {
        // A part cannot be requested on its own.
        return hex(sha256).map(Key::Schema);
    }
    if let Some(sha256) = key.strip_prefix(MARKED_SCHEMAS) {
        return hex(sha256).map(Key::MarkedSchema);
    }
    if let Some(name) = key.strip_prefix(REPLICAS) {
        return single(name).map(Key::Replica);
    }
    if let Some(name) = key.strip_prefix(DUTIES) {
        return single(name).map(Key::Duty);
    }
    if let Some(id) = key.strip_prefix(EVENTS) {
        return single(id).map(Key::Event);
    }
    single(key.strip_prefix(CLASHES)?).map(Key::Clash)
}

/// A name without `/` that is not reserved. Any other may come from the key of another mesh whose prefix begins with
/// this mesh's.
fn single(name: &str) -> Option<&str> {
    (!name.is_empty() && !name.contains('/') && !is_reserved(name)).then_some(name)
}

/// `<service>.<namespace>`; the namespace must be written.
fn full_name(name: &str) -> Option<ServiceName> {
    let whole = name.contains('.') && !name.contains('/');
    whole.then(|| ServiceName::parse(name)).flatten()
}

fn hex(name: &str) -> Option<&str> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (!name.is_empty() && name.bytes().all(is_hex)).then_some(name)
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
        assert_eq!(parse(&schema_part("00ff", 0)), None);
        assert_eq!(whole_of_part(&schema_part("00ff", 0)), Some("schema/00ff"));
        assert_eq!(whole_of_part("schema/00ff"), None);
        assert!(schema_part("00ff", 3).starts_with(&schema_parts("00ff")));
        check(marked_schema("0f"), "condemned/0f", Key::MarkedSchema("0f"));
        check(replica("c1"), "replica/c1", Key::Replica("c1"));
        check(duty("sweeper"), "duty/sweeper", Key::Duty("sweeper"));
        check(event("1-c1-0"), "event/1-c1-0", Key::Event("1-c1-0"));
        check(clash("a"), "clash/a", Key::Clash("a"));
        check(
            claim("users.v1.Users", &key.service),
            "claim/proto/shop/users.v1.Users/users",
            Key::Claim {
                proto: "users.v1.Users",
                service: key.service.clone(),
            },
        );
        assert_eq!(parse("claim/proto/shop/users.v1.Users"), None);
        assert_eq!(parse("claim/http/shop/x/users"), None, "of a later version");
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

    /// Issue 10, D2.
    #[test]
    fn keys_of_a_mesh_with_a_longer_prefix_are_none_of_this_ones() {
        let folders = [
            NODES,
            ALIVE,
            INSTANCES,
            SERVICES,
            SCHEMAS,
            MARKED_SCHEMAS,
            REPLICAS,
            DUTIES,
            EVENTS,
            CLASHES,
            CLAIMS,
        ];
        let instance = InstanceKey {
            node: "a".into(),
            service: ServiceName::parse("users.shop").unwrap(),
            id: "u-1".into(),
        };
        let keys = [
            node("a"),
            alive("a"),
            super::instance(&instance),
            service(&instance.service),
            schema("00ff"),
            schema_part("00ff", 7),
            marked_schema("0f"),
            replica("c1"),
            duty("sweeper"),
            event("1-c1-0"),
            clash("a"),
            claim("users.v1.Users", &instance.service),
            EPOCH_FLOOR.to_owned(),
        ];
        let nested = folders
            .iter()
            .flat_map(|folder| keys.iter().map(move |key| format!("{folder}{key}")))
            .chain([node("")]);
        for key in nested {
            assert_eq!(parse(&key), None, "{key}");
            assert_eq!(whole_of_part(&key), None, "{key}");
        }
    }
}
