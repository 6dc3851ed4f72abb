//! Whether this proxy is fit to take calls, and why not. The app says it, admin and health show it.

use tokio::sync::watch;

/// One state for all who ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet: the reason, as a sentence.
    Starting(&'static str),
    /// Takes calls.
    Ready,
    /// Finishes the calls it has and takes no new ones.
    Draining,
}

impl Readiness {
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready)
    }

    /// The state as a sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::Starting(why) => format!("not ready: {why}"),
            Self::Ready => "ready".to_owned(),
            Self::Draining => "not ready: draining, this proxy stops".to_owned(),
        }
    }
}

/// The side that says it.
#[must_use]
pub fn channel() -> (watch::Sender<Readiness>, watch::Receiver<Readiness>) {
    watch::channel(Readiness::Starting("it has just started"))
}
