//! heddle-control on an etcd: it can be started first, waits, logs that it waits, and stops on SIGTERM.

use heddle_tests::etcd::Etcd;
use heddle_tests::process::{Process, Start};
use heddle_tests::temp::free_addr;
use heddle_tests::tools::binary;

fn control(etcd: &Etcd) -> Process {
    Start::new("heddle-control", &binary("heddle-control"))
        .args(["--listen", &free_addr().to_string()])
        .args(["--http", &free_addr().to_string()])
        .args(["--store", &etcd.store()])
        .spawn()
}

#[tokio::test]
async fn started_before_its_etcd_it_waits_and_says_so() {
    let mut etcd = Etcd::single().await;
    etcd.stop(0).await;
    let (mut early, mut given_up) = (control(&etcd), control(&etcd));
    early.says("waiting for the store").await;
    early.says(&etcd.urls()[0]).await;
    given_up.says("waiting for the store").await;
    assert_eq!(given_up.stop().await.code(), Some(0));
    assert!(early.stdout().is_empty(), "it serves nothing yet");
    etcd.restart(0).await;
    let ready = early.ready().await;
    assert_eq!(ready.get("store"), etcd.store());
    // A second one with its own name shares the etcd.
    let mut second = control(&etcd);
    second.ready().await;
    assert_eq!(early.stop().await.code(), Some(0));
    assert_eq!(second.stop().await.code(), Some(0));
    let left = etcd.ctl(&["get", "heddle/replica/", "--prefix", "--keys-only"]);
    assert_eq!(left.await, "", "who stops is gone at once");
}

#[tokio::test]
async fn while_it_waits_for_its_name_nobody_can_connect() {
    let etcd = Etcd::single().await;
    let start = |grpc: &str, http: &str| {
        Start::new("heddle-control", &binary("heddle-control"))
            .args(["--listen", grpc, "--http", http])
            .args(["--store", &etcd.store(), "--replica", "c1"])
            .spawn()
    };
    let first = [free_addr().to_string(), free_addr().to_string()];
    let mut first = start(&first[0], &first[1]);
    first.ready().await;
    let addresses = [free_addr().to_string(), free_addr().to_string()];
    let mut second = start(&addresses[0], &addresses[1]);
    second.says("an earlier process").await;
    for address in &addresses {
        let refused = tokio::net::TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    assert_eq!(first.stop().await.code(), Some(0));
    let ready = second.ready().await;
    for (key, address) in ["grpc", "http"].iter().zip(&addresses) {
        assert_eq!(ready.get(key), address);
        tokio::net::TcpStream::connect(address).await.unwrap();
    }
    assert_eq!(second.stop().await.code(), Some(0));
}
