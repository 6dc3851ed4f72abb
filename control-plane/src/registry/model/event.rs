//! One event of the store.

use std::sync::Arc;

use heddle_proto::store::v1::EventRecord;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Sorts by the time of writing.
    pub id: Arc<str>,
    pub record: EventRecord,
}
