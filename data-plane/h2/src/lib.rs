//! HTTP/2 for the mesh's data path as one sans-IO machine (RFC 9113, RFC 7541).

mod connection;
mod event;
mod error;
mod settings;
mod fields;
#[doc(hidden)]
pub mod hpack;

pub use connection::{Connection, Counters};
pub use error::{ConnectionError, ErrorCode, Gone, Initiator, OpenError};
pub use event::{Drained, Event, Kind, StreamId, Token};
pub use fields::{Field, Fields};
pub use settings::{Config, Rate};
