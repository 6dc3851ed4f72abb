//! A registry on a store of its own for tests, and short ways to name nodes and instances. In comes nothing, out go
//! the real things with short times. No rule of the registry may be repeated here.

use std::{sync::Arc, time::Duration};

use heddle_proto::{
    control::v1::{LocalInstance, ProtoService},
    registry::v1::{Health, Instance},
};

use tokio::sync::watch;

use super::{InstanceKey, NodeIdentity, Registry, RegistryOptions, ServiceName, View, duty::Held};
use crate::store::{
    Embedded, EmbeddedOptions, KeyValue, LeaseId, Range, Revision, Store, StoreCounters,
    StoreFuture, Txn, TxnResult, Watch, keys,
};

pub(crate) struct Fixture {
    pub(crate) registry: Registry,
    pub(crate) folder: tempfile::TempDir,
}

impl Fixture {
    /// Leases that no test waits for.
    pub(crate) async fn new() -> Self {
        Self::with_ttl(Duration::from_secs(600)).await
    }

    pub(crate) async fn with_ttl(ttl: Duration) -> Self {
        Self::open(tempfile::tempdir().unwrap(), ttl).await
    }

    pub(crate) async fn open(folder: tempfile::TempDir, lease_ttl: Duration) -> Self {
        let options = RegistryOptions {
            lease_ttl,
            renew_interval: lease_ttl / 3,
            ..RegistryOptions::default()
        };
        Self::with_options(folder, options).await
    }

    pub(crate) async fn with_options(folder: tempfile::TempDir, options: RegistryOptions) -> Self {
        let store = EmbeddedOptions::new(folder.path().join("control.redb"));
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&store).unwrap());
        Self::over(folder, store, options).await
    }

    /// With a store whose transactions can be held up.
    pub(crate) async fn gated(lease_ttl: Duration) -> (Self, Arc<Gated>) {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedOptions::new(folder.path().join("control.redb"));
        let store = Arc::new(Gated {
            inner: Embedded::open(&store).unwrap(),
            open: watch::Sender::new(true),
            waiting: watch::Sender::new(0),
        });
        let options = RegistryOptions {
            lease_ttl,
            renew_interval: lease_ttl / 3,
            ..RegistryOptions::default()
        };
        let shared: Arc<dyn Store> = Arc::<Gated>::clone(&store);
        (Self::over(folder, shared, options).await, store)
    }

    async fn over(
        folder: tempfile::TempDir,
        store: Arc<dyn Store>,
        options: RegistryOptions,
    ) -> Self {
        let fixture = Self {
            registry: Registry::open(store, options).await.unwrap(),
            folder,
        };
        // What the election writes is no part of what a test waits for.
        fixture.until_sweeper().await;
        fixture
    }

    async fn until_sweeper(&self) {
        self.until(|_| self.registry.held().is_some()).await;
    }

    /// The right to sweep, which the only replica of a store has.
    pub(super) fn held(&self) -> Held {
        self.registry.held().unwrap()
    }

    /// Ends the registry's tasks and waits until the store's file is free.
    pub(crate) async fn close(self) -> tempfile::TempDir {
        self.registry.options().stop.cancel();
        drop(self.registry);
        let options = EmbeddedOptions::new(self.folder.path().join("control.redb"));
        within(async {
            while let Err(crate::store::StoreError::InUse { .. }) =
                Embedded::open(&options).map(drop)
            {
                tokio::task::yield_now().await;
            }
        })
        .await;
        self.folder
    }

    /// The keys in the store that tell of nodes and services, sorted; those of the control plane itself are left out.
    pub(crate) async fn keys_of_nodes(&self) -> Vec<String> {
        let all = self.registry.store().range_keys("", None).await.unwrap();
        let is_own = |key: &str| {
            let own = [keys::REPLICAS, keys::DUTIES, keys::EVENTS];
            own.iter().any(|prefix| key.starts_with(prefix))
        };
        let keys = all.items.into_iter().map(|item| item.key.to_string());
        keys.filter(|key| !is_own(key)).collect()
    }

    /// Waits until the view is as wanted; shows it when it does not come to that.
    pub(crate) async fn until(&self, wanted: impl Fn(&View) -> bool) {
        let mut changes = self.registry.subscribe();
        let wait = async {
            while !self.registry.read(&wanted) {
                changes.next().await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(30), wait).await;
        assert!(
            in_time.is_ok(),
            "the view stays at {:#?}",
            self.registry.read(View::clone)
        );
    }
}

/// A store whose transactions wait while it is shut; all else goes on.
pub(crate) struct Gated {
    inner: Embedded,
    open: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Gated {
    pub(crate) fn shut(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    /// Until so many transactions wait.
    pub(crate) async fn waiting(&self, wanted: usize) {
        let mut waiting = self.waiting.subscribe();
        within(waiting.wait_for(|now| *now == wanted))
            .await
            .unwrap();
    }
}

struct Waits<'a>(&'a watch::Sender<usize>);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

impl Store for Gated {
    fn engine(&self) -> &'static str {
        self.inner.engine()
    }

    fn max_value_bytes(&self) -> usize {
        self.inner.max_value_bytes()
    }

    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<KeyValue>> {
        self.inner.get(key)
    }

    fn range<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range> {
        self.inner.range(prefix, at)
    }

    fn range_keys<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range> {
        self.inner.range_keys(prefix, at)
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnResult> {
        Box::pin(async move {
            self.waiting.send_modify(|waiting| *waiting += 1);
            let waits = Waits(&self.waiting);
            let _ = self.open.subscribe().wait_for(|open| *open).await;
            drop(waits);
            self.inner.txn(txn).await
        })
    }

    fn grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId> {
        self.inner.grant(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.inner.keep_alive(lease)
    }

    fn revoke(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.inner.revoke(lease)
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> StoreFuture<'a, Watch> {
        self.inner.watch(prefix, from)
    }

    fn counters(&self) -> StoreCounters {
        self.inner.counters()
    }
}

/// A generous bound for what an event ends.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("30 s have passed")
}

pub(crate) fn identity(node: &str, process: &str) -> NodeIdentity {
    NodeIdentity {
        name: node.to_owned(),
        process_id: process.to_owned(),
        epoch: 0,
        advertise: "127.0.0.1:15008".parse().unwrap(),
        region: String::new(),
        zone: String::new(),
        version: "0.1.0".to_owned(),
        loopback: true,
    }
}

pub(crate) fn service(name: &str) -> ServiceName {
    ServiceName::parse(name).unwrap()
}

/// "users/u1" on a node.
pub(crate) fn instance(node: &str, name: &str) -> (InstanceKey, LocalInstance) {
    let (users, id) = name.split_once('/').unwrap();
    let service = service(users);
    let local = LocalInstance {
        instance: Some(Instance {
            service: service.service.clone(),
            namespace: service.namespace.clone(),
            id: id.to_owned(),
            version: "v1".to_owned(),
            address: "127.0.0.1:21001".to_owned(),
            weight: 1,
            protocol: 1,
            labels: (0..5).map(|n| (n.to_string(), n.to_string())).collect(),
            ..Instance::default()
        }),
        health: Health::Healthy.into(),
        protos: vec![ProtoService {
            name: format!("{}.v1.Api", service.service),
            idempotent_methods: vec!["Get".to_owned()],
        }],
        ..LocalInstance::default()
    };
    (
        InstanceKey {
            node: node.into(),
            service,
            id: id.into(),
        },
        local,
    )
}

/// What a view shows: "a/users.default/u1", sorted.
pub(crate) fn names(view: &View) -> Vec<String> {
    let services: Vec<_> = view.services().cloned().collect();
    let mut names: Vec<_> = services
        .iter()
        .flat_map(|service| {
            view.instances(service)
                .map(|instance| instance.key().to_string())
        })
        .collect();
    names.sort();
    names
}
