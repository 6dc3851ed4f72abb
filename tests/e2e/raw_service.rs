//! A raw HTTP/2 service `raw.default` on node b of a mesh of two: a call through b makes one hop, a call through a
//! makes two. Each test says how the service answers, and asserts the same for both.

use std::net::SocketAddr;
use std::sync::Arc;

use heddle_tests::mesh::{Builder, Mesh};
use heddle_tests::raw::{Behaviour, Call, Client, Server, body};
use heddle_tests::wait::{seen, until};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The authority of the service in tests.
pub(crate) const RAW: &str = "raw.default";

/// Answered by the harness itself, to wait until calls are routed.
const READY: &str = "/raw.Raw/Ready";

pub(crate) struct RawMesh {
    pub(crate) mesh: Mesh,
    _server: Server,
}

impl RawMesh {
    /// Starts the service and two nodes, and waits until calls through both reach it.
    pub(crate) async fn start<A, F>(answer: A) -> Self
    where
        A: Fn(Call) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_with(Behaviour::default(), answer).await
    }

    /// The same with this behaviour of the service.
    pub(crate) async fn start_with<A, F>(behaviour: Behaviour, answer: A) -> Self
    where
        A: Fn(Call) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_in(Mesh::builder(), behaviour, answer).await
    }

    /// The same in a mesh with the test's own options.
    pub(crate) async fn start_in<A, F>(mesh: Builder, behaviour: Behaviour, answer: A) -> Self
    where
        A: Fn(Call) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let answer = Arc::new(answer);
        let server = Server::start_with(behaviour, move |mut call| {
            let answer = Arc::clone(&answer);
            async move {
                let path = call.request.uri().path();
                if path == READY {
                    let _ = body(call.request.body_mut()).await;
                    call.answer(&[b"yes"], ok());
                } else if path.starts_with("/grpc.reflection.") {
                    // The agent asks whether there is any.
                    call.answer(&[], fields(&[("grpc-status", "12")]));
                } else {
                    answer(call).await;
                }
            }
        })
        .await;
        let file = format!(
            "service: raw\nprotocol: grpc\nprotos: [raw.Raw]\ninstances:\n  - {{id: r1, address: \"{}\"}}\n",
            server.addr
        );
        let mesh = mesh
            .nodes(2)
            .services_file("b", "raw.yaml", &file)
            .start()
            .await;
        let raw = Self {
            mesh,
            _server: server,
        };
        for (_, addr) in raw.ways() {
            until("the raw service is reached", async || {
                let client = Client::connect(addr).await;
                let answer = client.call(RAW, READY, &HeaderMap::new(), b"").await;
                let status = answer.last("grpc-status");
                seen(status.as_deref() == Some("0"), format!("{answer:?}"))
            })
            .await;
        }
        raw
    }

    /// The outbound addresses to call through, each with a description for messages.
    pub(crate) fn ways(&self) -> [(&'static str, SocketAddr); 2] {
        [
            ("one hop", self.mesh.node("b").outbound),
            ("two hops", self.mesh.node("a").outbound),
        ]
    }
}

/// Trailers of success.
pub(crate) fn ok() -> HeaderMap {
    fields(&[("grpc-status", "0")])
}

/// A header map with these fields, in this order.
pub(crate) fn fields(list: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(
            HeaderName::from_static(name),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    map
}

/// The fields whose names begin with `x-`, in their order.
pub(crate) fn custom(map: &HeaderMap) -> Vec<(String, String)> {
    map.iter()
        .filter(|(name, _)| name.as_str().starts_with("x-"))
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value)
        })
        .collect()
}
