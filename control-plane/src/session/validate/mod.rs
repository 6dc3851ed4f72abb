//! What a node may say: every field of a Hello or a Change, checked before anything is written. In come messages as
//! they arrived; out go the registry's own types with defaults filled in, or all faults with their field paths. No
//! look at the registry here: the same message is always judged the same.

use std::{collections::HashSet, net::SocketAddr, sync::Arc};

use heddle_proto::{
    control::v1::{Change, GoneInstance, Hello, InstanceRef, LocalInstance, ProtoService},
    registry::v1::{Instance, Protocol},
    rules::{
        MAX_LABEL, MAX_LABEL_VALUE, MAX_LABELS, MAX_PROTOS, MAX_TEXT, MAX_WEIGHT, is_dns_label,
        is_proto_name,
    },
};
use prost::Message;
use tonic::Status;

use super::refusal::Faults;
use crate::registry::{Gone, InstanceKey, NodeIdentity, NodeWrite, ServiceName};

/// Most instances of one node.
pub(super) const MAX_INSTANCES: usize = 10_000;
const MAX_REASON: usize = 1024;
/// Of what an instance serves: with its service's record it stands in one transaction, and a store bounds that.
const MAX_PROTOS_BYTES: usize = 256 << 10;

/// What a node says of itself when it opens a session.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) identity: NodeIdentity,
    /// Everything it has.
    pub(super) instances: Vec<(InstanceKey, LocalInstance)>,
    /// What it has no longer, as far as it remembers.
    pub(super) gone: Gone,
}

/// A node's identity, everything it has, and what it has no longer.
pub(super) fn hello(hello: Hello, loopback: bool) -> Result<Said, Status> {
    let mut faults = Faults::default();
    dns_label(&mut faults, "hello.node", &hello.node);
    if hello.process_id.is_empty() {
        faults.add(
            "hello.process_id",
            "must name the process: random, new with each start",
        );
    }
    text(&mut faults, "hello.process_id", &hello.process_id, MAX_TEXT);
    text(&mut faults, "hello.region", &hello.region, MAX_TEXT);
    text(&mut faults, "hello.zone", &hello.zone, MAX_TEXT);
    text(&mut faults, "hello.version", &hello.version, MAX_TEXT);
    let advertise = address(&mut faults, "hello.advertise", &hello.advertise);
    if hello.instances.len() > MAX_INSTANCES {
        let found = hello.instances.len();
        faults.add(
            "hello.instances",
            format!("{found} instances; at most {MAX_INSTANCES} per node"),
        );
    }
    let node: Arc<str> = hello.node.as_str().into();
    let mut seen = HashSet::new();
    let mut instances = Vec::new();
    for (n, local) in hello.instances.into_iter().enumerate() {
        let field = format!("hello.instances[{n}]");
        let Some((key, local)) = local_instance(&mut faults, &field, &node, local) else {
            continue;
        };
        if !seen.insert(key.clone()) {
            faults.add(
                format!("{field}.instance.id"),
                "the same instance stands twice",
            );
        }
        instances.push((key, local));
    }
    if hello.gone.len() > MAX_INSTANCES {
        let found = hello.gone.len();
        faults.add(
            "hello.gone",
            format!("{found} instances; at most {MAX_INSTANCES}"),
        );
    }
    let mut gone = Gone::new();
    for (n, one) in hello.gone.into_iter().enumerate() {
        let (key, cause) = gone_instance(&mut faults, &format!("hello.gone[{n}]"), &node, one);
        gone.insert(key, cause);
    }
    faults.check()?;
    // No fault was found, so there is an address.
    let advertise = advertise.ok_or_else(|| Status::invalid_argument("hello.advertise"))?;
    let identity = NodeIdentity {
        name: hello.node,
        process_id: hello.process_id,
        epoch: hello.epoch,
        attempt: hello.attempt,
        advertise,
        region: hello.region,
        zone: hello.zone,
        version: hello.version,
        loopback,
    };
    Ok(Said {
        identity,
        instances,
        gone,
    })
}

/// What a change writes, in order.
pub(super) fn change(node: &Arc<str>, change: Change) -> Result<Vec<NodeWrite>, Status> {
    let mut faults = Faults::default();
    let count = change.upserted.len() + change.removed.len();
    if count > MAX_INSTANCES {
        faults.add(
            "change",
            format!("{count} instances; at most {MAX_INSTANCES} at a time"),
        );
    }
    let mut writes = Vec::with_capacity(count.min(MAX_INSTANCES));
    for (n, one) in change.removed.into_iter().enumerate() {
        let field = format!("change.removed[{n}]");
        let (key, cause) = gone_instance(&mut faults, &field, node, one);
        writes.push(NodeWrite::Remove(key, cause));
    }
    for (n, local) in change.upserted.into_iter().enumerate() {
        let field = format!("change.upserted[{n}]");
        if let Some((key, local)) = local_instance(&mut faults, &field, node, local) {
            writes.push(NodeWrite::Put(key, Box::new(local)));
        }
    }
    faults.check()?;
    Ok(writes)
}

/// The instance that a removal query asks about.
pub(super) fn removed_instance(
    node: &Arc<str>,
    instance: Option<InstanceRef>,
) -> Result<InstanceKey, Status> {
    let mut faults = Faults::default();
    let name = instance.unwrap_or_default();
    let key = instance_key(&mut faults, "removal_query.instance", node, name);
    faults.check()?;
    Ok(key)
}

/// Which one, and why if it did not ask to go.
fn gone_instance(
    faults: &mut Faults,
    field: &str,
    node: &Arc<str>,
    gone: GoneInstance,
) -> (InstanceKey, Option<String>) {
    let name = InstanceRef {
        service: gone.service,
        namespace: gone.namespace,
        id: gone.id,
    };
    let key = instance_key(faults, field, node, name);
    let mut cause = gone.cause;
    bound_reason(&mut cause);
    (key, Some(cause).filter(|cause| !cause.is_empty()))
}

/// What programs made is cut to its bounds, not refused.
fn bound_reason(reason: &mut String) {
    if reason.chars().count() > MAX_REASON || reason.contains(char::is_control) {
        let printable = reason.chars().filter(|c| !c.is_control());
        *reason = printable.take(MAX_REASON).collect();
    }
}

fn instance_key(
    faults: &mut Faults,
    field: &str,
    node: &Arc<str>,
    name: InstanceRef,
) -> InstanceKey {
    let namespace = or_default(name.namespace);
    dns_label(faults, format!("{field}.service"), &name.service);
    dns_label(faults, format!("{field}.namespace"), &namespace);
    dns_label(faults, format!("{field}.id"), &name.id);
    let service = ServiceName {
        service: name.service,
        namespace,
    };
    InstanceKey {
        node: Arc::clone(node),
        service,
        id: name.id.into(),
    }
}

/// Which methods may be tried again is worth less than which services there are.
fn bound_protos(protos: &mut Vec<ProtoService>) {
    let all: usize = protos.iter().map(Message::encoded_len).sum();
    if all <= MAX_PROTOS_BYTES {
        return;
    }
    for proto in protos.iter_mut() {
        proto.idempotent_methods.clear();
    }
    let mut left = MAX_PROTOS_BYTES;
    protos.retain(|proto| {
        let bytes = proto.encoded_len();
        let fits = bytes <= left;
        left = left.saturating_sub(bytes);
        fits
    });
}

/// What people wrote is refused where it is bad; what programs derived (a reason, names out of descriptors) is cut to
/// its bounds: one odd service must not keep its whole node out of the mesh.
fn local_instance(
    faults: &mut Faults,
    field: &str,
    node: &Arc<str>,
    mut local: LocalInstance,
) -> Option<(InstanceKey, LocalInstance)> {
    bound_reason(&mut local.health_reason);
    bound_reason(&mut local.schema_reason);
    local.protos.retain(|proto| is_proto_name(&proto.name));
    bound_protos(&mut local.protos);
    let hash = &local.schema_sha256;
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_hash = hash.len() == 64 && hash.bytes().all(is_hex);
    if !hash.is_empty() && !is_hash {
        let text = "must be 64 lower-case hex digits, or empty";
        faults.add(format!("{field}.schema_sha256"), text);
    }
    let Some(instance) = &mut local.instance else {
        faults.add(format!("{field}.instance"), "must be given");
        return None;
    };
    let key = instance_fields(faults, &format!("{field}.instance"), node, instance);
    Some((key, local))
}

/// Checks a registration as it stands, and fills in its defaults.
fn instance_fields(
    faults: &mut Faults,
    field: &str,
    node: &Arc<str>,
    instance: &mut Instance,
) -> InstanceKey {
    let name = InstanceRef {
        service: instance.service.clone(),
        namespace: instance.namespace.clone(),
        id: instance.id.clone(),
    };
    let key = instance_key(faults, field, node, name);
    text(
        faults,
        format!("{field}.version"),
        &instance.version,
        MAX_TEXT,
    );
    if let Some(address) = address(faults, &format!("{field}.address"), &instance.address) {
        instance.address = address.to_string();
    }
    match Protocol::try_from(instance.protocol) {
        Ok(Protocol::Grpc | Protocol::Http) => {}
        Ok(Protocol::Unspecified) => instance.set_protocol(Protocol::Grpc),
        Ok(Protocol::Tcp) => {
            faults.add(
                format!("{field}.protocol"),
                "tcp is not served yet: use grpc or http",
            );
        }
        Err(_) => {
            faults.add(
                format!("{field}.protocol"),
                format!("{} is not a protocol", instance.protocol),
            );
        }
    }
    if instance.weight > MAX_WEIGHT {
        faults.add(
            format!("{field}.weight"),
            format!("{}; at most {MAX_WEIGHT}", instance.weight),
        );
    }
    if instance.protos.len() > MAX_PROTOS {
        faults.add(
            format!("{field}.protos"),
            format!("at most {MAX_PROTOS} proto services"),
        );
    }
    for (n, proto) in instance
        .protos
        .iter()
        .enumerate()
        .filter(|(_, it)| !is_proto_name(it))
    {
        let text = format!("{proto:?} is not a full proto service name: package.Service");
        faults.add(format!("{field}.protos[{n}]"), text);
    }
    if instance.labels.len() > MAX_LABELS {
        faults.add(
            format!("{field}.labels"),
            format!("at most {MAX_LABELS} labels"),
        );
    }
    for (name, value) in &instance.labels {
        if name.is_empty() || name.len() > MAX_TEXT || value.len() > MAX_LABEL_VALUE {
            let text =
                format!("a name takes 1 to {MAX_TEXT} bytes, a value at most {MAX_LABEL_VALUE}");
            faults.add(format!("{field}.labels[{name:?}]"), text);
        }
    }
    instance.weight = instance.weight.max(1);
    instance.namespace.clone_from(&key.service.namespace);
    key
}

fn or_default(namespace: String) -> String {
    if namespace.is_empty() {
        "default".to_owned()
    } else {
        namespace
    }
}

fn dns_label(faults: &mut Faults, field: impl Into<String>, label: &str) {
    if !is_dns_label(label) {
        let shown: String = label.chars().take(MAX_LABEL + 1).collect();
        faults.add(
            field,
            format!(
                "{shown:?} is not a DNS label: 1 to {MAX_LABEL} of a-z, 0-9 and '-', not at an end"
            ),
        );
    }
}

fn text(faults: &mut Faults, field: impl Into<String>, value: &str, max: usize) {
    if value.chars().count() > max {
        faults.add(field, format!("longer than {max} characters"));
    } else if value.chars().any(char::is_control) {
        faults.add(field, "has control characters");
    }
}

fn address(faults: &mut Faults, field: &str, address: &str) -> Option<SocketAddr> {
    let Ok(parsed) = address.parse::<SocketAddr>() else {
        let shown: String = address.chars().take(100).collect();
        faults.add(
            field,
            format!("{shown:?} is not an address: write IP:port or [IPv6]:port"),
        );
        return None;
    };
    if parsed.port() == 0 {
        faults.add(field, "port 0 cannot be reached");
    }
    if parsed.ip().is_unspecified() || parsed.ip().is_multicast() {
        faults.add(
            field,
            format!("{} is not the address of one host", parsed.ip()),
        );
    }
    Some(parsed)
}

#[cfg(test)]
mod tests;
