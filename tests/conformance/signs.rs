//! Every room has its sign: each `mod.rs`, and each file of more than a hundred lines, opens with a `//!` comment of a
//! few words that says what comes in, what goes out and what may not come in. Only that there is one can be tested.

use std::path::{Path, PathBuf};

use heddle_tests::tools::root;

const HOUSES: [&str; 6] = [
    "proto/src",
    "control-plane",
    "data-plane",
    "services",
    "cli",
    "tests",
];
const LONG: usize = 100;
const FEW_WORDS: usize = 5;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_room_has_its_sign() {
    let mut files = Vec::new();
    for house in HOUSES {
        sources(&root().join(house), &mut files);
    }
    assert!(files.len() > 60, "only {} files found", files.len());
    let unsigned: Vec<String> = files
        .iter()
        .filter(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let room = path.ends_with("mod.rs") || text.lines().count() > LONG;
            let is_tests = path.ends_with("tests.rs")
                || path.components().any(|part| part.as_os_str() == "tests");
            let of_tests = is_tests && !path.starts_with(root().join("tests"));
            let sign = text.lines().take_while(|line| line.starts_with("//!"));
            let words: usize = sign.map(|line| line.split_whitespace().count() - 1).sum();
            room && !of_tests && words < FEW_WORDS
        })
        .map(|path| path.strip_prefix(root()).unwrap().display().to_string())
        .collect();
    assert!(unsigned.is_empty(), "no sign on {unsigned:#?}");
}
