//! What programs of one host and strangers at the control plane try against the mesh (issue 10, B3, D2 and A1): each
//! attempt fails alone, is named, and honest calls go on.

use heddle_proto::control::v1::{
    Hello, NodeMessage, node_message, node_session_client::NodeSessionClient,
};
use heddle_proto::registry::v1::{Health, Instance, ListInstancesRequest, RegisterRequest};
use heddle_tests::echo::{call, channel, channel_as, echo, payload, reach};
use heddle_tests::mesh::Mesh;
use heddle_tests::wait::{seen, until};
use tonic::Code;

/// Calls would go round between the proxies endlessly.
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_of_a_proxy_is_no_instance_of_its_own_node_or_of_another() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("a", "e1").await;
    let own = mesh.node("a").outbound;
    let mut agent = mesh.agent("a");
    let mut register = async |address: String| {
        let instance = Instance {
            service: "looped".to_owned(),
            id: "own".to_owned(),
            address,
            ..Instance::default()
        };
        let request = RegisterRequest {
            instance: Some(instance),
            ..RegisterRequest::default()
        };
        agent.register(request).await
    };
    let port = own.port();
    for address in [
        own.to_string(),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("0.0.0.0:{port}"),
        "169.254.1.1:80".to_owned(),
        format!("localhost:{port}"),
    ] {
        let refused = register(address.clone()).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Code::InvalidArgument,
            "{address}: {refused:?}"
        );
        assert!(
            refused.message().contains("instance.address"),
            "{refused:?}"
        );
    }
    // The agent knows its own listeners: in a services file the other instances are in use.
    let echoes = mesh.echo("b", "e2").await;
    let file = format!(
        "service: mixed\ninstances:\n  - {{id: good, address: \"{echoes}\"}}\n  - {{id: bad, address: \"{}\"}}\n",
        mesh.node("b").inbound
    );
    mesh.write_services_file("b", "mixed.yaml", &file);
    // Only the control plane knows the listeners of other nodes.
    let file = format!(
        "service: looped\ninstances:\n  - {{id: other, address: \"{}\"}}\n",
        mesh.node("b").outbound
    );
    mesh.write_services_file("a", "looped.yaml", &file);
    until("the control plane refuses it and says why", async || {
        let request = ListInstancesRequest {
            service: "looped".to_owned(),
        };
        let answer = mesh.agent("a").list_instances(request).await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        let refused = answer.instances.iter().any(|it| {
            it.health() == Health::Unhealthy
                && it.health_reason.contains("refused by the control plane")
                && it
                    .health_reason
                    .contains("a listener of the proxy on node b")
        });
        seen(
            refused && answer.instances.len() == 1,
            format!("{answer:?}"),
        )
    })
    .await;
    let looped = channel_as(mesh.node("a").outbound, "looped");
    until("its service is known and takes no calls", async || {
        let failed = echo(looped.clone()).unary(payload("x")).await;
        let failed = failed.expect_err("a call that goes round");
        seen(failed.code() == Code::Unavailable, format!("{failed:?}"))
    })
    .await;
    reach(&channel_as(mesh.node("b").outbound, "mixed"), &["e2"]).await;
    reach(&mesh.channel("a"), &["e1", "e2"]).await;
}

/// The highest epoch would have locked out the node's own process indefinitely.
#[tokio::test(flavor = "multi_thread")]
async fn a_made_up_epoch_does_not_take_a_node_from_its_proxy() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    mesh.control_has(&["e1"]).await;
    let mut session = NodeSessionClient::new(channel(mesh.grpc));
    for epoch in [u64::MAX, u64::MAX - 1, 1 << 63] {
        let hello = NodeMessage {
            message: Some(node_message::Message::Hello(Hello {
                node: "a".to_owned(),
                process_id: "stranger".to_owned(),
                epoch,
                advertise: "127.0.0.1:9".to_owned(),
                ..Hello::default()
            })),
        };
        let opened = session.open(tokio_stream::iter([hello])).await;
        let refused = match opened {
            Ok(answers) => answers.into_inner().message().await.unwrap_err(),
            Err(refused) => refused,
        };
        assert_eq!(
            refused.code(),
            Code::InvalidArgument,
            "{epoch}: {refused:?}"
        );
        assert!(refused.message().contains("hello.epoch"), "{refused:?}");
    }
    call(mesh.node("a").outbound, payload("x")).await.unwrap();
    // Its next process gets the next epoch.
    mesh.stop_proxy("a").await;
    mesh.start_proxy("a").await;
    mesh.echo("a", "e2").await;
    mesh.control_has(&["e1", "e2"]).await;
}
