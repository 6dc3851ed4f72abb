//! The memory of a connection and of a stream.

use super::pair::{Pair, request, response, trailers};
use crate::Connection;
use crate::stream::Stream;

/// The sizes are promised (8 KiB for an idle connection, HPACK tables included): whoever adds a
/// field sees it here.
#[test]
fn structs_stay_small() {
    assert!(size_of::<Stream>() <= 120, "{}", size_of::<Stream>());
    assert!(
        size_of::<Connection>() <= 1536,
        "{}",
        size_of::<Connection>()
    );
    assert!(
        size_of::<crate::Event<'_>>() <= 48,
        "{}",
        size_of::<crate::Event<'_>>()
    );
}

#[test]
fn buffers_are_given_back_when_idle() {
    let mut pair = Pair::new();
    let streams: Vec<_> = (0..200).map(|_| pair.open(false)).collect();
    for &stream in &streams {
        pair.client.conn.data(stream, &[1; 30_000], true).unwrap();
        pair.server
            .conn
            .headers(stream, &response(), false)
            .unwrap();
        pair.server.conn.data(stream, &[1; 30_000], false).unwrap();
        pair.server.conn.headers(stream, &trailers(), true).unwrap();
    }
    pair.run();
    for conn in [&mut pair.client.conn, &mut pair.server.conn] {
        assert_eq!(conn.live_streams(), 0);
        let bytes = conn.buffer_bytes();
        assert!(bytes <= 4096, "{bytes} bytes");
    }
}

#[test]
fn small_calls_allocate_nothing_once_warm() {
    // Capacities stand still while calls come and go, idle in between or not.
    let mut pair = Pair::new();
    let mut after = Vec::new();
    for _ in 0..3 {
        for _ in 0..300 {
            let stream = pair.client.conn.open(&request(), 0, false).unwrap();
            pair.client.conn.data(stream, &[1; 128], true).unwrap();
            pair.run();
            let server = &mut pair.server.conn;
            server.headers(stream, &response(), false).unwrap();
            server.data(stream, &[1; 128], false).unwrap();
            server.headers(stream, &trailers(), true).unwrap();
            pair.run();
        }
        let (client, server) = (&pair.client.conn, &pair.server.conn);
        after.push((client.buffer_bytes(), server.buffer_bytes()));
    }
    assert_eq!(after[1], after[2]);
    assert!(after[2].0 <= 4096 && after[2].1 <= 4096, "{after:?}");
}

/// Issue 10, N3: a stream that stays open does not keep the memory of what has been sent.
#[test]
fn buffers_of_a_connection_with_an_open_stream_can_be_released() {
    let mut pair = Pair::new();
    let (open, call) = (pair.open(false), pair.open(true));
    let server = &mut pair.server.conn;
    server.headers(open, &response(), false).unwrap();
    server.headers(call, &response(), false).unwrap();
    server.data(call, &[1; 300_000], false).unwrap();
    server.headers(call, &trailers(), true).unwrap();
    pair.run();
    let server = &mut pair.server.conn;
    assert_eq!((server.live_streams(), server.queued_bytes()), (1, 0));
    assert!(server.spare_bytes() > 60_000, "{}", server.spare_bytes());
    server.release_spare();
    assert!(server.spare_bytes() + server.buffer_bytes() <= 4096);
    // It goes on.
    server.data(open, &[1; 3000], true).unwrap();
    pair.run();
    assert_eq!(pair.server.conn.queued_bytes(), 0);
}

#[test]
fn what_a_slow_reader_has_taken_keeps_no_memory() {
    let mut pair = Pair::new();
    let stream = pair.open(true);
    let server = &mut pair.server.conn;
    server.headers(stream, &response(), false).unwrap();
    server.data(stream, &[1; 60_000], false).unwrap();
    let all = server.output().len();
    assert!(all > 60_000);
    server.advance(all - 1);
    assert_eq!(server.output().len(), 1);
    assert!(server.buffer_bytes() <= 8192, "{}", server.buffer_bytes());
}
