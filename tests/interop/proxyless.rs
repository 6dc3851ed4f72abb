//! Stock gRPC clients, Python's, Go's and Node's, with `xds:///heddle-echo` and nothing but a bootstrap file: no proxy of
//! ours between them and the instances, only our control plane. All of them at once: the slowest to dial again sets the
//! time.

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
