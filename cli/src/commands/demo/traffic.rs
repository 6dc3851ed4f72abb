//! Makes real calls through every node's proxy, a few per second, and counts them. Input: the outbound addresses.
//! Output: counts and the reasons of failures. The mesh chooses the instances.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use heddle_proto::echo::v1::{EchoRequest, EchoResponse, echo_client::EchoClient};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint, Uri},
};

use heddle_proto::error_text::root_cause;

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The most calls of one node in flight; further ones are not made, and counted as missed.
const IN_FLIGHT: usize = 64;
/// The most reasons that are counted separately; the rest are counted together.
const REASONS: usize = 16;

/// The calls so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) answered: BTreeMap<String, u64>,
    pub(super) failed: BTreeMap<String, u64>,
    pub(super) instances: BTreeSet<String>,
    pub(super) reasons: BTreeMap<String, u64>,
    pub(super) missed: u64,
}

/// The running calls; dropping this ends them.
pub(super) struct Traffic {
    counts: Arc<Mutex<Counts>>,
    pub(super) failures: mpsc::Receiver<String>,
    _callers: JoinSet<()>,
}

impl Traffic {
    pub(super) fn start(nodes: &[(String, SocketAddr)], per_second: u32) -> Result<Self, String> {
        let counts = Arc::new(Mutex::new(Counts::default()));
        let (sender, failures) = mpsc::channel(16);
        let mut callers = JoinSet::new();
        for (node, outbound) in nodes {
            if per_second == 0 {
                continue;
            }
            let caller = Caller {
                node: node.clone(),
                client: client(*outbound)?,
                counts: counts.clone(),
                failures: sender.clone(),
            };
            callers.spawn(caller.call_repeatedly(Duration::from_secs(1) / per_second));
        }
        Ok(Self {
            counts,
            failures,
            _callers: callers,
        })
    }

    pub(super) fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls name the service, so that another one which also implements Echo (started with `heddle run`, say) does not get
/// them.
fn client(outbound: SocketAddr) -> Result<EchoClient<Channel>, String> {
    let endpoint =
        Endpoint::from_shared(format!("http://{outbound}")).map_err(|why| why.to_string())?;
    let endpoint = endpoint
        .connect_timeout(CALL_TIMEOUT)
        .origin(Uri::from_static("http://heddle-echo"));
    Ok(EchoClient::new(endpoint.connect_lazy()))
}

/// Waits until a call through `outbound` succeeds. Returns the instance that answered, or the last failure.
pub(super) async fn first_answer(outbound: SocketAddr, within: Duration) -> Result<String, String> {
    let client = client(outbound)?;
    let mut last = "no answer".to_owned();
    let tries = async {
        loop {
            match call(client.clone()).await {
                Ok(response) => return response.instance,
                Err(status) => last = reason(&status),
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(within, tries).await.map_err(|_| last)
}

async fn call(mut client: EchoClient<Channel>) -> Result<EchoResponse, Status> {
    let mut request = Request::new(EchoRequest {
        payload: Bytes::from_static(b"hello from the demo"),
        ..EchoRequest::default()
    });
    request.set_timeout(CALL_TIMEOUT);
    match timeout(CALL_TIMEOUT * 2, client.unary(request)).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(
            "no answer, and the deadline was not enforced",
        )),
    }
}

/// The proxy's reason if there is one, else the status; with the message. A status with a source came from this side,
/// not from a server.
pub(super) fn reason(status: &Status) -> String {
    let given = status
        .metadata()
        .get("heddle-reason")
        .and_then(|reason| reason.to_str().ok());
    match (given, status.source()) {
        (Some(reason), _) => format!("{reason}: {}", status.message()),
        (None, Some(why)) => format!("the proxy does not answer: {}", root_cause(why)),
        (None, None) => format!("{:?}: {}", status.code(), status.message()),
    }
}

struct Caller {
    node: String,
    client: EchoClient<Channel>,
    counts: Arc<Mutex<Counts>>,
    failures: mpsc::Sender<String>,
}

impl Caller {
    async fn call_repeatedly(self, pause: Duration) {
        let slots = Arc::new(Semaphore::new(IN_FLIGHT));
        let mut ticks = interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let caller = Arc::new(self);
        let mut calls = JoinSet::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Some(_) = calls.join_next() => continue,
            }
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                lock(&caller.counts).missed += 1;
                continue;
            };
            let caller = caller.clone();
            calls.spawn(async move {
                let outcome = call(caller.client.clone()).await;
                caller.count(outcome);
                drop(slot);
            });
        }
    }

    fn count(&self, outcome: Result<EchoResponse, Status>) {
        let mut counts = lock(&self.counts);
        match outcome {
            Ok(response) => {
                *counts.answered.entry(self.node.clone()).or_default() += 1;
                counts.instances.insert(response.instance);
            }
            Err(status) => {
                let text = reason(&status);
                *counts.failed.entry(self.node.clone()).or_default() += 1;
                let code = text.split(':').next().unwrap_or_default().to_owned();
                let known = counts.reasons.contains_key(&code) || counts.reasons.len() < REASONS;
                *counts
                    .reasons
                    .entry(if known { code } else { "others".into() })
                    .or_default() += 1;
                drop(counts);
                // If the channel is full, other failures are just being printed; the counts include all.
                let _ = self
                    .failures
                    .try_send(format!("a call through {} failed: {text}", self.node));
            }
        }
    }
}
