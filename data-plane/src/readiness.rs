//! Whether this proxy is ready for calls, and why not. Set by the app, shown by admin and health.

use tokio::sync::watch;

/// The readiness of this proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not ready yet, with the reason as a sentence.
    Starting(&'static str),
    /// Accepts calls.
    Ready,
    /// Finishes its calls and accepts no new ones.
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

/// A channel for the readiness, which begins as `Starting`.
#[must_use]
pub fn channel() -> (watch::Sender<Readiness>, watch::Receiver<Readiness>) {
    watch::channel(Readiness::Starting("it has just started"))
}
