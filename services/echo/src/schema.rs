//! The descriptors of the service: Echo's file, taken from the set of all protos.

use bytes::Bytes;
use prost::Message as _;
use prost_types::FileDescriptorSet;

use crate::EchoError;

/// The proto service that this program implements.
pub const PROTO_SERVICE: &str = "heddle.echo.v1.Echo";
const FILE: &str = "heddle/echo/v1/echo.proto";

/// A serialized `google.protobuf.FileDescriptorSet` with Echo's file. The file has no imports and no extensions, so
/// decoding and encoding it loses nothing.
///
/// # Errors
/// The set built into the program cannot be read or lacks the file.
pub fn descriptors() -> Result<Bytes, EchoError> {
    let mut set = FileDescriptorSet::decode(heddle_proto::DESCRIPTOR_SET)
        .map_err(|why| EchoError::Schema(why.to_string()))?;
    set.file.retain(|file| file.name() == FILE);
    if set.file.is_empty() {
        return Err(EchoError::Schema(format!("no {FILE}")));
    }
    Ok(set.encode_to_vec().into())
}

/// The decoded set; empty if it cannot be decoded.
pub(crate) fn decoded(set: &Bytes) -> FileDescriptorSet {
    FileDescriptorSet::decode(set.clone()).unwrap_or_default()
}
