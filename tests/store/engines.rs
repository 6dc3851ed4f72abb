//! The conformance suite of the store on one etcd member, on a cluster, and on the older release line.

use std::sync::Arc;
use std::time::Duration;

use heddle_control::store::{Etcd as Engine, EtcdOptions, Revision, Store as _, StoreError};
use heddle_tests::etcd::Etcd;
use heddle_tests::tools::{etcd_3_5_1, go_peer};

use crate::conformance::{self, Forget};

pub(crate) fn open(etcd: &Etcd) -> Arc<Engine> {
    Arc::new(Engine::open(&EtcdOptions::new(etcd.urls())).unwrap())
}

async fn conforms(etcd: Etcd) {
    let (store, other) = (open(&etcd), open(&etcd));
    let etcd = Arc::new(etcd);
    let forget = {
        let etcd = Arc::clone(&etcd);
        Forget::When(Box::new(move |revision| {
            let etcd = Arc::clone(&etcd);
            Box::pin(async move {
                etcd.ctl(&["compact", &revision.to_string()]).await;
            })
        }))
    };
    conformance::all(&conformance::Engine {
        store,
        other,
        forget,
        shortest_ttl: Duration::from_secs(2),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_etcd_conforms() {
    conforms(Etcd::single().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_conforms() {
    conforms(Etcd::cluster().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_of_the_older_line_conforms() {
    conforms(Etcd::builder().program(go_peer("etcd-3.5")).start().await).await;
}

/// It loses changes, because it reports more watch progress than it made.
#[tokio::test]
async fn an_etcd_that_is_too_old_is_refused() {
    let etcd = Etcd::builder().program(etcd_3_5_1()).start().await;
    let error = open(&etcd).watch("", Revision(1)).await.err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Refused { .. }), "{text}");
    assert!(text.contains("3.5.1") && text.contains("3.5.8"), "{text}");
}
