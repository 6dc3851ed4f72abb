use super::*;
use crate::headers::FieldClass;

fn sample() -> Fields {
    let mut fields = Fields::new();
    fields.push(b":status", b"200");
    fields.push(b"a", b"1");
    fields.push_sensitive(b"b", b"secret");
    fields.push(b"a", b"22");
    fields.push(b"c", b"");
    fields
}

fn shown(fields: &Fields) -> Vec<(String, String, bool)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields
        .iter()
        .map(|f| (text(f.name), text(f.value), f.sensitive))
        .collect()
}

fn list(expect: &[(&str, &str, bool)]) -> Vec<(String, String, bool)> {
    expect
        .iter()
        .map(|(n, v, s)| ((*n).to_string(), (*v).to_string(), *s))
        .collect()
}

#[test]
fn order_and_duplicates_are_kept() {
    let fields = sample();
    let expect = [
        (":status", "200", false),
        ("a", "1", false),
        ("b", "secret", true),
        ("a", "22", false),
        ("c", "", false),
    ];
    assert_eq!(shown(&fields), list(&expect));
    assert_eq!(fields.get(b"a"), Some(&b"1"[..]));
    assert_eq!(fields.get_all(b"a").collect::<Vec<_>>(), [&b"1"[..], b"22"]);
    assert_eq!(fields.get(b"A"), None);
    assert_eq!(fields.len(), 5);
}

#[test]
fn list_bytes_counts_32_for_each_field() {
    assert_eq!(sample().list_bytes(), 5 * 32 + 10 + 2 + 7 + 3 + 1);
    assert_eq!(Fields::new().list_bytes(), 0);
}

#[test]
fn set_replaces_the_first_in_place_and_drops_the_rest() {
    for value in ["", "x", "much longer than the value that was there"] {
        let mut fields = sample();
        fields.set(b"a", value.as_bytes());
        let expect = [
            (":status", "200", false),
            ("a", value, false),
            ("b", "secret", true),
            ("c", "", false),
        ];
        assert_eq!(shown(&fields), list(&expect));
    }
    let mut fields = sample();
    fields.set(b"new", b"v");
    assert_eq!(fields.iter().last().map(|f| f.name), Some(&b"new"[..]));
}

#[test]
fn set_takes_the_sensitive_mark_and_the_known_hash_away() {
    let mut fields = Fields::new();
    let marks = Marks {
        hash: 7,
        static_index: 2,
        name_hash: 5,
        name_id: 3,
        class: FieldClass::Ordinary,
    };
    fields.push_marked(&Marked {
        bytes: b"nv",
        name_len: 1,
        marks,
        sensitive: false,
    });
    fields.push_sensitive(b"b", b"secret");
    fields.set(b"n", b"w");
    fields.set(b"b", b"public");
    let marked: Vec<_> = fields.iter_marked().collect();
    assert_eq!(
        marked[0].marks,
        Marks {
            hash: 0,
            static_index: 0,
            name_hash: 5,
            name_id: 3,
            class: FieldClass::Unclassified,
        }
    );
    assert!(!marked[1].sensitive);
}

#[test]
fn remove_takes_all_of_a_name() {
    let mut fields = sample();
    assert_eq!(fields.remove(b"a"), 2);
    assert_eq!(fields.remove(b"a"), 0);
    let expect = [
        (":status", "200", false),
        ("b", "secret", true),
        ("c", "", false),
    ];
    assert_eq!(shown(&fields), list(&expect));
}

#[test]
fn clear_keeps_memory_and_nothing_else() {
    let mut fields = sample();
    fields.clear();
    assert!(fields.is_empty());
    fields.push(b"x", b"y");
    assert_eq!(shown(&fields), list(&[("x", "y", false)]));
}

#[test]
fn status_is_three_digits_or_nothing() {
    for (value, expect) in [
        ("200", Some(200)),
        ("099", Some(99)),
        ("20", None),
        ("2000", None),
        ("2x0", None),
    ] {
        let mut fields = Fields::new();
        fields.push(b":status", value.as_bytes());
        assert_eq!(fields.status(), expect, "{value}");
    }
    assert_eq!(Fields::new().status(), None);
}

#[test]
fn debug_hides_sensitive_values() {
    let shown = format!("{:?}", sample());
    assert!(
        shown.contains("***") && !shown.contains("secret"),
        "{shown}"
    );
}
