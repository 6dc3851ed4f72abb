//! HTTP/2 for the mesh's data path as a sans-IO state machine (RFC 9113, RFC 7541): takes the peer's
//! bytes and the application's commands, gives events and bytes to write. The application is the code
//! that uses this crate and does the I/O. A [`Connection`] is a client or a server. No sockets, no
//! clock (`now` is an argument), no runtime, so that it can be fuzzed, replayed and tested on virtual
//! time; and no meaning of gRPC, services or routes.
//!
//! # Interface
//!
//! * Input: [`Connection::recv`] takes bytes and gives one [`Event`] after another; header lists are in
//!   the caller's [`Fields`], DATA are slices of the input.
//! * Output: [`Connection::open`], [`Connection::headers`], [`Connection::data`],
//!   [`Connection::release`], [`Connection::reset`]; then write [`Connection::output`] and report how
//!   much was written with [`Connection::advance`]. [`Connection::poll_drained`] reports what left the
//!   queues.
//! * Time: [`Connection::deadline`], [`Connection::on_deadline`].
//! * End: [`Connection::drain`], [`Connection::close`]; after a [`ConnectionError`] the GOAWAY is in the
//!   output already.
//!
//! # Limits
//!
//! | What a peer can drive | Limit ([`Config`]) | Beyond it | RFC 9113 |
//! |---|---|---|---|
//! | decoded header list | `header_list_bytes` 32 KiB, `header_fields` 256 | [`Event::TooLarge`] | §6.5.2, §10.5.1 |
//! | header list that is discarded | `header_block_bytes` 1 MiB, encoded and decoded | ENHANCE_YOUR_CALM | §6.10, §10.5.1 |
//! | frames and time of a header block | 8 and one for each 8 KiB of `header_block_bytes`, `header_block_timeout` 10 s | ENHANCE_YOUR_CALM | §6.10 |
//! | memory of a header block | 400 KiB: two strings of 4 × `header_list_bytes` each, 64 KiB, a list | waits for its end | §10.5.1 |
//! | HPACK tables | 4 KiB each way | | RFC 7541 §4 |
//! | streams at once | `max_concurrent_streams` 1000 | REFUSED_STREAM | §5.1.2 |
//! | DATA not passed on | `stream_window` 64 KiB, growing to `max_stream_window` 4 MiB | FLOW_CONTROL_ERROR | §5.2 |
//! | DATA on the wire | `connection_window` 1 MiB, growing to `max_connection_window` 16 MiB | FLOW_CONTROL_ERROR | §5.2 |
//! | header lists and DATA waiting to be sent | what the application takes from the other side | | |
//! | unwritten output | `output_high_water` 256 KiB, 16 KiB in low memory; then lists and DATA queue | | |
//! | responses not read | their streams are live until written: `max_concurrent_streams` | REFUSED_STREAM | §5.1.2 |
//! | answers not read | `control_queue` 1000 | ENHANCE_YOUR_CALM | §10.5 |
//! | streams reset by the client when hardly begun, beyond four per completed one | `resets` 1000 + 100/s (server) | ENHANCE_YOUR_CALM | §10.5 |
//! | RST_STREAM provoked | `provoked_resets` 200 + 33/s | ENHANCE_YOUR_CALM | §10.5 |
//! | PING, SETTINGS, WINDOW_UPDATE, PRIORITY, unknown, empty DATA | `control_frames` 2000 + 100/s + 4 per useful frame | ENHANCE_YOUR_CALM | §10.5 |
//! | parameters in one SETTINGS | 32 | ENHANCE_YOUR_CALM | §6.5 |
//! | acknowledgement of SETTINGS | `settings_ack_timeout` 10 s | SETTINGS_TIMEOUT | §6.5.3 |
//! | ended streams remembered | 256 | | §5.1 |

mod connection;
mod recv;
mod control;
mod message;
mod fault;
mod send;
mod queue;
mod shutdown;
mod output;
mod event;
mod error;
mod frame;
mod headers;
mod fields;
#[doc(hidden)]
pub mod hpack;
mod stream;
mod streams;
mod flow;
mod settings;
mod abuse;

pub use connection::{Connection, Counters};
pub use error::{ConnectionError, ErrorCode, Gone, Initiator, OpenError};
pub use event::{Drained, Event, Kind, StreamId, Token};
pub use fields::{Field, Fields};
pub use settings::{Config, Rate};

#[cfg(test)]
mod tests;
