//! The record of an ended call. Metrics read it today; access log, trace and tap will read it too. Plain values only:
//! no sockets, and nothing borrowed from the table.

use std::time::Duration;

use heddle_proto::Reason;

use crate::caller::Role;

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// The listener that accepted it.
    pub role: Role,
    /// Full name of the mesh service, or `unknown` if routing found none.
    pub service: &'a str,
    /// The method as in the path. It need not be text; the counters limit its length.
    pub method: &'a [u8],
    /// The gRPC status that the caller got; for a call that is not gRPC, the one that corresponds to its HTTP status.
    pub status: u8,
    /// The reason, if a proxy caused the failure.
    pub reason: Option<Reason>,
    /// Number of attempts sent upstream.
    pub attempts: u32,
    /// From the request's headers to the end of the response.
    pub duration: Duration,
    /// The endpoint that answered or failed last.
    pub endpoint: Option<u64>,
}

/// The gRPC status that corresponds to an HTTP status (gRPC's "HTTP to gRPC status code mapping").
#[must_use]
pub fn grpc_status_of_http(status: u16) -> u8 {
    match status {
        200..=299 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
