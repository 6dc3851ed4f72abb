//! What a failed call to etcd means: an answer for the caller, a fault after which another member may answer, or an
//! unknown outcome. Only the texts and codes that etcd documents are used.

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
    /// etcd understood and will not do it, however often it is asked.
    Refused(String),
    /// It cannot be done now and was not done; asking again at once is of no use.
    Full(String),
    /// The token is of no use (any more); nothing was done.
    Token(String),
    /// It was not done: another member, or the same one later, may do it.
    NotDone(String),
    /// Nobody knows whether it was done.
    Unknown(String),
}

pub(super) fn judge(status: &Status) -> Fault {
    let text = status.message();
    let said = || text.strip_prefix("etcdserver: ").unwrap_or(text).to_owned();
    let has = |part: &str| text.contains(part);
    match status.code() {
        Code::OutOfRange if has("compacted") => Fault::Compacted,
        Code::OutOfRange if has("future revision") => Fault::Future,
        Code::NotFound if has("lease not found") => Fault::NoLease,
        Code::Unauthenticated => Fault::Token(said()),
        Code::InvalidArgument if has("revision of auth store is old") => Fault::Token(said()),
        Code::ResourceExhausted if has("database space exceeded") => Fault::Full(said()),
        Code::ResourceExhausted if has("too many requests") => Fault::NotDone(said()),
        Code::Unavailable if has("no leader") => Fault::NotDone(said()),
        Code::FailedPrecondition if has("not supported for learner") => Fault::NotDone(said()),
        _ if was_not_sent(status) => Fault::NotDone(status_with_causes(status)),
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented => Fault::Refused(said()),
        _ => Fault::Unknown(status_with_causes(status)),
    }
}

/// There was no connection on which it could have gone out.
fn was_not_sent(status: &Status) -> bool {
    chain(status).any(<dyn std::error::Error>::is::<ConnectError>)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_surely_not_done_is_called_so() {
        let check = |code, text: &str, expect: Fault| {
            let found = judge(&Status::new(code, format!("etcdserver: {text}")));
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
