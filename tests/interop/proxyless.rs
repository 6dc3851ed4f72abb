//! Stock gRPC clients (Python, Go, Node) with `xds:///heddle-echo` and only a bootstrap file, without a proxy. All run
//! at once: the one that reconnects last determines the time.

use heddle_tests::stock::{Client, Kind};

use crate::outage::{Caller, Loss, costs_no_call, mesh};

async fn a_loss_costs_no_call(loss: Loss) {
    let mesh = mesh().await;
    let clients = Kind::ALL.map(|kind| Client::start(kind, &mesh, mesh.grpc));
    costs_no_call(mesh, clients.map(Caller::Grpc).into(), &[loss]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_follow_the_mesh_and_outlive_a_control_plane_that_stops() {
    a_loss_costs_no_call(Loss::Stopped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_follow_the_mesh_and_outlive_a_control_plane_that_is_killed() {
    a_loss_costs_no_call(Loss::Killed).await;
}
