//! Frames that are invalid whatever the state of the streams, each with its error (RFC 9113 §4 –
//! §6).

use super::pair::{Seen, request};
use super::script::*;
use crate::frame::{PREFACE, flag, kind};
use crate::{Config, ErrorCode};

const PE: ErrorCode = ErrorCode::PROTOCOL_ERROR;
const FS: ErrorCode = ErrorCode::FRAME_SIZE_ERROR;
const CE: ErrorCode = ErrorCode::COMPRESSION_ERROR;
const FC: ErrorCode = ErrorCode::FLOW_CONTROL_ERROR;

/// With stream 1 open, the frames end the connection with that code; the last id is in the GOAWAY,
/// and nothing that follows in the same read is looked at.
fn ends_with(what: &str, frames: &[Vec<u8>], code: ErrorCode) {
    let mut script = Script::server();
    let open = script.headers(1, &request(), 0);
    script.send(&[open]);
    let mut all = frames.to_vec();
    for kind in 0..12 {
        all.push(raw(kind, 0xff, 1, &[0; 8]));
    }
    assert_eq!(script.send(&all), [Seen::Error(code)], "{what}");
    assert_eq!(script.answers(), [format!("GOAWAY 1 {code}")], "{what}");
    assert_eq!(script.send(&[ping(b"too late")]), [Seen::Error(code)]);
    assert_eq!(script.answers(), [""; 0], "{what}: silence after GOAWAY");
    assert_eq!(script.side.conn.live_streams(), 0);
    assert_eq!(script.side.conn.deadline(), None);
}

#[test]
fn malformed_frames_end_the_connection() {
    let block = Script::client().block(&request());
    let long = vec![0; 16_385];
    #[rustfmt::skip]
    let table: &[(&str, Vec<u8>, ErrorCode)] = &[
        ("§4.2 DATA too long", data(1, &long, 0), FS),
        ("§4.2 unknown frame too long", raw(0x42, 0, 0, &long), FS),
        ("§6.1 DATA on stream 0", data(0, b"x", 0), PE),
        ("§6.1 padding longer than frame", data(1, &[5, 1, 2], PADDED), PE),
        ("§6.1 padding as long as frame", data(1, &[3, 0, 0], PADDED), PE),
        ("§6.1 padded without length", data(1, &[], PADDED), FS),
        ("§6.2 HEADERS on stream 0", raw(kind::HEADERS, EH, 0, &block), PE),
        ("§6.2 padding over the block", raw(kind::HEADERS, EH | PADDED, 3, &[9, 0x82]), PE),
        ("§6.2 padded without length", raw(kind::HEADERS, EH | PADDED, 3, &[]), FS),
        ("§6.2 priority cut off", raw(kind::HEADERS, EH | flag::PRIORITY, 3, &[0; 4]), FS),
        ("§6.3 PRIORITY on stream 0", raw(kind::PRIORITY, 0, 0, &[0; 5]), PE),
        ("§6.3 PRIORITY of 4 bytes, idle", raw(kind::PRIORITY, 0, 9, &[0; 4]), FS),
        ("§6.4 RST on stream 0", rst(0, PE), PE),
        ("§6.4 RST on idle stream", rst(3, PE), PE),
        ("§6.4 RST of 3 bytes", raw(kind::RST_STREAM, 0, 1, &[0; 3]), FS),
        ("§6.5 SETTINGS on a stream", raw(kind::SETTINGS, 0, 1, &[]), PE),
        ("§6.5 SETTINGS of 5 bytes", raw(kind::SETTINGS, 0, 0, &[0; 5]), FS),
        ("§6.5 ACK with payload", raw(kind::SETTINGS, flag::ACK, 0, &[0; 6]), FS),
        ("§6.5.2 ENABLE_PUSH 2", settings(&[(2, 2)]), PE),
        ("§6.5.2 window over 2^31-1", settings(&[(4, 1 << 31)]), FC),
        ("§6.5.2 frame size below 2^14", settings(&[(5, 16_383)]), PE),
        ("§6.5.2 frame size 0", settings(&[(5, 0)]), PE),
        ("§6.5.2 frame size over 2^24-1", settings(&[(5, 1 << 24)]), PE),
        ("RFC 8441 §3 value 2", settings(&[(8, 2)]), PE),
        ("RFC 8441 §3 taken back", settings(&[(8, 1), (8, 0)]), PE),
        ("§6.6 PUSH_PROMISE", raw(kind::PUSH_PROMISE, EH, 1, &[0, 0, 0, 2, 0x82]), PE),
        ("§6.7 PING on a stream", raw(kind::PING, 0, 1, &[0; 8]), PE),
        ("§6.7 PING of 7 bytes", raw(kind::PING, 0, 0, &[0; 7]), FS),
        ("§6.8 GOAWAY on a stream", raw(kind::GOAWAY, 0, 1, &[0; 8]), PE),
        ("§6.8 GOAWAY of 7 bytes", raw(kind::GOAWAY, 0, 0, &[0; 7]), FS),
        ("§6.9 WINDOW_UPDATE of 3 bytes", raw(kind::WINDOW_UPDATE, 0, 1, &[0; 3]), FS),
        ("§6.9 connection by 0", window_update(0, 0), PE),
        ("§6.9 reserved bit is no value", window_update(0, 1 << 31), PE),
        ("§6.9.1 connection over 2^31-1", window_update(0, (1 << 31) - 1), FC),
        ("§6.9 idle stream", window_update(3, 1), PE),
        ("§6.10 CONTINUATION alone", raw(kind::CONTINUATION, EH, 1, &block), PE),
        ("§6.10 CONTINUATION on stream 0", raw(kind::CONTINUATION, EH, 0, &block), PE),
        ("§5.1 DATA on idle stream", data(3, b"x", 0), PE),
        ("§5.1.1 even id", raw(kind::HEADERS, EH, 2, &block), PE),
        ("RFC 7541 §2.3.3 bad index", raw(kind::HEADERS, EH, 1, &[0xff, 0xff, 1]), CE),
    ];
    for (what, frame, code) in table {
        ends_with(what, std::slice::from_ref(frame), *code);
    }
}

#[test]
fn nothing_may_come_inside_a_header_block() {
    let block = Script::client().block(&request());
    let begin = raw(kind::HEADERS, 0, 3, &block[..4]);
    let end = |stream| raw(kind::CONTINUATION, EH, stream, &block[4..]);
    for (what, frame) in [
        ("DATA", data(3, b"x", 0)),
        ("HEADERS", raw(kind::HEADERS, EH, 5, &block)),
        ("PING", ping(b"12345678")),
        ("WINDOW_UPDATE", window_update(0, 1)),
        ("unknown", raw(0x77, 0, 3, b"x")),
        ("CONTINUATION of another stream", end(1)),
    ] {
        ends_with(what, &[begin.clone(), frame], PE);
    }
}

#[test]
fn a_block_may_be_cut_anywhere_and_padded() {
    let block = Script::client().block(&request());
    for cut in 0..=block.len() {
        for second in [cut, usize::midpoint(cut, block.len())] {
            let mut script = Script::server();
            let padded = [&[3], &block[..cut], &[0; 3]].concat();
            let seen = script.send(&[
                raw(kind::HEADERS, ES | PADDED, 1, &padded),
                raw(kind::CONTINUATION, 0, 1, &block[cut..second]),
                raw(kind::CONTINUATION, EH, 1, &block[second..]),
            ]);
            assert!(
                matches!(&seen[..], [Seen::Headers { end: true, fields, .. }] if fields.len() == 6),
                "{cut}: {seen:?}"
            );
        }
    }
}

#[test]
fn priority_fields_are_passed_over() {
    let mut script = Script::server();
    let block = script.block(&request());
    let payload = [&[2, 0x80, 0, 0, 1, 255], &block[..], &[0; 2]].concat();
    let flags = EH | ES | PADDED | flag::PRIORITY;
    let seen = script.send(&[
        raw(kind::PRIORITY, 0, 9, &[0, 0, 0, 9, 0]),
        raw(kind::HEADERS, flags, 1, &payload),
        raw(kind::PRIORITY, 0, 1, &[0; 5]),
    ]);
    assert!(matches!(seen[..], [Seen::Headers { stream: 1, .. }]));
    assert_eq!(script.answers(), [""; 0]);
}

#[test]
fn wrong_priority_length_ends_its_stream() {
    let mut script = Script::server();
    let open = script.headers(1, &request(), 0);
    let seen = script.send(&[open, raw(kind::PRIORITY, 0, 1, &[0; 4])]);
    assert!(matches!(
        seen[1],
        Seen::Reset {
            stream: 1,
            code: FS,
            ..
        }
    ));
    assert_eq!(script.answers(), ["RST 1 FRAME_SIZE_ERROR"]);
}

#[test]
fn what_is_unknown_is_ignored() {
    // RFC 9113 §5.5 and draft-bishop GREASE: frames, flags, settings and error codes.
    let mut script = Script::server();
    let open = script.headers(1, &request(), 0xf0 & !flag::PRIORITY);
    let seen = script.send(&[
        raw(0x0b, 0xff, 0, b"grease"),
        raw(0xff, 0xff, 0x8000_0001, &[1; 300]),
        settings(&[(0x0a0a, 7), (0xffff, u32::MAX), (9, 1)]),
        open,
        data(1, b"x", 0xf6),
        rst(1, ErrorCode(0xdead_beef)),
    ]);
    assert!(
        matches!(
            &seen[..],
            [
                Seen::Headers { .. },
                Seen::Data { .. },
                Seen::Reset {
                    code: ErrorCode(0xdead_beef),
                    ..
                }
            ]
        ),
        "{seen:?}"
    );
    assert_eq!(script.answers(), ["SETTINGS ACK"]);
}

#[test]
fn reserved_bits_are_masked() {
    const R: u32 = 1 << 31;
    let mut script = Script::server();
    let mut open = script.headers(1, &request(), 0);
    open[5] |= 0x80;
    let seen = script.send(&[
        open,
        data(1 | R, b"x", 0),
        window_update(1 | R, 5 | R),
        window_update(R, 5 | R),
        goaway(1 | R, ErrorCode::NO_ERROR, b""),
        rst(1 | R, ErrorCode::CANCEL),
    ]);
    assert!(
        matches!(
            seen[..],
            [
                Seen::Headers { stream: 1, .. },
                Seen::Data { stream: 1, .. },
                Seen::GoAway { .. },
                Seen::Reset { stream: 1, .. }
            ]
        ),
        "{seen:?}"
    );
}

#[test]
fn preface_and_first_settings_are_demanded() {
    let hello = |bytes: &[u8]| {
        let mut script = Script::server_before_hello(Config::default());
        script.send(&[bytes.to_vec()])
    };
    assert_eq!(hello(b"GET / HTTP/1.1\r\n"), [Seen::Error(PE)]);
    assert_eq!(hello(&PREFACE[..23]), []);
    let after = |frame: Vec<u8>| hello(&[PREFACE.to_vec(), frame].concat());
    assert_eq!(after(ping(b"12345678")), [Seen::Error(PE)]);
    assert_eq!(after(settings_ack()), [Seen::Error(PE)]);
    assert_eq!(after(settings(&[])), []);
}

#[test]
fn goaway_names_the_stream_that_broke_the_connection() {
    // Otherwise the client would send the same request again, for ever.
    let mut script = Script::server();
    let one = script.headers(1, &request(), ES);
    let bad = raw(kind::HEADERS, EH, 3, &[0x80]);
    let seen = script.send(&[one, bad]);
    assert_eq!(
        seen.last(),
        Some(&Seen::Error(ErrorCode::COMPRESSION_ERROR))
    );
    assert_eq!(script.answers(), ["GOAWAY 3 COMPRESSION_ERROR"]);
}
