//! The pipe between the two sides: splits the bytes at random, and can rewrite the frames of the
//! `h2` crate on their way to heddle-h2, because that crate never pads, never adds priorities, and
//! seldom splits a header block.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};

use crate::plan::{Plan, Random};

/// The ends for heddle-h2 and for the `h2` crate.
pub(crate) fn pipe(plan: &Plan) -> (DuplexStream, DuplexStream) {
    let (our_end, near) = duplex(plan.pipe.buffer);
    let (their_end, far) = duplex(plan.pipe.buffer);
    let (from_us, to_us) = split(near);
    let (from_them, to_them) = split(far);
    let random = Random::new(plan.seed ^ 0x9999);
    tokio::spawn(copy(from_us, to_them, plan.pipe.piece, random.clone()));
    if plan.pipe.mangle {
        tokio::spawn(mangle(from_them, to_us, plan.pipe.piece, random));
    } else {
        tokio::spawn(copy(from_them, to_us, plan.pipe.piece, random));
    }
    (our_end, their_end)
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    largest: usize,
    mut random: Random,
) {
    let mut buffer = vec![0; largest];
    loop {
        let size = random.below(1..largest + 1);
        let Ok(read @ 1..) = from.read(&mut buffer[..size]).await else {
            break;
        };
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const HAS_PRIORITY: u8 = 0x20;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn put(&self, out: &mut Vec<u8>) {
        let len = u32::try_from(self.payload.len()).expect("a frame's length");
        out.extend_from_slice(&len.to_be_bytes()[1..]);
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.stream.to_be_bytes());
        out.extend_from_slice(&self.payload);
    }
}

async fn mangle(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    largest: usize,
    mut random: Random,
) {
    let mut first = true;
    let mut settled = false;
    while let Some(frame) = next_frame(&mut from, &mut first, &mut to).await {
        let mut out = Vec::new();
        if settled && !matches!(frame.kind, CONTINUATION) {
            intersperse(frame.stream, &mut random, &mut out);
        }
        settled = frame.kind != HEADERS || frame.flags & END_HEADERS != 0;
        match frame.kind {
            DATA => remake_data(&frame, &mut random, &mut out),
            HEADERS => remake_headers(&frame, &mut random, &mut out),
            _ => frame.put(&mut out),
        }
        let mut rest = &out[..];
        while !rest.is_empty() {
            let size = random.below(1..largest + 1).min(rest.len());
            if to.write_all(&rest[..size]).await.is_err() {
                return;
            }
            rest = &rest[size..];
        }
    }
    let _ = to.shutdown().await;
}

/// The next frame; the client's preface, if there is one, is passed on as it is.
async fn next_frame(
    from: &mut (impl AsyncRead + Unpin),
    first: &mut bool,
    to: &mut (impl AsyncWrite + Unpin),
) -> Option<Frame> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await.ok()?;
    if std::mem::take(first) && PREFACE.starts_with(&head) {
        let mut rest = [0; PREFACE.len() - 9];
        from.read_exact(&mut rest).await.ok()?;
        to.write_all(PREFACE).await.ok()?;
        from.read_exact(&mut head).await.ok()?;
    }
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let mut payload = vec![0; len];
    from.read_exact(&mut payload).await.ok()?;
    Some(Frame {
        kind: head[3],
        flags: head[4],
        stream,
        payload,
    })
}

/// Frames that mean nothing and are legal anywhere between others.
fn intersperse(stream: u32, random: &mut Random, out: &mut Vec<u8>) {
    let payload = vec![0xaa; random.below(0..20)];
    match random.below(0..8) {
        0 => Frame {
            kind: 0xbb,
            flags: 0xff,
            stream,
            payload,
        }
        .put(out),
        1 => Frame {
            kind: PING,
            flags: 0,
            stream: 0,
            payload: vec![7; 8],
        }
        .put(out),
        2 if stream > 0 => {
            Frame {
                kind: PRIORITY,
                flags: 0,
                stream,
                payload: vec![0, 0, 0, 0, 9],
            }
            .put(out);
        }
        _ => {}
    }
}

fn remake_data(frame: &Frame, random: &mut Random, out: &mut Vec<u8>) {
    let cut = random.below(0..frame.payload.len() + 1);
    let (head, tail) = frame.payload.split_at(cut);
    // A piece of its own first, which may be empty.
    if random.one_in(2) {
        let (flags, stream) = (frame.flags & !END_STREAM, frame.stream);
        padded(
            Frame {
                kind: DATA,
                flags,
                stream,
                payload: head.to_vec(),
            },
            random,
        )
        .put(out);
        let payload = tail.to_vec();
        padded(
            Frame {
                kind: DATA,
                flags: frame.flags,
                stream,
                payload,
            },
            random,
        )
        .put(out);
    } else {
        let payload = frame.payload.clone();
        padded(Frame { payload, ..*frame }, random).put(out);
    }
}

/// With padding or without.
fn padded(mut frame: Frame, random: &mut Random) -> Frame {
    if random.one_in(2) && frame.payload.len() < 16_000 {
        let padding = random.choose(&[0_u8, 1, 9, 200]);
        frame.payload.insert(0, padding);
        frame.payload.extend(vec![0; usize::from(padding)]);
        frame.flags |= PADDED;
    }
    frame
}

/// With priority, with padding, split over CONTINUATION frames: all, some or none of it.
fn remake_headers(frame: &Frame, random: &mut Random, out: &mut Vec<u8>) {
    if frame.flags & (PADDED | HAS_PRIORITY) != 0 || frame.flags & END_HEADERS == 0 {
        frame.put(out);
        return;
    }
    let stream = frame.stream;
    let mut cuts: Vec<usize> = (0..random.below(0..3))
        .map(|_| random.below(0..frame.payload.len() + 1))
        .collect();
    cuts.extend([0, frame.payload.len()]);
    cuts.sort_unstable();
    let parts: Vec<&[u8]> = cuts
        .windows(2)
        .map(|cut| &frame.payload[cut[0]..cut[1]])
        .collect();
    let last = parts.len() - 1;
    for (nth, part) in parts.iter().enumerate() {
        let end = if nth == last { END_HEADERS } else { 0 };
        if nth > 0 {
            Frame {
                kind: CONTINUATION,
                flags: end,
                stream,
                payload: part.to_vec(),
            }
            .put(out);
            continue;
        }
        let mut payload = part.to_vec();
        let mut flags = frame.flags & !END_HEADERS | end;
        if random.one_in(2) {
            payload.splice(0..0, [0x80, 0, 0, 0, 200]);
            flags |= HAS_PRIORITY;
        }
        padded(
            Frame {
                kind: HEADERS,
                flags,
                stream,
                payload,
            },
            random,
        )
        .put(out);
    }
}
