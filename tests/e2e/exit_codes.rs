//! The exit codes of the command line (issue 10, E1): every command in every way to fail. docs/operating.md lists them.

use std::path::Path;

use futures_util::future::join_all;
use heddle_tests::mesh::Mesh;
use heddle_tests::process::{Start, run};
use heddle_tests::temp::free_addr;
use heddle_tests::tools::binary;

/// The commands that query a mesh. `events --follow` does not end where a mesh answers.
const QUERIES: &[&str] = &[
    "status",
    "services",
    "services heddle-echo",
    "proxies",
    "edges",
    "edges heddle-echo",
    "events",
    "events --service heddle-echo",
];
const FOLLOWING: &[&str] = &["events --follow", "events --follow --service heddle-echo"];

fn heddle(line: &str) -> Start {
    Start::new("heddle", &binary("heddle")).args(line.split_whitespace())
}

/// Runs all lines at once; each must end with the code, one line on standard error and nothing else.
async fn all_fail(lines: Vec<String>, code: i32, part: &str) {
    let runs = lines.iter().map(|line| run(heddle(line)));
    for (line, ran) in lines.iter().zip(join_all(runs).await) {
        let words = format!("heddle {line}: {}", ran.all());
        assert_eq!(ran.code, Some(code), "{words}");
        assert!(ran.stdout.is_empty(), "{words}");
        let one_line = ran.stderr.lines().count() == 1 && ran.stderr.starts_with("error: ");
        assert!(one_line && ran.stderr.contains(part), "{part}: {words}");
    }
}

/// Each query with each ending.
fn each(endings: &[&str]) -> Vec<String> {
    let queries = QUERIES.iter().chain(FOLLOWING);
    queries
        .flat_map(|query| {
            endings
                .iter()
                .map(move |ending| format!("{query} {ending}"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_usage_error_is_2() {
    let wrong = ["--nosuch", "-o nosuch", "one two three", "--control ::::"];
    all_fail(each(&wrong), 2, "").await;
    let others = [
        "nosuch",
        "events --kind nosuch",
        "events --since soon",
        "services users.shop --namespace shop",
        "demo --nosuch",
        "demo --rate x",
        "run --nosuch",
        "run --service users",
        "run --service Users -- true",
        "run --service users -- /no/such/program",
        "control --nosuch",
        "control --listen nowhere",
        "proxy --nosuch",
        "proxy --outbound nowhere",
        "echo --nosuch",
        "echo --listen nowhere",
    ];
    all_fail(others.map(str::to_owned).to_vec(), 2, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_to_ask_is_4() {
    let control = format!("--control http://{}", free_addr());
    all_fail(each(&[&control]), 4, "no control plane answers at").await;
}

/// Something takes the connection and says nothing, such as a process that was stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_ran_out_is_3() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control = format!("--control http://{}", silent.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((socket, _)) = silent.accept().await {
            held.push(socket);
        }
    });
    all_fail(each(&[&control]), 3, "did not answer within 10 s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_0_and_a_no_is_1() {
    let mut mesh = Mesh::builder().start().await;
    mesh.echo("a", "e1").await;
    mesh.control_has(&["e1"]).await;
    let control = format!("--control http://{}", mesh.grpc);
    for query in QUERIES {
        for format in ["table", "json", "yaml"] {
            let ran = run(heddle(&format!("{query} -o {format} {control}"))).await;
            let shown = ran.code == Some(0) && !ran.stdout.is_empty() && ran.stderr.is_empty();
            assert!(shown, "{query} -o {format}: {}", ran.all());
        }
    }
    let no = [
        "services nosuch",
        "services a.b.c",
        "events --service nosuch",
        "events --service a.b.c",
        "edges nosuch",
        "edges a.b.c",
        "services --namespace nosuch",
    ];
    let no = no.map(|query| format!("{query} {control}"));
    all_fail(no.to_vec(), 1, "service").await;

    // The answer cannot be written, or nobody reads it to its end.
    let shell = |line: String| Start::new("a shell", Path::new("bash")).args(["-c", &line]);
    for query in QUERIES {
        let line = format!("{} {query} {control}", binary("heddle").display());
        let ran = run(shell(format!("{line} >/dev/full"))).await;
        assert_eq!(ran.code, Some(1), "{query} >/dev/full: {}", ran.all());
        let ran = run(shell(format!("{line} | true; exit ${{PIPESTATUS[0]}}"))).await;
        assert_eq!(ran.code, Some(0), "{query} | true: {}", ran.all());
    }
}
