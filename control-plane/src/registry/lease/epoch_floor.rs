//! The floor of the epochs of nodes without a record. It is raised when the record of a node is removed, so that an old
//! process that returns later still has the lower epoch.

use crate::{
    names::keys,
    store::{Revision, Store, StoreError},
};

/// The floor. A node that is claimed without a record gets an epoch above it.
pub(super) async fn epoch_floor(store: &dyn Store) -> Result<u64, StoreError> {
    Ok(read(store).await?.0)
}

/// The floor, and the revision at which it was written.
pub(in crate::registry) async fn read(store: &dyn Store) -> Result<(u64, Revision), StoreError> {
    let Some(found) = store.get(keys::EPOCH_FLOOR).await? else {
        return Ok((0, Revision(0)));
    };
    let text = std::str::from_utf8(&found.value).unwrap_or_default();
    Ok((text.parse().unwrap_or(0), found.mod_revision))
}
