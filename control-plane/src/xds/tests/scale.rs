use std::sync::Arc;

use super::clients::*;
use crate::snapshot::{Audience, Kind, fixture::Mesh};

/// One change costs one encoding, whatever the number of clients and their variant.
#[test]
fn a_thousand_clients_share_what_is_encoded() {
    let mut mesh = Mesh::new();
    for service in 0..50 {
        mesh.put(&format!("a/s{service}/1"), "10.0.0.1:80");
    }
    let first = mesh.snapshot();
    let mut ours: Vec<_> = (0..1_000)
        .map(|_| DeltaClient::new(Audience::Proxy, Arc::clone(&first)))
        .collect();
    let mut stock: Vec<_> = (0..100)
        .map(|_| SotwClient::new(Audience::DirectLocal, Arc::clone(&first)))
        .collect();
    for client in &mut ours {
        client.subscribe(Kind::Cluster, &[], &[]);
        client.subscribe(Kind::Endpoint, &["s1.default", "s2.default"], &[]);
        client.settle();
    }
    for client in &mut stock {
        client.subscribe(Kind::Cluster, &[]);
        client.subscribe(Kind::Endpoint, &["s1.default", "s2.default"]);
        client.settle();
    }
    let clusters = mesh.encodes.of(Kind::Cluster);
    let before = mesh.encodes.of(Kind::Endpoint);
    assert_eq!(
        before,
        2 * 2,
        "two services, for proxies and for stock clients"
    );
    mesh.put("a/s1/2", "10.0.0.2:80");
    mesh.put("a/s40/2", "10.0.0.2:80"); // no client subscribes to it
    let next = mesh.snapshot();
    for client in &mut ours {
        client.see(&next);
        assert_eq!(client.settle(), ["endpoint +s1.default"]);
    }
    for client in &mut stock {
        client.see(&next);
        assert_eq!(client.settle(), ["endpoint s1.default"]);
    }
    assert_eq!(
        mesh.encodes.of(Kind::Endpoint) - before,
        2,
        "one, seen in two ways"
    );
    assert_eq!(mesh.encodes.of(Kind::Cluster), clusters);
}
