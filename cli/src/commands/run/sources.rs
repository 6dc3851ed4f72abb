//! Finds the proto services that the .proto sources near a program define. They only serve as examples, so the sources
//! are searched by word and not parsed. Input: a command and the folder in which it runs. Output: full names. Bounded in
//! depth, number and size; unreadable files are skipped.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

/// The deepest nesting of folders.
const MAX_DEPTH: usize = 5;
/// The most files and folders in all.
const MAX_ENTRIES: usize = 5_000;
/// The largest source, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// The most words of a command that are looked at.
const MAX_WORDS: usize = 20;
/// Folders of the system: what lies there belongs to no single program.
const SYSTEM: [&str; 6] = ["/bin", "/sbin", "/lib", "/usr", "/opt", "/nix"];

/// Where the sources of a command may lie: the folder in which it runs, and those of the files that it names (the program
/// itself, a script).
pub(super) fn folders(current: &Path, command: &[OsString]) -> Vec<PathBuf> {
    let mut found = vec![current.to_owned()];
    for word in command.iter().take(MAX_WORDS) {
        let file = current.join(word);
        let Some(folder) = file.parent().filter(|_| file.is_file()) else {
            continue;
        };
        let is_system = SYSTEM.iter().any(|system| folder.starts_with(system));
        let is_known = found.iter().any(|known| folder.starts_with(known));
        if !is_system && !is_known && folder != Path::new("/") {
            found.push(folder.to_owned());
        }
    }
    found
}

/// The first `most` services by name.
pub(super) fn proto_services(folders: &[PathBuf], most: usize) -> Vec<String> {
    let mut found = BTreeSet::new();
    let mut left = MAX_ENTRIES;
    let mut folders: Vec<_> = folders.iter().map(|folder| (folder.clone(), 0)).collect();
    while let Some((folder, depth)) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.filter_map(Result::ok) {
            if left == 0 {
                return first(found, most);
            }
            left -= 1;
            let name = entry.file_name();
            // Hidden folders and package folders contain foreign sources.
            let skipped = ["node_modules", "target", "vendor", "venv"];
            let is_skipped = name
                .to_str()
                .is_none_or(|name| name.starts_with('.') || skipped.contains(&name));
            // Links are not followed: they may form a loop.
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let path = entry.path();
            if kind.is_dir() && !is_skipped && depth < MAX_DEPTH {
                folders.push((path, depth + 1));
            } else if kind.is_file() && path.extension().is_some_and(|it| it == "proto") {
                found.extend(of_file(&path));
            }
        }
    }
    first(found, most)
}

fn first(found: BTreeSet<String>, most: usize) -> Vec<String> {
    found.into_iter().take(most).collect()
}

fn of_file(path: &Path) -> Vec<String> {
    let small = fs::metadata(path).is_ok_and(|about| about.len() <= MAX_BYTES);
    match fs::read_to_string(path) {
        Ok(text) if small => services(&text),
        _ => Vec::new(),
    }
}

/// Finds `package a.b;` and `service C {`.
pub(super) fn services(text: &str) -> Vec<String> {
    let code = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    let mut package = String::new();
    let mut names = Vec::new();
    for line in code {
        for statement in line.split(['{', '}', ';']) {
            let mut words = statement.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some("package"), Some(name), None) => package = format!("{name}."),
                (Some("service"), Some(name), None) => names.push(name.to_owned()),
                _ => {}
            }
        }
    }
    let full = names.into_iter().map(|name| format!("{package}{name}"));
    full.filter(|name| heddle_proto::rules::is_proto_name(name))
        .collect()
}
