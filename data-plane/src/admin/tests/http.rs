//! The admin port.

use super::*;

/// The admin port with one worker.
async fn admin(readiness: watch::Receiver<Readiness>) -> String {
    let (reports, _) = mpsc::channel(1);
    let (internal, _) = mpsc::channel(4);
    let options = crate::worker::WorkerOptions {
        node: "a".into(),
        ..Default::default()
    };
    let workers = Arc::new(crate::worker::Workers::start(options, reports, internal).unwrap());
    let agent = Agent::new("a");
    let (schemas, wanted) = Schemas::new();
    drop(schemas);
    let asker = xds::client::ClientIdentity {
        node: "a".into(),
        process_id: "p1".into(),
        region: String::new(),
        zone: String::new(),
    };
    let idle = Duration::from_secs(3600);
    let (_, xds) = xds::client::XdsClient::new(
        asker,
        vec![],
        Default::default(),
        xds::demand::Demand::new(Default::default(), idle, std::time::Instant::now()),
        Arc::default(),
        wanted,
        Arc::clone(&workers) as _,
    );
    let local_node = LocalNode {
        node: "a".into(),
        own_names: vec![],
        region: String::new(),
        zone: String::new(),
    };
    let (_, mesh) = TableBuilder::new(local_node, agent.clone(), xds.view.clone());
    let (_, session) = watch::channel(crate::agent::session::SessionStatus::Off);
    let (_, listeners) = watch::channel(std::collections::BTreeMap::new());
    let sources = crate::admin::http::Sources {
        options: vec![("control", "http://***@h:1".into())],
        workers,
        agent,
        mesh,
        xds,
        session,
        readiness: readiness.clone(),
        listeners,
        connections: Vec::new(),
        tasks: heddle_options::Tasks::default(),
    };
    let mut opened = serve::open(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let socket = opened.pop().unwrap();
    let at = socket.address();
    let access = serve::Access {
        connections: heddle_listen::Connections::new("admin", heddle_listen::Limits::of(4)),
        guard: Arc::default(),
    };
    let grpc = serve::common(ProxyHealth::own(readiness), Reflection::admin());
    let stop = tokio_util::sync::CancellationToken::new();
    let serving = crate::admin::http::serve(socket, access, Arc::new(sources), grpc, stop);
    tokio::spawn(serving);
    at.to_string()
}

/// One HTTP/1.1 request on its own connection; returns status and body.
async fn http(addr: &str, method: &str, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn one_admin_port_speaks_http_and_grpc() {
    let (sender, readiness) = readiness::channel();
    let addr = admin(readiness).await;
    sender.send_replace(Readiness::Starting("the test has not begun"));
    let (status, body) = http(&addr, "GET", "/readyz").await;
    assert_eq!(
        (status, body.contains("the test has not begun")),
        (503, true),
        "{body}"
    );
    sender.send_replace(Readiness::Ready);
    assert_eq!(http(&addr, "GET", "/readyz").await, (200, "ready\n".into()));
    sender.send_replace(Readiness::Draining);
    assert_eq!(http(&addr, "GET", "/readyz").await.0, 503);
    assert_eq!(http(&addr, "GET", "/healthz").await.0, 200);
    assert_eq!(http(&addr, "GET", "/nowhere").await.0, 404);
    assert_eq!(http(&addr, "POST", "/config").await.0, 405);
    let (status, metrics) = http(&addr, "GET", "/metrics").await;
    assert_eq!(status, 200);
    assert!(
        metrics.lines().any(|line| line == "heddle_ready 0"),
        "{metrics}"
    );
    let (_, config) = http(&addr, "GET", "/config").await;
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["node"], "a");
    assert_eq!(config["options"]["control"], "http://***@h:1");

    let channel = Channel::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = HealthClient::new(channel.clone());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(
        answer.into_inner().status(),
        ServingStatus::NotServing,
        "it drains"
    );
    assert!(
        listed(&channel)
            .await
            .contains(&"grpc.health.v1.Health".to_owned())
    );
}
