use std::collections::BTreeSet;

use heddle_proto::control::v1::{LocalInstance, ProtoService};

use super::*;
use crate::{
    names::InstanceKey,
    registry::{
        fixture::{Fixture, Replicas, identity, instance, service, until, within},
        lease::NodeLease,
        options::{ClaimOptions, RegistryOptions},
    },
    store::{Revision, Txn},
};

const API: &str = "users.v1.Api";

/// "users/u1" on a node, serving these proto services.
fn serving(node: &str, name: &str, protos: &[&str]) -> (InstanceKey, LocalInstance) {
    let (key, mut local) = instance(node, name);
    let proto = |name: &&str| ProtoService {
        name: (*name).to_owned(),
        idempotent_methods: vec![],
    };
    local.protos = protos.iter().map(proto).collect();
    (key, local)
}

async fn node(registry: &Registry, name: &str) -> NodeLease {
    let identity = identity(name, &format!("{name}-1"));
    NodeLease::claim(registry, &identity).await.unwrap()
}

/// Makes the node have exactly these instances.
async fn set(lease: &mut NodeLease, registry: &Registry, instances: &[&str]) -> Revision {
    let name = lease.node().to_owned();
    let set = instances.iter().map(|it| serving(&name, it, &[API]));
    let revision = lease.replace_all(set.collect()).await.unwrap();
    registry.reached(revision).await;
    revision
}

fn owner(view: &View) -> String {
    match view.path_owner(API, "default") {
        Owner::Unclaimed => "nobody".to_owned(),
        Owner::One { owner, serves } if owner == serves => owner.to_string(),
        Owner::One { owner, serves } => format!("{owner}, and {serves} stands in"),
        Owner::Unclear(several) => format!("{several:?}"),
    }
}

fn events(view: &View, kind: &str) -> Vec<(String, String)> {
    let events = view.events().filter(|event| event.record.kind == kind);
    let words = |event: &Arc<crate::registry::model::Event>| {
        (event.record.service.clone(), event.record.cause.clone())
    };
    events.map(words).collect()
}

fn options(claims: ClaimOptions) -> RegistryOptions {
    RegistryOptions {
        claims,
        lease_ttl: Duration::from_secs(600),
        ..RegistryOptions::default()
    }
}

async fn fixture(claims: ClaimOptions) -> Fixture {
    Fixture::with_options(tempfile::tempdir().unwrap(), options(claims)).await
}

/// Issue 10, B2: two services that register for one path on two replicas at the same moment.
#[tokio::test(flavor = "multi_thread")]
async fn of_rivals_at_two_replicas_exactly_one_owns_the_path_and_all_agree() {
    let replicas = Replicas::new();
    let ttl = Duration::from_secs(600);
    let (first, _) = replicas.join("c1", ttl).await;
    let (second, _) = replicas.join("c2", ttl).await;
    let mut a = node(&first, "a").await;
    let mut b = node(&second, "b").await;
    for n in 0..20 {
        let proto = format!("p{n}.Api");
        let one = vec![serving("a", "one/1", &[&proto])];
        let two = vec![serving("b", "two/1", &[&proto])];
        let (at, and) = tokio::join!(a.replace_all(one), b.replace_all(two));
        let newest = at.unwrap().max(and.unwrap());
        let mut owners = BTreeSet::new();
        for registry in [&first, &second] {
            registry.reached(newest).await;
            owners
                .insert(registry.read(|view| format!("{:?}", view.path_owner(&proto, "default"))));
        }
        assert_eq!(owners.len(), 1, "{owners:?}");
        assert!(owners.first().unwrap().starts_with("One"), "{owners:?}");
        let store = replicas.store().range(keys::CLAIMS, None).await.unwrap();
        let claims = store.items.iter().filter(|it| it.key.contains(&*proto));
        let oldest = claims.min_by_key(|it| it.create_revision).unwrap();
        let first_claim = oldest.key.rsplit('/').next().unwrap();
        assert!(
            owners.first().unwrap().contains(first_claim),
            "{owners:?}, {oldest:?}"
        );
    }
}

/// Issue 10, B2: an upgrade keeps the path, and while the owner has no instance, the next claimant gets the calls.
#[tokio::test]
async fn the_first_to_register_keeps_the_path_through_upgrades_and_while_it_is_away() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut a = node(registry, "a").await;
    let mut b = node(registry, "b").await;
    set(&mut a, registry, &["users/u1"]).await;
    set(&mut b, registry, &["canary/c1"]).await;
    assert_eq!(registry.read(owner), "users.default");
    // All replaced, then all removed, then back on another node.
    set(&mut a, registry, &["users/u2", "users/u3"]).await;
    assert_eq!(registry.read(owner), "users.default");
    set(&mut a, registry, &[]).await;
    let stands_in = "users.default, and canary.default stands in";
    assert_eq!(registry.read(owner), stands_in);
    set(&mut b, registry, &["canary/c1", "users/u4"]).await;
    assert_eq!(registry.read(owner), "users.default");
    set(&mut b, registry, &[]).await;
    assert_eq!(registry.read(owner), "users.default", "none could answer");
}

#[tokio::test]
async fn a_claim_is_written_once_and_not_for_each_instance() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut a = node(registry, "a").await;
    set(&mut a, registry, &["users/u1"]).await;
    let key = keys::claim(API, &service("users"));
    let first = registry.store().get(&key).await.unwrap().unwrap();
    let mut names: Vec<String> = (1..50).map(|n| format!("users/u{n}")).collect();
    for _ in 0..3 {
        let set_of: Vec<_> = names.iter().map(String::as_str).collect();
        set(&mut a, registry, &set_of).await;
        names.remove(0);
    }
    let mut b = node(registry, "b").await;
    set(&mut b, registry, &["users/b1"]).await;
    let last = registry.store().get(&key).await.unwrap().unwrap();
    assert_eq!(last, first, "it was written again");
}

/// Issue 10, B2: claims have the order in which a node's services were registered.
#[tokio::test]
async fn of_two_services_of_one_hello_the_one_named_first_owns() {
    for names in [["users/u1", "canary/c1"], ["canary/c1", "users/u1"]] {
        let fixture = Fixture::new().await;
        let mut a = node(&fixture.registry, "a").await;
        set(&mut a, &fixture.registry, &names).await;
        let first = format!("{}.default", names[0].split('/').next().unwrap());
        assert_eq!(fixture.registry.read(owner), first);
    }
}

/// Issue 10, B2: one event per conflict.
#[tokio::test]
async fn a_conflict_has_one_event_however_many_instances_come() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut a = node(registry, "a").await;
    let mut b = node(registry, "b").await;
    set(&mut a, registry, &["users/u1"]).await;
    set(&mut b, registry, &["canary/c1"]).await;
    let conflicts = |view: &View| events(view, "path-conflict");
    fixture.until(|view| !conflicts(view).is_empty()).await;
    set(&mut b, registry, &["canary/c1", "canary/c2", "canary/c3"]).await;
    set(&mut b, registry, &[]).await;
    set(&mut b, registry, &["canary/c4"]).await;
    set(&mut a, registry, &["users/u1", "canary/c5"]).await;
    // A conflict of another service is recorded after all events about this one.
    set(&mut b, registry, &["canary/c4", "third/t1"]).await;
    fixture.until(|view| conflicts(view).len() > 1).await;
    let conflicts = registry.read(conflicts);
    let of: Vec<_> = conflicts
        .iter()
        .map(|(service, _)| service.as_str())
        .collect();
    assert_eq!(of, ["canary.default", "third.default"]);
    let cause = &conflicts[0].1;
    assert!(
        cause.starts_with("users.default claimed users.v1.Api first"),
        "{cause}"
    );
}

/// Issue 10, B2: the event said that the owner gets the calls, when it had no instance, and nothing recorded the end.
#[tokio::test]
async fn a_conflict_names_who_stands_in_and_its_end_is_told() {
    let fixture = fixture(ClaimOptions {
        release_after: Duration::from_millis(300),
        ..ClaimOptions::default()
    })
    .await;
    let registry = &fixture.registry;
    let mut a = node(registry, "a").await;
    let mut b = node(registry, "b").await;
    let of_canary = |view: &View, kind: &str| {
        let mut all = events(view, kind);
        all.retain(|(of, _)| of == "canary.default");
        all.into_iter().map(|(_, cause)| cause).collect::<Vec<_>>()
    };
    set(&mut a, registry, &["users/u1"]).await;
    set(&mut b, registry, &["canary/c1"]).await;
    let first = "users.default claimed users.v1.Api first and owns the path";
    for (has, now) in [
        (true, ": canary.default is called by its name only"),
        (
            false,
            ", but has no instance now: canary.default gets its calls",
        ),
        (true, ": canary.default is called by its name only"),
    ] {
        let users: &[&str] = if has { &["users/u1"] } else { &[] };
        set(&mut a, registry, users).await;
        let recorded = |view: &View| {
            let last = of_canary(view, "path-conflict").pop();
            last == Some(format!("{first}{now}"))
        };
        fixture.until(recorded).await;
    }
    set(&mut b, registry, &[]).await;
    let over = |view: &View| {
        let recorded = of_canary(view, "path-released");
        matches!(&*recorded, [cause] if cause.ends_with("it no longer claims the path, which users.default owns"))
    };
    fixture.until(over).await;
    assert_eq!(
        registry.read(|view| of_canary(view, "path-conflict").len()),
        3
    );
}

/// Issue 10, B2: some time after its last instance the claim is deleted, and the oldest other claim owns the path.
#[tokio::test]
async fn a_claim_that_nobody_serves_for_long_goes_and_the_next_one_owns() {
    let fixture = fixture(ClaimOptions {
        release_after: Duration::from_millis(300),
        ..ClaimOptions::default()
    })
    .await;
    let registry = &fixture.registry;
    let mut a = node(registry, "a").await;
    let mut b = node(registry, "b").await;
    let mut c = node(registry, "c").await;
    set(&mut a, registry, &["users/u1"]).await;
    set(&mut b, registry, &["second/s1"]).await;
    set(&mut c, registry, &["a-third/t1"]).await;
    set(&mut a, registry, &[]).await;
    fixture.until(|view| owner(view) == "second.default").await;
    fixture
        .until(|view| events(view, "path-released").len() == 1)
        .await;
    let (of, cause) = registry
        .read(|view| events(view, "path-released"))
        .remove(0);
    assert_eq!(of, "users.default");
    assert!(
        cause.ends_with("second.default owns the path now"),
        "{cause}"
    );
    // The third service's conflict is now with the new owner; a service that returns has the youngest claim.
    let with = |view: &View| {
        let conflicts = events(view, "path-conflict");
        let mut of_third = conflicts
            .into_iter()
            .filter(|(of, _)| of == "a-third.default");
        of_third
            .next_back()
            .is_some_and(|(_, cause)| cause.starts_with("second.default"))
    };
    fixture.until(with).await;
    set(&mut a, registry, &["users/u1"]).await;
    assert_eq!(registry.read(owner), "second.default");
}

/// Issue 10, B2: the count continues when another replica becomes the leader.
#[tokio::test]
async fn how_long_a_claim_has_been_vacant_is_noted_and_the_next_leader_counts_on() {
    let hour = Duration::from_secs(3600);
    let first = fixture(ClaimOptions {
        release_after: hour,
        note_every: Duration::from_millis(50),
        ..ClaimOptions::default()
    })
    .await;
    let registry = first.registry.clone();
    let mut a = node(&registry, "a").await;
    set(&mut a, &registry, &["users/u1"]).await;
    set(&mut a, &registry, &[]).await;
    let users = service("users");
    let noted = |view: &View| {
        view.stored_claim(&users, API)
            .map_or(0, |it| it.record.vacant_ms)
    };
    first.until(|view| noted(view) >= 100).await;
    // As if it had been vacant for nearly the whole hour.
    let key = keys::claim(API, &users);
    let late = ClaimRecord {
        vacant_ms: 3_599_900,
        ..ClaimRecord::default()
    };
    drop((a, registry));
    let folder = first.close().await;
    let store = crate::store::EmbeddedOptions::new(folder.path().join("control.redb"));
    let store = crate::store::Embedded::open(&store).unwrap();
    let store: Arc<dyn crate::store::Store> = Arc::new(store);
    store.put(&key, late.encode_to_vec().into()).await.unwrap();
    let registry = Registry::open(store, options(ClaimOptions::default()));
    let registry = registry.await.unwrap().registry().clone();
    until(&registry, |view| view.stored_claim(&users, API).is_none()).await;
}

#[tokio::test]
async fn who_comes_back_in_the_last_moment_keeps_the_path() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut a = node(registry, "a").await;
    let mut b = node(registry, "b").await;
    set(&mut a, registry, &["users/u1"]).await;
    set(&mut b, registry, &["canary/c1"]).await;
    set(&mut a, registry, &[]).await;
    let users = service("users");
    let at = registry.read(|view| view.stored_claim(&users, API).unwrap().modified);
    // Single-threaded: the view does not include the write before this task waits for it.
    let back = vec![serving("a", "users/u2", &[API])];
    let revision = a.replace_all(back).await.unwrap();
    let key = keys::claim(API, &users);
    let late = Txn {
        compare: vec![
            Compare::unchanged(&key, at),
            fixture.fencing_token().compare(),
        ],
        then: vec![Op::delete(&key)],
        ..Txn::default()
    };
    assert!(!registry.store().txn(late).await.unwrap().succeeded);
    registry.reached(revision).await;
    assert_eq!(registry.read(owner), "users.default");
}

/// Issue 10, B2: `claim_paths: false`.
#[tokio::test]
async fn who_does_not_want_paths_claims_none_and_gives_back_what_it_had() {
    let fixture = fixture(ClaimOptions {
        release_after: Duration::from_millis(100),
        ..ClaimOptions::default()
    })
    .await;
    let registry = &fixture.registry;
    let mut a = node(registry, "a").await;
    let mut b = node(registry, "b").await;
    let mut quiet = serving("a", "quiet/q1", &[API]);
    quiet.1.instance.as_mut().unwrap().claim_paths = Some(false);
    let revision = a.replace_all(vec![quiet.clone()]).await.unwrap();
    registry.reached(revision).await;
    assert_eq!(registry.read(owner), "nobody");
    set(&mut b, registry, &["users/u1"]).await;
    assert_eq!(registry.read(owner), "users.default");
    assert_eq!(registry.read(|view| events(view, "path-conflict")), []);
    // Without instances it still does not claim them.
    let revision = a.replace_all(vec![]).await.unwrap();
    registry.reached(revision).await;
    set(&mut b, registry, &[]).await;
    assert_eq!(registry.read(owner), "users.default");
    // A service that claimed paths before: another one takes over at once, and its claim is deleted later.
    let mut users = serving("b", "users/u1", &[API]);
    users.1.instance.as_mut().unwrap().claim_paths = Some(false);
    set(&mut a, registry, &["canary/c1"]).await;
    let revision = b.replace_all(vec![users]).await.unwrap();
    registry.reached(revision).await;
    assert_eq!(registry.read(owner), "canary.default");
    let gone = |view: &View| view.stored_claim(&service("users"), API).is_none();
    fixture.until(gone).await;
}

/// Stores of older versions have no claims.
#[tokio::test]
async fn claims_that_are_missing_are_made_and_the_older_service_comes_first() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut a = node(registry, "a").await;
    let mut b = node(registry, "b").await;
    set(&mut a, registry, &["users/u1"]).await;
    set(&mut b, registry, &["a-canary/c1"]).await;
    let deletes = ["users", "a-canary"].map(|name| Op::delete(&keys::claim(API, &service(name))));
    let txn = Txn {
        then: deletes.into(),
        ..Txn::default()
    };
    let revision = registry.store().txn(txn).await.unwrap().revision;
    registry.reached(revision).await;
    fixture.until(|view| owner(view) == "users.default").await;
    fixture
        .until(|view| view.claim_counts("default") == (2, 2))
        .await;
}

#[tokio::test]
async fn claims_over_the_bounds_are_counted_and_the_service_joins_all_the_same() {
    let fixture = fixture(ClaimOptions {
        at_most_in_namespace: 2,
        ..ClaimOptions::default()
    })
    .await;
    let registry = &fixture.registry;
    let mut a = node(registry, "a").await;
    let all = [
        serving("a", "one/1", &["p.One", "p.Two", "p.Three"]),
        serving("a", "other.shop/1", &["p.One"]),
    ];
    let revision = a.replace_all(all.into()).await.unwrap();
    registry.reached(revision).await;
    registry.read(|view| {
        assert_eq!(view.claim_counts("default"), (3, 2));
        assert_eq!(view.claim_counts("shop"), (3, 1));
        assert_eq!(view.instance_count(), 2);
    });
    assert_eq!(registry.refused_claims(), 1);
}

#[tokio::test]
async fn thousands_of_paths_of_one_service_are_claimed() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut a = node(registry, "a").await;
    let names: Vec<String> = (0..1000).map(|n| format!("p{n}.Api")).collect();
    let protos: Vec<&str> = names.iter().map(String::as_str).collect();
    let one = serving("a", "one/1", &protos);
    within(a.replace_all(vec![one])).await.unwrap();
    registry.reached(a.last()).await;
    assert_eq!(registry.read(|view| view.claim_counts("default").0), 1000);
}
