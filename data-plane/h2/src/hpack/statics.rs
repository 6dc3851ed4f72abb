//! The static table (RFC 7541 appendix A) with its hashes, and what an encoder should know of
//! well-known names. Only constants: the compiler builds everything, and a look-up by name is one
//! probe by the hash that the field carries anyway.

use super::hash::{field_hash, name_hash};

/// Entries 1 to 61 of the static table, in order.
#[rustfmt::skip]
pub(crate) const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"),
    (b":path", b"/index.html"), (b":scheme", b"http"), (b":scheme", b"https"),
    (b":status", b"200"), (b":status", b"204"), (b":status", b"206"), (b":status", b"304"),
    (b":status", b"400"), (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"), (b"accept-language", b""), (b"accept-ranges", b""),
    (b"accept", b""), (b"access-control-allow-origin", b""), (b"age", b""), (b"allow", b""),
    (b"authorization", b""), (b"cache-control", b""), (b"content-disposition", b""),
    (b"content-encoding", b""), (b"content-language", b""), (b"content-length", b""),
    (b"content-location", b""), (b"content-range", b""), (b"content-type", b""), (b"cookie", b""),
    (b"date", b""), (b"etag", b""), (b"expect", b""), (b"expires", b""), (b"from", b""),
    (b"host", b""), (b"if-match", b""), (b"if-modified-since", b""), (b"if-none-match", b""),
    (b"if-range", b""), (b"if-unmodified-since", b""), (b"last-modified", b""), (b"link", b""),
    (b"location", b""), (b"max-forwards", b""), (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""), (b"range", b""), (b"referer", b""), (b"refresh", b""),
    (b"retry-after", b""), (b"server", b""), (b"set-cookie", b""),
    (b"strict-transport-security", b""), (b"transfer-encoding", b""), (b"user-agent", b""),
    (b"vary", b""), (b"via", b""), (b"www-authenticate", b""),
];

/// The hashes of name and of name with value, for each of [`STATIC`].
pub(crate) static STATIC_HASHES: [(u32, u32); STATIC.len()] = static_hashes();

/// Whether a value is worth a place in a table that many callers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Index once the value has been seen to repeat.
    Learn,
    /// Differs from call to call, or nearly so: a place in the table would push out what repeats.
    Varies,
    /// A credential: never indexed here nor by anyone further on (RFC 7541 §7.1.3).
    Credential,
    /// Never indexed when short enough to be guessed, else as `Learn`.
    Cookie,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) name: &'static [u8],
    pub(crate) class: Class,
    /// Index of its first entry in the static table, 0 if it has none.
    pub(crate) first: usize,
    /// How many entries it has there, one after the other.
    pub(crate) entries: usize,
}

/// The names whose class is not `Learn`; those that are in the static table keep their index.
const CLASSES: [(&[u8], Class); 45] = [
    (b"authorization", Class::Credential),
    (b"proxy-authorization", Class::Credential),
    (b"set-cookie", Class::Credential),
    (b"x-api-key", Class::Credential),
    (b"cookie", Class::Cookie),
    (b"age", Class::Varies),
    (b"content-length", Class::Varies),
    (b"content-location", Class::Varies),
    (b"content-range", Class::Varies),
    (b"date", Class::Varies),
    (b"etag", Class::Varies),
    (b"expires", Class::Varies),
    (b"if-match", Class::Varies),
    (b"if-modified-since", Class::Varies),
    (b"if-none-match", Class::Varies),
    (b"if-range", Class::Varies),
    (b"if-unmodified-since", Class::Varies),
    (b"last-modified", Class::Varies),
    (b"location", Class::Varies),
    (b"range", Class::Varies),
    (b"traceparent", Class::Varies),
    (b"tracestate", Class::Varies),
    (b"grpc-timeout", Class::Varies),
    (b"grpc-message", Class::Varies),
    (b"grpc-status-details-bin", Class::Varies),
    (b"grpc-trace-bin", Class::Varies),
    (b"grpc-tags-bin", Class::Varies),
    (b"grpc-previous-rpc-attempts", Class::Varies),
    (b"grpc-retry-pushback-ms", Class::Varies),
    (b"heddle-call", Class::Varies),
    (b"idempotency-key", Class::Varies),
    (b"x-request-id", Class::Varies),
    (b"x-correlation-id", Class::Varies),
    (b"b3", Class::Varies),
    (b"x-b3-traceid", Class::Varies),
    (b"x-b3-spanid", Class::Varies),
    (b"x-b3-parentspanid", Class::Varies),
    (b"x-cloud-trace-context", Class::Varies),
    (b"x-amzn-trace-id", Class::Varies),
    (b"x-datadog-trace-id", Class::Varies),
    (b"x-datadog-parent-id", Class::Varies),
    (b"uber-trace-id", Class::Varies),
    (b"x-envoy-expected-rq-timeout-ms", Class::Varies),
    (b"x-envoy-upstream-service-time", Class::Varies),
    (b"x-endpoint-load-metrics-bin", Class::Varies),
];

/// What is known of the name with this hash.
pub(crate) fn known(name_hash: u32, name: &[u8]) -> Option<&'static Known> {
    let mut at = slot(name_hash);
    loop {
        let found = KNOWN.names.get(usize::from(KNOWN.slots[at]))?;
        if found.name == name {
            return Some(found);
        }
        at = (at + 1) % SLOTS;
    }
}

const SLOTS: usize = 512;
const MAX_KNOWN: usize = STATIC.len() + CLASSES.len();
const FREE: u8 = u8::MAX;

/// An open hash table that is at most a fifth full, so that a probe ends at once.
struct KnownNames {
    slots: [u8; SLOTS],
    names: [Known; MAX_KNOWN],
}

static KNOWN: KnownNames = known_names();

const fn slot(name_hash: u32) -> usize {
    name_hash as usize % SLOTS
}

const fn static_hashes() -> [(u32, u32); STATIC.len()] {
    let mut hashes = [(0, 0); STATIC.len()];
    let mut at = 0;
    while at < STATIC.len() {
        let name = name_hash(STATIC[at].0);
        hashes[at] = (name, field_hash(name, STATIC[at].1));
        at += 1;
    }
    hashes
}

#[allow(clippy::cast_possible_truncation)] // MAX_KNOWN is below 255
const fn known_names() -> KnownNames {
    let nothing = Known {
        name: b"",
        class: Class::Learn,
        first: 0,
        entries: 0,
    };
    let mut made = KnownNames {
        slots: [FREE; SLOTS],
        names: [nothing; MAX_KNOWN],
    };
    let (mut used, mut at) = (0, 0);
    while at < STATIC.len() {
        let name = STATIC[at].0;
        let mut entries = 1;
        while at + entries < STATIC.len() && same(STATIC[at + entries].0, name) {
            entries += 1;
        }
        made.names[used] = Known {
            name,
            class: Class::Learn,
            first: at + 1,
            entries,
        };
        made.slots[free_slot(&made, name)] = used as u8;
        (used, at) = (used + 1, at + entries);
    }
    at = 0;
    while at < CLASSES.len() {
        let (name, class) = CLASSES[at];
        let place = free_slot(&made, name);
        let known = made.slots[place];
        if known == FREE {
            made.names[used] = Known {
                name,
                class,
                first: 0,
                entries: 0,
            };
            made.slots[place] = used as u8;
            used += 1;
        } else {
            made.names[known as usize].class = class;
        }
        at += 1;
    }
    made
}

/// Where the name stands, or where it may be put.
const fn free_slot(made: &KnownNames, name: &[u8]) -> usize {
    let mut at = slot(name_hash(name));
    while made.slots[at] != FREE && !same(made.names[made.slots[at] as usize].name, name) {
        at = (at + 1) % SLOTS;
    }
    at
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(name: &[u8]) -> Option<&'static Known> {
        known(name_hash(name), name)
    }

    #[test]
    fn every_static_name_is_found_with_its_entries() {
        for (at, (name, _)) in STATIC.iter().enumerate() {
            let known = find(name).expect("in the static table");
            assert!(
                (known.first..known.first + known.entries).contains(&(at + 1)),
                "{at}"
            );
        }
        assert_eq!(find(b":status").map(|k| (k.first, k.entries)), Some((8, 7)));
        assert_eq!(
            find(b"www-authenticate").map(|k| (k.first, k.entries)),
            Some((61, 1))
        );
    }

    #[test]
    fn classes_hold_with_and_without_a_static_entry() {
        for (name, class, first) in [
            (&b"authorization"[..], Class::Credential, 23),
            (b"cookie", Class::Cookie, 32),
            (b"traceparent", Class::Varies, 0),
            (b"content-length", Class::Varies, 28),
            (b"user-agent", Class::Learn, 58),
        ] {
            let known = find(name).expect("known");
            assert_eq!((known.class, known.first), (class, first));
        }
        for (name, class) in CLASSES {
            assert_eq!(find(name).map(|k| k.class), Some(class));
        }
    }

    #[test]
    fn other_names_are_not_known() {
        for name in [
            &b""[..],
            b"x",
            b"Authorization",
            b"authorizatio",
            b"grpc-status",
        ] {
            assert!(find(name).is_none());
        }
        // whatever the hash says, the bytes decide
        assert!(known(name_hash(b"date"), b"gate").is_none());
    }
}
