//! Limits of the fields of a registration, as the comments of `registry.proto` state them. Agent and control plane both use
//! them, so that an agent accepts no instance that a control plane of the same version refuses. Each writes its own error
//! messages.

use std::net::{IpAddr, Ipv4Addr};

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

/// Why an address cannot be an instance's, as the end of a sentence that begins with the address; `None` if it can be. The
/// address must be canonical (no IPv4-mapped IPv6 address).
#[must_use]
pub fn unfit(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    // 0.x.x.x is "this host" to the kernel, as 0.0.0.0 is (RFC 1122 §3.2.1.3).
    let this_host = matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 0);
    if address.is_unspecified() || this_host {
        return Some("is an unspecified address: write the one on which the instance listens");
    }
    if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some("is a multicast or broadcast address: write one of this host's own addresses");
    }
    if link_local {
        return Some(
            "is link-local and means a different host on each link: write another address of this \
             host",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{is_dns_label, is_proto_name, unfit};

    #[test]
    fn addresses() {
        for (address, word) in [
            ("0.0.0.0", "unspecified"),
            ("0.0.0.1", "unspecified"),
            ("::", "unspecified"),
            ("224.0.0.1", "multicast or broadcast"),
            ("255.255.255.255", "multicast or broadcast"),
            ("ff02::1", "multicast or broadcast"),
            ("169.254.169.254", "link-local"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
        ] {
            let why = unfit(address.parse().unwrap());
            assert!(
                why.is_some_and(|why| why.contains(word)),
                "{address}: {why:?}"
            );
        }
        for address in [
            "127.0.0.1",
            "10.0.0.1",
            "169.253.0.1",
            "::1",
            "fd00::1",
            "fec0::1",
        ] {
            assert_eq!(unfit(address.parse().unwrap()), None, "{address}");
        }
    }

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
