//! What the service says about itself: the one descriptor that is Echo's, cut out of the set of all protos.

use bytes::Bytes;
use prost::Message as _;
use prost_types::FileDescriptorSet;

use crate::EchoError;

/// The proto service that this program implements.
pub const PROTO_SERVICE: &str = "heddle.echo.v1.Echo";
const FILE: &str = "heddle/echo/v1/echo.proto";

/// A serialized `google.protobuf.FileDescriptorSet` with Echo's file, which imports nothing and carries no
/// extension: passing it through the generated descriptor types loses nothing.
///
/// # Errors
/// If the set built into the program cannot be read or has no such file.
pub fn descriptors() -> Result<Bytes, EchoError> {
    let mut set = FileDescriptorSet::decode(heddle_proto::DESCRIPTOR_SET)
        .map_err(|why| EchoError::Schema(why.to_string()))?;
    set.file.retain(|file| file.name() == FILE);
    if set.file.is_empty() {
        return Err(EchoError::Schema(format!("no {FILE}")));
    }
    Ok(set.encode_to_vec().into())
}

/// The set back as messages; empty if it is none.
pub(crate) fn decoded(set: &Bytes) -> FileDescriptorSet {
    FileDescriptorSet::decode(set.clone()).unwrap_or_default()
}
