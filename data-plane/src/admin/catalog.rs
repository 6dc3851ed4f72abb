//! Many services' descriptors as one catalogue for reflection. Raw descriptor sets come in; raw files come out, byte for
//! byte as the services gave them, but that files of equal name and different content are told apart as
//! `<hash8>/<name>`, with the imports that mean them rewritten. Pure; nothing is decoded, only read where it stands, and
//! what the whole may cost in memory is bounded: over it the services with the fewest ready instances are left out.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::agent::{
    outline::{self, Said},
    schema::{self, Outline},
    wire,
};

/// One service's descriptors.
#[derive(Clone, Debug)]
pub struct Source {
    pub set: Bytes,
    /// Proto services that it implements: its files explain them.
    pub protos: Vec<String>,
    /// Those of them whose calls by path it gets: it explains them, whoever else has them.
    pub owned: Vec<String>,
    /// Instances that take calls: who has more of them explains what several have.
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
    /// Names, as served, of the files that it imports.
    pub imports: Vec<String>,
}

/// Where a file stands in the catalogue: a name would be held once per symbol.
type FileIndex = u32;

/// See the module documentation.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    files: Vec<ServedFile>,
    by_name: HashMap<String, FileIndex>,
    /// Full name of each service, message, enum and extension.
    symbols: HashMap<Box<str>, FileIndex>,
    /// Extended message → number.
    extensions: HashMap<Box<str>, BTreeMap<i32, FileIndex>>,
    left_out: Vec<LeftOut>,
}

impl Catalog {
    /// The order of `sources` does not matter. All that is kept costs at most `budget` bytes of memory.
    #[must_use]
    pub fn build(mut sources: Vec<Source>, budget: usize) -> Self {
        sources.sort_by(|a, b| b.ready.cmp(&a.ready).then_with(|| a.name.cmp(&b.name)));
        let mut catalog = Self::default();
        let mut plain: HashMap<String, [u8; 32]> = HashMap::new();
        // Two services with one schema are one.
        let mut seen: HashMap<Bytes, Vec<(FileIndex, Outline)>> = HashMap::new();
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
                        "they take {} KiB of memory, and all of the mesh at most {} MiB",
                        cost >> 10,
                        budget >> 20
                    );
                    catalog.leave_out(source, why);
                }
                Err(error) => catalog.leave_out(source, format!("the set {error}")),
            }
        }
        // First who gets the calls of a proto service explains it, then who implements it, then everything else that
        // anybody has.
        let owned: fn(&Source) -> &Vec<String> = |source| &source.owned;
        for explained in [owned, |source| &source.protos] {
            for source in &sources {
                for (file, outline) in seen.get(&source.set).into_iter().flatten() {
                    for service in &outline.services {
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

    /// Whose descriptors are not here, and why.
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

    /// The file that explains a symbol: a service, method, message, field, enum, value or extension.
    #[must_use]
    pub fn file_of_symbol(&self, symbol: &str) -> Option<&str> {
        let mut symbol = symbol.trim_start_matches('.');
        loop {
            if let Some(file) = self.symbols.get(symbol) {
                return self.at(*file).map(|file| file.name.as_str());
            }
            // `package.Service.Method`, `package.Message.field`: what it stands in.
            symbol = symbol.rsplit_once('.')?.0;
        }
    }

    /// The file with the extension of that number.
    #[must_use]
    pub fn file_of_extension(&self, extended: &str, number: i32) -> Option<&str> {
        let file = self.extensions.get(extended)?.get(&number)?;
        self.at(*file).map(|file| file.name.as_str())
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

    /// The files as they stand here now, and the bytes of those that had to be copied.
    fn add(
        &mut self,
        files: Vec<schema::RawFile>,
        plain: &mut HashMap<String, [u8; 32]>,
    ) -> (Vec<(FileIndex, Outline)>, usize) {
        let by_name: HashMap<&str, &schema::RawFile> =
            files.iter().map(|f| (f.outline.name.as_str(), f)).collect();
        let mut identities = Identities {
            by_name: &by_name,
            known: HashMap::new(),
        };
        let mut served_as: HashMap<String, String> = HashMap::new();
        for file in &files {
            let name = &file.outline.name;
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
            let Some(served) = served_as.get(&file.outline.name) else {
                continue;
            };
            let index = match self.by_name.get(served) {
                Some(index) => *index,
                None => {
                    let import = |name: &String| served_as.get(name).unwrap_or(name).clone();
                    let bytes = rewrite(&file.bytes, served, &file.outline.name, &served_as);
                    if bytes.as_ptr() != file.bytes.as_ptr() {
                        copied += bytes.len();
                    }
                    let index = FileIndex::try_from(self.files.len()).unwrap_or(FileIndex::MAX);
                    self.by_name.insert(served.clone(), index);
                    self.files.push(ServedFile {
                        name: served.clone(),
                        bytes,
                        imports: file.outline.imports.iter().map(import).collect(),
                    });
                    index
                }
            };
            out.push((index, file.outline));
        }
        (out, copied)
    }

    fn index(&mut self, file: FileIndex) {
        let Some(bytes) = self.at(file).map(|file| file.bytes.clone()) else {
            return;
        };
        let mut take = |said: Said<'_>| {
            match said {
                Said::Service(name) | Said::Type(name) => self.symbol(name, file),
                Said::Extension {
                    name,
                    extended,
                    number,
                } => {
                    self.symbol(name, file);
                    let numbers = self.extensions.entry(extended.into()).or_default();
                    numbers.entry(number).or_insert(file);
                }
                Said::Name(_) | Said::Import(_) | Said::IdempotentMethod(_) => {}
            }
            true
        };
        // It was read whole when it was added.
        let _ = outline::read(&bytes, &mut take);
    }

    fn symbol(&mut self, name: &str, file: FileIndex) {
        if !self.symbols.contains_key(name) {
            self.symbols.insert(name.into(), file);
        }
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
                .map(|f| f.outline.imports.as_slice())
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
fn rewrite(raw: &Bytes, served: &str, name: &str, served_as: &HashMap<String, String>) -> Bytes {
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
