//! What other modules have of the xDS client: its identity, its state, and a way to report uses of services. The
//! stream is not known here.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::MAX_USES;
use crate::xds::{StreamStatus, View, last_good::Snapshot};

/// Who asks.
#[derive(Clone, Debug)]
pub struct Asker {
    pub node: String,
    /// Random, new with each process start.
    pub process_id: String,
    pub region: String,
    pub zone: String,
}

/// Tells of uses: of calls to services that are not held, and of questions about them. Clones are one.
#[derive(Clone)]
pub struct Uses {
    tell: mpsc::Sender<Arc<str>>,
    /// Who goes on using a service says so this often.
    pub again: Duration,
}

impl Uses {
    /// The receiver is the stream's.
    #[must_use]
    pub fn new(again: Duration) -> (Self, mpsc::Receiver<Arc<str>>) {
        let (tell, told) = mpsc::channel(MAX_USES);
        (Self { tell, again }, told)
    }

    /// A service, by full name, is used now. Never waits.
    pub fn tell(&self, service: Arc<str>) {
        let _ = self.tell.try_send(service);
    }
}

/// What other modules see of the stream.
#[derive(Clone)]
pub struct XdsHandle {
    pub view: watch::Receiver<Arc<View>>,
    pub status: watch::Receiver<StreamStatus>,
    pub snapshot: watch::Receiver<Snapshot>,
    /// The connection while the stream is open: load reports go by it too.
    pub channel: watch::Receiver<Option<Channel>>,
    pub uses: Uses,
    pub(super) draining: CancellationToken,
}

impl XdsHandle {
    /// This process has been told to stop: says so on the stream, which goes on.
    pub fn drain(&self) {
        self.draining.cancel();
    }
}
