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
