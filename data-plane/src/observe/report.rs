//! What a worker reports to the control side at once, beside what is read from its counters.

use std::sync::Arc;

/// Something that the control side acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A local instance's address refused a connection.
    EndpointRefused {
        /// The endpoint's uid.
        uid: u64,
    },
    /// A connection to a local instance broke.
    EndpointLost {
        /// The endpoint's uid.
        uid: u64,
    },
    /// A service was called whose endpoints are not held: reported once per table.
    ServiceWanted {
        /// Full name.
        service: Arc<str>,
    },
}
