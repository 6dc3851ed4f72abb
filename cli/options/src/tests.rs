use std::{collections::BTreeMap, ffi::OsString, fs};

use crate::{
    layers::{Stop, try_parse},
    nearest, one_line,
};

/// A proxy, more or less.
#[derive(clap::Parser, Debug, PartialEq)]
#[command(name = "thing", version)]
struct Thing {
    /// The node's name
    #[arg(long)]
    node: String,
    /// How many
    #[arg(long, default_value_t = 4)]
    workers: u32,
    #[arg(long, default_value = "127.0.0.1:15001")]
    outbound: Vec<String>,
    #[arg(long)]
    insecure_inbound: bool,
    #[arg(long, env = "HEDDLE_AGENT", default_value = "http://127.0.0.1:15002")]
    agent: String,
    #[arg(last = true)]
    command: Vec<String>,
}

struct Case<'a> {
    args: &'a [&'a str],
    env: &'a [(&'a str, &'a str)],
    file: Option<&'a str>,
}

fn read(case: &Case<'_>) -> (Result<Thing, Vec<String>>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("thing.yaml");
    let mut args: Vec<OsString> = vec!["thing".into()];
    if let Some(text) = case.file {
        fs::write(&path, text).unwrap();
        args.push("--config".into());
        args.push(path.clone().into());
    }
    args.extend(case.args.iter().map(Into::into));
    let env: BTreeMap<String, OsString> = case
        .env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.into()))
        .collect();
    let shown = path.display().to_string();
    match try_parse::<Thing>("HEDDLE_THING", args, &env) {
        Ok(parsed) => (Ok(parsed.options), parsed.warnings),
        Err(Stop::Faults(faults)) => (
            Err(faults
                .iter()
                .map(|fault| fault.replace(&shown, "FILE"))
                .collect()),
            Vec::new(),
        ),
        Err(Stop::Show(text)) => (Err(vec![text.to_string()]), Vec::new()),
    }
}

fn options(args: &[&str], env: &[(&str, &str)], file: Option<&str>) -> Thing {
    let (result, warnings) = read(&Case { args, env, file });
    assert_eq!(warnings, Vec::<String>::new());
    result.unwrap()
}

fn faults(args: &[&str], env: &[(&str, &str)], file: Option<&str>) -> Vec<String> {
    read(&Case { args, env, file }).0.unwrap_err()
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    const ENV: &[(&str, &str)] = &[("HEDDLE_THING_WORKERS", "2")];
    let file = Some("workers: 3\nnode: filed\n");
    assert_eq!(options(&["--workers", "1"], ENV, file).workers, 1);
    assert_eq!(options(&[], ENV, file).workers, 2);
    assert_eq!(options(&[], &[], file).workers, 3);
    assert_eq!(options(&["--node", "a"], &[], None).workers, 4);
    assert_eq!(
        options(&[], ENV, file).node,
        "filed",
        "a required option may come from any layer"
    );
    assert_eq!(
        options(&[], &[("HEDDLE_THING_NODE", "env")], None).node,
        "env"
    );
}

#[test]
fn a_list_is_split_in_the_environment_and_replaced_whole() {
    let node = ["--node", "a"];
    let env: &[(&str, &str)] = &[("HEDDLE_THING_OUTBOUND", "127.0.0.1:1, unix:/x,")];
    let file = Some("outbound: [\"127.0.0.1:7\", \"127.0.0.1:8\"]");
    assert_eq!(
        options(&node, env, file).outbound,
        ["127.0.0.1:1", "unix:/x"]
    );
    assert_eq!(
        options(&node, &[], file).outbound,
        ["127.0.0.1:7", "127.0.0.1:8"]
    );
    assert_eq!(options(&node, &[], None).outbound, ["127.0.0.1:15001"]);
    let flags = ["--node", "a", "--outbound", "one", "--outbound", "two"];
    assert_eq!(options(&flags, env, file).outbound, ["one", "two"]);
}

#[test]
fn a_switch_can_be_set_anywhere_and_turned_off_nearer() {
    let env: &[(&str, &str)] = &[("HEDDLE_THING_INSECURE_INBOUND", "on")];
    let file = Some("insecure_inbound: true");
    assert!(!options(&["--node=a"], &[], None).insecure_inbound);
    assert!(options(&["--node=a", "--insecure-inbound"], &[], None).insecure_inbound);
    assert!(options(&["--node=a"], env, None).insecure_inbound);
    assert!(options(&["--node=a"], &[], file).insecure_inbound);
    assert!(!options(&["--node=a", "--insecure-inbound=false"], env, file).insecure_inbound);
}

#[test]
fn an_options_own_variable_wins_over_the_shared_one() {
    let shared = ("HEDDLE_AGENT", "http://shared");
    let own = ("HEDDLE_THING_AGENT", "http://own");
    assert_eq!(
        options(&["--node=a"], &[shared], Some("agent: http://file")).agent,
        "http://shared"
    );
    assert_eq!(
        options(&["--node=a"], &[shared, own], None).agent,
        "http://own"
    );
    assert_eq!(
        options(&["--node=a"], &[("HEDDLE_AGENT", "")], None).agent,
        "http://127.0.0.1:15002"
    );
}

#[test]
fn a_trailing_command_stays_a_command() {
    let thing = options(
        &["--node=a", "--", "sleep", "--workers=9"],
        &[("HEDDLE_THING_WORKERS", "2")],
        None,
    );
    assert_eq!(thing.command, ["sleep", "--workers=9"]);
    assert_eq!(thing.workers, 2);
}

#[test]
fn every_fault_is_reported_at_once_with_its_place() {
    let found = faults(
        &["--wrokers", "3"],
        &[("HEDDLE_THING_WORKERS", "many")],
        Some("outbond: x\nagent: [a, b]\nnode: {}\n"),
    );
    assert_eq!(
        found,
        [
            "unexpected argument '--wrokers' found; tip: a similar argument exists: '--workers'",
            "HEDDLE_THING_WORKERS: invalid value 'many' for '--workers <WORKERS>': invalid digit found in string",
            "FILE: outbond: no such option; did you mean \"outbound\"?",
            "FILE: node: must be one value or a list of values",
            "FILE: agent: takes one value, not 2",
        ]
    );
    assert_eq!(
        faults(&[], &[], None),
        ["the following required arguments were not provided: --node <NODE>"]
    );
    assert_eq!(
        faults(&["--log", "a=b=c"], &[], None).len(),
        1,
        "a filter that cannot be read is a fault, not a silent default"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_one_line() {
    let found = faults(&["--config", "/nowhere/x.yaml", "--node=a"], &[], None);
    assert_eq!(
        found,
        ["--config /nowhere/x.yaml: No such file or directory (os error 2)"]
    );
    for (text, begin) in [
        ("- a\n- b\n", "FILE: must be a mapping"),
        ("a: [1\n", "FILE: is not valid YAML"),
        ("node: a\nnode: b\n", "FILE: is not valid YAML"),
    ] {
        let found = faults(&["--node=a"], &[], Some(text));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(begin), "{found:?}");
        assert!(!found[0].contains('\n'));
    }
    assert_eq!(
        options(&["--node=a"], &[], Some("# nothing\n\n")).workers,
        4
    );
}

#[test]
fn an_unknown_variable_of_the_prefix_warns() {
    let case = Case {
        args: &["--node=a"],
        env: &[
            ("HEDDLE_THING_WROKERS", "1"),
            ("HEDDLE_THING_CONFIG", ""),
            ("HEDDLE_OTHER_X", "1"),
        ],
        file: None,
    };
    let (result, warnings) = read(&case);
    assert_eq!(result.unwrap().workers, 4);
    assert_eq!(
        warnings,
        ["HEDDLE_THING_WROKERS sets no option; did you mean HEDDLE_THING_WORKERS?"]
    );
}

#[test]
fn the_help_names_defaults_and_variables() {
    let help = faults(&["--help"], &[("HEDDLE_THING_WORKERS", "bad")], None).remove(0);
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "--node <NODE>",
        "[env: HEDDLE_THING_NODE]",
        "[default: 4]",
        "[env: HEDDLE_THING_WORKERS]",
        "[env: HEDDLE_THING_AGENT, HEDDLE_AGENT]",
        "[env: HEDDLE_THING_CONFIG]",
        "[env: HEDDLE_THING_LOG, HEDDLE_LOG]",
    ] {
        assert!(help.contains(part), "{part} is missing in\n{help}");
    }
}

#[test]
fn the_nearest_names_come_first() {
    let known = ["users", "tokens", "messages", "realtime"];
    for (word, expect) in [
        ("user", vec!["users"]),
        ("usres", vec!["users"]),
        ("Tokens", vec!["tokens"]),
        ("mesages", vec!["messages"]),
        ("billing", vec![]),
        ("", vec![]),
    ] {
        assert_eq!(nearest(word, known, 3), expect, "{word}");
    }
    assert_eq!(nearest("ab", ["abd", "abc", "xyz"], 1), ["abc"]);
    assert_eq!(nearest(&"x".repeat(100_000), known, 3), Vec::<&str>::new());
}

#[test]
fn one_line_joins_what_was_several() {
    assert_eq!(one_line("a:\n   b\n\n c\n"), "a: b; c");
}

#[test]
fn no_variable_is_offered_for_one_that_is_like_none() {
    let case = Case {
        args: &["--node=a"],
        env: &[("HEDDLE_THING_BOGUS", "1")],
        file: None,
    };
    assert_eq!(
        read(&case).1,
        ["HEDDLE_THING_BOGUS sets no option; see --help for all of them"]
    );
}
