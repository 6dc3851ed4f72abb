//! Both directions together: what an encoder sends, a decoder reads back.

use proptest::prelude::*;

use super::{Decoder, Encoder, Limits, Outcome};
use crate::Fields;

/// Limits that no test list reaches.
pub(super) const WIDE: Limits = Limits {
    list_bytes: 1 << 20,
    fields: 10_000,
    discarded_bytes: 1 << 25,
};

pub(super) fn list(fields: &[(&str, &str)]) -> Fields {
    let mut made = Fields::new();
    for (name, value) in fields {
        made.push(name.as_bytes(), value.as_bytes());
    }
    made
}

pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|byte| u8::try_from(char::from(byte).to_digit(16).expect("hex")).expect("digit"))
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn strip_marks(fields: &Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
    fields
        .iter()
        .map(|f| (f.name.to_vec(), f.value.to_vec()))
        .collect()
}

/// One step of a connection's life.
#[derive(Clone, Debug)]
enum Step {
    Block(Vec<(String, String, bool)>),
    PeerSetting(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few names and values, so that tables are hit, thrashed and evicted.
    let name = prop_oneof![
        5 => "[a-d]",
        2 => Just(":path".to_string()),
        2 => Just(":status".to_string()),
        1 => Just("cookie".to_string()),
        1 => Just("authorization".to_string()),
        1 => Just("date".to_string()),
        1 => "[a-z0-9-]{0,20}",
    ];
    let value = prop_oneof![4 => "[ab]{1}", 2 => "[a-c]{30}", 1 => ".{0,200}", 1 => "[ab]{900}"];
    let field = (name, value, proptest::bool::weighted(0.1));
    let block = proptest::collection::vec(field, 0..12).prop_map(Step::Block);
    let size = prop_oneof![Just(0), Just(4096), Just(8192), Just(u32::MAX), 0_u32..5000];
    let step = prop_oneof![8 => block, 1 => size.prop_map(Step::PeerSetting)];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_in_step(steps in steps()) {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        for step in steps {
            match step {
                Step::PeerSetting(size) => encoder.set_peer_table_size(size),
                Step::Block(fields) => {
                    let mut sent = Fields::new();
                    for (name, value, sensitive) in &fields {
                        match sensitive {
                            true => sent.push_sensitive(name.as_bytes(), value.as_bytes()),
                            false => sent.push(name.as_bytes(), value.as_bytes()),
                        }
                    }
                    let (mut block, mut got) = (Vec::new(), Fields::new());
                    encoder.encode(&sent, &mut block);
                    prop_assert_eq!(decoder.decode(&block, WIDE, &mut got), Ok(Outcome::Complete));
                    prop_assert_eq!(strip_marks(&got), strip_marks(&sent));
                    for (out, field) in sent.iter().zip(got.iter()) {
                        prop_assert!(field.sensitive || !out.sensitive);
                    }
                }
            }
        }
    }

    /// A relay: what one connection decoded, another encodes, with the hashes that it brought.
    #[test]
    fn a_relayed_list_arrives_unchanged(steps in steps()) {
        let (mut first, mut last) = (Encoder::new(), Encoder::new());
        let (mut middle, mut end) = (Decoder::new(4096), Decoder::new(4096));
        for step in steps {
            let Step::Block(fields) = step else { continue };
            let fields: Vec<_> = fields.iter().map(|(n, v, _)| (n.as_str(), v.as_str())).collect();
            let sent = list(&fields);
            let (mut block, mut relayed, mut got) = (Vec::new(), Fields::new(), Fields::new());
            first.encode(&sent, &mut block);
            prop_assert!(middle.decode(&block, WIDE, &mut relayed).is_ok());
            relayed.set(b"heddle-to", b"default/echo/1");
            relayed.remove(b"a");
            block.clear();
            last.encode(&relayed, &mut block);
            prop_assert!(end.decode(&block, WIDE, &mut got).is_ok());
            prop_assert_eq!(strip_marks(&got), strip_marks(&relayed));
        }
    }

    #[test]
    fn any_octets_are_decoded_or_refused(
        blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..8)
    ) {
        let limits = Limits { list_bytes: 500, fields: 8, discarded_bytes: 16_000 };
        let mut decoder = Decoder::new(4096);
        let mut out = Fields::new();
        for block in blocks {
            out.clear();
            let outcome = decoder.decode(&block, limits, &mut out);
            prop_assert!(out.list_bytes() <= 500 && out.len() <= 8);
            if outcome.is_err() {
                break;
            }
        }
    }
}

#[test]
fn sensitive_stays_sensitive_over_a_relay_and_in_trailers() {
    let mut sent = Fields::new();
    sent.push(b"grpc-status", b"0");
    sent.push_sensitive(b"session-proof", b"0123456789abcdef0123456789abcdef");
    let (mut first, mut second) = (Encoder::new(), Encoder::new());
    let (mut middle, mut end) = (Decoder::new(4096), Decoder::new(4096));
    for _ in 0..4 {
        let (mut block, mut relayed, mut got) = (Vec::new(), Fields::new(), Fields::new());
        first.encode(&sent, &mut block);
        middle.decode(&block, WIDE, &mut relayed).expect("legal");
        block.clear();
        second.encode(&relayed, &mut block);
        end.decode(&block, WIDE, &mut got).expect("legal");
        assert_eq!(got, sent);
        assert!(got.iter().any(|field| field.sensitive));
    }
}
