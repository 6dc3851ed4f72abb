use std::collections::HashMap;

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
use crate::{
    names::keys,
    store::{Changes, Event as StoreEvent, KeyValue},
};

/// One random step in a small mesh. It uses few names, so that steps interact.
#[derive(Clone, Debug)]
enum Step {
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

fn steps() -> impl Strategy<Value = Vec<Step>> {
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
    fn key_and_value(&self) -> (String, Option<Vec<u8>>) {
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

fn plane_record(kind: u8, name: u8, variant: Option<u8>) -> (String, Option<Vec<u8>>) {
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

fn service_name(service: u8) -> ServiceName {
    ServiceName {
        service: format!("s{service}"),
        namespace: "x".into(),
    }
}

fn proto_services(variant: u8) -> Vec<ProtoService> {
    (0..variant % 3)
        .map(|n| ProtoService {
            name: format!("p{n}.Api"),
            idempotent_methods: vec![],
        })
        .collect()
}

fn instance_record(key: &InstanceKey, variant: u8) -> Vec<u8> {
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
fn history(steps: &[Step]) -> (Vec<Vec<KeyValue>>, Vec<Changes>) {
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

/// What a view shows, according to its public results only.
fn shown(view: &View) -> HashMap<String, String> {
    let mut shown = HashMap::new();
    for service in view.services() {
        shown.insert(
            service.to_string(),
            format!("{:?}", view.stands_in(service)),
        );
        for instance in view.instances(service) {
            let health = view.health(instance);
            shown.insert(
                instance.key().to_string(),
                format!("{instance:?} {health:?}"),
            );
        }
    }
    for node in view.nodes() {
        let on = view.instances_on(&node.name);
        assert_eq!(on, view.instances_of(&node.name).count());
        shown.insert(node.name.to_string(), format!("{node:?} {on}"));
    }
    for n in 0..3 {
        let proto = format!("p{n}.Api");
        let claimants: Vec<_> = view.path_claimants(&proto).collect();
        let owner = view.path_owner(&proto, "x");
        let claims = format!("{claimants:?} {owner:?}");
        shown.insert(proto, claims);
        shown.insert(
            format!("schema {n}"),
            view.has_schema(&n.to_string()).to_string(),
        );
    }
    shown.insert("replicas".into(), format!("{:?}", replicas_in(view)));
    shown.insert("events".into(), format!("{:?}", events_in(view)));
    shown.insert("count".into(), view.instance_count().to_string());
    shown
}

fn replicas_in(view: &View) -> (Vec<Replica>, Option<DutyHolder>) {
    let duty = view.duty_holder("sweeper").cloned();
    (view.replicas().cloned().collect(), duty)
}

fn events_in(view: &View) -> Vec<Arc<str>> {
    view.events().map(|event| Arc::clone(&event.id)).collect()
}

fn services_in(view: &View) -> HashMap<ServiceName, String> {
    let describe = |service: &ServiceName| {
        let instances = view.instances(service).map(|instance| {
            let node = view.node(&instance.node).map(|node| {
                let (address, region, zone, loopback, suspect) = node.seen_by_clients();
                format!("{address} {region} {zone} {loopback} {suspect}")
            });
            format!("{instance:?} {node:?}")
        });
        let stands_in = view.stands_in(service);
        let claims = view.path_claims(service);
        format!(
            "{stands_in:?} {claims:?}\n{}",
            instances.collect::<Vec<_>>().join("\n")
        )
    };
    view.services()
        .map(|service| (service.clone(), describe(service)))
        .collect()
}

proptest! {
    #[test]
    fn replay_from_any_revision_gives_the_same_view(steps in steps()) {
        let (states, changes) = history(&steps);
        let newest = Revision(steps.len() as u64 + 1);
        let whole = View::load(newest, states.last().unwrap());
        for start in 0..states.len() {
            let mut view = View::load(Revision(start as u64 + 1), &states[start]);
            let mut batch = Batch::default();
            // Includes changes from before the start: changes that were already applied have no effect.
            for changes in &changes[start.saturating_sub(2)..] {
                view.apply(changes, &mut batch);
            }
            prop_assert_eq!(&view, &whole);
            prop_assert_eq!(shown(&view), shown(&whole));
        }
    }

    #[test]
    fn a_batch_names_exactly_the_services_whose_content_changed(steps in steps()) {
        let (states, changes) = history(&steps);
        let mut view = View::load(Revision(1), &states[0]);
        for changes in &changes {
            let before = view.clone();
            let mut batch = Batch::default();
            view.apply(changes, &mut batch);
            let (old, new) = (services_in(&before), services_in(&view));
            let differ = |name: &&ServiceName| old.get(*name) != new.get(*name);
            let changed: BTreeSet<_> = old.keys().chain(new.keys()).filter(differ).cloned().collect();
            prop_assert_eq!(&batch.services, &changed);
            prop_assert_eq!(batch.revision, changes.revision);
            prop_assert_eq!(batch.replicas, replicas_in(&before) != replicas_in(&view));
            prop_assert_eq!(batch.events, events_in(&before) != events_in(&view));
            // Loaded again instead of followed: no change may be missed.
            let anew = view.changes_since(&before);
            prop_assert!(anew.services.is_superset(&changed));
            prop_assert!(anew.nodes.is_superset(&batch.nodes));
            prop_assert_eq!((anew.replicas, anew.events), (batch.replicas, batch.events));
        }
    }
}

fn changes(revision: u64, step: &Step) -> Changes {
    let (key, value) = step.key_and_value();
    let key: Arc<str> = key.into();
    let now = value.map(|value| KeyValue {
        key: Arc::clone(&key),
        value: value.into(),
        create_revision: Revision(revision),
        mod_revision: Revision(revision),
        lease: None,
    });
    Changes {
        revision: Revision(revision),
        events: [StoreEvent {
            key,
            now,
            before: None,
        }]
        .into(),
    }
}

#[test]
fn instances_of_a_suspect_node_are_unknown_and_a_lost_lease_alone_changes_no_service() {
    let mut view = View::default();
    let mut fold = |revision, step| {
        let mut batch = Batch::default();
        view.apply(&changes(revision, &step), &mut batch);
        (view.clone(), batch)
    };
    fold(
        1,
        Step::Node {
            node: 0,
            variant: Some(0),
        },
    );
    fold(
        2,
        Step::Alive {
            node: 0,
            alive: true,
        },
    );
    let (view, _) = fold(
        3,
        Step::Instance {
            node: 0,
            service: 0,
            id: 0,
            variant: Some(1),
        },
    );
    let service = view.services().next().unwrap().clone();
    let health = |view: &View| view.health(view.instances(&service).next().unwrap());
    assert_eq!(health(&view), Health::Healthy);
    assert_eq!(view.node("n0").unwrap().session, Revision(2));

    let (view, batch) = fold(
        4,
        Step::Alive {
            node: 0,
            alive: false,
        },
    );
    assert!(!view.node("n0").unwrap().alive && batch.services.is_empty());
    assert_eq!(batch.nodes.len(), 1);
    let (view, batch) = fold(
        5,
        Step::Node {
            node: 0,
            variant: Some(3),
        },
    );
    assert_eq!(health(&view), Health::Unknown);
    assert!(batch.services.contains(&service));
    let (_, batch) = fold(
        6,
        Step::Instance {
            node: 0,
            service: 0,
            id: 0,
            variant: Some(1),
        },
    );
    assert!(batch.services.is_empty(), "written again unchanged");
}

#[test]
fn a_record_that_cannot_be_read_is_left_out() {
    let key = "instance/a/users.default/u1";
    let item = KeyValue {
        key: key.into(),
        value: "\u{1}garbage".into(),
        create_revision: Revision(2),
        mod_revision: Revision(2),
        lease: None,
    };
    let view = View::load(Revision(2), [&item]);
    assert_eq!((view.services().count(), view.nodes().count()), (0, 0));
}

#[test]
fn names_are_parsed() {
    let name = |text| ServiceName::parse(text).map(|name| name.to_string());
    assert_eq!(name("users"), Some("users.default".into()));
    assert_eq!(name("users.shop"), Some("users.shop".into()));
    for bad in ["", ".shop", "users.", "users.shop.mesh"] {
        assert_eq!(name(bad), None, "{bad}");
    }
}

/// The services that must claim a path, and whether each is without instances, derived from the view's other results.
fn claimants_by_definition(view: &View, proto: &str) -> Vec<(ServiceName, bool)> {
    let names = |protos: &[ProtoService]| protos.iter().any(|it| it.name == proto);
    let claims = |service: &&ServiceName| {
        let empty = view.instances(service).next().is_none();
        let mut claiming = view.instances(service).filter(|it| it.claim_paths);
        match view.stands_in(service) {
            Some(known) => {
                let wanted = empty || claiming.next().is_some();
                known.claim_paths && wanted && names(&known.protos)
            }
            None => claiming.any(|it| names(&it.protos)),
        }
    };
    let with_life = |service: &ServiceName| {
        let empty = view.instances(service).next().is_none();
        (service.clone(), empty)
    };
    view.services().filter(claims).map(with_life).collect()
}

proptest! {
    #[test]
    fn a_path_is_claimed_by_those_that_serve_it_and_owned_by_the_oldest_claim(steps in steps()) {
        let (states, changes) = history(&steps);
        let mut view = View::load(Revision(1), []);
        for (state, changes) in states[1..].iter().zip(&changes) {
            view.apply(changes, &mut Batch::default());
            for proto in ["p0.Api", "p1.Api"] {
                let claimants = view.path_claimants(proto);
                let claimants: Vec<_> = claimants.map(|it| (it.service.clone(), it.deserted)).collect();
                prop_assert_eq!(&claimants, &claimants_by_definition(&view, proto));
                let since = |service: &ServiceName| {
                    let key = keys::claim(proto, service);
                    let stored = state.iter().find(|item| *item.key == *key);
                    stored.map(|item| item.create_revision)
                };
                let oldest = claimants.iter().filter_map(|(it, _)| Some((since(it)?, it))).min();
                if let Some((_, oldest)) = oldest {
                    let owner = view.path_owner(proto, "x");
                    let is_it = matches!(owner, Owner::One { owner, .. } if owner == oldest);
                    prop_assert!(is_it, "{:?} is not {:?}", owner, oldest);
                }
            }
        }
    }
}
