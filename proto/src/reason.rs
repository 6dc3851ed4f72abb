//! The reasons of failures made by Heddle: code, gRPC status, meaning. The only list; metrics, logs, headers and docs use it.

use std::fmt;

/// The domain of every `google.rpc.ErrorInfo` that Heddle sends.
pub const ERROR_DOMAIN: &str = "heddle";

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal, $status:literal;)*) => {
        /// Why a call failed at a proxy (never for a status that the service itself answered).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code in `heddle-reason`, logs and metrics.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The gRPC status that a call with this reason ends with.
            #[must_use]
            pub const fn grpc_status(self) -> u8 {
                match self { $(Self::$variant => $status,)* }
            }

            /// What it means, in one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*).trim_ascii(),)* }
            }

            /// The reason with this code.
            #[must_use]
            pub fn from_code(code: &str) -> Option<Self> {
                match code { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    /// No service of the mesh has this authority or implements this proto service.
    NoRoute = "NO_ROUTE", 12;
    /// Several mesh services implement this proto service: name one by authority.
    AmbiguousRoute = "AMBIGUOUS_ROUTE", 9;
    /// The service is known and has no instance.
    NoEndpoints = "NO_ENDPOINTS", 14;
    /// The service has instances and none of them is healthy.
    NoHealthyEndpoints = "NO_HEALTHY_ENDPOINTS", 14;
    /// No connection to the instance or its node could be made.
    ConnectFailed = "CONNECT_FAILED", 14;
    /// The connection broke while the call was on it.
    ConnectionLost = "CONNECTION_LOST", 14;
    /// The instance reset the call; the status is the one that gRPC has for its HTTP/2 code.
    UpstreamReset = "UPSTREAM_RESET", 13;
    /// The call could have been tried again, but the service's retry budget is used up.
    RetryBudgetExhausted = "RETRY_BUDGET_EXHAUSTED", 14;
    /// The service's circuit breaker is open.
    CircuitOpen = "CIRCUIT_OPEN", 14;
    /// The proxy or the instance is draining and takes no new call, or its drain timeout cut this one.
    Draining = "DRAINING", 14;
    /// The proxy is at a bound of its own and refuses the call rather than grow.
    Overloaded = "OVERLOADED", 14;
    /// The proxy has no state yet.
    NotReady = "NOT_READY", 14;
    /// The call's deadline passed.
    DeadlineExceeded = "DEADLINE_EXCEEDED", 4;
    /// A policy denies this caller.
    Denied = "DENIED", 7;
    /// The policy wants a proven identity, and the caller has none.
    Unauthenticated = "UNAUTHENTICATED", 16;
    /// Over the configured rate.
    RateLimited = "RATE_LIMITED", 8;
    /// Over a size limit.
    RequestTooLarge = "REQUEST_TOO_LARGE", 8;
    /// The request does not fit the method's schema.
    InvalidRequest = "INVALID_REQUEST", 3;
    /// One side broke HTTP/2 or gRPC.
    ProtocolError = "PROTOCOL_ERROR", 13;
    /// The instance's response cannot be passed on.
    ResponseInvalid = "RESPONSE_INVALID", 13;
    /// A fault-injection policy made this failure; the status is the policy's.
    FaultInjected = "FAULT_INJECTED", 14;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn every_code_is_found_again() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
            assert!(!reason.meaning().is_empty());
        }
        assert_eq!(Reason::from_code("no_route"), None);
    }

    #[test]
    fn the_documentation_has_a_row_for_every_reason_and_no_other() {
        let docs = include_str!("../../docs/errors.md");
        let mut lines = docs.lines();
        let head = lines.by_ref().any(|line| line.starts_with("| Code "));
        assert!(head, "the table of reasons has gone");
        // Other tables follow it.
        let rows: Vec<&str> = lines
            .take_while(|line| line.starts_with('|'))
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(code, _)| code)
            .collect();
        let codes: Vec<&str> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(rows, codes);
        for &reason in Reason::ALL {
            let status = format!("| `{}` | {} ", reason.code(), reason.grpc_status());
            let injected = reason == Reason::FaultInjected;
            assert!(
                injected || docs.contains(&status),
                "docs/errors.md: {status}"
            );
        }
    }
}
