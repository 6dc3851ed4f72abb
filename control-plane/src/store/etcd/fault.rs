//! What a failed call to etcd means: an answer for the caller, a fault after which another member may answer, or an
//! unknown outcome. Only texts and codes that etcd documents are used.

use heddle_proto::error_text::{chain, status_with_causes};
use tonic::{Code, ConnectError, Status};

/// How a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The revision is compacted.
    Compacted,
    /// The revision is not reached yet.
    Future,
    /// There is no such lease.
    NoLease,
    /// etcd understood the request and will always refuse it.
    Refused(String),
    /// It was not applied and cannot be applied now; an immediate retry is useless.
    Full(String),
    /// The token is invalid or has expired; nothing was applied.
    Token(String),
    /// It was not applied: another member, or the same one later, may apply it.
    NotDone(String),
    /// It is unknown whether it was applied.
    Unknown(String),
}

pub(super) fn classify(status: &Status) -> Fault {
    let text = status.message();
    let detail = || text.strip_prefix("etcdserver: ").unwrap_or(text).to_owned();
    let has = |part: &str| text.contains(part);
    match status.code() {
        Code::OutOfRange if has("compacted") => Fault::Compacted,
        Code::OutOfRange if has("future revision") => Fault::Future,
        Code::NotFound if has("lease not found") => Fault::NoLease,
        Code::Unauthenticated => Fault::Token(detail()),
        Code::InvalidArgument if has("revision of auth store is old") => Fault::Token(detail()),
        Code::ResourceExhausted if has("database space exceeded") => Fault::Full(detail()),
        Code::ResourceExhausted if has("too many requests") => Fault::NotDone(detail()),
        Code::Unavailable if has("no leader") => Fault::NotDone(detail()),
        Code::FailedPrecondition if has("not supported for learner") => Fault::NotDone(detail()),
        _ if was_not_sent(status) => Fault::NotDone(status_with_causes(status)),
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented => Fault::Refused(detail()),
        _ => Fault::Unknown(status_with_causes(status)),
    }
}

/// There was no connection on which it could have been sent.
fn was_not_sent(status: &Status) -> bool {
    chain(status).any(<dyn std::error::Error>::is::<ConnectError>)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_surely_not_done_is_called_so() {
        let check = |code, text: &str, expect: Fault| {
            let found = classify(&Status::new(code, format!("etcdserver: {text}")));
            let same = std::mem::discriminant(&found) == std::mem::discriminant(&expect);
            assert!(same, "{text}: {found:?}, not {expect:?}");
        };
        let word = String::new;
        use Code::*;
        check(
            OutOfRange,
            "mvcc: required revision has been compacted",
            Fault::Compacted,
        );
        check(
            OutOfRange,
            "mvcc: required revision is a future revision",
            Fault::Future,
        );
        check(NotFound, "requested lease not found", Fault::NoLease);
        check(Unauthenticated, "invalid auth token", Fault::Token(word()));
        check(
            InvalidArgument,
            "revision of auth store is old",
            Fault::Token(word()),
        );
        check(
            InvalidArgument,
            "user name is empty",
            Fault::Refused(word()),
        );
        check(
            PermissionDenied,
            "permission denied",
            Fault::Refused(word()),
        );
        check(
            ResourceExhausted,
            "mvcc: database space exceeded",
            Fault::Full(word()),
        );
        check(
            ResourceExhausted,
            "too many requests",
            Fault::NotDone(word()),
        );
        check(Unavailable, "no leader", Fault::NotDone(word()));
        // These may have been proposed before they failed.
        check(Unavailable, "leader changed", Fault::Unknown(word()));
        check(Unavailable, "request timed out", Fault::Unknown(word()));
        check(Unavailable, "server stopped", Fault::Unknown(word()));
        check(Unknown, "raft proposal dropped", Fault::Unknown(word()));
        check(Cancelled, "connection lost", Fault::Unknown(word()));
    }
}
