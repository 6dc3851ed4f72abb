//! Many services' descriptors as one catalogue for reflection. Raw descriptor sets come in; raw files come out, byte for
//! byte as the services gave them, but that files of equal name and different content are told apart as
//! `<hash8>/<name>`, with the imports that mean them rewritten. Pure; nothing is parsed but to be read.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::bytes::Bytes;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use sha2::{Digest as _, Sha256};

use crate::agent::{schema, wire};

/// One service's descriptors.
#[derive(Clone, Debug)]
pub struct Source {
    pub set: Bytes,
    /// Proto services that it implements: its files explain them.
    pub protos: Vec<String>,
    /// Instances that take calls: who has more of them explains what several have.
    pub ready: usize,
    /// Breaks ties, so that every proxy shows the same.
    pub name: String,
}

/// A file as it is served.
#[derive(Clone, Debug)]
pub struct ServedFile {
    pub bytes: Bytes,
    /// Names, as served, of the files that it imports.
    pub imports: Vec<String>,
}

/// See the room sign.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    files: BTreeMap<String, ServedFile>,
    /// Full name of each service, message, enum and extension → its file as served.
    symbols: HashMap<String, String>,
    /// Extended message → number → file as served.
    extensions: HashMap<String, BTreeMap<i32, String>>,
}

impl Catalog {
    /// The order of `sources` does not matter.
    #[must_use]
    pub fn build(mut sources: Vec<Source>) -> Self {
        sources.sort_by(|a, b| b.ready.cmp(&a.ready).then_with(|| a.name.cmp(&b.name)));
        let mut catalog = Self::default();
        let mut plain: HashMap<String, [u8; 32]> = HashMap::new();
        let mut seen = HashSet::new();
        let mut parsed = Vec::new();
        for source in &sources {
            // Two services with one schema are one.
            let files = if seen.insert(source.set.clone()) {
                catalog.add(&source.set, &mut plain)
            } else {
                Vec::new()
            };
            parsed.push(files);
        }
        // First who implements a proto service explains it, then everything else that anybody has.
        let mut by_set: HashMap<&Bytes, usize> = HashMap::new();
        for (index, source) in sources.iter().enumerate() {
            let files = parsed.get(*by_set.entry(&source.set).or_insert(index));
            for (served, file) in files.into_iter().flatten() {
                for service in services(file).filter(|s| source.protos.contains(s)) {
                    catalog
                        .symbols
                        .entry(service)
                        .or_insert_with(|| served.clone());
                }
            }
        }
        for (served, file) in parsed.iter().flatten() {
            catalog.index(served, file);
        }
        catalog
    }

    /// A file by its name as served.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&ServedFile> {
        self.files.get(name)
    }

    /// The file that explains a symbol: a service, method, message, field, enum, value or extension.
    #[must_use]
    pub fn file_of_symbol(&self, symbol: &str) -> Option<&str> {
        let mut symbol = symbol.trim_start_matches('.');
        loop {
            if let Some(file) = self.symbols.get(symbol) {
                return Some(file);
            }
            // `package.Service.Method`, `package.Message.field`: what it stands in.
            symbol = symbol.rsplit_once('.')?.0;
        }
    }

    /// The file with the extension of that number.
    #[must_use]
    pub fn file_of_extension(&self, extended: &str, number: i32) -> Option<&str> {
        self.extensions
            .get(extended)?
            .get(&number)
            .map(String::as_str)
    }

    /// All extensions of a message; `None` if nobody knows it.
    #[must_use]
    pub fn extension_numbers(&self, extended: &str) -> Option<Vec<i32>> {
        match self.extensions.get(extended) {
            Some(numbers) => Some(numbers.keys().copied().collect()),
            None => self.symbols.contains_key(extended).then(Vec::new),
        }
    }

    /// A file and all that it imports, each once, nearest first, while `budget` bytes last (the first always).
    #[must_use]
    pub fn closure(&self, name: &str, budget: usize) -> Vec<(String, Bytes)> {
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut seen = HashSet::new();
        let mut next = std::collections::VecDeque::from([name.to_owned()]);
        while let Some(name) = next.pop_front() {
            let Some(file) = self.files.get(&name).filter(|_| seen.insert(name.clone())) else {
                continue;
            };
            bytes += file.bytes.len();
            if bytes > budget && !out.is_empty() {
                break;
            }
            out.push((name, file.bytes.clone()));
            next.extend(file.imports.iter().cloned());
        }
        out
    }

    fn add(
        &mut self,
        set: &Bytes,
        plain: &mut HashMap<String, [u8; 32]>,
    ) -> Vec<(String, FileDescriptorProto)> {
        let files = schema::files(set).unwrap_or_default();
        let by_name: HashMap<&str, &schema::RawFile> =
            files.iter().map(|f| (f.parsed.name(), f)).collect();
        let mut identities = Identities {
            by_name: &by_name,
            known: HashMap::new(),
        };
        let mut served_as: HashMap<&str, String> = HashMap::new();
        for file in &files {
            let name = file.parsed.name();
            let identity = identities.of(name);
            let first = *plain.entry(name.to_owned()).or_insert(identity);
            let served = if first == identity {
                name.to_owned()
            } else {
                format!("{}/{name}", hash8(&identity))
            };
            served_as.insert(name, served);
        }
        let mut out = Vec::new();
        for file in &files {
            let Some(served) = served_as.get(file.parsed.name()) else {
                continue;
            };
            let bytes = rewrite(&file.bytes, served, file.parsed.name(), &served_as);
            let import = |name: &String| served_as.get(name.as_str()).unwrap_or(name).clone();
            let imports = file.parsed.dependency.iter().map(import).collect();
            self.files
                .entry(served.clone())
                .or_insert(ServedFile { bytes, imports });
            out.push((served.clone(), file.parsed.clone()));
        }
        out
    }

    fn index(&mut self, served: &str, file: &FileDescriptorProto) {
        let package = file.package();
        for service in services(file) {
            self.symbol(service, served);
        }
        for one in &file.enum_type {
            self.symbol(qualified(package, one.name()), served);
        }
        self.extend(package, &file.extension, served);
        // An own stack: nesting comes from outside.
        let mut stack: Vec<(String, &DescriptorProto)> = file
            .message_type
            .iter()
            .map(|m| (qualified(package, m.name()), m))
            .collect();
        while let Some((name, message)) = stack.pop() {
            self.extend(&name, &message.extension, served);
            for one in &message.enum_type {
                self.symbol(qualified(&name, one.name()), served);
            }
            stack.extend(
                message
                    .nested_type
                    .iter()
                    .map(|m| (qualified(&name, m.name()), m)),
            );
            self.symbol(name, served);
        }
    }

    fn extend(&mut self, scope: &str, extensions: &[FieldDescriptorProto], served: &str) {
        for one in extensions {
            self.symbol(qualified(scope, one.name()), served);
            let extended = one.extendee().trim_start_matches('.').to_owned();
            self.extensions
                .entry(extended)
                .or_default()
                .entry(one.number())
                .or_insert_with(|| served.to_owned());
        }
    }

    fn symbol(&mut self, name: String, served: &str) {
        self.symbols
            .entry(name)
            .or_insert_with(|| served.to_owned());
    }
}

fn services(file: &FileDescriptorProto) -> impl Iterator<Item = String> {
    file.service
        .iter()
        .map(|service| qualified(file.package(), service.name()))
}

fn qualified(scope: &str, name: &str) -> String {
    if scope.is_empty() {
        name.to_owned()
    } else {
        format!("{scope}.{name}")
    }
}

/// What a file is: its bytes and, through its imports, everything it means.
struct Identities<'f> {
    by_name: &'f HashMap<&'f str, &'f schema::RawFile>,
    known: HashMap<String, [u8; 32]>,
}

impl Identities<'_> {
    /// Imports first, on an own stack; a circle (which no compiler makes) counts as missing.
    fn of(&mut self, name: &str) -> [u8; 32] {
        let mut under_way = HashSet::new();
        let mut stack = vec![(name.to_owned(), false)];
        while let Some((name, ready)) = stack.pop() {
            if self.known.contains_key(&name) {
                continue;
            }
            let imports = self
                .by_name
                .get(name.as_str())
                .map(|f| f.parsed.dependency.as_slice())
                .unwrap_or_default();
            if ready || !under_way.insert(name.clone()) {
                let identity = self.hash(&name, imports);
                self.known.insert(name, identity);
                continue;
            }
            let missing: Vec<_> = imports
                .iter()
                .filter(|i| !under_way.contains(*i))
                .map(|i| (i.clone(), false))
                .collect();
            stack.push((name, true));
            stack.extend(missing);
        }
        self.known.get(name).copied().unwrap_or_default()
    }

    fn hash(&self, name: &str, imports: &[String]) -> [u8; 32] {
        let mut hash = Sha256::new();
        match self.by_name.get(name) {
            Some(file) => hash.update(&file.bytes),
            None => hash.update(name),
        }
        for import in imports {
            hash.update(self.known.get(import).copied().unwrap_or_default());
        }
        hash.finalize().into()
    }
}

fn hash8(identity: &[u8; 32]) -> String {
    identity
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The file under another name and with other imports; everything else byte for byte.
fn rewrite(raw: &Bytes, served: &str, name: &str, served_as: &HashMap<&str, String>) -> Bytes {
    const NAME: u32 = 1;
    const DEPENDENCY: u32 = 3;
    if served == name && served_as.iter().all(|(name, served)| name == served) {
        return raw.clone();
    }
    let mut out = Vec::with_capacity(raw.len() + 64);
    // The bytes were read once already, so every field is whole.
    for field in wire::fields(raw).filter_map(Result::ok) {
        let text = field
            .bytes
            .as_deref()
            .and_then(|b| std::str::from_utf8(b).ok());
        match (field.number, text) {
            (NAME, _) => wire::put_bytes(&mut out, NAME, served.as_bytes()),
            (DEPENDENCY, Some(import)) => {
                let import = served_as.get(import).map_or(import, String::as_str);
                wire::put_bytes(&mut out, DEPENDENCY, import.as_bytes());
            }
            _ => out.extend_from_slice(&field.whole),
        }
    }
    Bytes::from(out)
}
