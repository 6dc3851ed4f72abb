use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use heddle_pacing::Backoff;
use heddle_proto::registry::v1::{
    registry_server::{Registry, RegistryServer},
    *,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Notify, mpsc, watch},
    time::timeout,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

use heddle_listen::BindError;

use crate::{
    LeaveOutcome, ListenError, Listener, Registration, RegistrationOptions,
    log_limiter::LogLimiter,
    register::{FIRST_RETRY, LAST_RETRY},
    serve_until_drained, server,
};

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A real gRPC server that plays the agent.
#[derive(Clone, Default)]
struct FakeAgent(Arc<FakeState>);

#[derive(Default)]
struct FakeState {
    registrations: Mutex<Vec<RegisterRequest>>,
    beats: watch::Sender<usize>,
    refusals: Mutex<usize>,
    streams: Mutex<Vec<mpsc::Sender<Result<KeepAliveResponse, Status>>>>,
    deregistered: Mutex<Vec<DeregisterRequest>>,
    hold_deregister: Mutex<Option<Arc<Notify>>>,
}

impl FakeAgent {
    async fn serve(&self, listener: TcpListener) {
        let server = RegistryServer::new(self.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(server)
                .serve_with_incoming(TcpIncoming::from(listener)),
        );
    }

    fn registered(&self) -> usize {
        self.0.registrations.lock().unwrap().len()
    }

    async fn beats(&self, at_least: usize) {
        let mut beats = self.0.beats.subscribe();
        timeout(TEST_TIMEOUT, beats.wait_for(|count| *count >= at_least))
            .await
            .expect("beats")
            .unwrap();
    }

    fn break_streams(&self) {
        self.0.streams.lock().unwrap().clear();
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Registry for FakeAgent {
    type KeepAliveStream = Answers<KeepAliveResponse>;
    type WatchInstancesStream = Answers<WatchInstancesResponse>;

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        {
            let mut refusals = self.0.refusals.lock().unwrap();
            if *refusals > 0 {
                *refusals -= 1;
                return Err(Status::unavailable("not yet"));
            }
        }
        let mut all = self.0.registrations.lock().unwrap();
        all.push(request.into_inner());
        Ok(Response::new(RegisterResponse {
            node: "node-a".into(),
            registration: format!("r{}", all.len()),
            beat_interval: Some(prost_types::Duration {
                seconds: 0,
                nanos: 50_000_000,
            }),
            ttl: Some(prost_types::Duration {
                seconds: 5,
                nanos: 0,
            }),
        }))
    }

    async fn keep_alive(
        &self,
        request: Request<Streaming<KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let mut beats = request.into_inner();
        let expected = format!("r{}", self.registered());
        let (sender, receiver) = mpsc::channel(4);
        self.0.streams.lock().unwrap().push(sender.clone());
        let sender = sender.downgrade();
        let state = self.0.clone();
        tokio::spawn(async move {
            let mut first = true;
            while let Some(Ok(beat)) = beats.next().await {
                if std::mem::take(&mut first) {
                    assert_eq!(beat.registration, expected);
                }
                let Some(sender) = sender.upgrade() else {
                    break;
                };
                state.beats.send_modify(|count| *count += 1);
                let _ = sender
                    .send(Ok(KeepAliveResponse {
                        health: Health::Healthy.into(),
                        ..KeepAliveResponse::default()
                    }))
                    .await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn deregister(
        &self,
        request: Request<DeregisterRequest>,
    ) -> Result<Response<DeregisterResponse>, Status> {
        self.0
            .deregistered
            .lock()
            .unwrap()
            .push(request.into_inner());
        let hold = self.0.hold_deregister.lock().unwrap().clone();
        if let Some(hold) = hold {
            hold.notified().await;
        }
        Ok(Response::new(DeregisterResponse {
            acknowledged: true,
            finished: true,
            ..DeregisterResponse::default()
        }))
    }

    async fn list_services(
        &self,
        _: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        Err(Status::unimplemented("not used here"))
    }

    async fn list_instances(
        &self,
        _: Request<ListInstancesRequest>,
    ) -> Result<Response<ListInstancesResponse>, Status> {
        Err(Status::unimplemented("not used here"))
    }

    async fn watch_instances(
        &self,
        _: Request<WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        Err(Status::unimplemented("not used here"))
    }
}

fn registration_options(agent: String) -> RegistrationOptions {
    RegistrationOptions {
        instance: Instance {
            service: "echo".into(),
            id: "e1".into(),
            ..Instance::default()
        },
        file_descriptor_set: Bytes::from_static(b"schema"),
        agent,
    }
}

async fn agent() -> (FakeAgent, Registration) {
    let agent = FakeAgent::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    agent.serve(listener).await;
    let registration =
        Registration::start(registration_options(format!("http://{address}"))).unwrap();
    (agent, registration)
}

#[tokio::test]
async fn an_instance_registers_learns_its_node_and_beats() {
    let (agent, registration) = agent().await;
    assert_eq!(
        &*timeout(TEST_TIMEOUT, registration.registered())
            .await
            .unwrap(),
        "node-a"
    );
    agent.beats(3).await;
    assert_eq!(agent.registered(), 1);
    let sent = agent.0.registrations.lock().unwrap()[0].clone();
    assert_eq!(sent.instance.unwrap().id, "e1");
    assert_eq!(&sent.file_descriptor_set[..], b"schema");
}

#[tokio::test]
async fn an_agent_that_comes_later_or_refuses_at_first_is_tried_again() {
    // Bound, so that nothing else gets the port, but refusing connections until it listens.
    let later = TcpSocket::new_v4().unwrap();
    later.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = later.local_addr().unwrap();
    let registration = Registration::start(registration_options(address.to_string())).unwrap();
    assert_eq!(&*registration.node(), "");
    let agent = FakeAgent::default();
    *agent.0.refusals.lock().unwrap() = 2;
    agent.serve(later.listen(16).unwrap()).await;
    assert_eq!(
        &*timeout(TEST_TIMEOUT, registration.registered())
            .await
            .unwrap(),
        "node-a"
    );
    assert_eq!(*agent.0.refusals.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_broken_stream_registers_again() {
    let (agent, _registration) = agent().await;
    agent.beats(1).await;
    agent.break_streams();
    timeout(TEST_TIMEOUT, async {
        while agent.registered() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("registers again");
}

#[tokio::test]
async fn leaving_waits_for_the_acknowledgement_and_beats_meanwhile() {
    let (agent, registration) = agent().await;
    agent.beats(1).await;
    let hold = Arc::new(Notify::new());
    *agent.0.hold_deregister.lock().unwrap() = Some(hold.clone());
    let leaving = tokio::spawn({
        let registration = registration.clone();
        async move { registration.leave().await }
    });
    let before = *agent.0.beats.borrow();
    agent.beats(before + 3).await;
    assert!(!leaving.is_finished());
    hold.notify_one();
    let outcome = timeout(TEST_TIMEOUT, leaving).await.unwrap().unwrap();
    assert_eq!(
        outcome,
        LeaveOutcome {
            deregistered: true,
            acknowledged: true,
            finished: true,
            ..LeaveOutcome::default()
        }
    );
    assert_eq!(
        registration.leave().await,
        outcome,
        "the second call gets the same answer"
    );
    let requests = agent.0.deregistered.lock().unwrap().clone();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].registration, "r1");
    assert!(requests[0].wait_acknowledged && requests[0].cause.is_empty());
    assert!(requests[0].max_wait.is_some_and(|wait| wait.seconds < 5));
}

/// Issue 10, D5.
#[tokio::test]
async fn leaving_waits_for_the_end_of_calls_where_the_service_cannot_finish_them_itself() {
    let (agent, registration) = agent().await;
    agent.beats(1).await;
    let outcome = registration.leave_finished(Duration::from_secs(600));
    assert!(timeout(TEST_TIMEOUT, outcome).await.unwrap().finished);
    let requests = agent.0.deregistered.lock().unwrap().clone();
    assert!(requests[0].wait_acknowledged && requests[0].wait_finished);
    assert_eq!(requests[0].max_finish.map(|span| span.seconds), Some(600));
}

#[tokio::test]
async fn vanishing_asks_for_no_acknowledgements_and_says_why() {
    let (agent, registration) = agent().await;
    agent.beats(1).await;
    assert!(
        timeout(TEST_TIMEOUT, registration.report_end("its process ended"))
            .await
            .unwrap()
            .deregistered
    );
    let requests = agent.0.deregistered.lock().unwrap().clone();
    assert!(!requests[0].wait_acknowledged);
    assert_eq!(requests[0].cause, "its process ended");
}

#[tokio::test]
async fn leaving_with_no_agent_does_not_wait() {
    let registration = Registration::start(registration_options("127.0.0.1:1".into())).unwrap();
    let outcome = timeout(TEST_TIMEOUT, registration.leave()).await.unwrap();
    assert_eq!(outcome, LeaveOutcome::default());
}

#[tokio::test]
async fn an_agent_address_that_is_none_is_refused_at_once() {
    for address in ["", "http://", "http:// x", "::::"] {
        let error = Registration::start(registration_options(address.into()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("HEDDLE_AGENT"), "{address}: {error}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = Listener::bind("127.0.0.1:0").await.unwrap();
    let error = Listener::bind(&first.to_string()).await.unwrap_err();
    assert!(
        matches!(error, ListenError::Bind(BindError::PortInUse { .. })),
        "{error}"
    );
    let port = first.advertised().unwrap().port().to_string();
    assert!(error.to_string().contains(&port), "{error}");
    assert!(matches!(
        Listener::bind("localhost").await,
        Err(ListenError::Address(_))
    ));
    let any = Listener::bind("0.0.0.0:0").await.unwrap();
    assert!(any.advertised().unwrap().ip().is_loopback());
}

#[tokio::test]
async fn a_unix_socket_is_taken_over_only_from_the_dead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let address = format!("unix:{}", path.display());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let live = Listener::bind(&address).await.unwrap();
    assert!(matches!(
        Listener::bind(&address).await,
        Err(ListenError::Bind(BindError::PathInUse { .. }))
    ));
    drop(live);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stopping_service_accepts_until_acknowledged_and_finishes_its_calls() {
    let (agent, registration) = agent().await;
    agent.beats(1).await;
    let acknowledge = Arc::new(Notify::new());
    *agent.0.hold_deregister.lock().unwrap() = Some(acknowledge.clone());
    // The service under test is a second registry: its Deregister is a call whose length the test controls.
    let service = FakeAgent::default();
    let answer = Arc::new(Notify::new());
    *service.0.hold_deregister.lock().unwrap() = Some(answer.clone());
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{listener}");
    let stop = Arc::new(Notify::new());
    let serving = tokio::spawn({
        let (router, stop) = (
            server().add_service(RegistryServer::new(service.clone())),
            stop.clone(),
        );
        async move {
            let stop = async move { stop.notified().await };
            serve_until_drained(router, vec![listener], Some(&registration), stop).await
        }
    });

    let mut early = registry_client::RegistryClient::connect(url.clone())
        .await
        .unwrap();
    let slow = tokio::spawn(async move { early.deregister(DeregisterRequest::default()).await });
    timeout(TEST_TIMEOUT, async {
        while service.0.deregistered.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    stop.notify_one();
    timeout(TEST_TIMEOUT, async {
        while agent.0.deregistered.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();

    let mut late = registry_client::RegistryClient::connect(url.clone())
        .await
        .expect("still accepts");
    late.register(RegisterRequest::default())
        .await
        .expect("still answers");
    acknowledge.notify_one();
    timeout(TEST_TIMEOUT, async {
        while registry_client::RegistryClient::connect(url.clone())
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("stops accepting once acknowledged");
    assert!(!serving.is_finished(), "a call is still in flight");
    answer.notify_one();
    timeout(TEST_TIMEOUT, slow)
        .await
        .unwrap()
        .unwrap()
        .expect("the call in flight is finished");
    let finish = timeout(TEST_TIMEOUT, serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(finish.complete && finish.outcome.acknowledged, "{finish:?}");
}

#[test]
fn waits_grow_to_two_seconds_and_never_fall_under_a_tenth() {
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    for _ in 0..1_000 {
        let wait = backoff.fail();
        assert!(
            (Duration::from_millis(100)..=Duration::from_secs(2)).contains(&wait),
            "{wait:?}"
        );
    }
    backoff.reset();
    assert!(backoff.fail() <= Duration::from_millis(200));
}

#[test]
fn the_same_failure_is_logged_at_intervals() {
    let start = Instant::now();
    let mut log_limiter = LogLimiter::default();
    assert!(log_limiter.due("gone", start));
    assert!(!log_limiter.due("gone", start + Duration::from_secs(29)));
    assert!(log_limiter.due("refused", start + Duration::from_secs(29)));
    assert!(log_limiter.due("refused", start + Duration::from_secs(60)));
}
