//! Limits on what a peer can drive: each flood ends with ENHANCE_YOUR_CALM, and its honest
//! counterpart does not (RFC 9113 §10.5).

use std::time::Duration;

use super::pair::{Seen, list, request, response};
use super::script::*;
use crate::{Config, ErrorCode, StreamId};

/// How many of these the connection takes before it calms the peer; output is read if `reads`.
fn taken(script: &mut Script, mut frame: impl FnMut(&mut Script, u32) -> Vec<Vec<u8>>) -> u32 {
    for n in 0..20_000 {
        let frames = frame(script, n);
        let seen = script.send(&frames);
        if let Some(Seen::Error(code)) = seen.last() {
            assert_eq!(*code, ErrorCode::ENHANCE_YOUR_CALM);
            return n;
        }
        script.side.give(usize::MAX);
    }
    u32::MAX
}

/// Opens stream 1 and takes part in the flood.
fn open_server() -> Script {
    let mut script = Script::server();
    let open = script.headers(1, &request(), 0);
    script.send(&[open]);
    script
}

#[test]
fn rapid_reset_is_cut() {
    // CVE-2023-44487
    let mut script = Script::server();
    let n = taken(&mut script, |script, n| {
        let id = 2 * n + 1;
        vec![
            script.headers(id, &request(), ES),
            rst(id, ErrorCode::CANCEL),
        ]
    });
    assert_eq!(n, 1000);
    assert_eq!(script.side.conn.live_streams(), 0);
}

#[test]
fn resets_at_an_honest_rate_go_on_for_ever() {
    let mut script = Script::server();
    let n = taken(&mut script, |script, n| {
        script.now += Duration::from_millis(11);
        let id = 2 * n + 1;
        vec![
            script.headers(id, &request(), ES),
            rst(id, ErrorCode::CANCEL),
        ]
    });
    assert_eq!(n, u32::MAX);
}

/// Opens a stream per millisecond and resets each after `life` milliseconds, with no answer to any.
fn cancels_after(life: u32) -> u32 {
    let mut script = Script::server();
    taken(&mut script, |script, n| {
        script.now += Duration::from_millis(1);
        let mut frames = vec![script.headers(2 * n + 1, &request(), ES)];
        if let Some(old) = n.checked_sub(life) {
            frames.push(rst(2 * old + 1, ErrorCode::CANCEL));
        }
        frames
    })
}

#[test]
fn cancels_at_a_deadline_are_no_flood_however_many() {
    // Issue 10, A3: a busy client with deadlines, whose server hangs.
    assert_eq!(cancels_after(25), u32::MAX);
    assert_eq!(cancels_after(200), u32::MAX);
    // Shorter ones cost what they are short of that: here 20 ms each, of which 100 × 25 ms a second are free.
    let taken = cancels_after(5);
    assert!((1000..2000).contains(&taken), "{taken}");
}

#[test]
fn resets_of_streams_that_lived_longer_but_not_long_are_cut_later() {
    let mut script = Script::server();
    // A hundred at a time, each of which is open for 5 ms: four times the rate of the bucket.
    let n = taken(&mut script, |script, n| {
        let ids: Vec<u32> = (0..100).map(|i| 2 * (100 * n + i) + 1).collect();
        let open: Vec<_> = ids
            .iter()
            .map(|id| script.headers(*id, &request(), ES))
            .collect();
        script.send(&open);
        script.now += Duration::from_millis(5);
        ids.iter().map(|id| rst(*id, ErrorCode::CANCEL)).collect()
    });
    assert!((12..20).contains(&n), "{n}");
}

/// Opens streams: of each `of` the first is answered and ends, the others are reset at once.
fn hedged(of: u32) -> u32 {
    let mut script = Script::server();
    taken(&mut script, |script, n| {
        let mut frames = Vec::new();
        for i in 0..of {
            let id = 2 * (of * n + i) + 1;
            let open = script.headers(id, &request(), ES);
            script.send(&[open]);
            if i == 0 {
                let conn = &mut script.side.conn;
                conn.headers(StreamId(id), &response(), true).unwrap();
            } else {
                frames.push(rst(id, ErrorCode::CANCEL));
            }
        }
        frames
    })
}

#[test]
fn a_client_that_completes_much_may_reset_much() {
    // Issue 10, A3: requests that are hedged, the losers of which are reset at once.
    assert_eq!(hedged(2), u32::MAX);
    assert_eq!(hedged(5), u32::MAX);
    // An attacker that completes one in a hundred is none of these.
    let n = hedged(100);
    assert!(n <= 11, "{n}");
}

#[test]
fn streams_that_were_answered_may_be_reset_at_once() {
    let mut script = Script::server();
    let n = taken(&mut script, |script, n| {
        let id = 2 * n + 1;
        let open = script.headers(id, &request(), ES);
        script.send(&[open]);
        let conn = &mut script.side.conn;
        conn.headers(StreamId(id), &response(), false).unwrap();
        vec![rst(id, ErrorCode::CANCEL)]
    });
    assert_eq!(n, u32::MAX);
}

#[test]
fn resets_of_streams_that_are_gone_are_cut() {
    let mut script = Script::server();
    let open = script.headers(1, &request(), ES);
    script.send(&[open, rst(1, ErrorCode::CANCEL)]);
    let n = taken(&mut script, |_, _| vec![rst(1, ErrorCode::CANCEL)]);
    assert!((1900..=2100).contains(&n), "{n}");
}

#[test]
fn provoked_resets_are_cut() {
    // CVE-2025-8671: each way to make us reset a stream of the peer's.
    type Trigger = (&'static str, fn(&mut Script, u32) -> Vec<Vec<u8>>);
    let triggers: [Trigger; 6] = [
        ("WINDOW_UPDATE of 0", |_, id| vec![window_update(id, 0)]),
        ("window overflow", |_, id| {
            vec![window_update(id, (1 << 31) - 1)]
        }),
        ("DATA after END_STREAM", |_, id| vec![data(id, b"x", 0)]),
        ("HEADERS after END_STREAM", |script, id| {
            vec![script.headers(id, &list(&[("a", "b")]), ES)]
        }),
        ("PRIORITY of 4 bytes", |_, id| vec![raw(2, 0, id, &[0; 4])]),
        ("malformed request", |script, id| {
            vec![script.headers(id + 2, &list(&[("a", "b")]), ES)]
        }),
    ];
    for (what, trigger) in triggers {
        let mut script = Script::server();
        let n = taken(&mut script, |script, n| {
            let id = 4 * n + 1;
            let mut frames = vec![script.headers(id, &request(), ES)];
            frames.extend(trigger(script, id));
            frames
        });
        assert!((190..=210).contains(&n), "{what}: {n}");
    }
}

#[test]
fn control_frames_are_cut_after_a_rate() {
    type Flood = (&'static str, Vec<u8>);
    let floods: [Flood; 7] = [
        ("PING", ping(b"flooding")),
        ("SETTINGS", settings(&[(4, 70_000)])),
        ("PRIORITY", raw(2, 0, 1, &[0; 5])),
        ("unknown", raw(0x99, 0, 1, b"x")),
        ("empty DATA", data(1, b"", 0)),
        ("WINDOW_UPDATE", window_update(1, 1)),
        ("WINDOW_UPDATE of the connection", window_update(0, 1)),
    ];
    for (what, frame) in floods {
        let mut script = open_server();
        let n = taken(&mut script, |_, _| vec![frame.clone()]);
        assert!((400..=2100).contains(&n), "{what}: {n}");
        // A thousandth of the speed is no flood.
        let mut script = open_server();
        let n = taken(&mut script, |script, _| {
            script.now += Duration::from_millis(50);
            vec![frame.clone()]
        });
        assert_eq!(n, u32::MAX, "{what}");
    }
}

#[test]
fn answers_that_are_not_read_are_bounded() {
    // CVE-2019-9512, CVE-2019-9515: the peer sends and never reads.
    for frame in [ping(b"flooding"), settings(&[])] {
        let mut script = Script::server_with(Config {
            control_frames: crate::Rate {
                burst: u32::MAX,
                per_second: 0,
            },
            ..Config::default()
        });
        let cut = (0..5000).find_map(|n| match script.send(std::slice::from_ref(&frame))[..] {
            [Seen::Error(code)] => Some((n, code)),
            _ => None,
        });
        assert_eq!(cut, Some((1001, ErrorCode::ENHANCE_YOUR_CALM)));
        assert!(script.side.conn.output().len() < 20_000);
    }
}

#[test]
fn responses_that_are_not_read_are_bounded() {
    // Each stream ends at once, but the client reads nothing and opens the next.
    let mut script = Script::server();
    let mut answered = 0;
    let n = (0..20_000u32).position(|n| {
        let open = script.headers(2 * n + 1, &request(), ES);
        let seen = script.send(&[open]);
        if let [Seen::Headers { stream, .. }] = seen[..] {
            let message = format!("{n:01000}");
            let reply = list(&[(":status", "200"), ("grpc-message", &message)]);
            let stream = StreamId(stream);
            script.side.conn.headers(stream, &reply, true).unwrap();
            answered += 1;
        }
        matches!(seen[..], [Seen::Error(ErrorCode::ENHANCE_YOUR_CALM)])
    });
    // Those that fit below the high water have gone, and a thousand more wait in their streams.
    assert!((1200..1300).contains(&answered), "{answered}");
    assert!(n.is_some_and(|n| n < 2400), "{n:?}");
    assert!(script.side.conn.output().len() < 300_000);
    assert!(script.side.conn.queued_bytes() < 1_700_000);
}

#[test]
fn a_slow_reader_that_keeps_reading_is_not_cut() {
    let mut script = Script::server_with(Config {
        control_frames: crate::Rate {
            burst: u32::MAX,
            per_second: 0,
        },
        ..Config::default()
    });
    // The output never becomes empty, but moves on.
    for _ in 0..10_000 {
        let seen = script.send(&[ping(b"patience")]);
        assert_eq!(seen, []);
        if script.side.conn.output().len() > 600 * 17 {
            script.side.give(100 * 17);
        }
    }
}

#[test]
fn continuation_floods_are_cut() {
    // VU#421644, CVE-2026-33871 (empty ones).
    for len in [0, 1, 16_384] {
        let mut script = Script::server();
        script.send(&[raw(1, 0, 1, &[])]);
        let n = taken(&mut script, |_, _| vec![raw(9, 0, 1, &vec![0; len])]);
        assert!(n <= 136, "{len}: {n}");
    }
}

#[test]
fn hpack_bombs_are_cut_and_bounded() {
    // CVE-2016-6581: one large entry, named again and again by one byte.
    let mut script = Script::server();
    let mut block = vec![0x40, 1, b'x', 0x7f, 0xa1, 0x1e];
    block.extend_from_slice(&[b'a'; 4000]);
    block.extend_from_slice(&[0xbe; 4000]);
    let seen = script.send(&[raw(1, EH | ES, 1, &block)]);
    assert_eq!(seen, [Seen::Error(ErrorCode::ENHANCE_YOUR_CALM)]);
    assert!(script.side.fields.list_bytes() <= 32 * 1024);
}

#[test]
fn too_many_parameters_in_one_settings() {
    let mut script = Script::server();
    let many: Vec<_> = (0..33).map(|n| (0x1000 + n, 1)).collect();
    let seen = script.send(&[settings(&many[..32]), settings(&many)]);
    assert_eq!(seen, [Seen::Error(ErrorCode::ENHANCE_YOUR_CALM)]);
}

#[test]
fn refused_streams_are_counted() {
    let mut script = Script::server_with(Config {
        max_concurrent_streams: 0,
        ..Config::default()
    });
    let n = taken(&mut script, |script, n| {
        vec![script.headers(2 * n + 1, &request(), ES)]
    });
    assert_eq!(n, 1000);
}

#[test]
fn many_small_data_frames_are_honest() {
    let mut script = open_server();
    let n = taken(&mut script, |_, _| vec![data(1, b"x", 0); 10]);
    assert_eq!(n, u32::MAX);
}

#[test]
fn pings_that_measure_while_data_flows_are_honest() {
    // grpc-go sends one per round trip while it receives DATA.
    let mut script = open_server();
    script
        .side
        .conn
        .headers(StreamId(1), &response(), false)
        .unwrap();
    let n = taken(&mut script, |script, _| {
        script.side.conn.data(StreamId(1), b"x", false).unwrap();
        vec![ping(b"measured"), window_update(1, 1), window_update(0, 1)]
    });
    assert_eq!(n, u32::MAX);
}

#[test]
fn informational_responses_without_end_are_cut() {
    let mut script = Script::client();
    script.side.conn.open(&request(), 0, true).unwrap();
    let n = taken(&mut script, |script, _| {
        vec![script.headers(1, &list(&[(":status", "103")]), 0)]
    });
    assert_eq!(n, 2000);
}

#[test]
fn ten_thousand_resets_in_one_read() {
    let mut script = Script::client();
    script.send(&[settings(&[(3, 20_000)])]);
    let streams: Vec<_> = (0..10_000)
        .map(|_| script.side.conn.open(&request(), 0, true).unwrap())
        .collect();
    script.side.give(usize::MAX);
    let frames: Vec<_> = streams
        .iter()
        .map(|stream| rst(stream.get(), ErrorCode::REFUSED_STREAM))
        .collect();
    let seen = script.send(&frames);
    assert_eq!(seen.len(), 10_000, "what we opened may all be reset");
    assert!(seen.iter().all(|seen| matches!(
        seen,
        Seen::Reset {
            unprocessed: true,
            ..
        }
    )));
}
