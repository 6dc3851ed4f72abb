//! The descriptors of an instance: checked, bounded by their cost in memory, hashed, and read for what routing needs.
//! The bytes are kept exactly as given, because generated descriptor types would drop every extension
//! (`google.api.http`). `served` decides which of the services an instance serves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use heddle_proto::control::v1::ProtoService;
use sha2::{Digest as _, Sha256};

use super::{
    descriptor_index::{self, DescriptorError, Item},
    wire,
};

pub use heddle_proto::rules::MAX_SCHEMA_BYTES;

/// The most memory that one set may take once it is read and indexed for reflection: its bytes and its names. A set
/// that protoc writes costs less than twice its bytes; a set of nothing but empty messages costs thirty times its
/// bytes.
pub const MAX_SCHEMA_COST: usize = 16 * 1024 * 1024;
/// The cost of a name beside its letters: a map entry with two allocations.
const NAME_COST: usize = 96;

/// A serialized `google.protobuf.FileDescriptorSet`, byte for byte as given, and its hash.
#[derive(Clone, Debug)]
pub struct Schema {
    /// Lower-case hex SHA-256 of `bytes`.
    pub sha256: String,
    pub bytes: Bytes,
    read: Arc<Read>,
}

/// What was read from a set, shared by all clones.
#[derive(Debug)]
struct Read {
    cost: usize,
    services: BTreeMap<String, ProtoService>,
    /// The services that a program with this set serves itself: `services` without those that only came with an import.
    own: Vec<String>,
    missing_import: Option<SchemaError>,
}

impl PartialEq for Schema {
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl Eq for Schema {}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SchemaError {
    #[error(
        "has {0} bytes, over the limit of 4 MiB: leave out source info and files that are not \
         needed"
    )]
    TooLarge(usize),
    #[error(
        "has so many names that it takes more than 16 MiB of memory: leave out the files that are \
         not needed"
    )]
    TooCostly,
    #[error(
        "is not a serialized google.protobuf.FileDescriptorSet ({0}): give the output of protoc \
         --include_imports --descriptor_set_out=FILE or of buf build -o FILE"
    )]
    Malformed(String),
    #[error(
        "lacks \"{import}\", which \"{file}\" imports: make it with protoc --include_imports, or with buf build"
    )]
    ImportMissing { file: String, import: String },
}

impl Schema {
    /// Checks size, cost and form.
    ///
    /// # Errors
    /// Too large, too costly, or not a descriptor set.
    pub fn parse(bytes: Bytes) -> Result<Self, SchemaError> {
        if bytes.len() > MAX_SCHEMA_BYTES {
            return Err(SchemaError::TooLarge(bytes.len()));
        }
        let (files, cost) = files_at_cost(&bytes)?;
        if files.is_empty() {
            return Err(SchemaError::Malformed("it has no file".into()));
        }
        let missing_import = missing_import(&files);
        let own = own_services(&files);
        let services = files.into_iter().flat_map(|file| file.index.services);
        let read = Read {
            cost,
            services: services.map(|one| (one.name.clone(), one)).collect(),
            own,
            missing_import,
        };
        Ok(Self {
            sha256: sha256_hex(&bytes),
            bytes,
            read: Arc::new(read),
        })
    }

    /// The most memory that it takes once it is indexed.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.read.cost
    }

    /// The services that its files define, by name.
    #[must_use]
    pub fn services(&self) -> &BTreeMap<String, ProtoService> {
        &self.read.services
    }

    /// The services without those that only came with an import, such as google.longrunning.Operations.
    pub fn own_services(&self) -> impl Iterator<Item = &str> {
        self.read.own.iter().map(String::as_str)
    }

    /// The first import that is not in the set.
    #[must_use]
    pub fn missing_import(&self) -> Option<&SchemaError> {
        self.read.missing_import.as_ref()
    }

    /// Builds a set of raw files, dependencies first. The order depends on the names only, so equal files give an equal
    /// hash in whatever order a server sent them.
    ///
    /// # Errors
    /// Too large, too costly, or a file that is not a descriptor.
    pub fn from_files(raw: &BTreeMap<String, Bytes>) -> Result<Self, SchemaError> {
        let mut cost = Cost::default();
        let mut imports = BTreeMap::new();
        for (name, bytes) in raw {
            imports.insert(name.as_str(), cost.index(bytes)?.imports);
        }
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in raw.keys() {
            visit(name, &imports, &mut seen, &mut order);
        }
        let mut out = Vec::with_capacity(raw.values().map(|b| b.len() + 8).sum());
        for name in order {
            if let Some(bytes) = raw.get(&name) {
                wire::put_bytes(&mut out, 1, bytes);
            }
        }
        Self::parse(Bytes::from(out))
    }

    /// The files of this set, and those of `other` that it lacks.
    ///
    /// # Errors
    /// Together they are too large or too costly.
    pub fn with(&self, other: &Self) -> Result<Self, SchemaError> {
        let raw = [other, self]
            .into_iter()
            .filter_map(|schema| files(&schema.bytes).ok())
            .flatten()
            .map(|file| (file.index.name, file.bytes))
            .collect();
        Self::from_files(&raw)
    }
}

/// Every service, except those of google.* and grpc.* in files that another file of the set imports.
fn own_services(files: &[RawFile]) -> Vec<String> {
    let imports = files.iter().flat_map(|file| &file.index.imports);
    let imported: BTreeSet<&String> = imports.collect();
    let well_known = |name: &str| name.starts_with("google.") || name.starts_with("grpc.");
    files
        .iter()
        .flat_map(|file| {
            let came_with = imported.contains(&file.index.name);
            let services = file.index.services.iter();
            services.filter(move |one| !(came_with && well_known(&one.name)))
        })
        .map(|one| one.name.clone())
        .collect()
}

fn missing_import(files: &[RawFile]) -> Option<SchemaError> {
    let names: BTreeSet<&str> = files.iter().map(|f| f.index.name.as_str()).collect();
    files.iter().find_map(|file| {
        let mut imports = file.index.imports.iter();
        let import = imports.find(|import| !names.contains(import.as_str()))?;
        Some(SchemaError::ImportMissing {
            file: file.index.name.clone(),
            import: import.clone(),
        })
    })
}

/// Depth-first with an explicit stack, not recursion: descriptors come from outside and may nest deeply.
fn visit(
    root: &str,
    imports: &BTreeMap<&str, Vec<String>>,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<String>,
) {
    let mut stack = vec![(root.to_owned(), false)];
    while let Some((name, done)) = stack.pop() {
        if done {
            order.push(name);
            continue;
        }
        if !seen.insert(name.clone()) {
            continue;
        }
        let dependencies = imports.get(name.as_str()).cloned().unwrap_or_default();
        stack.push((name, true));
        stack.extend(dependencies.into_iter().rev().map(|d| (d, false)));
    }
}

/// What routing and reflection need to know of a file, beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DescriptorIndex {
    pub name: String,
    pub imports: Vec<String>,
    pub services: Vec<ProtoService>,
}

/// One file of a set: its raw bytes and its index.
#[derive(Clone, Debug)]
pub struct RawFile {
    pub bytes: Bytes,
    pub index: DescriptorIndex,
}

/// The running cost of the files that were read. The bound is [`MAX_SCHEMA_COST`].
#[derive(Debug, Default)]
pub struct Cost {
    spent: usize,
}

impl Cost {
    #[must_use]
    pub fn spent(&self) -> usize {
        self.spent
    }

    /// Reads one more file. Each name is counted before it is copied.
    ///
    /// # Errors
    /// Too costly together with what was read before, or not a descriptor.
    pub fn index(&mut self, file: &[u8]) -> Result<DescriptorIndex, SchemaError> {
        self.spent += file.len();
        let mut found = DescriptorIndex::default();
        let mut reader = |item: Item<'_>| {
            self.spent += cost_of(&item);
            if self.spent > MAX_SCHEMA_COST {
                return false;
            }
            match item {
                Item::Name(name) => name.clone_into(&mut found.name),
                Item::Import(name) => found.imports.push(name.to_owned()),
                Item::Service(name) => found.services.push(ProtoService {
                    name: name.to_owned(),
                    idempotent_methods: Vec::new(),
                }),
                Item::IdempotentMethod(name) => {
                    if let Some(service) = found.services.last_mut() {
                        service.idempotent_methods.push(name.to_owned());
                    }
                }
                Item::Type(_) | Item::Extension { .. } => {}
            }
            true
        };
        let read = descriptor_index::read(file, &mut reader);
        match read {
            _ if self.spent > MAX_SCHEMA_COST => Err(SchemaError::TooCostly),
            Ok(()) => {
                for service in &mut found.services {
                    service.idempotent_methods.sort();
                }
                Ok(found)
            }
            Err(error) => Err(malformed(&error)),
        }
    }
}

fn cost_of(item: &Item<'_>) -> usize {
    let entry = |name: &str| name.len() + NAME_COST;
    match item {
        Item::Name(name) | Item::Import(name) | Item::Service(name) => entry(name),
        Item::IdempotentMethod(name) | Item::Type(name) => entry(name),
        Item::Extension { name, extended, .. } => entry(name) + entry(extended),
    }
}

fn malformed(error: &DescriptorError) -> SchemaError {
    SchemaError::Malformed(error.to_string())
}

/// The files of a serialized set, each with its raw bytes.
///
/// # Errors
/// Not a descriptor set, or too costly.
pub fn files(set: &Bytes) -> Result<Vec<RawFile>, SchemaError> {
    files_at_cost(set).map(|(files, _)| files)
}

/// The files of a serialized set, and their cost.
///
/// # Errors
/// Not a descriptor set, or too costly.
pub fn files_at_cost(set: &Bytes) -> Result<(Vec<RawFile>, usize), SchemaError> {
    let mut cost = Cost::default();
    let mut out = Vec::new();
    for field in wire::fields(set) {
        let field = field.map_err(|error| malformed(&error.into()))?;
        if field.number != 1 {
            continue;
        }
        let Some(bytes) = field.bytes else {
            return Err(SchemaError::Malformed("field 1 is not a message".into()));
        };
        let index = cost.index(&bytes)?;
        out.push(RawFile { bytes, index });
    }
    Ok((out, cost.spent()))
}

/// Proto services that every server answers for itself; no mesh service may claim them.
#[must_use]
pub fn is_infrastructure(proto: &str) -> bool {
    proto.starts_with("grpc.reflection.") || proto.starts_with("grpc.health.")
}

/// Lower-case hex SHA-256.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut out, byte| {
            // Writing to a String cannot fail.
            let _ = write!(out, "{byte:02x}");
            out
        })
}
