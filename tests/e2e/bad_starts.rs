//! Processes that cannot start print one line with the cause and the remedy, and exit with 2. Processes that can start
//! without others do.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use heddle_tests::echo::{call, payload, reach};
use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Ran, Start, run};
use heddle_tests::temp::folder;
use heddle_tests::tools::binary;

/// Exit code 2 and one `error:` line with all these words.
fn refused(ran: &Ran, words: &[&str]) {
    assert_eq!(ran.code, Some(2), "{}", ran.all());
    let errors: Vec<&str> = ran
        .stderr
        .lines()
        .filter(|line| line.starts_with("error:"))
        .collect();
    assert_eq!(errors.len(), 1, "one line: {}", ran.all());
    for word in words {
        assert!(errors[0].contains(word), "no {word:?} in: {}", errors[0]);
    }
    assert!(!ran.stdout.contains("ready"), "{}", ran.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_on_the_store_is_refused_and_the_first_goes_on() {
    let mut mesh = Mesh::builder().start().await;
    let store = mesh.path("store");
    let second = Start::new("second heddle-control", &binary("heddle-control"))
        .args([
            "--listen",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--store",
        ])
        .arg(format!("embedded:{}", store.display()));
    let words = [
        store.to_str().unwrap(),
        "in use by another process",
        "--store embedded:PATH",
    ];
    refused(&run(second).await, &words);
    mesh.echo("a", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let mut mesh = Mesh::builder().start().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let dir = folder();
    for flag in ["--listen", "--http"] {
        let other = if flag == "--listen" {
            "--http"
        } else {
            "--listen"
        };
        let start = Start::new("heddle-control", &binary("heddle-control"))
            .args([flag, &addr.to_string(), other, "127.0.0.1:0", "--store"])
            .arg(format!("embedded:{}", dir.path().join(flag).display()));
        let words = [flag, &addr.to_string(), "in use", "choose another"];
        refused(&run(start).await, &words);
    }
    for taken in ["outbound", "inbound", "agent", "admin"] {
        let addr = match taken {
            // Used by another proxy, whose workers share the port with each other: a second proxy must not share it.
            "outbound" => mesh.node("a").outbound,
            "inbound" => mesh.node("a").inbound,
            _ => addr,
        };
        let mut start = Start::new("heddle-proxy", &binary("heddle-proxy"))
            .args([
                "--node",
                "second",
                "--control",
                "http://127.0.0.1:1",
                "--dns",
                "127.0.0.1:0",
            ])
            .arg("--state-dir")
            .arg(dir.path().join(taken));
        for listener in ["outbound", "inbound", "agent", "admin"] {
            let at = if listener == taken {
                addr.to_string()
            } else {
                "127.0.0.1:0".to_owned()
            };
            start = start.args([format!("--{listener}"), at]);
        }
        let flag = format!("--{taken}");
        let port = addr.port().to_string();
        let words = [
            flag.as_str(),
            &port,
            "127.0.0.1",
            "in use",
            "choose another",
        ];
        refused(&run(start).await, &words);
    }
    // The processes that use the ports were not affected.
    mesh.echo("a", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_state_dir_or_store_is_named() {
    let dir = folder();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "not a folder").unwrap();
    // Even root cannot make a folder under a file.
    let state = file.join("state");
    let start = Start::new("heddle-proxy", &binary("heddle-proxy"))
        .args([
            "--node",
            "a",
            "--outbound",
            "127.0.0.1:0",
            "--inbound",
            "127.0.0.1:0",
        ])
        .args([
            "--agent",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--dns",
            "127.0.0.1:0",
        ])
        .arg("--state-dir")
        .arg(&state);
    let words = ["--state-dir", state.to_str().unwrap(), "give a folder"];
    refused(&run(start).await, &words);

    let store = file.join("store");
    let start = Start::new("heddle-control", &binary("heddle-control"))
        .args([
            "--listen",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--store",
        ])
        .arg(format!("embedded:{}", store.display()));
    let words = [store.to_str().unwrap(), "--store embedded:PATH"];
    refused(&run(start).await, &words);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_that_is_no_option_is_refused() {
    for name in ["heddle-control", "heddle-proxy", "heddle-echo"] {
        let ran = run(Start::new(name, &binary(name)).arg("--outbuond=1")).await;
        assert_eq!(ran.code, Some(2), "{}", ran.all());
        assert!(ran.stderr.contains("--outbuond"), "{}", ran.all());
        let ran = run(Start::new(name, &binary(name)).arg("--help")).await;
        assert_eq!(ran.code, Some(0), "{}", ran.all());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_without_a_control_plane_starts_says_so_and_serves_its_own_node() {
    let mut mesh = Mesh::builder().start().await;
    mesh.kill_control().await;
    mesh.stop_proxy("a").await;
    std::fs::remove_dir_all(&mesh.node("a").state_dir).unwrap();

    let start = Instant::now();
    mesh.start_proxy("a").await;
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    let control = mesh.grpc.to_string();
    heddle_tests::wait::until(
        "the log reports that the control plane is not there",
        async || {
            let log = mesh.node("a").proxy().stderr().join("\n");
            heddle_tests::wait::seen(log.contains(&control), log)
        },
    )
    .await;
    mesh.echo("a", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_depends_on_the_order_of_starts() {
    // The service first, then its agent, then the control plane; the other node last.
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.stop_control().await;
    mesh.stop_proxy("a").await;
    mesh.stop_proxy("b").await;
    mesh.echo("b", "e1").await;
    mesh.start_proxy("b").await;
    reach(&mesh.channel("b"), &["e1"]).await;
    mesh.start_control().await;
    mesh.start_proxy("a").await;
    reach(&mesh.channel("a"), &["e1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn port_0_means_any_free_one_and_the_ready_line_names_it() {
    let dir = folder();
    let mut process = Start::new("heddle-proxy", &binary("heddle-proxy"))
        .args([
            "--node",
            "a",
            "--control",
            "http://127.0.0.1:1",
            "--outbound",
            "127.0.0.1:0",
        ])
        .args([
            "--inbound",
            "127.0.0.1:0",
            "--agent",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
        ])
        .args(["--dns", "127.0.0.1:0"])
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .spawn();
    let ready = process.ready().await;
    assert_eq!(ready.get("node"), "a");
    for listener in ["outbound", "inbound", "agent", "admin"] {
        let addr: std::net::SocketAddr = ready.get(listener).parse().unwrap();
        assert_ne!(addr.port(), 0, "{listener}");
        std::net::TcpStream::connect(addr).unwrap();
    }
    let outbound = ready.get("outbound").parse().unwrap();
    let failed = call(outbound, payload("x")).await.unwrap_err();
    assert!(failed.reason.is_some(), "{failed:?}");
    process.stop_cleanly().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mangled_state_dir_is_set_aside_and_the_proxy_starts() {
    let mut mesh = Mesh::builder().nodes(2).start().await;
    mesh.echo("b", "e1").await;
    reach(&mesh.channel("a"), &["e1"]).await;
    mesh.stop_proxy("a").await;
    let state = mesh.node("a").state_dir.clone();
    let whole = std::fs::read(state.join("xds")).unwrap();
    let torn = whole[..whole.len() - 1].to_vec();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let mut newer = whole.clone();
    newer[7] = 9;
    let cases = [
        ("torn", torn),
        ("flipped", flipped),
        ("newer", newer),
        ("foreign", b"not ours".to_vec()),
        ("empty", Vec::new()),
    ];
    for (case, content) in cases {
        for file in ["xds", "instances"] {
            std::fs::write(state.join(file), &content).unwrap();
        }
        std::fs::write(state.join("xds.tmp"), "half").unwrap();
        mesh.start_proxy("a").await;
        reach(&mesh.channel("a"), &["e1"]).await;
        let mut log = String::new();
        heddle_tests::wait::until(&format!("{case}: both are set aside"), async || {
            log = mesh.node("a").proxy().stderr().join("\n");
            heddle_tests::wait::seen(log.matches("set aside").count() >= 2, &log)
        })
        .await;
        assert!(!log.contains("panicked"), "{case}: {log}");
        mesh.stop_proxy("a").await;
    }
    // Folders in place of the files, with files of somebody else in them.
    for file in ["xds", "instances"] {
        let _ = std::fs::remove_file(state.join(file));
        std::fs::create_dir_all(state.join(file).join("inside")).unwrap();
    }
    mesh.start_proxy("a").await;
    reach(&mesh.channel("a"), &["e1"]).await;
    mesh.stop_proxy("a").await;
    let names = || std::fs::read_dir(&state).unwrap().filter_map(Result::ok);
    let bad = names().filter(|entry| entry.file_name().to_string_lossy().contains(".bad-"));
    let bad: Vec<_> = bad.map(|entry| entry.file_name()).collect();
    assert_eq!(bad.len(), 6, "the newest three of each: {bad:?}");
    // What it has written since is valid.
    assert!(state.join("xds").is_file() && !state.join("xds.tmp").exists());
}
