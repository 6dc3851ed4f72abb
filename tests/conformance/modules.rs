//! The allowed dependencies between modules, read from the sources: `crate::` and `super::` paths outside of tests. A table
//! per crate, or per module with parts, lists its modules from the bottom up; a module uses only modules that are above
//! it in the table. Exceptions are listed by name, and an exception that is no longer needed fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use heddle_tests::tools::root;

/// The modules of one crate, or of one module of it.
struct Layers {
    /// Where its sources are.
    src: &'static str,
    /// The module of the crate that these are in; empty: the crate itself.
    within: &'static [&'static str],
    /// Each module and what it may use, from the bottom up. `lib.rs` and `main.rs` may use everything.
    modules: &'static [(&'static str, &'static [&'static str])],
    /// Uses that are allowed although they point upward or are not in the table: circles that are still to go.
    exceptions: &'static [(&'static str, &'static str)],
}

const DATA_PLANE: Layers = Layers {
    src: "data-plane/src",
    within: &[],
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
        ("settings", &["policy"]),
        ("balance", &[]),
        ("route", &["caller", "policy", "balance"]),
        ("observe", &["caller"]),
        (
            "connection",
            &["arena", "keys", "timers", "caller", "policy"],
        ),
        ("link", &["failure", "connection"]),
        (
            "upstream",
            &[
                "arena",
                "keys",
                "timers",
                "caller",
                "policy",
                "settings",
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
                "settings",
                "balance",
                "route",
                "observe",
                "connection",
                "link",
                "upstream",
            ],
        ),
        ("listener", &["caller", "connection"]),
        (
            "worker",
            &[
                "arena",
                "keys",
                "timers",
                "caller",
                "failure",
                "settings",
                "route",
                "observe",
                "connection",
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
    exceptions: &[],
};

const CONTROL_PLANE: Layers = Layers {
    src: "control-plane/src",
    within: &[],
    modules: &[
        ("names", &[]),
        ("store", &[]),
        ("budget", &[]),
        ("access", &["budget"]),
        // The way of an endpoint update.
        ("registry", &["names", "store"]),
        ("snapshot", &["names", "store", "registry"]),
        (
            "session",
            &["names", "store", "budget", "access", "registry"],
        ),
        (
            "xds",
            &[
                "names", "store", "budget", "access", "registry", "snapshot", "session",
            ],
        ),
        // What people and tools ask.
        ("load", &["names", "budget", "access", "registry", "xds"]),
        (
            "replica",
            &[
                "names", "store", "registry", "snapshot", "session", "xds", "load",
            ],
        ),
        (
            "status",
            &["names", "registry", "snapshot", "xds", "load", "replica"],
        ),
        // The process.
        (
            "plane",
            &[
                "budget", "registry", "snapshot", "session", "xds", "load", "replica", "status",
            ],
        ),
        ("grpc", &["budget", "access"]),
        (
            "http",
            &["budget", "access", "registry", "snapshot", "load", "plane"],
        ),
        ("options", &["names", "store", "budget", "grpc", "http"]),
        (
            "app",
            &[
                "store", "budget", "access", "registry", "snapshot", "xds", "load", "replica",
                "plane", "grpc", "http", "options",
            ],
        ),
    ],
    exceptions: &[],
};

const REGISTRY: Layers = Layers {
    src: "control-plane/src/registry",
    within: &["registry"],
    modules: &[
        ("wall_clock", &[]),
        ("options", &["wall_clock"]),
        ("model", &[]),
        ("view", &["model"]),
        ("core", &["options", "model", "view"]),
        ("lease", &["options", "model", "view", "core"]),
        ("membership", &["options", "model", "view", "core"]),
        (
            "leader",
            &["options", "model", "view", "core", "lease", "membership"],
        ),
        ("start", &["options", "core", "membership", "leader"]),
    ],
    exceptions: &[],
};

#[test]
fn the_modules_of_the_data_plane_point_one_way() {
    check(&DATA_PLANE);
}

/// Issue 10, F6.
#[test]
fn the_modules_of_the_control_plane_point_one_way() {
    check(&CONTROL_PLANE);
    check(&REGISTRY);
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
    let found = uses(&root().join(layers.src), layers.within);
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

/// Per module those that it uses, each with a file and line that shows it.
fn uses(src: &Path, within: &[&str]) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for file in sources(src) {
        let path = file.strip_prefix(src).unwrap();
        let mut module: Vec<String> = within.iter().map(ToString::to_string).collect();
        let stem = path.with_extension("");
        module.extend(stem.iter().map(|part| part.to_str().unwrap().to_owned()));
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let Some(own) = module.get(within.len()).cloned() else {
            continue;
        };
        if within.is_empty() && (own == "lib" || own == "main") {
            continue;
        }
        let used = found.entry(own.clone()).or_default();
        let text = std::fs::read_to_string(&file).unwrap();
        for (line, other) in used_by(&text, &module, within) {
            if other != own {
                used.entry(other)
                    .or_insert_with(|| format!("{}:{line}", path.display()));
            }
        }
    }
    found
}

/// Folders and files of tests.
const TESTS: [&str; 4] = ["tests", "fixture", "conformance", "sim"];

/// All source files but those of tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap();
        if TESTS.iter().any(|tests| name == *tests) {
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

/// The modules in `within` that a file of `module` names, with the line of each. Comments and modules of tests are left
/// out.
fn used_by(text: &str, module: &[String], within: &[&str]) -> Vec<(usize, String)> {
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
        for at in starts(code) {
            let mut tree = code[at..].to_owned();
            let end = tree.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
            if end.is_some_and(|end| tree[..end].ends_with("::") && tree[end..].starts_with('{')) {
                // The group may go over several lines.
                while tree.matches('{').count() > tree.matches('}').count() {
                    let Some((line, _)) = lines.next() else { break };
                    tree.push_str(line.trim());
                }
            }
            let names = paths(&tree).into_iter();
            used.extend(names.filter_map(|path| Some((number, name_of(&path, module, within)?))));
        }
    }
    used
}

/// Where paths from the crate or from a parent begin.
fn starts(code: &str) -> Vec<usize> {
    let mut found: Vec<usize> = ["crate::", "super::"]
        .iter()
        .flat_map(|root| code.match_indices(root).map(|(at, _)| at))
        .filter(|at| {
            let before = code[..*at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$')
        })
        .collect();
    found.sort_unstable();
    found
}

/// The paths at the beginning of a text: `a::{b, c::d};` is about `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<String> {
    let end = tree.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let (head, rest) = tree.split_at(end.unwrap_or(tree.len()));
    let Some(group) = rest.strip_prefix('{').filter(|_| head.ends_with("::")) else {
        // What is called is a function, not a module.
        let called = if rest.starts_with('(') { "(" } else { "" };
        return vec![format!("{head}{called}")];
    };
    let (mut depth, mut start, mut found) = (0i32, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let parts = paths(group[start..at].trim()).into_iter();
                found.extend(parts.map(|part| format!("{head}{part}")));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// The module in `within` that a path names; types and functions at its top are no modules.
fn name_of(path: &str, module: &[String], within: &[&str]) -> Option<String> {
    let mut parts: Vec<&str> = path.split("::").collect();
    let mut whole: Vec<&str> = Vec::new();
    if parts.first() == Some(&"super") {
        let climb = parts.iter().take_while(|part| **part == "super").count();
        let base = module.len().checked_sub(climb)?;
        whole.extend(module.get(..base)?.iter().map(String::as_str));
        parts.drain(..climb);
    } else {
        parts.drain(..1);
    }
    whole.extend(parts);
    let name = whole.strip_prefix(within)?.first()?;
    let lower = name.chars().next()?.is_ascii_lowercase();
    (lower && !name.ends_with('(')).then(|| (*name).to_owned())
}

#[test]
fn uses_are_found_where_they_stand() {
    let text = "\
use crate::one::Thing;
use crate::{two::{A, inner::B}, three::C};
/// See crate::not::this.
fn f(x: super::super::four::X, y: super::near::Y) { crate::five::g(crate::Top) }
#[cfg(test)]
mod tests {
    use crate::not::that;
}
use crate::six::Last;
";
    let module = ["here".to_owned(), "there".to_owned()];
    let names = |within: &[&str]| {
        let used = used_by(text, &module, within).into_iter();
        used.map(|(_, name)| name).collect::<Vec<_>>()
    };
    assert_eq!(
        names(&[]),
        ["one", "two", "two", "three", "four", "here", "five", "six"]
    );
    assert_eq!(names(&["here"]), ["near"]);
    assert_eq!(names(&["two"]), ["inner"]);
    assert_eq!(
        used_by("use super::seven::X;", &module[..1], &[]),
        [(1, "seven".to_owned())]
    );
}
