//! Which module of a crate may use which, read from the sources: `crate::` and `super::` paths outside of tests. A table
//! per crate lists its modules from the bottom up; a module uses only modules that stand above it in the table. Exceptions
//! are listed by name, and an exception that is no longer needed fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use heddle_tests::tools::root;

/// The modules of one crate.
struct Layers {
    /// Where its sources are.
    src: &'static str,
    /// Each module and what it may use, from the bottom up. `lib.rs` and `main.rs` may use everything.
    modules: &'static [(&'static str, &'static [&'static str])],
    /// Uses that are allowed although they point upward or are not in the table: circles that are still to go.
    exceptions: &'static [(&'static str, &'static str)],
}

const DATA_PLANE: Layers = Layers {
    src: "data-plane/src",
    modules: &[
        // The path of calls, and what it stands on.
        ("control_urls", &[]),
        ("state_dir", &[]),
        ("readiness", &[]),
        ("arena", &[]),
        ("keys", &["arena"]),
        ("timers", &["keys"]),
        ("caller", &["keys"]),
        ("failure", &[]),
        ("policy", &[]),
        ("balance", &[]),
        ("route", &["balance"]),
        ("observe", &["caller"]),
        ("connection", &["arena", "keys", "timers", "caller"]),
        (
            "upstream",
            &[
                "arena",
                "keys",
                "timers",
                "caller",
                "failure",
                "policy",
                "balance",
                "observe",
                "connection",
            ],
        ),
        (
            "exchange",
            &[
                "arena",
                "keys",
                "timers",
                "caller",
                "failure",
                "policy",
                "balance",
                "route",
                "observe",
                "connection",
                "upstream",
            ],
        ),
        (
            "listener",
            &[
                "arena",
                "keys",
                "caller",
                "failure",
                "observe",
                "connection",
                "upstream",
            ],
        ),
        (
            "worker",
            &[
                "arena",
                "keys",
                "timers",
                "caller",
                "failure",
                "balance",
                "route",
                "observe",
                "connection",
                "upstream",
                "exchange",
                "listener",
            ],
        ),
        // The control side.
        ("agent", &["control_urls", "state_dir"]),
        (
            "xds",
            &[
                "control_urls",
                "state_dir",
                "balance",
                "route",
                "observe",
                "worker",
                "agent",
            ],
        ),
        ("mesh", &["balance", "route", "agent", "xds"]),
        (
            "admin",
            &[
                "readiness",
                "balance",
                "route",
                "observe",
                "worker",
                "agent",
                "xds",
                "mesh",
            ],
        ),
        ("options", &["agent", "xds", "admin"]),
        (
            "app",
            &[
                "state_dir",
                "readiness",
                "listener",
                "worker",
                "agent",
                "xds",
                "mesh",
                "admin",
                "options",
            ],
        ),
    ],
    exceptions: &[
        ("agent", "options"),
        ("agent", "xds"),
        ("exchange", "worker"),
        ("listener", "worker"),
        ("upstream", "exchange"),
        ("upstream", "worker"),
    ],
};

#[test]
fn the_modules_of_the_data_plane_point_one_way() {
    check(&DATA_PLANE);
}

fn check(layers: &Layers) {
    let mut faults = Vec::new();
    for (at, (name, may)) in layers.modules.iter().enumerate() {
        let below = layers.modules.get(..at).unwrap();
        for used in *may {
            if !below.iter().any(|(other, _)| other == used) {
                faults.push(format!(
                    "the table lets {name} use {used}, which does not stand before it"
                ));
            }
        }
    }
    let found = uses(&root().join(layers.src));
    let mut needed = BTreeSet::new();
    for (name, used) in &found {
        let Some((_, may)) = layers.modules.iter().find(|(other, _)| other == name) else {
            faults.push(format!("{name} is not in the table"));
            continue;
        };
        for (other, place) in used {
            if may.contains(&other.as_str()) {
                continue;
            }
            let exception = layers
                .exceptions
                .iter()
                .find(|e| **e == (name.as_str(), other.as_str()));
            match exception {
                Some(exception) => drop(needed.insert(exception)),
                None => faults.push(format!("{name} may not use {other}: {place}")),
            }
        }
    }
    let unneeded = layers.exceptions.iter().filter(|e| !needed.contains(e));
    faults.extend(unneeded.map(|(name, other)| {
        format!("{name} does not use {other} any more: take the exception out")
    }));
    assert!(faults.is_empty(), "in {}: {faults:#?}", layers.src);
}

/// Per top-level module those that it uses, each with a file and line that shows it.
fn uses(src: &Path) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for file in sources(src) {
        let path = file.strip_prefix(src).unwrap();
        let mut module: Vec<String> = path
            .with_extension("")
            .iter()
            .map(|part| part.to_str().unwrap().to_owned())
            .collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let top = module.first().unwrap().clone();
        if top == "lib" || top == "main" {
            continue;
        }
        let used = found.entry(top.clone()).or_default();
        let text = std::fs::read_to_string(&file).unwrap();
        for (line, other) in used_by(&text, module.len()) {
            if other != top {
                used.entry(other)
                    .or_insert_with(|| format!("{}:{line}", path.display()));
            }
        }
    }
    found
}

/// All source files but those of tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap();
        if name == "tests" {
            continue;
        }
        match path.is_dir() {
            true => found.extend(sources(&path)),
            false => found.extend(path.extension().is_some_and(|e| e == "rs").then_some(path)),
        }
    }
    found.sort();
    found
}

/// The top-level modules that a file of a module at `depth` names, with the line of each. Comments and modules of tests
/// are left out.
fn used_by(text: &str, depth: usize) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            let item = lines.next().map(|(item, _)| item).unwrap_or_default();
            if item.trim_end().ends_with('{') {
                let indent = item.len() - item.trim_start().len();
                let end = format!("{}}}", " ".repeat(indent));
                let _ = lines.find(|(line, _)| *line == end);
            }
            continue;
        }
        let code = line.split("//").next().unwrap_or_default();
        let climb = "super::".repeat(depth);
        for root in ["crate::", climb.as_str()] {
            for (at, _) in code.match_indices(root) {
                let before = code[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                    continue;
                }
                let rest = &code[at + root.len()..];
                match rest.strip_prefix('{') {
                    // The group may go over several lines: each starts with the names it is about.
                    Some(group) => {
                        let mut group = group.to_owned();
                        while !group.contains('}')
                            || group.matches('{').count() + 1 > group.matches('}').count()
                        {
                            let Some((line, _)) = lines.next() else { break };
                            group.push_str(line.trim());
                        }
                        used.extend(first_names(&group).into_iter().map(|name| (number, name)));
                    }
                    None => used.extend(first_name(rest).map(|name| (number, name))),
                }
            }
        }
    }
    used
}

/// `a` of `a::b::c`; types and functions at the top of a crate are no modules.
fn first_name(path: &str) -> Option<String> {
    let name: String = path
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    let lower = name.chars().next().is_some_and(|c| c.is_ascii_lowercase());
    let function = path[name.len()..].starts_with('(');
    (lower && !function).then_some(name)
}

/// `a` and `d` of `a::{b, c}, d::e}`.
fn first_names(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut names) = (0i32, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.extend(first_name(group[start..at].trim()));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn uses_are_found_where_they_stand() {
    let text = "\
use crate::one::Thing;
use crate::{two::{A, B}, three::C};
/// See crate::not::this.
fn f(x: super::super::four::X, y: super::near::Y) { crate::five::g(crate::Top) }
#[cfg(test)]
mod tests {
    use crate::not::that;
}
use crate::six::Last;
";
    let names: Vec<String> = used_by(text, 2).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["one", "two", "three", "five", "four", "six"]);
    assert_eq!(
        used_by("use super::seven::X;", 1),
        [(1, "seven".to_owned())]
    );
}
