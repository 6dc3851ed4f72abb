//! Removal queries of a node: who has not acknowledged the removal of an instance yet? Each is answered by a task of its
//! own, so that other messages do not wait for it.

use std::{sync::Arc, time::Duration};

use heddle_proto::control::v1::{ControlMessage, RemovalAnswer, RemovalQuery, control_message};
use tokio::time::{Instant, timeout_at};

use super::{End, Session};
use crate::session::validate;

/// The most concurrent removal queries per node.
pub(super) const MAX_QUERIES: usize = 256;
/// The default and the upper limit of a removal query's wait.
pub(super) const MAX_REMOVAL_WAIT: Duration = Duration::from_secs(5);

impl Session {
    pub(super) async fn on_query(&mut self, query: RemovalQuery) -> Result<(), End> {
        let instance = validate::removed_instance(&self.node, query.instance)?;
        while self.queries.try_join_next().is_some() {}
        if self.queries.len() >= MAX_QUERIES {
            // This does not end the session: the removal itself is done.
            let why = format!("({MAX_QUERIES} removal queries of this node are under way)");
            return self.answer(removal_answer(query.id, vec![why])).await;
        }
        let wait = query
            .max_wait
            .and_then(|wait| Duration::try_from(wait).ok());
        let wait = wait.unwrap_or(MAX_REMOVAL_WAIT).min(MAX_REMOVAL_WAIT);
        let (registry, removals) = (self.registry.clone(), Arc::clone(&self.removals));
        let (answers, revision) = (self.answers.clone(), self.lease.last());
        self.queries.spawn(async move {
            let until = Instant::now() + wait;
            let unacknowledged = match timeout_at(until, registry.reached(revision)).await {
                Ok(()) => {
                    let left = until.saturating_duration_since(Instant::now());
                    removals.acknowledged(instance, revision, left).await
                }
                Err(_) => vec!["(this replica has not seen the removal yet)".to_owned()],
            };
            let message = Some(removal_answer(query.id, unacknowledged));
            // If the node has disconnected, nobody waits for the answer.
            let _ = answers.send(Ok(ControlMessage { message })).await;
        });
        Ok(())
    }
}

fn removal_answer(id: u64, unacknowledged: Vec<String>) -> control_message::Message {
    control_message::Message::RemovalAnswer(RemovalAnswer {
        id,
        acknowledged: unacknowledged.is_empty(),
        unacknowledged,
    })
}
