//! The `h2` crate as client and as server of the plan.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::io::DuplexStream;
use tokio::task::JoinSet;

use crate::plan::{ByName, Call, End, Half, Header, Plan, Seen, body, by_name};

/// Serves the plan's calls until the client goes; what it saw of each request.
pub(crate) async fn serve(plan: Plan, pipe: DuplexStream) -> Vec<Seen> {
    let seen = Arc::new(Mutex::new(vec![Seen::default(); plan.calls.len()]));
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(plan.their_window)
        .initial_connection_window_size(1 << 20)
        .max_concurrent_streams(plan.max_streams)
        .max_frame_size(plan.their_frame)
        .header_table_size(plan.their_table)
        .data_frame_budget(1 << 30);
    let mut connection = builder
        .handshake::<_, Bytes>(pipe)
        .await
        .expect("a handshake");
    let mut calls = JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.expect("no connection error");
        let nth = request.headers()["x-call"]
            .to_str()
            .expect("text")
            .parse::<usize>();
        let call = plan.calls[nth.expect("a number")].clone();
        calls.spawn(answer(call, request, respond, Arc::clone(&seen)));
    }
    calls.join_all().await;
    let seen = seen.lock().expect("not poisoned");
    seen.clone()
}

async fn answer(
    call: Call,
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    let (parts, stream) = request.into_parts();
    let nth = call.nth;
    {
        let seen = &mut seen.lock().expect("not poisoned")[nth];
        seen.first = parts.uri.path_and_query().expect("a path").to_string();
        seen.headers = Some(of_map(&parts.headers));
    }
    let receive = receive_body(stream, nth, Arc::clone(&seen));
    let send = async {
        for _ in 0..call.response.informational {
            let mut early = Response::new(());
            *early.status_mut() = StatusCode::from_u16(103).expect("a status");
            if respond.send_informational(early).is_err() {
                return;
            }
        }
        let half = &call.response;
        if let Some((0, code)) = half.reset {
            respond.send_reset(Reason::from(code));
            return;
        }
        let mut response = Response::new(());
        *response.headers_mut() = to_map(&half.headers);
        let ends = half.pieces.is_empty() && half.trailers.is_none();
        if let Ok(stream) = respond.send_response(response, ends && half.reset.is_none()) {
            send(stream, half, nth).await;
        }
    };
    if call.early {
        tokio::join!(receive, send);
    } else {
        receive.await;
        send.await;
    }
}

/// Makes the plan's calls; what it saw of each response.
pub(crate) async fn call(plan: Plan, pipe: DuplexStream) -> Vec<Seen> {
    let seen = Arc::new(Mutex::new(vec![Seen::default(); plan.calls.len()]));
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(plan.their_window)
        .initial_connection_window_size(1 << 20)
        .max_frame_size(plan.their_frame)
        .header_table_size(plan.their_table)
        .data_frame_budget(1 << 30);
    let (client, connection) = builder
        .handshake::<_, Bytes>(pipe)
        .await
        .expect("a handshake");
    let connection = tokio::spawn(connection);
    let mut calls = JoinSet::new();
    for call in plan.calls {
        calls.spawn(make(call, client.clone(), Arc::clone(&seen)));
    }
    calls.join_all().await;
    drop(client);
    connection
        .await
        .expect("the connection's task ended")
        .expect("no connection error");
    let seen = seen.lock().expect("not poisoned");
    seen.clone()
}

async fn make(call: Call, client: h2::client::SendRequest<Bytes>, seen: Arc<Mutex<Vec<Seen>>>) {
    let half = &call.request;
    let mut request = Request::new(());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = format!("http://echo.default{}", call.path)
        .parse()
        .expect("a URI");
    *request.headers_mut() = to_map(&half.headers);
    let mut client = client.ready().await.expect("a slot for a stream");
    let ends = half.pieces.is_empty() && half.trailers.is_none() && half.reset.is_none();
    let (mut response, stream) = client.send_request(request, ends).expect("sent");
    let receive = async {
        let got = poll_fn(|context| {
            while let Poll::Ready(Some(Ok(_))) = response.poll_informational(context) {
                seen.lock().expect("not poisoned")[call.nth].informational += 1;
            }
            std::pin::Pin::new(&mut response).poll(context)
        });
        match got.await {
            Ok(got) => {
                let (parts, stream) = got.into_parts();
                {
                    let seen = &mut seen.lock().expect("not poisoned")[call.nth];
                    seen.first = parts.status.as_str().to_string();
                    seen.headers = Some(of_map(&parts.headers));
                }
                receive_body(stream, call.nth, Arc::clone(&seen)).await;
            }
            Err(error) => seen.lock().expect("not poisoned")[call.nth].end = ending(&error),
        }
    };
    let ended = async {
        if !ends {
            send(stream, half, call.nth).await;
        }
    };
    tokio::join!(receive, ended);
}

/// Sends body, trailers or the reset of a half whose headers have gone. A stream that the other
/// side has reset takes no more.
async fn send(mut stream: SendStream<Bytes>, half: &Half, nth: usize) {
    let mut at = 0;
    for (piece, &size) in half.pieces.iter().enumerate() {
        if let Some((_, code)) = half.reset.filter(|(after, _)| *after == piece) {
            stream.send_reset(Reason::from(code));
            return;
        }
        let last =
            piece + 1 == half.pieces.len() && half.trailers.is_none() && half.reset.is_none();
        let end = at + size;
        while at < end {
            stream.reserve_capacity(end - at);
            let Some(Ok(room)) = poll_fn(|context| stream.poll_capacity(context)).await else {
                return;
            };
            let now = body(nth, at..end.min(at + room));
            at += now.len();
            if stream
                .send_data(Bytes::from(now), last && at == end)
                .is_err()
            {
                return;
            }
        }
    }
    if let Some((_, code)) = half.reset {
        stream.send_reset(Reason::from(code));
        return;
    }
    if let Some(trailers) = &half.trailers {
        let _ = stream.send_trailers(to_map(trailers));
    }
}

async fn receive_body(mut stream: RecvStream, nth: usize, seen: Arc<Mutex<Vec<Seen>>>) {
    while let Some(data) = stream.data().await {
        let data = match data {
            Ok(data) => data,
            Err(error) => {
                seen.lock().expect("not poisoned")[nth].end = ending(&error);
                return;
            }
        };
        seen.lock().expect("not poisoned")[nth]
            .body
            .extend_from_slice(&data);
        if data.len() % 3 == 0 {
            tokio::task::yield_now().await;
        }
        let _ = stream.flow_control().release_capacity(data.len());
    }
    let trailers = stream.trailers().await;
    let seen = &mut seen.lock().expect("not poisoned")[nth];
    match trailers {
        Ok(trailers) => {
            seen.trailers = trailers.as_ref().map(of_map);
            seen.end = End::Complete;
        }
        Err(error) => seen.end = ending(&error),
    }
}

fn ending(error: &h2::Error) -> End {
    assert!(error.is_reset(), "not a reset but {error:?}");
    End::Reset(error.reason().map_or(0, u32::from))
}

fn to_map(headers: &[Header]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value, sensitive) in headers {
        let mut value = HeaderValue::from_str(value).expect("a legal value");
        value.set_sensitive(*sensitive);
        map.append(name.parse::<HeaderName>().expect("a legal name"), value);
    }
    map
}

fn of_map(map: &HeaderMap) -> ByName {
    by_name(
        map.iter()
            .map(|(name, value)| (name.as_str(), value.to_str().expect("text"))),
    )
}
