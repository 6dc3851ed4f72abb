//! Events: instances that die, with the cause; instances that leave, which are not reported as expired; and `heddle
//! events --follow`.

use std::collections::BTreeSet;

use heddle_proto::status::v1::Event;
use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Process, Start, run};
use heddle_tests::tools::binary;
use heddle_tests::wait::{TIMEOUT, seen, until, within};
use serde_json::Value;

const EXPIRED: &str = "instance-expired";
const BROKE: &str = "its keep-alive stream broke";

fn events(mesh: &Mesh, words: &[&str]) -> Start {
    Start::new("heddle events", &binary("heddle"))
        .arg("events")
        .args(words)
        .args(["--control", &format!("http://{}", mesh.grpc)])
}

/// The `instance-expired` events of the status API: service, instance, cause.
async fn expired(mesh: &Mesh) -> Vec<[String; 3]> {
    let events = mesh.events().await.into_iter();
    let expired = events.filter(|event| event.kind == EXPIRED);
    expired
        .map(
            |Event {
                 service,
                 instance,
                 cause,
                 ..
             }| [service, instance, cause],
        )
        .collect()
}

fn line(service: &str, instance: &str, cause: &str) -> [String; 3] {
    [service, instance, cause].map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_dies_has_an_event_with_its_cause_and_one_that_stops_has_none() {
    let mut mesh = Mesh::builder().start().await;
    for id in ["dies", "stays", "stops"] {
        mesh.echo("a", id).await;
    }
    mesh.control_has(&["dies", "stays", "stops"]).await;
    mesh.kill_instance("a", "dies").await;
    mesh.control_has(&["stays", "stops"]).await;
    mesh.stop_instance("a", "stops").await;
    mesh.control_has(&["stays"]).await;
    // An event is written with its change: there is nothing to wait for.
    let ran = run(events(&mesh, &["-o", "json"])).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let found: Value = serde_json::from_str(&ran.stdout).unwrap();
    let found = found["events"].as_array().unwrap();
    let expired: Vec<_> = found
        .iter()
        .filter(|event| event["kind"] == EXPIRED)
        .collect();
    let [event] = &*expired else {
        panic!("{found:#?}");
    };
    for (field, value) in [
        ("node", "a"),
        ("service", "heddle-echo.default"),
        ("instance", "dies"),
        ("cause", BROKE),
    ] {
        assert_eq!(event[field], value, "{event}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_has_an_event_without_heartbeat() {
    let mut mesh = Mesh::builder().start().await;
    let start = mesh.echo_start("a", "hangs");
    let mut process = start.spawn();
    process.ready().await;
    mesh.control_has(&["hangs"]).await;
    process.signal("STOP");
    // The agent waits for 15 s.
    within(TIMEOUT * 2, "the event is reported", async || {
        let found = expired(&mesh).await;
        let silent = line("heddle-echo.default", "hangs", "no heartbeat for 15s");
        seen(found == [silent], format!("{found:?}"))
    })
    .await;
    process.signal("CONT");
    mesh.stop_proxy("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cause_of_a_removal_is_recorded_once_the_control_plane_is_back() {
    let mut mesh = Mesh::builder().start().await;
    for id in ["dies", "stays", "stops"] {
        mesh.echo("a", id).await;
    }
    mesh.control_has(&["dies", "stays", "stops"]).await;
    mesh.kill_control().await;
    mesh.kill_instance("a", "dies").await;
    mesh.stop_instance("a", "stops").await;
    mesh.start_control().await;
    mesh.control_has(&["stays"]).await;
    let found = expired(&mesh).await;
    assert_eq!(found, [line("heddle-echo.default", "dies", BROKE)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_instance_expires_when_its_nodes_proxy_is_restarted() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "stays").await;
    mesh.control_has(&["stays"]).await;
    mesh.saved("a", "instances", "stays").await;
    for (kill, later) in [(false, "later"), (true, "much-later")] {
        if kill {
            mesh.kill_proxy("a").await;
        } else {
            mesh.stop_proxy("a").await;
        }
        mesh.start_proxy("a").await;
        // Arrives after everything that the new process reports of its instances.
        mesh.echo("a", later).await;
        until("the later one is there", async || {
            let service = mesh.service("heddle-echo").await?;
            let is_it = |id: &str| service.endpoints.iter().any(|endpoint| endpoint.id == id);
            seen(is_it(later) && is_it("stays"), format!("{service:?}"))
        })
        .await;
        mesh.saved("a", "instances", later).await;
    }
    assert_eq!(expired(&mesh).await, [] as [[String; 3]; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_file_has_an_event_and_a_removed_entry_has_none() {
    let text = |ids: &[&str]| {
        let instance = |id: &&str| format!("  - {{id: {id}, address: \"127.0.0.1:7\"}}\n");
        let instances: String = ids.iter().map(instance).collect();
        format!(
            "service: filed\nprotos: [filed.Filed]\nhealth: {{kind: none}}\ninstances:\n{instances}"
        )
    };
    let mesh = Mesh::builder()
        .services_file("a", "filed.yaml", &text(&["f1", "f2"]))
        .start()
        .await;
    let has = async |count: u32| {
        until("so many instances", async || {
            let service = mesh.service("filed").await?;
            seen(service.instances == count, format!("{service:?}"))
        })
        .await;
    };
    has(2).await;
    mesh.write_services_file("a", "filed.yaml", &text(&["f1"]));
    has(1).await;
    let file = mesh.node("a").services_dir.join("filed.yaml");
    std::fs::remove_file(&file).unwrap();
    has(0).await;
    let cause = format!("its services file {} is gone", file.display());
    assert_eq!(expired(&mesh).await, [line("filed.default", "f1", &cause)]);
}

/// Issue 10, E1: what operators ask of the last hour.
#[tokio::test(flavor = "multi_thread")]
async fn instances_that_join_and_leave_have_events_that_can_be_selected() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    mesh.control_has(&["e1"]).await;
    mesh.stop_instance("a", "e1").await;
    let filters = [
        "--kind",
        "instance-joined,instance-left",
        "--service",
        "heddle-echo",
    ];
    until("both events are reported", async || {
        let ran = run(events(&mesh, &[&filters[..], &["-o", "json"]].concat())).await;
        let found: Value = serde_json::from_str(&ran.stdout).map_err(|_| ran.all())?;
        let found = found["events"].as_array().cloned().unwrap_or_default();
        let kinds: Vec<_> = found
            .iter()
            .filter_map(|event| event["kind"].as_str())
            .collect();
        seen(kinds == ["instance-joined", "instance-left"], ran.all())
    })
    .await;
    // The service is gone, and its events stay.
    for words in [["--kind", "node-forgotten"], ["--since", "0s"]] {
        let ran = run(events(&mesh, &words)).await;
        assert_eq!(ran.code, Some(0), "{words:?}: {}", ran.all());
        assert_eq!(ran.stdout.lines().count(), 1, "{words:?}: {}", ran.all());
    }
}

/// Issue 10, E1: a mistyped kind or service is named, and is no empty table.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_an_unknown_kind_or_service_are_refused_by_name() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    mesh.control_has(&["e1"]).await;
    for (words, code, parts) in [
        (["--kind", "nosuch"], 2, ["nosuch", "node-expired"]),
        (["--kind", "No Kind"], 2, ["No Kind", "duty-taken"]),
        (
            ["--service", "nosuch"],
            1,
            ["no service nosuch", "registered"],
        ),
        (
            ["--service", "hedle-echo"],
            1,
            ["hedle-echo", "did you mean heddle-echo.default?"],
        ),
    ] {
        let ran = run(events(&mesh, &words)).await;
        assert_eq!(ran.code, Some(code), "{words:?}: {}", ran.all());
        assert!(ran.stdout.is_empty(), "{words:?}: {}", ran.all());
        let named = parts.iter().all(|part| ran.stderr.contains(part));
        assert!(named, "{words:?}: {}", ran.all());
    }
    // Whoever follows may be early.
    let mut follow = events(&mesh, &["--service", "later", "--follow"]).spawn();
    until("it says that the service is unknown", async || {
        let errors = follow.stderr().join("\n");
        seen(errors.contains("no service later"), errors.clone())
    })
    .await;
    let start = mesh.echo_start("a", "l1").args(["--service", "later"]);
    mesh.instance("a", "l1", start).await;
    let joined = |line: &str| line.contains("instance-joined").then_some(());
    follow.line("the service's first event", joined).await;
    follow.kill().await;
}

/// Waits for an event in the output of `heddle events --follow`.
async fn wait_for_event(follow: &mut Process, kind: &str, instance: &str) -> Value {
    let what = format!("{kind} of {instance:?}");
    let found = |line: &str| {
        let event: Value = serde_json::from_str(line).ok()?;
        (event["kind"] == kind && event["instance"] == instance).then_some(event)
    };
    follow.line(&what, found).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_gets_events_at_once_and_continues_after_a_restart_of_the_control_plane() {
    let mut mesh = Mesh::builder().start().await;
    for id in ["e1", "e2"] {
        mesh.echo("a", id).await;
    }
    mesh.control_has(&["e1", "e2"]).await;
    let mut follow = events(&mesh, &["--follow", "-o", "json"]).spawn();
    // Earlier events come first.
    wait_for_event(&mut follow, "node-joined", "").await;
    mesh.kill_instance("a", "e1").await;
    let event = wait_for_event(&mut follow, EXPIRED, "e1").await;
    assert_eq!(event["cause"], BROKE, "{event}");

    mesh.stop_control().await;
    mesh.start_control().await;
    mesh.control_has(&["e2"]).await;
    mesh.kill_instance("a", "e2").await;
    wait_for_event(&mut follow, EXPIRED, "e2").await;
    let lines = follow.stdout();
    let ids: BTreeSet<_> = lines
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].to_string())
        .collect();
    assert_eq!(
        ids.len(),
        lines.len(),
        "reported twice: {}",
        follow.output()
    );
    assert_eq!(follow.exited(), None, "it goes on");
    follow.kill().await;
}
