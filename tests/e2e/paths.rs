//! Path ownership (issue 10, B2): the first service of a namespace that registers a proto service gets the calls that
//! name no mesh service. A second one does no harm, and all views agree on the owner.

use heddle_proto::status::v1::Path;
use heddle_tests::echo::{call, channel_as, payload, reach};
use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Start, run};
use heddle_tests::tools::binary;
use heddle_tests::wait::{seen, until};
use tonic::Code;

const ECHO: &str = "heddle.echo.v1.Echo";

/// Starts an instance of another service with the same proto service.
async fn other(mesh: &mut Mesh, service: &str, id: &str) {
    let (name, namespace) = service.split_once('.').unwrap_or((service, "default"));
    let words = ["--service", name, "--namespace", namespace];
    let start = mesh.echo_start("a", id).args(words);
    mesh.instance("a", id, start).await;
}

/// Asserts that each of these calls by path is answered by one of these instances.
async fn all_reach(mesh: &Mesh, calls: usize, instances: &[&str]) {
    for n in 0..calls {
        let answer = call(mesh.node("a").outbound, payload("x")).await;
        let answer = answer.unwrap_or_else(|failed| panic!("call {n}: {failed:?}"));
        assert!(
            instances.contains(&&*answer.instance),
            "call {n}: {answer:?}"
        );
    }
}

async fn paths(mesh: &Mesh, service: &str) -> Vec<Path> {
    let mut paths = mesh.service(service).await.expect("it is known").paths;
    paths.retain(|path| path.proto == ECHO);
    paths
}

fn path(owner: &str, stand_in: &str) -> Path {
    Path {
        proto: ECHO.to_owned(),
        owner: owner.to_owned(),
        stand_in: stand_in.to_owned(),
        claimed: true,
    }
}

async fn conflicts(mesh: &Mesh) -> Vec<(String, String)> {
    let events = mesh.events().await.into_iter();
    let conflicts = events.filter(|event| event.kind == "path-conflict");
    conflicts
        .map(|event| (event.service, event.cause))
        .collect()
}

fn heddle(mesh: &Mesh, words: &[&str]) -> Start {
    Start::new("heddle", &binary("heddle"))
        .args(words)
        .args(["--control", &format!("http://{}", mesh.grpc)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_service_with_the_same_proto_harms_nobody_and_everybody_names_the_owner() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("a", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
    // Sorts before the owner: names do not matter.
    other(&mut mesh, "a-canary", "c1").await;
    reach(&channel_as(mesh.node("a").outbound, "a-canary"), &["c1"]).await;
    all_reach(&mesh, 30, &["e1"]).await;
    // From a node without any of them.
    reach(&mesh.channel("b"), &["e1"]).await;

    let owner = [path("heddle-echo.default", "")];
    for service in ["heddle-echo", "a-canary"] {
        until("the status names the owner", async || {
            let paths = paths(&mesh, service).await;
            seen(paths == owner, format!("{service}: {paths:?}"))
        })
        .await;
    }
    let ran = run(heddle(&mesh, &["services"])).await;
    let shown = format!("{ECHO} (path: heddle-echo.default)");
    let line = ran
        .stdout
        .lines()
        .find(|line| line.starts_with("a-canary.default"));
    assert!(
        line.is_some_and(|line| line.contains(&shown)),
        "{}",
        ran.all()
    );

    other(&mut mesh, "a-canary", "c2").await;
    reach(
        &channel_as(mesh.node("a").outbound, "a-canary"),
        &["c1", "c2"],
    )
    .await;
    let found = until("the conflict is reported", async || {
        let found = conflicts(&mesh).await;
        if found.is_empty() {
            Err(format!("{found:?}"))
        } else {
            Ok(found)
        }
    })
    .await;
    let [(service, cause)] = &*found else {
        panic!("once for all instances: {found:?}");
    };
    assert_eq!(service, "a-canary.default");
    assert!(
        cause.starts_with(&format!("heddle-echo.default claimed {ECHO} first")),
        "{cause}"
    );
    let log = mesh.node("a").proxy().output();
    let lines = log.lines().filter(|line| line.contains("path-conflict"));
    let lines: Vec<_> = lines.collect();
    assert!(
        matches!(&*lines, [line] if line.contains("but heddle-echo.default owns that path")),
        "{lines:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_and_a_restart_of_everything_keep_the_path_with_no_control_plane_too() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
    other(&mut mesh, "a-canary", "c1").await;
    reach(&channel_as(mesh.node("a").outbound, "a-canary"), &["c1"]).await;

    // All of the owner's instances leave: the other service stands in until one is back.
    mesh.stop_instance("a", "e1").await;
    reach(&mesh.channel("a"), &["c1"]).await;
    let stands_in = [path("heddle-echo.default", "a-canary.default")];
    assert_eq!(paths(&mesh, "a-canary").await, stands_in);
    until("event and log name who stands in", async || {
        let recorded = conflicts(&mesh).await;
        let log = mesh.node("a").proxy().output();
        let event = recorded.last().is_some_and(|(_, cause)| {
            cause.ends_with("but has no instance now: a-canary.default gets its calls")
        });
        let words =
            "a-canary.default gets its calls as long as heddle-echo.default has no instance";
        seen(event && log.contains(words), format!("{recorded:?}\n{log}"))
    })
    .await;
    mesh.echo("a", "e2").await;
    reach(&mesh.channel("a"), &["e2"]).await;
    all_reach(&mesh, 20, &["e2"]).await;

    // Restarts the control plane, and then the proxy without it.
    mesh.kill_control().await;
    mesh.start_control().await;
    all_reach(&mesh, 20, &["e2"]).await;
    mesh.control_has(&["e2"]).await;
    assert_eq!(
        paths(&mesh, "a-canary").await,
        [path("heddle-echo.default", "")]
    );
    mesh.stop_control().await;
    mesh.stop_proxy("a").await;
    mesh.start_proxy("a").await;
    reach(&channel_as(mesh.node("a").outbound, "a-canary"), &["c1"]).await;
    reach(&mesh.channel("a"), &["e2"]).await;
    all_reach(&mesh, 20, &["e2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_services_of_several_other_namespaces_are_ambiguous_and_are_named() {
    let mut mesh = Mesh::builder().start().await;
    other(&mut mesh, "one.shop", "s1").await;
    reach(&mesh.channel("a"), &["s1"]).await;
    other(&mut mesh, "two.shop", "s2").await;
    reach(&channel_as(mesh.node("a").outbound, "two.shop"), &["s2"]).await;
    all_reach(&mesh, 10, &["s1"]).await;
    other(&mut mesh, "three.zoo", "z1").await;
    let failed = until("the path is ambiguous", async || {
        match call(mesh.node("a").outbound, payload("x")).await {
            Err(failed) if failed.code == Code::FailedPrecondition => Ok(failed),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let names = [ECHO, "one.shop", "three.zoo", "-authority one.shop"];
    failed.assert(Code::FailedPrecondition, "AMBIGUOUS_ROUTE", &names);
    reach(&channel_as(mesh.node("a").outbound, "three.zoo"), &["z1"]).await;
    // A service without a claim in the callers' namespace does not count; one with a claim does.
    mesh.echo("a", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
    all_reach(&mesh, 10, &["e1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_file_and_heddle_run_can_leave_paths_to_others() {
    let mut mesh = Mesh::builder().start().await;
    // A program that only the file registers.
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], heddle_tests::temp::free_port()));
    let alone = Start::new("heddle-echo alone", &binary("heddle-echo"))
        .args(["--listen", &listen.to_string(), "--instance", "f1"])
        .args(["--agent", "none"]);
    mesh.instance("a", "f1", alone).await;
    let file = format!(
        "service: quiet\nprotos: [{ECHO}]\nclaim_paths: false\n\
         instances: [{{id: f1, address: \"{listen}\"}}]\n"
    );
    mesh.write_services_file("a", "quiet.yaml", &file);
    reach(&channel_as(mesh.node("a").outbound, "quiet"), &["f1"]).await;
    let failed = call(mesh.node("a").outbound, payload("x"))
        .await
        .unwrap_err();
    let names = ["claims the path of heddle.echo.v1.Echo", "quiet.default"];
    failed.assert(Code::Unimplemented, "NO_ROUTE", &names);

    let mut program = Start::new("heddle run", &binary("heddle"))
        .args(["run", "--service", "shy", "--instance", "s1", "--no-paths"])
        .args(["--agent", &format!("http://{}", mesh.node("a").agent), "--"])
        .arg(binary("heddle-echo"))
        .args(["--listen", "127.0.0.1:$PORT", "--instance", "s1"])
        .args(["--agent", "none"])
        .spawn();
    program.ready().await;
    reach(&channel_as(mesh.node("a").outbound, "shy"), &["s1"]).await;
    let failed = call(mesh.node("a").outbound, payload("x"))
        .await
        .unwrap_err();
    failed.assert(Code::Unimplemented, "NO_ROUTE", &["shy.default"]);

    mesh.echo("a", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
    all_reach(&mesh, 20, &["e1"]).await;
    assert_eq!(conflicts(&mesh).await, []);
    program.stop_cleanly().await;
}

/// Issue 10, B1: programs of other proto services take the places of killed ones within 0.3 s, while no call is open and
/// no check is due.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn another_program_at_the_address_has_its_own_paths_also_if_nobody_saw_the_restart() {
    let mesh = Mesh::builder().start().await;
    let mut programs = Vec::new();
    for kind in ["tcp", "none", "grpc"] {
        let mut echo = Start::new("heddle-echo", &binary("heddle-echo"))
            .args(["--listen", "127.0.0.1:0", "--agent", "none"])
            .spawn();
        let address = echo.ready().await.get("listen").to_owned();
        let text = format!(
            "service: by-{kind}\nhealth: {{kind: {kind}, interval: 1h}}\n\
             instances:\n  - {{id: i1, address: \"{address}\"}}\n"
        );
        mesh.write_services_file("a", &format!("{kind}.yaml"), &text);
        programs.push((format!("by-{kind}"), address, echo));
    }
    for (service, ..) in &programs {
        has_path(&mesh, service, ECHO).await;
    }
    // The proxy looks at the sockets of a new instance within some 0.1 s, and nothing shows when it has.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let mut others = Vec::new();
    for (service, address, echo) in &mut programs {
        echo.kill().await;
        let store = format!("embedded:{}", mesh.path(service).display());
        let mut other = Start::new("another program", &binary("heddle-control"))
            .args(["--listen", address, "--http", "127.0.0.1:0"])
            .args(["--store", &store])
            .spawn();
        other.ready().await;
        others.push(other);
    }
    for (service, ..) in &programs {
        has_path(&mesh, service, "heddle.status.v1.MeshStatus").await;
        let left = paths(&mesh, service).await;
        assert!(left.is_empty(), "{service}: {left:?}");
    }
    // Until the proxy has the same table, another program answers UNIMPLEMENTED itself.
    let failed = until("no program serves it", async || {
        let failed = call(mesh.node("a").outbound, payload("x")).await;
        let failed = failed.expect_err("no program serves it");
        match failed.reason {
            Some(_) => Ok(failed),
            None => Err(format!("{failed:?}")),
        }
    })
    .await;
    failed.assert(Code::Unimplemented, "NO_ROUTE", &[ECHO]);
}

async fn has_path(mesh: &Mesh, service: &str, proto: &str) {
    until("its proto service", async || {
        let paths = mesh.service(service).await?.paths;
        let known = paths.iter().any(|path| path.proto == proto);
        seen(known, format!("{service}: {paths:?}"))
    })
    .await;
}
