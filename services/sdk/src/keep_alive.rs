//! The keep-alive stream of one registration: sends beats, logs the instance's health as the agent sees it, and returns
//! why it ended. If the agent's process is stopping, its stream is followed further in the background, until the
//! calls that the process still has for this instance have ended. Registering is not done here.

use std::time::Duration;

use heddle_pacing::Backoff;
use heddle_proto::error_text::status_cause;
use heddle_proto::registry::v1::{
    Health, KeepAliveRequest, KeepAliveResponse, registry_client::RegistryClient,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};

const DEFAULT_BEAT: Duration = Duration::from_secs(5);
const DEFAULT_TTL: Duration = Duration::from_secs(15);
/// The most draining processes that are followed; the calls of further ones are not waited for.
const MAX_FOLLOWED: usize = 8;

/// The interval of beats, and how long a missing answer means that the agent is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeepAliveTimes {
    beat: Duration,
    ttl: Duration,
}

impl KeepAliveTimes {
    pub(crate) fn new(
        beat: Option<prost_types::Duration>,
        ttl: Option<prost_types::Duration>,
    ) -> Self {
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

/// Why a registration is not kept alive any more.
pub(crate) enum End {
    /// The stream broke, with the reason.
    Broken(String),
    /// The agent's process is stopping. It still answers on this stream.
    Draining(Box<KeepAlive>),
}

/// An open stream.
pub(crate) struct KeepAlive {
    /// At most one beat waits, so that they do not pile up at an agent that does not read.
    beats: mpsc::Sender<KeepAliveRequest>,
    answers: Streaming<KeepAliveResponse>,
    ticks: Interval,
    ttl: Duration,
    /// When the last answer came.
    last_answer: Instant,
}

/// Sends beats until the stream ends.
pub(crate) async fn keep_alive(
    client: RegistryClient<Channel>,
    registration: String,
    times: KeepAliveTimes,
    backoff: &mut Backoff,
) -> End {
    let mut stream = match KeepAlive::open(client, registration, times).await {
        Ok(stream) => stream,
        Err(why) => return End::Broken(why),
    };
    let mut health = Health::Unspecified;
    loop {
        let answer = match stream.next().await {
            Ok(answer) => answer,
            Err(why) => return End::Broken(why),
        };
        if answer.draining {
            return End::Draining(Box::new(stream));
        }
        backoff.reset();
        if answer.health() != health {
            health = answer.health();
            let reason = &answer.health_reason;
            tracing::info!(
                health = health.as_str_name(),
                reason,
                "as the agent sees this instance"
            );
        }
    }
}

impl KeepAlive {
    async fn open(
        mut client: RegistryClient<Channel>,
        registration: String,
        times: KeepAliveTimes,
    ) -> Result<Self, String> {
        let (beats, outgoing) = mpsc::channel(1);
        let first = KeepAliveRequest {
            registration,
            follows_drain: true,
            leaves: false,
        };
        if beats.try_send(first).is_err() {
            return Err("lost its stream".to_owned());
        }
        let opened = timeout(times.ttl, client.keep_alive(ReceiverStream::new(outgoing))).await;
        let answers = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(broken(&status)),
            Err(_) => return Err("does not answer heartbeats".to_owned()),
        };
        let now = Instant::now();
        let mut ticks = interval_at(now + times.beat, times.beat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            beats,
            answers,
            ticks,
            ttl: times.ttl,
            last_answer: now,
        })
    }

    /// The next answer, while beats go on; or why the stream ended. Can be cancelled without losing an answer.
    async fn next(&mut self) -> Result<KeepAliveResponse, String> {
        loop {
            tokio::select! {
                _ = self.ticks.tick() => {
                    let _ = self.beats.try_send(KeepAliveRequest::default());
                }
                answer = self.answers.message() => return match answer {
                    Ok(Some(answer)) => {
                        self.last_answer = Instant::now();
                        Ok(answer)
                    }
                    Ok(None) => Err("ended the keep-alive stream".to_owned()),
                    Err(status) => Err(broken(&status)),
                },
                () = sleep_until(self.last_answer + self.ttl) => {
                    return Err("does not answer heartbeats".to_owned());
                }
            }
        }
    }

    /// Follows a process that drains, until it ends or, once this instance leaves, has none of its calls any more.
    async fn follow(
        mut self: Box<Self>,
        leaving: CancellationToken,
        in_flight: watch::Sender<u32>,
    ) {
        loop {
            tokio::select! {
                answer = self.next() => if answer.is_err() { return },
                () = leaving.cancelled() => break,
            }
        }
        let leaves = KeepAliveRequest {
            leaves: true,
            ..KeepAliveRequest::default()
        };
        let sent = timeout(self.ttl, self.beats.send(leaves)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
        while let Ok(answer) = self.next().await {
            in_flight.send_replace(answer.in_flight);
        }
    }
}

fn broken(status: &Status) -> String {
    format!("broke the keep-alive stream ({})", status_cause(status))
}

/// Processes that are stopping and may still have calls of this instance. Clones follow the same ones.
#[derive(Clone, Debug)]
pub(crate) struct DrainingAgents {
    leaving: CancellationToken,
    /// The calls in flight at each, as last reported. Closed when there are none.
    in_flight: Vec<watch::Receiver<u32>>,
    /// When the newest of them reported that it is stopping.
    since: Option<Instant>,
}

impl DrainingAgents {
    /// `leaving`: this instance leaves.
    pub(crate) fn new(leaving: CancellationToken) -> Self {
        Self {
            leaving,
            in_flight: Vec::new(),
            since: None,
        }
    }

    pub(crate) fn follow(&mut self, stream: Box<KeepAlive>) {
        self.since = Some(Instant::now());
        self.in_flight
            .retain(|in_flight| in_flight.has_changed().is_ok());
        if self.in_flight.len() >= MAX_FOLLOWED {
            return;
        }
        let (report, in_flight) = watch::channel(0);
        tokio::spawn(stream.follow(self.leaving.clone(), report));
        self.in_flight.push(in_flight);
    }

    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Returns when none of them has a call of this instance any more.
    pub(crate) async fn finished(&mut self) {
        for in_flight in &mut self.in_flight {
            while in_flight.changed().await.is_ok() {}
        }
    }

    /// The calls of this instance that they still have.
    pub(crate) fn in_flight(&self) -> u32 {
        let left = self.in_flight.iter().filter_map(|in_flight| {
            in_flight.has_changed().ok()?;
            // It may not have been able to report them yet.
            Some((*in_flight.borrow()).max(1))
        });
        left.fold(0, u32::saturating_add)
    }
}
