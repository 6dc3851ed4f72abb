//! Header lists wait for space in the output as DATA does (issue 10, A1): not encoded, in the order
//! of their stream, one stream after the other, whatever the windows.

use super::pair::{Pair, Seen, list, request, response, trailers};
use super::script::*;
use crate::{Config, Drained, ErrorCode, Fields, Kind, StreamId};

const HIGH_WATER: usize = 16 * 1024;

fn small() -> Config {
    Config {
        output_high_water: HIGH_WATER,
        ..Config::default()
    }
}

/// A list that takes 4 KB on the wire each time: too large for the table to keep.
fn large(first: Fields, n: u32) -> Fields {
    let mut fields = first;
    fields.push(b"x-large", format!("{n:04}{}", "~".repeat(4100)).as_bytes());
    fields
}

/// All that the connection has to write, as a peer takes it that reads on.
fn all_answers(script: &mut Script) -> Vec<String> {
    let mut lines = Vec::new();
    while !script.side.conn.output().is_empty() {
        lines.extend(script.answers());
    }
    lines
}

/// The streams of header lists as they were seen, with what each said of itself.
fn lists(seen: &[Seen]) -> Vec<(u32, String)> {
    let own = |fields: &[(String, String)]| {
        let large = fields.iter().find(|(name, _)| name == "x-large");
        large.map_or_else(String::new, |(_, value)| value[..4].to_owned())
    };
    seen.iter()
        .filter_map(|seen| match seen {
            Seen::Headers { stream, fields, .. } => Some((*stream, own(fields))),
            _ => None,
        })
        .collect()
}

#[test]
fn requests_wait_above_the_high_water_and_go_in_order() {
    let mut pair = Pair::with(small(), Config::default());
    pair.run();
    pair.server.news();
    let client = &mut pair.client.conn;
    let mut taken = 0;
    for n in 0..90 {
        client.open(&large(request(), n), 7, n % 2 == 0).unwrap();
        taken += usize::from(client.output().len() > HIGH_WATER);
    }
    assert!(client.output().len() < HIGH_WATER + 5_000);
    assert!(taken > 80 && !client.has_output_room());
    assert!((300_000..500_000).contains(&client.queued_bytes()));
    assert_eq!(client.live_streams(), 90);
    pair.run();
    let expect: Vec<_> = (0..90).map(|n| (2 * n + 1, format!("{n:04}"))).collect();
    assert_eq!(lists(&pair.server.news()), expect);
    assert_eq!(pair.client.conn.queued_bytes(), 0);
    assert!(pair.client.conn.has_output_room());
    let drained: usize = pair.client.drained.iter().map(|d| d.list_bytes).sum();
    assert!(drained > 80 * 4_100, "{drained}");
    // The tables of both sides still agree.
    pair.client
        .conn
        .open(&large(request(), 90), 7, true)
        .unwrap();
    pair.run();
    assert_eq!(lists(&pair.server.news()), [(181, "0090".to_owned())]);
}

#[test]
fn a_stream_keeps_the_order_of_head_body_and_trailers() {
    let mut pair = Pair::with(Config::default(), small());
    let streams: Vec<_> = (0..4).map(|_| pair.open(true)).collect();
    // Others fill the output.
    let others: Vec<_> = (0..10).map(|_| pair.open(true)).collect();
    for (stream, n) in others.into_iter().zip(0..) {
        let reply = large(response(), n);
        pair.server.conn.headers(stream, &reply, true).unwrap();
    }
    let server = &mut pair.server.conn;
    assert!(!server.has_output_room());
    let [a, b, c, d] = streams[..] else { panic!() };
    // All of a message, a message of one list, a body without trailers, an end without a body.
    let queued = server.headers(a, &response(), false).unwrap();
    assert_eq!(queued, response().memory_bytes());
    assert_eq!(server.data(a, b"body", false).unwrap(), 0);
    assert_eq!(
        server.headers(a, &trailers(), true).unwrap(),
        trailers().memory_bytes()
    );
    server.headers(b, &trailers_only(), true).unwrap();
    server.headers(c, &response(), false).unwrap();
    server.data(c, b"body", true).unwrap();
    server.headers(d, &response(), false).unwrap();
    server.data(d, b"", true).unwrap();
    assert!(
        server.headers(b, &trailers(), true).is_err(),
        "it has ended"
    );
    pair.client.news();
    pair.run();
    let of = |seen: &[Seen], id: StreamId| -> Vec<String> {
        let id = id.get();
        let line = |seen: &Seen| match seen {
            Seen::Headers {
                stream, kind, end, ..
            } if *stream == id => Some(format!("{kind:?} {end}")),
            Seen::Data { stream, bytes, end } if *stream == id => {
                Some(format!("{} {end}", bytes.len()))
            }
            _ => None,
        };
        seen.iter().filter_map(line).collect()
    };
    let seen = pair.client.news();
    assert_eq!(of(&seen, a), ["Response false", "4 false", "Trailers true"]);
    assert_eq!(of(&seen, b), ["Response true"]);
    assert_eq!(of(&seen, c), ["Response false", "4 true"]);
    assert_eq!(of(&seen, d), ["Response false", "0 true"]);
    assert_eq!(pair.server.conn.queued_bytes(), 0);
    // What was counted as queued was reported as sent.
    let drained = |id: StreamId| -> (usize, usize) {
        let of = |d: &&Drained| d.stream == id;
        let all = pair.server.drained.iter().filter(of);
        all.fold((0, 0), |sum, d| (sum.0 + d.bytes, sum.1 + d.list_bytes))
    };
    let both = response().memory_bytes() + trailers().memory_bytes();
    assert_eq!(drained(a), (4, both));
    assert_eq!(drained(d), (0, response().memory_bytes()));
}

fn trailers_only() -> Fields {
    list(&[(":status", "200"), ("grpc-status", "5")])
}

#[test]
fn lists_pass_while_the_windows_are_closed_for_data() {
    let mut script = Script::client_with(small());
    let stream = script.side.conn.open(&request(), 0, false).unwrap();
    let sent = script.side.conn.data(stream, &[1; 100_000], false).unwrap();
    assert_eq!(sent, 16 * 1024, "one frame reaches the high water");
    let unsent = script
        .side
        .conn
        .open(&large(request(), 1), 0, true)
        .unwrap();
    let lines = all_answers(&mut script);
    // All of the connection's window, and the list, before any WINDOW_UPDATE.
    let data = lines.iter().filter(|line| line.starts_with("DATA"));
    assert!(data.count() >= 4);
    assert!(lines.contains(&format!("HEADERS {} ES", unsent.get())));
    assert_eq!(script.side.conn.send_window.available(), 0);
    let more = script.side.conn.open(&request(), 0, true).unwrap();
    assert_eq!(
        all_answers(&mut script),
        [format!("HEADERS {} ES", more.get())]
    );
}

#[test]
fn lists_and_data_take_turns() {
    let mut script = Script::client_with(small());
    script.send(&[window_update(0, 1 << 20), settings(&[(4, 1 << 20)])]);
    let stream = script.side.conn.open(&request(), 0, false).unwrap();
    script.side.conn.data(stream, &[1; 200_000], false).unwrap();
    for n in 0..50 {
        script
            .side
            .conn
            .open(&large(request(), n), 0, true)
            .unwrap();
    }
    while !script.side.conn.output().is_empty() {
        // One frame's worth at a time, as a slow peer takes it.
        script.side.give(16 * 1024);
        script.side.poll();
        let data: usize = script.side.drained.iter().map(|d| d.bytes).sum();
        let lists: usize = script.side.drained.iter().map(|d| d.list_bytes).sum();
        // DATA of 200 KB and lists of 200 KB: neither is through long before the other began.
        if data + lists > 200_000 {
            assert!(data > 60_000 && lists > 30_000, "{data} and {lists}");
            return;
        }
    }
    panic!("never half done");
}

#[test]
fn of_a_request_that_waits_and_is_cancelled_the_peer_never_hears() {
    let mut script = Script::client_with(small());
    for n in 0..20 {
        script
            .side
            .conn
            .open(&large(request(), n), 0, false)
            .unwrap();
    }
    let last = StreamId(39);
    script.side.conn.reset(last, ErrorCode::CANCEL);
    script.side.conn.reset(StreamId(1), ErrorCode::CANCEL);
    assert!(script.side.conn.data(last, b"x", false).is_err());
    let next = script.side.conn.open(&request(), 0, true).unwrap();
    let lines = all_answers(&mut script);
    assert!(lines.contains(&"RST 1 CANCEL".to_owned()), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains(" 39")), "{lines:?}");
    assert_eq!(lines.last(), Some(&format!("HEADERS {} ES", next.get())));
    assert_eq!(script.side.conn.live_streams(), 19);
    assert_eq!(script.side.conn.queued_bytes(), 0);
}

#[test]
fn what_waits_behind_a_dead_stream_goes_on() {
    let mut script = Script::client_with(small());
    for n in 0..20 {
        script
            .side
            .conn
            .open(&large(request(), n), 0, true)
            .unwrap();
    }
    // GOAWAY: those above were never acted on, sent or not.
    let seen = script.send(&[goaway(29, ErrorCode::NO_ERROR, b"")]);
    let unprocessed = |seen: &&Seen| {
        matches!(
            seen,
            Seen::Reset {
                unprocessed: true,
                ..
            }
        )
    };
    assert_eq!(seen.iter().filter(unprocessed).count(), 5);
    let lines = all_answers(&mut script);
    assert_eq!(lines.len(), 15, "{lines:?}");
    assert_eq!(script.side.conn.queued_bytes(), 0);
}

#[test]
fn data_that_waits_can_be_dropped_for_trailers() {
    let mut script = Script::server();
    let open = script.headers(1, &request(), ES);
    script.send(&[open]);
    let conn = &mut script.side.conn;
    conn.headers(StreamId(1), &response(), false).unwrap();
    let sent = conn.data(StreamId(1), &[1; 100_000], false).unwrap();
    assert_eq!(conn.discard(StreamId(1)), 100_000 - sent);
    assert_eq!(conn.discard(StreamId(1)), 0);
    assert_eq!(conn.headers(StreamId(1), &trailers(), true), Ok(0));
    let lines = all_answers(&mut script);
    assert_eq!(lines.last().map(String::as_str), Some("HEADERS 1 ES"));
    assert_eq!(script.side.conn.live_streams(), 0);
    assert_eq!(script.side.conn.queued_bytes(), 0);
}

#[test]
fn a_connection_in_low_memory_keeps_little_output_and_grows_no_window() {
    let mut pair = Pair::new();
    pair.client.conn.set_low_memory(true);
    for n in 0..90 {
        let stream = pair
            .client
            .conn
            .open(&large(request(), n), 0, false)
            .unwrap();
        pair.client.conn.data(stream, &[1; 5_000], true).unwrap();
    }
    assert!(pair.client.conn.output().len() < 32 * 1024);
    pair.client.conn.set_low_memory(false);
    pair.run();
    let seen = pair.server.news();
    let whole = |seen: &&Seen| matches!(seen, Seen::Data { end: true, .. });
    assert_eq!(seen.iter().filter(whole).count(), 90);
    let kinds = |kind: Kind| move |seen: &&Seen| matches!(seen, Seen::Headers { kind: k, .. } if *k == kind);
    assert_eq!(seen.iter().filter(kinds(Kind::Request)).count(), 90);
}
