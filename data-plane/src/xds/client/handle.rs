//! What other modules use of the xDS client: its identity, its state, and a way to report uses of services. The stream
//! is not known here.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::MAX_USES;
use crate::xds::{StreamStatus, View, last_good::Snapshot};

/// The identity of this proxy as a client.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    pub node: String,
    /// Random, new with each process start.
    pub process_id: String,
    pub region: String,
    pub zone: String,
}

/// Reports uses: calls to services whose endpoints this proxy does not have, and queries about them. Clones share one
/// channel.
#[derive(Clone)]
pub struct Uses {
    report: mpsc::Sender<Arc<str>>,
    /// How often a continuing use is reported again.
    pub again: Duration,
}

impl Uses {
    /// The stream's task takes the receiver.
    #[must_use]
    pub fn new(again: Duration) -> (Self, mpsc::Receiver<Arc<str>>) {
        let (report, receiver) = mpsc::channel(MAX_USES);
        (Self { report, again }, receiver)
    }

    /// Reports that a service, by full name, is used now. Never waits.
    pub fn report(&self, service: Arc<str>) {
        let _ = self.report.try_send(service);
    }
}

/// What other modules see of the stream.
#[derive(Clone)]
pub struct XdsHandle {
    pub view: watch::Receiver<Arc<View>>,
    pub status: watch::Receiver<StreamStatus>,
    pub snapshot: watch::Receiver<Snapshot>,
    /// The connection while the stream is open; load reports use it too.
    pub channel: watch::Receiver<Option<Channel>>,
    pub uses: Uses,
    pub(super) draining: CancellationToken,
}

impl XdsHandle {
    /// This process is stopping: reports it on the stream, which stays open.
    pub fn drain(&self) {
        self.draining.cancel();
    }
}
