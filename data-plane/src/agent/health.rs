//! The health of one instance: asked for at once, then at its interval, and out of turn when a worker saw something.
//! A plan and sightings come in, changes of health go to the agent. Who is asked next, and whether calls go there, is
//! not decided here.

use std::{net::SocketAddr, time::Duration};

use heddle_proto::registry::v1::{Health, health_check::Kind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{Agent, Sighting, book::Joined, validate::CheckPlan};
use crate::retry::{Retry, jittered};

/// Thresholds: how many answers in a row turn the verdict. Pure.
#[derive(Debug)]
pub struct Judge {
    healthy: bool,
    /// Before the first success one is enough.
    fresh: bool,
    streak: u32,
    healthy_threshold: u32,
    unhealthy_threshold: u32,
}

impl Judge {
    #[must_use]
    pub fn new(plan: &CheckPlan) -> Self {
        Self {
            healthy: false,
            fresh: true,
            streak: 0,
            healthy_threshold: plan.healthy_threshold.max(1),
            unhealthy_threshold: plan.unhealthy_threshold.max(1),
        }
    }

    /// Takes one answer; the verdict if it is to be told (each failure before the first success is, for its reason).
    pub fn take(&mut self, success: bool) -> Option<bool> {
        if self.fresh {
            self.fresh = !success;
            self.healthy = success;
            self.streak = 0;
            return Some(success);
        }
        if success == self.healthy {
            self.streak = 0;
            return None;
        }
        self.streak += 1;
        let needed = if success {
            self.healthy_threshold
        } else {
            self.unhealthy_threshold
        };
        if self.streak < needed {
            return None;
        }
        self.healthy = success;
        self.streak = 0;
        Some(success)
    }

    /// A refused connection leaves no doubt.
    pub fn refused(&mut self) {
        self.healthy = false;
        self.fresh = false;
        self.streak = 0;
    }
}

/// Keeps the agent's view of one registration true until it ends.
pub async fn watch(agent: Agent, joined: Joined, sightings: mpsc::Receiver<Sighting>) {
    if matches!(joined.plan.kind, Kind::Grpc | Kind::Http | Kind::Tcp) {
        watch_active(agent, joined, sightings).await;
    } else {
        watch_passive(agent, joined, sightings).await;
    }
}

async fn watch_active(agent: Agent, joined: Joined, mut sightings: mpsc::Receiver<Sighting>) {
    let mut judge = Judge::new(&joined.plan);
    let mut probe = Probe::new(&joined);
    loop {
        let answer = probe.ask(joined.address, &joined.plan).await;
        if let Some(healthy) = judge.take(answer.is_ok()) {
            tell(
                &agent,
                &joined,
                healthy,
                answer.err().as_deref().unwrap_or_default(),
            );
        }
        let interval = jittered(joined.plan.interval, AROUND);
        match timeout(interval, sightings.recv()).await {
            // Out already; one success brings it back.
            Ok(Some(Sighting::Refused)) => {
                judge.refused();
                tokio::time::sleep(jittered(FIRST_RETRY, AROUND)).await;
            }
            Ok(Some(Sighting::Lost)) => {
                if let Err(reason) = connect(joined.address, joined.plan.timeout).await {
                    judge.refused();
                    tell(&agent, &joined, false, &reason);
                }
            }
            Ok(None) => return,
            Err(_) => {}
        }
    }
}

/// First look at an address that refused; it doubles up to [`LAST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// No check of its own: looks only when a worker saw something, and then until the address accepts again.
async fn watch_passive(agent: Agent, joined: Joined, mut sightings: mpsc::Receiver<Sighting>) {
    while let Some(sighting) = sightings.recv().await {
        let mut out = sighting == Sighting::Refused;
        let mut retry = Retry::new(FIRST_RETRY, LAST_RETRY);
        if out {
            tokio::time::sleep(retry.wait()).await;
        }
        while let Err(reason) = connect(joined.address, joined.plan.timeout).await {
            if !out {
                tell(&agent, &joined, false, &reason);
                out = true;
            }
            tokio::time::sleep(retry.wait()).await;
        }
        if out {
            // What was seen while it was out is answered by this.
            while sightings.try_recv().is_ok() {}
            tell(&agent, &joined, true, "");
        }
    }
}

fn tell(agent: &Agent, joined: &Joined, healthy: bool, reason: &str) {
    let health = if healthy {
        Health::Healthy
    } else {
        Health::Unhealthy
    };
    agent.set_health(&joined.key, &joined.registration, health, reason);
}

/// Up to a tenth more or less, so that a thousand instances are not asked in one moment.
const AROUND: std::ops::Range<f64> = 0.9..1.1;

struct Probe {
    grpc: Option<Channel>,
}

impl Probe {
    fn new(joined: &Joined) -> Self {
        let grpc = (joined.plan.kind == Kind::Grpc)
            .then(|| Endpoint::from_shared(format!("http://{}", joined.address)).ok())
            .flatten()
            .map(|e| {
                e.connect_timeout(joined.plan.timeout)
                    .timeout(joined.plan.timeout)
                    .connect_lazy()
            });
        Self { grpc }
    }

    /// `Err` is the reason, as a sentence for people.
    async fn ask(&mut self, address: SocketAddr, plan: &CheckPlan) -> Result<(), String> {
        let asked = async {
            match (plan.kind, &self.grpc) {
                (Kind::Grpc, Some(channel)) => ask_grpc(channel.clone(), &plan.grpc_service).await,
                (Kind::Http, _) => ask_http(address, &plan.path).await,
                _ => connect(address, plan.timeout).await,
            }
        };
        match timeout(plan.timeout, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(format!(
                "its {} check had no answer within {:?}",
                kind_name(plan.kind),
                plan.timeout
            )),
        }
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Grpc => "gRPC",
        Kind::Http => "HTTP",
        _ => "TCP",
    }
}

async fn connect(address: SocketAddr, within: Duration) -> Result<(), String> {
    match timeout(within, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("no connection to {address}: {error}")),
        Err(_) => Err(format!("no connection to {address} within {within:?}")),
    }
}

async fn ask_grpc(channel: Channel, service: &str) -> Result<(), String> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(answer) => Err(format!(
            "its health service answers {}",
            answer.get_ref().status().as_str_name()
        )),
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            Err("it has no grpc.health.v1.Health: use health kind tcp or none".into())
        }
        Err(status) => Err(format!(
            "its health check failed: {:?}: {}",
            status.code(),
            status.message()
        )),
    }
}

/// One GET over a connection of its own; only the status line is read.
async fn ask_http(address: SocketAddr, path: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("no HTTP answer from {address}: {error}");
    let mut stream = TcpStream::connect(address).await.map_err(failed)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: heddle-proxy\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut line = Vec::with_capacity(128);
    let mut buffer = [0u8; 128];
    while !line.contains(&b'\n') && line.len() < 1024 {
        let read = stream.read(&mut buffer).await.map_err(failed)?;
        if read == 0 {
            break;
        }
        line.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    match status_of(&line) {
        Some(status) if (200..300).contains(&status) => Ok(()),
        Some(status) => Err(format!("GET {path} answers {status}")),
        None => Err(format!("GET {path} has no HTTP/1.1 answer")),
    }
}

/// The status of `HTTP/1.1 200 OK…`.
fn status_of(line: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(line.split(|b| *b == b'\r' || *b == b'\n').next()?).ok()?;
    let mut words = text.split(' ');
    words
        .next()
        .filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Judge, status_of};
    use crate::agent::validate::CheckPlan;
    use heddle_proto::registry::v1::health_check::Kind;
    use std::time::Duration;

    #[test]
    fn verdicts_follow_the_thresholds() {
        let plan = CheckPlan {
            kind: Kind::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 2,
            healthy_threshold: 3,
            path: String::new(),
            grpc_service: String::new(),
        };
        let mut judge = Judge::new(&plan);
        // Not up yet: each failure is told for its reason; the first success suffices.
        let first = [
            (false, Some(false)),
            (false, Some(false)),
            (true, Some(true)),
            (true, None),
        ];
        // One failure is no verdict, two are; then three successes are needed.
        let later = [
            (false, None),
            (true, None),
            (false, None),
            (false, Some(false)),
            (true, None),
            (false, None),
            (true, None),
            (true, None),
            (true, Some(true)),
        ];
        for (index, (success, expect)) in first.into_iter().chain(later).enumerate() {
            assert_eq!(judge.take(success), expect, "answer {index}");
        }
        judge.refused();
        assert_eq!(
            [judge.take(true), judge.take(true), judge.take(true)],
            [None, None, Some(true)]
        );
    }

    #[test]
    fn status_lines() {
        for (line, expect) in [
            ("HTTP/1.1 204 No Content\r\n", Some(204)),
            ("HTTP/1.0 500\r\n", Some(500)),
            ("PRI * HTTP/2.0\r\n", None),
            ("", None),
            ("HTTP/1.1 abc", None),
        ] {
            assert_eq!(status_of(line.as_bytes()), expect, "{line}");
        }
    }
}
