//! Runs every command and file of README.md and docs/ (issue 10, E3): shell commands against a real mesh or a real
//! etcd, services files with a real proxy, bootstraps with real clients. Only the default addresses are replaced by
//! those of the test's mesh. A block that is not in the table fails.

use std::path::{Path, PathBuf};

use heddle_tests::echo::reach;
use heddle_tests::etcd::Etcd;
use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Process, Start, run};
use heddle_tests::temp::{folder, free_addr};
use heddle_tests::tools::{binary, envoy, go_peer, root};
use heddle_tests::wait::{seen, until};

/// How a block is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Each line in a shell with a running mesh; must exit with 0 and print something.
    Mesh,
    /// All lines in one shell with a running etcd.
    Etcd,
    /// A file of `--services-dir`: its instances appear.
    ServicesFile,
    /// A bootstrap of a gRPC client: it reaches `xds:///users`.
    GrpcBootstrap,
    /// Envoy finds nothing wrong with it.
    Envoy,
    /// `heddle run` puts a program into the mesh.
    Run,
    /// In this order, in one folder: a mesh of one's own.
    OwnMesh,
    /// By another test.
    Elsewhere(&'static str),
}

/// File, first line of the block, how it is tested.
const BLOCKS: &[(&str, &str, How)] = &[
    (
        "README.md",
        "cargo run --release -- demo",
        How::Elsewhere("e2e demo::the_demo_starts_carries_calls_and_leaves_nothing_behind"),
    ),
    (
        "README.md",
        "grpcurl -plaintext 127.0.0.1:15001 list",
        How::Mesh,
    ),
    ("README.md", "cargo run --release -- status", How::Mesh),
    (
        "README.md",
        "./test",
        How::Elsewhere("who runs this test ran it"),
    ),
    ("README.md", "heddle control --store", How::OwnMesh),
    ("README.md", "mkdir -p services", How::OwnMesh),
    ("README.md", "heddle run --service hello", How::OwnMesh),
    ("README.md", "heddle status", How::OwnMesh),
    ("README.md", "heddle run --service users", How::Run),
    ("README.md", "service: users", How::ServicesFile),
    (
        "docs/benchmarks.md",
        "cargo build --release -p heddle-proxy",
        How::Elsewhere("./test --long"),
    ),
    (
        "docs/benchmarks.md",
        "cargo build --release -p heddle-control",
        How::Elsewhere("./test --long"),
    ),
    ("docs/etcd.md", "etcdctl user add root", How::Etcd),
    ("docs/health.md", "service: users", How::ServicesFile),
    (
        "docs/listeners.md",
        "heddle-control --listen 10.0.0.5",
        How::Elsewhere("e2e listeners::an_address_beyond_loopback_is_refused_unless_it_is_named"),
    ),
    (
        "docs/listeners.md",
        "heddle control --listen 10.0.0.5",
        How::Elsewhere("chaos: its nodes have network namespaces of their own"),
    ),
    (
        "docs/services.md",
        "protoc --include_imports",
        How::Elsewhere("e2e cli::a_program_without_reflection… with the peers' descriptor set"),
    ),
    (
        "docs/services.md",
        "service: users",
        How::Elsewhere("agent::tests::files::a_descriptor_file_describes_the_services_of_its_file"),
    ),
    ("docs/operating.md", "heddle status", How::Mesh),
    ("docs/operating.md", "heddle events", How::Mesh),
    ("docs/operating.md", "heddle proxies", How::Mesh),
    ("docs/operating.md", "heddle edges", How::Mesh),
    ("docs/xds.md", "{", How::GrpcBootstrap),
    ("docs/xds.md", "node:", How::Envoy),
    ("docs/xds.md", "grpcurl -plaintext", How::Mesh),
    ("docs/xds.md", "cluster_manager:", How::Envoy),
];

/// A fenced block with a language.
#[derive(Debug)]
struct Block {
    file: String,
    line: usize,
    text: String,
}

impl Block {
    fn how(&self) -> Option<How> {
        let known = |(file, first, _): &&(&str, &str, How)| {
            *file == self.file && self.text.starts_with(first)
        };
        BLOCKS.iter().find(known).map(|(_, _, how)| *how)
    }

    fn name(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    /// The text with this mesh's addresses in place of the default ones.
    fn in_mesh(&self, mesh: &Mesh) -> String {
        let node = mesh.node("a");
        self.text
            .replace("127.0.0.1:15001", &node.outbound.to_string())
            .replace("127.0.0.1:15002", &node.agent.to_string())
            .replace("127.0.0.1:15000", &node.admin.to_string())
            .replace("127.0.0.1:15010", &mesh.grpc.to_string())
            .replace("127.0.0.1:15014", &mesh.http.to_string())
    }
}

fn markdown(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            markdown(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// All blocks with a language; figures and outputs have none.
fn blocks() -> Vec<Block> {
    let mut files = vec![root().join("README.md")];
    markdown(&root().join("docs"), &mut files);
    files.sort();
    let mut found = Vec::new();
    for path in files {
        let file = path
            .strip_prefix(root())
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut open: Option<(bool, usize, String)> = None;
        for (at, line) in text.lines().enumerate() {
            match (line.trim_start().strip_prefix("```"), open.as_mut()) {
                (Some(language), None) => {
                    open = Some((!language.is_empty(), at + 2, String::new()));
                }
                (Some(_), Some(_)) => {
                    if let Some((true, line, text)) = open.take() {
                        let file = file.clone();
                        found.push(Block { file, line, text });
                    }
                    open = None;
                }
                (None, Some((_, _, text))) => {
                    text.push_str(line);
                    text.push('\n');
                }
                (None, None) => {}
            }
        }
    }
    found
}

fn blocks_of(how: How) -> Vec<Block> {
    let blocks: Vec<_> = blocks()
        .into_iter()
        .filter(|block| block.how() == Some(how))
        .collect();
    assert!(!blocks.is_empty(), "no block is shown by {how:?}");
    blocks
}

#[test]
fn every_block_is_shown_by_a_test_and_every_test_has_its_block() {
    let blocks = blocks();
    let unknown: Vec<_> = blocks
        .iter()
        .filter(|block| block.how().is_none())
        .map(|block| (block.name(), block.text.lines().next()))
        .collect();
    assert!(
        unknown.is_empty(),
        "add these to BLOCKS in tests/e2e/docs.rs: {unknown:#?}"
    );
    let stale: Vec<_> = BLOCKS
        .iter()
        .filter(|(file, first, _)| {
            !blocks
                .iter()
                .any(|block| block.file == *file && block.text.starts_with(first))
        })
        .collect();
    assert!(stale.is_empty(), "no document has these: {stale:#?}");
}

/// Issue 10, E1: each kind of event is explained, and no other.
#[test]
fn every_kind_of_event_is_explained() {
    let text = std::fs::read_to_string(root().join("docs/events.md")).unwrap();
    let kinds = text.split("## ").find(|part| part.starts_with("Kinds\n"));
    let rows = kinds.unwrap().lines();
    let explained: Vec<&str> = rows
        .filter_map(|row| row.strip_prefix("| `")?.split(" |").next())
        .flat_map(|cell| cell.split(", "))
        .map(|kind| kind.trim_matches('`'))
        .collect();
    assert_eq!(explained, heddle_proto::EVENT_KINDS);
}

/// A shell that runs the binaries of this build and the pinned peers. `cargo run --release --` becomes the `heddle` of this
/// build.
fn shell(script: &str, dir: &Path) -> Start {
    let heddle = binary("heddle");
    let ours = heddle.parent().unwrap().display().to_string();
    let peers = go_peer("grpcurl").parent().unwrap().display().to_string();
    let path = format!("{ours}:{peers}:{}", std::env::var("PATH").unwrap());
    let script = script.replace("cargo run --release -- ", "heddle ");
    Start::new("a block of the documents", Path::new("bash"))
        .args(["-euo", "pipefail", "-c", &script])
        .env("PATH", path)
        .folder(dir)
}

/// The commands of a block: lines, joined where they go on.
fn commands(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_for_a_running_mesh_work() {
    let mut mesh = Mesh::builder().nodes(1).start().await;
    mesh.echo("a", "e1").await;
    // The service of the documents.
    let start = mesh.echo_start("a", "u1").args(["--service", "users"]);
    mesh.instance("a", "u1", start).await;
    reach(&mesh.channel("a"), &["e1"]).await;
    until("the mesh has the service", async || {
        let found = mesh.service("users").await?;
        seen(found.endpoints.len() == 1, format!("{found:?}"))
    })
    .await;
    let dir = folder();
    let control = format!("http://{}", mesh.grpc);
    for block in blocks_of(How::Mesh) {
        for command in commands(&block.in_mesh(&mesh)) {
            let start = shell(&command, dir.path()).env("HEDDLE_CONTROL", &control);
            if command.contains("--follow") {
                // It runs until it is stopped; earlier events come first.
                let mut process = start.spawn();
                let what = format!("{}: {command} prints something", block.name());
                process
                    .line(&what, |line| (!line.is_empty()).then_some(()))
                    .await;
                continue;
            }
            let ran = run(start).await;
            let shown = ran.code == Some(0) && !ran.stdout.is_empty();
            assert!(shown, "{}: {command}: {}", block.name(), ran.all());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_files_are_taken() {
    let mesh = Mesh::builder().nodes(1).start().await;
    for (at, block) in blocks_of(How::ServicesFile).iter().enumerate() {
        // The documents use one name; here each file has its own.
        let service = format!("users{at}");
        let text = block
            .text
            .replace("service: users", &format!("service: {service}"));
        mesh.write_services_file("a", &format!("{service}.yaml"), &text);
        let ids = block.text.matches("{id: ").count();
        until(&format!("the instances of {}", block.name()), async || {
            let found = mesh.service(&service).await?;
            let log = mesh.node("a").proxy().output();
            seen(
                found.endpoints.len() == ids && ids > 0,
                format!("{found:?}\n{log}"),
            )
        })
        .await;
    }
}

/// A program with `--port`, as a user's own would be.
fn my_server(dir: &Path) {
    let script = format!(
        "#!/bin/sh\nexec {} --listen 127.0.0.1:$2 --service my-own --instance my-own\n",
        binary("heddle-echo").display()
    );
    std::fs::write(dir.join("my-server"), script).unwrap();
    let path = dir.join("my-server").display().to_string();
    let made = std::process::Command::new("chmod")
        .args(["+x", &path])
        .status();
    assert!(made.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_joins_by_the_shown_line() {
    let mesh = Mesh::builder().nodes(1).start().await;
    let dir = folder();
    my_server(dir.path());
    let agent = format!("http://{}", mesh.node("a").agent);
    for block in blocks_of(How::Run) {
        let start = shell(&format!("exec {}", block.text), dir.path())
            .env("HEDDLE_AGENT", &agent)
            .env(
                "HEDDLE_OUTBOUND",
                format!("http://{}", mesh.node("a").outbound),
            );
        let mut process: Process = start.spawn();
        until(
            &format!("{} brings an instance", block.name()),
            async || {
                let found = mesh.service("users").await;
                let healthy = found.as_ref().is_ok_and(|found| found.endpoints.len() == 1);
                seen(healthy, format!("{found:?}\n{}", process.output()))
            },
        )
        .await;
        process.stop_cleanly().await;
    }
}

/// The commands for a mesh of one's own, in the order of the README. Only the ports are this test's, set by the
/// environment.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_of_ones_own_is_started_by_the_shown_commands() {
    let dir = folder();
    let control = free_addr();
    let [outbound, agent] = [free_addr(), free_addr()];
    let url = |addr: &std::net::SocketAddr| format!("http://{addr}");
    let settings = [
        ("HEDDLE_CONTROL_LISTEN", control.to_string()),
        ("HEDDLE_CONTROL_HTTP", free_addr().to_string()),
        ("HEDDLE_PROXY_CONTROL", url(&control)),
        ("HEDDLE_PROXY_OUTBOUND", outbound.to_string()),
        ("HEDDLE_PROXY_INBOUND", free_addr().to_string()),
        ("HEDDLE_PROXY_AGENT", agent.to_string()),
        ("HEDDLE_PROXY_ADMIN", free_addr().to_string()),
        ("HEDDLE_CONTROL", url(&control)),
        ("HEDDLE_AGENT", url(&agent)),
        ("HEDDLE_OUTBOUND", url(&outbound)),
    ];
    let start = |command: &str| {
        let command = command.replace("127.0.0.1:15001", &outbound.to_string());
        settings
            .iter()
            .fold(shell(&command, dir.path()), |start, (name, value)| {
                start.env(name, value)
            })
    };
    let stays = ["heddle control", "heddle proxy", "heddle run"];
    let mut running = Vec::new();
    for block in blocks_of(How::OwnMesh) {
        for command in commands(&block.text) {
            if stays.iter().any(|word| command.starts_with(word)) {
                let mut process = start(&format!("exec {command}")).spawn();
                process.ready().await;
                running.push(process);
                continue;
            }
            until(&format!("{}: {command}", block.name()), async || {
                let ran = run(start(&command)).await;
                seen(ran.code == Some(0), ran.all())
            })
            .await;
        }
    }
    assert_eq!(running.len(), 3);
    while let Some(mut process) = running.pop() {
        process.stop_cleanly().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_in_etcd_are_made_and_suffice() {
    let etcd = Etcd::single().await;
    let dir = folder();
    for block in blocks_of(How::Etcd) {
        let ran =
            run(shell(&block.text, dir.path()).env("ETCDCTL_ENDPOINTS", &etcd.urls()[0])).await;
        assert_eq!(ran.code, Some(0), "{}: {}", block.name(), ran.all());
    }
    std::fs::write(dir.path().join("word"), "change-me-too").unwrap();
    let control = |user: &str| {
        Start::new("heddle-control", &binary("heddle-control"))
            .args(["--store", &etcd.store(), "--store-user", user])
            .args(["--listen", &free_addr().to_string()])
            .args(["--http", &free_addr().to_string()])
            .arg("--store-password-file")
            .arg(dir.path().join("word"))
    };
    let mut process = control("heddle").spawn();
    process.ready().await;
    process.stop_cleanly().await;
    // And no other user is accepted.
    let refused = run(control("somebody")).await;
    assert_eq!(refused.code, Some(2), "{}", refused.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_finds_its_service_by_the_shown_bootstrap() {
    let mut mesh = Mesh::builder().nodes(1).start().await;
    let start = mesh.echo_start("a", "u1").args(["--service", "users"]);
    mesh.instance("a", "u1", start).await;
    let protoset = mesh.path("echo.protoset");
    std::fs::write(&protoset, heddle_proto::DESCRIPTOR_SET).unwrap();
    for block in blocks_of(How::GrpcBootstrap) {
        let file = mesh.path("bootstrap.json");
        std::fs::write(&file, block.in_mesh(&mesh)).unwrap();
        let start = Start::new("grpc-go", &go_peer("xds-client")).arg("xds:///users");
        let mut client = start
            .arg(&protoset)
            .env("GRPC_XDS_BOOTSTRAP", &file)
            .spawn();
        let what = format!("an answer by the bootstrap of {}", block.name());
        let answered = |line: &str| line.contains("\"u1\"").then_some(());
        client.line(&what, answered).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_takes_the_shown_bootstraps() {
    let dir = folder();
    let [whole, part] = &blocks_of(How::Envoy)[..] else {
        panic!("one bootstrap, and one part of it");
    };
    for text in [whole.text.clone(), format!("{}{}", whole.text, part.text)] {
        let file = dir.path().join("envoy.yaml");
        std::fs::write(&file, text).unwrap();
        let start = Start::new("envoy", &envoy())
            .args(["--mode", "validate", "-c"])
            .arg(&file);
        let ran = run(start).await;
        assert_eq!(ran.code, Some(0), "{}", ran.all());
    }
}
