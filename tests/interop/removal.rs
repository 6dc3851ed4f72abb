//! Instances come and go while stock clients call them directly. With the acknowledged drain none of the clients sees
//! an error, because an instance serves until each of them has acknowledged its removal.

use heddle_tests::echo::{channel, reach};
use heddle_tests::envoy::Envoy;
use heddle_tests::load::{Kind, Load, Plan};
use heddle_tests::mesh::Mesh;
use heddle_tests::stock::{self, Client};

async fn all_reach(clients: &[Client], envoy: &Envoy, ids: &[&str]) {
    for client in clients {
        client.reaches(ids).await;
    }
    reach(&channel(envoy.listen), ids).await;
}

async fn instances_come_and_go(rounds: usize) {
    let mut mesh = Mesh::builder().start().await;
    for id in ["e0", "e1"] {
        mesh.echo("a", id).await;
    }
    let envoy = Envoy::start(&mesh, &[mesh.grpc], "GRPC");
    let clients: Vec<_> = stock::Kind::ALL
        .iter()
        .map(|&kind| Client::start(kind, &mesh, mesh.grpc))
        .collect();
    all_reach(&clients, &envoy, &["e0", "e1"]).await;
    let load = Load::start(&Plan::new(Kind::Unsafe, &[envoy.listen]));
    for round in 0..rounds {
        let [oldest, stays, new] = [round, round + 1, round + 2].map(|n| format!("e{n}"));
        mesh.echo("a", &new).await;
        all_reach(&clients, &envoy, &[&oldest, &stays, &new]).await;
        mesh.stop_instance("a", &oldest).await;
        all_reach(&clients, &envoy, &[&stays, &new]).await;
        load.more(20).await;
    }
    load.finish().await.assert_none_failed(20 * rounds);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_instances_in_turn_costs_no_stock_client_a_call() {
    instances_come_and_go(5).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: ./test --long"]
async fn of_sixty_instances_in_turn_costs_no_stock_client_a_call() {
    instances_come_and_go(60).await;
}
