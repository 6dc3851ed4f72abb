use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use envoy_types::pb::{
    envoy::service::discovery::v3::Resource as WrappedResource, google::protobuf::Any,
};
use proptest::prelude::*;
use prost::Message as _;

use super::clients::*;
use crate::snapshot::{Audience, Kind, ROUTES, Snapshot, TARGETS, fixture::Mesh};

#[derive(Clone, Debug)]
enum Step {
    Put { service: u8, instance: u8, port: u8 },
    Remove { service: u8, instance: u8 },
    Forget { service: u8 },
    Publish,
    Want { service: u8 },
    Unwant { service: u8 },
    Deliver,
    Answer { kind: u8, reject: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..4_u8, 0..3_u8, 0..4_u8)
            .prop_map(|(service, instance, port)| Step::Put { service, instance, port }),
        2 => (0..4_u8, 0..3_u8).prop_map(|(service, instance)| Step::Remove { service, instance }),
        1 => (0..4_u8).prop_map(|service| Step::Forget { service }),
        3 => Just(Step::Publish),
        1 => (0..4_u8).prop_map(|service| Step::Want { service }),
        1 => (0..4_u8).prop_map(|service| Step::Unwant { service }),
        3 => Just(Step::Deliver),
        4 => (0..5_u8, prop::bool::weighted(0.1))
            .prop_map(|(kind, reject)| Step::Answer { kind, reject }),
    ];
    prop::collection::vec(step, 1..80)
}

fn service(number: u8) -> String {
    format!("s{number}.default")
}

/// Applies a step that changes the mesh; returns the snapshot if one is published.
fn change(mesh: &mut Mesh, step: &Step) -> Option<Arc<Snapshot>> {
    match step {
        Step::Put {
            service,
            instance,
            port,
        } => {
            mesh.put(
                &format!("a/s{service}/{instance}"),
                &format!("10.0.{service}.{instance}:{port}"),
            );
            None
        }
        Step::Remove { service, instance } => {
            mesh.remove(&format!("a/s{service}/{instance}"));
            None
        }
        Step::Forget { service: number } => {
            for instance in 0..3 {
                mesh.remove(&format!("a/s{number}/{instance}"));
            }
            mesh.snapshot();
            Some(mesh.forget(&service(*number)))
        }
        Step::Publish => Some(mesh.snapshot()),
        _ => None,
    }
}

const KINDS: [Kind; 5] = [
    Kind::Cluster,
    Kind::Endpoint,
    Kind::Listener,
    Kind::Route,
    Kind::ServiceIndex,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever changes and whenever it answers, a delta client ends with exactly what the snapshot has for it, and is
    /// never sent what it has unless it requested it.
    #[test]
    fn delta_converges_and_sends_nothing_twice(steps in steps()) {
        let mut mesh = Mesh::new();
        let mut client = DeltaClient::new(Audience::Proxy, mesh.snapshot());
        let mut wanted: BTreeSet<u8> = BTreeSet::from([0]);
        client.subscribe(Kind::Cluster, &[], &[]).subscribe(Kind::ServiceIndex, &[], &[]);
        client.subscribe(Kind::Endpoint, &[&service(0)], &[]).subscribe(Kind::Route, &[&service(0)], &[]);
        let mut requested: BTreeSet<(Kind, String)> = BTreeSet::new();
        // What it had before each response: a client that rejects one takes nothing of it.
        let mut undo: BTreeMap<Kind, BTreeMap<(Kind, String), String>> = BTreeMap::new();
        for step in &steps {
            if let Some(snapshot) = change(&mut mesh, step) {
                client.see(&snapshot);
            }
            match step {
                Step::Want { service: number } => {
                    wanted.insert(*number);
                    for kind in [Kind::Endpoint, Kind::Route] {
                        client.subscribe(kind, &[&service(*number)], &[]);
                        requested.insert((kind, service(*number)));
                    }
                }
                Step::Unwant { service: number } => {
                    wanted.remove(number);
                    for kind in [Kind::Endpoint, Kind::Route] {
                        client.subscribe(kind, &[], &[&service(*number)]);
                        client.resources.remove(&(kind, service(*number)));
                        requested.insert((kind, service(*number)));
                    }
                }
                Step::Deliver => {
                    let before = client.resources.clone();
                    for (kind, response) in client.pump() {
                        undo.insert(kind, before.clone());
                        for resource in response.resources {
                            let resource = WrappedResource::decode(resource).unwrap();
                            let key = (kind, resource.name);
                            let same = before.get(&key) == Some(&resource.version);
                            prop_assert!(!same || requested.contains(&key), "{:?} sent again", key);
                        }
                    }
                }
                Step::Answer { kind, reject } => {
                    let kind = KINDS[usize::from(*kind)];
                    if client.nonces.contains_key(&kind) {
                        client.answer(kind, reject.then_some("no"));
                        if *reject {
                            client.resources.retain(|(held, _), _| *held != kind);
                            let old = undo.remove(&kind).unwrap_or_default().into_iter();
                            let wants = |name: &str| {
                                !matches!(kind, Kind::Endpoint | Kind::Route)
                                    || wanted.iter().any(|number| service(*number) == name)
                            };
                            client.resources.extend(old.filter(|((held, name), _)| *held == kind && wants(name)));
                            // The parts of the response are sent again.
                            requested.extend((0..4_u8).map(|number| (kind, service(number))));
                        }
                    }
                }
                _ => {}
            }
        }
        client.see(&mesh.snapshot());
        client.settle();
        let snapshot = Arc::clone(&client.snapshot);
        let refused: BTreeSet<(Kind, String)> = KINDS
            .into_iter()
            .filter_map(|kind| Some((kind, client.state.subscription(kind).status()?)))
            .flat_map(|(kind, status)| {
                status.refused(100).into_iter().map(move |each| (kind, each.name))
            })
            .collect();
        // What a rejected route still refers to stays too.
        let spared = |(kind, name): &(Kind, String)| {
            refused.contains(&(*kind, name.clone()))
                || TARGETS.contains(kind)
                    && ROUTES.iter().any(|route| refused.contains(&(*route, name.clone())))
        };
        client.resources.retain(|key, _| !spared(key));
        let mut expect = BTreeMap::new();
        for kind in [Kind::Cluster, Kind::ServiceIndex] {
            for resource in snapshot.table(kind, Audience::Proxy).values() {
                expect.insert((kind, resource.name.to_string()), resource.version.to_string());
            }
        }
        for kind in [Kind::Endpoint, Kind::Route] {
            for number in &wanted {
                if let Some(resource) = snapshot.get(kind, Audience::Proxy, &service(*number)) {
                    expect.insert((kind, resource.name.to_string()), resource.version.to_string());
                }
            }
        }
        expect.retain(|key, _| !spared(key));
        prop_assert_eq!(&client.resources, &expect, "but for what was refused");
        for number in wanted {
            let acknowledged = client
                .state
                .subscription(Kind::Endpoint)
                .acknowledged_at(&service(number), snapshot.revision);
            prop_assert!(acknowledged.is_some());
        }
        client.log.clear();
        prop_assert_eq!(client.pump().len(), 0);
    }

    /// The same for state of the world, where only responses of listeners and clusters can show deletions.
    #[test]
    fn sotw_converges(steps in steps()) {
        let mut mesh = Mesh::new();
        let mut client = SotwClient::new(Audience::DirectLocal, mesh.snapshot());
        let mut wanted: BTreeSet<u8> = BTreeSet::from([0]);
        // The endpoints before each response of endpoints: a client that rejects one takes nothing of it.
        let mut undo = BTreeMap::new();
        client.subscribe(Kind::Cluster, &[]);
        client.subscribe(Kind::Endpoint, &[&service(0)]);
        client.subscribe(Kind::Listener, &[&service(0)]);
        for step in &steps {
            if let Some(snapshot) = change(&mut mesh, step) {
                client.see(&snapshot);
            }
            match step {
                Step::Want { service: number } | Step::Unwant { service: number } => {
                    if matches!(step, Step::Want { .. }) {
                        wanted.insert(*number);
                    } else {
                        wanted.remove(number);
                    }
                    let names: Vec<String> = wanted.iter().map(|number| service(*number)).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    for kind in [Kind::Endpoint, Kind::Listener] {
                        // As gRPC does: with the nonce of the last response it has seen.
                        client.subscribe(kind, &names);
                        client.unanswered.remove(&kind);
                        client.resources.entry(kind).or_default().retain(|name, _| names.contains(&name.as_str()));
                    }
                }
                Step::Deliver => {
                    let before = client.resources.get(&Kind::Endpoint).cloned().unwrap_or_default();
                    if client.pump().iter().any(|(kind, _, _)| *kind == Kind::Endpoint) {
                        undo = before;
                    }
                }
                Step::Answer { kind, reject } => {
                    let kind = KINDS[usize::from(*kind)];
                    if client.unanswered.contains_key(&kind) {
                        client.answer(kind, reject.then_some("no"));
                        if *reject && kind == Kind::Endpoint {
                            undo.retain(|name, _| wanted.iter().any(|number| service(*number) == *name));
                            client.resources.insert(kind, std::mem::take(&mut undo));
                        }
                    }
                }
                _ => {}
            }
        }
        client.see(&mesh.snapshot());
        client.settle();
        let snapshot = Arc::clone(&client.snapshot);
        let value = |kind, name: &str| {
            let resource = snapshot.get(kind, Audience::DirectLocal, name)?;
            Some(Any::decode(resource.any()).unwrap().value)
        };
        let clusters: BTreeMap<_, _> = snapshot
            .table(Kind::Cluster, Audience::DirectLocal)
            .keys()
            .map(|name| (name.to_string(), value(Kind::Cluster, name).unwrap()))
            .collect();
        prop_assert_eq!(&client.resources[&Kind::Cluster], &clusters);
        let endpoints = client.state.subscription(Kind::Endpoint).status().unwrap();
        let refused: BTreeSet<_> = endpoints.refused(100).into_iter().map(|each| each.name).collect();
        for number in wanted {
            let name = service(number);
            if let (Some(expect), false) = (value(Kind::Endpoint, &name), refused.contains(&name)) {
                prop_assert_eq!(client.resources[&Kind::Endpoint].get(&name), Some(&expect));
            }
            let listener = client.resources.get(&Kind::Listener).and_then(|held| held.get(&name));
            let expect = value(Kind::Listener, &name);
            prop_assert_eq!(listener, expect.as_ref());
        }
    }
}
