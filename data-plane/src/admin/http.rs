//! The admin port: HTTP/1.1, HTTP/2 and gRPC on one socket. `/metrics`, `/healthz`, `/readyz` and `/config` are
//! answered here, gRPC calls by the given services. Read only; the data path never waits for it.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use heddle_listen::{Connections, Socket};
use heddle_options::Tasks;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use prost::bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};

use super::{
    config, metrics,
    serve::{self, Access},
};
use crate::{
    agent::{Agent, session::SessionStatus},
    mesh::Mesh,
    readiness::Readiness,
    worker::Workers,
    xds::client::XdsHandle,
};

/// The most connections, for scrapers and people; over it the idlest connection is closed.
pub const ADMIN_CONNECTIONS: usize = 256;
const MAX_STREAMS: u32 = 100;

/// What the pages show.
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
    /// The connections of the control side's own listeners.
    pub connections: Vec<Connections>,
    pub tasks: Tasks,
}

/// Serves a socket until `stop`.
pub async fn serve(
    socket: Socket,
    access: Access,
    sources: Arc<Sources>,
    grpc: Routes,
    stop: CancellationToken,
) {
    let connections = access.connections.clone();
    let serve = |accepted| {
        let (access, sources, grpc) = (access.clone(), Arc::clone(&sources), grpc.clone());
        let until = stop.clone();
        let grpc = move |request| serve::routed(request, grpc.clone(), until.clone());
        let answer =
            move |request| answer(request, access.clone(), Arc::clone(&sources), grpc.clone());
        serve::connection(accepted, answer, MAX_STREAMS, stop.clone())
    };
    heddle_listen::each(socket, connections, &stop, serve).await;
}

async fn answer<F>(
    request: Request<Incoming>,
    access: Access,
    sources: Arc<Sources>,
    grpc: impl FnOnce(Request<Incoming>) -> F,
) -> Result<Response<Body>, Infallible>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let kind = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = kind.is_some_and(heddle_listen::guard::is_grpc);
    let checked = match is_grpc {
        true => access.guard.check_grpc(&request),
        false => access.guard.check(&request),
    };
    if let Err(refusal) = checked {
        return Ok(refusal.response().map(Body::new));
    }
    if is_grpc {
        return grpc(request).await;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is supported\n".to_owned(),
        ));
    }
    Ok(match request.uri().path() {
        "/metrics" => {
            let page = metrics::page(&sources);
            typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
        }
        // The process answers, so it is alive.
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => readyz(&sources),
        "/config" => config_page(&sources).await,
        "/" => text(StatusCode::OK, "heddle-proxy admin: /metrics /healthz /readyz /config, and gRPC health and reflection\n".to_owned()),
        _ => text(StatusCode::NOT_FOUND, "not found: try /metrics, /healthz, /readyz or /config\n".to_owned()),
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
    // Blocks until the workers' next turn.
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
