//! What a subscription costs in memory: the names that its client asked for and what is kept of each. In comes a subscription,
//! out go bytes, estimated from above. Counting takes as long as there are names, so it is done when much was added.

use super::{Pending, Subscription};

/// An entry of a set or map of names, with the name's own header.
const NAME: usize = 64;
/// What is kept of one resource that the client holds, or of one that is under way.
const HELD: usize = 128;

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
        let held = self
            .held
            .keys()
            .fold(0, |bytes, name| bytes + HELD + name.len());
        let flight = self.flight.as_ref().map_or(0, |flight| flight.sent.len());
        let refused = self.refused.len() + self.probes.iter().flatten().count();
        names + absent + forced + pending + held + (flight + refused) * HELD
    }
}
