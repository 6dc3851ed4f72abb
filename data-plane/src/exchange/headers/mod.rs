//! Edits header lists where calls enter and leave the mesh: reads and removes Heddle's own headers, and repairs the
//! authority. Pure functions on header lists.

pub(in crate::exchange) mod grpc_timeout;

use heddle_h2::Fields;
use heddle_proto::Reason;

use crate::route::authority::without_zone;

/// Prefix of all of Heddle's own headers.
const OWN: &[u8] = b"heddle-";

/// The instance that the caller's proxy chose: `<namespace>/<service>/<instance>`.
pub(in crate::exchange) const TO: &[u8] = b"heddle-to";
/// The caller: `<namespace>/<service>` or `node/<node>`.
pub(in crate::exchange) const FROM: &[u8] = b"heddle-from";
/// The number of the caller's connection on the caller's node: tells the callers of a node apart that share a link.
/// Proxies of older versions do not send it.
pub(in crate::exchange) const CALLER: &[u8] = b"heddle-caller";
/// The call's id.
pub(in crate::exchange) const CALL: &[u8] = b"heddle-call";
/// gRPC's status UNKNOWN.
pub(in crate::exchange) const UNKNOWN: u8 = 2;

/// Removes every `heddle-*` field. Most lists have none and are only read.
#[inline]
pub(in crate::exchange) fn strip(fields: &mut Fields) {
    if fields.iter().any(|field| field.name.starts_with(OWN)) {
        fields.retain(|field| !field.name.starts_with(OWN));
    }
}

/// Removes `content-length` from a gRPC response with a body. gRPC ends a response by its trailers; if a proxy has to end
/// it with trailers of its own, the length would be wrong, and the peer would have to reject the response as malformed.
#[inline]
pub(in crate::exchange) fn remove_length(fields: &mut Fields) {
    if fields.get(b"content-length").is_some() {
        fields.remove(b"content-length");
    }
}

/// Repairs an authority that strict servers (the http crate) would refuse: a missing or empty one, and one with the zone of
/// an IPv6 address, which has a meaning only on the caller's host.
#[inline]
pub(in crate::exchange) fn normalize_authority(fields: &mut Fields) {
    let normalized = match fields.authority() {
        None | Some(b"") => {
            let host = fields.get(b"host").filter(|host| !host.is_empty());
            let host = host.unwrap_or(b"localhost");
            without_zone(host).unwrap_or_else(|| host.to_vec())
        }
        Some(authority) => match without_zone(authority) {
            Some(normalized) => normalized,
            None => return,
        },
    };
    replace_authority(fields, &normalized);
}

/// Sets `:authority`. `host`, which would say something else, is removed (RFC 9113 §8.3.1).
#[cold]
pub(in crate::exchange) fn replace_authority(fields: &mut Fields, authority: &[u8]) {
    fields.remove(b"host");
    if fields.authority().is_some() {
        return fields.set(b":authority", authority);
    }
    // Pseudo-headers come first.
    let mut all = Fields::new();
    all.push(b":authority", authority);
    for field in fields.iter() {
        match field.sensitive {
            true => all.push_sensitive(field.name, field.value),
            false => all.push(field.name, field.value),
        }
    }
    *fields = all;
}

/// A list up to this size is kept unchanged.
const TRIMMED_BYTES: usize = 2 * 1024;

/// Reduces a large request that will not be sent again to the headers that are still read.
pub(in crate::exchange) fn trim(fields: &mut Fields) {
    if fields.memory_bytes() <= TRIMMED_BYTES {
        return;
    }
    let mut rest = Fields::new();
    for name in [&b":method"[..], b":path", b"content-type"] {
        if let Some(value) = fields.get(name) {
            rest.push(name, value);
        }
    }
    *fields = rest;
}

/// What another proxy states about a response or its trailers, in headers of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::exchange) struct Marks {
    pub(in crate::exchange) reason: Option<Reason>,
    pub(in crate::exchange) unprocessed: bool,
}

/// Reads another proxy's marks and removes them. The reason and call id of a failure that the other proxy made stay in
/// the list for the caller.
pub(in crate::exchange) fn take_marks(fields: &mut Fields) -> Marks {
    if !fields.iter().any(|field| field.name.starts_with(OWN)) {
        return Marks::default();
    }
    let reason = fields
        .get(b"heddle-reason")
        .and_then(|code| std::str::from_utf8(code).ok());
    let reason = reason.and_then(Reason::from_code);
    let unprocessed = fields.get(b"heddle-unprocessed") == Some(b"1");
    fields.retain(|field| {
        let kept = reason.is_some() && matches!(field.name, b"heddle-reason" | b"heddle-call");
        kept || !field.name.starts_with(OWN)
    });
    Marks {
        reason,
        unprocessed,
    }
}

/// The caller's number on its node; 0 if its proxy gives none.
pub(in crate::exchange) fn caller_number(fields: &Fields) -> u32 {
    let digits = fields
        .get(CALLER)
        .and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Whether a content type is gRPC's: `application/grpc`, optionally with a suffix such as `+proto`, or parameters.
pub(in crate::exchange) fn is_grpc(content_type: Option<&[u8]>) -> bool {
    let Some(rest) = content_type.and_then(|t| t.strip_prefix(b"application/grpc")) else {
        return false;
    };
    matches!(rest.first(), None | Some(b'+' | b';'))
}

/// `grpc-status`, if present. A value that is not a gRPC status counts as UNKNOWN, as clients do it.
pub(in crate::exchange) fn grpc_status(fields: &Fields) -> Option<u8> {
    Some(match fields.get(b"grpc-status")? {
        [digit @ b'0'..=b'9'] => digit - b'0',
        [b'1', digit @ b'0'..=b'6'] => 10 + digit - b'0',
        _ => UNKNOWN,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(fields: &[(&str, &str)]) -> Fields {
        let mut list = Fields::new();
        for (name, value) in fields {
            list.push(name.as_bytes(), value.as_bytes());
        }
        list
    }

    #[test]
    fn nothing_of_heddles_own_passes_an_edge_and_order_stays() {
        let mut fields = list(&[
            ("a", "1"),
            ("heddle-from", "x"),
            ("b", "2"),
            ("heddle-new", "y"),
            ("a", "3"),
        ]);
        strip(&mut fields);
        assert_eq!(fields, list(&[("a", "1"), ("b", "2"), ("a", "3")]));
    }

    #[test]
    fn a_proxys_marks_are_read_and_only_a_true_reason_stays() {
        let mut fields = list(&[
            ("grpc-status", "14"),
            ("heddle-reason", "NO_ENDPOINTS"),
            ("heddle-call", "c"),
            ("heddle-unprocessed", "1"),
        ]);
        let marks = take_marks(&mut fields);
        assert_eq!(
            marks,
            Marks {
                reason: Some(Reason::NoEndpoints),
                unprocessed: true
            }
        );
        assert_eq!(fields.len(), 3);
        let mut fields = list(&[("heddle-reason", "SOMETHING"), ("heddle-call", "c")]);
        assert_eq!(take_marks(&mut fields), Marks::default());
        assert!(fields.is_empty());
    }

    /// Issue 10, C2.
    #[test]
    fn an_authority_that_servers_refuse_is_normalized() {
        for (given, host, expect) in [
            (Some(""), None, "localhost"),
            (Some(""), Some(""), "localhost"),
            (Some(""), Some("users:1"), "users:1"),
            (Some("[fe80::1%25eth0]:15001"), None, "[fe80::1]:15001"),
            (Some("[fe80::1%e]:1"), Some("[fe80::1%e]:1"), "[fe80::1]:1"),
            (Some("[fe80::1%eth0]"), None, "[fe80::1]"),
            (Some("[::1]:2"), None, "[::1]:2"),
            (None, None, "localhost"),
            (None, Some(""), "localhost"),
            (None, Some("users"), "users"),
            (None, Some("[fe80::1%e]:1"), "[fe80::1]:1"),
        ] {
            let mut fields = Fields::new();
            if let Some(given) = given {
                fields.push(b":authority", given.as_bytes());
            }
            fields.push(b":path", b"/a.B/C");
            fields.push(b"a", b"1");
            if let Some(host) = host {
                fields.push(b"host", host.as_bytes());
            }
            normalize_authority(&mut fields);
            assert_eq!(fields.authority(), Some(expect.as_bytes()), "{given:?}");
            assert_eq!(fields.get(b"host"), None, "{given:?}");
            let last = fields.iter().last().map(|field| field.name);
            assert_eq!((fields.len(), last), (3, Some(&b"a"[..])), "{given:?}");
        }
        let mut fields = list(&[(":authority", "users"), ("host", "Users")]);
        normalize_authority(&mut fields);
        assert_eq!(fields, list(&[(":authority", "users"), ("host", "Users")]));
    }

    /// Issue 10, A1.
    #[test]
    fn a_caller_without_a_number_is_the_proxy_itself() {
        for (value, expect) in [
            ("1", 1),
            ("4294967295", u32::MAX),
            ("4294967296", 0),
            ("", 0),
            ("x", 0),
        ] {
            assert_eq!(
                caller_number(&list(&[("heddle-caller", value)])),
                expect,
                "{value:?}"
            );
        }
        assert_eq!(caller_number(&list(&[])), 0);
    }

    /// Issue 10, C2.
    #[test]
    fn what_is_no_status_of_grpc_counts_as_unknown() {
        for (value, expect) in [
            ("0", 0),
            ("5", 5),
            ("16", 16),
            ("17", 2),
            ("255", 2),
            ("256", 2),
            ("-1", 2),
            ("+5", 2),
            ("OK", 2),
            ("", 2),
        ] {
            let found = grpc_status(&list(&[("grpc-status", value)]));
            assert_eq!(found, Some(expect), "{value:?}");
        }
        assert_eq!(grpc_status(&list(&[])), None);
    }

    #[test]
    fn grpc_content_types() {
        for (value, expect) in [
            ("application/grpc", true),
            ("application/grpc+json", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(Some(value.as_bytes())), expect, "{value}");
        }
        assert!(!is_grpc(None));
    }
}
