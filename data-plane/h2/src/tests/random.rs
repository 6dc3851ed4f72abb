//! Random legal traffic between two connections, split at random: everything arrives once and in
//! order, and nothing is left behind.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::pair::{Pair, Seen, list, request, response, trailers};
use super::script::{ES, Script, data};
use crate::frame::{Head, PREFACE, kind};
use crate::{Config, ErrorCode, Fields, StreamId};

/// One step of an application.
#[derive(Clone, Debug)]
enum Step {
    Open {
        end: bool,
    },
    Data {
        server: bool,
        which: usize,
        len: usize,
        end: bool,
    },
    Respond {
        which: usize,
        end: bool,
    },
    Trailers {
        which: usize,
    },
    Reset {
        server: bool,
        which: usize,
        code: u32,
    },
    Release {
        server: bool,
        which: usize,
    },
    Ping {
        server: bool,
    },
    Move {
        bytes: usize,
    },
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![0..40usize, 1000..20_000usize];
    prop_oneof![
        4 => any::<bool>().prop_map(|end| Step::Open { end }),
        6 => (any::<bool>(), any::<usize>(), len, prop::bool::weighted(0.2))
            .prop_map(|(server, which, len, end)| Step::Data { server, which, len, end }),
        4 => (any::<usize>(), prop::bool::weighted(0.1))
            .prop_map(|(which, end)| Step::Respond { which, end }),
        3 => any::<usize>().prop_map(|which| Step::Trailers { which }),
        1 => (any::<bool>(), any::<usize>(), 0..14u32)
            .prop_map(|(server, which, code)| Step::Reset { server, which, code }),
        4 => (any::<bool>(), any::<usize>())
            .prop_map(|(server, which)| Step::Release { server, which }),
        1 => any::<bool>().prop_map(|server| Step::Ping { server }),
        6 => prop_oneof![1..30usize, 100..70_000usize].prop_map(|bytes| Step::Move { bytes }),
        1 => prop::bool::weighted(0.1).prop_map(|drain| match drain {
            true => Step::Drain,
            false => Step::Move { bytes: 1 },
        }),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    (
        prop_oneof![100..3000u32, Just(65_536u32)],
        prop_oneof![Just(1usize), 200..20_000usize, Just(262_144usize)],
        1..20u32,
        any::<bool>(),
    )
        .prop_map(|(window, high_water, streams, grow_windows)| Config {
            stream_window: window,
            output_high_water: high_water,
            max_concurrent_streams: streams,
            grow_windows,
            ..Config::default()
        })
}

/// What one side has sent on a stream and what the other got.
#[derive(Debug, Default)]
struct Flow {
    sent: Vec<u8>,
    sent_end: bool,
    got: Vec<u8>,
    got_end: bool,
    unreleased: usize,
}

#[derive(Debug, Default)]
struct Book {
    /// By stream: client to server, server to client.
    flows: BTreeMap<u32, [Flow; 2]>,
    responded: BTreeMap<u32, bool>,
    reset: BTreeMap<u32, ErrorCode>,
    tick: u8,
}

impl Book {
    fn pick(&self, which: usize) -> Option<StreamId> {
        let n = self.flows.len();
        let id = *self.flows.keys().nth(which.checked_rem(n)?)?;
        Some(StreamId(id))
    }

    fn note(&mut self, pair: &mut Pair) {
        for server in [true, false] {
            let side = if server {
                &mut pair.server
            } else {
                &mut pair.client
            };
            for seen in side.news() {
                self.note_one(server, seen);
            }
        }
    }

    fn note_one(&mut self, server: bool, seen: Seen) {
        let direction = usize::from(!server);
        match seen {
            Seen::Headers { stream, end, .. } => {
                let flow = &mut self.flows.get_mut(&stream).unwrap()[direction];
                assert!(!flow.got_end, "nothing after the end");
                flow.got_end = end;
            }
            Seen::Data { stream, bytes, end } => {
                let flow = &mut self.flows.get_mut(&stream).unwrap()[direction];
                assert!(!flow.got_end, "nothing after the end");
                flow.got.extend_from_slice(&bytes);
                flow.unreleased += bytes.len();
                flow.got_end = end;
            }
            Seen::Reset { stream, code, .. } => {
                self.reset.insert(stream, code);
            }
            Seen::PingAck(_) | Seen::GoAway { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    fn take(&mut self, pair: &mut Pair, step: &Step) {
        match *step {
            Step::Open { end } => {
                if let Ok(stream) = pair.client.conn.open(&request(), 0, end) {
                    let flows = self.flows.entry(stream.get()).or_default();
                    flows[0].sent_end = end;
                }
            }
            Step::Data {
                server,
                which,
                len,
                end,
            } => {
                let Some(stream) = self.pick(which) else {
                    return;
                };
                self.tick = self.tick.wrapping_add(1);
                let bytes = vec![self.tick; len];
                let side = if server {
                    &mut pair.server
                } else {
                    &mut pair.client
                };
                if side.conn.data(stream, &bytes, end).is_ok() {
                    let flow = &mut self.flows.get_mut(&stream.get()).unwrap()[usize::from(server)];
                    assert!(!flow.sent_end, "taken after the end");
                    flow.sent.extend_from_slice(&bytes);
                    flow.sent_end = end;
                }
            }
            Step::Respond { which, end } => {
                let Some(stream) = self.pick(which) else {
                    return;
                };
                if !self.responded.contains_key(&stream.get())
                    && pair.server.conn.headers(stream, &response(), end).is_ok()
                {
                    self.responded.insert(stream.get(), true);
                    self.flows.get_mut(&stream.get()).unwrap()[1].sent_end = end;
                }
            }
            Step::Trailers { which } => {
                let Some(stream) = self.pick(which) else {
                    return;
                };
                if self.responded.contains_key(&stream.get())
                    && pair.server.conn.headers(stream, &trailers(), true).is_ok()
                {
                    self.flows.get_mut(&stream.get()).unwrap()[1].sent_end = true;
                }
            }
            Step::Reset {
                server,
                which,
                code,
            } => {
                let Some(stream) = self.pick(which) else {
                    return;
                };
                let side = if server {
                    &mut pair.server
                } else {
                    &mut pair.client
                };
                side.conn.reset(stream, ErrorCode(code));
                self.reset.entry(stream.get()).or_insert(ErrorCode(code));
            }
            Step::Release { server, which } => {
                let Some(stream) = self.pick(which) else {
                    return;
                };
                self.release(pair, server, stream);
            }
            Step::Ping { server } => {
                let side = if server {
                    &mut pair.server
                } else {
                    &mut pair.client
                };
                side.conn.ping(*b"anything");
            }
            Step::Move { bytes } => {
                pair.step(bytes);
                self.note(pair);
            }
            Step::Drain => pair.server.conn.drain(pair.now),
        }
    }

    fn release(&mut self, pair: &mut Pair, server: bool, stream: StreamId) {
        let side = if server {
            &mut pair.server
        } else {
            &mut pair.client
        };
        let flow = &mut self.flows.get_mut(&stream.get()).unwrap()[usize::from(!server)];
        side.conn
            .release(stream, std::mem::take(&mut flow.unreleased));
    }

    /// Ends every stream and lets everything arrive.
    fn finish(&mut self, pair: &mut Pair) {
        let ids: Vec<_> = self.flows.keys().copied().map(StreamId).collect();
        for _ in 0..100_000 {
            let mut quiet = !pair.step(usize::MAX);
            self.note(pair);
            for &id in &ids {
                for server in [false, true] {
                    let flow = &self.flows[&id.get()][usize::from(!server)];
                    quiet &= flow.unreleased == 0;
                    self.release(pair, server, id);
                }
                if pair.client.conn.data(id, b"", true).is_ok() {
                    self.flows.get_mut(&id.get()).unwrap()[0].sent_end = true;
                    quiet = false;
                }
                if !self.responded.contains_key(&id.get())
                    && pair.server.conn.headers(id, &response(), false).is_ok()
                {
                    self.responded.insert(id.get(), true);
                    quiet = false;
                }
                if self.responded.contains_key(&id.get())
                    && pair.server.conn.headers(id, &trailers(), true).is_ok()
                {
                    self.flows.get_mut(&id.get()).unwrap()[1].sent_end = true;
                    quiet = false;
                }
            }
            if quiet {
                return;
            }
        }
        panic!("never quiet");
    }
}

/// Everything that a connection wrote obeys the rules that a reader cannot always see broken: stream ids
/// rise, nothing follows END_STREAM but RST_STREAM, nothing at all follows RST_STREAM, one RST.
fn obeys(wrote: &[u8], client: bool) {
    let mut rest = wrote.strip_prefix(PREFACE).unwrap_or(wrote);
    let (mut highest, mut ended, mut reset) = (0, BTreeMap::new(), BTreeMap::new());
    while let Some((head, tail)) = rest.split_first_chunk::<9>() {
        let head = Head::parse(head);
        rest = &tail[head.len as usize..];
        let id = head.stream;
        if id == 0 {
            continue;
        }
        assert!(!reset.contains_key(&id), "{head:?} after RST_STREAM");
        match head.kind {
            kind::HEADERS | kind::DATA => {
                assert!(!ended.contains_key(&id), "{head:?} after END_STREAM");
                if client && id > highest {
                    assert_eq!(head.kind, kind::HEADERS);
                    highest = id;
                }
                if head.has(ES) {
                    ended.insert(id, ());
                }
            }
            kind::RST_STREAM => {
                assert!(!client || id <= highest, "{head:?} on an idle stream");
                reset.insert(id, ());
            }
            kind::WINDOW_UPDATE => {}
            _ => panic!("{head:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn legal_traffic_arrives_whole_and_leaves_nothing(
        client in config(),
        server in config(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut pair = Pair::with(client, server);
        for side in [&mut pair.client, &mut pair.server] {
            side.releases = false;
            side.wrote = Some(Vec::new());
        }
        let mut book = Book::default();
        for step in &steps {
            book.take(&mut pair, step);
        }
        book.finish(&mut pair);
        for (id, flows) in &book.flows {
            for flow in flows {
                if book.reset.contains_key(id) {
                    prop_assert!(flow.sent.starts_with(&flow.got));
                } else {
                    prop_assert!(flow.got == flow.sent, "stream {id}");
                    prop_assert!(flow.got_end && flow.sent_end, "stream {id}");
                }
            }
        }
        for (side, client) in [(&mut pair.client, true), (&mut pair.server, false)] {
            prop_assert_eq!(side.conn.live_streams(), 0);
            prop_assert_eq!(side.conn.queued_bytes(), 0);
            prop_assert!(!side.conn.streams.any_ready());
            let (left, unreleased) = (side.conn.recv_window.left(), side.conn.recv_window.unreleased());
            prop_assert_eq!(unreleased, 0);
            prop_assert!(left * 2 >= i64::from(side.conn.targets.connection));
            obeys(side.wrote.as_deref().unwrap_or_default(), client);
        }
        // What one thinks it may send is what the other thinks it may get.
        for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
            let may_send = from.conn.send_window.available() as i64;
            prop_assert_eq!(may_send, to.conn.recv_window.left());
        }
    }

    #[test]
    fn any_bytes_are_answered_and_never_panic(
        server in any::<bool>(),
        frames in prop::collection::vec(
            (0..12u8, any::<u8>(), 0..8u32, prop::collection::vec(any::<u8>(), 0..40)),
            0..40,
        ),
        cut in 1..100usize,
    ) {
        let mut script = if server { Script::server() } else { Script::client() };
        if !server {
            for _ in 0..3 {
                script.side.conn.open(&request(), 0, false).unwrap();
            }
        }
        let bytes: Vec<u8> = frames
            .iter()
            .flat_map(|(kind, flags, id, payload)| super::script::raw(*kind, *flags, *id, payload))
            .collect();
        for piece in bytes.chunks(cut) {
            let _ = script.side.take(piece, script.now);
        }
        script.side.give(usize::MAX);
        let conn = &script.side.conn;
        prop_assert!(conn.live_streams() <= 10);
    }

    #[test]
    fn cuts_do_not_matter(
        cut in 1..60usize,
        bodies in prop::collection::vec((0..300usize, any::<bool>()), 1..6),
    ) {
        let mut whole = Script::server();
        let mut frames = Vec::new();
        for (n, (len, padded)) in bodies.iter().enumerate() {
            let id = 2 * u32::try_from(n).unwrap() + 1;
            frames.push(whole.headers(id, &with_text(*len), 0));
            frames.push(match padded {
                true => data(id, &[&[7][..], &vec![1; *len], &[0; 7]].concat(), ES | 8),
                false => data(id, &vec![1; *len], ES),
            });
        }
        let bytes = frames.concat();
        let joined = |seen: Vec<Seen>| {
            let mut by_stream: BTreeMap<u32, (usize, bool, usize)> = BTreeMap::new();
            for seen in seen {
                match seen {
                    Seen::Headers { stream, fields, .. } => {
                        by_stream.entry(stream).or_default().2 += fields.len();
                    }
                    Seen::Data { stream, bytes, end } => {
                        let entry = by_stream.entry(stream).or_default();
                        entry.0 += bytes.len();
                        assert!(!entry.1);
                        entry.1 = end;
                    }
                    other => panic!("{other:?}"),
                }
            }
            by_stream
        };
        let at_once = joined(whole.send(std::slice::from_ref(&bytes)));
        let mut pieces = Script::server();
        for piece in bytes.chunks(cut) {
            let _ = pieces.side.take(piece, pieces.now);
        }
        prop_assert_eq!(joined(pieces.side.news()), at_once);
    }
}

fn with_text(len: usize) -> Fields {
    let text = "t".repeat(len);
    let mut fields = request();
    for field in list(&[("x-text", &text)]).iter() {
        fields.push(field.name, field.value);
    }
    fields
}
