//! Which modules a crate's sources name: `crate::` and `super::` paths outside of comments and tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Per module those that it uses, each with a file and line that shows it.
pub(super) fn uses(src: &Path, within: &[&str]) -> BTreeMap<String, BTreeMap<String, String>> {
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
pub(super) fn sources(folder: &Path) -> Vec<PathBuf> {
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

/// A file without its comments and modules of tests.
pub(super) fn code(text: &str) -> String {
    let lines = lines_of_code(text).into_iter();
    lines.flat_map(|(code, _)| [code, "\n"]).collect()
}

/// Its lines with their numbers, without comments and modules of tests.
fn lines_of_code(text: &str) -> Vec<(&str, usize)> {
    let mut found = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            found.push((line.split("//").next().unwrap_or_default(), number));
            continue;
        }
        let item = lines.next().map(|(item, _)| item).unwrap_or_default();
        if item.trim_end().ends_with('{') {
            let indent = item.len() - item.trim_start().len();
            let end = format!("{}}}", " ".repeat(indent));
            let _ = lines.find(|(line, _)| *line == end);
        }
    }
    found
}

/// The modules in `within` that a file of `module` names, with the line of each. Comments and modules of tests are left
/// out.
fn used_by(text: &str, module: &[String], within: &[&str]) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    let mut lines = lines_of_code(text).into_iter();
    while let Some((code, number)) = lines.next() {
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
