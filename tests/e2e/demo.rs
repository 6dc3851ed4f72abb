//! `heddle demo` as a user sees it: it starts, carries calls, brings back what is killed, takes programs of the user, and
//! leaves nothing behind.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use heddle_proto::registry::v1::registry_client::RegistryClient;
use heddle_proto::registry::v1::{Instance, RegisterRequest};
use heddle_tests::echo::{call, channel, payload};
use heddle_tests::faults::signal;
use heddle_tests::process::{Process, Ready, Start, run};
use heddle_tests::raw::Client;
use heddle_tests::temp::folder;
use heddle_tests::tools::{binary, go_peer};
use heddle_tests::wait::{seen, until};
use http::HeaderMap;

use crate::cli::{alive, descendants};

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_starts_carries_calls_and_leaves_nothing_behind() {
    let dir = folder();
    let mut demo = Start::new("heddle demo", &binary("heddle"))
        .args(["demo", "--free-ports"])
        .env("TMPDIR", dir.path())
        .spawn();
    let ready = demo.ready().await;
    for node in ["node-a", "node-b", "node-c"] {
        let outbound = ready.get(&format!("{node}-outbound")).parse().unwrap();
        let answer = call(outbound, payload("hello")).await.unwrap();
        assert_eq!(answer.payload, "hello");
    }
    // Its own calls reach all six instances, and none fails.
    let tally = |line: &str| {
        let all = line.contains("answered by 6 instances") && line.contains(" 0 failed");
        all.then(|| line.to_owned())
    };
    demo.line("the demo's calls reach all instances", tally)
        .await;
    assert!(
        demo.output().contains("starting the control plane"),
        "no progress in {}",
        demo.output()
    );
    every_line_to_type_works(&demo).await;

    let all = descendants(demo.pid());
    assert!(
        all.len() >= 11,
        "control plane, 3 proxies, 6 instances and itself: {all:?}"
    );
    let start = Instant::now();
    demo.signal("INT");
    let status = demo.exit_within(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}: {}", demo.output());
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "took {:?}",
        start.elapsed()
    );
    let left: Vec<_> = all.iter().filter(|&&pid| alive(pid)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert!(files.is_empty(), "left behind: {files:?}");
}

/// Runs the commands that the demo prints, unchanged.
async fn every_line_to_type_works(demo: &Process) {
    let grpcurl = go_peer("grpcurl");
    let peers = grpcurl.parent().unwrap().display().to_string();
    let path = format!("{peers}:{}", std::env::var("PATH").unwrap());
    let heddle = binary("heddle").display().to_string();
    let lines = demo.stdout();
    let to_type: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| line.starts_with("grpcurl ") || line.contains("heddle "))
        // The last one waits for a program of the user.
        .filter(|line| !line.contains(" run --service "))
        .collect();
    let of = |word: &str| to_type.iter().filter(|line| line.contains(word)).count();
    assert_eq!(of(" list"), 3, "one for each node: {to_type:?}");
    assert_eq!(of("Echo/Unary"), 3, "one for each node: {to_type:?}");
    assert!(of("GetMesh") == 1 && of(" status") == 1, "{to_type:?}");
    for line in to_type {
        let start = Start::new("a line of the demo", Path::new("sh"))
            .args(["-c", line])
            .env("PATH", &path);
        let ran = run(start).await;
        assert_eq!(ran.code, Some(0), "{heddle}: {line}: {}", ran.all());
        assert!(!ran.stdout.is_empty(), "{line}: {}", ran.all());
    }
}

fn start(dir: &Path) -> Process {
    Start::new("heddle demo", &binary("heddle"))
        .args(["demo", "--free-ports", "--instances", "1"])
        .env("TMPDIR", dir)
        .spawn()
}

/// The process of a part, by the words of its command line.
fn part(demo: &Process, words: [&str; 2]) -> u32 {
    let is_it = |pid: &u32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line: Vec<&str> = line.split('\0').collect();
        line.windows(2).any(|pair| pair == words)
    };
    let mut family = descendants(demo.pid()).into_iter();
    family.find(is_it).expect("the part runs")
}

fn outbound(ready: &Ready, node: &str) -> SocketAddr {
    ready.get(&format!("{node}-outbound")).parse().unwrap()
}

/// Issue 10, E: what dies comes back at the same addresses, and calls through every node go on. The addresses are in use
/// when a part dies, so that the system still remembers their connections (TIME-WAIT).
#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_the_demo_that_is_killed_comes_back_and_calls_go_on() {
    let dir = folder();
    let mut demo = start(dir.path());
    let ready = demo.ready().await;
    let parts = [
        ("echo-a-1", ["--instance", "echo-a-1"]),
        ("node-b", ["--node", "node-b"]),
        ("control plane", ["control", "--store"]),
        ("node-a", ["--node", "node-a"]),
    ];
    for (name, words) in parts {
        let pid = part(&demo, words);
        signal(pid, "KILL");
        demo.says(&format!(
            "{name} ended (signal: 9 (SIGKILL)); restarting it"
        ))
        .await;
        demo.says(&format!("{name} is running again")).await;
        assert_ne!(part(&demo, words), pid);
        for node in ["node-a", "node-b", "node-c"] {
            until(
                &format!("{name} is back: calls through {node}"),
                async || {
                    let answer = call(outbound(&ready, node), payload("hello")).await;
                    seen(answer.is_ok(), format!("{answer:?}\n{}", demo.output()))
                },
            )
            .await;
        }
        // The killed instance, too, gets calls again, at its old port.
        until(
            &format!("{name} is back: every instance answers"),
            async || {
                let mut found = std::collections::BTreeSet::new();
                for _ in 0..20 {
                    let answer = call(outbound(&ready, "node-c"), payload("hello")).await;
                    found.extend(answer.map(|answer| answer.instance));
                }
                seen(found.len() == 3, format!("{found:?}\n{}", demo.output()))
            },
        )
        .await;
    }
    demo.signal("INT");
    let status = demo.exit_within(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}: {}", demo.output());
}

/// A program of the user joins by the line for `heddle run` and by the services file that the demo shows. And a proxy's
/// own port, which the system chose, is no instance (issue 10, B3).
#[tokio::test(flavor = "multi_thread")]
async fn a_program_joins_the_demo_by_the_shown_lines() {
    let dir = folder();
    let mut demo = start(dir.path());
    let ready = demo.ready().await;
    demo.says("Ctrl-C stops everything").await;
    let lines = demo.stdout();
    let shown = |word: &str| {
        let line = lines.iter().find(|line| line.contains(word));
        line.unwrap_or_else(|| panic!("no {word} in {lines:?}"))
            .trim()
            .to_owned()
    };
    let echo = |listen: &str| {
        let echo = binary("heddle-echo");
        format!(
            "{} --listen {listen} --agent none --instance h1",
            echo.display()
        )
    };
    let shell = |line: &str| Start::new("a line of the demo", Path::new("sh")).args(["-c", line]);
    let reached = async |service: &str| {
        until(&format!("{service} is reached by name"), async || {
            let client = Client::connect(outbound(&ready, "node-c")).await;
            let path = "/heddle.echo.v1.Echo/Unary";
            let answer = client.call(service, path, &HeaderMap::new(), b"").await;
            let status = answer.last("grpc-status");
            seen(status.as_deref() == Some("0"), format!("{answer:?}"))
        })
        .await;
    };

    let line = shown(" run --service hello").replace("COMMAND", &echo("127.0.0.1:'$PORT'"));
    let mut program = shell(&format!("exec {line}")).spawn();
    program.ready().await;
    reached("hello").await;
    program.stop_cleanly().await;

    let mut server = shell(&format!("exec {}", echo("127.0.0.1:0"))).spawn();
    let listen = server.ready().await.get("listen").to_owned();
    let line = shown("echo '{service: hello,").replace("127.0.0.1:7001", &listen);
    let ran = run(shell(&line.replace("service: hello", "service: filed"))).await;
    assert_eq!(ran.code, Some(0), "{line}: {}", ran.all());
    reached("filed").await;

    let agent: SocketAddr = ready.get("node-a-agent").parse().unwrap();
    let mut agent = RegistryClient::new(channel(agent));
    let instance = Instance {
        service: "looper".into(),
        id: "l1".into(),
        address: outbound(&ready, "node-b").to_string(),
        ..Instance::default()
    };
    let request = RegisterRequest {
        instance: Some(instance),
        ..RegisterRequest::default()
    };
    let status = agent.register(request).await.unwrap_err();
    assert!(
        status
            .message()
            .contains("a listener of the proxy on node node-b"),
        "{status:?}"
    );

    server.kill().await;
    demo.signal("INT");
    let status = demo.exit_within(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}: {}", demo.output());
}
