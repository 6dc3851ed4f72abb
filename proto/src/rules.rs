//! What the words of a registration may be: the bounds that the comments of `registry.proto` promise. Agent and control
//! plane both check by these, so that no agent takes an instance which the control plane then refuses with its whole
//! node. How a fault is told is each one's own.

/// Versions, regions and the like, in characters.
pub const MAX_TEXT: usize = 63;
/// A DNS label, in characters.
pub const MAX_LABEL: usize = 63;
/// Labels of one instance.
pub const MAX_LABELS: usize = 32;
/// A label's value, in bytes; its name has at most [`MAX_TEXT`] of them.
pub const MAX_LABEL_VALUE: usize = 256;
/// Proto services of one instance.
pub const MAX_PROTOS: usize = 256;
/// A proto service's full name, in bytes.
pub const MAX_PROTO_NAME: usize = 256;
/// An instance's weight.
pub const MAX_WEIGHT: u32 = 1000;
/// Descriptors of one service, serialized.
pub const MAX_SCHEMA_BYTES: usize = 4 << 20;

/// A DNS label in lower case: RFC 1035 §2.3.1, with RFC 1123's leading digits.
#[must_use]
pub fn is_dns_label(word: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_LABEL).contains(&word.len())
        && word.bytes().all(inside)
        && !word.starts_with('-')
        && !word.ends_with('-')
}

/// A full name of the protobuf language: identifiers joined by dots.
#[must_use]
pub fn is_proto_name(name: &str) -> bool {
    let identifier = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    name.len() <= MAX_PROTO_NAME && name.split('.').all(identifier)
}

#[cfg(test)]
mod tests {
    use super::{is_dns_label, is_proto_name};

    #[test]
    fn labels() {
        for (word, expect) in [
            ("a", true),
            ("users-2", true),
            ("9lives", true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("Users", false),
            ("a.b", false),
            ("ü", false),
        ] {
            assert_eq!(is_dns_label(word), expect, "{word}");
        }
        assert!(is_dns_label(&"x".repeat(63)));
        assert!(!is_dns_label(&"x".repeat(64)));
    }

    #[test]
    fn proto_names() {
        for (name, expect) in [
            ("echo.Echo", true),
            ("Echo", true),
            ("_a.b1", true),
            ("", false),
            ("a..b", false),
            ("1a", false),
            ("a.b-c", false),
        ] {
            assert_eq!(is_proto_name(name), expect, "{name}");
        }
    }
}
