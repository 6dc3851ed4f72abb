//! Resources of the control plane are checked: a fault names its field and affects nothing else.

use heddle_proto::xds::v1::Schema;
use prost::bytes::Bytes;

use super::*;
use crate::{
    agent::schema::sha256_hex,
    xds::{SCHEMA, translate},
};

#[tokio::test]
async fn a_bad_resource_is_rejected_with_its_reason_and_stops_nobody_else() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let called = [
        ("echo.default", "10.0.0.2:15008"),
        ("users.shop", "10.0.0.3:15008"),
    ];
    let all = ["echo.default", "users.shop"];
    let mut visit = running(&mut visits, &started, &all, &called).await;
    let bad = assignment("echo.default", &[("b", "i1", "nowhere")]);
    let good = assignment(
        "users.shop",
        &[("b", "i1", "10.0.0.3:15008"), ("c", "i2", "10.0.0.4:15008")],
    );
    visit.send(ASSIGNMENT, vec![bad, good], &[]).await;
    let reason = visit.answered().await.expect("a NACK");
    assert!(
        reason.starts_with("echo.default: endpoints[0].lb_endpoints[0].metadata.heddle.inbound"),
        "{reason}"
    );
    let view = until(&started.handle, "the good one", |v| {
        endpoints(v, "users.shop").is_some_and(|e| e.len() == 2)
    })
    .await;
    let last_good = &endpoints(&view, "echo.default").unwrap()[0];
    assert_eq!(last_good.inbound, "10.0.0.2:15008".parse().unwrap());
    let status = started.handle.status.borrow().clone();
    assert_eq!(status.rejected, 1);
    assert!(status.rejections[ASSIGNMENT].contains("nowhere"));
}

#[tokio::test]
async fn descriptors_come_on_demand_and_are_checked_by_their_hash() {
    let (addr, mut visits) = ads().await;
    let started = start(vec![format!("http://{addr}")], Resources::default());
    let mut visit = soon("a stream", visits.recv()).await.unwrap();
    visit.opening(&[]).await;
    let set = Bytes::from_static(heddle_proto::DESCRIPTOR_SET);
    let hash = sha256_hex(&set);
    for (content, expect) in [
        (Bytes::from_static(b"\x0a\x00"), None),
        (set.clone(), Some(set.clone())),
    ] {
        let schemas = started.schemas.clone();
        let wanted = hash.clone();
        let fetch = tokio::spawn(async move { schemas.get(&wanted).await });
        let request = visit.next().await;
        assert_eq!(
            (request.type_url.as_str(), request.resource_names_subscribe),
            (SCHEMA, vec![hash.clone()])
        );
        let schema = Schema {
            file_descriptor_set: content,
        };
        visit
            .send(SCHEMA, vec![resource(SCHEMA, &hash, "s1", &schema)], &[])
            .await;
        assert_eq!(visit.answered().await.is_some(), expect.is_none());
        assert_eq!(
            visit.next().await.resource_names_unsubscribe,
            std::slice::from_ref(&hash)
        );
        assert_eq!(soon("an answer", fetch).await.unwrap(), expect);
    }
    // It is cached: no request is sent.
    drop(visit);
    drop(visits);
    assert_eq!(started.schemas.get(&hash).await, Some(set));
}

#[test]
fn faults_name_their_field() {
    let raw = |message: &dyn Fn() -> Vec<u8>| Bytes::from(message());
    let cla =
        |endpoints: Vec<LbEndpoint>| load_assignment("echo.default", endpoints).encode_to_vec();
    let good = || lb_endpoint("b", "i1", "10.0.0.2:15008");
    let without = |key: &str| {
        let mut endpoint = good();
        if let Some(metadata) = &mut endpoint.metadata {
            metadata
                .filter_metadata
                .get_mut("heddle")
                .unwrap()
                .fields
                .remove(key);
        }
        endpoint
    };
    for (endpoints, field) in [
        (
            vec![without("node")],
            "endpoints[0].lb_endpoints[0].metadata.heddle.node",
        ),
        (
            vec![good(), without("inbound")],
            "endpoints[0].lb_endpoints[1].metadata.heddle.inbound",
        ),
        (
            vec![without("instance")],
            "endpoints[0].lb_endpoints[0].metadata.heddle.instance",
        ),
        (vec![good(), good()], "endpoints[0].lb_endpoints[1]"),
        (
            vec![LbEndpoint {
                host_identifier: None,
                ..good()
            }],
            "endpoints[0].lb_endpoints[0].endpoint.address",
        ),
    ] {
        let fault =
            translate::assignment("echo.default", &raw(&|| cla(endpoints.clone()))).unwrap_err();
        assert_eq!(fault.field, field, "{fault}");
    }
    assert_eq!(
        translate::assignment("other.default", &raw(&|| cla(vec![])))
            .unwrap_err()
            .field,
        "cluster_name"
    );
    assert_eq!(
        translate::assignment("echo", &raw(&|| cla(vec![])))
            .unwrap_err()
            .field,
        "name"
    );
    assert_eq!(
        translate::cluster("echo.default", &Bytes::from_static(b"\xff"))
            .unwrap_err()
            .field,
        "resource"
    );
    let other = ClusterProto {
        name: "echo.default".into(),
        ..Default::default()
    }
    .encode_to_vec();
    assert_eq!(
        translate::cluster("echo.default", &other.into())
            .unwrap_err()
            .field,
        "type"
    );
    let index = ServiceIndex {
        service: "echo.default".into(),
        schema_sha256: "zz".into(),
        ..Default::default()
    };
    assert_eq!(
        translate::index("echo.default", &index.encode_to_vec().into())
            .unwrap_err()
            .field,
        "schema_sha256"
    );
}
