//! The wire format of a link's handshake: path and version of Hello, and gRPC's message frame. Converts messages to
//! bytes and back; pure.

use prost::Message;

/// Path of the first request of a link.
pub(super) const HELLO_PATH: &[u8] = b"/heddle.link.v1.Link/Hello";
/// The version of the link protocol that this proxy speaks.
pub(super) const VERSION: u32 = 1;

/// One message in a gRPC frame: uncompressed flag, length, bytes.
pub(super) fn frame(message: &impl Message) -> Vec<u8> {
    let len = message.encoded_len();
    let mut bytes = Vec::with_capacity(len + 5);
    bytes.push(0);
    bytes.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes
}

/// The message of a body, if it is exactly one uncompressed message.
pub(super) fn unframe(bytes: &[u8]) -> Option<&[u8]> {
    let (head, message) = bytes.split_first_chunk::<5>()?;
    let [0, a, b, c, d] = *head else { return None };
    let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    (message.len() == len).then_some(message)
}

#[cfg(test)]
mod tests {
    use heddle_proto::link::v1::HelloResponse;

    use super::*;

    #[test]
    fn one_message_comes_back() {
        let hello = HelloResponse {
            version: 1,
            node: "a".into(),
            incarnation: "x".into(),
        };
        let bytes = frame(&hello);
        assert_eq!(
            HelloResponse::decode(unframe(&bytes).unwrap()).unwrap(),
            hello
        );
        assert_eq!(unframe(&bytes[..bytes.len() - 1]), None);
        assert_eq!(unframe(&[&bytes[..], b"x"].concat()), None);
        assert_eq!(unframe(&[1, 0, 0, 0, 0]), None);
        assert_eq!(unframe(&[]), None);
    }
}
