//! h2spec against both listeners of a proxy. It tests RFC 7540; the cases in which RFC 9113 differs are listed in
//! docs/conformance.md with their section. A failing case that is not listed fails the test, and so does a listed case
//! that passes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Start, run_within};
use heddle_tests::raw::{Call, Client, Server, body};
use heddle_tests::tools::{go_peer, root};
use heddle_tests::wait::{seen, until};
use http::{HeaderMap, Response};

/// All of h2spec's cases.
const CASES: usize = 146;

const PATH: &str = "/raw.Raw/Spec";

/// `package: name` of each case.
#[derive(Default)]
struct Report {
    all: usize,
    failed: BTreeSet<String>,
    skipped: BTreeSet<String>,
}

/// Reads what h2spec writes: one `<testcase package= classname=>` each, with `<error>` or `<skipped>` inside.
fn parse(junit: &str) -> Report {
    let mut report = Report::default();
    for case in junit.split("<testcase ").skip(1) {
        let attribute = |name: &str| {
            let (_, rest) = case.split_once(&format!("{name}=\"")).unwrap();
            rest.split_once('"')
                .unwrap()
                .0
                .replace("&#34;", "\"")
                .replace("&quot;", "\"")
        };
        let name = format!("{}: {}", attribute("package"), attribute("classname"));
        let inside = case.split("</testcase>").next().unwrap();
        report.all += 1;
        if inside.contains("<error") || inside.contains("<failure") {
            report.failed.insert(name);
        } else if inside.contains("<skipped") {
            report.skipped.insert(name);
        }
    }
    report
}

async fn h2spec(mesh: &Mesh, addr: SocketAddr) -> (Report, String) {
    let junit = mesh.path("h2spec.xml");
    let start = Start::new("h2spec", &go_peer("h2spec"))
        .args(["--host", &addr.ip().to_string()])
        .args(["--port", &addr.port().to_string()])
        .args(["--path", PATH])
        // Longer than a busy machine stalls; only a failing case waits this long.
        .args(["--timeout", "10", "--strict", "--junit-report"])
        .arg(&junit);
    let ran = run_within(Duration::from_secs(500), start).await;
    let text = std::fs::read_to_string(&junit)
        .unwrap_or_else(|error| panic!("h2spec wrote no report: {error}\n{}", ran.all()));
    (parse(&text), ran.stdout)
}

/// The rows of the table under this heading of docs/conformance.md: `| case | …`.
fn documented(heading: &str) -> BTreeSet<String> {
    let path = root().join("docs/conformance.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text
        .split_once(&format!("## {heading}\n"))
        .unwrap_or_else(|| panic!("docs/conformance.md has no section {heading:?}"));
    let section = section.split("\n## ").next().unwrap();
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(case, _)| case.to_owned())
        .collect()
}

fn check_report(listener: &str, report: &Report, output: &str) {
    assert_eq!(report.all, CASES, "{output}");
    let differ = documented("h2spec: cases that RFC 9113 decides otherwise");
    let skip = documented("h2spec: cases that it skips");
    let unexpected: Vec<_> = report.failed.difference(&differ).collect();
    assert!(
        unexpected.is_empty(),
        "{listener} fails {unexpected:#?}\n{output}"
    );
    let stale: Vec<_> = differ.difference(&report.failed).collect();
    assert!(
        stale.is_empty(),
        "docs/conformance.md: {listener} passes {stale:#?}"
    );
    let unexpected: Vec<_> = report.skipped.difference(&skip).collect();
    assert!(
        unexpected.is_empty(),
        "{listener} makes h2spec skip {unexpected:#?}"
    );
}

/// A backend that reads the request to its end before it answers: an early answer would race the checks.
async fn backend() -> Server {
    Server::start(|mut call: Call| async move {
        if body(call.request.body_mut()).await.is_err() {
            return;
        }
        let response = Response::builder().header("content-type", "text/plain");
        let response = response.body(()).unwrap();
        if let Ok(mut stream) = call.respond.send_response(response, false) {
            let _ = stream.send_data("as many bytes as the cases need".into(), true);
        }
    })
    .await
}

async fn mesh(backend: &Server) -> Mesh {
    let file = format!(
        "service: raw\nprotos: [raw.Raw]\ninstances:\n  - {{id: r1, address: \"{}\"}}\n",
        backend.addr
    );
    let mesh = Mesh::builder()
        .services_file("a", "raw.yaml", &file)
        .start()
        .await;
    let addr = mesh.node("a").outbound;
    until("the backend is reached", async || {
        let client = Client::connect(addr).await;
        let answer = client
            .call(&addr.to_string(), PATH, &HeaderMap::new(), b"x")
            .await;
        seen(!answer.body.is_empty(), format!("{answer:?}"))
    })
    .await;
    mesh
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbound_listener_conforms() {
    let backend = backend().await;
    let mesh = mesh(&backend).await;
    let (report, output) = h2spec(&mesh, mesh.node("a").outbound).await;
    check_report("outbound", &report, &output);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbound_listener_conforms() {
    let backend = backend().await;
    let mesh = mesh(&backend).await;
    let (report, output) = h2spec(&mesh, mesh.node("a").inbound).await;
    check_report("inbound", &report, &output);
}
