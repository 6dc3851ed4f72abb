//! The allowed dependencies between crates (docs/architecture.md), read from `cargo metadata`: the two planes share only `proto`
//! and xDS, heddle-h2 depends on nothing, and nothing depends on the command line or the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use heddle_tests::tools::root;

/// Workspace crates that each crate may depend on outside of its tests.
const ALLOWED: &[(&str, &[&str])] = &[
    ("heddle-proto", &[]),
    ("heddle-h2", &[]),
    ("heddle-rest", &[]),
    ("heddle-options", &[]),
    ("heddle-listen", &[]),
    ("heddle-pacing", &[]),
    (
        "heddle-control",
        &[
            "heddle-proto",
            "heddle-options",
            "heddle-listen",
            "heddle-pacing",
        ],
    ),
    (
        "heddle-proxy",
        &[
            "heddle-proto",
            "heddle-h2",
            "heddle-rest",
            "heddle-options",
            "heddle-listen",
            "heddle-pacing",
        ],
    ),
    (
        "heddle-sdk",
        &["heddle-proto", "heddle-listen", "heddle-pacing"],
    ),
    (
        "heddle-echo",
        &["heddle-proto", "heddle-sdk", "heddle-options"],
    ),
    (
        "heddle",
        &[
            "heddle-proto",
            "heddle-options",
            "heddle-pacing",
            "heddle-control",
            "heddle-proxy",
            "heddle-sdk",
            "heddle-echo",
        ],
    ),
    (
        "heddle-tests",
        &[
            "heddle-proto",
            "heddle-h2",
            "heddle-control",
            "heddle-proxy",
        ],
    ),
];

/// External crates that heddle-h2 may use outside of its tests: none that does I/O or reads a clock.
const CORE_MAY_USE: &[&str] = &["rustc-hash", "slab"];

struct Crate {
    normal: BTreeSet<String>,
    development: BTreeSet<String>,
}

fn crates() -> BTreeMap<String, Crate> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let of = |development: bool| {
                let all = package["dependencies"].as_array().unwrap().iter();
                all.filter(|dependency| (dependency["kind"] == "dev") == development)
                    .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
                    .collect()
            };
            let found = Crate {
                normal: of(false),
                development: of(true),
            };
            (package["name"].as_str().unwrap().to_owned(), found)
        })
        .collect()
}

#[test]
fn dependencies_point_one_way() {
    let crates = crates();
    let allowed: BTreeMap<&str, BTreeSet<&str>> = ALLOWED
        .iter()
        .map(|(name, may)| (*name, may.iter().copied().collect()))
        .collect();
    for (name, found) in &crates {
        let may = allowed
            .get(name.as_str())
            .unwrap_or_else(|| panic!("{name} is not in the table: say what it may depend on"));
        let uses: BTreeSet<&str> = found
            .normal
            .iter()
            .map(String::as_str)
            .filter(|used| crates.contains_key(*used))
            .collect();
        let forbidden: Vec<&&str> = uses.difference(may).collect();
        assert!(
            forbidden.is_empty(),
            "{name} may not depend on {forbidden:?}"
        );
        for used in found
            .development
            .iter()
            .filter(|used| crates.contains_key(*used))
        {
            assert!(
                used != "heddle" && used != "heddle-tests",
                "the tests of {name} may not depend on {used}"
            );
        }
    }
}

#[test]
fn the_protocol_core_uses_no_runtime() {
    let crates = crates();
    for used in &crates["heddle-h2"].normal {
        assert!(
            CORE_MAY_USE.contains(&used.as_str()),
            "heddle-h2 may not use {used}"
        );
    }
}
