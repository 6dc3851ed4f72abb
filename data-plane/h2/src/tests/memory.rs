//! What a connection and a stream cost in memory.

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
    // Capacities stand still while calls come and go.
    let mut pair = Pair::new();
    let mut before = None;
    for n in 0..50 {
        let stream = pair.client.conn.open(&request(), 0, false).unwrap();
        pair.client.conn.data(stream, &[1; 128], true).unwrap();
        pair.run();
        pair.server.conn.headers(stream, &response(), true).unwrap();
        pair.run();
        let now = (
            pair.client.conn.buffer_bytes(),
            pair.server.conn.buffer_bytes(),
        );
        if n >= 10 && n % 10 == 0 {
            // Only the ring of ended ids still grows, to its bound.
            assert!(before.is_none_or(|before| now <= before) || n < 300);
            before = Some(now);
        }
    }
}
