//! The admin port: HTTP/1.1, HTTP/2 and gRPC on one socket. `/metrics`, `/healthz`, `/readyz` and `/config` are answered
//! here, calls of gRPC by the services given. Reads only; nothing of the data path waits for it.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use prost::bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, watch},
};
use tonic::{body::Body, service::Routes};
use tower::ServiceExt as _;
use tracing::debug;

use super::{config, metrics, serve::Bound};
use crate::{
    agent::{Agent, session::SessionStatus},
    mesh::Mesh,
    readiness::Readiness,
    worker::Workers,
    xds::client::XdsHandle,
};

/// Connections at once: scrapers and people, not services.
const MAX_CONNECTIONS: usize = 256;

/// All that the pages are made of.
pub struct Sources {
    pub options: Vec<(&'static str, String)>,
    pub workers: Arc<Workers>,
    pub agent: Agent,
    pub mesh: watch::Receiver<Mesh>,
    pub xds: XdsHandle,
    pub session: watch::Receiver<SessionStatus>,
    pub readiness: watch::Receiver<Readiness>,
    /// Bound addresses by listener.
    pub listeners: watch::Receiver<BTreeMap<&'static str, Vec<String>>>,
}

/// Serves a bound socket, for ever.
pub async fn serve(bound: Bound, sources: Arc<Sources>, grpc: Routes) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = match &bound {
            Bound::Tcp(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| Stream::Tcp(stream)),
            Bound::Unix(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| Stream::Unix(stream)),
        };
        match accepted {
            Ok(stream) => {
                let (sources, grpc) = (Arc::clone(&sources), grpc.clone());
                tokio::spawn(async move {
                    match stream {
                        Stream::Tcp(stream) => connection(stream, sources, grpc).await,
                        Stream::Unix(stream) => connection(stream, sources, grpc).await,
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors: the next moment is better than a busy loop.
                debug!("admin accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    sources: Arc<Sources>,
    grpc: Routes,
) {
    let service = service_fn(move |request| answer(request, Arc::clone(&sources), grpc.clone()));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(10));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100);
    if let Err(error) = builder
        .serve_connection(TokioIo::new(stream), service)
        .await
    {
        debug!("admin connection: {error}");
    }
}

async fn answer(
    request: Request<Incoming>,
    sources: Arc<Sources>,
    grpc: Routes,
) -> Result<Response<Body>, Infallible> {
    let kind = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if kind.starts_with("application/grpc") {
        return grpc.oneshot(request).await;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is answered here\n".to_owned(),
        ));
    }
    Ok(match request.uri().path() {
        "/metrics" => {
            let page = metrics::page(&sources);
            typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
        }
        // It answers, so it lives.
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => readyz(&sources),
        "/config" => config_page(&sources).await,
        "/" => text(StatusCode::OK, "heddle-proxy admin: /metrics /healthz /readyz /config, and gRPC health and reflection\n".to_owned()),
        _ => text(StatusCode::NOT_FOUND, "not here: try /metrics, /healthz, /readyz or /config\n".to_owned()),
    })
}

fn readyz(sources: &Sources) -> Response<Body> {
    let readiness = sources.readiness.borrow().clone();
    let status = if readiness.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    text(status, format!("{}\n", readiness.sentence()))
}

async fn config_page(sources: &Arc<Sources>) -> Response<Body> {
    let workers = Arc::clone(&sources.workers);
    // Asks the workers and waits for their next turn.
    let connections = tokio::task::spawn_blocking(move || workers.connections())
        .await
        .unwrap_or_default();
    let dump = config::dump(sources, &connections);
    typed(StatusCode::OK, "application/json", format!("{dump:#}\n"))
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let body = Body::new(Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {}));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
