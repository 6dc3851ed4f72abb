//! The state of every connected xDS client of all replicas, as CSDS reports it. The answers of the replicas are merged
//! by node id while they are read, and replicas that did not answer are named. Nothing is collected here: a slow reader
//! slows down only the replicas' answers to it.

mod answer;
mod peer;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use futures_util::future::join_all;
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

pub(crate) use answer::WHOLE;
pub(super) use answer::{Answer, ConfigStream, MAX_ANSWERS};
use peer::PeerConfigs;

use super::Peers;
use crate::xds::{
    Clients,
    csds::{InvalidMatcher, Merge, OwnPieces, Piece},
};

/// A replica that sends nothing for this long has not answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests that are answered at once; further ones wait as long as for a replica. Each keeps one piece of this replica
/// in memory, and of each other replica what `peer` states: at most about 3 MiB, mostly less than 1.
const MAX_CONCURRENT: usize = 16;

/// Why a request is not answered.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum QueryError {
    #[error(transparent)]
    InvalidMatcher(#[from] InvalidMatcher),
    #[error(
        "{MAX_CONCURRENT} CSDS requests are in progress, the limit: read their responses, or try again \
         later"
    )]
    Busy,
}

/// The time limit of the other replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeLimit {
    /// 2 s for the whole answer.
    All,
    /// 2 s for each message, so that an answer may be long and its reader slow: only the time spent waiting counts.
    Each,
}

/// Asks this replica and all others. Clones share the limit of requests.
#[derive(Clone)]
pub struct MeshConfigs {
    name: Arc<str>,
    clients: Clients,
    peers: Peers,
    questions: Arc<Semaphore>,
    counters: Arc<Counters>,
}

/// Counters since the process began.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Requests refused because there were too many.
    pub(crate) refused: AtomicU64,
    /// Times that another replica did not answer a request to the end.
    pub(crate) unanswered: AtomicU64,
    /// Readers cut off because they did not read.
    pub(crate) stuck: AtomicU64,
}

impl MeshConfigs {
    /// `name`: that of this replica.
    #[must_use]
    pub fn new(name: &str, clients: Clients, peers: Peers) -> Self {
        Self {
            name: name.into(),
            clients,
            peers,
            questions: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            counters: Arc::default(),
        }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) async fn query(
        &self,
        question: ClientStatusRequest,
        time_limit: TimeLimit,
    ) -> Result<MergedAnswer, QueryError> {
        let place = timeout(ANSWER_TIMEOUT, Arc::clone(&self.questions).acquire_owned()).await;
        let Some(place) = place.ok().and_then(Result::ok) else {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Err(QueryError::Busy);
        };
        let encoded: Bytes = question.encode_to_vec().into();
        let own = OwnPieces::new(&self.clients, question)?;
        let peers = self.peers.now();
        let others = peers
            .iter()
            .map(|peer| Source::Peer(PeerConfigs::new(peer, encoded.clone())));
        let mut sources: Vec<_> = others.collect();
        // By name, so that every replica gives the same order.
        let before = peers.partition_point(|peer| peer.replica.name < self.name);
        sources.insert(before, Source::OwnPieces(Box::new(own)));
        Ok(MergedAnswer {
            merge: Merge::new(sources.len()),
            sources,
            unanswered: BTreeSet::new(),
            until: (time_limit == TimeLimit::All).then(|| Instant::now() + ANSWER_TIMEOUT),
            counters: Arc::clone(&self.counters),
            _place: place,
        })
    }
}

/// An answer while it is read.
pub(crate) struct MergedAnswer {
    merge: Merge,
    sources: Vec<Source>,
    unanswered: BTreeSet<String>,
    until: Option<Instant>,
    counters: Arc<Counters>,
    _place: OwnedSemaphorePermit,
}

enum Source {
    OwnPieces(Box<OwnPieces>),
    Peer(PeerConfigs),
}

impl MergedAnswer {
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        let within = Instant::now() + ANSWER_TIMEOUT;
        let until = self.until.map_or(within, |until| until.min(within));
        let sources = self.sources.iter_mut().enumerate();
        let missing = sources.filter(|(number, _)| self.merge.is_missing(*number));
        let reads = missing.map(async |(number, source)| (number, source.next(until).await));
        for (number, received) in join_all(reads).await {
            let piece = received.unwrap_or_else(|Unanswered { name, cause }| {
                tracing::debug!(
                    replica = name,
                    cause,
                    "cannot get the client configurations of another replica"
                );
                self.counters.unanswered.fetch_add(1, Ordering::Relaxed);
                self.unanswered.insert(name);
                None
            });
            self.merge.put(number, piece);
        }
        self.merge.pop()
    }

    /// Names of the replicas whose clients are missing in the answer, all or some; complete at its end.
    pub(crate) fn unanswered(&self) -> &BTreeSet<String> {
        &self.unanswered
    }
}

impl Source {
    async fn next(&mut self, until: Instant) -> Result<Option<Piece>, Unanswered> {
        match self {
            Self::OwnPieces(own) => Ok(own.next().await),
            Self::Peer(peer) => peer.next(until).await,
        }
    }
}

/// A replica that did not answer, or not to the end.
struct Unanswered {
    name: String,
    cause: String,
}
