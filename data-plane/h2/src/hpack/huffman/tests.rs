use super::*;
use proptest::prelude::*;

fn coded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(text, &mut out);
    assert_eq!(out.len(), encoded_len(text));
    out
}

fn text_of(bytes: &[u8]) -> Result<Vec<u8>, HpackError> {
    let mut out = b"before".to_vec();
    decode(bytes, &mut out)?;
    Ok(out.split_off(6))
}

/// Bits as text, so that a case reads like the appendix.
fn from_bits(bits: &str) -> Vec<u8> {
    let bits: Vec<u8> = bits
        .bytes()
        .filter(|b| *b != b' ')
        .map(|b| b - b'0')
        .collect();
    assert_eq!(bits.len() % 8, 0);
    bits.chunks(8)
        .map(|octet| octet.iter().fold(0, |byte, bit| byte << 1 | bit))
        .collect()
}

#[test]
fn rfc7541_c_4_and_c_6_strings() {
    for (text, octets) in [
        ("www.example.com", &b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..]),
        ("no-cache", b"\xa8\xeb\x10\x64\x9c\xbf"),
        ("custom-key", b"\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f"),
        ("custom-value", b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf"),
        ("302", b"\x64\x02"),
        ("private", b"\xae\xc3\x77\x1a\x4b"),
        (
            "Mon, 21 Oct 2013 20:13:21 GMT",
            b"\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff",
        ),
        (
            "https://www.example.com",
            b"\x9d\x29\xad\x17\x18\x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3",
        ),
        ("gzip", b"\x9b\xd9\xab"),
        ("", b""),
    ] {
        assert_eq!(coded(text.as_bytes()), octets, "{text}");
        assert_eq!(text_of(octets).as_deref(), Ok(text.as_bytes()), "{text}");
    }
}

#[test]
fn appendix_b_spot_checks() {
    // (symbol, code as the appendix prints it)
    for (symbol, code) in [
        (0, "1111111111000"),
        (10, "111111111111111111111111111100"),
        (b'0', "00000"),
        (b'a', "00011"),
        (b' ', "010100"),
        (b':', "1011100"),
        (b'X', "11111100"),
        (b'\\', "1111111111111110000"),
        (127, "1111111111111111111111111100"),
        (249, "1111111111111111111111111110"),
        (255, "11111111111111111111101110"),
        (22, "111111111111111111111111111110"),
    ] {
        let padding = "1".repeat((8 - code.len() % 8) % 8);
        assert_eq!(
            coded(&[symbol]),
            from_bits(&format!("{code}{padding}")),
            "symbol {symbol}"
        );
    }
}

#[test]
fn the_code_is_complete_but_for_eos() {
    // Kraft: all codes and EOS (30 bits) fill the space exactly.
    let used: u64 = LENGTHS.iter().map(|len| 1_u64 << (30 - len)).sum();
    assert_eq!(used + 1, 1 << 30);
}

#[test]
fn every_pair_of_symbols_round_trips() {
    for first in 0..=255_u8 {
        for second in 0..=255_u8 {
            let text = [first, second];
            assert_eq!(text_of(&coded(&text)).as_deref(), Ok(&text[..]));
        }
    }
}

#[test]
fn bad_padding_and_eos_are_refused() {
    let eos = "1".repeat(30);
    for (why, bits) in [
        ("a whole octet of padding", "11111111".to_string()),
        (
            "padding of 8 bits after a symbol",
            "00011111 11111111".to_string(),
        ),
        ("padding of zeros", "00011000".to_string()),
        ("padding with a zero in it", "00011101".to_string()),
        (
            "padding of zeros behind eight octets",
            format!("{}00011000", "00011000".repeat(10)),
        ),
        ("EOS alone", format!("{eos}11")),
        ("EOS behind a symbol", format!("00011{eos}11111")),
        (
            "EOS amid symbols",
            format!("00011{eos}{}", "00011".repeat(9)),
        ),
        ("a long code cut off", "11111111 11111111".to_string()),
        (
            "a long code cut off behind symbols",
            format!("{}{}", "00011".repeat(16), "1".repeat(16)),
        ),
    ] {
        assert_eq!(
            text_of(&from_bits(&bits)),
            Err(HpackError::BadHuffman),
            "{why}"
        );
    }
    // every count of ones from 1 to 7 is fine
    assert_eq!(text_of(&from_bits("00011111")).as_deref(), Ok(&b"a"[..]));
    assert_eq!(text_of(&from_bits("01110111")).as_deref(), Ok(&b"7"[..]));
    assert_eq!(text_of(&from_bits("1011100 1")).as_deref(), Ok(&b":"[..]));
}

/// One bit after the other, with no table but the codes themselves.
fn slow_decode(bytes: &[u8]) -> Result<Vec<u8>, HpackError> {
    let (mut out, mut code, mut len) = (Vec::new(), 0_u32, 0_u8);
    for bit in bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1))
    {
        (code, len) = (code << 1 | u32::from(bit), len + 1);
        let symbol = (0..=255_u8)
            .find(|s| LENGTHS[usize::from(*s)] == len && CODES[usize::from(*s)] == code);
        match symbol {
            Some(symbol) => {
                out.push(symbol);
                (code, len) = (0, 0);
            }
            None if len == 30 => return Err(HpackError::BadHuffman),
            None => {}
        }
    }
    let is_padding = len < 8 && code == (1 << len) - 1;
    if is_padding {
        Ok(out)
    } else {
        Err(HpackError::BadHuffman)
    }
}

proptest! {
    #[test]
    fn round_trip(text: Vec<u8>) {
        prop_assert_eq!(text_of(&coded(&text)), Ok(text));
    }

    #[test]
    fn round_trip_of_header_like_text(text in "[ -~]{0,300}") {
        prop_assert_eq!(text_of(&coded(text.as_bytes())), Ok(text.into_bytes()));
    }

    #[test]
    fn any_octets_give_what_the_plain_reading_gives(
        bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xff), 0xf0_u8..], 0..40)
    ) {
        prop_assert_eq!(text_of(&bytes), slow_decode(&bytes));
    }
}
