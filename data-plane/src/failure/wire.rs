//! Failures as header lists: the only translation of a reason into status, message, headers and
//! `google.rpc.ErrorInfo`. Takes a failure, gives header lists.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use heddle_h2::Fields;
use heddle_proto::{ERROR_DOMAIN, Reason};
use prost::Message as _;
use tonic_types::pb::{ErrorInfo, Status};

use super::Failure;

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
    use super::super::MESSAGE_BYTES;
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
    fn unprocessed_is_sent_to_proxies_only() {
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
    fn a_deadline_and_an_unknown_method_are_answered_without_details() {
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

    #[test]
    fn http_gets_the_message_as_body() {
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
    fn a_reset_is_sent_with_the_status_of_its_code() {
        let mut out = Fields::new();
        let failure = Failure::reset(heddle_h2::ErrorCode::ENHANCE_YOUR_CALM, "reset");
        trailers(&failure, CONTEXT, &mut out);
        assert_eq!(value(&out, "grpc-status"), "8");
        assert_eq!(value(&out, "heddle-reason"), "UPSTREAM_RESET");
    }
}
