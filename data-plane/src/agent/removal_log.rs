//! The log of removed instances, each with the cause, until the control plane knows of them. Input: removals with the number of their
//! change. Output: the removals that are still to be reported. The instance table does the removing.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::{instance_table::MAX_INSTANCES, key::InstanceKey, left::LeftInstance};

/// The most removals that are remembered while the control plane is away; the oldest are dropped first.
const MAX_GONE: usize = MAX_INSTANCES;
/// The longest cause that is taken from a caller, in characters.
const MAX_CAUSE: usize = 200;

/// Why an instance was removed that did not deregister.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its process died, or the connection to it broke.
    StreamBroke,
    /// There was no heartbeat for this long.
    NoBeat(Duration),
    /// It was known when the agent's last process stopped, and did not register again within this time.
    NotBack(Duration),
    /// It was known when the agent's last process stopped, and no program listened at its address at the next start.
    EndedBefore,
    /// Its file of `--services-dir` is no longer there.
    FileGone(PathBuf),
    /// Its address is that of one of the proxy's own listeners.
    OwnListener(&'static str),
    /// The cause that the caller gave.
    Given(String),
}

impl Cause {
    /// The cause that a caller gives; `None` if it gives none.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let printable = text.chars().filter(|c| !c.is_control());
        let text: String = printable.take(MAX_CAUSE).collect();
        (!text.is_empty()).then_some(Self::Given(text))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StreamBroke => f.write_str("its keep-alive stream broke"),
            Self::NoBeat(ttl) => write!(f, "no heartbeat for {ttl:?}"),
            Self::NotBack(ttl) => {
                write!(
                    f,
                    "it has not come back for {ttl:?} since its proxy started"
                )
            }
            Self::EndedBefore => {
                f.write_str("nothing listened at its address any more when its proxy started")
            }
            Self::FileGone(file) => write!(f, "its services file {} is gone", file.display()),
            Self::OwnListener(name) => {
                write!(f, "its address is a listener of this proxy ({name})")
            }
            Self::Given(text) => f.write_str(text),
        }
    }
}

/// The removed instances and why; `None`: the instance deregistered.
pub type Causes = BTreeMap<InstanceKey, Option<Cause>>;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct RemovalLog {
    by_change: BTreeMap<u64, LeftInstance>,
    changes: HashMap<InstanceKey, u64>,
}

impl RemovalLog {
    /// Records a removal under the version of its change; each change removes one instance.
    pub fn record(
        &mut self,
        key: InstanceKey,
        registration: Arc<str>,
        cause: Option<Cause>,
        change: u64,
    ) {
        self.forget(&key);
        self.changes.insert(key.clone(), change);
        let left = LeftInstance {
            key,
            registration,
            cause,
        };
        self.by_change.insert(change, left);
        while self.by_change.len() > MAX_GONE {
            if let Some((_, left)) = self.by_change.pop_first() {
                self.changes.remove(&left.key);
            }
        }
    }

    pub fn forget(&mut self, key: &InstanceKey) {
        if let Some(change) = self.changes.remove(key) {
            self.by_change.remove(&change);
        }
    }

    /// The control plane knows of everything up to this version: forgets it.
    pub fn acknowledge(&mut self, change: u64) {
        while let Some(first) = self.by_change.first_entry()
            && *first.key() <= change
        {
            self.changes.remove(&first.remove().key);
        }
    }

    #[must_use]
    pub fn causes(&self) -> Causes {
        let each = self.by_change.values();
        each.map(|left| (left.key.clone(), left.cause.clone()))
            .collect()
    }

    /// The removals that are remembered, with their registrations.
    pub fn left(&self) -> impl Iterator<Item = LeftInstance> {
        self.by_change.values().cloned()
    }
}
