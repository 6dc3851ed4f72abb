//! Keep-alive streams: each keeps one registration alive until it breaks, and says that this process is stopping.
//! An instance that asks for it then follows the drain: once it leaves as well, it learns when its calls in flight at
//! this process have ended. Input: beats. Output: the instance's health. What a registration is is not known here.

use std::time::Duration;

use heddle_proto::registry::v1::{Health, KeepAliveRequest, KeepAliveResponse};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Agent, removal::Remover, removal_log::Cause};

/// The status message of a stream that ends because this process is stopping.
pub const STOPPING: &str = "this proxy is stopping: connect again, its successor answers";
/// How often an instance that leaves during the drain gets the number of calls that it still has.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// An extension of responses whose stream ends by itself when this process stops.
#[derive(Clone, Copy, Debug)]
pub struct EndsItself;

/// The stop of this process.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// It is stopping, and has released its ports: its successor can be reached.
    pub begun: CancellationToken,
    /// No call is left, or none is waited for any more.
    pub drained: CancellationToken,
}

/// One stream of beats and the answers to it.
pub(super) struct KeepAlive {
    pub(super) agent: Agent,
    pub(super) remover: Remover,
    pub(super) stop: Stop,
    pub(super) beats: Streaming<KeepAliveRequest>,
    pub(super) answers: Answers,
}

/// Why no further beat comes.
enum Over {
    /// The instance has closed the stream, or it broke.
    Closed,
    /// No heartbeat within the TTL.
    Late,
}

impl KeepAlive {
    /// From the first beat until the stream ends.
    pub(super) async fn run(mut self) {
        let begun = self.stop.begun.clone();
        // A stream that names no registration keeps nothing alive.
        let first = begun.run_until_cancelled(self.next()).await;
        let first = match first {
            Some(Ok(first)) => first,
            Some(Err(_)) => return,
            None => return fail(&self.answers, Status::unavailable(STOPPING)).await,
        };
        let registration = first.registration;
        let Some(stream) = self.agent.stream_opened(&registration) else {
            return fail(&self.answers, unknown()).await;
        };
        let kept = begun.run_until_cancelled(self.keep(&registration));
        let Some(cause) = kept.await else {
            return match first.follows_drain {
                true => self.follow_drain(&registration).await,
                false => fail(&self.answers, Status::unavailable(STOPPING)).await,
            };
        };
        if self.agent.beat(&registration).is_none() {
            let _ = self.answers.try_send(Err(unknown()));
        }
        self.agent.stream_closed(&registration, stream, cause);
    }

    /// Answers beats until the stream ends. Returns why.
    async fn keep(&mut self, registration: &str) -> Cause {
        while let Some((health, health_reason)) = self.agent.beat(registration) {
            let answer = KeepAliveResponse {
                health: health.into(),
                health_reason,
                ..KeepAliveResponse::default()
            };
            if self.answers.send(Ok(answer)).await.is_err() {
                break;
            }
            match self.next().await {
                Ok(beat) if is_of_another(&beat, registration) => {
                    let other = "a stream keeps one registration alive: open another stream for another \
                        registration";
                    fail(&self.answers, Status::invalid_argument(other)).await;
                    let cause = "its keep-alive stream named another registration";
                    return Cause::Given(cause.into());
                }
                Ok(_) => {}
                Err(Over::Closed) => break,
                Err(Over::Late) => return Cause::NoBeat(self.agent.inner.ttl),
            }
        }
        Cause::StreamBroke
    }

    /// The stream of an instance that belongs to the next process from now on. Nothing is lost for the mesh if it ends.
    async fn follow_drain(mut self, registration: &str) {
        let drained = self.stop.drained.clone();
        // Also if no call is left and the drain is over at once: the instance has to know that it is no failure.
        let answer = draining(&self.agent, registration, 0);
        if self.answers.send(Ok(answer)).await.is_err() {
            return;
        }
        let followed = async {
            loop {
                match self.next().await {
                    Ok(beat) if beat.leaves => break,
                    Ok(_) => {}
                    Err(_) => return,
                }
                let answer = draining(&self.agent, registration, 0);
                if self.answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
            let (agent, answers) = (&self.agent, &self.answers);
            let report = |in_flight| {
                // If an answer is still unread, the next one reports it.
                let _ = answers.try_send(Ok(draining(agent, registration, in_flight)));
            };
            let left = self
                .remover
                .leave_draining(registration, REPORT_EVERY, report);
            tokio::select! {
                () = left => {}
                () = answers.closed() => {}
            }
        };
        drained.run_until_cancelled(followed).await;
    }

    async fn next(&mut self) -> Result<KeepAliveRequest, Over> {
        tokio::select! {
            next = timeout(self.agent.inner.ttl, self.beats.message()) => match next {
                Ok(Ok(Some(beat))) => Ok(beat),
                Ok(Ok(None) | Err(_)) => Err(Over::Closed),
                Err(_) => Err(Over::Late),
            },
            () = self.answers.closed() => Err(Over::Closed),
        }
    }
}

type Answers = mpsc::Sender<Result<KeepAliveResponse, Status>>;

async fn fail(answers: &Answers, status: Status) {
    let _ = answers.send(Err(status)).await;
}

fn draining(agent: &Agent, registration: &str, in_flight: usize) -> KeepAliveResponse {
    let known = agent.beat(registration);
    let (health, health_reason) = known.unwrap_or((Health::Draining, String::new()));
    KeepAliveResponse {
        health: health.into(),
        health_reason,
        draining: true,
        in_flight: u32::try_from(in_flight).unwrap_or(u32::MAX),
    }
}

fn is_of_another(beat: &KeepAliveRequest, registration: &str) -> bool {
    !beat.registration.is_empty() && beat.registration != registration
}

pub(super) fn unknown() -> Status {
    Status::not_found("this registration is unknown or has ended: call Register again")
}
