use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpListener},
    path::Path,
};

use tonic::Status;

use super::{
    plan::{Options, Ready, check_ports, control, echo, node, refuse_taken},
    report::{self, Addresses, NodeAddresses},
    traffic::{Counts, reason},
};

fn options(line: &str) -> Options {
    let args = ["heddle demo"]
        .into_iter()
        .chain(line.split_whitespace())
        .map(Into::into);
    heddle_options::try_parse::<Options>("HEDDLE_DEMO", args, &BTreeMap::new())
        .unwrap()
        .options
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn the_first_node_and_the_control_plane_have_the_default_ports() {
    let data = Path::new("/d");
    let plain = options("");
    let line = control(&plain, data).line(None).join(" ");
    assert_eq!(
        line,
        "control --store embedded:/d/store --listen 127.0.0.1:15010 --http 127.0.0.1:15014"
    );
    let line = node(0, "node-a", &plain, data, at(15010))
        .line(None)
        .join(" ");
    for part in [
        "--outbound 127.0.0.1:15001",
        "--inbound 127.0.0.1:15008",
        "--agent 127.0.0.1:15002",
        "--admin 127.0.0.1:15000",
        "--state-dir /d/node-a",
        "--services-dir /d/services/node-a",
        "--control http://127.0.0.1:15010",
    ] {
        assert!(line.contains(part), "{part} is missing in {line}");
    }
    let other = node(1, "node-b", &plain, data, at(15010))
        .line(None)
        .join(" ");
    assert!(
        other.contains("--outbound 127.0.0.1:0") && other.contains("--agent 127.0.0.1:0"),
        "{other}"
    );
    let free = node(0, "node-a", &options("--free-ports"), data, at(1))
        .line(None)
        .join(" ");
    assert!(!free.contains(":15001"), "{free}");
}

#[test]
fn a_part_that_is_started_again_keeps_its_addresses() {
    let part = echo("node-b", 2, at(5));
    assert_eq!(part.name, "echo-b-2");
    let ready = Ready::read(
        "heddle-echo ready: listen 127.0.0.1:4711, service heddle-echo.default, instance x",
    );
    let line = part.line(ready.as_ref()).join(" ");
    assert_eq!(
        line,
        "echo --instance echo-b-2 --agent http://127.0.0.1:5 --listen 127.0.0.1:4711"
    );
}

#[test]
fn a_ready_line_is_taken_apart() {
    let line =
        "heddle-proxy ready: node a, outbound unix:/x+127.0.0.1:7+[::1]:7, admin 127.0.0.1:9";
    let ready = Ready::read(line).unwrap();
    assert_eq!(ready.address("outbound"), Some(at(7)));
    assert_eq!(ready.address("node"), None);
    assert_eq!(ready.address("agent"), None);
    assert_eq!(
        Ready::read("2026 WARN not yet ready: x").and_then(|ready| ready.address("x")),
        None
    );
    assert_eq!(Ready::read("starting"), None);
}

#[test]
fn ports_in_use_are_one_line_with_the_remedy() {
    let held = TcpListener::bind(at(0)).unwrap();
    let port = held.local_addr().unwrap().port();
    let fault = refuse_taken([("http", "the control plane", port)].into_iter()).unwrap_err();
    assert_eq!(
        fault,
        format!(
            "port {port} (http of the control plane) is in use: stop the process that listens \
             there (another demo?), or use other ports with --free-ports"
        )
    );
    let fault = refuse_taken([("a", "x", port), ("b", "y", port)].into_iter()).unwrap_err();
    assert!(fault.starts_with(&format!(
        "ports {port} (a of x), {port} (b of y) are in use"
    )));
    assert_eq!(check_ports(&options("--free-ports")), Ok(()));
}

#[test]
fn the_tally_names_nodes_and_reasons() {
    let counts = Counts {
        answered: BTreeMap::from([("node-a".into(), 3), ("node-b".into(), 4)]),
        failed: BTreeMap::from([("node-a".into(), 1)]),
        instances: BTreeSet::from(["e1".into(), "e2".into()]),
        reasons: BTreeMap::from([("CONNECTION_LOST".into(), 1)]),
        missed: 0,
    };
    assert_eq!(
        report::tally(&counts),
        "calls: 7 answered by 2 instances (node-a 3, node-b 4), 1 failed (CONNECTION_LOST 1)"
    );
}

#[test]
fn a_failure_shows_the_proxys_reason() {
    let mut status = Status::unavailable("users on node-a: gone");
    assert_eq!(reason(&status), "Unavailable: users on node-a: gone");
    status
        .metadata_mut()
        .insert("heddle-reason", "CONNECTION_LOST".parse().unwrap());
    assert_eq!(reason(&status), "CONNECTION_LOST: users on node-a: gone");
}

#[test]
fn the_instructions_have_lines_that_work_for_every_node() {
    let node = |name: &str, port: u16| NodeAddresses {
        name: name.into(),
        outbound: at(port),
        agent: at(port + 1),
        admin: at(port + 2),
        services_dir: format!("/d/services/{name}").into(),
    };
    let addresses = Addresses {
        control: at(4000),
        http: at(4001),
        nodes: vec![node("node-a", 5000), node("node-b", 6000)],
    };
    let instructions = report::instructions(&addresses, 2, "heddle");
    for part in [
        "grpcurl -plaintext 127.0.0.1:5000 list",
        "grpcurl -plaintext -d '{\"payload\":\"aGVsbG8=\"}' 127.0.0.1:6000 heddle.echo.v1.Echo/Unary",
        "grpcurl -plaintext 127.0.0.1:4000 heddle.status.v1.MeshStatus/GetMesh",
        "heddle status --control http://127.0.0.1:4000",
        "--agent http://127.0.0.1:5001 --outbound http://127.0.0.1:5000",
    ] {
        assert!(
            instructions.contains(part),
            "{part} is missing in {instructions}"
        );
    }
    let ready = Ready::read(&report::ready(&addresses)).unwrap();
    assert_eq!(ready.address("grpc"), Some(at(4000)));
    assert_eq!(ready.address("node-b-agent"), Some(at(6001)));
}
