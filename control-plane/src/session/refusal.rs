//! Converts the causes of refusals to gRPC statuses that name the field or the cause, and the remedy. Nothing is
//! decided here.

use std::collections::HashMap;

use heddle_proto::ERROR_DOMAIN;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::registry::LeaseError;

/// The most faults in one refusal: a status is sent in a header, whose size is limited.
const MAX_VIOLATIONS: usize = 16;

/// The longest field path or text in a refusal, in characters.
const MAX_TEXT: usize = 200;

/// All faults of one message.
#[derive(Debug, Default)]
pub(super) struct Faults {
    violations: Vec<FieldViolation>,
    more: usize,
}

impl Faults {
    pub(super) fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.violations.len() == MAX_VIOLATIONS {
            self.more += 1;
            return;
        }
        let (field, description) = (short(field.into()), short(description.into()));
        self.violations
            .push(FieldViolation::new(field, description));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.violations.is_empty()
    }

    /// Adds the faults of another part of the message.
    pub(super) fn append(&mut self, other: Self) {
        self.more += other.more;
        for violation in other.violations {
            self.add(violation.field, violation.description);
        }
    }

    /// The field and the description of the first fault; the description includes the number of others.
    pub(super) fn summary(self) -> (String, String) {
        let others = (self.violations.len() + self.more).saturating_sub(1);
        let first = self.violations.into_iter().next();
        let (field, mut description) =
            first.map_or_else(Default::default, |it| (it.field, it.description));
        if others > 0 {
            description.push_str(&format!(" (and {others} more)"));
        }
        (field, description)
    }

    /// INVALID_ARGUMENT with all faults, if there are any.
    pub(super) fn check(self) -> Result<(), Status> {
        let Some(first) = self.violations.first() else {
            return Ok(());
        };
        let mut message = format!("{}: {}", first.field, first.description);
        let others = self.violations.len() - 1 + self.more;
        if others > 0 {
            message.push_str(&format!(" (and {others} more)"));
        }
        let details = ErrorDetails::with_bad_request(self.violations);
        Err(Status::with_error_details(
            Code::InvalidArgument,
            message,
            details,
        ))
    }
}

/// Shortens a text or field path that may contain input from a peer.
pub(super) fn short(text: String) -> String {
    if text.chars().count() <= MAX_TEXT {
        return text;
    }
    text.chars().take(MAX_TEXT).chain("…".chars()).collect()
}

/// INVALID_ARGUMENT for one field.
pub(super) fn invalid(field: &str, description: impl Into<String>) -> Status {
    let mut faults = Faults::default();
    faults.add(field, description);
    faults
        .check()
        .err()
        .unwrap_or_else(|| Status::invalid_argument(field))
}

/// A status with `google.rpc.ErrorInfo`.
pub(super) fn with_reason(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    metadata: impl IntoIterator<Item = (&'static str, String)>,
) -> Status {
    let metadata: HashMap<String, String> = metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata);
    Status::with_error_details(code, message, details)
}

/// The status that ends a session which lost its lease.
pub(super) fn lost_lease(error: &LeaseError) -> Status {
    let message = error.to_string();
    match error {
        LeaseError::Superseded {
            node,
            process_id,
            epoch,
        } => with_reason(
            Code::Aborted,
            "SUPERSEDED",
            message,
            [
                ("node", node.clone()),
                ("process_id", process_id.clone()),
                ("epoch", epoch.to_string()),
            ],
        ),
        LeaseError::EpochTooHigh { .. } => invalid("hello.epoch", message),
        LeaseError::Lapsed { node } => with_reason(
            Code::Unavailable,
            "LEASE_LAPSED",
            message,
            [("node", node.clone())],
        ),
        LeaseError::Replaced { node } => with_reason(
            Code::Aborted,
            "SESSION_REPLACED",
            message,
            [("node", node.clone())],
        ),
        LeaseError::Cut { node } => with_reason(
            Code::Unavailable,
            "STORE_AWAY",
            message,
            [("node", node.clone())],
        ),
        LeaseError::Contended { .. } | LeaseError::Store(_) => Status::unavailable(message),
    }
}
