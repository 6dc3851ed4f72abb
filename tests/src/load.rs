//! Constant load with a log. Every call that is started has exactly one entry, with its checked response or the reason of
//! its failure. A missing or doubled entry fails the test.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use heddle_proto::echo::v1::echo_client::EchoClient;
use heddle_proto::echo::v1::{EchoRequest, EchoResponse};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

use crate::echo::{Failed, channel, echo};
use crate::wait::until;

/// Which method is called: what a proxy may do when the instance dies under it depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Unary`: declared free of side effects, so it may be tried again.
    Safe,
    /// `ServerStream` with one response: says nothing of side effects, so it may not.
    Unsafe,
}

/// The load: `callers` callers per address, each calling, waiting `pause`, calling again.
#[derive(Clone, Debug)]
pub struct Plan {
    pub through: Vec<SocketAddr>,
    pub kind: Kind,
    pub callers: usize,
    pub pause: Duration,
    /// How long the service takes to answer.
    pub delay_ms: u32,
}

impl Plan {
    /// Four callers per address, some 400 short calls a second each way.
    pub fn new(kind: Kind, through: &[SocketAddr]) -> Self {
        Self {
            through: through.to_vec(),
            kind,
            callers: 4,
            pause: Duration::from_millis(10),
            delay_ms: 5,
        }
    }
}

/// One call in the log.
#[derive(Clone, Debug)]
pub struct Entry {
    pub number: u64,
    pub through: SocketAddr,
    pub begun: Instant,
    pub ended: Instant,
    /// The instance that answered, or the failure.
    pub answer: Result<String, Failed>,
}

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    begun: Arc<AtomicU64>,
    log: Arc<Mutex<Vec<Entry>>>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(plan: &Plan) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            begun: Arc::default(),
            log: Arc::default(),
            callers: Vec::new(),
        };
        for &through in &plan.through {
            for _ in 0..plan.callers {
                load.callers.push(load.caller(through, plan.clone()));
            }
        }
        load
    }

    fn caller(&self, through: SocketAddr, plan: Plan) -> JoinHandle<()> {
        let (stop, begun) = (Arc::clone(&self.stop), Arc::clone(&self.begun));
        let log = Arc::clone(&self.log);
        tokio::spawn(async move {
            let client = echo(channel(through));
            while !stop.load(Ordering::Relaxed) {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                let start = Instant::now();
                let answer = one(client.clone(), &plan, number).await;
                log.lock().unwrap().push(Entry {
                    number,
                    through,
                    begun: start,
                    ended: Instant::now(),
                    answer: answer.map_err(|status| Failed::from(&status)),
                });
                tokio::time::sleep(plan.pause).await;
            }
        })
    }

    /// Waits until this many more calls have ended.
    pub async fn more(&self, calls: usize) {
        let start = self.log.lock().unwrap().len();
        until("the load goes on", async || {
            let now = self.log.lock().unwrap().len() - start;
            if now >= calls {
                Ok(())
            } else {
                Err(format!("{now} of {calls} calls"))
            }
        })
        .await;
    }

    /// Ends the load, waits for the calls in flight, and returns the log.
    pub async fn finish(self) -> CallLog {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.expect("a caller does not panic");
        }
        let mut entries = std::mem::take(&mut *self.log.lock().unwrap());
        entries.sort_by_key(|entry| entry.number);
        let begun = self.begun.load(Ordering::Relaxed);
        let numbers: Vec<u64> = entries.iter().map(|entry| entry.number).collect();
        assert_eq!(
            numbers,
            (0..begun).collect::<Vec<u64>>(),
            "a call was lost or doubled"
        );
        CallLog { entries }
    }
}

/// One call; the answer must be the answer to this very request, and come once.
async fn one(mut client: EchoClient<Channel>, plan: &Plan, number: u64) -> Result<String, Status> {
    let payload = format!("call {number}");
    let request = EchoRequest {
        payload: payload.clone().into(),
        delay_ms: plan.delay_ms,
        response_count: 1,
        ..EchoRequest::default()
    };
    let mut request = tonic::Request::new(request);
    request.set_timeout(Duration::from_secs(20));
    let response: EchoResponse = match plan.kind {
        Kind::Safe => client.unary(request).await?.into_inner(),
        Kind::Unsafe => {
            let mut stream = client.server_stream(request).await?.into_inner();
            let first = stream.message().await?;
            let first = first.ok_or_else(|| Status::data_loss("no response and no failure"))?;
            if stream.message().await?.is_some() {
                return Err(Status::data_loss("two responses to one request"));
            }
            first
        }
    };
    if response.payload == payload.as_bytes() {
        Ok(response.instance)
    } else {
        Err(Status::data_loss(format!(
            "{payload:?} was answered with {:?}",
            response.payload
        )))
    }
}

/// Every call of a load.
pub struct CallLog {
    pub entries: Vec<Entry>,
}

impl CallLog {
    /// The calls that failed.
    pub fn failed(&self) -> Vec<&Entry> {
        self.entries
            .iter()
            .filter(|entry| entry.answer.is_err())
            .collect()
    }

    /// Asserts that at least so many calls were made and none failed.
    pub fn assert_none_failed(&self, at_least: usize) {
        assert!(
            self.entries.len() >= at_least,
            "only {} calls",
            self.entries.len()
        );
        assert!(self.failed().is_empty(), "{}", self.summary());
    }

    /// How many calls each instance answered, of those begun after `since`.
    pub fn answered_since(&self, since: Instant) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.begun >= since) {
            if let Ok(instance) = &entry.answer {
                *counts.entry(instance.clone()).or_default() += 1;
            }
        }
        counts
    }

    /// The failed calls and why, for messages.
    pub fn summary(&self) -> String {
        let failed = self.failed();
        let mut text = format!("{} of {} calls failed", failed.len(), self.entries.len());
        for entry in failed.iter().take(10) {
            let took = entry.ended - entry.begun;
            let _ = write!(
                text,
                "\ncall {} through {}, {took:?}: {:?}",
                entry.number, entry.through, entry.answer
            );
        }
        text
    }
}
