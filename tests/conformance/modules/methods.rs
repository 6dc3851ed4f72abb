//! Calls between parts of a module that all have methods of one type: they need no path, so `sources` does not see them.
//! A receiver counts as that type if it is `self`, or named like the type in lower case.

use std::collections::BTreeMap;
use std::path::Path;

use super::sources::{code, sources};

/// Adds to the uses of each part the parts whose methods of `owner` it calls.
pub(super) fn add_calls(
    src: &Path,
    owner: &str,
    found: &mut BTreeMap<String, BTreeMap<String, String>>,
) {
    let files: Vec<(String, String, String)> = sources(src)
        .into_iter()
        .map(|file| {
            let path = file.strip_prefix(src).unwrap();
            let part = path.iter().next().unwrap().to_str().unwrap();
            let part = part.strip_suffix(".rs").unwrap_or(part).to_owned();
            let text = std::fs::read_to_string(&file).unwrap();
            let blocks = blocks_of(owner, &code(&text));
            (part, path.display().to_string(), blocks)
        })
        .collect();
    let mut methods = BTreeMap::new();
    for (part, _, blocks) in &files {
        methods.extend(defined(blocks).map(|name| (name, part.clone())));
    }
    assert!(!methods.is_empty(), "{owner} has no methods in {src:?}");
    for (part, path, blocks) in &files {
        for name in called(blocks, owner) {
            if let Some(other) = methods.get(&name).filter(|other| *other != part) {
                let used = found.entry(part.clone()).or_default();
                used.entry(other.clone())
                    .or_insert_with(|| format!("{name} in {path}"));
            }
        }
    }
}

/// The `impl` blocks of `owner`, formatted as by rustfmt.
fn blocks_of(owner: &str, code: &str) -> String {
    let begin = format!("impl {owner} {{");
    let mut within = false;
    let lines = code.lines().filter(|line| {
        within = match *line {
            _ if *line == begin => true,
            "}" => false,
            _ => within,
        };
        within
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The names of the methods in such blocks.
fn defined(blocks: &str) -> impl Iterator<Item = String> {
    blocks.lines().filter_map(|line| {
        let item = line.strip_prefix("    ")?;
        let (_, name) = item.split_once("fn ").filter(|_| !item.starts_with(' '))?;
        Some(identifier(name).to_owned())
    })
}

/// The names of methods that are called on `self`, on a variable named like `owner`, or by `Self::`.
fn called(blocks: &str, owner: &str) -> Vec<String> {
    let variable = owner.to_lowercase();
    let mut found = Vec::new();
    for receiver in ["self", "Self", &variable] {
        for (at, _) in blocks.match_indices(receiver) {
            let before = blocks[..at].chars().next_back();
            let rest = blocks[at + receiver.len()..].trim_start();
            let (path, field) = (rest.strip_prefix("::"), rest.strip_prefix('.'));
            let Some(rest) = path.or(field).filter(|_| !before.is_some_and(is_word)) else {
                continue;
            };
            let name = identifier(rest);
            // Without parentheses it is a field.
            if path.is_some() || rest[name.len()..].starts_with('(') {
                found.push(name.to_owned());
            }
        }
    }
    found
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    &text[..end]
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[test]
fn calls_of_methods_are_found_where_they_stand() {
    let text = "\
impl Owner {
    /// Not self.documented().
    pub(super) fn one(&mut self) {
        self.two(|owner| owner.three());
        self
            .four();
        self.contain(Self::five);
        other.six();
        self.field = 6;
    }
}

impl Other {
    fn two(&self) { self.eight() }
}

#[cfg(test)]
mod tests {
    fn f() { owner.seven() }
}
";
    let blocks = blocks_of("Owner", &code(text));
    assert_eq!(defined(&blocks).collect::<Vec<_>>(), ["one"]);
    let mut called = called(&blocks, "Owner");
    called.sort();
    assert_eq!(called, ["contain", "five", "four", "three", "two"]);
}
