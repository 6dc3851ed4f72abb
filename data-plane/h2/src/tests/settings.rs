//! SETTINGS in both directions (RFC 9113 §6.5).

use std::time::Duration;

use super::pair::{Pair, Seen, list, request};
use super::script::*;
use crate::frame::PREFACE;
use crate::{Config, ErrorCode, OpenError};

#[test]
fn both_sides_say_hello_at_once() {
    let mut client = Script::client_before_hello(Config::default());
    assert!(client.side.conn.output().starts_with(PREFACE));
    assert_eq!(client.answers(), ["SETTINGS", "WINDOW 0 983041"]);
    let mut server = Script::server_before_hello(Config::default());
    assert_eq!(server.answers(), ["SETTINGS", "WINDOW 0 983041"]);
    assert_eq!(client.send(&[settings(&[]), settings_ack()]), []);
    assert_eq!(client.answers(), ["SETTINGS ACK"]);
}

#[test]
fn settings_unacknowledged_time_out() {
    let mut script = Script::server_before_hello(Config::default());
    script.send(&[PREFACE.to_vec(), settings(&[])]);
    script.answers();
    let deadline = script.side.conn.deadline().unwrap();
    assert_eq!(deadline - script.now, Duration::from_secs(10));
    script.pass(Duration::from_millis(9_999));
    assert_eq!(script.answers(), [""; 0]);
    script.pass(Duration::from_millis(1));
    assert_eq!(script.answers(), ["GOAWAY 0 SETTINGS_TIMEOUT"]);
    let mut script = Script::server();
    assert_eq!(script.side.conn.deadline(), None);
    script.pass(Duration::from_secs(1000));
    assert_eq!(script.answers(), [""; 0]);
}

#[test]
fn slots_follow_the_peers_limit() {
    let mut script = Script::client_before_hello(Config::default());
    assert_eq!(
        script.side.conn.open_slots(),
        100,
        "until its SETTINGS come"
    );
    script.send(&[settings(&[])]);
    assert!(script.side.conn.open_slots() > 1_000_000, "no limit given");
    script.send(&[settings(&[(3, 2)])]);
    assert_eq!(script.side.seen.len(), 0);
    let conn = &mut script.side.conn;
    let first = conn.open(&request(), 0, true).unwrap();
    conn.open(&request(), 0, true).unwrap();
    assert_eq!(conn.open_slots(), 0);
    assert_eq!(conn.open(&request(), 0, true), Err(OpenError::Full));
    conn.reset(first, ErrorCode::CANCEL);
    assert_eq!(conn.open_slots(), 1);
    script.send(&[settings(&[(3, 0)])]);
    assert_eq!(
        script.side.conn.open_slots(),
        0,
        "0 is legal, and so is less than are open"
    );
    script.send(&[settings(&[(3, 1_000_000)])]);
    assert_eq!(script.side.conn.open_slots(), 999_999);
}

#[test]
fn changes_are_told() {
    let mut script = Script::client_before_hello(Config::default());
    let _ = script
        .side
        .take(&settings(&[(8, 1), (6, 9000)]), script.now);
    assert_eq!(script.side.seen, [Seen::Settings]);
    assert!(script.side.conn.peer_connect_protocol());
    assert_eq!(script.side.conn.peer_header_list_bytes(), Some(9000));
}

#[test]
fn servers_may_not_offer_push() {
    let mut script = Script::client_before_hello(Config::default());
    let error = Seen::Error(ErrorCode::PROTOCOL_ERROR);
    assert_eq!(script.send(&[settings(&[(2, 1)])]), [error]);
    let mut script = Script::server();
    assert_eq!(script.send(&[settings(&[(2, 1)]), settings(&[(2, 0)])]), []);
}

#[test]
fn table_size_goes_down_and_up_again() {
    // RFC 7541 §4.2: the smallest size in between is sent, then the last; once.
    let mut script = Script::server();
    script.send(&[settings(&[(1, 4096)]), settings(&[(1, 0), (1, 8192)])]);
    let open = script.headers(1, &request(), ES);
    script.send(&[open]);
    let reply = list(&[(":status", "200")]);
    script
        .side
        .conn
        .headers(crate::StreamId(1), &reply, true)
        .unwrap();
    let wire = script.side.conn.output();
    let at = wire.len() - 5;
    assert_eq!(wire[at..], [0x20, 0x3f, 0xe1, 0x1f, 0x88]);
    // A size of 2^32-1 makes us keep no more.
    script.answers();
    script.send(&[settings(&[(1, u32::MAX)])]);
    assert_eq!(script.answers(), ["SETTINGS ACK"]);
}

#[test]
fn larger_frames_are_taken_and_sent_when_agreed() {
    let large = Config {
        max_frame_size: 100_000,
        grow_windows: false,
        stream_window: 1 << 20,
        ..Config::default()
    };
    let mut pair = Pair::with(large.clone(), large);
    pair.run();
    let stream = pair.open(false);
    pair.server.news();
    pair.client.conn.data(stream, &[1; 65_000], false).unwrap();
    pair.run();
    assert_eq!(pair.server.news().len(), 1, "one frame");
}

#[test]
fn a_frame_that_never_ends_times_out() {
    let block = Script::client().block(&request());
    let whole = raw(1, EH | ES, 1, &block);
    let begin = raw(1, 0, 1, &block[..5]);
    for start in [&whole[..4], &whole[..12], &begin[..]] {
        let mut script = Script::server();
        script.send(&[start.to_vec()]);
        let deadline = script.side.conn.deadline().unwrap();
        assert_eq!(deadline - script.now, Duration::from_secs(10));
        script.pass(Duration::from_secs(10));
        assert!(script.answers()[0].ends_with("ENHANCE_YOUR_CALM"));
    }
    // One that does end clears it; a drip of CONTINUATION does not.
    let mut script = Script::server();
    script.send(&[whole[..12].to_vec()]);
    script.send(&[whole[12..].to_vec()]);
    assert_eq!(script.side.conn.deadline(), None);
    let mut script = Script::server();
    script.send(&[begin]);
    for _ in 0..9 {
        script.pass(Duration::from_secs(1));
        script.send(&[raw(9, 0, 1, &[])]);
        assert_eq!(script.answers(), [""; 0]);
    }
    script.pass(Duration::from_secs(1));
    assert_eq!(script.answers().len(), 1);
}
