//! One GET of an HTTP check, over a connection of its own (HTTP/1.1, so that any web server answers it). Input: an
//! address and a path. Output: a finding. Redirects are not followed: the instance itself must answer. The caller
//! bounds the time; the bytes are bounded here.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{printable, thresholds::Finding};

/// Bound on status line and headers, including those of interim responses.
const MAX_HEAD: usize = 16 * 1024;
/// Bounds on reading the body. It is read only so that the server does not log a broken pipe at each check; its content
/// is ignored.
const MAX_BODY: usize = 16 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_millis(100);

pub(super) async fn check(address: SocketAddr, path: &str) -> Finding {
    match get(address, path).await {
        Ok(Some(Head { status, .. })) if (200..300).contains(&status) => Finding::Passed,
        Ok(Some(Head { status, location })) => Finding::Failed(match location {
            Some(to) => format!(
                "GET {path} answers {status} to {}, and redirects are not followed: give the path that answers itself",
                printable(&to)
            ),
            None => format!("GET {path} answers {status}"),
        }),
        Ok(None) => Finding::Failed(format!(
            "GET {path} has no HTTP/1.1 answer: for a gRPC server use health kind grpc or tcp"
        )),
        Err(error) => Finding::Failed(format!("no HTTP answer from {address}: {error}")),
    }
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<Option<Head>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: heddle-proxy\r\naccept: */*\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut read = Vec::with_capacity(1024);
    let head = loop {
        match parse(&read) {
            Parsed::Head(head) => break head,
            Parsed::NoHttp => return Ok(None),
            Parsed::More if read.len() >= MAX_HEAD => return Ok(None),
            Parsed::More => {}
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(None);
        }
    };
    let mut rest = stream.take(MAX_BODY as u64);
    let _ = timeout(
        BODY_TIMEOUT,
        tokio::io::copy(&mut rest, &mut tokio::io::sink()),
    )
    .await;
    Ok(Some(head))
}

/// The relevant parts of a response.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Where a redirect points.
    location: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    More,
    NoHttp,
    Head(Head),
}

/// The final head in what has been read so far; interim responses (1xx) are skipped.
fn parse(read: &[u8]) -> Parsed {
    const START: &[u8] = b"HTTP/1.";
    let mut rest = read;
    loop {
        let common = rest.len().min(START.len());
        if rest.get(..common) != START.get(..common) {
            return Parsed::NoHttp;
        }
        // RFC 9112 §2.2: a lone LF ends a line as well.
        let mut lines = rest.split_inclusive(|b| *b == b'\n').map(|line| {
            let whole = line.ends_with(b"\n");
            (line.len(), line.trim_ascii_end(), whole)
        });
        let Some((mut end, line, true)) = lines.next() else {
            return Parsed::More;
        };
        let Some(status) = status_of(line) else {
            return Parsed::NoHttp;
        };
        let mut location = None;
        let mut complete = false;
        for (len, line, whole) in lines {
            if !whole {
                break;
            }
            end += len;
            if line.is_empty() {
                complete = true;
                break;
            }
            let text = String::from_utf8_lossy(line);
            if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("location")
            {
                location = Some(value.trim().to_owned());
            }
        }
        if !complete {
            return Parsed::More;
        }
        if !(100..200).contains(&status) {
            let location = location.filter(|_| (300..400).contains(&status));
            return Parsed::Head(Head { status, location });
        }
        rest = rest.get(end..).unwrap_or_default();
    }
}

/// The status of `HTTP/1.1 200 OK`.
fn status_of(line: &[u8]) -> Option<u16> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let word = words.nth(1).filter(|word| word.len() == 3)?;
    word.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Head, Parsed, parse};

    fn head(status: u16, location: Option<&str>) -> Parsed {
        Parsed::Head(Head {
            status,
            location: location.map(str::to_owned),
        })
    }

    #[test]
    fn heads() {
        for (read, expect) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", head(204, None)),
            ("HTTP/1.0 500\n\n", head(500, None)),
            (
                "HTTP/1.1 200 OK\r\nlocation: /x\r\n\r\nbody",
                head(200, None),
            ),
            (
                "HTTP/1.1 302 Found\r\nLOCATION: /login\r\n\r\n",
                head(302, Some("/login")),
            ),
            (
                "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
                head(200, None),
            ),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1", Parsed::More),
            ("HTTP/1.1 20", Parsed::More),
            ("HTTP/1.1 200 OK\r\nserver: x\r\n", Parsed::More),
            ("", Parsed::More),
            ("PRI * HTTP/2.0\r\n", Parsed::NoHttp),
            ("\0\0\x12\x04\0", Parsed::NoHttp),
            ("HTTP/1.1 abc\r\n\r\n", Parsed::NoHttp),
            ("HTTP/1.1 20000 OK\r\n\r\n", Parsed::NoHttp),
        ] {
            assert_eq!(parse(read.as_bytes()), expect, "{read:?}");
            // Wherever the response is cut, the part is never parsed as something else.
            for cut in 0..read.len() {
                let part = parse(&read.as_bytes()[..cut]);
                assert!(
                    part == Parsed::More || part == expect,
                    "{read:?} cut at {cut}: {part:?}"
                );
            }
        }
    }
}
