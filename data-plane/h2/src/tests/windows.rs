//! Flow control (RFC 9113 §5.2, §6.9): what may be sent, what is credited, and that no credit is
//! lost.

use std::time::Duration;

use super::pair::{Pair, Seen, request, response, trailers};
use super::script::*;
use crate::{Config, ErrorCode, Initiator, StreamId};

const FC: ErrorCode = ErrorCode::FLOW_CONTROL_ERROR;
const WINDOW: u32 = 65_536;

/// A server with stream 1 open, that does not release what it gets.
fn holding(config: Config) -> Script {
    let mut script = Script::server_with(config);
    script.side.releases = false;
    let open = script.headers(1, &request(), 0);
    script.send(&[open]);
    script
}

fn fixed() -> Config {
    Config {
        grow_windows: false,
        ..Config::default()
    }
}

/// DATA frames of so many bytes in all.
fn bulk(stream: u32, mut bytes: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while bytes > 0 {
        let n = bytes.min(16_384);
        frames.push(data(stream, &vec![7; n], 0));
        bytes -= n;
    }
    frames
}

#[test]
fn stream_credit_follows_release_and_is_batched() {
    let mut script = holding(fixed());
    script.send(&bulk(1, 40_000));
    assert_eq!(script.answers(), [""; 0]);
    script.side.conn.release(StreamId(1), 30_000);
    assert_eq!(script.answers(), [""; 0], "less than half");
    script.side.conn.release(StreamId(1), 10_000);
    assert_eq!(script.answers(), ["WINDOW 1 40000"]);
    script.side.conn.release(StreamId(1), 10_000);
    assert_eq!(script.answers(), [""; 0], "no more than was received");
}

#[test]
fn connection_credit_comes_on_receipt_whoever_holds_the_data() {
    let mut script = holding(Config {
        connection_window: 100_000,
        ..fixed()
    });
    let mut total = 0u32;
    for stream in [3, 5, 7, 9] {
        let open = script.headers(stream, &request(), 0);
        script.send(&[open]);
        script.send(&bulk(stream, 50_000));
        total += 50_000;
    }
    let credited: u32 = script
        .answers()
        .iter()
        .filter_map(|line| line.strip_prefix("WINDOW 0 ")?.parse::<u32>().ok())
        .sum();
    assert!(
        total - credited < 50_000,
        "one stalled stream stops no other"
    );
}

#[test]
fn more_than_the_window_is_an_error() {
    let mut script = holding(fixed());
    assert_eq!(script.send(&bulk(1, 65_536)).len(), 4);
    let error = Seen::Reset {
        stream: 1,
        code: FC,
        unprocessed: false,
        by: Initiator::Local,
    };
    assert_eq!(script.send(&[data(1, b"", 0), data(1, b"x", 0)]), [error]);
    assert_eq!(script.answers(), ["RST 1 FLOW_CONTROL_ERROR"]);

    let mut script = holding(Config {
        connection_window: 65_535,
        stream_window: 1 << 20,
        ..fixed()
    });
    // Half the connection's window is credited at once, so only a burst beyond all of it is over.
    let seen = script.send(&bulk(1, 200_000));
    assert_eq!(seen.len(), 13, "credited as it comes");
    let long = holding(Config {
        connection_window: 65_535,
        stream_window: 1 << 20,
        max_frame_size: 1 << 20,
        ..fixed()
    })
    .send(&[data(1, &[0; 65_536], 0)]);
    assert_eq!(long, [Seen::Error(FC)]);
}

#[test]
fn padding_is_credited_by_the_connection() {
    // A thousand frames of 9 bytes and 255 of padding: four times the window.
    let mut script = holding(fixed());
    let frame = data(1, &[&[255], &b"123456789"[..], &[0; 255]].concat(), PADDED);
    let mut credited = 0;
    for _ in 0..1000 {
        let seen = script.send(std::slice::from_ref(&frame));
        assert!(matches!(&seen[..], [Seen::Data { bytes, .. }] if bytes == b"123456789"));
        script.side.conn.release(StreamId(1), 9);
        for line in script.answers() {
            if let Some(n) = line.strip_prefix("WINDOW 1 ") {
                credited += n.parse::<u32>().unwrap();
            }
        }
    }
    assert!(265_000 - credited < WINDOW / 2 + 265);
    // All padding, no data: no event, but credit.
    assert_eq!(script.send(&[data(1, &[1, 0], PADDED)]), []);
    // With END_STREAM in pieces: the end comes with the last byte of data.
    let seen = script.send(&[data(1, &[2, b'x', 0, 0], PADDED | ES)]);
    assert!(matches!(&seen[..], [Seen::Data { bytes, end: true, .. }] if bytes == b"x"));
}

#[test]
fn discarded_data_gives_its_credit_back() {
    // A thousand uploads that are refused, cancelled or wrong: the connection's window stays.
    let mut script = Script::server_with(Config {
        connection_window: 65_535,
        provoked_resets: crate::Rate {
            burst: 10_000,
            per_second: 0,
        },
        ..fixed()
    });
    let mut balance = 0i64;
    for n in 0..1000u32 {
        let id = 1 + 2 * n;
        let fields = match n % 3 {
            0 => request(),
            1 => super::pair::list(&[(":method", "GET")]),
            _ => {
                let mut fields = request();
                fields.push(b"content-length", b"3");
                fields
            }
        };
        let open = script.headers(id, &fields, 0);
        script.send(&[open]);
        if n % 3 == 0 {
            script.side.conn.reset(StreamId(id), ErrorCode::CANCEL);
        }
        assert!(
            !script
                .send(&[data(id, &[0; 10_000], 0)])
                .iter()
                .any(|seen| matches!(seen, Seen::Error(_)))
        );
        balance += 10_000;
        for line in script.answers() {
            if let Some(n) = line.strip_prefix("WINDOW 0 ") {
                balance -= n.parse::<i64>().unwrap();
            }
        }
        assert!(balance < 40_000);
    }
    assert_eq!(script.side.conn.live_streams(), 0);
}

#[test]
fn windows_of_the_peer_are_kept_to_both_levels() {
    let mut script = Script::client_before_hello(Config::default());
    script.send(&[settings(&[(4, 10)])]);
    script.answers();
    let a = script.side.conn.open(&request(), 0, false).unwrap();
    assert_eq!(script.side.conn.data(a, &[0; 25], true), Ok(10));
    assert_eq!(script.answers(), ["HEADERS 1", "DATA 1 10"]);
    script.send(&[window_update(1, 7)]);
    assert_eq!(script.answers(), ["DATA 1 7"]);
    script.send(&[window_update(1, 100)]);
    assert_eq!(script.answers(), ["DATA 1 8 ES"]);
    assert_eq!(script.side.drained_bytes(), 15);
    // The connection's: 65,535 in all, 25 are gone.
    let b = script.side.conn.open(&request(), 0, false).unwrap();
    script.send(&[window_update(3, 1_000_000)]);
    assert_eq!(
        script.side.conn.data(b, &vec![0; 70_000], false),
        Ok(65_510)
    );
    script.answers();
    script.send(&[window_update(0, 10_000)]);
    assert_eq!(script.answers(), ["DATA 3 4490"]);
    assert_eq!(script.side.conn.queued_bytes(), 0);
}

#[test]
fn initial_window_moves_live_streams_below_zero_and_back() {
    // §6.9.2, and streams whose sending has not begun.
    let mut script = Script::client();
    let s = script.side.conn.open(&request(), 0, false).unwrap();
    let t = script.side.conn.open(&request(), 0, false).unwrap();
    assert_eq!(script.side.conn.data(s, &[0; 60_000], false), Ok(60_000));
    script.send(&[settings(&[(4, 20_000)])]);
    assert_eq!(
        script.side.conn.data(s, &[0; 100], false),
        Ok(0),
        "window is -40,000"
    );
    script.answers();
    script.send(&[window_update(1, 40_000)]);
    assert_eq!(script.answers(), [""; 0], "window is 0");
    script.send(&[window_update(1, 1)]);
    assert_eq!(script.answers(), ["DATA 1 1"]);
    script.send(&[settings(&[(4, 20_050)])]);
    assert_eq!(script.answers(), ["SETTINGS ACK", "DATA 1 50"]);
    assert_eq!(
        script.side.conn.data(t, &[0; 30_000], true),
        Ok(5_484),
        "the connection's rest"
    );
    script.send(&[window_update(0, 100_000), settings(&[(4, 65_535)])]);
    assert_eq!(
        script.answers(),
        [
            "DATA 3 5484",
            "DATA 3 14566",
            "SETTINGS ACK",
            "DATA 1 49",
            "DATA 3 9950 ES"
        ]
    );
}

#[test]
fn windows_over_the_top_are_errors() {
    const TOP: u32 = (1 << 31) - 1;
    let open = || {
        let mut script = Script::client();
        script.side.conn.open(&request(), 0, false).unwrap();
        script.answers();
        script
    };
    let error = |code| Seen::Reset {
        stream: 1,
        code,
        unprocessed: false,
        by: Initiator::Local,
    };
    assert_eq!(open().send(&[window_update(1, TOP)]), [error(FC)]);
    assert_eq!(
        open().send(&[window_update(1, 0)]),
        [error(ErrorCode::PROTOCOL_ERROR)]
    );
    assert_eq!(open().send(&[window_update(1, TOP - 65_535)]), []);
    let mut script = open();
    script.send(&[window_update(1, TOP - 65_535)]);
    assert_eq!(script.send(&[settings(&[(4, 65_536)])]), [Seen::Error(FC)]);
    assert_eq!(script.answers(), ["GOAWAY 0 FLOW_CONTROL_ERROR"]);
}

#[test]
fn streams_take_turns() {
    let mut script = Script::client();
    script.send(&[settings(&[(4, 1 << 20)])]);
    let streams: Vec<_> = (0..3)
        .map(|_| script.side.conn.open(&request(), 0, false).unwrap())
        .collect();
    for &stream in &streams {
        script
            .side
            .conn
            .data(stream, &vec![0; 100_000], true)
            .unwrap();
    }
    script.answers();
    script.send(&[window_update(0, 100_000)]);
    let turns: Vec<_> = script
        .answers()
        .iter()
        .map(|line| line.split(' ').nth(1).unwrap().to_string())
        .collect();
    assert_eq!(turns, ["1", "3", "5", "1", "3", "5", "1"]);
}

#[test]
fn output_over_high_water_queues_data_until_it_is_written() {
    let mut script = Script::client();
    script.send(&[settings(&[(4, 1 << 20)]), window_update(0, 1 << 20)]);
    script.answers();
    let stream = script.side.conn.open(&request(), 0, false).unwrap();
    let sent = script
        .side
        .conn
        .data(stream, &vec![0; 600_000], true)
        .unwrap();
    assert!((256 * 1024..280_000).contains(&sent), "{sent}");
    let mut total = 0;
    let mut turns = 0;
    loop {
        let bytes = script.side.give(50_000).len();
        assert!(script.side.conn.output().len() < 290_000);
        if bytes == 0 {
            break;
        }
        total += bytes;
        turns += 1;
    }
    assert!(total > 600_000 && turns > 10);
    assert_eq!(sent + script.side.drained_bytes(), 600_000);
}

#[test]
fn reset_overtakes_queued_data_but_no_error_waits() {
    for (code, expect) in [
        (ErrorCode::CANCEL, vec!["RST 1 CANCEL"]),
        (ErrorCode::NO_ERROR, vec![]),
    ] {
        let mut script = Script::server_before_hello(Config::default());
        script.send(&[
            crate::frame::PREFACE.to_vec(),
            settings(&[(4, 5)]),
            settings_ack(),
        ]);
        let open = script.headers(1, &request(), 0);
        script.send(&[open]);
        let (conn, stream) = (&mut script.side.conn, StreamId(1));
        conn.headers(stream, &response(), false).unwrap();
        assert_eq!(conn.data(stream, b"hello world", false), Ok(5));
        conn.headers(stream, &trailers(), true).unwrap();
        script.answers();
        script.side.conn.reset(stream, code);
        assert_eq!(script.answers(), expect);
        script.send(&[window_update(1, 100)]);
        let rest: &[&str] = match code {
            ErrorCode::NO_ERROR => &["DATA 1 6", "HEADERS 1 ES", "RST 1 NO_ERROR"],
            _ => &[],
        };
        assert_eq!(script.answers(), rest);
        assert_eq!(script.side.conn.live_streams(), 0);
        assert_eq!(script.side.conn.queued_bytes(), 0);
    }
}

#[test]
fn a_smaller_own_window_holds_only_after_its_acknowledgement() {
    let small = Config {
        stream_window: 1000,
        ..fixed()
    };
    let mut script = Script::server_before_hello(small.clone());
    script.send(&[crate::frame::PREFACE.to_vec(), settings(&[])]);
    let open = script.headers(1, &request(), 0);
    script.send(&[open]);
    // The client has not seen our SETTINGS: all of the default window is legal.
    assert_eq!(script.send(&bulk(1, 65_535)).len(), 4);
    assert_eq!(
        script.answers().last().map(String::as_str),
        Some("WINDOW 1 1000")
    );
    script.send(&[settings_ack()]);
    // It now has a window of 1000 + 1000 - 65,535: it must get it back, or it waits for ever.
    assert_eq!(script.answers(), ["WINDOW 1 64535"]);
    assert_eq!(script.send(&[data(1, &[0; 1000], 0)]).len(), 1);
    let mut late = Script::server_with(small);
    late.side.releases = false;
    let open = late.headers(1, &request(), 0);
    late.send(&[open]);
    let seen = late.send(&[data(1, &[0; 1001], 0)]);
    assert!(matches!(seen[..], [Seen::Reset { code: FC, .. }]));
}

#[test]
fn a_window_of_one_byte_still_moves_everything() {
    let mut pair = Pair::with(
        Config::default(),
        Config {
            stream_window: 1,
            ..fixed()
        },
    );
    pair.run();
    let stream = pair.open(false);
    pair.client.conn.data(stream, &[5; 300], true).unwrap();
    pair.run();
    let bytes: usize = pair
        .server
        .news()
        .iter()
        .map(|seen| match seen {
            Seen::Data { bytes, .. } => bytes.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(bytes, 300);
}

#[test]
fn windows_grow_with_what_a_round_trip_carries() {
    // A long fat pipe: nothing but the windows holds the sender back.
    let client = Config {
        output_high_water: 64 << 20,
        ..Config::default()
    };
    let mut pair = Pair::with(client, Config::default());
    pair.run();
    let stream = pair.open(false);
    let some = vec![1; 4 << 20];
    for _ in 0..100 {
        if pair.client.conn.queued_bytes() < 16 << 20 {
            pair.client.conn.data(stream, &some, false).unwrap();
        }
        pair.step(usize::MAX);
        pair.pass(Duration::from_millis(10));
    }
    assert_eq!(pair.server.conn.targets.stream, 4 << 20);
    assert!(pair.server.conn.counters().window_growths >= 6);
    let pings = pair.client.conn.counters().pings_received;
    assert!(pings > 5 && pings < 60, "{pings} PINGs");
}

#[test]
fn small_calls_draw_no_ping_and_no_stream_update() {
    let mut pair = Pair::new();
    pair.client.wrote = Some(Vec::new());
    for _ in 0..500 {
        let stream = pair.client.conn.open(&request(), 0, false).unwrap();
        pair.client.conn.data(stream, &[1; 128], true).unwrap();
        pair.run();
        let server = &mut pair.server.conn;
        server.headers(stream, &response(), false).unwrap();
        server.data(stream, &[2; 128], false).unwrap();
        server.headers(stream, &trailers(), true).unwrap();
        pair.run();
    }
    assert_eq!(pair.client.conn.counters().pings_received, 0);
    assert_eq!(pair.server.conn.counters().pings_received, 0);
}

/// Issue 10, N1: a request that is going to be reset is not completed meanwhile, and keeps no memory.
#[test]
fn an_abandoned_request_sends_no_more_and_never_ends() {
    let mut pair = Pair::new();
    pair.server.releases = false;
    let stream = pair.client.conn.open(&request(), 0, false).unwrap();
    pair.client.conn.data(stream, &[1; 100_000], true).unwrap();
    pair.run();
    let waiting = pair.client.conn.queued_bytes();
    assert!(waiting > 30_000, "{waiting}");
    assert_eq!(pair.client.conn.discard(stream), 0, "its end is queued");
    assert_eq!(pair.client.conn.abandon(stream), waiting);
    assert_eq!(pair.client.conn.queued_bytes(), 0);
    pair.server.news();
    pair.server.conn.release(stream, 65_535);
    pair.run();
    assert_eq!(pair.server.news(), [], "not even the end");
    pair.client.conn.reset(stream, ErrorCode::CANCEL);
    pair.run();
    let news = pair.server.news();
    assert!(
        matches!(
            news[..],
            [Seen::Reset {
                code: ErrorCode::CANCEL,
                ..
            }]
        ),
        "{news:?}"
    );
}
