use std::collections::HashMap;

use heddle_proto::{control::v1::ProtoService, paths::Instances};
use proptest::prelude::*;

use super::*;
use crate::{
    names::keys,
    store::{Changes, Event as StoreEvent, KeyValue},
};

mod steps;

use steps::{Step, history, steps};

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
                let claimants: Vec<_> = claimants.map(|it| (it.service.clone(), it.instances == Instances::None)).collect();
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
