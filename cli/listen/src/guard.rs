//! Protects a listener from web pages in the browser of somebody who can reach it. A page can send requests to any
//! address, under its own host name (DNS rebinding) or its own origin, and any body as `text/plain` without a
//! preflight. Input: a request's method, version and headers. Output: whether it is refused and why. Host and origin
//! are checked for HTTP/1.x only, because a page cannot make a browser speak HTTP/2 without TLS.

use std::net::IpAddr;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header,
};
use http_body_util::Full;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// The most characters of client input that are repeated in a response.
const MAX_QUOTED: usize = 100;

/// The host names of a listener.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// Lower case, without a trailing dot.
    names: Vec<String>,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "\"{0}\" is not a name of this listener: use its IP address, localhost or a name given \
         with --own-name"
    )]
    Host(String),
    #[error("web pages of \"{0}\" may not call this listener")]
    Origin(String),
    #[error("web pages of other sites may not call this listener")]
    CrossSite,
    #[error("this is a gRPC service: the content type must be application/grpc, not \"{0}\"")]
    ContentType(String),
    #[error("gRPC needs HTTP/2: use a gRPC client (or curl --http2-prior-knowledge)")]
    Version,
}

impl Refusal {
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Host(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin(_) | Self::CrossSite => StatusCode::FORBIDDEN,
            Self::ContentType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        }
    }

    /// The complete response.
    #[must_use]
    pub fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(format!("{self}\n"))));
        *response.status_mut() = self.status();
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

impl Guard {
    /// `names` are the host names of this host, beside IP addresses and `localhost`.
    #[must_use]
    pub fn new<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Self {
        let names = names.into_iter();
        Self {
            names: names.map(|name| plain(name.as_ref())).collect(),
        }
    }

    /// Whether a request may be answered. Requests over a Unix socket need no check: no page can use one.
    ///
    /// # Errors
    /// Why not.
    pub fn check<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        if request.version() > Version::HTTP_11 {
            return Ok(());
        }
        let headers = request.headers();
        let host = self.own_host(request.uri(), headers)?;
        for origin in headers.get_all(header::ORIGIN) {
            let origin = text(origin);
            if authority_of(&origin).is_none_or(|origin| Some(origin) != host) {
                return Err(Refusal::Origin(cut(&origin)));
            }
        }
        let site = headers.get_all(SEC_FETCH_SITE);
        if site.iter().any(|site| site == "cross-site") {
            return Err(Refusal::CrossSite);
        }
        Ok(())
    }

    /// The same for a listener, or a path of it, that only speaks gRPC.
    ///
    /// # Errors
    /// Why not.
    pub fn check_grpc<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        self.check(request)?;
        let kind = request.headers().get(header::CONTENT_TYPE);
        if !kind.is_some_and(is_grpc) {
            return Err(Refusal::ContentType(cut(
                &kind.map_or_else(String::new, text)
            )));
        }
        if request.version() < Version::HTTP_2 {
            return Err(Refusal::Version);
        }
        Ok(())
    }

    /// The authority that the request names; it must be one of ours. Only HTTP/1.0, which no browser speaks, may name
    /// none.
    fn own_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, Refusal> {
        let named = headers.get_all(header::HOST).iter().map(text);
        let named = named.chain(uri.authority().map(|named| named.as_str().to_owned()));
        let mut own = None;
        for name in named {
            let host = Authority::of(&name, "http").filter(|host| self.is_own(&host.name));
            match (host, &own) {
                (Some(host), None) => own = Some(host),
                (Some(host), Some(own)) if host == *own => {}
                _ => return Err(Refusal::Host(cut(&name))),
            }
        }
        Ok(own)
    }

    fn is_own(&self, name: &str) -> bool {
        let literal = name.trim_start_matches('[').trim_end_matches(']');
        // An address may be followed by its zone.
        let address = literal.split('%').next().unwrap_or_default();
        name == "localhost"
            || address.parse::<IpAddr>().is_ok()
            || self.names.iter().any(|own| own == name)
    }
}

/// Whether this is the content type of gRPC (not that of gRPC-Web, which no listener here supports).
#[must_use]
pub fn is_grpc(kind: &HeaderValue) -> bool {
    let rest = kind.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    name: String,
    port: u16,
}

impl Authority {
    fn of(authority: &str, scheme: &str) -> Option<Self> {
        let (name, port) = match authority.rsplit_once(':') {
            // "[::1]" has colons but no port.
            Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()?),
            _ if scheme == "https" => (authority, 443),
            _ => (authority, 80),
        };
        let is_name = !name.is_empty() && !name.contains('@');
        is_name.then(|| Self {
            name: plain(name),
            port,
        })
    }
}

/// Parses "http://host:port"; `None` for "null" and the like.
fn authority_of(origin: &str) -> Option<Authority> {
    let (scheme, authority) = origin.split_once("://")?;
    Authority::of(authority, scheme)
}

fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        *request.version_mut() = version;
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        request
    }

    fn status(check: Result<(), Refusal>) -> u16 {
        check.map_or_else(|refusal| refusal.status().as_u16(), |()| 200)
    }

    /// Issue 10, D3.
    #[test]
    fn only_own_names_and_own_pages_are_answered() {
        let guard = Guard::new(["Node-A", "mesh.example."]);
        for (headers, expect) in [
            (&[][..], 200),
            (&[("host", "127.0.0.1:15000")], 200),
            (&[("host", "[::1]:15000")], 200),
            (&[("host", "[fe80::1%25eth0]")], 200),
            (&[("host", "localhost:15000")], 200),
            (&[("host", "LOCALHOST.")], 200),
            (&[("host", "node-a:15000")], 200),
            (&[("host", "mesh.example")], 200),
            (&[("host", "evil.example:15000")], 421),
            (&[("host", "127.0.0.1.evil.example")], 421),
            (&[("host", "localhost.evil.example")], 421),
            (&[("host", "me@evil.example")], 421),
            (&[("host", "")], 421),
            (&[("host", "127.0.0.1"), ("host", "evil.example")], 421),
            (
                &[("host", "127.0.0.1:1"), ("origin", "http://127.0.0.1:1")],
                200,
            ),
            (
                &[("host", "localhost"), ("origin", "http://localhost")],
                200,
            ),
            (
                &[("host", "127.0.0.1:1"), ("origin", "http://127.0.0.1:2")],
                403,
            ),
            (
                &[("host", "127.0.0.1:1"), ("origin", "http://evil.example")],
                403,
            ),
            (&[("host", "127.0.0.1:1"), ("origin", "null")], 403),
            (
                &[("host", "127.0.0.1:1"), ("sec-fetch-site", "cross-site")],
                403,
            ),
            (
                &[("host", "127.0.0.1:1"), ("sec-fetch-site", "same-origin")],
                200,
            ),
            (&[("host", "127.0.0.1:1"), ("sec-fetch-site", "none")], 200),
        ] {
            let seen = status(guard.check(&request(Version::HTTP_11, headers)));
            assert_eq!(seen, expect, "{headers:?}");
            let http2 = status(guard.check(&request(Version::HTTP_2, headers)));
            assert_eq!(http2, 200, "{headers:?}");
        }
    }

    #[test]
    fn the_host_of_an_absolute_address_counts_too() {
        let mut request = request(Version::HTTP_11, &[("host", "127.0.0.1")]);
        *request.uri_mut() = "http://evil.example/".parse().unwrap();
        assert_eq!(status(Guard::default().check(&request)), 421);
    }

    #[test]
    fn grpc_is_recognized_by_its_content_type() {
        let guard = Guard::default();
        for (kind, expect) in [
            ("application/grpc", 200),
            ("application/grpc+proto", 200),
            ("application/grpc;charset=utf-8", 200),
            ("application/grpc-web", 415),
            ("application/grpcx", 415),
            ("text/plain", 415),
            ("application/x-www-form-urlencoded", 415),
        ] {
            let grpc = request(Version::HTTP_2, &[("content-type", kind)]);
            assert_eq!(status(guard.check_grpc(&grpc)), expect, "{kind}");
        }
        let grpc = request(Version::HTTP_2, &[]);
        assert_eq!(status(guard.check_grpc(&grpc)), 415);
        let old = request(Version::HTTP_11, &[("content-type", "application/grpc")]);
        assert_eq!(status(guard.check_grpc(&old)), 505);
    }
}
