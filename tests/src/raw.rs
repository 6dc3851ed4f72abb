//! Raw HTTP/2 on the `h2` crate: a server that answers exactly as a test says, and a client that shows what a gRPC library
//! hides (whether the headers ended the stream, the code of a reset, the order of headers).

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::temp::free_addr;
use crate::wait::until;

/// Ample, so that only the test's own stalls stall anything.
const CONNECTION_WINDOW: u32 = 64 << 20;

type Answering = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One request as the server sees it.
pub struct Call {
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
    /// How many connections the server had accepted when this call came.
    pub connections: usize,
}

impl Call {
    /// Response headers of a gRPC service.
    pub fn head() -> Response<()> {
        Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .expect("a response")
    }

    /// Answers with these messages and these trailers.
    pub fn answer(&mut self, messages: &[&[u8]], trailers: HeaderMap) {
        let mut stream = self
            .respond
            .send_response(Self::head(), false)
            .expect("the stream is open");
        for message in messages {
            stream
                .send_data(frame(message), false)
                .expect("the stream is open");
        }
        stream.send_trailers(trailers).expect("the stream is open");
    }
}

/// The behaviour of a server apart from its responses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    /// SETTINGS_MAX_CONCURRENT_STREAMS.
    pub max_streams: Option<u32>,
    /// After so many requests on a connection it says GOAWAY and finishes what it has.
    pub retire_after: Option<usize>,
}

/// A server on a free loopback port that answers as the test says.
pub struct Server {
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start<A, F>(answer: A) -> Self
    where
        A: Fn(Call) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_with(Behaviour::default(), answer).await
    }

    pub async fn start_with<A, F>(behaviour: Behaviour, answer: A) -> Self
    where
        A: Fn(Call) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        // A port may be in use by a program that no test has started.
        let listener = until("a port", async || TcpListener::bind(free_addr()).await).await;
        let addr = listener.local_addr().expect("its address");
        let answer: Arc<dyn Fn(Call) -> Answering + Send + Sync> =
            Arc::new(move |call| Box::pin(answer(call)));
        let connections = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let number = connections.fetch_add(1, Ordering::Relaxed) + 1;
                tokio::spawn(serve(socket, behaviour, Arc::clone(&answer), number));
            }
        });
        Self { addr, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    socket: TcpStream,
    behaviour: Behaviour,
    answer: Arc<dyn Fn(Call) -> Answering + Send + Sync>,
    connections: usize,
) {
    let _ = socket.set_nodelay(true);
    let mut builder = h2::server::Builder::new();
    builder.initial_connection_window_size(CONNECTION_WINDOW);
    if let Some(max_streams) = behaviour.max_streams {
        builder.max_concurrent_streams(max_streams);
    }
    let Ok(mut connection) = builder.handshake(socket).await else {
        return;
    };
    let mut requests = 0;
    while let Some(Ok((request, respond))) = connection.accept().await {
        requests += 1;
        if behaviour.retire_after == Some(requests) {
            connection.graceful_shutdown();
        }
        tokio::spawn(answer(Call {
            request,
            respond,
            connections,
        }));
    }
}

/// A gRPC message in its frame, uncompressed.
pub fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.extend_from_slice(&[0]);
    framed.extend_from_slice(
        &u32::try_from(message.len())
            .expect("below 4 GiB")
            .to_be_bytes(),
    );
    framed.extend_from_slice(message);
    framed.freeze()
}

/// Reads a body to its end, crediting the window as it goes.
pub async fn body(stream: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut all = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

/// Everything that came back for one call.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// The headers ended the stream (trailers-only in gRPC).
    pub headers_only: bool,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
    pub reset: Option<Reason>,
}

impl Answer {
    /// A value from the trailers, or from the headers of a trailers-only answer.
    pub fn last(&self, name: &str) -> Option<String> {
        let place = self.trailers.as_ref().unwrap_or(&self.headers);
        let value = place.get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    }
}

/// One connection of a client.
#[derive(Clone)]
pub struct Client {
    send: SendRequest<Bytes>,
}

impl Client {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::connect_with_window(addr, 1 << 20).await
    }

    /// With this window for each stream: a client that does not read stalls after so many bytes.
    pub async fn connect_with_window(addr: SocketAddr, stream_window: u32) -> Self {
        let socket = TcpStream::connect(addr)
            .await
            .expect("the listener accepts");
        socket.set_nodelay(true).expect("a TCP socket");
        Self::over(socket, stream_window).await
    }

    /// Over a connection that is already there.
    pub async fn over<S>(socket: S, stream_window: u32) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(stream_window)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(socket)
            .await
            .expect("an HTTP/2 server");
        tokio::spawn(connection);
        Self { send }
    }

    /// Begins a call; the caller sends the body.
    pub async fn begin(
        &self,
        authority: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::builder()
            .version(Version::HTTP_2)
            .method(Method::POST)
            .uri(format!("http://{authority}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        request.headers_mut().extend(headers.clone());
        let mut send = self
            .send
            .clone()
            .ready()
            .await
            .expect("the connection lives");
        send.send_request(request, false)
            .expect("the connection lives")
    }

    /// One call with one message, read to its end.
    pub async fn call(
        &self,
        authority: &str,
        path: &str,
        headers: &HeaderMap,
        message: &[u8],
    ) -> Answer {
        let (response, mut stream) = self.begin(authority, path, headers).await;
        stream
            .send_data(frame(message), true)
            .expect("the stream is open");
        read(response).await
    }
}

/// Reads what comes back, to the end or to the reset.
pub async fn read(response: h2::client::ResponseFuture) -> Answer {
    let mut answer = Answer::default();
    let response = match response.await {
        Ok(response) => response,
        Err(error) => {
            answer.reset = error.reason();
            return answer;
        }
    };
    let (parts, mut stream) = response.into_parts();
    answer.status = parts.status.as_u16();
    answer.headers = parts.headers;
    answer.headers_only = stream.is_end_stream();
    match body(&mut stream).await {
        Ok(bytes) => answer.body = bytes,
        Err(error) => answer.reset = error.reason(),
    }
    match stream.trailers().await {
        Ok(trailers) => answer.trailers = trailers,
        Err(error) => answer.reset = answer.reset.or(error.reason()),
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::{Call, Client, Server, body, frame};
    use http::{HeaderMap, Response};

    #[tokio::test]
    async fn the_two_ends_show_each_other_what_gets_lost_elsewhere() {
        let server = Server::start(|mut call: Call| async move {
            let sent = body(call.request.body_mut()).await.unwrap();
            match call.request.uri().path() {
                "/reset" => call.respond.send_reset(h2::Reason::CANCEL),
                "/only" => {
                    let response = Response::builder().header("grpc-status", "5").body(());
                    call.respond.send_response(response.unwrap(), true).unwrap();
                }
                _ => {
                    let mut trailers = HeaderMap::new();
                    trailers.append("x-a", "1".parse().unwrap());
                    trailers.append("x-a", "2".parse().unwrap());
                    call.answer(&[&sent[5..]], trailers);
                }
            }
        })
        .await;
        let client = Client::connect(server.addr).await;
        let none = HeaderMap::new();
        let answer = client.call("x", "/reset", &none, b"").await;
        assert_eq!(answer.reset, Some(h2::Reason::CANCEL));
        let answer = client.call("x", "/only", &none, b"").await;
        assert!(answer.headers_only && answer.last("grpc-status").as_deref() == Some("5"));
        let answer = client.call("x", "/all", &none, b"echoed").await;
        assert_eq!(
            (answer.body, answer.headers_only),
            (frame(b"echoed"), false)
        );
        let trailers = answer.trailers.unwrap();
        assert_eq!(
            trailers.get_all("x-a").iter().collect::<Vec<_>>(),
            ["1", "2"]
        );
    }
}
