//! Reports of a worker to the control side that cannot wait until its counters are read.

use std::sync::Arc;

/// An event on which the control side acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A local instance's address refused a connection.
    EndpointRefused {
        /// The endpoint's uid.
        uid: u64,
    },
    /// A connection to a local instance was lost.
    EndpointLost {
        /// The endpoint's uid.
        uid: u64,
    },
    /// A service was called whose endpoints are not known yet; reported once per table.
    ServiceWanted {
        /// Full name.
        service: Arc<str>,
    },
}
