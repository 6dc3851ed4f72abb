//! Descriptors by the SHA-256 of their bytes, as the services gave them. In come uploads, checked before anything
//! is written; out come the same bytes. No pass through generated descriptor types: it would drop extensions
//! such as `google.api.http`.

use bytes::Bytes;
use heddle_proto::store::v1::SchemaRecord;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use sha2::{Digest as _, Sha256};

use crate::store::{Store, StoreError, keys};

pub use heddle_proto::rules::MAX_SCHEMA_BYTES;

/// Why descriptors were not taken.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SchemaError {
    #[error("the descriptors {sha256} have {bytes} bytes; at most {MAX_SCHEMA_BYTES} are allowed")]
    TooLarge { sha256: String, bytes: usize },
    #[error("the descriptors that came as {told} have the SHA-256 {found}")]
    HashDiffers { told: String, found: String },
    #[error("the descriptors {sha256} are not a FileDescriptorSet: {cause}")]
    Undecodable { sha256: String, cause: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks descriptors and keeps them, byte for byte. Keeping them again changes nothing that a reader sees.
pub(super) async fn keep(
    store: &dyn Store,
    sha256: &str,
    file_descriptor_set: Bytes,
) -> Result<(), SchemaError> {
    check(sha256, &file_descriptor_set)?;
    let record = SchemaRecord {
        file_descriptor_set,
    };
    store
        .put(&keys::schema(sha256), record.encode_to_vec().into())
        .await?;
    Ok(())
}

pub(super) async fn load(store: &dyn Store, sha256: &str) -> Option<Bytes> {
    match store.get(&keys::schema(sha256)).await {
        Ok(Some(found)) => match SchemaRecord::decode(found.value) {
            Ok(record) => Some(record.file_descriptor_set),
            Err(error) => {
                tracing::error!(sha256, %error, "descriptors of the store cannot be read");
                None
            }
        },
        Ok(None) => None,
        Err(error) => {
            tracing::warn!(sha256, %error, "descriptors cannot be read from the store");
            None
        }
    }
}

fn check(sha256: &str, bytes: &[u8]) -> Result<(), SchemaError> {
    if bytes.len() > MAX_SCHEMA_BYTES {
        return Err(SchemaError::TooLarge {
            sha256: sha256.to_owned(),
            bytes: bytes.len(),
        });
    }
    let found = hex(&Sha256::digest(bytes));
    if found != sha256 {
        return Err(SchemaError::HashDiffers {
            told: sha256.to_owned(),
            found,
        });
    }
    match FileDescriptorSet::decode(bytes) {
        Ok(_) => Ok(()),
        Err(error) => Err(SchemaError::Undecodable {
            sha256: sha256.to_owned(),
            cause: error.to_string(),
        }),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_descriptors_under_their_own_hash_are_taken() {
        let bytes = FileDescriptorSet { file: vec![] }.encode_to_vec();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(check(empty, &bytes), Ok(()));
        let text = check("00", &bytes).unwrap_err().to_string();
        assert!(text.contains(empty), "{text}");
        let broken = b"\x0a\xffnot a set";
        let error = check(&hex(&Sha256::digest(broken)), broken).unwrap_err();
        assert!(matches!(error, SchemaError::Undecodable { .. }), "{error}");
        let large = vec![0; MAX_SCHEMA_BYTES + 1];
        assert!(matches!(
            check("00", &large),
            Err(SchemaError::TooLarge { .. })
        ));
    }
}
