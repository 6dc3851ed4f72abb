//! One watch that survives broken streams: it resumes after the last complete revision, at any member that answers. If
//! etcd has reported a newer revision to this process than the watch has reached, the watch requests its progress, and
//! changes the member if it gets no answer.

use std::{sync::Arc, time::Duration};

use heddle_pacing::Backoff;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    api::{self, Answer as _, watch_request::RequestUnion},
    assembly::Assembly,
    client::Client,
    fault::{Fault, classify},
    translate::{Space, number, revision},
};
use crate::store::{Changes, Revision, StoreError};

/// A watch requests its progress this soon after etcd reported a revision that it has not reached …
const PROGRESS_WHEN_BEHIND: Duration = Duration::from_millis(25);
/// … and this often in any case: this detects dead streams, and lets a quiet prefix in a busy etcd keep up.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// A stream without a message for this long after a request is abandoned. Shorter than the time for which a replica
/// tolerates its own lag (`registry/membership/lag`), so that a frozen member causes a new stream here, and no xDS
/// client has to change its replica.
const SILENCE_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long a member may take to open a stream and to confirm that no change is missing.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// The oldest etcd that reports progress only after all earlier events have been sent (etcd-io/etcd 15220).
const OLDEST: [u32; 3] = [3, 5, 8];
/// The first and the longest pause between attempts to open a stream.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Watching {
    client: Arc<Client>,
    space: Space,
    prefix: String,
    assembly: Assembly,
    seen: watch::Receiver<Revision>,
    live: Option<OpenStream>,
    ended: bool,
}

/// An open stream.
struct OpenStream {
    member: usize,
    requests: mpsc::Sender<api::WatchRequest>,
    messages: Streaming<api::WatchResponse>,
    /// When its progress was last requested.
    progress_requested: Instant,
    /// Since when an answer is outstanding.
    waiting: Option<Instant>,
}

/// Why a stream did not open, or ended.
enum StreamError {
    Compacted { first: Revision },
    Fault(Fault),
}

impl From<Fault> for StreamError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Watching {
    /// Opens the watch; reports at once if the start is compacted.
    pub(super) async fn open(
        client: Arc<Client>,
        space: Space,
        prefix: &str,
        from: Revision,
        bound: Duration,
    ) -> Result<Self, StoreError> {
        let mut watching = Self {
            assembly: Assembly::new(space.clone(), from),
            seen: client.seen(),
            prefix: prefix.to_owned(),
            live: None,
            ended: false,
            client,
            space,
        };
        let end = Instant::now() + bound;
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let fault = match watching.connect().await {
                Ok(()) => return Ok(watching),
                Err(StreamError::Compacted { first }) => return Err(watching.compacted(first)),
                Err(StreamError::Fault(fault)) => fault,
            };
            let pause = backoff.fail();
            if matches!(fault, Fault::Refused(_)) || Instant::now() + pause >= end {
                return Err(watching.client.to_store_error(fault));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// The next revision; none after an error.
    pub(super) async fn step(mut self) -> Option<(Result<Changes, StoreError>, Self)> {
        loop {
            if let Some(changes) = self.assembly.pop() {
                return Some((Ok(changes), self));
            }
            if self.ended {
                return None;
            }
            let broken = match self.live.take() {
                Some(live) => self.listen(live).await.err(),
                None => self.reconnect().await.err(),
            };
            match broken {
                None => {}
                Some(StreamError::Compacted { first }) => {
                    self.ended = true;
                    let error = self.compacted(first);
                    return Some((Err(error), self));
                }
                Some(StreamError::Fault(fault)) => {
                    self.assembly.broken();
                    tracing::info!(
                        ?fault,
                        "a watch of the store broke; continuing on a new stream"
                    );
                }
            }
        }
    }

    fn compacted(&self, first: Revision) -> StoreError {
        StoreError::Compacted {
            requested: self.assembly.next(),
            first,
        }
    }

    /// Waits for one message, and requests progress when that is due.
    async fn listen(&mut self, mut live: OpenStream) -> Result<(), StreamError> {
        let behind = *self.seen.borrow_and_update() >= self.assembly.next();
        let ask = live.progress_requested
            + if behind {
                PROGRESS_WHEN_BEHIND
            } else {
                PROGRESS_INTERVAL
            };
        let silent = live.waiting.map(|since| since + SILENCE_TIMEOUT);
        let due = silent.map_or(ask, |silent| silent.min(ask));
        tokio::select! {
            biased;
            message = live.messages.message() => {
                let handled = self.on_message(&mut live, message);
                handled.map_err(|broken| self.report_fault(live.member, broken))?;
            }
            () = tokio::time::sleep_until(due) => {
                if silent.is_some_and(|silent| silent <= Instant::now()) {
                    let fault = Fault::NotDone(format!("a watch received nothing for {SILENCE_TIMEOUT:?}"));
                    return Err(self.report_fault(live.member, fault.into()));
                }
                ask_for_progress(&mut live);
            }
            // If the watch has fallen behind, progress is requested sooner.
            _ = self.seen.changed(), if !behind => {}
        }
        self.live = Some(live);
        Ok(())
    }

    fn on_message(
        &mut self,
        live: &mut OpenStream,
        message: Result<Option<api::WatchResponse>, tonic::Status>,
    ) -> Result<(), StreamError> {
        let message = self.client.received(message)?;
        live.waiting = None;
        if message.canceled {
            return Err(cancelled(&message));
        }
        if message.events.is_empty() && !message.created && !message.fragment {
            self.assembly.on_progress(message.store_revision());
        } else {
            self.assembly.on_events(message.events, message.fragment);
        }
        Ok(())
    }

    /// Handles a fault of a member, for example by moving to the next one. This is done only here, once per fault: the
    /// functions that it calls only return faults.
    fn report_fault(&self, member: usize, broken: StreamError) -> StreamError {
        match broken {
            StreamError::Fault(fault) => self.client.on_fault(member, fault).into(),
            compacted @ StreamError::Compacted { .. } => compacted,
        }
    }

    async fn reconnect(&mut self) -> Result<(), StreamError> {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            match self.connect().await {
                Ok(()) => return Ok(()),
                Err(StreamError::Fault(fault)) => {
                    tracing::warn!(?fault, "cannot watch the store; retrying");
                }
                Err(compacted) => return Err(compacted),
            }
            tokio::time::sleep(backoff.fail()).await;
        }
    }

    /// Opens a stream to the member in use and waits until it is certain that no change is missing.
    async fn connect(&mut self) -> Result<(), StreamError> {
        let member = self.client.current();
        let opened = timeout(OPEN_TIMEOUT, self.open_at(member)).await;
        let opened = opened.unwrap_or_else(|_| {
            let fault = Fault::NotDone(format!("a watch did not open within {OPEN_TIMEOUT:?}"));
            Err(fault.into())
        });
        match opened {
            Ok(live) => {
                self.live = Some(live);
                Ok(())
            }
            Err(broken) => {
                self.assembly.broken();
                Err(self.report_fault(member, broken))
            }
        }
    }

    async fn open_at(&mut self, member: usize) -> Result<OpenStream, StreamError> {
        self.check_version(member).await?;
        let (key, range_end) = self.space.range(&self.prefix);
        let next = self.assembly.next();
        // One revision earlier than needed: etcd accepts a start at exactly its compacted revision, where deletions may
        // already be missing. Extra events are dropped.
        let start = number(next).saturating_sub(1).max(1);
        let create = api::WatchCreateRequest {
            key,
            range_end,
            start_revision: start,
            prev_kv: true,
            fragment: true,
            progress_notify: true,
            ..api::WatchCreateRequest::default()
        };
        let (requests, outbound) = mpsc::channel(4);
        let first = api::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        // The queue is empty, so there is room.
        let _ = requests.try_send(first);
        let outbound = ReceiverStream::new(outbound);
        let messages = self.client.stream(member, api::WATCH, outbound).await?;
        let mut live = OpenStream {
            member,
            requests,
            messages,
            progress_requested: Instant::now(),
            waiting: None,
        };
        let created = self.client.received(live.messages.message().await)?;
        if created.canceled {
            return Err(cancelled(&created));
        }
        let now = created.store_revision();
        if now < self.assembly.given() {
            self.check_that_it_did_not_go_back(member).await?;
        }
        if now.0 >= start.unsigned_abs() {
            self.first_message(&mut live).await?;
        }
        Ok(live)
    }

    /// A member that is too old may report that a watch is further than it is, and changes would be lost.
    async fn check_version(&self, member: usize) -> Result<(), Fault> {
        let status = self
            .client
            .attempt(member, api::STATUS, api::StatusRequest {});
        let status: api::StatusResponse = match status.await {
            Ok(status) => status,
            // Where only administrators may ask for it, the version is not checked.
            Err(Fault::Refused(_)) => return Ok(()),
            Err(fault) => return Err(fault),
        };
        if is_too_old(&status.version) {
            let (version, oldest) = (status.version, written(OLDEST));
            return Err(Fault::Refused(format!(
                "this is etcd {version}, whose watches can lose changes; use {oldest} or later"
            )));
        }
        Ok(())
    }

    /// Waits for the first message after the watch was created: only then has etcd checked whether the start is
    /// compacted. Any message except that error means that it is not.
    async fn first_message(&mut self, live: &mut OpenStream) -> Result<(), StreamError> {
        loop {
            let next = timeout(PROGRESS_WHEN_BEHIND * 2, live.messages.message()).await;
            let Ok(message) = next else {
                // etcd answers when the watch has caught up.
                ask_for_progress(live);
                continue;
            };
            return self.on_message(live, message);
        }
    }

    /// Checks that only this member is behind. If the whole etcd is behind, it was restored from a backup, and what was
    /// read from it before is invalid.
    async fn check_that_it_did_not_go_back(&self, member: usize) -> Result<(), StreamError> {
        let request = self.space.revision_only();
        // The read is linearizable: this member asks the others.
        let answer = self.client.attempt(member, api::RANGE, request);
        let answer: api::RangeResponse = answer.await?;
        let now = answer.store_revision();
        let given = self.assembly.given();
        if now < given {
            tracing::error!(%now, %given, "etcd's revision went back: it was restored from an older state");
            return Err(StreamError::Compacted { first: now.next() });
        }
        Ok(())
    }
}

fn cancelled(message: &api::WatchResponse) -> StreamError {
    if message.compact_revision > 0 {
        let first = revision(message.compact_revision).next();
        return StreamError::Compacted { first };
    }
    let reason = message.cancel_reason.clone();
    // The reason is the text of the status.
    let fault = if reason.contains("permission denied") {
        Fault::Refused(reason)
    } else if reason.contains("auth token") || reason.contains("auth store is old") {
        Fault::Token(reason)
    } else {
        classify(&tonic::Status::unavailable(reason))
    };
    StreamError::Fault(fault)
}

/// A version that cannot be parsed counts as new.
fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(str::parse::<u32>);
    let mut number = || numbers.next().and_then(Result::ok);
    match (number(), number(), number()) {
        (Some(major), Some(minor), Some(patch)) => [major, minor, patch] < OLDEST,
        _ => false,
    }
}

fn written(version: [u32; 3]) -> String {
    version.map(|number| number.to_string()).join(".")
}

/// If the queue is full, progress has already been requested.
fn ask_for_progress(live: &mut OpenStream) {
    let request = api::WatchRequest {
        request_union: Some(RequestUnion::ProgressRequest(api::WatchProgressRequest {})),
    };
    let now = Instant::now();
    let _ = live.requests.try_send(request);
    live.progress_requested = now;
    live.waiting.get_or_insert(now);
}

#[cfg(test)]
mod tests;
