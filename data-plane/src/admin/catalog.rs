//! Merges the descriptors of many services into one catalogue for reflection. Input: raw descriptor sets. Output: raw
//! files, unchanged byte for byte. The exception: of files with equal names and different content all but one are
//! renamed to `<hash8>/<name>`, and imports of them are rewritten. Pure; nothing is decoded. The memory is bounded:
//! over it the services with the fewest ready instances are left out.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::agent::{
    descriptor_index::{self, Item},
    schema::{self, DescriptorIndex},
    wire,
};

/// One service's descriptors.
#[derive(Clone, Debug)]
pub struct Source {
    pub set: Bytes,
    /// Proto services that it implements; its files describe them.
    pub protos: Vec<String>,
    /// Those of `protos` whose calls by path it gets; its files describe them even if others implement them.
    pub owned: Vec<String>,
    /// Its ready instances. Of several services with the same symbol the one with the most describes it.
    pub ready: usize,
    /// Breaks ties, so that every proxy shows the same.
    pub name: String,
}

/// A service whose descriptors are not in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub service: String,
    pub protos: Vec<String>,
    pub why: String,
}

/// A file as it is served.
#[derive(Clone, Debug)]
pub struct ServedFile {
    pub name: String,
    pub bytes: Bytes,
    /// The names, as served, of the files that it imports.
    pub imports: Vec<String>,
}

/// The index of a file in the catalogue; shorter than a name, which would be stored once per symbol.
type FileIndex = u32;

/// See the module documentation.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    files: Vec<ServedFile>,
    by_name: HashMap<String, FileIndex>,
    /// The file of each service, message, enum and extension, by full name.
    symbols: HashMap<Box<str>, FileIndex>,
    /// The file of each extension, by extended message and number.
    extensions: HashMap<Box<str>, BTreeMap<i32, FileIndex>>,
    left_out: Vec<LeftOut>,
}

impl Catalog {
    /// Builds a catalogue, whatever the order of `sources`. It takes at most `budget` bytes of memory.
    #[must_use]
    pub fn build(mut sources: Vec<Source>, budget: usize) -> Self {
        sources.sort_by(|a, b| b.ready.cmp(&a.ready).then_with(|| a.name.cmp(&b.name)));
        let mut catalog = Self::default();
        let mut plain: HashMap<String, [u8; 32]> = HashMap::new();
        // Services with the same descriptor set share it.
        let mut seen: HashMap<Bytes, Vec<(FileIndex, DescriptorIndex)>> = HashMap::new();
        let mut left = budget;
        let mut order = Vec::new();
        for source in &sources {
            if seen.contains_key(&source.set) {
                continue;
            }
            match schema::files_at_cost(&source.set) {
                Ok((files, cost)) if cost <= left => {
                    let (added, copied) = catalog.add(files, &mut plain);
                    left = left.saturating_sub(cost + copied);
                    seen.insert(source.set.clone(), added);
                    order.push(&source.set);
                }
                Ok((_, cost)) => {
                    let why = format!(
                        "they need {} KiB of memory, and all descriptors of the mesh may use at \
                         most {} MiB",
                        cost >> 10,
                        budget >> 20
                    );
                    catalog.leave_out(source, why);
                }
                Err(error) => catalog.leave_out(source, format!("the set {error}")),
            }
        }
        // A proto service is described first by the service that owns its path, then by one that implements it, then by
        // any.
        let owned: fn(&Source) -> &Vec<String> = |source| &source.owned;
        for explained in [owned, |source| &source.protos] {
            for source in &sources {
                for (file, index) in seen.get(&source.set).into_iter().flatten() {
                    for service in &index.services {
                        if explained(source).contains(&service.name) {
                            catalog.symbol(&service.name, *file);
                        }
                    }
                }
            }
        }
        let mut indexed = HashSet::new();
        for (file, _) in order.into_iter().filter_map(|set| seen.get(set)).flatten() {
            if indexed.insert(*file) {
                catalog.index(*file);
            }
        }
        catalog
    }

    /// The services whose descriptors are left out, and why.
    #[must_use]
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// A file by its name as served.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&ServedFile> {
        self.at(*self.by_name.get(name)?)
    }

    fn at(&self, file: FileIndex) -> Option<&ServedFile> {
        self.files.get(usize::try_from(file).ok()?)
    }

    /// The file that defines a symbol: a service, method, message, field, enum, value or extension.
    #[must_use]
    pub fn file_of_symbol(&self, symbol: &str) -> Option<&str> {
        let mut symbol = symbol.trim_start_matches('.');
        loop {
            if let Some(file) = self.symbols.get(symbol) {
                return self.at(*file).map(|file| file.name.as_str());
            }
            // `package.Service.Method`, `package.Message.field`: look up the enclosing symbol.
            symbol = symbol.rsplit_once('.')?.0;
        }
    }

    /// The file that defines the extension with this number.
    #[must_use]
    pub fn file_of_extension(&self, extended: &str, number: i32) -> Option<&str> {
        let file = self.extensions.get(extended)?.get(&number)?;
        self.at(*file).map(|file| file.name.as_str())
    }

    /// The numbers of all extensions of a message; `None` if the message is unknown.
    #[must_use]
    pub fn extension_numbers(&self, extended: &str) -> Option<Vec<i32>> {
        match self.extensions.get(extended) {
            Some(numbers) => Some(numbers.keys().copied().collect()),
            None => self.symbols.contains_key(extended).then(Vec::new),
        }
    }

    /// A file and its transitive imports, each once, nearest first, up to `budget` bytes (always the first file).
    #[must_use]
    pub fn closure(&self, name: &str, budget: usize) -> Vec<(String, Bytes)> {
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut seen = HashSet::new();
        let mut next = std::collections::VecDeque::from([name.to_owned()]);
        while let Some(name) = next.pop_front() {
            let Some(file) = self.file(&name).filter(|_| seen.insert(name.clone())) else {
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

    fn leave_out(&mut self, source: &Source, why: String) {
        self.left_out.push(LeftOut {
            service: source.name.clone(),
            protos: source.protos.clone(),
            why,
        });
    }

    /// Adds files. Returns their indexes, and the bytes of those that had to be copied.
    fn add(
        &mut self,
        files: Vec<schema::RawFile>,
        plain: &mut HashMap<String, [u8; 32]>,
    ) -> (Vec<(FileIndex, DescriptorIndex)>, usize) {
        let by_name: HashMap<&str, &schema::RawFile> =
            files.iter().map(|f| (f.index.name.as_str(), f)).collect();
        let mut identities = Identities {
            by_name: &by_name,
            known: HashMap::new(),
        };
        let mut served_as: HashMap<String, String> = HashMap::new();
        for file in &files {
            let name = &file.index.name;
            let identity = identities.of(name);
            let first = *plain.entry(name.clone()).or_insert(identity);
            let served = if first == identity {
                name.clone()
            } else {
                format!("{}/{name}", hash8(&identity))
            };
            served_as.insert(name.clone(), served);
        }
        let mut copied = 0;
        let mut out = Vec::new();
        for file in files {
            let Some(served) = served_as.get(&file.index.name) else {
                continue;
            };
            let index = match self.by_name.get(served) {
                Some(index) => *index,
                None => {
                    let import = |name: &String| served_as.get(name).unwrap_or(name).clone();
                    let bytes = rewrite(&file.bytes, served, &file.index.name, &served_as);
                    if bytes.as_ptr() != file.bytes.as_ptr() {
                        copied += bytes.len();
                    }
                    let index = FileIndex::try_from(self.files.len()).unwrap_or(FileIndex::MAX);
                    self.by_name.insert(served.clone(), index);
                    self.files.push(ServedFile {
                        name: served.clone(),
                        bytes,
                        imports: file.index.imports.iter().map(import).collect(),
                    });
                    index
                }
            };
            out.push((index, file.index));
        }
        (out, copied)
    }

    fn index(&mut self, file: FileIndex) {
        let Some(bytes) = self.at(file).map(|file| file.bytes.clone()) else {
            return;
        };
        let mut take = |item: Item<'_>| {
            match item {
                Item::Service(name) | Item::Type(name) => self.symbol(name, file),
                Item::Extension {
                    name,
                    extended,
                    number,
                } => {
                    self.symbol(name, file);
                    let numbers = self.extensions.entry(extended.into()).or_default();
                    numbers.entry(number).or_insert(file);
                }
                Item::Name(_) | Item::Import(_) | Item::IdempotentMethod(_) => {}
            }
            true
        };
        // It was parsed completely when it was added.
        let _ = descriptor_index::read(&bytes, &mut take);
    }

    fn symbol(&mut self, name: &str, file: FileIndex) {
        if !self.symbols.contains_key(name) {
            self.symbols.insert(name.into(), file);
        }
    }
}

/// The identity of a file: a hash of its bytes and of everything it imports.
struct Identities<'f> {
    by_name: &'f HashMap<&'f str, &'f schema::RawFile>,
    known: HashMap<String, [u8; 32]>,
}

impl Identities<'_> {
    /// Imports first, with an explicit stack instead of recursion. An import cycle, which no compiler emits, counts as
    /// a missing import.
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
                .map(|f| f.index.imports.as_slice())
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

/// The file with its served name and imports; everything else is unchanged.
fn rewrite(raw: &Bytes, served: &str, name: &str, served_as: &HashMap<String, String>) -> Bytes {
    const NAME: u32 = 1;
    const DEPENDENCY: u32 = 3;
    if served == name && served_as.iter().all(|(name, served)| name == served) {
        return raw.clone();
    }
    let mut out = Vec::with_capacity(raw.len() + 64);
    // The bytes were parsed before, so every field is complete.
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
