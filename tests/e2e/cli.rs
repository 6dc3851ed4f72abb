//! The command line: `heddle run` adds a program to a mesh, `heddle status | services | proxies` show its state.

use std::time::{Duration, Instant};

use heddle_proto::registry::v1::{Health, health_check::Kind as HealthKind};
use heddle_tests::echo::reach;
use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Process, Ran, Start, run};
use heddle_tests::raw::Client;
use heddle_tests::tools::{binary, go_peer, interop_protoset, python};
use heddle_tests::wait::{seen, until};
use http::HeaderMap;
use serde_json::Value;

async fn heddle(mesh: &Mesh, words: &[&str]) -> Ran {
    let start = Start::new("heddle", &binary("heddle"))
        .args(words)
        .args(["--control", &format!("http://{}", mesh.grpc)]);
    run(start).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_is_shown_as_table_json_and_yaml() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("a", "e1").await;
    mesh.echo("b", "e2").await;
    reach(&mesh.channel("a"), &["e1", "e2"]).await;
    until("the status shows two healthy instances", async || {
        let ran = heddle(&mesh, &["status", "-o", "json"]).await;
        let state: Value = serde_json::from_str(&ran.stdout).map_err(|_| ran.all())?;
        seen(state["healthy_instances"] == 2, ran.all())
    })
    .await;
    until("both proxies have acknowledged all", async || {
        let ran = heddle(&mesh, &["proxies", "-o", "json"]).await;
        let state: Value = serde_json::from_str(&ran.stdout).map_err(|_| ran.all())?;
        let proxies = state["proxies"].as_array().map_or(&[][..], Vec::as_slice);
        let mut types = proxies.iter().filter_map(|proxy| proxy["types"].as_array());
        let settled = |types: &Vec<Value>| {
            !types.is_empty() && types.iter().all(|of| of["in_flight"] == false)
        };
        seen(proxies.len() == 2 && types.all(settled), ran.all())
    })
    .await;
    for (words, parts) in [
        (vec!["status"], vec!["embedded"]),
        (vec!["services"], vec!["heddle-echo.default"]),
        (vec!["services", "heddle-echo"], vec!["e1", "e2"]),
        (
            vec!["services", "-o", "yaml"],
            vec!["name: heddle-echo.default"],
        ),
        (vec!["status", "-o", "yaml"], vec!["replica:", "name: b"]),
        (vec!["proxies"], vec!["delta", "acknowledged"]),
        (vec!["proxies", "-o", "yaml"], vec!["node_id: b"]),
        (vec!["proxies", "-o", "json"], vec!["\"node_id\": \"b\""]),
        (vec!["edges", "-o", "yaml"], vec!["edges:"]),
        (vec!["events"], vec!["node-joined"]),
    ] {
        let ran = heddle(&mesh, &words).await;
        assert_eq!(ran.code, Some(0), "{words:?}: {}", ran.all());
        for part in parts {
            assert!(
                ran.stdout.contains(part),
                "{words:?}: no {part:?} in {}",
                ran.all()
            );
        }
    }
    let ran = heddle(&mesh, &["services", "-o", "json"]).await;
    let state: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(state["services"][0]["endpoints"][1]["id"], "e2");

    let ran = heddle(&mesh, &["services", "heddle-ecko"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    assert!(
        ran.stderr.contains("heddle-echo"),
        "no nearest name in {}",
        ran.all()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_not_there_is_one_line_with_the_remedy() {
    let mut mesh = Mesh::builder().start().await;
    mesh.stop_control().await;
    let ran = heddle(&mesh, &["status"]).await;
    assert_eq!(ran.code, Some(4), "{}", ran.all());
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.all());
    for part in [mesh.grpc.to_string().as_str(), "--control"] {
        assert!(ran.stderr.contains(part), "{}", ran.all());
    }
}

/// Issue 10, E1: the verdict, its problems by name, and the exit codes.
#[tokio::test(flavor = "multi_thread")]
async fn the_verdict_and_the_exit_code_say_whether_the_mesh_is_well() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    mesh.control_has(&["e1"]).await;
    let verdict = async |mesh: &Mesh, expected: &str, code: i32, named: &str| {
        until(&format!("the verdict is {expected}"), async || {
            let ran = heddle(mesh, &["status", "-o", "json"]).await;
            let state: Value = serde_json::from_str(&ran.stdout).map_err(|_| ran.all())?;
            let is = state["verdict"] == expected && ran.code == Some(code);
            seen(is && ran.stdout.contains(named), ran.all())
        })
        .await;
    };
    verdict(&mesh, "OK", 0, "\"problems\": []").await;

    // Nobody listens there.
    let file = format!(
        "service: filed\nhealth: {{kind: tcp}}\ninstances:\n  - {{id: f1, address: \"{}\"}}\n",
        heddle_tests::temp::free_addr()
    );
    mesh.write_services_file("a", "filed.yaml", &file);
    verdict(&mesh, "FAILING", 1, "service.unhealthy").await;
    let ran = heddle(&mesh, &["status"]).await;
    let first = ran.stdout.lines().next();
    assert!(first == Some("FAILING"), "{}", ran.all());
    assert!(
        ran.stdout.contains("try: heddle services filed"),
        "{}",
        ran.all()
    );

    let ran = heddle(&mesh, &["services", "a.b.c"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    let ran = heddle(&mesh, &["events", "--since", "soon"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.all());
    let full = Start::new("heddle", std::path::Path::new("sh"))
        .args(["-c"])
        .arg(format!(
            "{} services --control http://{} >/dev/full",
            binary("heddle").display(),
            mesh.grpc
        ));
    let ran = run(full).await;
    assert_eq!(ran.code, Some(1), "{}", ran.all());
}

/// gRPC's interop server as `users` on node a, by `heddle run`: a third-party program.
fn run_users(mesh: &Mesh) -> Process {
    let server = go_peer("interop-server");
    Start::new("heddle run", &binary("heddle"))
        .args(["run", "--service", "users", "--instance", "u1"])
        .args(["--proto", "grpc.testing.TestService"])
        .args(["--agent", &format!("http://{}", mesh.node("a").agent)])
        .args(["--", "sh", "-c"])
        .arg(format!(
            "exec {} -use_tls=false -port $PORT",
            server.display()
        ))
        .spawn()
}

async fn users_answer(mesh: &Mesh) {
    let addr = mesh.node("b").outbound;
    until("the program answers through the mesh", async || {
        let client = Client::connect(addr).await;
        let path = "/grpc.testing.TestService/EmptyCall";
        let answer = client.call("users", path, &HeaderMap::new(), b"").await;
        let status = answer.last("grpc-status");
        seen(status.as_deref() == Some("0"), format!("{answer:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_program_joins_is_restarted_and_leaves() {
    let mesh = Mesh::builder().nodes(2).start().await;
    let mut process = run_users(&mesh);
    let ready = process.ready().await;
    assert_eq!((ready.get("instance"), ready.get("node")), ("u1", "a"));
    users_answer(&mesh).await;

    // The program dies: it is restarted and gets calls again.
    heddle_tests::faults::signal(child_of(process.pid()), "KILL");
    let again = async || {
        let lines = process.stdout();
        let count = lines
            .iter()
            .filter(|line| line.contains("heddle-run ready: "))
            .count();
        seen(count >= 2, lines.join("\n"))
    };
    until("the program is started again", again).await;
    users_answer(&mesh).await;
    let died = "its process ended by itself (signal: 9 (SIGKILL))";
    let only_the_kill_expired = async || {
        let events = mesh.events().await.into_iter();
        let of_it =
            events.filter(|event| event.instance == "u1" && event.kind == "instance-expired");
        let causes: Vec<_> = of_it.map(|event| event.cause).collect();
        seen(causes == [died], format!("{causes:?}"))
    };
    until("its death is reported as an event", only_the_kill_expired).await;

    let program = child_of(process.pid());
    process.stop_cleanly().await;
    assert!(!alive(program), "it runs on");
    until("the service has left the mesh", async || {
        let client = Client::connect(mesh.node("b").outbound).await;
        let path = "/grpc.testing.TestService/EmptyCall";
        let answer = client.call("users", path, &HeaderMap::new(), b"").await;
        let reason = answer.last("heddle-reason").unwrap_or_default();
        seen(
            ["NO_ROUTE", "NO_ENDPOINTS"].contains(&reason.as_str()),
            format!("{answer:?}"),
        )
    })
    .await;
    only_the_kill_expired()
        .await
        .expect("no event reports that it left");
}

/// A third-party program with gRPC health that answers NOT_SERVING as long as the file `$1` exists.
const WITH_HEALTH: &str = r#"
import concurrent.futures, os, sys, grpc
answer = lambda request, context: b"\x08\x02" if os.path.exists(sys.argv[1]) else b"\x08\x01"
check = grpc.unary_unary_rpc_method_handler(answer)
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
handlers = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check})
server.add_generic_rpc_handlers([handlers])
server.add_insecure_port("127.0.0.1:" + os.environ["PORT"])
server.start()
server.wait_for_termination()
"#;

/// Without any option the agent asks the program for gRPC health, and checks connections if it has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_checked_by_its_grpc_health_if_it_has_it() {
    let mesh = Mesh::builder().start().await;
    let busy = mesh.path("busy");
    let start = |service: &str| {
        Start::new("heddle run", &binary("heddle"))
            .args(["run", "--service", service])
            .args(["--agent", &format!("http://{}", mesh.node("a").agent)])
            .arg("--")
            .arg(python())
    };
    let _with = start("with").args(["-c", WITH_HEALTH]).arg(&busy).spawn();
    let web = ["-m", "http.server", "--bind", "127.0.0.1", "$PORT"];
    let _web = start("web").args(web).spawn();
    let _interop = run_users(&mesh);
    let is = async |service: &str, kind: HealthKind, health: Health, reason: &str| {
        until(service, async || {
            let now = mesh.service(service).await?.endpoints;
            let is = matches!(&now[..], [one] if one.checked_by() == kind
                && one.health() == health && one.health_reason.contains(reason));
            seen(is, format!("{now:?}"))
        })
        .await;
    };
    is("with", HealthKind::Grpc, Health::Healthy, "").await;
    is("web", HealthKind::Tcp, Health::Healthy, "").await;
    is("users", HealthKind::Tcp, Health::Healthy, "").await;
    std::fs::write(&busy, "").unwrap();
    is("with", HealthKind::Grpc, Health::Unhealthy, "NOT_SERVING").await;
    std::fs::remove_file(&busy).unwrap();
    is("with", HealthKind::Grpc, Health::Healthy, "").await;
    let shown = heddle(&mesh, &["services", "with"]).await.stdout;
    assert!(
        shown.contains("CHECK") && shown.contains(" grpc "),
        "{shown}"
    );
}

/// Issue 10, B1: gRPC's interop server has no reflection. `heddle run` says so with a remedy, the error message for callers
/// names the service, and with its descriptors it is called and described like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_without_reflection_is_reported_and_joins_by_its_descriptors() {
    let mesh = Mesh::builder().nodes(2).start().await;
    let server = go_peer("interop-server");
    let start = |options: &[&str]| {
        Start::new("heddle run", &binary("heddle"))
            .args(["run", "--service", "users"])
            .args(options)
            .args(["--agent", &format!("http://{}", mesh.node("a").agent)])
            .arg("--")
            .arg(server.to_str().unwrap())
            .args(["-use_tls=false", "-port", "$PORT"])
            .spawn()
    };
    let call = async |authority: &str| {
        let client = Client::connect(mesh.node("b").outbound).await;
        let path = "/grpc.testing.TestService/EmptyCall";
        client.call(authority, path, &HeaderMap::new(), b"").await
    };

    let mut process = start(&[]);
    process.ready().await;
    until("heddle run reports it", async || {
        let stderr = process.stderr().join("\n");
        let parts = ["no gRPC server reflection", "--proto", "--descriptors"];
        seen(
            parts.iter().all(|part| stderr.contains(part)),
            stderr.clone(),
        )
    })
    .await;
    until("the error of a call by path names it", async || {
        let answer = call("127.0.0.1").await;
        let message = answer.last("grpc-message").unwrap_or_default();
        let cause = "users.default (it has no gRPC server reflection)";
        seen(message.contains(cause), message.clone())
    })
    .await;
    let shown = heddle(&mesh, &["services", "users"]).await;
    let parts = [
        "unknown (it has no gRPC server reflection)",
        "--descriptors",
    ];
    assert!(
        parts.iter().all(|part| shown.stdout.contains(part)),
        "{}",
        shown.all()
    );
    process.stop_cleanly().await;

    // A call by path finds it, and reflection says which service lacks what.
    let name = "grpc.testing.TestService";
    let mut process = start(&["--proto", name]);
    process.ready().await;
    until("grpcurl names the service and the remedy", async || {
        let outbound = mesh.node("b").outbound.to_string();
        let words = ["-plaintext", &outbound, "describe", name];
        let ran = run(Start::new("grpcurl", &go_peer("grpcurl")).args(words)).await;
        let parts = [
            "users.default serves grpc.testing.TestService",
            "--descriptors FILE",
        ];
        let named = parts.iter().all(|part| ran.stderr.contains(part));
        seen(named && ran.code != Some(0), ran.all())
    })
    .await;
    process.stop_cleanly().await;

    let protoset = interop_protoset();
    let mut process = start(&["--descriptors", protoset.to_str().unwrap()]);
    process.ready().await;
    until("a call by path finds it", async || {
        let answer = call("127.0.0.1").await;
        let status = answer.last("grpc-status");
        seen(status.as_deref() == Some("0"), format!("{answer:?}"))
    })
    .await;
    let outbound = mesh.node("b").outbound.to_string();
    let words = [
        "-plaintext",
        &outbound,
        "describe",
        "grpc.testing.TestService",
    ];
    let described = run(Start::new("grpcurl", &go_peer("grpcurl")).args(words)).await;
    assert!(
        described.stdout.contains("rpc EmptyCall"),
        "{}",
        described.all()
    );
    let stderr = process.stderr().join("\n");
    assert!(!stderr.contains("does not know"), "{stderr}");
    process.stop_cleanly().await;
}

/// Issue 10, E3: a program that listens elsewhere, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_listen_is_reported_at_once_and_awaited() {
    let process = Start::new("heddle run", &binary("heddle"))
        .args(["run", "--service", "users", "--agent", "127.0.0.1:1"])
        .args(["--", "sleep", "60"])
        .spawn();
    let begun = Instant::now();
    until("it is reported", async || {
        let stderr = process.stderr().join("\n");
        let parts = ["nothing listens on 127.0.0.1:", "$PORT", "--port"];
        seen(
            parts.iter().all(|part| stderr.contains(part)),
            stderr.clone(),
        )
    })
    .await;
    // 2 s are promised; the rest is for a slow machine.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(6), "only after {took:?}");
    drop(process);
}

/// The one child of a process.
fn child_of(pid: u32) -> u32 {
    // The other child is the watchdog, which is this program again.
    let is_watchdog = |pid: &u32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
        line.is_ok_and(|line| line.contains("--end-group-with-stdin"))
    };
    let mut family = descendants(pid).into_iter().skip(1);
    let program = family.find(|pid| !is_watchdog(pid));
    program.expect("the program runs")
}

/// Issue 10, D4: also what the program started itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_takes_its_program_along() {
    let mesh = Mesh::builder().start().await;
    let mut process = Start::new("heddle run", &binary("heddle"))
        .args(["run", "--service", "users", "--instance", "u1"])
        .args(["--health", "tcp", "--stop-timeout", "1"])
        .args(["--agent", &format!("http://{}", mesh.node("a").agent)])
        .args(["--", "sh", "-c"])
        // It does not end at SIGTERM.
        .arg(format!(
            "trap '' TERM; sleep 1000 & exec {} --listen 127.0.0.1:$PORT --agent none",
            binary("heddle-echo").display()
        ))
        .spawn();
    process.ready().await;
    let family = descendants(process.pid());
    assert!(
        family.len() >= 4,
        "run, watchdog, program, sleep: {family:?}"
    );
    process.kill().await;
    until("all that it had started has ended", async || {
        let left: Vec<_> = family.iter().filter(|pid| alive(**pid)).collect();
        seen(left.is_empty(), format!("{left:?}"))
    })
    .await;
}

/// Issue 10, D4: `killall -9 heddle` kills the watchdog as well, which has the same name.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_with_its_watchdog_takes_its_program_along() {
    let mesh = Mesh::builder().start().await;
    let mut process = Start::new("heddle run", &binary("heddle"))
        .args(["run", "--service", "users", "--instance", "u1"])
        .args(["--agent", &format!("http://{}", mesh.node("a").agent)])
        .arg("--")
        .arg(binary("heddle-echo"))
        .args(["--listen", "127.0.0.1:$PORT", "--agent", "none"])
        .spawn();
    process.ready().await;
    let program = child_of(process.pid());
    let family = descendants(process.pid()).into_iter().skip(1);
    for watchdog in family.filter(|pid| *pid != program) {
        heddle_tests::faults::signal(watchdog, "KILL");
    }
    process.kill().await;
    until("the program has ended", async || {
        seen(!alive(program), format!("{program} runs"))
    })
    .await;
}

/// All processes that descend from this one.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(
                list.split_whitespace()
                    .map(|pid| pid.parse::<u32>().unwrap()),
            );
        }
    }
    found
}

/// A process that runs; one that has ended and only waits to be reaped does not.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // `pid (name) state …`, and a name may hold anything.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
