//! The path of a request, split at `/` before any decoding, with its escapes checked.

use std::fmt;

use super::escapes::{self, EscapeFault};

/// A path that no template may be asked about: the request is bad (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathFault {
    /// It does not start with `/`.
    NoSlash,
    /// `%` without two hexadecimal digits.
    Escape,
    /// `%00`.
    Nul,
    /// A segment is `.` or `..`, with or without escapes.
    DotSegment,
    /// What a variable holds is not UTF-8.
    NotUtf8,
}

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSlash => "the path does not start with \"/\"",
            Self::Escape => "the path has a \"%\" without two hexadecimal digits after it: write \"%25\" for a percent sign",
            Self::Nul => "the path has a %00",
            Self::DotSegment => "the path has a segment \".\" or \"..\"",
            Self::NotUtf8 => "the path is not UTF-8 once its escapes are decoded",
        })
    }
}

impl std::error::Error for PathFault {}

/// A path without its query.
#[derive(Clone, Debug)]
pub struct RequestPath<'p> {
    segments: Vec<&'p [u8]>,
}

impl<'p> RequestPath<'p> {
    /// Splits and checks a raw path. Segments can be empty: no template matches such a path.
    ///
    /// # Errors
    /// The first fault.
    pub fn parse(path: &'p [u8]) -> Result<Self, PathFault> {
        let rest = path.strip_prefix(b"/").ok_or(PathFault::NoSlash)?;
        let segments: Vec<_> = rest.split(|byte| *byte == b'/').collect();
        for segment in &segments {
            escapes::check(segment).map_err(|fault| match fault {
                EscapeFault::Malformed => PathFault::Escape,
                EscapeFault::Nul => PathFault::Nul,
            })?;
            if escapes::is_dot_segment(segment) {
                return Err(PathFault::DotSegment);
            }
        }
        Ok(Self { segments })
    }

    /// The raw segments. At least one.
    #[must_use]
    pub fn segments(&self) -> &[&'p [u8]] {
        &self.segments
    }

    pub(super) fn has_empty_segment(&self) -> bool {
        self.segments.iter().any(|segment| segment.is_empty())
    }
}
