//! The life of one registration: register, beat, register again when the stream breaks, leave. Input: the instance.
//! Output: its node's name and, at the end, who has acknowledged that it left. If the agent is away or refuses,
//! registering is retried for ever, so that the order of starts does not matter. The service's sockets are not used
//! here.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use heddle_pacing::Backoff;
use heddle_proto::error_text::status_cause;
use heddle_proto::registry::v1::{
    DeregisterRequest, DeregisterResponse, Health, Instance, KeepAliveRequest, RegisterRequest,
    RegisterResponse, registry_client::RegistryClient,
};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, error::Elapsed, interval_at, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::address::proxy_url;
use crate::log_limiter::LogLimiter;

/// Retries for ever while the agent is away, 0.1 to 2 s apart: jitter takes up to half of these delays.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(200);
pub(crate) const LAST_RETRY: Duration = Duration::from_secs(2);
/// The longest time for leaving.
pub const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// How long the agent waits for acknowledgements; less than we wait for its answer.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_millis(4_700);
/// Timeout of a Register call; the agent answers from memory.
const REGISTER_WITHIN: Duration = Duration::from_secs(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// If the instance leaves while it registers, the answer is awaited for this long, so that the registration can be
/// undone.
const UNDO_WITHIN: Duration = Duration::from_secs(1);
const DEFAULT_BEAT: Duration = Duration::from_secs(5);
const DEFAULT_TTL: Duration = Duration::from_secs(15);

/// The agent's address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SdkError {
    #[error("agent \"{address}\": {why} (HEDDLE_AGENT)")]
    AgentAddress { address: String, why: String },
}

/// The address of this node's agent: `HEDDLE_AGENT`, else the default.
#[must_use]
pub fn agent_address() -> String {
    from_environment("HEDDLE_AGENT", "http://127.0.0.1:15002")
}

/// The address for calls to other services: `HEDDLE_OUTBOUND`, else the default.
#[must_use]
pub fn outbound_address() -> String {
    from_environment("HEDDLE_OUTBOUND", "http://127.0.0.1:15001")
}

fn from_environment(name: &str, default: &str) -> String {
    std::env::var(name)
        .ok()
        .filter(|value| !value.is_empty())
        .unwrap_or_else(|| default.to_owned())
}

/// What is registered, and with which agent.
#[derive(Clone, Debug)]
pub struct RegistrationOptions {
    pub instance: Instance,
    /// A serialized `google.protobuf.FileDescriptorSet` of what the instance serves; may be empty if it has reflection.
    pub file_descriptor_set: Bytes,
    /// `http://HOST:PORT`, `HOST:PORT` or `unix:/path`.
    pub agent: String,
}

/// How a registration ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaveOutcome {
    /// The agent knew the instance and has removed it.
    pub deregistered: bool,
    /// Every connected client has acknowledged it: no new call can come.
    pub acknowledged: bool,
    /// Clients that have not acknowledged, or why the agent could not be asked.
    pub unacknowledged: Vec<String>,
    /// With [`Registration::leave_finished`]: the calls in flight have ended.
    pub finished: bool,
    /// With [`Registration::leave_finished`]: the calls that had not ended when the wait was over.
    pub in_flight: u32,
}

/// How an instance leaves.
#[derive(Clone, Debug)]
enum LeaveMode {
    /// It waits for the clients' acknowledgement.
    Acknowledged,
    /// It waits for the clients' acknowledgement and then, at most this long, for its calls in flight to end.
    Finished(Duration),
    /// It has already ended, with the cause.
    Ended(String),
}

/// A registration that is kept alive in the background. Only [`Registration::leave`] and its variants end it, not
/// dropping the handles.
#[derive(Clone, Debug)]
pub struct Registration {
    leaving: CancellationToken,
    mode: Arc<OnceLock<LeaveMode>>,
    node: watch::Receiver<Arc<str>>,
    ended: watch::Receiver<Option<LeaveOutcome>>,
}

impl Registration {
    /// Registers in the background, for as long as the runtime lives.
    ///
    /// # Errors
    /// The agent's address is invalid. An agent that does not answer is no error.
    pub fn start(registration_options: RegistrationOptions) -> Result<Self, SdkError> {
        let client = RegistryClient::new(agent_channel(&registration_options.agent)?);
        let leaving = CancellationToken::new();
        let mode = Arc::new(OnceLock::new());
        let (node_sender, node) = watch::channel(Arc::from(""));
        let (ended_sender, ended) = watch::channel(None);
        let registrar = Registrar {
            client,
            agent: registration_options.agent,
            request: RegisterRequest {
                instance: Some(registration_options.instance),
                file_descriptor_set: registration_options.file_descriptor_set,
            },
            leaving: leaving.clone(),
            mode: mode.clone(),
            node: node_sender,
            log_limiter: LogLimiter::default(),
        };
        tokio::spawn(async move {
            let outcome = registrar.run().await;
            ended_sender.send_replace(Some(outcome));
        });
        Ok(Self {
            leaving,
            mode,
            node,
            ended,
        })
    }

    /// The name of this instance's node; empty until it is registered.
    #[must_use]
    pub fn node(&self) -> Arc<str> {
        self.node.borrow().clone()
    }

    /// Returns the node's name once the instance is registered.
    pub async fn registered(&self) -> Arc<str> {
        let mut node = self.node.clone();
        match node.wait_for(|name| !name.is_empty()).await {
            Ok(name) => name.clone(),
            Err(_) => Arc::from(""),
        }
    }

    /// Removes the instance. Returns when every connected client has acknowledged it, or after [`LEAVE_WITHIN`]. The
    /// instance must go on serving meanwhile. Later calls give the same answer.
    pub async fn leave(&self) -> LeaveOutcome {
        self.leave_with(LeaveMode::Acknowledged).await
    }

    /// Like [`Registration::leave`], and then waits, at most `within`, for the calls in flight from the node's proxy to
    /// end: after that no call is cut if the instance stops. For a program that would cut its calls when it stops; a
    /// server that finishes them after GOAWAY needs only [`Registration::leave`].
    pub async fn leave_finished(&self, within: Duration) -> LeaveOutcome {
        self.leave_with(LeaveMode::Finished(within)).await
    }

    /// Removes the instance without waiting for any client, because it has already ended. `cause` says why in a few
    /// words ("its process ended") and is reported to the mesh as an event; empty: no event.
    pub async fn report_end(&self, cause: &str) -> LeaveOutcome {
        self.leave_with(LeaveMode::Ended(cause.to_owned())).await
    }

    /// Only the first call sets the manner.
    async fn leave_with(&self, mode: LeaveMode) -> LeaveOutcome {
        self.mode.get_or_init(|| mode);
        self.leaving.cancel();
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_default(),
            Err(_) => LeaveOutcome::default(),
        }
    }
}

/// A channel to an agent, connected at its first use.
///
/// # Errors
/// The address is invalid.
pub fn agent_channel(address: &str) -> Result<Channel, SdkError> {
    Ok(endpoint(address)?.connect_lazy())
}

fn endpoint(address: &str) -> Result<Endpoint, SdkError> {
    let refuse = |why: String| SdkError::AgentAddress {
        address: address.to_owned(),
        why,
    };
    let url = proxy_url(address).map_err(|why| refuse(why.to_string()))?;
    let endpoint = Endpoint::from_shared(url).map_err(|why| refuse(why.to_string()))?;
    Ok(endpoint.connect_timeout(CONNECT_WITHIN).tcp_nodelay(true))
}

/// The state of the background task.
struct Registrar {
    client: RegistryClient<Channel>,
    agent: String,
    request: RegisterRequest,
    leaving: CancellationToken,
    mode: Arc<OnceLock<LeaveMode>>,
    node: watch::Sender<Arc<str>>,
    log_limiter: LogLimiter,
}

impl Registrar {
    async fn run(mut self) -> LeaveOutcome {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            let mut register = std::pin::pin!(register(self.client.clone(), self.request.clone()));
            let answer = tokio::select! {
                answer = &mut register => answer,
                () = self.leaving.cancelled() => {
                    return match timeout(UNDO_WITHIN, register).await {
                        Ok(Ok(response)) => deregister(self.client.clone(), response.registration, self.mode()).await,
                        _ => LeaveOutcome::default(),
                    };
                }
            };
            match answer {
                Ok(response) => {
                    if let Some(outcome) = self.keep_registered(response, &mut backoff).await {
                        return outcome;
                    }
                }
                Err(status) => self.log_failure(&refusal(&status)),
            }
            let pause = backoff.fail();
            tokio::select! {
                () = sleep(pause) => {}
                () = self.leaving.cancelled() => return LeaveOutcome::default(),
            }
        }
    }

    /// Sends beats until the stream breaks (`None`) or the instance leaves.
    async fn keep_registered(
        &mut self,
        response: RegisterResponse,
        backoff: &mut Backoff,
    ) -> Option<LeaveOutcome> {
        let RegisterResponse {
            node,
            registration,
            beat_interval,
            ttl,
        } = response;
        tracing::info!(node, agent = self.agent, "registered");
        self.node.send_replace(Arc::from(node));
        self.log_limiter.forget();
        let times = KeepAliveTimes::new(beat_interval, ttl);
        let mut alive = std::pin::pin!(keep_alive(
            self.client.clone(),
            registration.clone(),
            times,
            backoff
        ));
        let broken = tokio::select! {
            why = &mut alive => why,
            () = self.leaving.cancelled() => {
                // Beats continue meanwhile: a broken stream would remove the instance before the clients know.
                let mut leave = std::pin::pin!(deregister(self.client.clone(), registration, self.mode()));
                return Some(tokio::select! {
                    outcome = &mut leave => outcome,
                    _ = &mut alive => leave.await,
                });
            }
        };
        self.log_failure(&broken);
        None
    }

    fn mode(&self) -> LeaveMode {
        self.mode.get().cloned().unwrap_or(LeaveMode::Acknowledged)
    }

    fn log_failure(&mut self, why: &str) {
        if self.log_limiter.due(why, Instant::now()) {
            tracing::warn!("agent {}: {why}; retrying until it succeeds", self.agent);
        }
    }
}

async fn register(
    mut client: RegistryClient<Channel>,
    request: RegisterRequest,
) -> Result<RegisterResponse, Status> {
    match timeout(REGISTER_WITHIN, client.register(request)).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer to Register")),
    }
}

fn refusal(status: &Status) -> String {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => {
            format!("does not answer ({})", status_cause(status))
        }
        code => format!("refuses this registration: {code:?}: {}", status.message()),
    }
}

/// The interval of beats, and how long a missing answer means that the agent is gone.
#[derive(Clone, Copy, Debug)]
struct KeepAliveTimes {
    beat: Duration,
    ttl: Duration,
}

impl KeepAliveTimes {
    fn new(beat: Option<prost_types::Duration>, ttl: Option<prost_types::Duration>) -> Self {
        let read = |value: Option<prost_types::Duration>, default: Duration| {
            value
                .and_then(|d| Duration::try_from(d).ok())
                .filter(|d| !d.is_zero())
                .unwrap_or(default)
        };
        let beat =
            read(beat, DEFAULT_BEAT).clamp(Duration::from_millis(50), Duration::from_secs(60));
        Self {
            beat,
            ttl: read(ttl, DEFAULT_TTL).max(beat * 2),
        }
    }
}

/// Sends beats until the stream ends. Returns why it ended.
async fn keep_alive(
    mut client: RegistryClient<Channel>,
    registration: String,
    times: KeepAliveTimes,
    backoff: &mut Backoff,
) -> String {
    // At most one beat waits, so that they do not pile up at an agent that does not read.
    let (beats, outgoing) = mpsc::channel(1);
    let first = KeepAliveRequest { registration };
    if beats.try_send(first).is_err() {
        return "the keep-alive stream was lost".to_owned();
    }
    let opened = timeout(times.ttl, client.keep_alive(ReceiverStream::new(outgoing))).await;
    let mut answers = match opened {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return broken(&status),
        Err(_) => return "does not answer beats".to_owned(),
    };
    let now = tokio::time::Instant::now();
    let mut ticks = interval_at(now + times.beat, times.beat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_answer = now;
    let mut health = Health::Unspecified;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let _ = beats.try_send(KeepAliveRequest::default());
            }
            answer = answers.message() => match answer {
                Ok(Some(answer)) => {
                    last_answer = tokio::time::Instant::now();
                    backoff.reset();
                    if answer.health() != health {
                        health = answer.health();
                        let reason = &answer.health_reason;
                        tracing::info!(health = health.as_str_name(), reason, "the agent reports the health of this instance");
                    }
                }
                Ok(None) => return "ended the keep-alive stream".to_owned(),
                Err(status) => return broken(&status),
            },
            () = sleep_until(last_answer + times.ttl) => return "does not answer beats".to_owned(),
        }
    }
}

fn broken(status: &Status) -> String {
    format!("broke the keep-alive stream ({})", status_cause(status))
}

async fn deregister(
    mut client: RegistryClient<Channel>,
    registration: String,
    mode: LeaveMode,
) -> LeaveOutcome {
    let span = |span: Duration| prost_types::Duration::try_from(span).ok();
    let (waits, finish, cause) = match mode {
        LeaveMode::Acknowledged => (true, None, String::new()),
        LeaveMode::Finished(within) => (true, Some(within), String::new()),
        LeaveMode::Ended(cause) => (false, None, cause),
    };
    let request = DeregisterRequest {
        registration,
        wait_acknowledged: waits,
        max_wait: span(ACKNOWLEDGE_WITHIN),
        cause,
        wait_finished: finish.is_some(),
        max_finish: finish.and_then(span),
    };
    let longest = LEAVE_WITHIN + finish.unwrap_or_default();
    outcome(timeout(longest, client.deregister(request)).await)
}

type Answer = Result<Result<tonic::Response<DeregisterResponse>, Status>, Elapsed>;

fn outcome(answer: Answer) -> LeaveOutcome {
    match answer {
        Ok(Ok(response)) => {
            let response = response.into_inner();
            LeaveOutcome {
                deregistered: true,
                acknowledged: response.acknowledged,
                unacknowledged: response.unacknowledged,
                finished: response.finished,
                in_flight: response.in_flight,
            }
        }
        Ok(Err(status)) => LeaveOutcome {
            unacknowledged: vec![format!("agent: {}", status_cause(&status))],
            ..LeaveOutcome::default()
        },
        Err(_) => LeaveOutcome {
            unacknowledged: vec!["agent: no answer to Deregister".to_owned()],
            ..LeaveOutcome::default()
        },
    }
}
