//! The code of RFC 7541 appendix B as tables, all built by the compiler from the lengths of the
//! codes: within the appendix, codes of equal length are consecutive in the order of the symbols
//! and shorter ones come first, so that lengths say everything.

/// How many bits one look-up of [`FAST`] takes: 12 hold two of the common symbols (5 to 7 bits)
/// at 16 KiB of table.
pub(super) const FAST_BITS: u32 = 12;

/// The length of each symbol's code in bits. EOS, 30 ones, is not listed: it may not be met.
#[rustfmt::skip]
pub(super) const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// The longest code.
const MAX_LEN: usize = 30;

/// The codes, right-aligned.
pub(super) static CODES: [u32; 256] = CANONICAL.codes;
static CANONICAL: Canonical = canonical();

/// What one look-up finds: up to two symbols and the bits that they take.
#[derive(Clone, Copy)]
pub(super) struct Fast(u32);

impl Fast {
    const LONG: Self = Self(0);

    const fn one(symbol: u8, bits: u32) -> Self {
        Self(symbol as u32 | bits << 16 | 1 << 20 | bits << 24)
    }

    const fn and(self, second: Self) -> Self {
        let bits = self.bits() + second.bits();
        Self((self.0 & 0xff) | (second.0 & 0xff) << 8 | bits << 16 | 2 << 20 | self.bits() << 24)
    }

    /// The symbols, the first in the low byte.
    pub(super) const fn text(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// Bits that all symbols take.
    pub(super) const fn bits(self) -> u32 {
        (self.0 >> 16) & 0xf
    }

    /// 1 or 2; 0 where the code is longer than [`FAST_BITS`].
    pub(super) const fn symbols(self) -> usize {
        (self.0 >> 20 & 0xf) as usize
    }

    /// Bits of the first symbol alone.
    pub(super) const fn first_bits(self) -> u32 {
        self.0 >> 24
    }
}

/// By the next [`FAST_BITS`] bits.
pub(super) static FAST: [Fast; 1 << FAST_BITS] = fast();

/// The symbol whose code, longer than [`FAST_BITS`], stands left-aligned in `bits`, and its
/// length; none for EOS.
pub(super) fn decode_long(bits: u64) -> Option<(u8, u32)> {
    let lengths = CANONICAL.lengths.iter().skip(FAST_BITS as usize + 1);
    let found = lengths.filter(|run| run.count > 0).find_map(|run| {
        let code = u32::try_from(bits >> (64 - run.len)).ok()?;
        let nth = code
            .checked_sub(run.first_code)
            .filter(|nth| *nth < run.count)?;
        Some((run.first_symbol + nth, run.len))
    });
    let (at, len) = found?;
    CANONICAL
        .symbols
        .get(at as usize)
        .map(|symbol| (*symbol, len))
}

/// The codes of one length.
#[derive(Clone, Copy)]
struct Run {
    len: u32,
    first_code: u32,
    /// Where its symbols begin in [`Canonical::symbols`].
    first_symbol: u32,
    count: u32,
}

struct Canonical {
    codes: [u32; 256],
    /// In the order of their codes.
    symbols: [u8; 256],
    lengths: [Run; MAX_LEN + 1],
}

#[allow(clippy::cast_possible_truncation)] // symbols are below 256, and const has no try_from
const fn canonical() -> Canonical {
    let mut made = Canonical {
        codes: [0; 256],
        symbols: [0; 256],
        lengths: [Run {
            len: 0,
            first_code: 0,
            first_symbol: 0,
            count: 0,
        }; MAX_LEN + 1],
    };
    let (mut code, mut placed, mut len) = (0_u32, 0_usize, 1);
    while len <= MAX_LEN {
        code <<= 1;
        let (first_code, first_symbol) = (code, placed as u32);
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == len {
                made.codes[symbol] = code;
                made.symbols[placed] = symbol as u8;
                (code, placed) = (code + 1, placed + 1);
            }
            symbol += 1;
        }
        let count = code - first_code;
        made.lengths[len] = Run {
            len: len as u32,
            first_code,
            first_symbol,
            count,
        };
        len += 1;
    }
    made
}

#[allow(clippy::cast_possible_truncation)] // symbols are below 256, and const has no try_from
const fn fast() -> [Fast; 1 << FAST_BITS] {
    let mut single = [Fast::LONG; 1 << FAST_BITS];
    let mut symbol = 0;
    while symbol < 256 {
        let len = LENGTHS[symbol] as u32;
        if len <= FAST_BITS {
            let first = (CANONICAL.codes[symbol] as usize) << (FAST_BITS - len);
            let mut at = first;
            while at < first + (1 << (FAST_BITS - len)) {
                single[at] = Fast::one(symbol as u8, len);
                at += 1;
            }
        }
        symbol += 1;
    }
    let mut table = single;
    let mut at = 0;
    while at < 1 << FAST_BITS {
        let first = single[at];
        let second = single[(at << first.bits()) & ((1 << FAST_BITS) - 1)];
        if first.symbols() == 1
            && second.symbols() == 1
            && first.bits() + second.bits() <= FAST_BITS
        {
            table[at] = first.and(second);
        }
        at += 1;
    }
    table
}
