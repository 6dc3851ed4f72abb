//! One event as the store holds it.

use std::sync::Arc;

use heddle_proto::store::v1::EventRecord;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Sorts by time of writing.
    pub id: Arc<str>,
    pub record: EventRecord,
}
