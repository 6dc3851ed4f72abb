//! The writer thread of the embedded store: applies waiting requests and expired leases in order, makes them durable
//! with one commit, publishes them and answers. If a commit fails, everything in it is refused and the state is read
//! from the file again, so memory is never ahead of the file.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    EmbeddedOptions, Shared,
    file::{Commit, File},
};
use crate::store::{LeaseId, StoreError, Txn, TxnResult};

/// The most requests per commit: limits how long the first waits for the last.
const MAX_BATCH: usize = 2048;
/// The pause before a failed file is opened again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Job {
    Txn(Txn, Reply<TxnResult>),
    Grant(Duration, Reply<LeaseId>),
    Revoke(LeaseId, Reply<()>),
}

pub(super) struct Request {
    pub(super) job: Job,
    /// The request's slot in the queue, released when it is answered.
    pub(super) slot: OwnedSemaphorePermit,
}

/// Bounded by the slots of the requests.
pub(super) type Queue = mpsc::Sender<Request>;

pub(super) fn queue() -> (Queue, mpsc::Receiver<Request>) {
    mpsc::channel()
}

/// An answer that is sent when the batch is durable.
enum Answer {
    Txn(Reply<TxnResult>, Result<TxnResult, StoreError>),
    Grant(Reply<LeaseId>, Result<LeaseId, StoreError>),
    Revoke(Reply<()>, Result<(), StoreError>),
}

impl Answer {
    fn send(self, failed: Option<&StoreError>) {
        fn settle<T>(reply: Reply<T>, result: Result<T, StoreError>, failed: Option<&StoreError>) {
            let result = match failed {
                Some(error) => result.and(Err(error.clone())),
                None => result,
            };
            // The requester may be gone; the change is valid nevertheless.
            let _ = reply.send(result);
        }
        match self {
            Self::Txn(reply, result) => settle(reply, result, failed),
            Self::Grant(reply, result) => settle(reply, result, failed),
            Self::Revoke(reply, result) => settle(reply, result, failed),
        }
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    options: EmbeddedOptions,
    file: Result<File, StoreError>,
    reopened: Instant,
    jobs: mpsc::Receiver<Request>,
}

enum Wake {
    Job(Box<Request>),
    Look,
    Closed,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        options: EmbeddedOptions,
        file: File,
        jobs: mpsc::Receiver<Request>,
    ) -> Self {
        Self {
            shared,
            options,
            file: Ok(file),
            reopened: Instant::now(),
            jobs,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            let first = match self.wait() {
                Wake::Job(request) => Some(*request),
                Wake::Look => None,
                Wake::Closed => return,
            };
            self.turn(first);
        }
    }

    fn wait(&self) -> Wake {
        let now = Instant::now();
        let check = self.shared.lock().leases().next_check(now);
        let received = match check {
            Some(at) => self.jobs.recv_timeout(at.saturating_duration_since(now)),
            None => self.jobs.recv().map_err(mpsc::RecvTimeoutError::from),
        };
        match received {
            Ok(request) => Wake::Job(Box::new(request)),
            Err(mpsc::RecvTimeoutError::Timeout) => Wake::Look,
            Err(mpsc::RecvTimeoutError::Disconnected) => Wake::Closed,
        }
    }

    fn turn(&mut self, first: Option<Request>) {
        if self.file.is_err() {
            self.reopen();
        }
        let mut commit = Commit::default();
        if self.file.is_ok() {
            self.expire(&mut commit);
        }
        let mut answers = Vec::new();
        let mut slots = Vec::new();
        let waiting = first
            .into_iter()
            .chain(std::iter::from_fn(|| self.jobs.try_recv().ok()));
        for request in waiting.take(MAX_BATCH) {
            answers.push(match &self.file {
                Ok(_) => self.apply(request.job, &mut commit),
                Err(error) => refuse(request.job, error),
            });
            slots.push(request.slot);
        }
        let failed = self.settle(commit).err();
        for answer in answers {
            answer.send(failed.as_ref());
        }
    }

    fn expire(&self, commit: &mut Commit) {
        for (lease, changes) in self.shared.lock().expire(Instant::now()) {
            let events = changes.iter().flat_map(|changes| changes.events.iter());
            let keys: Vec<&str> = events.map(|event| &*event.key).collect();
            if !keys.is_empty() {
                tracing::info!(%lease, ?keys, "a lease expired");
            }
            commit.ended.push(lease);
            commit.changes.extend(changes);
        }
    }

    fn apply(&self, job: Job, commit: &mut Commit) -> Answer {
        let mut machine = self.shared.lock();
        match job {
            Job::Txn(txn, reply) => {
                let result = machine.txn(&txn).map(|(result, changes)| {
                    commit.changes.extend(changes);
                    result
                });
                Answer::Txn(reply, result)
            }
            Job::Grant(ttl, reply) => {
                let lease = machine.grant(ttl, Instant::now());
                commit.granted.push((lease, ttl));
                Answer::Grant(reply, Ok(lease))
            }
            Job::Revoke(lease, reply) => {
                let result = machine.revoke(lease).map(|changes| {
                    commit.ended.push(lease);
                    commit.changes.extend(changes);
                });
                Answer::Revoke(reply, result)
            }
        }
    }

    /// Makes the batch durable and publishes it, or undoes all of it.
    fn settle(&mut self, mut commit: Commit) -> Result<(), StoreError> {
        let Ok(file) = &self.file else { return Ok(()) };
        if commit.is_empty() {
            return Ok(());
        }
        commit.last_lease = self.shared.lock().last_lease();
        let result = file.commit(&commit);
        let fsyncs = file.fsyncs();
        if let Err(cause) = result {
            tracing::error!(path = %self.options.path.display(), cause, "cannot write to the store");
            let error = StoreError::Unavailable {
                cause: format!("it cannot write ({cause}); free disk space or repair the disk"),
            };
            self.file = Err(error.clone());
            self.reopen();
            return Err(error);
        }
        let published = {
            let mut machine = self.shared.lock();
            machine.counters.commits += 1;
            machine.counters.fsyncs = fsyncs;
            machine.publish();
            machine.history().published()
        };
        self.shared.published.send_replace(published);
        Ok(())
    }

    /// Returns to the state in the file. The old handle must be closed before, because it has the file's lock.
    fn reopen(&mut self) {
        if self.reopened.elapsed() < REOPEN_PAUSE {
            return;
        }
        self.reopened = Instant::now();
        match File::open(&self.options) {
            Ok((file, saved)) => {
                let published = {
                    let mut machine = self.shared.lock();
                    *machine = machine.restarted(saved, Instant::now());
                    machine.history().published()
                };
                self.file = Ok(file);
                self.shared.published.send_replace(published);
                tracing::warn!(path = %self.options.path.display(), "the store is open again");
            }
            Err(error) => {
                tracing::error!(%error, "cannot reopen the store; retrying");
                self.file = Err(StoreError::Unavailable {
                    cause: error.to_string(),
                });
            }
        }
    }
}

fn refuse(job: Job, error: &StoreError) -> Answer {
    match job {
        Job::Txn(_, reply) => Answer::Txn(reply, Err(error.clone())),
        Job::Grant(_, reply) => Answer::Grant(reply, Err(error.clone())),
        Job::Revoke(_, reply) => Answer::Revoke(reply, Err(error.clone())),
    }
}
