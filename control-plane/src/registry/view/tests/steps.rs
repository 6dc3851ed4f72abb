//! Random histories of a store: steps, the records that they write, and the changes that a view gets.

use heddle_proto::{
    control::v1::{LocalInstance, ProtoService},
    registry::v1 as pb,
    store::v1::{
        AliveRecord, ClashRecord, DutyRecord, EventRecord, InstanceRecord, NodeRecord,
        ReplicaRecord, ServiceRecord,
    },
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::store::Event as StoreEvent;

/// One random step in a small mesh. It uses few names, so that steps interact.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Instance {
        node: u8,
        service: u8,
        id: u8,
        variant: Option<u8>,
    },
    Node {
        node: u8,
        variant: Option<u8>,
    },
    Alive {
        node: u8,
        alive: bool,
    },
    Schema {
        hash: u8,
        there: bool,
    },
    Service {
        service: u8,
        variant: Option<u8>,
    },
    Claim {
        service: u8,
        proto: u8,
        there: bool,
    },
    /// Keys that the control plane writes about itself.
    ControlPlaneState {
        kind: u8,
        name: u8,
        variant: Option<u8>,
    },
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let instance = (
        0..3_u8,
        0..3_u8,
        0..2_u8,
        proptest::option::weighted(0.7, 0..4_u8),
    )
        .prop_map(|(node, service, id, variant)| Step::Instance {
            node,
            service,
            id,
            variant,
        });
    let node = (0..3_u8, proptest::option::weighted(0.8, 0..4_u8))
        .prop_map(|(node, variant)| Step::Node { node, variant });
    let alive = (0..3_u8, any::<bool>()).prop_map(|(node, alive)| Step::Alive { node, alive });
    let schema = (0..3_u8, any::<bool>()).prop_map(|(hash, there)| Step::Schema { hash, there });
    let service = (0..3_u8, proptest::option::weighted(0.7, 0..3_u8))
        .prop_map(|(service, variant)| Step::Service { service, variant });
    let plane = (0..5_u8, 0..3_u8, proptest::option::weighted(0.7, 0..2_u8)).prop_map(
        |(kind, name, variant)| Step::ControlPlaneState {
            kind,
            name,
            variant,
        },
    );
    let claim =
        (0..3_u8, 0..2_u8, proptest::bool::weighted(0.7)).prop_map(|(service, proto, there)| {
            Step::Claim {
                service,
                proto,
                there,
            }
        });
    proptest::collection::vec(
        prop_oneof![6 => instance, 2 => node, 2 => alive, 1 => schema, 3 => service, 3 => plane, 3 => claim],
        1..60,
    )
}

impl Step {
    pub(super) fn key_and_value(&self) -> (String, Option<Vec<u8>>) {
        match *self {
            Self::Instance {
                node,
                service,
                id,
                variant,
            } => {
                let key = InstanceKey {
                    node: format!("n{node}").into(),
                    service: service_name(service),
                    id: format!("i{id}").into(),
                };
                (
                    keys::instance(&key),
                    variant.map(|variant| instance_record(&key, variant)),
                )
            }
            Self::Node { node, variant } => {
                let name = format!("n{node}");
                let record = variant.map(|variant| NodeRecord {
                    name: name.clone(),
                    epoch: 1 + u64::from(variant),
                    advertise: format!("10.0.0.{node}:15008"),
                    suspect: variant == 3,
                    ..NodeRecord::default()
                });
                (
                    keys::node(&name),
                    record.map(|record| record.encode_to_vec()),
                )
            }
            Self::Alive { node, alive } => {
                let record = AliveRecord {
                    replica: "r".into(),
                    ..AliveRecord::default()
                };
                (
                    keys::alive(&format!("n{node}")),
                    alive.then(|| record.encode_to_vec()),
                )
            }
            Self::Schema { hash, there } => (
                keys::schema(&hash.to_string()),
                there.then(|| b"x".to_vec()),
            ),
            Self::Claim {
                service,
                proto,
                there,
            } => (
                keys::claim(&format!("p{proto}.Api"), &service_name(service)),
                there.then(Vec::new),
            ),
            Self::ControlPlaneState {
                kind,
                name,
                variant,
            } => plane_record(kind, name, variant),
            Self::Service { service, variant } => {
                let record = variant.map(|variant| ServiceRecord {
                    protos: proto_services(variant),
                    no_paths: variant == 2,
                    ..ServiceRecord::default()
                });
                (
                    keys::service(&service_name(service)),
                    record.map(|record| record.encode_to_vec()),
                )
            }
        }
    }
}

pub(super) fn plane_record(kind: u8, name: u8, variant: Option<u8>) -> (String, Option<Vec<u8>>) {
    let process_id = format!("p{}", variant.unwrap_or_default());
    let (key, value) = match kind {
        0 => {
            let record = ReplicaRecord {
                process_id,
                ..ReplicaRecord::default()
            };
            (keys::replica(&format!("c{name}")), record.encode_to_vec())
        }
        1 => {
            let record = DutyRecord {
                replica: format!("c{name}"),
                process_id,
            };
            (keys::duty("sweeper"), record.encode_to_vec())
        }
        2 => {
            // An event never changes.
            let record = EventRecord {
                kind: "test".to_owned(),
                ..EventRecord::default()
            };
            (keys::event(&name.to_string()), record.encode_to_vec())
        }
        3 => {
            let record = ClashRecord {
                process_id,
                epoch: 1,
            };
            (keys::clash(&format!("n{name}")), record.encode_to_vec())
        }
        _ => (keys::marked_schema(&name.to_string()), Vec::new()),
    };
    (key, variant.map(|_| value))
}

pub(super) fn service_name(service: u8) -> ServiceName {
    ServiceName {
        service: format!("s{service}"),
        namespace: "x".into(),
    }
}

pub(super) fn proto_services(variant: u8) -> Vec<ProtoService> {
    (0..variant % 3)
        .map(|n| ProtoService {
            name: format!("p{n}.Api"),
            idempotent_methods: vec![],
        })
        .collect()
}

pub(super) fn instance_record(key: &InstanceKey, variant: u8) -> Vec<u8> {
    InstanceRecord {
        node: key.node.to_string(),
        epoch: 1,
        local: Some(LocalInstance {
            instance: Some(pb::Instance {
                service: key.service.service.clone(),
                namespace: key.service.namespace.clone(),
                id: key.id.to_string(),
                address: format!("127.0.0.1:{}", 1000 + u16::from(variant)),
                claim_paths: (variant == 2).then_some(false),
                ..pb::Instance::default()
            }),
            health: 1,
            protos: proto_services(variant),
            ..LocalInstance::default()
        }),
    }
    .encode_to_vec()
}

/// Every state of the store and the changes in between: step n leads to revision n+2.
pub(super) fn history(steps: &[Step]) -> (Vec<Vec<KeyValue>>, Vec<Changes>) {
    let mut state: BTreeMap<Arc<str>, KeyValue> = BTreeMap::new();
    let mut states = vec![vec![]];
    let mut changes = Vec::new();
    for (n, step) in steps.iter().enumerate() {
        let revision = Revision(n as u64 + 2);
        let (key, value) = step.key_and_value();
        let key: Arc<str> = key.into();
        let created = state.get(&key).map(|held| held.create_revision);
        let now = value.map(|value| KeyValue {
            key: Arc::clone(&key),
            value: value.into(),
            create_revision: created.unwrap_or(revision),
            mod_revision: revision,
            lease: None,
        });
        let before = match &now {
            Some(now) => state.insert(Arc::clone(&key), now.clone()),
            None => state.remove(&key),
        };
        changes.push(Changes {
            revision,
            events: [StoreEvent { key, now, before }].into(),
        });
        states.push(state.values().cloned().collect());
    }
    (states, changes)
}
