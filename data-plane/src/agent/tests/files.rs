use std::{fs, net::IpAddr};

use heddle_proto::registry::v1::Health;

use super::{remover, until};
use crate::agent::{
    Agent,
    instance_table::Views,
    services_dir::ServicesDir,
    services_file::{self, Parsed},
};

const GOOD: &str = r#"
service: bench-echo
namespace: default
version: v1
protocol: grpc
protos: [echo.Echo]
#http: {hosts: [], paths: [/]}
health: {kind: none}
instances:
  - {id: e1, address: "127.0.0.1:21001"}
  - {id: e2, address: "127.0.0.1:21002", weight: 2}
"#;

fn own(ip: IpAddr) -> bool {
    ip.is_loopback()
}

fn parse(text: &str, is_own: &dyn Fn(IpAddr) -> bool) -> Result<Parsed, String> {
    services_file::parse(text, is_own, &mut |named| {
        Err(format!("{named} is not read here"))
    })
}

#[test]
fn the_contracts_own_example_is_read() {
    let found = parse(GOOD, &own).unwrap().instances;
    let seen: Vec<_> = found
        .iter()
        .map(|c| (c.instance.id.as_str(), c.address.port(), c.instance.weight))
        .collect();
    assert_eq!(seen, [("e1", 21001, 1), ("e2", 21002, 2)]);
    assert!(
        found
            .iter()
            .all(|c| c.protos[0].name == "echo.Echo" && c.instance.service == "bench-echo")
    );
}

#[test]
fn each_mistake_is_one_line_with_field_and_remedy() {
    for (from, to, field, remedy) in [
        (
            "service: bench-echo",
            "service: Bench_Echo",
            "service:",
            "a-z",
        ),
        ("weight: 2", "weigth: 2", "weigth", "unknown field"),
        ("version: v1", "verison: v1", "verison", "unknown field"),
        (
            "protocol: grpc",
            "protocol: tcp",
            "protocol:",
            "use grpc or http",
        ),
        (
            "protocol: grpc",
            "protocol: gprc",
            "protocol:",
            "use grpc or http",
        ),
        (
            "kind: none",
            "kind: ping",
            "health.kind:",
            "grpc, http, tcp or none",
        ),
        (
            "kind: none",
            "kind: tcp, interval: soon",
            "health.interval:",
            "5s",
        ),
        ("id: e2", "id: e1", "instances[1].id:", "unique"),
        ("weight: 2", "weight: 2000", "instances[1].weight:", "1000"),
        ("service: bench-echo", "", "service", "missing field"),
    ] {
        let fault = parse(&GOOD.replace(from, to), &own).expect_err(to);
        assert!(
            fault.contains(field) && fault.contains(remedy),
            "{to}: \"{fault}\""
        );
        assert!(!fault.contains('\n'), "{to}: {fault}");
    }
    for text in ["", "{", "- a\n- b", "service: [1]"] {
        let fault = parse(text, &own).expect_err(text);
        assert!(
            !fault.is_empty() && !fault.contains('\n'),
            "{text}: {fault}"
        );
    }
}

fn ids(agent: &Agent) -> Vec<String> {
    agent
        .views()
        .1
        .keys()
        .map(|k| format!("{}/{}", k.service, k.id))
        .collect()
}

#[tokio::test]
async fn files_come_change_break_and_go() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("echo.yaml");
    let agent = Agent::new("a");
    let mut dir = ServicesDir::new(temp.path(), agent.clone(), remover(&agent), own);
    dir.poll();
    assert!(ids(&agent).is_empty());

    fs::write(&file, GOOD).unwrap();
    fs::write(temp.path().join("notes.txt"), "service: x").unwrap();
    fs::write(temp.path().join(".echo.yaml.swp"), "half").unwrap();
    dir.poll();
    assert_eq!(ids(&agent), ["bench-echo/e1", "bench-echo/e2"]);
    let version = agent.views().0;
    dir.poll();
    assert_eq!(agent.views().0, version, "nothing changed");

    // A mistake: the last good content is kept, and other files are not affected.
    fs::write(&file, GOOD.replace("weight: 2", "weigth: 2")).unwrap();
    fs::write(
        temp.path().join("other.yml"),
        GOOD.replace("bench-echo", "other"),
    )
    .unwrap();
    dir.poll();
    assert_eq!(
        ids(&agent),
        ["bench-echo/e1", "bench-echo/e2", "other/e1", "other/e2"]
    );

    // A conflict is logged and retried: once the other file is deleted, the instance joins.
    fs::write(&file, GOOD.replace("bench-echo", "other")).unwrap();
    dir.poll();
    assert_eq!(ids(&agent).len(), 4);
    fs::remove_file(temp.path().join("other.yml")).unwrap();
    dir.poll();
    let other = |view: &Views| {
        let ids = view.keys().map(|key| format!("{}/{}", key.service, key.id));
        ids.collect::<Vec<_>>() == ["other/e1", "other/e2"]
            && view.values().all(|view| view.health == Health::Healthy)
    };
    until(&agent, "the other file's are in", other).await;

    // One instance is deleted from its file.
    let one: String = GOOD.replace("bench-echo", "other");
    let one: Vec<_> = one.lines().filter(|line| !line.contains("e2")).collect();
    fs::write(&file, one.join("\n")).unwrap();
    dir.poll();
    until(&agent, "one is left", |views| views.len() == 1).await;

    // They drain before they are removed.
    fs::remove_file(&file).unwrap();
    dir.poll();
    let (_, leaving) = agent.views();
    assert!(leaving.values().all(|v| v.health == Health::Draining));
    assert_eq!(leaving.len(), 1);
    until(&agent, "gone", Views::is_empty).await;
    // Deleting e2 from its file was a request; the deletion of the file was not.
    let (_, _, gone) = agent.unreported(0);
    let cause = |id: &str| {
        let mut of_it = gone
            .iter()
            .filter(|(key, _)| key.id == id && key.service == "other");
        of_it.next().unwrap().1.as_ref().map(ToString::to_string)
    };
    let expected = format!("its services file {} is gone", file.display());
    assert_eq!(cause("e1"), Some(expected));
    assert_eq!(cause("e2"), None);
}

#[tokio::test]
async fn a_folder_that_cannot_be_read_takes_nothing_away() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("s");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("echo.yaml"), GOOD).unwrap();
    let agent = Agent::new("a");
    let mut dir = ServicesDir::new(&path, agent.clone(), remover(&agent), own);
    dir.poll();
    fs::rename(&path, temp.path().join("moved")).unwrap();
    dir.poll();
    assert_eq!(ids(&agent).len(), 2);
}

#[test]
fn an_invalid_value_is_reported_by_its_field_and_not_in_the_parsers_words() {
    for (from, to, expect) in [
        (
            "protos: [echo.Echo]",
            "protos: echo.Echo",
            "line 6 column 9: protos: must be a list, as [a, b]",
        ),
        (
            "health: {kind: none}",
            "health: grpc",
            "line 8 column 9: health: must be fields with values, as {kind: grpc}",
        ),
        (
            "weight: 2",
            "weight: -1",
            "line 11 column 50: weight: must be a whole number, as 2",
        ),
        (
            "namespace: default",
            "service: other",
            "line 3 column 1: duplicate mapping key: service",
        ),
    ] {
        let fault = parse(&GOOD.replace(from, to), &own).expect_err(to);
        assert_eq!(fault, expect, "{to}");
    }
    let two = format!("{GOOD}---\n{GOOD}");
    let fault = parse(&two, &own).unwrap_err();
    assert!(
        fault.ends_with("give each service a file of its own"),
        "{fault}"
    );
    let fault = parse(" \n", &own).unwrap_err();
    assert!(fault.contains("remove the file"), "{fault}");
}

/// Issue 10, B1: a file describes programs without reflection.
#[tokio::test]
async fn a_descriptor_file_describes_the_services_of_its_file() {
    let temp = tempfile::tempdir().unwrap();
    let agent = Agent::new("a");
    let mut dir = ServicesDir::new(temp.path(), agent.clone(), remover(&agent), own);
    let set = temp.path().join("echo.pb");
    fs::write(&set, heddle_proto::DESCRIPTOR_SET).unwrap();
    let text = GOOD.replace("protos: [echo.Echo]", "descriptors: echo.pb");
    fs::write(temp.path().join("echo.yaml"), &text).unwrap();
    dir.poll();
    let serves = |name: &str| {
        let (_, views) = agent.views();
        let mut protos = views.values().flat_map(|view| &view.protos);
        protos.find(|proto| proto.name == name).cloned()
    };
    let echo = serves("heddle.echo.v1.Echo").expect("of the set");
    assert_eq!(echo.idempotent_methods, ["Unary"]);
    let (_, views) = agent.views();
    for view in views.values() {
        let bytes = &view.schema.as_ref().unwrap().bytes;
        assert_eq!(&bytes[..], heddle_proto::DESCRIPTOR_SET, "byte for byte");
        assert_eq!(view.schema_reason, "", "nothing is missing");
    }

    // The set is replaced: it has one service only, another than before.
    let one = prost_types::FileDescriptorProto {
        name: Some("new.proto".into()),
        package: Some("new".into()),
        service: vec![prost_types::ServiceDescriptorProto {
            name: Some("Shop".into()),
            ..Default::default()
        }],
        ..Default::default()
    };
    let new = prost_types::FileDescriptorSet { file: vec![one] };
    fs::write(&set, prost::Message::encode_to_vec(&new)).unwrap();
    dir.poll();
    assert!(serves("new.Shop").is_some() && serves("heddle.echo.v1.Echo").is_none());

    // A bad set is logged and changes nothing.
    let version = agent.views().0;
    fs::write(&set, "syntax = \"proto3\";").unwrap();
    dir.poll();
    fs::remove_file(&set).unwrap();
    dir.poll();
    assert_eq!(agent.views().0, version);
}

/// Issue 10, B1: each fault names the file and the remedy.
#[test]
fn a_bad_descriptor_file_is_reported_with_its_remedy() {
    let temp = tempfile::tempdir().unwrap();
    let lacking = prost_types::FileDescriptorProto {
        name: Some("a.proto".into()),
        dependency: vec!["b.proto".into()],
        ..Default::default()
    };
    let lacking = prost_types::FileDescriptorSet {
        file: vec![lacking],
    };
    let large = vec![0; 4 * 1024 * 1024 + 1];
    for (name, content, parts) in [
        (
            "a.proto",
            &b"syntax = \"proto3\";"[..],
            ["a .proto source", "--include_imports"],
        ),
        ("a.json", b"{}", ["JSON", "--include_imports"]),
        ("a.gz", b"\x1f\x8b\x08", ["compressed", "buf build"]),
        ("empty.pb", b"", ["empty", "--include_imports"]),
        (
            "noise.pb",
            b"\x0a\xff\x01",
            ["not a serialized", "--include_imports"],
        ),
        ("large.pb", &large, ["4194305 bytes", "4 MiB"]),
        (
            "lacking.pb",
            &prost::Message::encode_to_vec(&lacking),
            [
                "lacks \"b.proto\", which \"a.proto\" imports",
                "--include_imports",
            ],
        ),
    ] {
        let file = temp.path().join(name);
        fs::write(&file, content).unwrap();
        let fault = crate::agent::descriptor_file::read(&file).expect_err(name);
        let named = fault.starts_with(&file.display().to_string());
        assert!(
            named && parts.iter().all(|part| fault.contains(part)),
            "{fault}"
        );
    }
    let fault = crate::agent::descriptor_file::read(temp.path()).unwrap_err();
    assert!(fault.contains("is not a file"), "{fault}");
    let fault = parse(&format!("{GOOD}descriptors: echo.pb\n"), &own).unwrap_err();
    assert_eq!(fault, "descriptors: echo.pb is not read here");
}

/// Issue 10, B3: one instance that could not be taken kept all others of its file out.
#[tokio::test]
async fn an_instance_that_cannot_be_taken_is_left_out_alone() {
    for (address, word) in [
        ("192.0.2.1:21002", "own node"),
        ("0.0.0.0:21002", "127.0.0.1:21002"),
        ("[::]:21002", "unspecified"),
        ("169.254.1.1:21002", "link-local"),
        ("[fe80::1]:21002", "link-local"),
        ("[::ffff:169.254.1.1]:21002", "link-local"),
        ("localhost:21002", "names are not resolved"),
        ("21002", "IP:port"),
        ("127.0.0.1", "IP:port"),
        ("127.0.0.1:0", "port 0"),
        ("", "is missing"),
    ] {
        let parsed = parse(&GOOD.replace("127.0.0.1:21002", address), &own).unwrap();
        assert_eq!(parsed.instances.len(), 1, "{address}");
        let report = &parsed.left_out[0];
        assert!(
            report.starts_with("instances[1].address: ") && report.contains(word),
            "{report}"
        );
    }
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("echo.yaml");
    let agent = Agent::new("a");
    agent.add_listener("outbound", "127.0.0.1:15001".parse().unwrap());
    agent.add_listener("inbound", "0.0.0.0:15008".parse().unwrap());
    let mut dir = ServicesDir::new(temp.path(), agent.clone(), remover(&agent), own);
    for bad in [
        "127.0.0.1:15001",
        "[::ffff:127.0.0.1]:15001",
        "127.0.0.3:15008",
        "localhost:21002",
    ] {
        fs::write(&file, GOOD.replace("127.0.0.1:21002", bad)).unwrap();
        dir.poll();
        assert_eq!(ids(&agent), ["bench-echo/e1"], "{bad}");
        let faults = agent.file_faults();
        let fault = &faults[&file.display().to_string()];
        assert!(
            fault.starts_with("instances") && fault.ends_with("the other instances are in use"),
            "{fault}"
        );
    }
    fs::write(&file, GOOD).unwrap();
    dir.poll();
    assert!(agent.file_faults().is_empty());
    assert_eq!(ids(&agent), ["bench-echo/e1", "bench-echo/e2"]);
    // The proxy begins to listen on an instance's address after that instance joined.
    agent.add_listener("admin", "127.0.0.1:21001".parse().unwrap());
    assert_eq!(ids(&agent), ["bench-echo/e2"]);
    dir.poll();
    assert_eq!(ids(&agent), ["bench-echo/e2"], "it stays out");
}
