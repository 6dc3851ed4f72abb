//! Failures of the proxy: the reason, the message, and the gRPC and HTTP status of both. `wire` makes header lists of
//! them. What has failed is decided elsewhere.

use std::{borrow::Cow, fmt};

use heddle_h2::ErrorCode;
use heddle_proto::Reason;

mod wire;

pub use wire::{
    FailureContext, fit, http_body, http_headers, percent_encode, trailers, trailers_only,
};

/// Longest message that is sent; longer ones are cut.
const MESSAGE_BYTES: usize = 1024;
/// gRPC's status UNAVAILABLE.
const UNAVAILABLE: u8 = 14;

/// Who caused a failure, if the reason alone does not show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fault {
    /// The service, its connection or the mesh.
    #[default]
    Service,
    /// The caller sent something wrong.
    Caller,
    /// The caller's header list is too large.
    CallerHeaders,
}

/// A failure of one call.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The reason.
    pub reason: Reason,
    /// The message: which service, node or address, what happened, what to do.
    pub message: String,
    /// Who caused it.
    pub fault: Fault,
    /// The application cannot have seen the call. Sent to the caller's proxy.
    pub unprocessed: bool,
    /// The gRPC status, if it is not that of the reason.
    status: Option<u8>,
}

impl Failure {
    /// The same failure with more to say.
    #[must_use]
    pub fn with_note(mut self, note: &str) -> Self {
        self.message = format!("{}; {note}", self.message);
        self
    }

    /// A failure caused by the service.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            fault: Fault::Service,
            unprocessed: false,
            status: None,
        }
    }

    /// A failure of a call that an instance reset with this code.
    #[must_use]
    pub fn reset(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(Reason::UpstreamReset, message).with_status(status_of_reset(code))
    }

    /// Sets a status other than that of the reason.
    #[must_use]
    pub fn with_status(mut self, status: u8) -> Self {
        self.status = Some(status);
        self
    }

    /// The gRPC status of the call.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.status.unwrap_or(self.reason.grpc_status())
    }

    /// Sets who caused it.
    #[must_use]
    pub fn by(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// Marks the call as never seen by the application.
    #[must_use]
    pub fn unprocessed(mut self) -> Self {
        self.unprocessed = true;
        self
    }

    /// The corresponding HTTP status, for requests that are not gRPC.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match self.reason {
            Reason::NoRoute => 404,
            Reason::AmbiguousRoute | Reason::InvalidRequest => 400,
            Reason::NoEndpoints
            | Reason::NoHealthyEndpoints
            | Reason::ConnectFailed
            | Reason::ConnectionLost
            | Reason::RetryBudgetExhausted
            | Reason::CircuitOpen
            | Reason::Draining
            | Reason::Overloaded
            | Reason::NotReady
            | Reason::FaultInjected => 503,
            Reason::UpstreamReset if self.status() == UNAVAILABLE => 503,
            Reason::UpstreamReset => 502,
            Reason::DeadlineExceeded => 504,
            Reason::Denied => 403,
            Reason::Unauthenticated => 401,
            Reason::RateLimited => 429,
            Reason::RequestTooLarge if self.fault == Fault::CallerHeaders => 431,
            Reason::RequestTooLarge => 413,
            Reason::ProtocolError if self.fault == Fault::Service => 502,
            Reason::ProtocolError => 400,
            Reason::ResponseInvalid => 500,
        }
    }

    /// The message as it is sent: limited in length, and with this node's name if it names no node.
    fn text(&self, node: &str) -> Cow<'_, str> {
        let mut end = self.message.len().min(MESSAGE_BYTES);
        while !self.message.is_char_boundary(end) {
            end -= 1;
        }
        let sentence = self.message.get(..end).unwrap_or_default();
        match sentence.contains("node ") {
            true => sentence.into(),
            false => format!("node {node}: {sentence}").into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

/// The gRPC status of a call that the server resets with this code (PROTOCOL-HTTP2.md, "HTTP2 Transport Mapping",
/// errors). UNAVAILABLE lets clients send the call again, so it is only for calls that cannot have run.
#[must_use]
pub fn status_of_reset(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::REFUSED_STREAM => UNAVAILABLE,
        ErrorCode::CANCEL => 1,
        ErrorCode::ENHANCE_YOUR_CALM => 8,
        ErrorCode::INADEQUATE_SECURITY => 7,
        _ => 13,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 10, C2: gRPC's table.
    #[test]
    fn a_reset_has_the_status_that_grpc_gives_its_code() {
        for (code, status, http) in [
            (ErrorCode::NO_ERROR, 13, 502),
            (ErrorCode::PROTOCOL_ERROR, 13, 502),
            (ErrorCode::INTERNAL_ERROR, 13, 502),
            (ErrorCode::FLOW_CONTROL_ERROR, 13, 502),
            (ErrorCode::SETTINGS_TIMEOUT, 13, 502),
            (ErrorCode::STREAM_CLOSED, 13, 502),
            (ErrorCode::FRAME_SIZE_ERROR, 13, 502),
            (ErrorCode::REFUSED_STREAM, 14, 503),
            (ErrorCode::CANCEL, 1, 502),
            (ErrorCode::COMPRESSION_ERROR, 13, 502),
            (ErrorCode::CONNECT_ERROR, 13, 502),
            (ErrorCode::ENHANCE_YOUR_CALM, 8, 502),
            (ErrorCode::INADEQUATE_SECURITY, 7, 502),
            (ErrorCode::HTTP_1_1_REQUIRED, 13, 502),
            (ErrorCode(0xff), 13, 502),
        ] {
            let failure = Failure::reset(code, "reset");
            assert_eq!(
                (failure.status(), failure.http_status()),
                (status, http),
                "{code}"
            );
            assert_eq!(failure.reason, Reason::UpstreamReset);
        }
    }

    #[test]
    fn http_gets_the_status_of_the_same_meaning() {
        for (failure, expect) in [
            (Failure::new(Reason::NoRoute, ""), 404),
            (
                Failure::new(Reason::RequestTooLarge, "").by(Fault::Caller),
                413,
            ),
            (
                Failure::new(Reason::RequestTooLarge, "").by(Fault::CallerHeaders),
                431,
            ),
            (Failure::new(Reason::RateLimited, ""), 429),
            (Failure::new(Reason::Unauthenticated, ""), 401),
            (Failure::new(Reason::Denied, ""), 403),
            (Failure::new(Reason::DeadlineExceeded, ""), 504),
            (Failure::new(Reason::Overloaded, ""), 503),
            (Failure::new(Reason::ResponseInvalid, ""), 500),
            (Failure::new(Reason::ProtocolError, ""), 502),
            (
                Failure::new(Reason::ProtocolError, "").by(Fault::Caller),
                400,
            ),
        ] {
            assert_eq!(failure.http_status(), expect, "{failure}");
        }
        let mut unavailable = Reason::ALL.iter().filter(|r| r.grpc_status() == 14);
        assert!(unavailable.all(|r| Failure::new(*r, "").http_status() == 503));
    }
}
