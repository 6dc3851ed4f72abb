//! Plain HTTP for monitoring: `/metrics` (Prometheus), `/healthz`, `/readyz`. Requests from pages of other sites are
//! refused. Nothing can be changed here, and no answer waits for the store.

mod metrics;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use heddle_listen::{Accepted, Connections, Guard, Socket};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Authorizer, Caller},
    budget::Account,
    plane::Plane,
    registry::Lag,
};
use metrics::metrics;

/// Time limit for a client to send its request, or the next one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is closed gracefully after this time.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);
/// Most connections at a time; at the limit the one that has been idle longest is closed.
pub(crate) const CONNECTIONS: usize = 256;

pub(crate) async fn serve(
    socket: Socket,
    plane: Plane,
    connections: Connections,
    guard: Arc<Guard>,
    authorizer: Authorizer,
    stop: CancellationToken,
) {
    let serve = |accepted| {
        let (guard, authorizer) = (Arc::clone(&guard), authorizer.clone());
        connection(accepted, plane.clone(), guard, authorizer, stop.clone())
    };
    heddle_listen::each(socket, connections, &stop, serve).await;
}

async fn connection(
    accepted: Accepted,
    plane: Plane,
    guard: Arc<Guard>,
    authorizer: Authorizer,
    stop: CancellationToken,
) {
    let Accepted { io, peer, place } = accepted;
    let caller = Caller::of_connection(peer, Account::default());
    let service = service_fn(|request| {
        let response = match guard.check(&request) {
            Err(refusal) => refusal.response(),
            Ok(()) => forbidden(&authorizer, &caller, request.uri().path())
                .unwrap_or_else(|| answer(&plane, &request)),
        };
        place.call(async move { Ok::<_, Infallible>(response) })
    });
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    let connection = server.serve_connection(TokioIo::new(io), service);
    let ended = || async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(MAX_CONNECTION_AGE) => {}
        }
    };
    tokio::select! {
        () = place.serve(connection, http1::Connection::graceful_shutdown, ended()) => {}
        // A client that does not read its answer is cut off.
        () = async { ended().await; tokio::time::sleep(HEADER_TIMEOUT).await } => {}
    }
}

/// The answer to a request that its caller may not make.
fn forbidden(
    authorizer: &Authorizer,
    caller: &Caller,
    path: &str,
) -> Option<Response<Full<Bytes>>> {
    let denied = authorizer.authorize(caller, path).err()?;
    Some(text(StatusCode::FORBIDDEN, format!("{denied}\n")))
}

fn answer(plane: &Plane, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, content) = match (request.method(), request.uri().path()) {
        (&(Method::GET | Method::HEAD), "/metrics") => (StatusCode::OK, metrics(plane)),
        (&(Method::GET | Method::HEAD), "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (&(Method::GET | Method::HEAD), "/readyz") => readiness(plane),
        (&(Method::GET | Method::HEAD), _) => (
            StatusCode::NOT_FOUND,
            "not found: try /metrics, /healthz or /readyz\n".to_owned(),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is supported\n".to_owned(),
        ),
    };
    text(status, content)
}

fn text(status: StatusCode, content: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(content)));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The listeners open after the view is loaded, so only stopping and lagging make it not ready.
fn readiness(plane: &Plane) -> (StatusCode, String) {
    if plane.stop.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    if let Some(Lag { own, seen, by }) = &*plane.membership.lag().borrow() {
        let text = format!("lags: at revision {own}, and replica {by} has seen {seen}\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text);
    }
    let revision = plane.registry.read(crate::registry::View::revision);
    (StatusCode::OK, format!("ready at revision {revision}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 10, F8.
    #[test]
    fn an_endpoint_that_its_caller_may_not_read_is_forbidden() {
        let caller = Caller::of_connection(None, Account::default());
        let denied = forbidden(&Authorizer::denying(), &caller, "/metrics").unwrap();
        assert_eq!(denied.status(), StatusCode::FORBIDDEN);
        assert!(forbidden(&Authorizer::default(), &caller, "/metrics").is_none());
    }
}
