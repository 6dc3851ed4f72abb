//! One GET over HTTP/1.1, written by hand. Returns status and body, not the headers.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The status and the body, or what went wrong.
pub async fn get(addr: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let ask = async {
        let mut socket = TcpStream::connect(addr).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = ask.await.map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| format!("no status in {head:?}"))?;
    Ok((status, body.to_owned()))
}

/// The body as JSON, whatever the status.
pub async fn json(addr: SocketAddr, path: &str) -> Result<Value, String> {
    let (_, text) = get(addr, path).await?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}
