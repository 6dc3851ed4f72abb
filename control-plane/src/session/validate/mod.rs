//! Checks every field of a Hello or a Change before anything is written. The result is the registry's types with
//! defaults filled in and the rejected instances with their faults, or all faults of the node itself with their field
//! paths. The registry is not consulted: the result depends on the message only.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use heddle_proto::{
    control::v1::{Change, GoneInstance, Hello, InstanceRef, LocalInstance, ProtoService},
    registry::v1::{Health, Instance, Protocol, health_check::Kind},
    rules::{
        MAX_LABEL, MAX_LABEL_VALUE, MAX_LABELS, MAX_PROTOS, MAX_TEXT, MAX_WEIGHT, is_dns_label,
        is_proto_name, unfit,
    },
};
use prost::Message;
use tonic::Status;

use super::{refusal::Faults, rejected::Rejected};
use crate::{
    names::{InstanceKey, ServiceName, keys},
    registry::{NodeIdentity, NodeWrite, RemovalCauses},
};

/// The most instances of one node.
pub(super) const MAX_INSTANCES: usize = 10_000;
const MAX_REASON: usize = 1024;
/// The longest name of a network stack.
const MAX_HOST: usize = 128;
/// The most bytes of an instance's proto services: they are written in one transaction with the record of its service,
/// and a store limits its size.
const MAX_PROTOS_BYTES: usize = 256 << 10;

/// The most listeners of one proxy; further ones are ignored.
const MAX_LISTENERS: usize = 64;

/// The content of a valid Hello.
#[derive(Debug)]
pub(super) struct ValidHello {
    pub(super) identity: NodeIdentity,
    /// All accepted instances.
    pub(super) instances: Vec<(InstanceKey, LocalInstance)>,
    /// The instances that it no longer has, as far as it remembers.
    pub(super) gone: RemovalCauses,
    pub(super) rejected: Vec<Rejected>,
}

/// The writes of a change, in order, and the rejected instances.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) writes: Vec<NodeWrite>,
    pub(super) rejected: Vec<Rejected>,
}

/// Checks a Hello.
pub(super) fn hello(hello: Hello, loopback: bool) -> Result<ValidHello, Status> {
    let mut faults = Faults::default();
    dns_label(&mut faults, "hello.node", &hello.node);
    if keys::is_reserved(&hello.node) {
        let text = format!("{} is reserved: give the node another name", hello.node);
        faults.add("hello.node", text);
    }
    if hello.process_id.is_empty() {
        faults.add(
            "hello.process_id",
            "must identify the process: a random value, new at each start",
        );
    }
    text(&mut faults, "hello.process_id", &hello.process_id, MAX_TEXT);
    text(&mut faults, "hello.region", &hello.region, MAX_TEXT);
    text(&mut faults, "hello.zone", &hello.zone, MAX_TEXT);
    text(&mut faults, "hello.version", &hello.version, MAX_TEXT);
    text(&mut faults, "hello.host", &hello.host, MAX_HOST);
    let advertise = address(&mut faults, "hello.advertise", &hello.advertise, many_hosts);
    if hello.instances.len() > MAX_INSTANCES {
        let found = hello.instances.len();
        faults.add(
            "hello.instances",
            format!("{found} instances; at most {MAX_INSTANCES} per node"),
        );
    }
    if hello.gone.len() > MAX_INSTANCES {
        let found = hello.gone.len();
        faults.add(
            "hello.gone",
            format!("{found} instances; at most {MAX_INSTANCES}"),
        );
    }
    faults.check()?;
    // There is no fault, so there is an address.
    let advertise = advertise.ok_or_else(|| Status::invalid_argument("hello.advertise"))?;
    let node: Arc<str> = hello.node.as_str().into();
    let mut seen = HashSet::new();
    let (mut instances, mut rejected) = (Vec::new(), Vec::new());
    for local in hello.instances {
        match local_instance(&node, local) {
            Ok((key, _)) if !seen.insert(key.clone()) => {
                let text = "duplicate instance; the first one is used";
                rejected.push(Rejected::new(key, "instance.id", text));
            }
            Ok(taken) => instances.push(taken),
            Err(one) => rejected.push(*one),
        }
    }
    let gone = hello.gone.into_iter();
    let gone = gone.filter_map(|one| gone_instance(&node, one)).collect();
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
        listeners: listeners(&hello.listeners),
        host: hello.host,
    };
    Ok(ValidHello {
        identity,
        instances,
        gone,
        rejected,
    })
}

/// The addresses on which a proxy listens. Listeners only prevent loops, so they never cause a refusal: invalid
/// addresses (perhaps another kind of listener of a newer proxy) and those beyond the limit are ignored.
fn listeners(addresses: &[String]) -> Vec<SocketAddr> {
    let parsed = addresses.iter().filter_map(|at| at.parse().ok());
    let mut listeners: Vec<_> = parsed.take(MAX_LISTENERS).collect();
    listeners.sort_unstable();
    listeners.dedup();
    listeners
}

/// Checks a Change. The session removes the earlier states of the rejected instances.
pub(super) fn change(node: &Arc<str>, change: Change) -> Result<Changes, Status> {
    let mut faults = Faults::default();
    let count = change.upserted.len() + change.removed.len();
    if count > MAX_INSTANCES {
        faults.add(
            "change",
            format!("{count} instances; at most {MAX_INSTANCES} at a time"),
        );
    }
    faults.check()?;
    let mut changes = Changes::default();
    for one in change.removed {
        let gone = gone_instance(node, one);
        let write = gone.map(|(key, cause)| NodeWrite::Remove(key, cause));
        changes.writes.extend(write);
    }
    for local in change.upserted {
        match local_instance(node, local) {
            Ok((key, local)) => changes.writes.push(NodeWrite::Put(key, Box::new(local))),
            Err(one) => changes.rejected.push(*one),
        }
    }
    Ok(changes)
}

/// The instance of a removal query.
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

/// The key of the removed instance, and the cause if the instance did not request it. None if the name is invalid: then
/// there is nothing to remove.
fn gone_instance(node: &Arc<str>, gone: GoneInstance) -> Option<(InstanceKey, Option<String>)> {
    let name = InstanceRef {
        service: gone.service,
        namespace: gone.namespace,
        id: gone.id,
    };
    let mut faults = Faults::default();
    let key = instance_key(&mut faults, "removed", node, name);
    faults.check().ok()?;
    let mut cause = gone.cause;
    bound_reason(&mut cause);
    Some((key, Some(cause).filter(|cause| !cause.is_empty())))
}

/// Shortens a text that a program created; it is not refused.
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

/// Bounds the proto services: drops the idempotent methods first, because they matter less than the services.
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

/// Checks an instance. Invalid values that people wrote reject it; values that programs derived (a reason, names from
/// descriptors) are cut to their limits.
fn local_instance(
    node: &Arc<str>,
    mut local: LocalInstance,
) -> Result<(InstanceKey, LocalInstance), Box<Rejected>> {
    let mut faults = Faults::default();
    bound_reason(&mut local.health_reason);
    bound_reason(&mut local.schema_reason);
    local.protos.retain(|proto| is_proto_name(&proto.name));
    bound_protos(&mut local.protos);
    let hash = &local.schema_sha256;
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_hash = hash.len() == 64 && hash.bytes().all(is_hex);
    if !hash.is_empty() && !is_hash {
        let text = "must be 64 lower-case hex digits, or empty";
        faults.add("schema_sha256", text);
    }
    if Health::try_from(local.health).is_err() {
        faults.add("health", unknown(local.health, "state"));
    }
    let Some(instance) = &mut local.instance else {
        faults.add("instance", "must be set");
        return Err(Box::new(Rejected::of(None, InstanceRef::default(), faults)));
    };
    let name = InstanceRef {
        service: instance.service.clone(),
        namespace: instance.namespace.clone(),
        id: instance.id.clone(),
    };
    let mut of_name = Faults::default();
    let key = instance_key(&mut of_name, "instance", node, name.clone());
    let is_named = of_name.is_empty();
    faults.append(of_name);
    instance_fields(&mut faults, "instance", &key, instance);
    if faults.is_empty() {
        return Ok((key, local));
    }
    let key = is_named.then_some(key);
    Err(Box::new(Rejected::of(key, name, faults)))
}

/// The fault of an enum value that only a newer version of the protocol knows.
fn unknown(number: i32, what: &str) -> String {
    format!(
        "{number} is not a {what} known to this control plane: is the proxy newer? Upgrade the \
         control plane first"
    )
}

/// Checks the fields of a registration, and fills in its defaults.
fn instance_fields(faults: &mut Faults, field: &str, key: &InstanceKey, instance: &mut Instance) {
    text(
        faults,
        format!("{field}.version"),
        &instance.version,
        MAX_TEXT,
    );
    if let Some(address) = address(
        faults,
        &format!("{field}.address"),
        &instance.address,
        unfit,
    ) {
        instance.address = address.to_string();
    }
    match Protocol::try_from(instance.protocol) {
        Ok(Protocol::Grpc | Protocol::Http) => {}
        Ok(Protocol::Unspecified) => instance.set_protocol(Protocol::Grpc),
        Ok(Protocol::Tcp) => {
            faults.add(
                format!("{field}.protocol"),
                "tcp is not supported yet: use grpc or http",
            );
        }
        Err(_) => {
            faults.add(
                format!("{field}.protocol"),
                unknown(instance.protocol, "protocol"),
            );
        }
    }
    if let Some(check) = &instance.health
        && Kind::try_from(check.kind).is_err()
    {
        faults.add(
            format!("{field}.health.kind"),
            unknown(check.kind, "kind of health check"),
        );
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
            let text = format!(
                "a name must have 1 to {MAX_TEXT} bytes, a value at most {MAX_LABEL_VALUE}"
            );
            faults.add(format!("{field}.labels[{name:?}]"), text);
        }
    }
    instance.weight = instance.weight.max(1);
    instance.namespace.clone_from(&key.service.namespace);
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
                "{shown:?} is not a DNS label: 1 to {MAX_LABEL} of a-z, 0-9 and '-', not starting \
                 or ending with '-'"
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

/// Why other nodes cannot reach a node at this address; link-local addresses are allowed.
fn many_hosts(address: IpAddr) -> Option<&'static str> {
    let many = address.is_unspecified() || address.is_multicast();
    many.then_some("is not the address of one host")
}

fn address(
    faults: &mut Faults,
    field: &str,
    address: &str,
    unfit: fn(IpAddr) -> Option<&'static str>,
) -> Option<SocketAddr> {
    let Ok(parsed) = address.parse::<SocketAddr>() else {
        let shown: String = address.chars().take(100).collect();
        faults.add(
            field,
            format!("{shown:?} is not an address: write IP:port or [IPv6]:port"),
        );
        return None;
    };
    // An IPv4-mapped IPv6 address is the same as its IPv4 address.
    let parsed = SocketAddr::new(parsed.ip().to_canonical(), parsed.port());
    if parsed.port() == 0 {
        faults.add(field, "port 0 is not a port that can be called");
    }
    if let Some(why) = unfit(parsed.ip()) {
        faults.add(field, format!("{} {why}", parsed.ip()));
    }
    Some(parsed)
}

#[cfg(test)]
mod tests;
