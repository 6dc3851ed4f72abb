//! Keeps leases alive over one stream for all of them. Each request is answered when etcd has confirmed the lease, or
//! when the stream broke and the request may be repeated. If a member does not answer, the next one is used. This
//! module does not decide how often a lease is kept alive.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    api,
    client::{ATTEMPT_TIMEOUT, Client},
    fault::Fault,
    translate,
};
use crate::store::LeaseId;

/// The most keep-alives queued for the stream; further ones wait for room.
const QUEUE: usize = 4096;

/// A keep-alive and the receiver of its answer: true if the lease is alive.
pub(super) struct KeepAlive {
    pub(super) lease: LeaseId,
    pub(super) answer: oneshot::Sender<Result<bool, Fault>>,
}

/// Starts to accept keep-alives; the task ends when the sender is dropped.
pub(super) fn start(client: Arc<Client>) -> mpsc::Sender<KeepAlive> {
    let (sender, keep_alives) = mpsc::channel(QUEUE);
    let task = Task {
        client,
        keep_alives,
        waiting: HashMap::new(),
        sent: VecDeque::new(),
    };
    tokio::spawn(task.run());
    sender
}

struct Task {
    client: Arc<Client>,
    keep_alives: mpsc::Receiver<KeepAlive>,
    /// The receivers of answers by lease, in the order in which their keep-alives were sent: each has one answer.
    waiting: HashMap<i64, VecDeque<oneshot::Sender<Result<bool, Fault>>>>,
    /// When the unanswered keep-alives were sent, oldest first.
    sent: VecDeque<Instant>,
}

/// Why a stream ended.
enum End {
    Broken(Fault),
    Closed,
}

impl Task {
    async fn run(mut self) {
        // A stream is opened by the first keep-alive that needs it.
        while let Some(first) = self.keep_alives.recv().await {
            let member = self.client.current();
            match self.serve(member, first).await {
                End::Broken(fault) => {
                    let fault = self.client.on_fault(member, fault);
                    tracing::debug!(?fault, "the keep-alive stream broke");
                    for waiting in self.waiting.drain().flat_map(|(_, waiting)| waiting) {
                        // The receiver may be gone.
                        let _ = waiting.send(Err(fault.clone()));
                    }
                    self.sent.clear();
                }
                End::Closed => return,
            }
        }
    }

    async fn serve(&mut self, member: usize, first: KeepAlive) -> End {
        let (requests, outbound) = mpsc::channel(QUEUE);
        if let Err(end) = self.send(&requests, first) {
            return end;
        }
        let outbound = ReceiverStream::new(outbound);
        let opened = self
            .client
            .stream(member, api::LEASE_KEEP_ALIVE, outbound)
            .await;
        let mut answers: Streaming<api::LeaseKeepAliveResponse> = match opened {
            Ok(answers) => answers,
            Err(fault) => return End::Broken(fault),
        };
        loop {
            let deadline = self.sent.front().map(|sent| *sent + ATTEMPT_TIMEOUT);
            let overdue = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                answer = answers.message() => match self.client.received(answer) {
                    Ok(answer) => self.on_answer(&answer),
                    Err(fault) => return End::Broken(fault),
                },
                keep_alive = self.keep_alives.recv() => {
                    let Some(keep_alive) = keep_alive else { return End::Closed };
                    if let Err(end) = self.send(&requests, keep_alive) {
                        return end;
                    }
                }
                () = overdue => {
                    return End::Broken(Fault::NotDone(format!("no answer to a keep-alive within {ATTEMPT_TIMEOUT:?}")));
                }
            }
        }
    }

    fn send(
        &mut self,
        requests: &mpsc::Sender<api::LeaseKeepAliveRequest>,
        keep_alive: KeepAlive,
    ) -> Result<(), End> {
        let id = translate::id(keep_alive.lease);
        self.waiting
            .entry(id)
            .or_default()
            .push_back(keep_alive.answer);
        self.sent.push_back(Instant::now());
        requests
            .try_send(api::LeaseKeepAliveRequest { id })
            .map_err(|_| End::Broken(Fault::NotDone("it accepts no more keep-alives".to_owned())))
    }

    fn on_answer(&mut self, answer: &api::LeaseKeepAliveResponse) {
        // Answers have the order of the keep-alives.
        self.sent.pop_front();
        let Some(waiting) = self.waiting.get_mut(&answer.id) else {
            return;
        };
        if let Some(first) = waiting.pop_front() {
            // The receiver may be gone.
            let _ = first.send(Ok(answer.ttl > 0));
        }
        if waiting.is_empty() {
            self.waiting.remove(&answer.id);
        }
    }
}
