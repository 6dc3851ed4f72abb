//! Questions of both sides: descriptors that the node is asked for, and its removal queries.

use heddle_proto::control::v1::RemovalQuery;
use prost_types::FileDescriptorSet;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::session::node::queries::{MAX_QUERIES, MAX_REMOVAL_WAIT};

#[tokio::test]
async fn descriptors_are_instance_name_checked_and_kept_byte_for_byte() {
    let mesh = Mesh::new().await;
    // The unknown field represents an extension that generated types do not know.
    let mut bytes = FileDescriptorSet::default().encode_to_vec();
    bytes.extend([0xca, 0x3e, 0x02, b'h', b'i']);
    let sha256: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut local = instance("a", "users/u1").1;
    local.schema_sha256.clone_from(&sha256);
    let (mut peer, welcome) = Peer::open(mesh.server, hello("a", "p1", vec![local.clone()])).await;
    assert_eq!(welcome.missing_schemas, [sha256.as_str()]);

    let upload = |bytes: &[u8]| {
        let file_descriptor_set = bytes.to_vec().into();
        Up::Schema(SchemaUpload {
            sha256: sha256.clone(),
            file_descriptor_set,
        })
    };
    peer.send(upload(b"something else")).await;
    let ask_again = Change {
        sequence: 1,
        upserted: vec![local.clone()],
        removed: vec![],
    };
    peer.send(Up::Change(ask_again)).await;
    assert_eq!(
        ack(&mut peer).await.missing_schemas,
        [sha256.as_str()],
        "the wrong one is not kept"
    );
    peer.send(upload(&bytes)).await;
    mesh.fixture.until(|view| view.has_schema(&sha256)).await;
    assert_eq!(
        mesh.fixture.registry.schema(&sha256).await,
        Ok(Some(bytes.into()))
    );

    peer.send(Up::Change(Change {
        sequence: 2,
        upserted: vec![local],
        removed: vec![],
    }))
    .await;
    assert_eq!(ack(&mut peer).await.missing_schemas, [""; 0]);
    // These descriptors were not requested.
    let other = FileDescriptorSet::default().encode_to_vec();
    let sha256: String = Sha256::digest(&other)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let unasked = SchemaUpload {
        sha256: sha256.clone(),
        file_descriptor_set: other.into(),
    };
    peer.send(Up::Schema(unasked)).await;
    peer.send(Up::Beat(Beat { sequence: 1 })).await;
    ack(&mut peer).await;
    assert_eq!(mesh.fixture.registry.schema(&sha256).await, Ok(None));
}

#[tokio::test]
async fn a_removal_query_is_answered_for_the_revision_that_removed() {
    let mesh = Mesh::new().await;
    let (mut peer, _) = Peer::open(
        mesh.server,
        hello("a", "p1", vec![instance("a", "users/u1").1]),
    )
    .await;
    peer.send(remove(1, "users", "u1")).await;
    let removed = ack(&mut peer).await;
    let wait = prost_types::Duration {
        seconds: 60,
        nanos: 0,
    };
    let instance = Some(reference("users", "u1"));
    peer.send(Up::RemovalQuery(RemovalQuery {
        id: 9,
        instance,
        max_wait: Some(wait),
    }))
    .await;
    let Down::RemovalAnswer(answer) = peer.next().await.unwrap() else {
        panic!("no answer")
    };
    assert_eq!((answer.id, answer.acknowledged), (9, false));
    assert_eq!(answer.unacknowledged, ["slow-client"]);
    let queries = mesh.queries.questions.lock().unwrap().clone();
    let [(instance_name, revision, max_wait)] = &queries[..] else {
        panic!("{queries:?}")
    };
    assert_eq!(instance_name, "a/users.default/u1");
    assert_eq!(*revision, Revision(removed.revision));
    assert!(
        *max_wait <= MAX_REMOVAL_WAIT && *max_wait > MAX_REMOVAL_WAIT / 2,
        "never longer than the bound: {max_wait:?}"
    );
}

#[tokio::test]
async fn too_many_removal_queries_are_answered_and_end_no_session() {
    let mesh = Mesh::new().await;
    mesh.queries.silent.store(true, Ordering::Relaxed);
    let (mut peer, _) = Peer::open(mesh.server, hello("a", "p1", vec![])).await;
    for id in 0..=MAX_QUERIES as u64 {
        peer.send(Up::RemovalQuery(RemovalQuery {
            id,
            instance: Some(reference("users", "u1")),
            max_wait: None,
        }))
        .await;
    }
    let Down::RemovalAnswer(answer) = peer.next().await.unwrap() else {
        panic!("no answer")
    };
    assert_eq!(
        (answer.id, answer.acknowledged),
        (MAX_QUERIES as u64, false)
    );
    let why = &answer.unacknowledged[0];
    assert!(why.contains("are under way"), "{why}");
    peer.send(Up::Beat(Beat { sequence: 1 })).await;
    ack(&mut peer).await;
}
