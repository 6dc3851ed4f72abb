//! The one record of a finished call. Metrics read it today; access log, trace and tap will read the same.
//! Plain values only: no sockets and no borrow of the table.

use std::time::Duration;

use heddle_proto::Reason;

use crate::caller::Role;

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// Which listener it came in by.
    pub role: Role,
    /// Full name of the mesh service, or `unknown` when routing found none.
    pub service: &'a str,
    /// The method as in the path, which need not be text; made bounded where it is counted.
    pub method: &'a [u8],
    /// The gRPC status the caller saw; for a call that is not gRPC the one with the meaning of its HTTP status.
    pub status: u8,
    /// Why it failed, if a proxy made the failure.
    pub reason: Option<Reason>,
    /// How many times it was sent upstream.
    pub attempts: u32,
    /// From the request's headers to the end of the response.
    pub duration: Duration,
    /// Which endpoint answered or failed last.
    pub endpoint: Option<u64>,
}

/// The gRPC status with the meaning of an HTTP status (gRPC's "HTTP to gRPC status code mapping").
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
