//! Endpoints are fetched when a service is used, or from the start if configured, and dropped when nobody uses it.

use std::sync::atomic::Ordering;

use super::*;
use crate::{balance::endpoints::Health, xds::demand::Fetches};

#[tokio::test]
async fn endpoints_come_at_the_first_use_and_change_and_go() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening(&[]).await;
    assert!(!started.handle.view.borrow().complete);
    // In two parts: the state is not complete after the first.
    let part = vec![index("echo.default", "p.P", "")];
    visit.send_part(INDEX, part, &[], "+").await;
    assert_eq!(visit.answered().await, None);
    until(&started.handle, "a part", |v| !v.clusters.is_empty()).await;
    assert!(!started.handle.view.borrow().complete);
    visit.name(&["users.shop"]).await;
    let view = until(&started.handle, "all services", |v| v.complete).await;
    assert_eq!(
        endpoints(&view, "echo.default"),
        None,
        "nobody has called it"
    );
    assert_eq!(view.clusters.len(), 2);
    assert_eq!(started.revision.load(Ordering::Relaxed), 102);

    started.calls(&["echo.default", "nobody.knows"]);
    visit.asked_for(&["echo.default"], &[]).await;
    visit.fill(&[("echo.default", "10.0.0.2:15008")]).await;
    let view = until(&started.handle, "its endpoints", |v| {
        endpoints(v, "echo.default").is_some()
    })
    .await;
    assert_eq!(endpoints(&view, "users.shop"), None);
    let remote = &endpoints(&view, "echo.default").unwrap()[0];
    assert_eq!(
        (&*remote.node, &*remote.id, &*remote.version),
        ("b", "i1", "v2")
    );
    assert_eq!(remote.inbound, "10.0.0.2:15008".parse().unwrap());
    assert_eq!(
        (&*remote.region, &*remote.zone, remote.weight),
        ("eu", "eu-1", 1)
    );
    assert_eq!(remote.health, Health::Healthy);
    let index = view.clusters["echo.default"].index.as_ref().unwrap();
    assert_eq!(index.protos[0].idempotent_methods, ["Get"]);
    let status = started.handle.status.borrow().clone();
    assert_eq!((status.wanted, status.held), (1, 1));
    assert_eq!(
        status.fetches,
        Fetches {
            ok: 1,
            timed_out: 0
        }
    );

    // A resource that was not subscribed to is ignored, without a fault.
    visit
        .send(ASSIGNMENT, vec![assignment("users.shop", &[])], &[])
        .await;
    assert_eq!(visit.answered().await, None);
    assert_eq!(endpoints(&started.handle.view.borrow(), "users.shop"), None);
    // The control plane drops a service that lost its last instance long ago: first its name, then the rest.
    visit.send(INDEX, vec![], &["echo.default"]).await;
    assert_eq!(visit.answered().await, None);
    visit.send(CLUSTER, vec![], &["echo.default"]).await;
    assert_eq!(visit.answered().await, None);
    until(&started.handle, "gone", |v| {
        !v.clusters.contains_key("echo.default")
    })
    .await;
    // It returns without a new first call.
    visit.name(&["echo.default"]).await;
    visit.fill(&[("echo.default", "10.0.0.3:15008")]).await;
    let view = until(&started.handle, "it is back", |v| {
        endpoints(v, "echo.default").is_some_and(|e| !e.is_empty())
    })
    .await;
    assert_eq!(view.clusters.len(), 2);
}

#[tokio::test]
async fn a_service_without_a_cluster_or_endpoints_is_known_to_have_none() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let all = ["gone.default", "empty.default"];
    let mut visit = running(&mut visits, &started, &all, &[]).await;
    started.calls(&["gone.default"]);
    visit.asked_for(&["gone.default"], &[]).await;
    visit.send(CLUSTER, vec![], &["gone.default"]).await;
    assert_eq!(visit.answered().await, None);
    let none = |name: &'static str| move |v: &View| endpoints(v, name) == Some(&[]);
    until(&started.handle, "no cluster", none("gone.default")).await;
    started.calls(&["empty.default"]);
    visit.asked_for(&["empty.default"], &[]).await;
    visit
        .send(CLUSTER, vec![cluster("empty.default")], &[])
        .await;
    assert_eq!(visit.answered().await, None);
    visit.send(ASSIGNMENT, vec![], &["empty.default"]).await;
    assert_eq!(visit.answered().await, None);
    until(&started.handle, "no endpoints", none("empty.default")).await;
}

#[tokio::test]
async fn prefetch_all_subscribes_to_all_from_the_start() {
    let (addr, mut visits) = ads().await;
    let urls = vec![format!("http://{addr}")];
    let started = start_with(
        urls,
        Resources::default(),
        Prefetch::All,
        HOUR,
        Arc::new(NoCallers),
    );
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening(&[]).await;
    visit.name(&["a.x", "b.x"]).await;
    visit.asked_for(&["a.x", "b.x"], &[]).await;
    assert!(
        !started.handle.view.borrow().complete,
        "their endpoints belong to it"
    );
    visit
        .fill(&[("a.x", "10.0.0.2:1"), ("b.x", "10.0.0.2:1")])
        .await;
    until(&started.handle, "all of it", |v| v.complete).await;
    visit
        .send(INDEX, vec![index("c.x", "p.P", "")], &["a.x"])
        .await;
    assert_eq!(visit.answered().await, None);
    visit.asked_for(&["c.x"], &["a.x"]).await;
    let view = until(&started.handle, "another one", |v| {
        v.clusters.contains_key("c.x")
    })
    .await;
    assert_eq!(view.clusters.keys().collect::<Vec<_>>(), ["b.x", "c.x"]);
}

#[tokio::test]
async fn an_unused_service_is_unsubscribed_and_dropped_and_later_updates_of_it_are_ignored() {
    /// Calls `a.x` all the time.
    #[derive(Default)]
    struct CallsA {
        calls: AtomicU64,
        forgotten: std::sync::Mutex<Vec<Arc<str>>>,
    }
    impl Callers for CallsA {
        fn used(&self) -> HashMap<Arc<str>, Use> {
            let ended = self.calls.fetch_add(1, Ordering::Relaxed);
            let of_a = Use {
                ended,
                in_progress: 0,
            };
            [(Arc::from("a.x"), of_a)].into()
        }
        fn forget(&self, services: &Arc<HashSet<Arc<str>>>) {
            self.forgotten
                .lock()
                .unwrap()
                .extend(services.iter().cloned());
        }
        fn loads(&self) -> Vec<Arc<LocalityLoad>> {
            Vec::new()
        }
    }
    let (addr, mut visits) = ads().await;
    // Long enough that its arrival is seen before it is dropped, even if the machine stalls.
    let (urls, idle) = (vec![format!("http://{addr}")], Duration::from_secs(3));
    let callers = Arc::new(CallsA::default());
    let started = start_with(
        urls,
        Resources::default(),
        Prefetch::None,
        idle,
        callers.clone(),
    );
    let called = [("a.x", "10.0.0.2:1"), ("b.x", "10.0.0.2:1")];
    let mut visit = running(&mut visits, &started, &["a.x", "b.x"], &called).await;
    visit.asked_for(&[], &["b.x"]).await;
    let view = until(&started.handle, "dropped", |v| {
        endpoints(v, "b.x").is_none()
    })
    .await;
    assert!(endpoints(&view, "a.x").is_some());
    assert_eq!(*callers.forgotten.lock().unwrap(), ["b.x".into()]);
    // It was in transit when the service was unsubscribed.
    visit
        .send(ASSIGNMENT, vec![assignment("b.x", &[])], &[])
        .await;
    assert_eq!(visit.answered().await, None);
    assert_eq!(endpoints(&started.handle.view.borrow(), "b.x"), None);
    // The next use fetches it again.
    started.calls(&["b.x"]);
    visit.asked_for(&["b.x"], &[]).await;
}
