//! Instances that are rejected while the rest of the node's message is accepted. The description sent to the node is
//! bounded. `validate` decides which fields are wrong.

use std::net::SocketAddr;

use heddle_proto::control::v1::{InstanceRef, LocalInstance, Rejection};

use super::refusal::{Faults, short};
use crate::{
    names::InstanceKey,
    registry::{Node, View},
};

/// The most bytes of descriptions about the instances of one message. With the names of the instances, however many
/// there are, they stay below 4 MiB, gRPC's default limit of a message.
const MAX_WORDS: usize = 1 << 20;

/// A rejected instance.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rejected {
    /// None if its name is invalid.
    pub(super) key: Option<InstanceKey>,
    pub(super) rejection: Rejection,
}

impl Rejected {
    pub(super) fn new(key: InstanceKey, field: &str, description: &str) -> Self {
        let name = InstanceRef {
            service: key.service.service.clone(),
            namespace: key.service.namespace.clone(),
            id: key.id.to_string(),
        };
        let mut faults = Faults::default();
        faults.add(field, description);
        Self::of(Some(key), name, faults)
    }

    /// Describes the first fault, and how many more there are.
    pub(super) fn of(key: Option<InstanceKey>, name: InstanceRef, faults: Faults) -> Self {
        let (field, description) = faults.summary();
        // An invalid name may be long.
        let instance = InstanceRef {
            service: short(name.service),
            namespace: short(name.namespace),
            id: short(name.id),
        };
        let rejection = Rejection {
            instance: Some(instance),
            field,
            description,
        };
        Self { key, rejection }
    }

    /// The cause of removing its earlier state.
    pub(super) fn cause(&self) -> String {
        let Rejection {
            field, description, ..
        } = &self.rejection;
        format!("refused: {field}: {description}")
    }

    pub(super) fn log(&self, node: &str) {
        let Rejection {
            instance,
            field,
            description,
        } = &self.rejection;
        let name = instance.clone().unwrap_or_default();
        tracing::warn!(
            event = "instance-refused",
            node,
            service = name.service,
            namespace = name.namespace,
            instance = name.id,
            field,
            description,
            "an instance is rejected; the other instances of its node are accepted"
        );
    }
}

/// The rejections as sent to the node, of bounded size.
pub(super) fn for_node(rejected: Vec<Rejected>) -> Vec<Rejection> {
    let mut left = MAX_WORDS;
    let bounded = rejected.into_iter().map(|Rejected { mut rejection, .. }| {
        let words = rejection.field.len() + rejection.description.len();
        if words > left {
            left = 0;
            rejection.field.clear();
            "omitted: the message would be too long; see the first rejections"
                .clone_into(&mut rejection.description);
        }
        left = left.saturating_sub(words);
        rejection
    });
    bounded.collect()
}

/// Rejects an instance with the address at which the proxy of its own or another living node listens: a call to it
/// would loop forever.
pub(super) fn at_a_proxy(
    view: &View,
    on: &Node,
    key: &InstanceKey,
    address: SocketAddr,
) -> Option<Rejected> {
    let proxy = view.proxy_at(on, address)?;
    let text = format!(
        "{address} is a listener of the proxy on node {proxy}, so calls would loop: give the \
         address on which the instance itself listens"
    );
    Some(Rejected::new(key.clone(), "instance.address", &text))
}

/// The accepted instances of a node whose address is now that of a proxy's listener.
pub(super) fn at_proxies(view: &View, node: &str) -> Vec<Rejected> {
    let Some(on) = view.node(node) else {
        return Vec::new();
    };
    let instances = view.instances_of(node);
    let rejected = instances.filter_map(|it| at_a_proxy(view, on, &it.key(), it.address));
    rejected.collect()
}

/// The address of a valid registration.
pub(super) fn address(local: &LocalInstance) -> Option<SocketAddr> {
    local.instance.as_ref()?.address.parse().ok()
}
