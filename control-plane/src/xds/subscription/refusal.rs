//! Finds the resource for which a client rejected a response, by sending its parts again, so that the client accepts
//! the others. A rejected resource is not sent again until it changes; what the client accepted last is remembered.
//! Pure, and the work per response is bounded.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Rejection, Sent, SentResponse, SentState};
use crate::{
    snapshot::TARGETS,
    xds::{Subscription, node::cut},
};

/// The bytes that are kept of a client's reason for a rejection.
const MAX_REASON_BYTES: usize = 1024;
/// How often a rejected response may be split until all its parts are answered; each split costs two responses. To find
/// one bad resource of a thousand takes ten. What is rejected after that is refused as a whole.
pub(super) const MAX_SPLITS: u32 = 64;

/// A state of a resource that the client rejected.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// None: it rejected the removal of the resource.
    pub(super) version: Option<Arc<str>>,
    /// The reason that the client gave, cut.
    pub(super) reason: Arc<str>,
    /// The state that the client accepted last and still has.
    pub(super) before: Option<SentState>,
}

impl Subscription {
    /// The client answered the response in flight; with a `reason` if it rejected it.
    pub(in crate::xds) fn on_answer(&mut self, reason: Option<&str>) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        match reason {
            None => {
                if flight.whole {
                    self.refused.clear();
                }
                self.acknowledged = Some(flight.mark);
            }
            Some(reason) => self.refuse(flight, cut(reason, MAX_REASON_BYTES)),
        }
        if self.probes.is_empty() {
            self.splits = MAX_SPLITS;
            if reason.is_none() && self.refused.is_empty() {
                self.rejected = None;
            }
        }
    }

    fn refuse(&mut self, flight: SentResponse, reason: &str) {
        self.rejected = Some(Rejection {
            version: flight.mark.version,
            reason: reason.to_owned(),
        });
        self.filling |= flight.completes;
        if flight.whole {
            return self.refuse_whole(flight.sent, reason);
        }
        let sent: Vec<_> = flight
            .sent
            .into_iter()
            .filter(|(name, sent)| self.still_wants(name, sent))
            .collect();
        if sent.len() <= 1 || self.splits == 0 {
            for (name, sent) in sent {
                self.set_back(&name, sent.before.clone());
                self.refused.insert(name, refused(sent, reason));
            }
            return;
        }
        self.splits -= 1;
        let names: Vec<Arc<str>> = sent.iter().map(|(name, _)| Arc::clone(name)).collect();
        for (name, sent) in sent {
            // The client may have accepted this one and rejected the response because of another.
            let before = sent.before.map(|held| SentState {
                version: "".into(),
                resource: held.resource,
            });
            self.set_back(&name, before);
        }
        self.probes.extend(parts(&names, reason));
    }

    /// A response that has to carry everything cannot be split: the resources that the client names are refused, or
    /// else all new ones. Newer states are still sent.
    fn refuse_whole(&mut self, sent: BTreeMap<Arc<str>, Sent>, reason: &str) {
        let words = words(reason);
        let named = |name: &Arc<str>| words.contains(&**name);
        let known = self.refused.keys().any(named) || sent.keys().any(named);
        for (name, sent) in sent {
            if !known || named(&name) {
                self.refused.insert(name, refused(sent, reason));
            }
        }
    }

    fn still_wants(&self, name: &str, sent: &Sent) -> bool {
        match sent.version {
            Some(_) => self.client_has(name),
            None => self.wildcard || self.names.contains(name),
        }
    }

    fn set_back(&mut self, name: &Arc<str>, before: Option<SentState>) {
        match before {
            Some(held) => self.sent_states.insert(Arc::clone(name), held),
            None => self.sent_states.remove(name),
        };
    }

    /// Whether the client rejected exactly this state.
    pub(in crate::xds) fn refuses(&self, name: &str, version: Option<&str>) -> bool {
        self.refused
            .get(name)
            .is_some_and(|refused| refused.version.as_deref() == version)
    }

    pub(in crate::xds) fn is_probed(&self, name: &str) -> bool {
        self.probes.iter().any(|probe| probe.contains(name))
    }

    pub(in crate::xds) fn drop_probes(&mut self, keep: impl Fn(&Arc<str>) -> bool) {
        for probe in &mut self.probes {
            probe.retain(&keep);
        }
        self.probes.retain(|probe| !probe.is_empty());
    }

    /// Adds the targets that the client still uses, from what it last accepted of each rejected resource; false if
    /// unknown.
    pub(in crate::xds) fn still_uses(&self, targets: &mut BTreeSet<Arc<str>>) -> bool {
        for refused in self.refused.values() {
            match &refused.before {
                None => {}
                Some(SentState { resource: None, .. }) => return false,
                Some(SentState {
                    resource: Some(old),
                    ..
                }) => {
                    let refs = old.refs.iter().filter(|(kind, _)| TARGETS.contains(kind));
                    targets.extend(refs.map(|(_, name)| Arc::clone(name)));
                }
            }
        }
        true
    }
}

fn refused(sent: Sent, reason: &str) -> Refused {
    Refused {
        version: sent.version,
        reason: reason.into(),
        before: sent.before,
    }
}

/// The names that the client does not mention and those it mentions, or else two halves.
fn parts(names: &[Arc<str>], reason: &str) -> [BTreeSet<Arc<str>>; 2] {
    let words = words(reason);
    let (named, others): (BTreeSet<_>, BTreeSet<_>) = names
        .iter()
        .cloned()
        .partition(|name| words.contains(&**name));
    if !named.is_empty() && !others.is_empty() {
        return [others, named];
    }
    let (first, second) = names.split_at(names.len() / 2);
    [
        first.iter().cloned().collect(),
        second.iter().cloned().collect(),
    ]
}

/// The words of a sentence that may be names.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|letter: char| letter.is_whitespace() || ",;:()[]{}<>\"'`=".contains(letter))
        .map(|word| word.trim_matches('.'))
        .filter(|word| !word.is_empty())
        .collect()
}
