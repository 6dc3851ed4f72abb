//! The static table (RFC 7541 appendix A) with its hashes, and what an encoder should know of
//! well-known names. Only constants, built by the compiler; a look-up by name is one probe by the
//! hash that the field already has.

use super::Marks;
use super::hash::{field_hash, name_hash};
use crate::fields::Marked;
use crate::headers::FieldClass;

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

/// The field at an index from 1 to 61.
#[inline]
pub(crate) fn static_field(index: usize) -> Option<Marked<'static>> {
    let entry = ENTRIES.get(index.wrapping_sub(1))?;
    let (start, len) = (usize::from(entry.start), usize::from(entry.len));
    let bytes = BYTES.get(start..start + len)?;
    let name_len = usize::from(entry.name_len);
    Some(Marked {
        bytes,
        name_len,
        marks: entry.marks,
        sensitive: false,
    })
}

/// Whether a value is worth storing in a table that many callers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Index the value once it has repeated.
    Learn,
    /// Different in nearly every call: storing it would evict what repeats.
    Varies,
    /// A credential: never indexed here or by any later hop (RFC 7541 §7.1.3).
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
const CLASSES: [(&[u8], Class); 46] = [
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
    (b"heddle-caller", Class::Varies),
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

/// What is known of the name with this id.
#[inline]
pub(crate) fn known(name_id: u8) -> Option<&'static Known> {
    KNOWN.names.get(usize::from(name_id).wrapping_sub(FIRST_ID))
}

/// The id of a name: [`NO_ID`] if nothing is known of it.
pub(crate) fn name_id_of(name_hash: u32, name: &[u8]) -> u8 {
    let mut at = slot(name_hash);
    loop {
        let name_id = KNOWN.slots[at];
        match known(name_id) {
            Some(found) if found.name != name => at = (at + 1) % SLOTS,
            _ => return name_id,
        }
    }
}

/// The id of a name that was looked up and is not in the table; 0 is one that was not looked up.
const NO_ID: u8 = 1;
const FIRST_ID: usize = 2;

const SLOTS: usize = 512;
const MAX_KNOWN: usize = STATIC.len() + CLASSES.len();

/// An open hash table that is at most a fifth full, so that a probe ends at once.
struct KnownNames {
    /// Ids, [`NO_ID`] where there is none.
    slots: [u8; SLOTS],
    names: [Known; MAX_KNOWN],
}

static KNOWN: KnownNames = KNOWN_NAMES;
const KNOWN_NAMES: KnownNames = known_names();

/// The position of a static field in [`BYTES`].
#[derive(Clone, Copy)]
struct StaticEntry {
    start: u16,
    len: u8,
    name_len: u8,
    marks: Marks,
}

/// Names and values of the static table one after the other.
static BYTES: [u8; BYTES_LEN] = static_bytes();
static ENTRIES: [StaticEntry; STATIC.len()] = static_entries();

const BYTES_LEN: usize = {
    let (mut len, mut at) = (0, 0);
    while at < STATIC.len() {
        len += STATIC[at].0.len() + STATIC[at].1.len();
        at += 1;
    }
    len
};

const fn slot(name_hash: u32) -> usize {
    name_hash as usize % SLOTS
}

const fn static_bytes() -> [u8; BYTES_LEN] {
    let mut bytes = [0; BYTES_LEN];
    let (mut end, mut at) = (0, 0);
    while at < STATIC.len() {
        let (name, value) = STATIC[at];
        let mut from = 0;
        while from < name.len() + value.len() {
            bytes[end] = if from < name.len() {
                name[from]
            } else {
                value[from - name.len()]
            };
            (end, from) = (end + 1, from + 1);
        }
        at += 1;
    }
    bytes
}

#[allow(clippy::cast_possible_truncation)] // 61 short strings
const fn static_entries() -> [StaticEntry; STATIC.len()] {
    let marks = Marks {
        hash: 0,
        name_hash: 0,
        name_id: 0,
        static_index: 0,
        class: FieldClass::Unclassified,
    };
    let mut entries = [StaticEntry {
        start: 0,
        len: 0,
        name_len: 0,
        marks,
    }; STATIC.len()];
    let (mut start, mut at) = (0, 0);
    while at < STATIC.len() {
        let (name, value) = STATIC[at];
        let name_hash = name_hash(name);
        let len = (name.len() + value.len()) as u8;
        let marks = Marks {
            hash: field_hash(name_hash, value),
            name_hash,
            name_id: KNOWN_NAMES.slots[place(&KNOWN_NAMES, name)],
            static_index: at as u8 + 1,
            class: FieldClass::of(name, value),
        };
        entries[at] = StaticEntry {
            start,
            len,
            name_len: name.len() as u8,
            marks,
        };
        start += len as u16;
        at += 1;
    }
    entries
}

#[allow(clippy::cast_possible_truncation)] // MAX_KNOWN is below 250
const fn known_names() -> KnownNames {
    let nothing = Known {
        name: b"",
        class: Class::Learn,
        first: 0,
        entries: 0,
    };
    let mut made = KnownNames {
        slots: [NO_ID; SLOTS],
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
        made.slots[place(&made, name)] = (used + FIRST_ID) as u8;
        (used, at) = (used + 1, at + entries);
    }
    at = 0;
    while at < CLASSES.len() {
        let (name, class) = CLASSES[at];
        let place = place(&made, name);
        let name_id = made.slots[place];
        if name_id == NO_ID {
            made.names[used] = Known {
                name,
                class,
                first: 0,
                entries: 0,
            };
            made.slots[place] = (used + FIRST_ID) as u8;
            used += 1;
        } else {
            made.names[name_id as usize - FIRST_ID].class = class;
        }
        at += 1;
    }
    made
}

/// The slot of the name, or the free slot for it.
const fn place(made: &KnownNames, name: &[u8]) -> usize {
    let mut at = slot(name_hash(name));
    while made.slots[at] != NO_ID
        && !same(made.names[made.slots[at] as usize - FIRST_ID].name, name)
    {
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
        known(name_id_of(name_hash(name), name))
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
    fn static_fields_are_whole_and_marked() {
        for (at, (name, value)) in STATIC.iter().enumerate() {
            let field = static_field(at + 1).expect("in the static table");
            assert_eq!((field.name(), field.value()), (*name, *value));
            let marks = Marks {
                static_index: field.marks.static_index,
                class: FieldClass::of(name, value),
                ..Marks::default()
            };
            assert_eq!(field.marks, marks.with_name(name).with_value(value));
            assert_eq!(usize::from(field.marks.static_index), at + 1);
        }
        assert!(static_field(0).is_none() && static_field(62).is_none());
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
        assert_eq!(name_id_of(name_hash(b"date"), b"gate"), NO_ID);
    }
}
