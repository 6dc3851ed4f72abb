//! Descriptors of an instance: checked, hashed and read for what routing needs. The bytes are kept as they came from
//! end to end, because a pass through generated descriptor types drops every extension (`google.api.http`); parsed
//! files are for reading only and are never encoded again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use heddle_proto::control::v1::ProtoService;
use prost::Message as _;
use prost_types::{FileDescriptorProto, method_options::IdempotencyLevel};
use sha2::{Digest as _, Sha256};

use super::wire;

pub use heddle_proto::rules::MAX_SCHEMA_BYTES;

/// A serialized `google.protobuf.FileDescriptorSet`, byte for byte as given, and its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Lower-case hex SHA-256 of `bytes`.
    pub sha256: String,
    pub bytes: Bytes,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SchemaError {
    #[error(
        "takes {0} bytes, over the bound of 4 MiB: leave out source info and what is not needed"
    )]
    TooLarge(usize),
    #[error(
        "is no serialized google.protobuf.FileDescriptorSet ({0}): send the output of protoc --descriptor_set_out --include_imports"
    )]
    Malformed(String),
}

impl Schema {
    /// Checks size and form.
    ///
    /// # Errors
    /// Too large, or no descriptor set.
    pub fn parse(bytes: Bytes) -> Result<Self, SchemaError> {
        if bytes.len() > MAX_SCHEMA_BYTES {
            return Err(SchemaError::TooLarge(bytes.len()));
        }
        let files = files(&bytes)?;
        if files.is_empty() {
            return Err(SchemaError::Malformed("it has no file".into()));
        }
        Ok(Self {
            sha256: sha256_hex(&bytes),
            bytes,
        })
    }

    /// A set of raw files, dependencies first, in an order that depends on their names only: equal files give an
    /// equal hash whatever order a server told them in.
    ///
    /// # Errors
    /// Too large, or a file that is no descriptor.
    pub fn from_files(raw: &BTreeMap<String, Bytes>) -> Result<Self, SchemaError> {
        let mut parsed = BTreeMap::new();
        for (name, bytes) in raw {
            let file = FileDescriptorProto::decode(bytes.clone())
                .map_err(|e| SchemaError::Malformed(e.to_string()))?;
            parsed.insert(name.as_str(), file);
        }
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in raw.keys() {
            visit(name, &parsed, &mut seen, &mut order);
        }
        let mut out = Vec::with_capacity(raw.values().map(|b| b.len() + 8).sum());
        for name in order {
            if let Some(bytes) = raw.get(&name) {
                wire::put_bytes(&mut out, 1, bytes);
            }
        }
        Self::parse(Bytes::from(out))
    }
}

/// Depth-first with an own stack: descriptors come from outside and may nest deeply.
fn visit(
    root: &str,
    parsed: &BTreeMap<&str, FileDescriptorProto>,
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
        let dependencies = parsed
            .get(name.as_str())
            .map(|f| f.dependency.clone())
            .unwrap_or_default();
        stack.push((name, true));
        stack.extend(dependencies.into_iter().rev().map(|d| (d, false)));
    }
}

/// One file of a set: the raw bytes, and the same parsed for reading.
#[derive(Clone, Debug)]
pub struct RawFile {
    pub bytes: Bytes,
    pub parsed: FileDescriptorProto,
}

/// The files of a serialized set, each with its raw bytes.
///
/// # Errors
/// No descriptor set.
pub fn files(set: &Bytes) -> Result<Vec<RawFile>, SchemaError> {
    let malformed = |e: &dyn std::fmt::Display| SchemaError::Malformed(e.to_string());
    let mut out = Vec::new();
    for field in wire::fields(set) {
        let field = field.map_err(|e| malformed(&e))?;
        if field.number != 1 {
            continue;
        }
        let Some(bytes) = field.bytes else {
            return Err(SchemaError::Malformed("field 1 is no message".into()));
        };
        let parsed = FileDescriptorProto::decode(bytes.clone()).map_err(|e| malformed(&e))?;
        if parsed.name().is_empty() {
            return Err(SchemaError::Malformed("a file has no name".into()));
        }
        out.push(RawFile { bytes, parsed });
    }
    Ok(out)
}

/// What an instance serves: the proto services it named, or all in its descriptors; with the methods that may be
/// tried again. Sorted by name.
#[must_use]
pub fn protos_of(schema: Option<&Schema>, named: &[String]) -> Vec<ProtoService> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in schema
        .and_then(|s| files(&s.bytes).ok())
        .unwrap_or_default()
    {
        for service in &file.parsed.service {
            let package = file.parsed.package();
            let name = if package.is_empty() {
                service.name().to_owned()
            } else {
                format!("{package}.{}", service.name())
            };
            let mut idempotent: Vec<String> = service
                .method
                .iter()
                .filter(|method| {
                    let level = method
                        .options
                        .as_ref()
                        .map(prost_types::MethodOptions::idempotency_level);
                    matches!(
                        level,
                        Some(IdempotencyLevel::NoSideEffects | IdempotencyLevel::Idempotent)
                    )
                })
                .map(|method| method.name().to_owned())
                .collect();
            idempotent.sort();
            found.insert(name, idempotent);
        }
    }
    let served: BTreeSet<String> = if named.is_empty() {
        found
            .keys()
            .filter(|name| !is_infrastructure(name))
            .cloned()
            .collect()
    } else {
        named.iter().cloned().collect()
    };
    served
        .into_iter()
        .map(|name| {
            let idempotent_methods = found.remove(&name).unwrap_or_default();
            ProtoService {
                name,
                idempotent_methods,
            }
        })
        .collect()
}

/// Proto services that every server answers for itself: never a claim of a mesh service.
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
