//! Edits of header lists at the mesh's edges: what is Heddle's own is read and taken out, what the next hop needs
//! is put in. Header lists in and out; pure.

use heddle_h2::Fields;
use heddle_proto::Reason;

/// Every header of Heddle's own begins with this.
const OWN: &[u8] = b"heddle-";

/// Which instance the caller's proxy chose: `<namespace>/<service>/<instance>`.
pub(crate) const TO: &[u8] = b"heddle-to";
/// Who calls: `<namespace>/<service>` or `node/<node>`.
pub(crate) const FROM: &[u8] = b"heddle-from";
/// The call's id.
pub(crate) const CALL: &[u8] = b"heddle-call";

/// Takes out every `heddle-*` field. Most lists have none and are only read.
pub(crate) fn strip(fields: &mut Fields) {
    if fields.iter().any(|field| field.name.starts_with(OWN)) {
        fields.retain(|field| !field.name.starts_with(OWN));
    }
}

/// The parts of `heddle-to`.
pub(crate) fn parse_to(value: &[u8]) -> Option<(&str, &str, &str)> {
    let mut parts = std::str::from_utf8(value).ok()?.splitn(3, '/');
    match (parts.next()?, parts.next()?, parts.next()?) {
        ("", ..) | (_, "", _) | (_, _, "") => None,
        parts => Some(parts),
    }
}

/// What another proxy says of a response or trailers, beside what it relays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) reason: Option<Reason>,
    pub(crate) unprocessed: bool,
}

/// Reads a proxy's marks. Takes out what is meant for proxies only; reason and call's id of a failure that the
/// other proxy made stay for the caller.
pub(crate) fn take_marks(fields: &mut Fields) -> Marks {
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

/// Whether a content type is gRPC's: `application/grpc`, with `+proto` and the like, or parameters.
pub(crate) fn is_grpc(content_type: Option<&[u8]>) -> bool {
    let Some(rest) = content_type.and_then(|t| t.strip_prefix(b"application/grpc")) else {
        return false;
    };
    matches!(rest.first(), None | Some(b'+' | b';'))
}

/// `grpc-status`, if it is a number.
pub(crate) fn grpc_status(fields: &Fields) -> Option<u8> {
    std::str::from_utf8(fields.get(b"grpc-status")?)
        .ok()?
        .parse()
        .ok()
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

    #[test]
    fn three_parts_name_an_instance() {
        assert_eq!(
            parse_to(b"default/users/u1"),
            Some(("default", "users", "u1"))
        );
        assert_eq!(
            parse_to(b"default/users/a/b"),
            Some(("default", "users", "a/b"))
        );
        for bad in ["", "a/b", "a//c", "/b/c", "a/b/"] {
            assert_eq!(parse_to(bad.as_bytes()), None, "{bad}");
        }
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
