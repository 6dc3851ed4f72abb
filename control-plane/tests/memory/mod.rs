//! Clients that use as much memory as they can, over real connections: they are refused with a clear message, and
//! others are not affected. Issue 10, D1.

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use futures_util::future::join_all;
use heddle_control::snapshot::Kind;
use heddle_proto::{
    registry::v1::{WatchInstancesRequest, registry_client::RegistryClient},
    status::v1::GetMeshRequest,
};
use tonic::Code;

use crate::{
    ECHO, names,
    plane::{Plane, echo, proxy, until, within},
};

const MEMORY: usize = 128 << 20;

#[tokio::test]
async fn names_that_clients_make_up_are_charged_to_who_sends_them() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::of_memory(&folder.path().join("store"), MEMORY).await;
    let _node = plane.node("a", vec![echo("1", "127.0.0.1:7001")]).await;
    let idle = plane.budget.figures().1;
    // Each stream has its own node id, but all share one connection.
    let mut streams = plane
        .many(12, |number| proxy(&format!("made-up-{number}")))
        .await;
    let (mut served, mut refused) = (Vec::new(), 0);
    for (stream_number, mut stream) in streams.drain(..).enumerate() {
        for (part, kind) in [
            Kind::Endpoint,
            Kind::Route,
            Kind::Listener,
            Kind::ServiceIndex,
        ]
        .into_iter()
        .enumerate()
        {
            let name = |number: usize| format!("{stream_number}-{part}-{number:0>400}");
            let request = DeltaDiscoveryRequest {
                type_url: kind.url().to_owned(),
                resource_names_subscribe: (0..9_000).map(name).collect(),
                ..DeltaDiscoveryRequest::default()
            };
            if !stream.try_send(request).await {
                break;
            }
        }
        // Each type is answered: the resources do not exist.
        let ended = within(async {
            for _ in 0..4 {
                match stream.try_next().await {
                    Ok(Some(response)) => {
                        let ack = DeltaDiscoveryRequest {
                            type_url: response.type_url,
                            response_nonce: response.nonce,
                            ..DeltaDiscoveryRequest::default()
                        };
                        stream.try_send(ack).await;
                    }
                    Ok(None) => panic!("ended without a reason"),
                    Err(status) => return Some(status),
                }
            }
            None
        })
        .await;
        match ended {
            None => served.push(stream),
            Some(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                let text = status.message();
                assert!(text.contains("clients of 127.0.0.1 hold"), "{text}");
                assert!(text.contains("--client-memory"), "{text}");
                refused += 1;
            }
        }
    }
    assert!(!served.is_empty() && refused > 0, "{refused} refused");
    let (limit, used, _) = plane.budget.figures();
    assert!(
        used > limit / 4 && used < limit * 4 / 5,
        "{used} of {limit}"
    );

    let mut honest = plane.delta(proxy("honest")).await;
    honest.subscribe(Kind::Cluster, &[]).await;
    assert_eq!(names(&honest.next().await), [ECHO]);
    let _other = plane.node("b", vec![echo("2", "127.0.0.1:7002")]).await;
    drop(honest);
    drop(served);
    until(|| plane.budget.figures().1 < idle + (1 << 20)).await;
}

#[tokio::test]
async fn watches_that_nobody_reads_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::of_memory(&folder.path().join("store"), MEMORY).await;
    let instances = (0..1_000).map(|number| {
        let mut local = echo(&format!("i{number}"), "127.0.0.1:7001");
        local.health_reason = "x".repeat(500);
        local
    });
    let _node = plane.node("a", instances.collect()).await;
    let idle = plane.budget.figures().1;
    let mut client = RegistryClient::new(plane.channel().await);
    let mut watches = Vec::new();
    let mut refusals = Vec::new();
    for _ in 0..500 {
        // No watch is read.
        let request = WatchInstancesRequest::default();
        match client.watch_instances(request).await {
            Ok(watch) => watches.push(watch.into_inner()),
            Err(status) => refusals.push(status),
        }
    }
    let (limit, used, _) = plane.budget.figures();
    assert!(used < limit * 4 / 5, "{used} of {limit}");
    let mut status = plane.status().await;
    let mesh = status.get_mesh(GetMeshRequest::default()).await.unwrap();
    assert_eq!(mesh.into_inner().instances, 1_000, "others are answered");
    let _other = plane.node("b", vec![echo("2", "127.0.0.1:7002")]).await;
    // A watch that is read now gets everything or a refusal. All are read at the same time, because they share the flow
    // control window of one connection.
    let read = join_all(watches.into_iter().map(async |mut watch| {
        loop {
            match within(watch.message()).await {
                Ok(Some(message)) if message.initial_done => return None,
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a reason"),
                Err(status) => return Some(status),
            }
        }
    }));
    let ends: Vec<_> = read.await;
    let whole = ends.iter().filter(|end| end.is_none()).count();
    refusals.extend(ends.into_iter().flatten());
    for status in &refusals {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("--client-memory"), "{status}");
    }
    assert!(
        whole > 20 && refusals.len() > 20,
        "{whole} whole, {refusals:?}"
    );
    drop(client);
    until(|| plane.budget.figures().1 < idle + (1 << 20)).await;
}

/// Issue 10, N4: instances stay for a while after the session that registered them.
#[tokio::test]
async fn instances_of_made_up_nodes_are_bounded_also_after_their_sessions() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Plane::of_memory(&folder.path().join("store"), MEMORY).await;
    let instances = |count: usize| -> Vec<_> {
        let of = |number: usize| {
            let mut local = echo(&format!("i{number}"), "127.0.0.1:7001");
            local.health_reason = "x".repeat(500);
            local
        };
        (0..count).map(of).collect()
    };
    let honest = plane.node("a", instances(500)).await;
    let mut registered = 0;
    let refusal = loop {
        match plane
            .try_node(&format!("made-up-{registered}"), instances(4_000))
            .await
        {
            // The session ends at once; its instances stay until its lease has expired.
            Ok(session) => drop(session),
            Err(refusal) => break refusal,
        }
        registered += 1;
        assert!(registered < 40, "not refused");
    };
    assert!(registered > 3, "{registered}: {refusal}");
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    let text = refusal.message();
    assert!(
        text.contains("--client-memory") && text.contains("those of the mesh take"),
        "{text}"
    );
    // A node that is in can come back, and one without instances can join.
    drop(honest);
    plane.node("a", instances(500)).await;
    plane.node("b", Vec::new()).await;
}
