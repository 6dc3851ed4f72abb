//! Failures of the proxy on the wire: the only translation of a reason into status, message, headers and
//! `google.rpc.ErrorInfo`. Takes a failure, gives header lists. Does not decide what a failure is.

use std::{borrow::Cow, fmt};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use heddle_h2::{ErrorCode, Fields};
use heddle_proto::{ERROR_DOMAIN, Reason};
use prost::Message as _;
use tonic_types::pb::{ErrorInfo, Status};

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

/// What the header lists need besides the failure.
#[derive(Clone, Copy, Debug)]
pub struct FailureContext<'a> {
    /// The call's id.
    pub call: &'a str,
    /// This proxy's node.
    pub node: &'a str,
    /// Full name of the service, if one was found.
    pub service: Option<&'a str>,
    /// The caller is another proxy, which may get `heddle-unprocessed`.
    pub link: bool,
}

/// A complete gRPC response in one header list (gRPC's Trailers-Only), with the request's content type.
pub fn trailers_only(
    failure: &Failure,
    context: FailureContext<'_>,
    content_type: &[u8],
    out: &mut Fields,
) {
    out.clear();
    out.push(b":status", b"200");
    out.push(b"content-type", content_type);
    push_status(failure, context, out);
}

/// The trailers of a gRPC response whose headers have been sent.
pub fn trailers(failure: &Failure, context: FailureContext<'_>, out: &mut Fields) {
    out.clear();
    push_status(failure, context, out);
}

/// Removes fields until the list fits the peer's MAX_HEADER_LIST_SIZE: the details first, then the message and the
/// call's id.
pub fn fit(list_bytes: Option<u32>, out: &mut Fields) {
    let Some(bound) = list_bytes.and_then(|bytes| usize::try_from(bytes).ok()) else {
        return;
    };
    for name in [
        &b"grpc-status-details-bin"[..],
        b"grpc-message",
        b"heddle-call",
    ] {
        if out.list_bytes() > bound {
            out.remove(name);
        }
    }
}

/// The headers of an HTTP response whose body is the message.
pub fn http_headers(failure: &Failure, context: FailureContext<'_>, out: &mut Fields) {
    out.clear();
    out.push(b":status", failure.http_status().to_string().as_bytes());
    out.push(b"content-type", b"text/plain; charset=utf-8");
    out.push(
        b"content-length",
        http_body(failure, context).len().to_string().as_bytes(),
    );
    push_marks(failure, context, out);
}

/// The body for [`http_headers`].
#[must_use]
pub fn http_body(failure: &Failure, context: FailureContext<'_>) -> String {
    format!("{}: {}\n", failure.reason, failure.text(context.node))
}

fn push_status(failure: &Failure, context: FailureContext<'_>, out: &mut Fields) {
    out.push(b"grpc-status", failure.status().to_string().as_bytes());
    out.push(
        b"grpc-message",
        percent_encode(&failure.text(context.node)).as_bytes(),
    );
    // Without a mesh these two come without details, and clients compare them like that.
    if !matches!(failure.reason, Reason::DeadlineExceeded | Reason::NoRoute) {
        out.push(
            b"grpc-status-details-bin",
            details(failure, context).as_bytes(),
        );
    }
    push_marks(failure, context, out);
}

fn push_marks(failure: &Failure, context: FailureContext<'_>, out: &mut Fields) {
    out.push(b"heddle-reason", failure.reason.code().as_bytes());
    out.push(b"heddle-call", context.call.as_bytes());
    if failure.unprocessed && context.link {
        out.push(b"heddle-unprocessed", b"1");
    }
}

/// `google.rpc.Status` with one `ErrorInfo`, in base64 without padding.
fn details(failure: &Failure, context: FailureContext<'_>) -> String {
    let mut info = ErrorInfo {
        reason: failure.reason.code().to_owned(),
        domain: ERROR_DOMAIN.to_owned(),
        ..ErrorInfo::default()
    };
    let mut note = |key: &str, value: &str| info.metadata.insert(key.to_owned(), value.to_owned());
    note("node", context.node);
    note("call", context.call);
    if let Some(service) = context.service {
        note("service", service);
    }
    let status = Status {
        code: i32::from(failure.status()),
        message: failure.text(context.node).into_owned(),
        details: vec![prost_types::Any {
            type_url: "type.googleapis.com/google.rpc.ErrorInfo".to_owned(),
            value: info.encode_to_vec(),
        }],
    };
    STANDARD_NO_PAD.encode(status.encode_to_vec())
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

/// gRPC's percent-encoding of `grpc-message`: the characters from space to tilde stay, except the percent sign.
#[must_use]
pub fn percent_encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => drop(write!(out, "%{byte:02X}")),
            _ => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: FailureContext<'static> = FailureContext {
        call: "c0ffee",
        node: "a",
        service: Some("users.default"),
        link: false,
    };

    fn value(fields: &Fields, name: &str) -> String {
        String::from_utf8(fields.get(name.as_bytes()).unwrap_or_default().to_vec()).unwrap()
    }

    #[test]
    fn a_grpc_failure_is_trailers_only_with_the_requests_content_type() {
        let failure = Failure::new(Reason::ConnectionLost, "100 % of ‘users’ on node b lost\n");
        let mut out = Fields::new();
        trailers_only(&failure, CONTEXT, b"application/grpc+json", &mut out);
        assert_eq!(out.status(), Some(200));
        assert_eq!(value(&out, "content-type"), "application/grpc+json");
        assert_eq!(value(&out, "grpc-status"), "14");
        assert_eq!(
            value(&out, "grpc-message"),
            "100 %25 of %E2%80%98users%E2%80%99 on node b lost%0A"
        );
        assert_eq!(value(&out, "heddle-reason"), "CONNECTION_LOST");
        assert_eq!(value(&out, "heddle-call"), "c0ffee");
        let details = STANDARD_NO_PAD
            .decode(value(&out, "grpc-status-details-bin"))
            .unwrap();
        let status = Status::decode(&*details).unwrap();
        assert_eq!(
            (status.code, status.message.as_str()),
            (14, failure.message.as_str())
        );
        let info = ErrorInfo::decode(&*status.details[0].value).unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("CONNECTION_LOST", "heddle")
        );
        assert_eq!(info.metadata["service"], "users.default");
    }

    #[test]
    fn unprocessed_is_told_to_proxies_only() {
        let failure = Failure::new(Reason::NoEndpoints, "gone").unprocessed();
        let mut out = Fields::new();
        trailers(&failure, CONTEXT, &mut out);
        assert_eq!(out.get(b"heddle-unprocessed"), None);
        trailers(
            &failure,
            FailureContext {
                link: true,
                ..CONTEXT
            },
            &mut out,
        );
        assert_eq!(value(&out, "heddle-unprocessed"), "1");
    }

    /// Issue 10, C1.
    #[test]
    fn a_deadline_and_an_unknown_method_are_told_without_details() {
        let mut out = Fields::new();
        for &reason in Reason::ALL {
            trailers(&Failure::new(reason, "why"), CONTEXT, &mut out);
            let bare = matches!(reason, Reason::DeadlineExceeded | Reason::NoRoute);
            assert_eq!(
                out.get(b"grpc-status-details-bin").is_none(),
                bare,
                "{reason}"
            );
            assert_eq!(value(&out, "heddle-reason"), reason.code());
            assert_eq!(value(&out, "heddle-call"), "c0ffee");
            assert_eq!(value(&out, "grpc-message"), "node a: why");
        }
    }

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
            let mut out = Fields::new();
            trailers(&failure, CONTEXT, &mut out);
            assert_eq!(value(&out, "grpc-status"), status.to_string(), "{code}");
            assert_eq!(value(&out, "heddle-reason"), "UPSTREAM_RESET");
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
        let failure = Failure::new(Reason::NoRoute, "no service userz");
        let mut out = Fields::new();
        http_headers(&failure, CONTEXT, &mut out);
        assert_eq!(
            http_body(&failure, CONTEXT),
            "NO_ROUTE: node a: no service userz\n"
        );
        assert_eq!(
            value(&out, "content-length"),
            http_body(&failure, CONTEXT).len().to_string()
        );
        assert_eq!(value(&out, "heddle-reason"), "NO_ROUTE");
    }

    #[test]
    fn a_peer_that_takes_little_still_gets_the_status() {
        let mut out = Fields::new();
        trailers(
            &Failure::new(Reason::ConnectionLost, "x".repeat(500)),
            CONTEXT,
            &mut out,
        );
        fit(None, &mut out);
        assert_eq!(out.len(), 5);
        fit(Some(200), &mut out);
        assert_eq!(
            (value(&out, "grpc-status"), value(&out, "heddle-reason")),
            ("14".into(), "CONNECTION_LOST".into())
        );
        assert!(out.list_bytes() <= 200);
    }

    #[test]
    fn a_long_sentence_is_cut_between_letters() {
        let failure = Failure::new(Reason::NoRoute, "ü".repeat(2000));
        assert_eq!(failure.text("a").len(), "node a: ".len() + MESSAGE_BYTES);
        assert!(
            percent_encode(&failure.text("a"))
                .bytes()
                .all(|b| (0x20..0x7f).contains(&b))
        );
    }
}
