//! The writer against prost-reflect's DynamicMessage and against rules it does not keep.

use proptest::prelude::*;
use prost::Message;
use prost_reflect::SerializeOptions;
use serde_json::Value as Json;

use super::{WriteOptions, Written, escape, write_field, write_message};
use crate::fault::FaultKind;
use crate::fixture::{PLANS, POOL, Random, all, id};
use crate::plan::FieldRef;

const MAX: usize = 1 << 25;

/// Compares numbers by value: 1 and 1.0 are one number.
pub(crate) fn plain(json: Json) -> Json {
    match json {
        Json::Number(number) => Json::from(number.as_f64()),
        Json::Array(items) => items.into_iter().map(plain).collect(),
        Json::Object(members) => {
            let mut members: Vec<_> = members.into_iter().map(|(k, v)| (k, plain(v))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(members.into_iter().collect())
        }
        other => other,
    }
}

fn parsed(written: &Written) -> Json {
    let text = std::str::from_utf8(&written.json).unwrap();
    plain(serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text}")))
}

fn canonical(message: &str, wire: &[u8]) -> String {
    let written = write_message(&PLANS, id(message), wire, WriteOptions::canonical(MAX)).unwrap();
    String::from_utf8(written.json).unwrap()
}

fn fault(wire: &[u8]) -> String {
    let fault = write_message(&PLANS, all(), wire, WriteOptions::canonical(MAX)).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Invalid);
    fault.to_string()
}

fn len(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    crate::wire::put_varint(&mut out, u64::from(number << 3 | 2));
    crate::wire::put_varint(&mut out, content.len() as u64);
    out.extend_from_slice(content);
    out
}

fn varint(number: u32, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    crate::wire::put_varint(&mut out, u64::from(number << 3));
    crate::wire::put_varint(&mut out, value);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Where ours departs the fixture avoids the case: infinity in a FloatValue or DoubleValue, which DynamicMessage
    /// writes as null, and an Any of unknown type, which it refuses.
    #[test]
    fn writes_what_dynamic_message_writes(seed: u64) {
        let descriptor = POOL.get_message_by_name("kinds.All").unwrap();
        let message = Random(seed).message(&descriptor, 3);
        let wire = message.encode_to_vec();
        for (unset, proto, numbers) in
            [(false, false, false), (true, false, false), (true, true, true)]
        {
            let theirs = SerializeOptions::new()
                .skip_default_fields(!unset)
                .use_proto_field_name(proto)
                .use_enum_numbers(numbers);
            let mut text = Vec::new();
            message
                .serialize_with_options(&mut serde_json::Serializer::new(&mut text), &theirs)
                .unwrap();
            let theirs = plain(serde_json::from_slice(&text).unwrap());
            let options = WriteOptions {
                unset_fields: unset, proto_names: proto, enum_numbers: numbers, max_output: MAX,
            };
            let written = write_message(&PLANS, all(), &wire, options).unwrap();
            prop_assert_eq!(written.dropped_fields, 0);
            prop_assert_eq!(parsed(&written), theirs, "\n{}", String::from_utf8_lossy(&written.json));
        }
    }

    #[test]
    fn escapes_as_serde_json_reads(text in any::<String>(), pad in 0..9usize) {
        let text = format!("{}{text}", "x".repeat(pad));
        let mut out = Vec::new();
        escape::string(&mut out, &text);
        prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
    }

    #[test]
    fn any_bytes_are_json_or_a_fault(wire in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(written) = write_message(&PLANS, all(), &wire, WriteOptions::rest(MAX)) {
            parsed(&written);
        }
    }
}

#[test]
fn every_control_character_is_escaped() {
    let text: String = (0..=0x80).filter_map(char::from_u32).collect();
    let mut out = Vec::new();
    escape::string(&mut out, &text);
    assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
}

#[test]
fn occurrences_that_lie_apart_meet() {
    let check = |parts: &[Vec<u8>], expect: &str| {
        assert_eq!(canonical("kinds.All", &parts.concat()), expect);
    };
    // singular scalar: the last counts, the zero too
    check(
        &[varint(3, 1), varint(5, 9), varint(3, 2)],
        r#"{"anInt32":2,"aUint32":9}"#,
    );
    check(&[varint(3, 1), varint(3, 0)], "{}");
    // repeated: one array, packed and not
    check(
        &[len(32, &[1, 2]), varint(3, 7), varint(32, 3), len(32, &[4])],
        r#"{"anInt32":7,"int32s":[1,2,3,4]}"#,
    );
    check(
        &[len(35, b"a"), len(41, b""), len(35, b"b")],
        r#"{"strings":["a","b"],"labels":{"":""}}"#,
    );
    // singular messages merge, deeply
    let a = len(17, &[len(17, &varint(3, 1)), len(35, b"x")].concat());
    let b = len(17, &[len(17, &varint(4, 2)), len(35, b"y")].concat());
    let merged =
        r#"{"aString":"s","nested":{"nested":{"anInt32":1,"anInt64":"2"},"strings":["x","y"]}}"#;
    check(&[a.clone(), b.clone(), len(14, b"s")], merged);
    check(&[a, len(14, b"s"), b], merged);
    // one key twice: the last; its message value given twice: merged
    let entry = |value: &[u8]| len(41, &[len(1, b"k"), len(2, value)].concat());
    check(&[entry(b"1"), entry(b"2")], r#"{"labels":{"k":"2"}}"#);
    let twice = [len(1, b"k"), len(2, &varint(3, 1)), len(2, &varint(4, 2))].concat();
    check(
        &[len(44, &twice)],
        r#"{"byName":{"k":{"anInt32":1,"anInt64":"2"}}}"#,
    );
}

#[test]
fn of_a_oneof_the_last_member_counts() {
    let check = |parts: &[Vec<u8>], expect: &str| {
        assert_eq!(canonical("kinds.All", &parts.concat()), expect);
    };
    let all = |inner: &[u8]| len(53, inner);
    check(&[varint(51, 1), len(52, b"x")], r#"{"choiceString":"x"}"#);
    check(
        &[len(52, b"x"), varint(3, 1), varint(51, 1)],
        r#"{"anInt32":1,"choiceInt":1}"#,
    );
    check(
        &[all(&varint(3, 1)), all(&varint(4, 1))],
        r#"{"choiceAll":{"anInt32":1,"anInt64":"1"}}"#,
    );
    // another member between: what came before it is gone
    check(
        &[all(&varint(3, 1)), varint(51, 1), all(&varint(4, 1))],
        r#"{"choiceAll":{"anInt64":"1"}}"#,
    );
    check(&[varint(54, 0)], r#"{"choiceNull":null}"#);
}

#[test]
fn what_the_schema_does_not_know_is_dropped_and_counted() {
    let wire = [
        varint(3, 1),
        varint(9999, 1),
        len(13, b"not a bool"),
        vec![0xa3, 0x3f, 0xa4, 0x3f],
    ];
    let written =
        write_message(&PLANS, all(), &wire.concat(), WriteOptions::canonical(MAX)).unwrap();
    assert_eq!(String::from_utf8(written.json).unwrap(), r#"{"anInt32":1}"#);
    assert_eq!(written.dropped_fields, 3);
}

#[test]
fn enums_anys_and_groups() {
    assert_eq!(canonical("kinds.All", &varint(16, 77)), r#"{"colour":77}"#);
    assert_eq!(
        canonical("kinds.All", &varint(16, u64::MAX)),
        r#"{"colour":"UNDER"}"#
    );
    assert_eq!(
        canonical("kinds.All", &varint(18, 1)),
        r#"{"aliased":"ONE"}"#
    );
    let unknown = len(67, &[len(1, b"x/no.Such"), len(2, &[0xff, 0xfe])].concat());
    assert_eq!(
        canonical("kinds.All", &unknown),
        r#"{"any":{"@type":"x/no.Such","@value":"//4="}}"#
    );
    assert_eq!(canonical("kinds.All", &len(67, b"")), r#"{"any":{}}"#);
    let empty = len(67, &len(1, b"x/google.protobuf.Empty"));
    let text = r#"{"any":{"@type":"x/google.protobuf.Empty","value":{}}}"#;
    assert_eq!(canonical("kinds.All", &empty), text);
    // group: start 6, number = 3, end 6
    let group = [varint(1, 1), vec![0x33, 0x08, 0x03, 0x34]].concat();
    assert_eq!(
        canonical("old.Old", &group),
        r#"{"must":1,"inner":{"number":3}}"#
    );
}

#[test]
fn what_json_cannot_say_is_a_fault_with_its_path() {
    let nested = |inner: &[u8]| len(17, inner);
    assert_eq!(
        fault(&nested(&len(14, b"\xff"))),
        "nested.aString is not valid UTF-8"
    );
    assert_eq!(fault(&len(35, b"\xff")), "strings[0] is not valid UTF-8");
    let wire = len(44, &[len(1, b"k"), len(2, &len(14, b"\xff"))].concat());
    assert_eq!(fault(&wire), "byName[\"k\"].aString is not valid UTF-8");
    assert!(fault(&len(41, &len(1, b"\xff"))).starts_with("labels has a key"));
    assert!(fault(&len(61, &varint(1, 253_402_300_800))).starts_with("at is a timestamp outside"));
    assert!(fault(&len(61, &varint(2, 1_000_000_000))).starts_with("at is a timestamp"));
    assert!(fault(&len(62, &varint(1, 315_576_000_001))).starts_with("took is a duration"));
    assert!(fault(&len(62, &[varint(1, 1), varint(2, u64::MAX)].concat())).starts_with("took is"));
    let nan = [&[0x11][..], &f64::NAN.to_le_bytes()].concat();
    assert!(fault(&len(65, &nan)).starts_with("value is a Value that is not"));
    for path in ["fooBar", "foo_3_bar", "foo__bar", "a_"] {
        assert!(
            fault(&len(63, &len(1, path.as_bytes()))).starts_with("mask has a path"),
            "{path}"
        );
    }
    for wire in [&b"\x08"[..], b"\x0f", b"\x72\x05a", b"\x0c", b"\x00\x00"] {
        assert_eq!(fault(wire), "the message is not a valid protobuf message");
    }
}

#[test]
fn depth_is_bounded() {
    let mut wire = Vec::new();
    for _ in 0..10_000 {
        wire = len(17, &wire);
    }
    assert!(fault(&wire).contains("nested deeper"));
    // groups that the schema does not know
    assert!(fault(&[0xa3, 0x3f].repeat(10_000)).contains("not a valid"));
}

#[test]
fn output_is_bounded_while_it_grows() {
    let floods = [
        len(14, &[1; 100_000]),
        len(15, &[1; 100_000]),
        [0x92, 0x02, 0]
            .repeat(0)
            .into_iter()
            .chain([0xb2, 0x02, 0].repeat(50_000))
            .collect(),
        len(32, &[1; 100_000]),
        len(41, b"")
            .repeat(1)
            .into_iter()
            .chain([0x9a, 0x02, 0].repeat(50_000))
            .collect(),
    ];
    for wire in floods {
        let options = WriteOptions {
            max_output: 10_000,
            ..WriteOptions::rest(0)
        };
        let fault = write_message(&PLANS, all(), &wire, options).unwrap_err();
        assert_eq!(fault.kind, FaultKind::TooLarge);
    }
}

#[test]
fn one_field_alone() {
    let wire = [len(17, &varint(3, 1)), len(35, b"a")].concat();
    let alone = |name: &str, options| {
        let index = PLANS.message(all()).find(name.as_bytes()).unwrap();
        let field = FieldRef {
            message: all(),
            index,
        };
        let written = write_field(&PLANS, field, &wire, options).unwrap();
        String::from_utf8(written.json).unwrap()
    };
    let (rest, canonical) = (WriteOptions::rest(MAX), WriteOptions::canonical(MAX));
    assert_eq!(alone("nested", canonical), r#"{"anInt32":1}"#);
    assert_eq!(alone("strings", rest), r#"["a"]"#);
    assert_eq!(alone("at", rest), "null");
    assert_eq!(alone("children", canonical), "null");
    assert_eq!(alone("children", rest), "[]");
    assert_eq!(alone("an_int64", rest), "\"0\"");
    assert_eq!(alone("maybeInt32", rest), "null");
}

#[test]
fn dates_at_the_edges() {
    let at = |seconds: i64, nanos: u64| {
        canonical(
            "google.protobuf.Timestamp",
            &[varint(1, seconds.cast_unsigned()), varint(2, nanos)].concat(),
        )
    };
    assert_eq!(at(-62_135_596_800, 0), "\"0001-01-01T00:00:00Z\"");
    assert_eq!(
        at(253_402_300_799, 999_999_999),
        "\"9999-12-31T23:59:59.999999999Z\""
    );
    assert_eq!(at(951_782_400, 10_000_000), "\"2000-02-29T00:00:00.010Z\"");
    assert_eq!(at(-1, 10_000), "\"1969-12-31T23:59:59.000010Z\"");
}
