//! The services whose endpoints this worker has requested from the control side since its last table: each is requested
//! once. Takes services; gives reports. Bounded by the services of the table.

use std::sync::Arc;

use rustc_hash::FxHashSet;
use tokio::sync::mpsc;

use crate::observe::Report;
use crate::route::Service;

#[derive(Debug)]
pub(super) struct EndpointRequests {
    reports: mpsc::Sender<Report>,
    /// Since the last table.
    requested: FxHashSet<Arc<str>>,
}

impl EndpointRequests {
    pub(super) fn new(reports: mpsc::Sender<Report>) -> Self {
        Self {
            reports,
            requested: FxHashSet::default(),
        }
    }

    /// Asks the control side to fetch the endpoints of a service. False if its queue is full.
    pub(super) fn request(&mut self, service: &Service) -> bool {
        if self.requested.contains(&service.name) {
            return true;
        }
        let service = Arc::clone(&service.name);
        let report = Report::ServiceWanted {
            service: Arc::clone(&service),
        };
        let sent = self.reports.try_send(report).is_ok();
        if sent {
            self.requested.insert(service);
        }
        sent
    }

    /// There is a new table: what it still lacks is requested again.
    pub(super) fn on_table(&mut self) {
        self.requested.clear();
    }
}
