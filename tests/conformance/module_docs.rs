//! Each `mod.rs`, and each file of more than a hundred lines, begins with a `//!` comment that says what the module does and
//! what may not come in. Only that there is one can be tested.

use std::path::{Path, PathBuf};

use heddle_tests::tools::root;

const ROOTS: [&str; 6] = [
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
fn every_module_has_docs() {
    let mut files = Vec::new();
    for folder in ROOTS {
        sources(&root().join(folder), &mut files);
    }
    assert!(files.len() > 60, "only {} files found", files.len());
    let undocumented: Vec<String> = files
        .iter()
        .filter(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let must_have_docs = path.ends_with("mod.rs") || text.lines().count() > LONG;
            let is_tests = path.ends_with("tests.rs")
                || path.components().any(|part| part.as_os_str() == "tests");
            let of_tests = is_tests && !path.starts_with(root().join("tests"));
            let docs = text.lines().take_while(|line| line.starts_with("//!"));
            let words: usize = docs.map(|line| line.split_whitespace().count() - 1).sum();
            must_have_docs && !of_tests && words < FEW_WORDS
        })
        .map(|path| path.strip_prefix(root()).unwrap().display().to_string())
        .collect();
    assert!(
        undocumented.is_empty(),
        "no module docs in {undocumented:#?}"
    );
}
