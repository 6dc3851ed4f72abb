//! Who can reach the listeners of the real processes, how many connections they accept, and the permissions of their
//! files (issue 10, A4 and D3).

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use heddle_tests::http_get;
use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Start, run};
use heddle_tests::temp::{folder, free_addr};
use heddle_tests::tools::{binary, system};
use heddle_tests::wait::{TIMEOUT, seen, until, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Opens connections that send nothing.
async fn silent(addr: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(TcpStream::connect(addr).await.unwrap());
    }
    all
}

async fn answers(addr: SocketAddr, path: &str) {
    until(&format!("{addr}{path} answers"), async || {
        let answer = http_get::get(addr, path).await;
        seen(matches!(answer, Ok((200, _))), format!("{answer:?}"))
    })
    .await;
}

/// Issue 10, A4: more silent connections than each listener accepts.
#[tokio::test(flavor = "multi_thread")]
async fn silent_strangers_stop_neither_health_nor_registration() {
    let mut builder = Mesh::builder();
    for listener in ["outbound", "inbound", "agent", "admin"] {
        let option = format!("--{listener}-connections");
        builder = builder.proxy_arg(&option).proxy_arg("50");
    }
    let mut mesh = builder.start().await;
    let node = mesh.node("a");
    let (admin, agent) = (node.admin, node.agent);
    let (inbound, outbound) = (node.inbound, node.outbound);
    let (grpc, http) = (mesh.grpc, mesh.http);
    let mut held = Vec::new();
    for addr in [admin, agent, inbound, outbound, grpc] {
        held.push(silent(addr, 100).await);
    }
    held.push(silent(http, 300).await);
    for path in ["/readyz", "/healthz", "/metrics"] {
        answers(admin, path).await;
        if path != "/metrics" {
            answers(http, path).await;
        }
    }
    // Registered at the agent, sent to the control plane, found by outbound.
    mesh.echo("a", "e1").await;
    heddle_tests::echo::reach(&mesh.channel("a"), &["e1"]).await;
    let (_, metrics) = http_get::get(admin, "/metrics").await.unwrap();
    let evicted = metrics
        .lines()
        .find_map(|line| line.strip_prefix("heddle_listener_evicted_total{listener=\"agent\"} "));
    assert!(
        evicted.is_some_and(|n| n.parse::<u64>().unwrap() >= 50),
        "{evicted:?}"
    );
    drop(held);
}

/// Issue 10, A4: with a smaller limit of open files than its listeners could use, each listener keeps its share.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_take_the_last_file_of_a_process() {
    let dir = folder();
    let few = |start: Start| {
        let script = "ulimit -n 300; exec \"$@\"";
        start.behind(Path::new("/bin/sh"), &["-c", script, "sh"])
    };
    let control = Start::new("heddle-control", &binary("heddle-control"))
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .arg("--store")
        .arg(format!("embedded:{}", dir.path().join("store").display()));
    let mut control = few(control).spawn();
    let listeners = control.ready().await;
    let addr = |name: &str| -> SocketAddr { listeners.get(name).parse().unwrap() };
    let _held = silent(addr("grpc"), 400).await;
    answers(addr("http"), "/readyz").await;
    let start = proxy()
        .args(["--outbound", "127.0.0.1:0", "--agent", "127.0.0.1:0"])
        .args([
            "--admin",
            "127.0.0.1:0",
            "--dns",
            "127.0.0.1:0",
            "--workers",
            "1",
        ]);
    let mut proxy = few(start).spawn();
    let listeners = proxy.ready().await;
    let addr = |name: &str| -> SocketAddr { listeners.get(name).parse().unwrap() };
    let _held = (
        silent(addr("inbound"), 200).await,
        silent(addr("agent"), 200).await,
    );
    answers(addr("admin"), "/readyz").await;
    proxy.stop_cleanly().await;
    control.stop_cleanly().await;
}

/// One request in HTTP/1.1; its status.
async fn response(addr: SocketAddr, request: &str) -> String {
    let ask = async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        answer.lines().next().unwrap_or_default().to_owned()
    };
    tokio::time::timeout(TIMEOUT, ask).await.unwrap()
}

/// Issue 10, D3: requests that a web page can make a browser send.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_can_neither_read_nor_register_anything() {
    let mesh = Mesh::builder().start().await;
    let node = mesh.node("a");
    let readers = [node.admin, mesh.http];
    let all = [node.admin, mesh.http, node.agent, mesh.grpc];
    for addr in all {
        for (headers, expect) in [
            ("host: evil.example\r\n".to_owned(), "421"),
            (
                format!("host: {addr}\r\norigin: http://evil.example\r\n"),
                "403",
            ),
            (
                format!("host: {addr}\r\nsec-fetch-site: cross-site\r\n"),
                "403",
            ),
        ] {
            let request = format!("GET /metrics HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
            let status = response(addr, &request).await;
            assert!(status.contains(expect), "{addr} {headers}: {status}");
        }
    }
    for addr in readers {
        let own = format!(
            "GET /metrics HTTP/1.1\r\nhost: {addr}\r\norigin: http://{addr}\r\nconnection: close\r\n\r\n"
        );
        assert!(response(addr, &own).await.contains("200"));
    }
    // A Register of an instance, framed as gRPC and sent as a form would be.
    let message = "\n\u{1c}\n\u{4}evil\u{1a}\u{2}e1*\u{10}127.0.0.1:700001";
    let frame = format!(
        "\0\0\0\0{}{message}",
        char::from(u8::try_from(message.len()).unwrap())
    );
    for addr in [node.agent, mesh.grpc] {
        let request = format!(
            "POST /heddle.registry.v1.Registry/Register HTTP/1.1\r\nhost: {addr}\r\ncontent-type: text/plain\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{frame}",
            frame.len()
        );
        let status = response(addr, &request).await;
        assert!(status.contains("415"), "{addr}: {status}");
    }
}

/// Issue 10, D3.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_beyond_loopback_is_refused_unless_it_is_named() {
    let dir = folder();
    let port = free_addr().port();
    let open = format!("0.0.0.0:{port}");
    let control = || {
        Start::new("heddle-control", &binary("heddle-control"))
            .arg("--store")
            .arg(format!("embedded:{}", dir.path().join("store").display()))
    };
    for (flag, other) in [("--listen", "--http"), ("--http", "--listen")] {
        let start = control().args([flag, &open, other, "127.0.0.1:0"]);
        refused(start, &[flag, &open, &format!("--insecure-listen {open}")]).await;
    }
    for flag in ["--outbound", "--agent", "--admin", "--dns"] {
        let start = proxy().args([flag, &open]);
        refused(start, &[flag, &open, &format!("--insecure-listen {open}")]).await;
    }
    let mut named = control()
        .args(["--listen", &open, "--http", "127.0.0.1:0"])
        .args(["--insecure-listen", &open])
        .spawn();
    assert_eq!(named.ready().await.get("grpc"), open);
    named.says("--listen 0.0.0.0").await;
    named.stop_cleanly().await;
}

async fn refused(start: Start, words: &[&str]) {
    let ran = run(start).await;
    assert_eq!(ran.code, Some(2), "{}", ran.all());
    for word in words {
        assert!(ran.stderr.contains(word), "no {word:?}: {}", ran.all());
    }
}

fn proxy() -> Start {
    Start::new("heddle-proxy", &binary("heddle-proxy")).args([
        "--node",
        "a",
        "--control",
        "none",
        "--inbound",
        "127.0.0.1:0",
    ])
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Issue 10, D3: with umask 000.
#[tokio::test(flavor = "multi_thread")]
async fn state_store_and_sockets_are_the_users_alone_whatever_the_umask() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    let unix = |name: &str| format!("unix:{}", path(name).display());
    let open = |start: Start| {
        start.behind(
            Path::new("/bin/sh"),
            &["-c", "umask 000; exec \"$@\"", "sh"],
        )
    };
    let control = Start::new("heddle-control", &binary("heddle-control"))
        .args([
            "--listen",
            &unix("sockets/grpc"),
            "--http",
            &unix("sockets/http"),
        ])
        .arg("--store")
        .arg(format!("embedded:{}", path("data/store").display()));
    let mut control = open(control).spawn();
    control.ready().await;
    let start = proxy()
        .args([
            "--outbound",
            &unix("sockets/out"),
            "--agent",
            &unix("sockets/agent"),
        ])
        .args(["--admin", &unix("sockets/admin"), "--dns", "127.0.0.1:0"])
        .arg("--state-dir")
        .arg(path("state"));
    let mut proxy = open(start).spawn();
    proxy.ready().await;
    for dir in ["sockets", "data", "state"] {
        assert_eq!(mode(&path(dir)), 0o700, "{dir}");
    }
    let files = ["grpc", "http", "out", "agent", "admin"].map(|name| format!("sockets/{name}"));
    for file in files
        .iter()
        .map(String::as_str)
        .chain(["data/store", "state/lock"])
    {
        assert_eq!(mode(&path(file)), 0o600, "{file}");
    }
    proxy.stop_cleanly().await;
    control.stop_cleanly().await;
    for kept in std::fs::read_dir(path("state")).unwrap() {
        let kept = kept.unwrap().path();
        assert_eq!(mode(&kept), 0o600, "{}", kept.display());
    }
    let left: Vec<_> = std::fs::read_dir(path("sockets")).unwrap().collect();
    assert!(left.is_empty(), "socket files that were left: {left:?}");
}

/// A tiny file system, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let dir = folder();
        let disk = dir.path().to_str().unwrap();
        let mount = Command::new(system("mount", "mount"))
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs", disk])
            .status();
        assert!(mount.unwrap().success(), "these tests need root");
        Self(dir)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Issue 10, D4. Needs root, as it mounts a file system of 64 KiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_starts_on_a_full_state_disk_and_writes_when_it_can() {
    let disk = Disk::new();
    let filler = disk.0.path().join("filler");
    // Fills the disk.
    let _ = std::fs::write(&filler, vec![0; 1 << 20]);
    let state = disk.0.path().join("state");
    let mut process = proxy()
        .args(["--outbound", "127.0.0.1:0", "--agent", "127.0.0.1:0"])
        .args(["--admin", "127.0.0.1:0", "--dns", "127.0.0.1:0"])
        .arg("--state-dir")
        .arg(&state)
        .spawn();
    let addrs = process.ready().await;
    process.says("the disk is full").await;
    let admin: SocketAddr = addrs.get("admin").parse().unwrap();
    answers(admin, "/readyz").await;
    let mut echo = Start::new("heddle-echo", &binary("heddle-echo"))
        .args(["--listen", "127.0.0.1:0", "--instance", "e1"])
        .args(["--agent", &format!("http://{}", addrs.get("agent"))])
        .spawn();
    echo.ready().await;
    until("the instance is registered", async || {
        let answer = http_get::get(admin, "/metrics").await;
        let has = |text: &str| text.contains("heddle_agent_instances 1");
        seen(matches!(&answer, Ok((200, text)) if has(text)), "not yet")
    })
    .await;
    std::fs::remove_file(&filler).unwrap();
    within(TIMEOUT, "what was learnt is written", async || {
        let files: Vec<_> = std::fs::read_dir(&state)
            .map(|all| {
                all.filter_map(Result::ok)
                    .map(|file| file.file_name())
                    .collect()
            })
            .unwrap_or_default();
        let kept = files.iter().any(|name| name != "lock");
        kept.then_some(()).ok_or_else(|| format!("{files:?}"))
    })
    .await;
    echo.stop_cleanly().await;
    process.stop_cleanly().await;
}
