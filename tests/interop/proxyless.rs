//! Stock gRPC clients, Python's, Go's and Node's, with `xds:///heddle-echo` and nothing but a bootstrap file: no proxy of
//! ours between them and the instances, only our control plane.

use heddle_tests::mesh::Mesh;
use heddle_tests::stock::{Client, Kind};

async fn follows_the_mesh_and_outlives_the_control_plane(kind: Kind) {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    mesh.echo("a", "e2").await;
    let client = Client::start(kind, &mesh, mesh.grpc);
    client.reaches(&["e1", "e2"]).await;

    mesh.echo("a", "e3").await;
    client.reaches(&["e1", "e2", "e3"]).await;

    mesh.stop_instance("a", "e2").await;
    client.reaches(&["e1", "e3"]).await;

    mesh.stop_control().await;
    client.reaches(&["e1", "e3"]).await;

    mesh.start_control().await;
    mesh.echo("a", "e4").await;
    client.reaches(&["e1", "e3", "e4"]).await;
    assert!(client.calls().len() > 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_follows_the_mesh_and_outlives_the_control_plane() {
    follows_the_mesh_and_outlives_the_control_plane(Kind::Grpcio).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_go_follows_the_mesh_and_outlives_the_control_plane() {
    follows_the_mesh_and_outlives_the_control_plane(Kind::GrpcGo).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_js_follows_the_mesh_and_outlives_the_control_plane() {
    follows_the_mesh_and_outlives_the_control_plane(Kind::GrpcJs).await;
}
