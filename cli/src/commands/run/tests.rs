use std::{collections::BTreeMap, ffi::OsString, time::Duration};

use heddle_proto::registry::v1::{Protocol, health_check::Kind};
use tokio::time::timeout;

use super::{
    Options,
    lifecycle::run_program,
    options::Plan,
    program::{address_of, with_port},
    sources::{folders, proto_services},
};

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

fn plan(line: &str, command: &[&str]) -> Result<Plan, String> {
    let words = line.split_whitespace().map(OsString::from);
    let args = [OsString::from("heddle run")]
        .into_iter()
        .chain(words)
        .chain(["--agent".into(), "127.0.0.1:1".into(), "--".into()])
        .chain(command.iter().map(OsString::from));
    heddle_options::try_parse::<Options>("HEDDLE_RUN", args, &BTreeMap::new())
        .map_err(|stop| format!("{stop:?}"))?
        .options
        .plan()
}

#[test]
fn what_is_typed_is_what_is_registered() {
    let plan = plan(
        "--service web --namespace shop --version v2 --protocol http --health http:/ok --weight 7",
        &["python3", "-m", "http.server"],
    )
    .unwrap();
    assert_eq!(
        (plan.program.to_str(), plan.args.len()),
        (Some("python3"), 2)
    );
    let instance = plan.instance;
    assert_eq!(
        (&*instance.service, &*instance.namespace, &*instance.version),
        ("web", "shop", "v2")
    );
    assert_eq!(instance.protocol(), Protocol::Http);
    assert!(
        instance.id.starts_with("web-") && instance.id.len() == 12,
        "{}",
        instance.id
    );
    let health = instance.health.unwrap();
    assert_eq!((health.kind(), &*health.path), (Kind::Http, "/ok"));
}

/// Issue 10, D5.
#[test]
fn addresses_stand_beside_urls() {
    for (url, expect) in [
        ("http://127.0.0.1:15001", "127.0.0.1:15001"),
        ("http://127.0.0.1:15001/", "127.0.0.1:15001"),
        ("http://[::1]:15001", "[::1]:15001"),
        ("proxy:15001", "proxy:15001"),
        (
            "unix:/run/heddle/outbound.sock",
            "unix:/run/heddle/outbound.sock",
        ),
    ] {
        assert_eq!(address_of(url), expect, "{url}");
    }
}

#[test]
fn an_address_that_is_none_is_refused_before_the_program_starts() {
    let given = |flag: &str, address: &str| {
        plan(&format!("--service u {flag} {address}"), &["true"]).map(|plan| plan.outbound)
    };
    for (address, expect) in [
        ("127.0.0.1:28101", "http://127.0.0.1:28101"),
        ("http://[::1]:15001/", "http://[::1]:15001"),
        ("unix:/run/out.sock", "unix:/run/out.sock"),
    ] {
        assert_eq!(given("--outbound", address).as_deref(), Ok(expect));
    }
    for bad in [
        "http://localhost",
        "http://h:1,http://h:2",
        "foo://bar",
        "https://h:1",
        "h:0",
    ] {
        let fault = given("--outbound", bad).unwrap_err();
        assert!(
            fault.contains("--outbound") && fault.contains("http://HOST:PORT"),
            "{bad}: {fault}"
        );
    }
}

#[test]
fn the_stop_timeout_is_a_duration() {
    for (word, expect) in [("1m", 60_000), ("0.5", 500), ("10", 10_000), ("0", 0)] {
        let plan = plan(&format!("--service u --stop-timeout {word}"), &["true"]).unwrap();
        assert_eq!(plan.stop_timeout, Duration::from_millis(expect), "{word}");
    }
    for bad in ["2h", "x", "-1"] {
        let line = format!("--service u --stop-timeout={bad}");
        assert!(plan(&line, &["true"]).is_err(), "{bad}");
    }
}

#[test]
fn the_port_is_put_into_arguments() {
    for (arg, expect) in [
        ("$PORT", "7"),
        ("--listen=127.0.0.1:${PORT}", "--listen=127.0.0.1:7"),
        ("$PORT:$PORT", "7:7"),
        ("$PORTS ${PORT}S $PORT_X", "$PORTS 7S $PORT_X"),
        ("PORT", "PORT"),
    ] {
        assert_eq!(with_port(arg.as_ref(), 7), expect, "{arg}");
    }
}

#[test]
fn mistakes_are_reported_before_anything_starts() {
    for (line, command, part) in [
        ("--service Users", &["x"][..], "--service \"Users\""),
        ("--service u --health ping", &["x"], "--health \"ping\""),
        ("--service u --instance a-", &["x"], "--instance"),
        ("--service u --protocol tcp", &["x"], "tcp"),
        ("--service u --weight 0", &["x"], "weight"),
        ("", &["x"], "--service"),
        ("--service u", &[], "COMMAND"),
        (
            "--service u --proto Bad-Name",
            &["x"],
            "--proto shop.v1.Users",
        ),
        (
            "--service u --descriptors Cargo.toml",
            &["x"],
            "--descriptors: Cargo.toml is not a serialized",
        ),
        (
            "--service u --descriptors /no/x.pb",
            &["x"],
            "/no/x.pb cannot be read",
        ),
        (
            "--service u --protocol http --descriptors x",
            &["x"],
            "--descriptors is for gRPC",
        ),
    ] {
        let fault = plan(line, command).unwrap_err();
        assert!(fault.contains(part), "{line}: {fault}");
    }
    let long = plan(&format!("--service {}", "a".repeat(63)), &["x"]).unwrap();
    assert!(long.instance.id.len() <= 63);
}

#[tokio::test]
async fn the_exit_code_is_passed_and_the_program_knows_its_port_and_node() {
    let script = "test -n \"$PORT\" -a \"$HEDDLE_AGENT\" = http://127.0.0.1:1 -a -n \"$HEDDLE_OUTBOUND\" \
        -a \"$HEDDLE_AGENT_ADDR\" = 127.0.0.1:1 -a \"$HEDDLE_OUTBOUND_ADDR\" = 127.0.0.1:15001 && exit 7";
    let plan = plan("--service u --restart never", &["sh", "-c", script]).unwrap();
    let never = std::future::pending();
    assert_eq!(
        timeout(TEST_TIMEOUT, run_program(&plan, never))
            .await
            .unwrap(),
        Ok(7)
    );
    let killed = self::plan("--service u --restart never", &["sh", "-c", "kill -9 $$"]).unwrap();
    assert_eq!(
        timeout(TEST_TIMEOUT, run_program(&killed, std::future::pending()))
            .await
            .unwrap(),
        Ok(137)
    );
}

#[tokio::test]
async fn a_failing_program_is_started_again_and_a_finished_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let count = dir.path().join("count");
    let script = format!("echo x >> {0}; test $(wc -l < {0}) -ge 2", count.display());
    let plan = plan("--service u", &["sh", "-c", &script]).unwrap();
    assert_eq!(
        timeout(TEST_TIMEOUT, run_program(&plan, std::future::pending()))
            .await
            .unwrap(),
        Ok(0)
    );
    assert_eq!(std::fs::read_to_string(count).unwrap().lines().count(), 2);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_one_line() {
    let plan = plan("--service u", &["/nowhere/program"]).unwrap();
    let fault = run_program(&plan, std::future::pending())
        .await
        .unwrap_err();
    assert!(
        fault.starts_with("cannot start /nowhere/program: "),
        "{fault}"
    );
}

#[tokio::test]
async fn a_stop_ends_the_whole_group_and_kills_what_does_not_listen() {
    let dir = tempfile::tempdir().unwrap();
    let started = dir.path().join("started");
    // Long enough that a program which handles SIGTERM has handled it, even if the machine stalls.
    for (trap, patience, expect) in [
        ("trap 'exit 3' TERM", 30, 3),
        ("trap '' TERM", 1, 137),
        (":", 30, 0),
    ] {
        let _ = std::fs::remove_file(&started);
        let script = format!(
            "{trap}; sleep 1000 & echo $! > {}; wait; sleep 1000",
            started.display()
        );
        let line = format!("--service u --stop-timeout {patience}");
        let plan = plan(&line, &["sh", "-c", &script]).unwrap();
        let pid_file = started.clone();
        let stop = async move {
            while std::fs::read_to_string(&pid_file)
                .is_ok_and(|text| text.ends_with('\n'))
                .eq(&false)
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert_eq!(
            timeout(TEST_TIMEOUT, run_program(&plan, stop))
                .await
                .unwrap(),
            Ok(expect),
            "{trap}"
        );
        let pid = std::fs::read_to_string(&started).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let gone = async {
            // The kernel delivers SIGKILL asynchronously.
            while std::fs::read_to_string(&stat).is_ok_and(|state| !state.contains(") Z ")) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(TEST_TIMEOUT, gone)
            .await
            .expect("the grandchild lives");
    }
}

#[tokio::test]
async fn a_port_that_somebody_else_has_is_named_and_nothing_is_started() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let plan = plan(&format!("--service u --port {port}"), &["sleep", "60"]).unwrap();
    let ended = timeout(TEST_TIMEOUT, run_program(&plan, std::future::pending())).await;
    let why = ended.unwrap().unwrap_err();
    assert!(why.contains(&format!("--port {port} is in use")), "{why}");
}

/// Issue 10, B1: the sources in the folder show which `--proto` may be meant.
#[test]
fn sources_in_the_folder_name_the_proto_services_that_may_be_meant() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "protos/shop/users.proto",
        "syntax = \"proto3\";\npackage shop.v1; // the package\n// service Old {\nservice Users {\n}\nservice Carts{rpc \
         Get(A) returns (B);}",
    );
    write(
        "plain.proto",
        "service Plain {}\nmessage service { string package = 1; }",
    );
    write("node_modules/x.proto", "package x; service X {}");
    write("notes.txt", "service Notes {");
    let of = |folder: &str, most| proto_services(&[folder.into()], most);
    let path = dir.path().to_str().unwrap();
    assert_eq!(of(path, 5), ["Plain", "shop.v1.Carts", "shop.v1.Users"]);
    assert_eq!(of(path, 1), ["Plain"]);
    assert!(of("/nowhere", 5).is_empty());
    // Beside a program or a script that is started from elsewhere, but not beside those of the system.
    let elsewhere = std::path::Path::new("/nowhere");
    let script = format!("{path}/protos/shop/users.proto");
    let near = |words: &[&str]| {
        let words: Vec<_> = words.iter().map(Into::into).collect();
        proto_services(&folders(elsewhere, &words), 5)
    };
    assert_eq!(near(&["node", &script]), ["shop.v1.Carts", "shop.v1.Users"]);
    assert!(near(&["/bin/sh", "-c", "nothing"]).is_empty());
}
