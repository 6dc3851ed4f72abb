//! The memory of a subscription in bytes, an upper estimate. Counting takes time in proportion to the names, so it is
//! done only when much was added.

use super::{Pending, Subscription};

/// The bytes of an entry in a set or map of names, with the name's own header.
const NAME: usize = 64;
/// The bytes of one resource that the client has or that is in flight.
const RESOURCE: usize = 128;

impl Subscription {
    pub(in crate::xds) fn cost(&self) -> usize {
        let named = |bytes: usize, name: &std::sync::Arc<str>| bytes + NAME + name.len();
        let names = self.names.iter().fold(0, named);
        let absent = self.absent.len() * NAME;
        let forced = self.forced.iter().fold(0, named);
        let pending = match &self.pending {
            Pending::All => 0,
            Pending::Names(names) => names.len() * NAME,
        };
        let resources = self
            .sent_states
            .keys()
            .fold(0, |bytes, name| bytes + RESOURCE + name.len());
        let flight = self.flight.as_ref().map_or(0, |flight| flight.sent.len());
        let refused = self.refused.len() + self.probes.iter().flatten().count();
        names + absent + forced + pending + resources + (flight + refused) * RESOURCE
    }
}
