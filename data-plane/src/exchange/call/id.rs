//! The id of a call, by which messages, logs and headers of both proxies name it.

/// A call's id: a new one, or the one from the caller's proxy. A new id is formatted only where it is used, which most
/// calls never need.
#[derive(Clone, Copy, Debug)]
pub(in crate::exchange) enum CallId {
    New(u64),
    Given(IdText),
}

/// An id as in headers, messages and logs.
#[derive(Clone, Copy, Debug)]
pub(in crate::exchange) struct IdText {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl CallId {
    /// Another proxy's id, if its characters and length are safe in headers and logs.
    pub(in crate::exchange) fn parse(value: &[u8]) -> Option<Self> {
        let fits = (1..=IdText::MAX).contains(&value.len());
        if !fits
            || !value
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        {
            return None;
        }
        let mut bytes = [0; IdText::MAX];
        bytes.get_mut(..value.len())?.copy_from_slice(value);
        Some(Self::Given(IdText {
            bytes,
            len: u8::try_from(value.len()).ok()?,
        }))
    }

    /// A new id is sixteen hexadecimal digits.
    pub(in crate::exchange) fn text(&self) -> IdText {
        let random = match self {
            Self::New(random) => random,
            Self::Given(text) => return *text,
        };
        let mut bytes = [b'0'; IdText::MAX];
        for (digits, byte) in bytes.chunks_exact_mut(2).zip(random.to_be_bytes()) {
            if let [high, low] = digits {
                (*high, *low) = (hex(byte >> 4), hex(byte & 15));
            }
        }
        IdText { bytes, len: 16 }
    }
}

impl IdText {
    pub(in crate::exchange) const MAX: usize = 40;

    pub(in crate::exchange) fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

fn hex(digit: u8) -> u8 {
    if digit < 10 {
        b'0' + digit
    } else {
        b'a' + digit - 10
    }
}

#[cfg(test)]
mod tests {
    use super::CallId;

    #[test]
    fn an_id_is_made_or_taken_over_if_it_is_harmless() {
        let new = CallId::New(0x0123_4567_89ab_cdef);
        assert_eq!(new.text().as_str(), "0123456789abcdef");
        let given = CallId::parse(b"0123456789abcdef").unwrap();
        assert_eq!(given.text().as_str(), "0123456789abcdef");
        for bad in [&b""[..], b"a b", b"a\"", &[b'a'; 41]] {
            assert!(CallId::parse(bad).is_none(), "{bad:?}");
        }
    }
}
