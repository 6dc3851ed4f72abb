//! The lifecycle of one registration: register, beat, register again when the stream breaks, leave. Input: the instance.
//! Output: its node's name and, at the end, who has acknowledged that it left. If the agent is away or refuses,
//! registering is retried without limit, so that the order of starts does not matter. The service's sockets are not used
//! here.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use heddle_pacing::Backoff;
use heddle_proto::error_text::status_cause;
use heddle_proto::registry::v1::{
    Instance, RegisterRequest, RegisterResponse, registry_client::RegistryClient,
};
use tokio::{
    sync::watch,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::address::proxy_url;
use crate::departure::{LeaveMode, LeaveOutcome, Left, deregister};
use crate::keep_alive::{DrainingAgents, End, KeepAliveTimes, keep_alive};
use crate::log_limiter::LogLimiter;

/// Retries without limit while the agent is away, 0.1 to 2 s apart: jitter takes up to half of these delays.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(200);
pub(crate) const LAST_RETRY: Duration = Duration::from_secs(2);
/// Timeout of a Register call; the agent answers from memory.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// If the instance leaves while it registers, the answer is awaited for this long, so that the registration can be
/// undone.
const UNDO_TIMEOUT: Duration = Duration::from_secs(1);
/// A process of the agent that does not answer because it is stopping reports it on the keep-alive stream within this
/// time.
const DRAIN_TOLD_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the mesh keeps the instances of a node whose proxy is stopping, and so how long an instance that leaves
/// waits for the next process (docs/health.md).
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest pause between two attempts to reach the next process while the instance leaves.
const LAST_RETRY_OF_LEAVING: Duration = Duration::from_millis(500);

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
            registration: String::new(),
            draining: DrainingAgents::new(leaving.clone()),
            log_limiter: LogLimiter::default(),
        };
        tokio::spawn(async move {
            let outcome = Box::pin(registrar.run()).await;
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

    /// Removes the instance. Returns when every connected client has acknowledged it, or after [`crate::LEAVE_TIMEOUT`]. The
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

    /// Removes the instance without waiting for any client, because it has already ended. `cause` gives the reason in a few
    /// words ("its process ended") and is reported to the mesh as an event; empty: no event.
    pub async fn report_end(&self, cause: &str) -> LeaveOutcome {
        self.leave_with(LeaveMode::Ended(cause.to_owned())).await
    }

    /// Only the first call sets the mode.
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
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true))
}

/// The state of the background task.
struct Registrar {
    client: RegistryClient<Channel>,
    agent: String,
    request: RegisterRequest,
    leaving: CancellationToken,
    mode: Arc<OnceLock<LeaveMode>>,
    node: watch::Sender<Arc<str>>,
    /// The last registration; empty before the first one.
    registration: String,
    draining: DrainingAgents,
    log_limiter: LogLimiter,
}

/// How a registration ended.
enum RegistrationEnd {
    Left(LeaveOutcome),
    Broken,
    /// The agent's process is stopping.
    Draining,
}

impl Registrar {
    async fn run(mut self) -> LeaveOutcome {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            let mut register = std::pin::pin!(register(self.client.clone(), self.request.clone()));
            let answer = tokio::select! {
                answer = &mut register => answer,
                () = self.leaving.cancelled() => {
                    let Ok(Ok(RegisterResponse { registration, .. })) = timeout(UNDO_TIMEOUT, register).await else {
                        return self.leave_next_process().await;
                    };
                    let leave = deregister(self.client.clone(), registration, self.mode());
                    return self.leave(leave).await.departure;
                }
            };
            match answer {
                Ok(response) => match self.keep_registered(response, &mut backoff).await {
                    RegistrationEnd::Left(departure) => return departure,
                    RegistrationEnd::Broken => {}
                    RegistrationEnd::Draining => {
                        backoff.reset();
                        continue;
                    }
                },
                Err(status) => self.log_failure(&refusal(&status)),
            }
            let pause = backoff.fail();
            tokio::select! {
                () = sleep(pause) => {}
                () = self.leaving.cancelled() => return self.leave_next_process().await,
            }
        }
    }

    /// Sends beats until the stream breaks, the agent's process stops, or the instance leaves.
    async fn keep_registered(
        &mut self,
        response: RegisterResponse,
        backoff: &mut Backoff,
    ) -> RegistrationEnd {
        let RegisterResponse {
            node,
            registration,
            beat_interval,
            ttl,
        } = response;
        tracing::info!(node, agent = self.agent, "registered");
        self.node.send_replace(Arc::from(node));
        self.log_limiter.forget();
        self.registration.clone_from(&registration);
        let times = KeepAliveTimes::new(beat_interval, ttl);
        let client = self.client.clone();
        let mut alive = std::pin::pin!(keep_alive(client, registration.clone(), times, backoff));
        let end = tokio::select! {
            end = &mut alive => end,
            () = self.leaving.cancelled() => {
                // Beats continue meanwhile: a broken stream would remove the instance before the clients know.
                let leave = deregister(self.client.clone(), registration, self.mode());
                let mut leave = std::pin::pin!(self.leave(leave));
                tokio::select! {
                    left = &mut leave => {
                        if left.answered {
                            return RegistrationEnd::Left(left.departure);
                        }
                        // The agent's process may be stopping: then its stream reports it.
                        match timeout(DRAIN_TOLD_TIMEOUT, &mut alive).await {
                            Ok(draining @ End::Draining(_)) => draining,
                            _ => return RegistrationEnd::Left(left.departure),
                        }
                    }
                    end = &mut alive => match end {
                        End::Broken(_) => return RegistrationEnd::Left(leave.await.departure),
                        draining @ End::Draining(_) => draining,
                    },
                }
            }
        };
        match end {
            End::Broken(why) => {
                self.log_failure(&why);
                RegistrationEnd::Broken
            }
            End::Draining(stream) => {
                tracing::info!(
                    agent = self.agent,
                    "the node's proxy is stopping: registering with its successor"
                );
                self.draining.follow(stream);
                // The old connection leads to the old process.
                if let Ok(channel) = agent_channel(&self.agent) {
                    self.client = RegistryClient::new(channel);
                }
                if self.leaving.is_cancelled() {
                    return RegistrationEnd::Left(self.leave_next_process().await);
                }
                RegistrationEnd::Draining
            }
        }
    }

    /// Leaves while no process of the agent has answered this registration. If the last one is stopping, the next
    /// one may have taken the instance over from its state dir: it is asked as long as the last one has calls, and as
    /// long as a next one may come that the rest of the mesh waits for.
    async fn leave_next_process(&self) -> LeaveOutcome {
        if self.draining.is_empty() {
            return LeaveOutcome::default();
        }
        let mode = self.mode();
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY_OF_LEAVING);
        let mut calls = self.draining.clone();
        let now = tokio::time::Instant::now();
        let successor = match mode {
            LeaveMode::Ended(_) => now,
            LeaveMode::Acknowledged | LeaveMode::Finished(_) => self
                .draining
                .since()
                .map_or(now, |since| since + SUCCESSOR_TIMEOUT),
        };
        let until = successor.max(now + mode.finish().unwrap_or_default());
        let leave = async {
            loop {
                let (client, registration) = (self.client.clone(), self.registration.clone());
                let left = deregister(client, registration, mode.clone()).await;
                if left.answered {
                    return left;
                }
                let finished = async {
                    calls.finished().await;
                    sleep_until(successor).await;
                };
                tokio::select! {
                    () = sleep(backoff.fail()) => {}
                    () = finished => return left,
                    () = sleep_until(until) => return left,
                }
            }
        };
        self.leave(leave).await.departure
    }

    /// Completes `leave` by the calls that stopping processes still have.
    async fn leave(&self, leave: impl Future<Output = Left>) -> Left {
        let mut draining = self.draining.clone();
        let Some(within) = self.mode().finish() else {
            return leave.await;
        };
        let (mut left, _) = tokio::join!(leave, timeout(within, draining.finished()));
        let departure = &mut left.departure;
        let in_flight = draining.in_flight();
        departure.in_flight = departure.in_flight.saturating_add(in_flight);
        // If no other process knows the instance, no other one has calls of it.
        let alone = !departure.deregistered && !draining.is_empty();
        departure.finished = (departure.finished || alone) && in_flight == 0;
        left
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
    match timeout(REGISTER_TIMEOUT, client.register(request)).await {
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
