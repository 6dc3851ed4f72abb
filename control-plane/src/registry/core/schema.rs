//! Stores descriptors by the SHA-256 of their bytes, exactly as services sent them. Uploads are checked before they are
//! written, and are split if they are too long for one value of the store. Descriptors are never re-encoded from
//! generated types: that would drop extensions such as `google.api.http`.

use bytes::{Bytes, BytesMut};
use heddle_proto::store::v1::SchemaRecord;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use sha2::{Digest as _, Sha256};

use crate::{
    names::keys,
    store::{Compare, MAX_TXN_BYTES, Op, Store, StoreError, Txn},
};

pub use heddle_proto::rules::MAX_SCHEMA_BYTES;

/// Why descriptors were refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SchemaError {
    #[error("the descriptors {sha256} have {bytes} bytes; at most {MAX_SCHEMA_BYTES} are allowed")]
    TooLarge { sha256: String, bytes: usize },
    #[error("the descriptors sent as {claimed} have the SHA-256 {found}")]
    HashDiffers { claimed: String, found: String },
    #[error("the descriptors {sha256} are not a FileDescriptorSet: {cause}")]
    Undecodable { sha256: String, cause: String },
    #[error(
        "the descriptors {sha256} were deleted while they were being stored; they will be \
         requested again"
    )]
    Contended { sha256: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The size of a part's record without its bytes, at most.
const FRAME_BYTES: usize = 1024;
/// Attempts to store content whose parts are removed meanwhile.
const ATTEMPTS: usize = 3;

/// Checks descriptors and stores them byte for byte. Storing them again changes nothing for readers.
pub(in crate::registry) async fn keep(
    store: &dyn Store,
    sha256: &str,
    file_descriptor_set: Bytes,
) -> Result<(), SchemaError> {
    check(sha256, &file_descriptor_set)?;
    for _ in 0..ATTEMPTS {
        if write(store, sha256, &file_descriptor_set).await? {
            return Ok(());
        }
    }
    Err(SchemaError::Contended {
        sha256: sha256.to_owned(),
    })
}

/// False if a part was removed before the whole was written.
async fn write(store: &dyn Store, sha256: &str, bytes: &Bytes) -> Result<bool, StoreError> {
    let longest = store.max_value_bytes().min(MAX_TXN_BYTES);
    let part_bytes = longest.saturating_sub(FRAME_BYTES).max(1);
    let mut record = SchemaRecord::default();
    let mut compare = Vec::new();
    if bytes.len() <= part_bytes {
        record.file_descriptor_set = bytes.clone();
    } else {
        // The parts first: a reader that finds the key of the whole must find all parts.
        for start in (0..bytes.len()).step_by(part_bytes) {
            let key = keys::schema_part(sha256, record.parts);
            let part = SchemaRecord {
                file_descriptor_set: bytes.slice(start..bytes.len().min(start + part_bytes)),
                parts: 0,
            };
            let at = store.put(&key, part.encode_to_vec().into()).await?;
            compare.push(Compare::unchanged(&key, at));
            record.parts += 1;
        }
    }
    let then = vec![
        Op::put(&keys::schema(sha256), record.encode_to_vec()),
        Op::delete(&keys::marked_schema(sha256)),
    ];
    let txn = Txn {
        compare,
        then,
        ..Txn::default()
    };
    Ok(store.txn(txn).await?.succeeded)
}

/// None if the store has no descriptors of this hash, or invalid ones (which are logged).
pub(in crate::registry) async fn load(
    store: &dyn Store,
    sha256: &str,
) -> Result<Option<Bytes>, StoreError> {
    match read(store, sha256).await? {
        Some(Some(bytes)) => Ok(Some(bytes)),
        Some(None) => {
            tracing::error!(
                sha256,
                "the stored descriptors do not match their hash; treated as missing"
            );
            Ok(None)
        }
        None => Ok(None),
    }
}

/// The outer option is none if the key is absent, the inner one if its value is not valid descriptors.
async fn read(store: &dyn Store, sha256: &str) -> Result<Option<Option<Bytes>>, StoreError> {
    let Some(found) = store.get(&keys::schema(sha256)).await? else {
        return Ok(None);
    };
    let Ok(record) = SchemaRecord::decode(found.value) else {
        return Ok(Some(None));
    };
    if record.parts == 0 {
        return Ok(Some(Some(record.file_descriptor_set)));
    }
    let mut whole = BytesMut::new();
    for part in 0..record.parts {
        let found = store.get(&keys::schema_part(sha256, part)).await?;
        let part = found.and_then(|found| SchemaRecord::decode(found.value).ok());
        let Some(part) = part else {
            return Ok(Some(None));
        };
        if whole.len() + part.file_descriptor_set.len() > MAX_SCHEMA_BYTES {
            return Ok(Some(None));
        }
        whole.extend_from_slice(&part.file_descriptor_set);
    }
    let whole = whole.freeze();
    Ok(Some(
        (hex(&Sha256::digest(&whole)) == sha256).then_some(whole),
    ))
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
            claimed: sha256.to_owned(),
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
