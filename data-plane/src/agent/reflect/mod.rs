//! Finds by gRPC server reflection what instances serve. An instance is queried when it registers, when it is back after
//! a failure, and when its services file was rewritten; with backoff while its answer is incomplete. Input: a
//! registration. Output, to the agent: names and raw descriptors, or why there are none. `query` sends the queries;
//! `served` derives what the instance serves.

mod query;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Agent,
    instance_table::Joined,
    schema::{MAX_SCHEMA_BYTES, SchemaError},
};
use heddle_pacing::Backoff;

pub use query::{ReflectionReport, query};

/// Timeout of one request with its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of all requests of one round.
const ROUND_TIMEOUT: Duration = Duration::from_secs(60);
/// The most files of one instance.
const MAX_FILES: usize = 2000;
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// The least time between the starts of two rounds, however often an instance fails and returns.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// The most instances that are queried at once; each may take [`MAX_SCHEMA_BYTES`] for its descriptors, and as much for a
/// copy in transit.
pub(super) const MAX_CONCURRENT: usize = 16;
/// The same for those whose last answer was incomplete, so that hanging instances do not delay the others.
pub(super) const MAX_CONCURRENT_RETRIES: usize = 8;

/// Why an instance's services or their descriptors are not (all) known.
#[derive(Debug, thiserror::Error)]
pub enum ReflectError {
    #[error("it has no gRPC server reflection")]
    NoReflection,
    #[error("its server reflection answers {}", code_name(.0.code()))]
    Status(Box<tonic::Status>),
    #[error("its server reflection gives no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Silent,
    #[error("its server reflection did not finish within {} s", ROUND_TIMEOUT.as_secs())]
    Slow,
    #[error("its server reflection lists no service of its own")]
    ListsNothing,
    #[error("its server reflection has no descriptors of {0}")]
    Lacks(String),
    #[error(
        "its server reflection answers {} to the request for the descriptors of {symbol}{}",
        code_name(status.code()),
        quoted(status.message())
    )]
    Denied {
        symbol: String,
        status: Box<tonic::Status>,
    },
    #[error("its server reflection violates the reflection protocol ({0})")]
    Protocol(String),
    #[error("its descriptors exceed the limit of {} MiB or {MAX_FILES} files", MAX_SCHEMA_BYTES >> 20)]
    TooLarge,
    #[error("the descriptors of its server reflection are rejected: the set {0}")]
    Schema(#[from] SchemaError),
    #[error("its server reflection could not be reached so far ({0})")]
    Unreachable(String),
}

impl ReflectError {
    /// The reason for people, as "cause: remedy". With `protos_known` only descriptors are missing.
    #[must_use]
    pub fn reason(&self, protos_known: bool) -> String {
        // Readers take the text before the first ": " as the cause.
        let cause = self.to_string().replace(": ", ", ");
        match self {
            Self::Unreachable(_) => cause,
            _ if protos_known => format!(
                "{cause}: give its descriptors (`descriptors:`, --descriptors) to have it described"
            ),
            _ => format!(
                "{cause}: name its proto services (`protos:`, --proto) or give its descriptors (`descriptors:`, \
                 --descriptors)"
            ),
        }
    }

    /// The instance has answered or its time ran out: another query now would return the same.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        !matches!(self, Self::Unreachable(_))
    }

    /// The round was cut short: there may be more than was reported.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        matches!(
            self,
            Self::Silent | Self::Slow | Self::Unreachable(_) | Self::TooLarge | Self::Schema(_)
        )
    }
}

/// Queries the instance, and again when `again` is notified. The caller stops it when the registration ends.
pub async fn run(agent: Agent, joined: Joined, again: Arc<Notify>) {
    let address = joined.address.to_string();
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut failed = false;
    loop {
        // What answers at a refused address is another program, such as a proxy that lists the whole mesh.
        agent.not_refused(&joined.registration).await;
        let begun = Instant::now();
        let answer = {
            let _turn = agent.inner.reflection_slots.enter(failed).await;
            query(&address, &|names| agent.listed(&joined, names)).await
        };
        failed = match answer {
            Ok(report) => {
                let partial = report
                    .lacking
                    .as_ref()
                    .is_some_and(ReflectError::is_partial);
                agent.report(&joined, report);
                partial
            }
            Err(why) => {
                agent.report_failed(&joined, why);
                true
            }
        };
        if failed {
            if timeout(backoff.fail(), again.notified()).await.is_err() {
                continue;
            }
        } else {
            again.notified().await;
        }
        backoff.reset();
        sleep_until(begun + ROUND_INTERVAL).await;
    }
}

/// The program's own text, if it gave one, bounded and in one line.
fn quoted(message: &str) -> String {
    match query::printable(message) {
        text if text.is_empty() => text,
        text => format!(" (\"{text}\")"),
    }
}

/// The name that gRPC uses, such as `PERMISSION_DENIED`.
fn code_name(code: tonic::Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
