use super::*;
use crate::hpack::tests::{WIDE, hex};

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, HpackError> {
    let mut out = Fields::new();
    decoder.decode(block, WIDE, &mut out)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(out.iter().map(|f| (text(f.name), text(f.value))).collect())
}

fn pairs(expect: &[(&str, &str)]) -> Vec<(String, String)> {
    expect
        .iter()
        .map(|(n, v)| ((*n).to_string(), (*v).to_string()))
        .collect()
}

/// Octets of a block, its fields, the size of the table after it.
type Example<'a> = (&'a str, &'a [(&'a str, &'a str)], usize);

/// The blocks of one connection one after the other.
fn check(table_max: usize, blocks: &[Example<'_>]) {
    let mut decoder = Decoder::new(table_max);
    for (octets, expect, size) in blocks {
        assert_eq!(
            decode(&mut decoder, &hex(octets)),
            Ok(pairs(expect)),
            "{octets}"
        );
        assert_eq!(decoder.table.size(), *size, "table after {octets}");
    }
}

#[test]
fn rfc7541_c_2_representations() {
    let custom = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    check(4096, &[(custom, &[("custom-key", "custom-header")], 55)]); // C.2.1
    check(
        4096,
        &[(
            "040c 2f73 616d 706c 652f 7061 7468",
            &[(":path", "/sample/path")],
            0,
        )],
    );
    check(
        4096,
        &[(
            "1008 7061 7373 776f 7264 0673 6563 7265 74",
            &[("password", "secret")],
            0,
        )],
    );
    check(4096, &[("82", &[(":method", "GET")], 0)]); // C.2.4
}

const FIRST: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "www.example.com"),
];
const SECOND: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "www.example.com"),
    ("cache-control", "no-cache"),
];
const THIRD: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
];

#[test]
fn rfc7541_c_3_requests_without_huffman() {
    check(
        4096,
        &[
            (
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                FIRST,
                57,
            ),
            ("8286 84be 5808 6e6f 2d63 6163 6865", SECOND, 110),
            (
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
                THIRD,
                164,
            ),
        ],
    );
}

#[test]
fn rfc7541_c_4_requests_with_huffman() {
    check(
        4096,
        &[
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", FIRST, 57),
            ("8286 84be 5886 a8eb 1064 9cbf", SECOND, 110),
            (
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
                THIRD,
                164,
            ),
        ],
    );
}

const COOKIE: &str = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";

fn responses() -> [Vec<(&'static str, &'static str)>; 3] {
    let rest = [
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ];
    let with = |status| [&[(":status", status)], &rest[..]].concat();
    let last = vec![
        (":status", "200"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
        ("location", "https://www.example.com"),
        ("content-encoding", "gzip"),
        ("set-cookie", COOKIE),
    ];
    [with("302"), with("307"), last]
}

#[test]
fn rfc7541_c_5_responses_without_huffman() {
    let [first, second, third] = responses();
    check(
        256,
        &[
            (
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
                 2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70
                 6c65 2e63 6f6d",
                &first,
                222,
            ),
            ("4803 3330 37c1 c0bf", &second, 222),
            (
                "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d
                 54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049
                 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e
                 3d31",
                &third,
                215,
            ),
        ],
    );
}

#[test]
fn rfc7541_c_6_responses_with_huffman() {
    let [first, second, third] = responses();
    check(
        256,
        &[
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
                 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                &first,
                222,
            ),
            ("4883 640e ffc1 c0bf", &second, 222),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
                 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
                 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                &third,
                215,
            ),
        ],
    );
}

#[test]
fn never_indexed_literals_are_marked_and_others_are_not() {
    let mut out = Fields::new();
    let block = hex("1003 6162 6301 78 0003 6162 6301 78 4003 6162 6301 78 be");
    Decoder::new(4096)
        .decode(&block, WIDE, &mut out)
        .expect("legal");
    let marks: Vec<bool> = out.iter().map(|field| field.sensitive).collect();
    assert_eq!(marks, [true, false, false, false]);
}

#[test]
fn malformed_blocks_are_refused_for_what_they_are() {
    use HpackError::{
        BadHuffman, BadIndex, IntegerOverflow, LateSizeUpdate, SizeUpdateTooLarge, Truncated,
    };
    for (why, block, expect) in [
        ("index 0", "80", BadIndex),
        ("index past the static table", "be", BadIndex),
        ("index far past both tables", "ff 8001", BadIndex),
        ("name index past both tables", "7e 01 78", BadIndex),
        ("name index past both, not added", "0f 70 01 78", BadIndex),
        ("index without end", "ff", Truncated),
        ("literal without anything", "40", Truncated),
        ("literal without a value", "40 01 61", Truncated),
        (
            "name longer than the block",
            "40 7f ffff ff0f 61",
            Truncated,
        ),
        ("value longer than the block", "44 05 2f61", Truncated),
        (
            "length over 2^32-1",
            "40 7f ffff ffff 7f 61",
            IntegerOverflow,
        ),
        (
            "endless length",
            "40 7f 8080 8080 8080 8080 8000 61",
            IntegerOverflow,
        ),
        (
            "endless index",
            "ff 8080 8080 8080 8080 8000",
            IntegerOverflow,
        ),
        ("padding of a whole octet", "44 82 63ff", BadHuffman),
        ("size update after a field", "82 20", LateSizeUpdate),
        (
            "size update one over our setting",
            "3f e21f",
            SizeUpdateTooLarge,
        ),
        ("size update without end", "3f", Truncated),
    ] {
        assert_eq!(
            decode(&mut Decoder::new(4096), &hex(block)),
            Err(expect),
            "{why}"
        );
    }
}

#[test]
fn a_block_cut_anywhere_inside_a_field_is_truncated() {
    // one field each, every kind of literal, plain and Huffman-coded
    for block in [
        "4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        "0403 2f61 62",
        "1f 1b 01 78",
    ] {
        let block = hex(block);
        for cut in 1..block.len() {
            let seen = decode(&mut Decoder::new(4096), &block[..cut]);
            assert_eq!(seen, Err(HpackError::Truncated), "{cut} of {}", block.len());
        }
    }
}

#[test]
fn size_updates_evict_and_may_come_twice_before_the_first_field() {
    let mut decoder = Decoder::new(4096);
    decode(&mut decoder, &hex("4001 6101 62")).expect("legal");
    assert_eq!(decoder.table.size(), 34);
    // 0, then 4096 again: the table is empty and works
    assert_eq!(
        decode(&mut decoder, &hex("20 3fe11f 82")),
        Ok(pairs(&[(":method", "GET")]))
    );
    assert_eq!(decoder.table.size(), 0);
    assert_eq!(decode(&mut decoder, &hex("be")), Err(HpackError::BadIndex));
    // with a size of 0 nothing is added, which is no error (§4.4)
    let mut decoder = Decoder::new(4096);
    assert_eq!(
        decode(&mut decoder, &hex("20 4001 6101 62")),
        Ok(pairs(&[("a", "b")]))
    );
    assert_eq!(decoder.table.size(), 0);
}

#[test]
fn a_name_may_come_from_the_entry_that_it_evicts() {
    // RFC 7541 §4.4
    let mut decoder = Decoder::new(40);
    decode(&mut decoder, &hex("4004 6e61 6d65 01 61")).expect("legal");
    assert_eq!(
        decode(&mut decoder, &hex("7e 02 6262")),
        Ok(pairs(&[("name", "bb")]))
    );
    assert_eq!(
        decode(&mut decoder, &hex("be")),
        Ok(pairs(&[("name", "bb")]))
    );
    assert_eq!(decoder.table.size(), 38);
}

#[test]
fn a_list_over_the_limit_leaves_the_table_right() {
    // CVE-2023-32731: what another caller sends later must not change by it
    let limits = Limits {
        list_bytes: 100,
        fields: 16,
        discarded_bytes: 3200,
    };
    let mut decoder = Decoder::new(4096);
    let mut out = Fields::new();
    let mut block = hex("82"); // 42 bytes
    block.extend(hex("4001 6140"));
    block.extend([b'x'; 64]); // a: 97 bytes, does not fit
    block.extend(hex("4001 6201 79")); // b: y, 34 bytes, fits
    block.extend(hex("4001 6301 7a")); // c: z, does not fit any more
    assert_eq!(
        decoder.decode(&block, limits, &mut out),
        Ok(Outcome::TooLarge)
    );
    let names: Vec<&[u8]> = out.iter().map(|field| field.name).collect();
    assert_eq!(names, [&b":method"[..], b"b"]);
    let expect = [("c", "z"), ("b", "y"), ("a", &"x".repeat(64))];
    assert_eq!(decode(&mut decoder, &hex("bebfc0")), Ok(pairs(&expect)));
}

#[test]
fn fields_are_counted_and_bounded() {
    let limits = Limits {
        list_bytes: 1 << 20,
        fields: 256,
        discarded_bytes: 1 << 25,
    };
    let mut out = Fields::new();
    let outcome = Decoder::new(4096).decode(&[0x82; 256], limits, &mut out);
    assert_eq!((outcome, out.len()), (Ok(Outcome::Complete), 256));
    out.clear();
    let outcome = Decoder::new(4096).decode(&[0x82; 257], limits, &mut out);
    assert_eq!((outcome, out.len()), (Ok(Outcome::TooLarge), 256));
    // fields of no name and no value cost 32 each
    out.clear();
    let limits = Limits {
        list_bytes: 32 * 5,
        fields: 256,
        discarded_bytes: 1 << 20,
    };
    let empty = hex("0000 00").repeat(6);
    assert_eq!(
        Decoder::new(4096).decode(&empty, limits, &mut out),
        Ok(Outcome::TooLarge)
    );
    assert_eq!(out.len(), 5);
}

#[test]
fn bombs_are_cut_far_over_the_limit() {
    let limits = Limits {
        list_bytes: 32 << 10,
        fields: 256,
        discarded_bytes: 1 << 20,
    };
    // CVE-2016-6581: one large entry, named over and over by one octet
    let mut bomb = hex("4001 61 7f811e"); // a value of 3968 octets
    bomb.extend(vec![b'x'; 3968]);
    bomb.extend(vec![0xbe; 1 << 20]);
    // HTTP/2 bomb: a megabyte of tiny fields
    for block in [bomb, vec![0x82; 1 << 20]] {
        let mut out = Fields::new();
        let seen = Decoder::new(4096).decode(&block, limits, &mut out);
        assert_eq!(seen, Err(HpackError::ListTooLarge));
        assert!(out.list_bytes() <= limits.list_bytes && out.len() <= limits.fields);
        assert!(
            out.arena().capacity() <= 128 << 10,
            "{}",
            out.arena().capacity()
        );
    }
}

/// What a decoder that keeps at most 200 bytes and 4 fields has of a block.
fn small(block: &[u8]) -> Vec<(String, String)> {
    let limits = Limits {
        list_bytes: 200,
        fields: 4,
        discarded_bytes: 1 << 20,
    };
    let mut out = Fields::new();
    let outcome = Decoder::new(4096).decode(block, limits, &mut out);
    assert_eq!(outcome, Ok(Outcome::TooLarge));
    assert!(out.arena().capacity() <= 8 << 10);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    out.iter().map(|f| (text(f.name), text(f.value))).collect()
}

/// A literal that is not indexed.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0];
    for text in [name, value] {
        integer::encode(text.len(), 7, 0, &mut block);
        block.extend_from_slice(text.as_bytes());
    }
    block
}

/// Issue 10, C2.
#[test]
fn what_ends_a_grpc_call_is_kept_wherever_it_stands() {
    let others = [0x82; 5];
    let status = literal("grpc-status", "5");
    let rest = [literal("x", "y"), literal("grpc-message", "not here")].concat();
    let kept = small(&[&others[..], &status, &rest].concat());
    let expect = [("grpc-status", "5"), ("grpc-message", "not here")];
    assert_eq!(kept[4..], pairs(&expect));
    // By bytes; and from the table.
    let large = literal("x", &"y".repeat(250));
    let indexed = [&[0x40][..], &status[1..]].concat();
    let kept = small(&[&large, &indexed[..]].concat());
    assert_eq!(kept, pairs(&expect[..1]));
    let kept = small(&[&indexed[..], &[0x82; 5], &[0xbe]].concat());
    assert_eq!(kept.last(), pairs(&expect[..1]).last());
    // A long message is cut, one that is no valid field is not kept, nor is a second one.
    let kept = small(
        &[
            &others[..],
            &literal("grpc-message", &"m".repeat(9000)),
            &status,
        ]
        .concat(),
    );
    let cut = "m".repeat(4096);
    let expect = [("grpc-message", &cut[..]), ("grpc-status", "5")];
    assert_eq!(kept[4..], pairs(&expect));
    let kept = small(
        &[
            &others[..],
            &literal("grpc-message", "a\r\nb"),
            &status,
            &status,
        ]
        .concat(),
    );
    assert_eq!(kept[4..], pairs(&[("grpc-status", "5")]));
}

mod parts {
    use proptest::prelude::*;

    use super::*;
    use crate::hpack::decode::Parts;

    const LIMITS: Limits = Limits {
        list_bytes: 300,
        fields: 6,
        discarded_bytes: 1 << 20,
    };

    /// A field by kind: indexed, or a literal of each form whose strings have these lengths.
    fn field(kind: u8, name: usize, value: usize, out: &mut Vec<u8>) {
        let first = match kind {
            0 => return out.push(0x82),
            1 => return out.push(0xbe), // the youngest entry, if there is one
            2 => 0x40,
            3 => 0x10,
            _ => 0,
        };
        out.push(first);
        for (len, byte) in [(name, b'n'), (value, b'v')] {
            let text = vec![byte; len];
            if kind == 4 {
                let mut coded = Vec::new();
                huffman::encode(&text, &mut coded);
                integer::encode(coded.len(), 7, 0x80, out);
                out.extend_from_slice(&coded);
            } else {
                integer::encode(len, 7, 0, out);
                out.extend_from_slice(&text);
            }
        }
    }

    fn in_parts(
        decoder: &mut Decoder,
        block: &[u8],
        sizes: &[usize],
        out: &mut Fields,
    ) -> Result<Outcome, HpackError> {
        let mut parts = Parts::default();
        let (mut waiting, mut rest) = (Vec::new(), block);
        for size in sizes {
            let (piece, tail) = rest.split_at((*size).min(rest.len()));
            rest = tail;
            waiting.extend_from_slice(piece);
            let used = decoder.decode_part(&mut parts, &waiting, LIMITS)?;
            waiting.drain(..used);
            // Two strings of the length that is waited for, and the octets before them.
            assert!(waiting.len() <= 2 * 4 * 300 + 20, "{}", waiting.len());
        }
        waiting.extend_from_slice(rest);
        decoder.decode_last(parts, &waiting, LIMITS, out)
    }

    proptest! {
        #[test]
        fn parts_of_any_size_give_the_list_and_the_table_of_the_whole(
            fields in proptest::collection::vec((0_u8..6, 0_usize..3, 0_usize..5000), 1..12),
            sizes in proptest::collection::vec(0_usize..1500, 0..30),
            update in any::<bool>(),
        ) {
            let mut block = Vec::new();
            if update {
                block.extend_from_slice(&[0x20, 0x3f, 0x61]); // 0, then 128
            }
            block.extend_from_slice(&[0x40, 1, b'a', 1, b'b']);
            for (kind, name, value) in fields {
                // Some names are long, some values short.
                let name = if name == 2 { value } else { name };
                let value = if value % 3 == 0 { value % 50 } else { value };
                field(kind, name, value, &mut block);
            }
            let (mut whole, mut list) = (Decoder::new(256), Fields::new());
            let expect = whole.decode(&block, LIMITS, &mut list);
            let (mut pieces, mut out) = (Decoder::new(256), Fields::new());
            let found = in_parts(&mut pieces, &block, &sizes, &mut out);
            prop_assert_eq!(found, expect);
            if expect.is_ok() {
                prop_assert_eq!(&out, &list);
                prop_assert_eq!(pieces.table.len(), whole.table.len());
                for age in 0..whole.table.len() {
                    let bytes = |table: &Table| table.get(age).map(|entry| entry.bytes.to_vec());
                    prop_assert_eq!(bytes(&pieces.table), bytes(&whole.table));
                }
            }
        }
    }

    #[test]
    fn a_block_that_ends_inside_a_skipped_string_is_truncated() {
        let mut block = Vec::new();
        field(5, 1, 5000, &mut block);
        for len in 1..block.len() {
            let mut decoder = Decoder::new(256);
            let found = in_parts(&mut decoder, &block[..len], &[100; 60], &mut Fields::new());
            assert_eq!(found, Err(HpackError::Truncated), "{len}");
        }
    }
}
