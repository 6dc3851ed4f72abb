use super::*;
use crate::hpack::tests::{WIDE, hex, list};
use crate::hpack::{Decoder, Outcome};

fn encode(encoder: &mut Encoder, fields: &Fields) -> Vec<u8> {
    let mut out = Vec::new();
    encoder.encode(fields, &mut out);
    out
}

/// The headers of a gRPC call; `call` makes what differs from call to call.
fn request(call: usize) -> Fields {
    let trace = format!("00-{call:032x}-{call:016x}-01");
    list(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/heddle.echo.v1.Echo/Unary"),
        (":authority", "echo.default"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.85.0"),
        ("traceparent", &trace),
        ("grpc-timeout", &format!("{}u", 900_000 + call % 1000)),
        ("x-tenant", "blue"),
        ("authorization", "Bearer abcdefghijklmnopqrstuvwxyz"),
    ])
}

fn table_names(encoder: &Encoder) -> Vec<String> {
    let entries = (0..encoder.table.len()).filter_map(|age| encoder.table.get(age));
    entries
        .map(|e| String::from_utf8_lossy(e.name()).into_owned())
        .collect()
}

#[test]
fn fields_of_the_static_table_take_one_octet() {
    let fields = list(&[
        (":method", "GET"),
        (":method", "POST"),
        (":path", "/"),
        (":scheme", "http"),
    ]);
    assert_eq!(encode(&mut Encoder::new(), &fields), hex("8283 8486"));
    let statuses = list(&[
        (":status", "200"),
        (":status", "404"),
        ("accept-encoding", "gzip, deflate"),
    ]);
    assert_eq!(encode(&mut Encoder::new(), &statuses), hex("888d 90"));
}

#[test]
fn what_repeats_is_indexed_at_its_second_sight() {
    let mut encoder = Encoder::new();
    let fields = list(&[("x-tenant", "blue")]);
    let first = encode(&mut encoder, &fields);
    assert_eq!(first, [&[0x00, 8][..], b"x-tenant", &[4], b"blue"].concat());
    let second = encode(&mut encoder, &fields);
    assert_eq!(second[0], 0x40, "added");
    assert_eq!(encode(&mut encoder, &fields), hex("be"));
}

#[test]
fn a_typical_call_shrinks_to_what_differs() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    let mut block = Vec::new();
    for call in 0..1000 {
        block = encode(&mut encoder, &request(call));
        let mut got = Fields::new();
        assert_eq!(
            decoder.decode(&block, WIDE, &mut got),
            Ok(Outcome::Complete)
        );
        assert_eq!(got.get(b"traceparent"), request(call).get(b"traceparent"));
    }
    // eight indexed octets; traceparent 1+1+11+1+55, timeout 1+1+12+1+7, authorization 2+1+33
    assert_eq!(block.len(), 8 + 69 + 22 + 36);
    let mut names = table_names(&encoder);
    names.sort_unstable();
    let expect = [
        ":authority",
        ":path",
        "content-type",
        "te",
        "user-agent",
        "x-tenant",
    ];
    assert_eq!(names, expect);
}

#[test]
fn credentials_are_never_indexed() {
    let long = "x".repeat(40);
    for (name, value, never) in [
        ("authorization", long.as_str(), true),
        ("proxy-authorization", &long, true),
        ("set-cookie", &long, true),
        ("x-api-key", &long, true),
        ("cookie", "id=1", true),
        ("cookie", &long, false),
    ] {
        let mut encoder = Encoder::new();
        let blocks: Vec<_> = (0..3)
            .map(|_| encode(&mut encoder, &list(&[(name, value)])))
            .collect();
        assert_eq!(
            blocks.iter().all(|block| block[0] & 0xf0 == 0x10),
            never,
            "{name}"
        );
        assert_eq!(encoder.table.len(), usize::from(!never), "{name}");
    }
    // and so is whatever the caller marks, even if it stands in the static table
    let mut encoder = Encoder::new();
    let mut fields = Fields::new();
    fields.push_sensitive(b":path", b"/");
    assert_eq!(encode(&mut encoder, &fields), hex("1401 2f"));
}

#[test]
fn many_callers_cannot_thrash_the_table() {
    // 500 callers with a name of their own: each repeats, none fits for long
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    let mut added = 0;
    for call in 0..20_000 {
        let user = format!("user-{}", call % 500);
        let fields = list(&[("x-user", &user), ("x-tenant", "blue")]);
        let block = encode(&mut encoder, &fields);
        added += usize::from(block[0] & 0xc0 == 0x40);
        let mut got = Fields::new();
        decoder.decode(&block, WIDE, &mut got).expect("legal");
        assert_eq!(got, fields);
    }
    assert!(added < 1000, "{added} of 20000 calls changed the table");
    assert!(table_names(&encoder).contains(&"x-tenant".to_string()));
}

#[test]
fn a_field_over_half_the_table_is_not_added() {
    let mut encoder = Encoder::new();
    let value = "v".repeat(2048);
    for _ in 0..3 {
        encode(
            &mut encoder,
            &list(&[("x-large", &value), ("x-small", "1")]),
        );
    }
    assert_eq!(table_names(&encoder), ["x-small"]);
}

#[test]
fn a_dynamic_name_is_not_sent_again() {
    let mut encoder = Encoder::new();
    for _ in 0..2 {
        encode(&mut encoder, &list(&[("x-tenant", "blue")]));
    }
    let block = encode(&mut encoder, &list(&[("x-tenant", "red")]));
    assert_eq!(block, [&hex("0f 2f 03")[..], b"red"].concat()); // index 62 in four bits
}

#[test]
fn changes_of_the_peers_size_are_told_once_smallest_first() {
    // 3fe11f = 4096, 3fe107 = 1024, 20 = 0
    for (why, settings, expect) in [
        ("nothing new", vec![4096], ""),
        ("more than we use", vec![65_536], ""),
        ("far more than we use", vec![u32::MAX], ""),
        ("less", vec![1024], "3fe107"),
        ("nothing", vec![0], "20"),
        ("down and up", vec![0, 4096], "20 3fe11f"),
        ("down, up, down", vec![1024, 0, 1024], "20 3fe107"),
        (
            "up and down again, as a strict peer may await",
            vec![8192, 4096],
            "3fe11f",
        ),
        ("a flood of changes", [0, 4096].repeat(1000), "20 3fe11f"),
    ] {
        let mut encoder = Encoder::new();
        for size in settings {
            encoder.set_peer_table_size(size);
        }
        let block = encode(&mut encoder, &list(&[(":method", "GET")]));
        assert_eq!(block, [hex(expect), hex("82")].concat(), "{why}");
        assert_eq!(
            encode(&mut encoder, &list(&[(":method", "GET")])),
            hex("82"),
            "{why}: once"
        );
    }
}

#[test]
fn a_peer_without_a_table_is_served() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(0));
    encoder.set_peer_table_size(0);
    for call in 0..10 {
        let mut got = Fields::new();
        let block = encode(&mut encoder, &request(call));
        assert_eq!(
            decoder.decode(&block, WIDE, &mut got),
            Ok(Outcome::Complete)
        );
        assert_eq!(got.len(), request(call).len());
    }
    assert_eq!(encoder.table.len(), 0);
}

#[test]
fn the_index_stays_right_when_its_numbers_wrap() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    let mut added = 0_u32;
    for value in 0..70_000 {
        let fields = list(&[("x-slow", &format!("{value}"))]);
        // seen, added, found three times: worth its place
        for _ in 0..5 {
            let block = encode(&mut encoder, &fields);
            added += u32::from(block[0] & 0xc0 == 0x40);
            let mut got = Fields::new();
            decoder.decode(&block, WIDE, &mut got).expect("legal");
            assert_eq!(got, fields);
        }
    }
    assert!(added > u32::from(u16::MAX), "{added}");
}

#[test]
fn memory_is_bounded_whatever_is_sent() {
    // 64 names of a mebibyte (CVE-2022-41717) and many small ones
    let mut encoder = Encoder::new();
    let mut out = Vec::new();
    for nth in 0..64 {
        let mut name = vec![b'n'; 1 << 20];
        name[0] = b'a' + nth % 26;
        let mut fields = Fields::new();
        fields.push(&name, b"v");
        encoder.encode(&fields, &mut out);
        encoder.encode(&fields, &mut out);
        out.clear();
    }
    assert_eq!(encoder.table.len(), 0);
    for nth in 0..10_000 {
        let fields = list(&[(&format!("x-{nth}"), "v")]);
        for _ in 0..3 {
            encode(&mut encoder, &fields);
        }
        assert!(encoder.table.size() <= 4096);
    }
}
