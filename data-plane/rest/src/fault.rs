//! What is wrong with an input or an answer, and in which field. The path is collected on the way back out of the readers, so
//! that it costs nothing while nothing is wrong.

use std::fmt;

/// Names from outside are cut to this many characters in a fault.
const SHOWN: usize = 64;

/// The way to a field as the caller wrote it: JSON names, indexes of elements, keys of maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPath {
    /// From the inside out.
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Name(Box<str>),
    Index(u64),
    Key(Box<str>),
}

impl FieldPath {
    pub(crate) fn name(name: &str) -> Self {
        Self {
            parts: vec![Part::Name(shown(name).into())],
        }
    }

    pub(crate) fn push_name(&mut self, name: &str) {
        self.parts.push(Part::Name(shown(name).into()));
    }

    pub(crate) fn push_index(&mut self, index: u64) {
        self.parts.push(Part::Index(index));
    }

    pub(crate) fn push_key(&mut self, key: &str) {
        self.parts.push(Part::Key(shown(key).into()));
    }

    /// True for the message itself.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.parts.iter().rev().enumerate() {
            match part {
                Part::Name(name) if i == 0 => f.write_str(name)?,
                Part::Name(name) => write!(f, ".{name}")?,
                Part::Index(index) => write!(f, "[{index}]")?,
                Part::Key(key) => write!(f, "[{key:?}]")?,
            }
        }
        Ok(())
    }
}

/// Why a fault was made, for the choice of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The input is not what the schema or JSON asks for; or the answer cannot be written as JSON.
    Invalid,
    /// The result would be longer than its limit.
    TooLarge,
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    pub path: FieldPath,
    /// A sentence without the path: "is not a number".
    pub description: String,
    /// The byte of the JSON text where it was seen; 0 for answers.
    pub offset: usize,
}

impl Fault {
    pub(crate) fn new(description: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            kind: FaultKind::Invalid,
            path: FieldPath::default(),
            description: description.into(),
            offset: 0,
        })
    }

    pub(crate) fn too_large(limit: usize) -> Box<Self> {
        let mut fault = Self::new(format!("is longer than the {limit} bytes allowed"));
        fault.kind = FaultKind::TooLarge;
        fault
    }

    pub(crate) fn at(mut self: Box<Self>, offset: usize) -> Box<Self> {
        self.offset = offset;
        self
    }

    pub(crate) fn in_field(mut self: Box<Self>, name: &str) -> Box<Self> {
        self.path.push_name(name);
        self
    }

    pub(crate) fn in_element(mut self: Box<Self>, index: u64) -> Box<Self> {
        self.path.push_index(index);
        self
    }

    pub(crate) fn in_key(mut self: Box<Self>, key: &str) -> Box<Self> {
        self.path.push_key(key);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return write!(f, "the message {}", self.description);
        }
        write!(f, "{} {}", self.path, self.description)
    }
}

impl std::error::Error for Fault {}

/// The first characters of a name from outside.
pub(crate) fn shown(name: &str) -> &str {
    name.char_indices()
        .nth(SHOWN)
        .map_or(name, |(end, _)| &name[..end])
}
