//! The plan of one connection from one seed: calls with headers, bodies and ends, and how the pipe
//! treats the bytes. Also what each side received, and how the two must compare.

use std::collections::BTreeMap;
use std::ops::Range;

/// Which side of the connection heddle-h2 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// SplitMix64: the same numbers everywhere, from any seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, range: Range<usize>) -> usize {
        let width = (range.end - range.start) as u64;
        range.start + usize::try_from(self.next() % width).expect("within the range")
    }

    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(0..times) == 0
    }

    pub(crate) fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(0..from.len())]
    }
}

/// Name, value, never-indexed.
pub(crate) type Header = (String, String, bool);

/// One half of a call.
#[derive(Clone, Debug)]
pub(crate) struct Half {
    pub(crate) headers: Vec<Header>,
    /// Sizes of the pieces that the body is sent in.
    pub(crate) pieces: Vec<usize>,
    pub(crate) trailers: Option<Vec<Header>>,
    /// RST_STREAM with this code after so many pieces, in place of the rest.
    pub(crate) reset: Option<(usize, u32)>,
    /// 1xx responses before the final one.
    pub(crate) informational: usize,
}

impl Half {
    pub(crate) fn body_len(&self) -> usize {
        self.pieces.iter().sum()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) nth: usize,
    pub(crate) path: String,
    pub(crate) request: Half,
    pub(crate) response: Half,
    /// The server answers when the headers have come, not when the request has ended.
    pub(crate) early: bool,
}

/// How the pipe treats the bytes.
#[derive(Clone, Debug)]
pub(crate) struct Pipe {
    /// Largest piece that is written or read at once.
    pub(crate) piece: usize,
    /// What the pipe holds.
    pub(crate) buffer: usize,
    /// Towards heddle-h2: pad, split and intersperse frames.
    pub(crate) mangle: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) calls: Vec<Call>,
    pub(crate) pipe: Pipe,
    pub(crate) our_window: u32,
    pub(crate) their_window: u32,
    pub(crate) our_high_water: usize,
    pub(crate) max_streams: u32,
    pub(crate) their_table: u32,
    pub(crate) their_frame: u32,
}

impl Plan {
    /// Many calls of all kinds.
    pub(crate) fn mixed(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let calls = random.below(1..40);
        let mut plan = Self::settings(seed, random);
        plan.calls = (0..calls)
            .map(|nth| call(nth, 3000, true, random))
            .collect();
        plan
    }

    /// As `mixed`, with bodies that leave room for padding in every window.
    pub(crate) fn mangled(seed: u64) -> Self {
        let random = &mut Random::new(seed ^ 0x00c0_ffee);
        let calls = random.below(1..20);
        let mut plan = Self::settings(seed, random);
        plan.calls = (0..calls)
            .map(|nth| call(nth, 1000, false, random))
            .collect();
        plan.our_window = 65_535;
        plan.pipe.mangle = true;
        plan
    }

    /// Few calls with bodies of up to a mebibyte.
    pub(crate) fn bulk(seed: u64) -> Self {
        let random = &mut Random::new(seed ^ 0xb01d);
        let calls = random.below(1..6);
        let mut plan = Self::settings(seed, random);
        plan.calls = (0..calls)
            .map(|nth| call(nth, 200_000, false, random))
            .collect();
        plan.our_window = random.choose(&[8_000, 65_535, 65_536]);
        plan.their_window = random.choose(&[8_000, 65_535, 1 << 20]);
        plan.pipe.piece = random.choose(&[1_000, 16_384, 70_000]);
        plan.pipe.buffer = 65_536;
        plan
    }

    fn settings(seed: u64, random: &mut Random) -> Self {
        let piece = random.choose(&[1, 3, 10, 100, 5_000, 70_000]);
        Self {
            seed,
            calls: Vec::new(),
            pipe: Pipe {
                piece,
                buffer: random.choose(&[64, 1_000, 65_536]),
                mangle: false,
            },
            our_window: random.choose(&[100, 5_000, 65_535, 65_536, 1 << 20]),
            their_window: random.choose(&[100, 5_000, 65_535, 1 << 20]),
            our_high_water: random.choose(&[100, 10_000, 256 * 1024]),
            max_streams: random.choose(&[1, 2, 7, 100, 1_000]),
            their_table: random.choose(&[0, 100, 4_096, 4_096, 65_536]),
            their_frame: random.choose(&[16_384, 16_384, 100_000]),
        }
    }
}

fn call(nth: usize, body: usize, small_pieces: bool, random: &mut Random) -> Call {
    let path = random.choose(&[
        "/",
        "/echo.Echo/Unary",
        "/heddle.echo.v1.Echo/BidiStream",
        "/x?y=z",
    ]);
    let mut request = half(body, small_pieces, random);
    let mut response = half(body, small_pieces, random);
    response.informational = if random.one_in(8) {
        random.below(1..4)
    } else {
        0
    };
    match random.below(0..8) {
        0 => request.reset = reset(&request, random),
        1 => response.reset = reset(&response, random),
        _ => {}
    }
    request
        .headers
        .push(("x-call".to_string(), nth.to_string(), false));
    let early = random.one_in(3);
    Call {
        nth,
        path: path.to_string(),
        request,
        response,
        early,
    }
}

fn reset(half: &Half, random: &mut Random) -> Option<(usize, u32)> {
    let code = random.choose(&[2, 5, 7, 8, 8, 8, 11, 0xdead_beef]);
    Some((random.below(0..half.pieces.len() + 1), code))
}

fn half(body: usize, small_pieces: bool, random: &mut Random) -> Half {
    let pieces = match random.below(0..6) {
        0 => 0,
        1..=3 => 1,
        _ => random.below(1..8),
    };
    let largest = if small_pieces && random.one_in(2) {
        20
    } else {
        body
    };
    let pieces: Vec<usize> = (0..pieces).map(|_| random.below(1..largest)).collect();
    let mut headers = headers(random);
    let trailers = random.one_in(2).then(|| self::headers(random));
    if trailers.is_none() && random.one_in(3) {
        let length = pieces.iter().sum::<usize>().to_string();
        headers.push(("content-length".to_string(), length, false));
    }
    Half {
        headers,
        pieces,
        trailers,
        reset: None,
        informational: 0,
    }
}

/// The header that is sent never-indexed.
const SECRET: &str = "x-secret";

/// Some repeat from call to call, some differ, some stand twice.
fn headers(random: &mut Random) -> Vec<Header> {
    let mut made = Vec::new();
    for _ in 0..random.below(0..8) {
        let varying = format!("{:016x}{:016x}", random.next(), random.next());
        let (name, value) = match random.below(0..10) {
            0 => ("content-type", "application/grpc".to_string()),
            1 => ("user-agent", "grpc-go/1.85.0".to_string()),
            2 => ("traceparent", format!("00-{varying}-0000000000000001-01")),
            3 => ("grpc-timeout", format!("{}m", random.below(1..100))),
            4 => ("authorization", format!("Bearer {varying}")),
            5 => (SECRET, varying),
            6 => ("x-repeated", random.choose(&["a", "b", "c"]).to_string()),
            7 => (
                "cookie",
                random
                    .choose(&["a=1", "session=0123456789abcdef0123456789"])
                    .to_string(),
            ),
            8 => ("x-empty", String::new()),
            _ => ("x-long", "long value, ".repeat(random.below(1..200))),
        };
        made.push((
            name.to_string(),
            value.trim_end().to_string(),
            name == SECRET,
        ));
    }
    made
}

/// The body of a half: what stands at each place depends on the call and the place.
pub(crate) fn body(nth: usize, range: Range<usize>) -> Vec<u8> {
    range
        .map(|at| u8::try_from((at * 7 + nth * 13 + at / 251) % 256).expect("below 256"))
        .collect()
}

/// How a half ended for who received it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum End {
    #[default]
    Open,
    Complete,
    Reset(u32),
}

/// Values by name, the values of a name in order: what HTTP says about order.
pub(crate) type ByName = BTreeMap<String, Vec<String>>;

pub(crate) fn by_name<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> ByName {
    let mut made = ByName::new();
    for (name, value) in headers {
        made.entry(name.to_string())
            .or_default()
            .push(value.to_string());
    }
    made
}

/// What was received of one half.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) informational: usize,
    pub(crate) headers: Option<ByName>,
    /// `:path` or `:status`
    pub(crate) first: String,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<ByName>,
    pub(crate) end: End,
    /// Names of the fields that came never-indexed, where the receiver can tell.
    pub(crate) sensitive: Option<Vec<String>>,
}

impl Call {
    /// In which ways what was seen differs from what was to be sent.
    pub(crate) fn faults(&self, request: &Seen, response: &Seen) -> Vec<String> {
        let mut faults = Vec::new();
        let broken = self.request.reset.is_some() || self.response.reset.is_some();
        self.compare(
            "request",
            &self.request,
            &self.path,
            request,
            broken,
            &mut faults,
        );
        self.compare(
            "response",
            &self.response,
            "200",
            response,
            broken,
            &mut faults,
        );
        let (mut at_server, mut at_client) = (vec![End::Complete], vec![End::Complete]);
        if let Some((_, code)) = self.request.reset {
            // It may have overtaken everything, and then nothing of the call came through.
            at_server = vec![End::Reset(code), End::Open];
            // Who resets a stream may read its own reset from it.
            at_client.extend([End::Open, End::Reset(code)]);
        }
        if let Some((_, code)) = self.response.reset {
            at_client = vec![End::Reset(code)];
            at_server.extend([End::Open, End::Reset(code)]);
        }
        if !at_server.contains(&request.end) {
            faults.push(format!(
                "request ended {:?}, not one of {at_server:?}",
                request.end
            ));
        }
        if !at_client.contains(&response.end) {
            faults.push(format!(
                "response ended {:?}, not one of {at_client:?}",
                response.end
            ));
        }
        faults
    }

    /// A half as seen: whole, or of a broken call a part from its beginning.
    fn compare(
        &self,
        what: &str,
        half: &Half,
        first: &str,
        seen: &Seen,
        broken: bool,
        faults: &mut Vec<String>,
    ) {
        let sent =
            |headers: &[Header]| by_name(headers.iter().map(|(n, v, _)| (n.as_str(), v.as_str())));
        let mut differs = |part: &str, is_wrong: bool, detail: String| {
            if is_wrong {
                faults.push(format!("{what} {part}: {detail}"));
            }
        };
        match &seen.headers {
            None => differs("headers", !broken, "none came".to_string()),
            Some(headers) => {
                let expect = sent(&half.headers);
                differs(
                    "headers",
                    *headers != expect,
                    format!("{headers:?}, not {expect:?}"),
                );
                differs(
                    "first",
                    seen.first != first,
                    format!("{}, not {first}", seen.first),
                );
                // Ours drops 1xx responses while its output is not read.
                let informational = (seen.informational, half.informational);
                differs(
                    "1xx",
                    informational.0 > informational.1,
                    format!("{informational:?}"),
                );
            }
        }
        let body = body(self.nth, 0..half.body_len());
        differs(
            "body",
            !body.starts_with(&seen.body),
            "other bytes".to_string(),
        );
        let missing = body.len() - seen.body.len().min(body.len());
        differs(
            "body",
            seen.end == End::Complete && missing > 0,
            format!("{missing} missing"),
        );
        if let Some(trailers) = &seen.trailers {
            let expect = half.trailers.as_deref().map(sent).unwrap_or_default();
            differs(
                "trailers",
                *trailers != expect,
                format!("{trailers:?}, not {expect:?}"),
            );
        } else {
            let expected = half
                .trailers
                .as_ref()
                .is_some_and(|trailers| !trailers.is_empty());
            differs(
                "trailers",
                seen.end == End::Complete && expected,
                "none came".to_string(),
            );
        }
        if let (Some(sensitive), true) = (&seen.sensitive, seen.headers.is_some()) {
            for (name, _, marked) in &half.headers {
                differs(
                    "mark",
                    *marked && !sensitive.contains(name),
                    format!("{name} lost it"),
                );
            }
        }
    }
}
