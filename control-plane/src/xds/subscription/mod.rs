//! One type of one client: what it subscribed to, has, acknowledged and rejected; the same for both variants of the
//! protocol. Pure. One response is in flight at a time, and everything is bounded by the names of the mesh and of the
//! client. The fields are private to this module.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::{ClientView, RefusedStatus};
use crate::snapshot::{Changed, Kind, Resource};

mod cost;
mod resource_status;
mod refusal;
mod update;

use refusal::{MAX_SPLITS, Refused};
pub(super) use resource_status::{ResourceStatus, State};
pub use update::DeferredRemovals;

/// Most names of one type that a client may subscribe to.
pub const MAX_NAMES: usize = 50_000;
/// Longest name in bytes: that of a service has at most 127.
pub const MAX_NAME_BYTES: usize = 512;
/// Largest response of a type whose whole state must be in one response: gRPC's default limit of a received message is
/// 4 MiB.
const MAX_WHOLE_BYTES: usize = 3 << 20;
/// For other types a response ends before it grows larger than this, and the next one continues it. Small, because the
/// transport keeps a buffer as large as the largest message of each stream.
const MAX_PART_BYTES: usize = 256 << 10;

/// The limit of a delta response, and of a state-of-the-world response that need not be whole. A single larger resource
/// is sent alone.
#[must_use]
pub const fn max_response_bytes(kind: Kind) -> usize {
    if kind.whole_state() {
        MAX_WHOLE_BYTES
    } else {
        MAX_PART_BYTES
    }
}

/// Most answers owed for names that may no longer be wanted; a client that reads nothing could otherwise add more and
/// more.
const MAX_FORCED: usize = 2 * MAX_NAMES;
/// Versions are short; a longer one from a client is not ours.
const MAX_VERSION_BYTES: usize = 64;

/// A client exceeded a limit; its stream ends.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Violation {
    #[error("more than {MAX_NAMES} names of type {}", .0.url())]
    TooManyNames(Kind),
    #[error("a name of {bytes} bytes for type {}; at most {MAX_NAME_BYTES} are allowed", .kind.url())]
    NameTooLong { kind: Kind, bytes: usize },
}

/// The version of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseVersion {
    pub version: String,
    pub revision: u64,
}

/// A response that the client rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub version: String,
    /// The reason that the client gave, cut.
    pub reason: String,
}

#[derive(Clone, Debug)]
struct SentState {
    /// Empty: the client has one of the last two versions; which one is not known.
    version: Arc<str>,
    /// None if the client has it from an earlier stream.
    resource: Option<Arc<Resource>>,
}

/// What a response contains for one name.
#[derive(Debug)]
struct Sent {
    /// None: it does not exist.
    version: Option<Arc<str>>,
    /// What the client had before.
    before: Option<SentState>,
}

#[derive(Debug)]
struct SentResponse {
    nonce: String,
    mark: ResponseVersion,
    sent: BTreeMap<Arc<str>, Sent>,
    /// It carries the whole state: its acknowledgement covers everything.
    whole: bool,
    /// It completes the wildcard's first answer.
    completes: bool,
}

/// The names whose state may differ from what the client has.
#[derive(Debug)]
enum Pending {
    All,
    Names(BTreeSet<Arc<str>>),
}

/// One type on one stream.
#[derive(Debug)]
pub struct Subscription {
    kind: Kind,
    has_requested: bool,
    wildcard: bool,
    /// It has named something once: from then on an empty list means nothing (state of the world).
    named: bool,
    names: BTreeSet<Arc<str>>,
    /// An answer is sent even if it is empty.
    must_answer: bool,
    /// To be sent even if the client has it unchanged.
    forced: BTreeSet<Arc<str>>,
    sent_states: BTreeMap<Arc<str>, SentState>,
    pending: Pending,
    /// Requested by name, and the client was sent that it does not exist.
    absent: BTreeSet<Arc<str>>,
    /// The states that the client rejected, until they change.
    refused: BTreeMap<Arc<str>, Refused>,
    /// Parts of a rejected response, each sent again by itself.
    probes: VecDeque<BTreeSet<Arc<str>>>,
    /// How often a rejected response may still be split.
    splits: u32,
    /// The wildcard's first answer is not complete yet.
    filling: bool,
    flight: Option<SentResponse>,
    nonces: u64,
    /// All changes up to this revision were examined.
    examined: u64,
    sent: Option<ResponseVersion>,
    acknowledged: Option<ResponseVersion>,
    rejected: Option<Rejection>,
}

impl Subscription {
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            has_requested: false,
            wildcard: false,
            named: false,
            names: BTreeSet::new(),
            must_answer: false,
            forced: BTreeSet::new(),
            sent_states: BTreeMap::new(),
            pending: Pending::Names(BTreeSet::new()),
            absent: BTreeSet::new(),
            refused: BTreeMap::new(),
            probes: VecDeque::new(),
            splits: MAX_SPLITS,
            filling: false,
            flight: None,
            nonces: 0,
            examined: 0,
            sent: None,
            acknowledged: None,
            rejected: None,
        }
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The client has requested this type at least once.
    pub(super) fn has_requested(&self) -> bool {
        self.has_requested
    }

    pub(super) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// What it requests by name.
    pub(super) fn names(&self) -> &BTreeSet<Arc<str>> {
        &self.names
    }

    // ---- requests of the client ----

    pub(super) fn mark_requested(&mut self) {
        self.has_requested = true;
    }

    /// The next answer is sent even if it is empty.
    pub(super) fn require_answer(&mut self) {
        self.must_answer = true;
    }

    pub(super) fn must_answer(&self) -> bool {
        self.must_answer
    }

    /// The first request of a delta stream: everything that it covers is examined, and it is answered even if nothing
    /// is to be sent, so that the client learns that it is up to date.
    pub(super) fn start(&mut self, wildcard: bool) {
        self.mark_all_pending();
        self.wildcard = wildcard;
        self.filling = wildcard;
        self.must_answer = true;
    }

    /// Whether a state-of-the-world request with this list asks for everything: an empty list does, until the client
    /// has named something once.
    pub(super) fn is_everything(&mut self, names: &[String]) -> bool {
        let everything = names.is_empty() && !self.named;
        self.named |= !names.is_empty();
        everything
    }

    /// Sends one name again, although the client has it.
    pub(super) fn send_again(&mut self, name: Arc<str>) {
        self.mark_pending(&name);
        self.forced.insert(name);
    }

    /// Checks the names of a request against the limits.
    pub(super) fn check_names<'a>(
        &self,
        names: impl IntoIterator<Item = &'a String>,
        have: usize,
    ) -> Result<(), Violation> {
        let mut count = have;
        if self.forced.len() > MAX_FORCED {
            return Err(Violation::TooManyNames(self.kind));
        }
        for name in names {
            count += usize::from(have == 0 || !self.names.contains(name.as_str()));
            if count > MAX_NAMES {
                return Err(Violation::TooManyNames(self.kind));
            }
            if name.len() > MAX_NAME_BYTES {
                return Err(Violation::NameTooLong {
                    kind: self.kind,
                    bytes: name.len(),
                });
            }
        }
        Ok(())
    }

    /// Requests one name (again): it is answered even if the client has it, if `forced`.
    pub(super) fn subscribe(&mut self, name: Arc<str>, forced: bool) {
        self.absent.remove(&name);
        if forced {
            self.forced.insert(Arc::clone(&name));
        }
        self.mark_pending(&name);
        self.names.insert(name);
    }

    /// Ends the request for one name; returns the name if it was requested and the wildcard still covers it.
    pub(super) fn unsubscribe(&mut self, name: &str, view: &ClientView) -> Option<Arc<str>> {
        let name = self.names.take(name)?;
        self.absent.remove(&name);
        if self.wildcard && view.in_wildcard(self.kind, &name) {
            return Some(name);
        }
        self.sent_states.remove(&name);
        self.forced.remove(&name);
        self.refused.remove(&name);
        self.drop_probes(|each| *each != name);
        if let Pending::Names(pending) = &mut self.pending {
            pending.remove(&name);
        }
        None
    }

    pub(super) fn subscribe_all(&mut self) {
        self.filling |= !self.wildcard;
        self.wildcard = true;
        self.mark_all_pending();
    }

    /// The wildcard ends; what is requested by name stays.
    pub(super) fn unsubscribe_all(&mut self) {
        self.wildcard = false;
        self.filling = false;
        let names = std::mem::take(&mut self.names);
        self.sent_states.retain(|name, _| names.contains(name));
        self.forced.retain(|name| names.contains(name));
        self.refused.retain(|name, _| names.contains(name));
        self.drop_probes(|name| names.contains(name));
        if let Pending::Names(pending) = &mut self.pending {
            pending.retain(|name| names.contains(name));
        }
        self.names = names;
    }

    /// Notes a version that the client has from an earlier stream.
    pub(super) fn note_known(&mut self, name: Arc<str>, version: &str) {
        let ours = version.len() <= MAX_VERSION_BYTES;
        self.sent_states.insert(
            name,
            SentState {
                version: if ours { version.into() } else { "".into() },
                resource: None,
            },
        );
    }

    pub(super) fn client_has(&self, name: &str) -> bool {
        self.sent_states.contains_key(name)
    }

    pub(super) fn mark_pending(&mut self, name: &Arc<str>) {
        if let Pending::Names(pending) = &mut self.pending {
            pending.insert(Arc::clone(name));
        }
    }

    pub(super) fn mark_all_pending(&mut self) {
        self.pending = Pending::All;
    }

    /// Whether this is the nonce of the response in flight.
    pub(super) fn awaits(&self, nonce: &str) -> bool {
        self.flight
            .as_ref()
            .is_some_and(|flight| flight.nonce == nonce)
    }

    /// Whether this is the nonce of the last response sent.
    pub(super) fn is_last(&self, nonce: &str) -> bool {
        self.nonces > 0 && nonce == nonce_text(self.nonces)
    }

    // ---- changes of the mesh ----

    /// A step of the snapshots changed these names.
    pub(super) fn observe(&mut self, changed: &Changed, view: &ClientView) {
        if !self.has_requested {
            return;
        }
        for name in changed.of(self.kind) {
            let covered = self.wildcard && view.in_wildcard(self.kind, name);
            if covered || self.names.contains(name) || self.sent_states.contains_key(name) {
                self.mark_pending(name);
            }
        }
    }

    // ---- what is known about the client ----

    /// Whether the client acknowledged a state of this name at `revision` or later; none if it did not request it.
    #[must_use]
    pub fn acknowledged_at(&self, name: &str, revision: u64) -> Option<bool> {
        if !self.has_requested || !(self.wildcard || self.names.contains(name)) {
            return None;
        }
        let pending = match &self.pending {
            Pending::All => true,
            Pending::Names(names) => names.contains(name),
        };
        let in_flight = self.is_under_way(name);
        let refused = self.refused.contains_key(name) || self.is_probed(name);
        Some(self.examined >= revision && !pending && !in_flight && !refused)
    }

    /// More parts of the wildcard's first answer follow.
    pub(super) fn is_continued(&self) -> bool {
        self.filling && !self.all_sent()
    }

    /// A response is in flight, and the client still requests something of this type.
    pub(super) fn awaits_ack(&self) -> bool {
        self.in_flight() && (self.wildcard || !self.names.is_empty())
    }

    /// Whether the response in flight contains this name.
    pub(super) fn is_under_way(&self, name: &str) -> bool {
        self.flight
            .as_ref()
            .is_some_and(|flight| flight.sent.contains_key(name))
    }

    /// All changes up to this revision were examined.
    pub(super) fn examined(&self) -> u64 {
        self.examined
    }

    /// None if the client has never requested this type.
    #[must_use]
    pub fn status(&self) -> Option<Status<'_>> {
        self.has_requested.then(|| Status {
            wildcard: self.wildcard,
            subscribed: self.names.len(),
            resources: self.sent_states.len(),
            in_flight: self.in_flight(),
            sent: self.sent.as_ref(),
            acknowledged: self.acknowledged.as_ref(),
            rejected: self.rejected.as_ref(),
            refused: &self.refused,
        })
    }
}

/// A subscription as the status shows it.
#[derive(Clone, Copy, Debug)]
pub struct Status<'a> {
    pub wildcard: bool,
    pub subscribed: usize,
    pub resources: usize,
    pub in_flight: bool,
    pub sent: Option<&'a ResponseVersion>,
    pub acknowledged: Option<&'a ResponseVersion>,
    pub rejected: Option<&'a Rejection>,
    refused: &'a BTreeMap<Arc<str>, Refused>,
}

impl Status<'_> {
    /// The first `most` resources that the client rejected.
    #[must_use]
    pub fn refused(&self, most: usize) -> Vec<RefusedStatus> {
        let first = self.refused.iter().take(most);
        first
            .map(|(name, refused)| RefusedStatus {
                name: name.to_string(),
                version: refused.version.as_deref().unwrap_or_default().to_owned(),
                reason: refused.reason.to_string(),
            })
            .collect()
    }
}

fn nonce_text(count: u64) -> String {
    format!("{count:x}")
}
