//! One resource: name, version and bytes. The version is a hash of the canonical content, so it is equal on every
//! replica and across restarts. The bytes are encoded once, when the first stream needs them, in the forms of both
//! protocol variants, and are shared.

use std::{
    fmt::Write as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{BufMut as _, Bytes};
use prost::encoding::{self, WireType};
use sha2::{Digest as _, Sha256};

use super::{Assignment, Kind, PerKind};

/// How often a resource of each kind was encoded.
#[derive(Debug, Default)]
pub struct Encodes(PerKind<AtomicU64>);

impl Encodes {
    #[must_use]
    pub fn of(&self, kind: Kind) -> u64 {
        self.0.get(kind).load(Ordering::Relaxed)
    }

    fn count(&self, kind: Kind) {
        self.0.get(kind).fetch_add(1, Ordering::Relaxed);
    }
}

/// A resource as streams send it. Immutable.
#[derive(Debug)]
pub struct Resource {
    pub kind: Kind,
    pub name: Arc<str>,
    /// 16 hex digits of the SHA-256 of the content.
    pub version: Arc<str>,
    /// What it refers to: `check` requires that this exists before the resource is published.
    pub refs: Vec<(Kind, Arc<str>)>,
    source: Source,
    encoded: OnceLock<Encoded>,
}

#[derive(Debug)]
enum Source {
    /// The message, already encoded: its content is its bytes.
    Value(Bytes),
    /// Encoded when the first client needs it: most audiences of a service are never requested.
    Assignment(Assignment, Arc<Encodes>),
}

#[derive(Debug)]
struct Encoded {
    /// `envoy.service.discovery.v3.Resource`, as delta sends it.
    wrapped: Bytes,
    /// `google.protobuf.Any`, as state of the world sends it: a part of `wrapped`.
    any: Bytes,
}

impl Resource {
    /// A message whose encoding is canonical: it has no map of more than one entry.
    #[must_use]
    pub fn from_value(
        kind: Kind,
        name: Arc<str>,
        value: Vec<u8>,
        refs: Vec<(Kind, Arc<str>)>,
        encodes: &Encodes,
    ) -> Arc<Self> {
        encodes.count(kind);
        let version = version_of(|hash| hash.update(&value));
        let source = Source::Value(Bytes::from(value));
        Arc::new(Self {
            kind,
            name,
            version,
            refs,
            source,
            encoded: OnceLock::new(),
        })
    }

    /// A message whose version is known.
    #[must_use]
    pub fn with_version(kind: Kind, name: Arc<str>, version: Arc<str>, value: Bytes) -> Arc<Self> {
        let source = Source::Value(value);
        Arc::new(Self {
            kind,
            name,
            version,
            refs: Vec::new(),
            source,
            encoded: OnceLock::new(),
        })
    }

    #[must_use]
    pub fn from_assignment(assignment: Assignment, encodes: &Arc<Encodes>) -> Arc<Self> {
        Arc::new(Self {
            kind: Kind::Endpoint,
            name: Arc::clone(assignment.service()),
            version: Arc::clone(assignment.version()),
            refs: Vec::new(),
            source: Source::Assignment(assignment, Arc::clone(encodes)),
            encoded: OnceLock::new(),
        })
    }

    /// The assignment of a service that has no endpoints or does not exist: clients see no difference.
    #[must_use]
    pub fn without_endpoints(service: Arc<str>) -> Arc<Self> {
        let assignment = Assignment::empty(service);
        Self::with_version(
            Kind::Endpoint,
            Arc::clone(assignment.service()),
            Arc::clone(assignment.version()),
            assignment.encode().into(),
        )
    }

    /// As `envoy.service.discovery.v3.Resource`.
    #[must_use]
    pub fn wrapped(&self) -> Bytes {
        self.encoded().wrapped.clone()
    }

    /// As `google.protobuf.Any`.
    #[must_use]
    pub fn any(&self) -> Bytes {
        self.encoded().any.clone()
    }

    /// The bytes that it takes in a response.
    #[must_use]
    pub fn size(&self) -> usize {
        self.encoded().wrapped.len()
    }

    fn encoded(&self) -> &Encoded {
        self.encoded.get_or_init(|| match &self.source {
            Source::Value(value) => encode(self, value),
            Source::Assignment(assignment, encodes) => {
                encodes.count(Kind::Endpoint);
                encode(self, &assignment.encode())
            }
        })
    }
}

/// `Resource { version = 1, resource = 2: Any { type_url = 1, value = 2 }, name = 3 }`, written by hand so that the
/// `Any` inside is a slice of the same buffer.
fn encode(resource: &Resource, value: &[u8]) -> Encoded {
    let url = resource.kind.url();
    let any_length = field_length(url.len()) + field_length(value.len());
    let mut buffer = Vec::with_capacity(any_length + resource.name.len() + 64);
    put_field(1, resource.version.as_bytes(), &mut buffer);
    encoding::encode_key(2, WireType::LengthDelimited, &mut buffer);
    encoding::encode_varint(any_length as u64, &mut buffer);
    let start = buffer.len();
    put_field(1, url.as_bytes(), &mut buffer);
    put_field(2, value, &mut buffer);
    let end = buffer.len();
    put_field(3, resource.name.as_bytes(), &mut buffer);
    let wrapped = Bytes::from(buffer);
    let any = wrapped.slice(start..end);
    Encoded { wrapped, any }
}

fn put_field(tag: u32, value: &[u8], buffer: &mut Vec<u8>) {
    encoding::encode_key(tag, WireType::LengthDelimited, buffer);
    encoding::encode_varint(value.len() as u64, buffer);
    buffer.put_slice(value);
}

/// The length of a field whose key has one byte.
fn field_length(length: usize) -> usize {
    1 + encoding::encoded_len_varint(length as u64) + length
}

/// The first 16 hex digits of the SHA-256 of what `feed` adds.
pub(crate) fn version_of(feed: impl FnOnce(&mut Sha256)) -> Arc<str> {
    let mut hash = Sha256::new();
    feed(&mut hash);
    let mut version = String::with_capacity(16);
    for byte in hash.finalize().iter().take(8) {
        // Writing to a String cannot fail.
        let _ = write!(version, "{byte:02x}");
    }
    version.into()
}
