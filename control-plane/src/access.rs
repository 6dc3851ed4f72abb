//! Identifies the caller of each request and decides whether it may make it. An accepted connection gets a [`Caller`],
//! which is attached to every request on it. Each request is authorized by its method before it is handled. All
//! requests of both listeners, gRPC and HTTP, pass through here; this module knows no service. A request to which no
//! caller is attached is refused. Callers have no
//! identities yet: a caller is known by the address it connects from, and may call everything.

use std::{fmt, net::SocketAddr};

use tokio_util::sync::CancellationToken;

use crate::budget::Account;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Over a Unix socket of this host.
    Unix,
    Tcp(SocketAddr),
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    origin: Origin,
    account: Account,
    connection: ConnectionEnd,
}

impl Caller {
    /// The caller of all requests of one connection. `peer` is none for a Unix socket.
    pub(crate) fn of_connection(peer: Option<SocketAddr>, account: Account) -> Self {
        Self {
            origin: peer.map_or(Origin::Unix, Origin::Tcp),
            account,
            connection: ConnectionEnd::default(),
        }
    }

    /// The caller that the listener attached to a request.
    ///
    /// # Errors
    /// None is attached: the request bypassed the listener, so nothing is known of its sender.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Unidentified> {
        request.extensions().get().cloned().ok_or(Unidentified)
    }

    /// Whether the caller runs on this host: it connects over loopback or a Unix socket.
    pub(crate) fn is_local(&self) -> bool {
        match self.origin {
            Origin::Unix => true,
            Origin::Tcp(address) => address.ip().to_canonical().is_loopback(),
        }
    }

    /// The account for the memory that this caller uses.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// The handle that ends the caller's connection.
    pub(crate) fn connection(&self) -> &ConnectionEnd {
        &self.connection
    }
}

/// The form used in logs and in the status.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::Unix => f.write_str("unix"),
            Origin::Tcp(address) => address.fmt(f),
        }
    }
}

/// No caller is attached to a request: it reached a service without passing a listener. A bug in Heddle.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the caller of this request is not known: it did not come through a listener, which is a bug in Heddle"
)]
pub(crate) struct Unidentified;

impl From<Unidentified> for tonic::Status {
    fn from(error: Unidentified) -> Self {
        Self::internal(error.to_string())
    }
}

/// Ends a connection gracefully (GOAWAY): calls in progress continue, new calls need another connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionEnd(CancellationToken);

impl ConnectionEnd {
    pub(crate) fn begin(&self) {
        self.0.cancel();
    }

    pub(crate) async fn begun(&self) {
        self.0.cancelled().await;
    }
}

/// Decides who may call which method.
#[derive(Clone, Debug, Default)]
pub(crate) struct Authorizer(Policy);

/// What callers may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Policy {
    /// Every caller may call everything, until callers have identities.
    #[default]
    AllowAll,
    #[cfg(test)]
    DenyAll,
}

/// A request that its caller may not make.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{caller} may not call {method}")]
pub(crate) struct Denied {
    caller: String,
    method: String,
}

impl Authorizer {
    /// `method`: the path of a gRPC method or of an HTTP endpoint.
    pub(crate) fn authorize(&self, caller: &Caller, method: &str) -> Result<(), Denied> {
        let allowed = match self.0 {
            Policy::AllowAll => true,
            #[cfg(test)]
            Policy::DenyAll => false,
        };
        if allowed {
            return Ok(());
        }
        Err(Denied {
            caller: caller.to_string(),
            method: method.to_owned(),
        })
    }

    /// Denies everything, so that tests can show that no request bypasses the authorizer.
    #[cfg(test)]
    pub(crate) fn denying() -> Self {
        Self(Policy::DenyAll)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_known_by_where_it_connects_from() {
        for (peer, shown, local) in [
            (None, "unix", true),
            (Some("127.0.0.1:7"), "127.0.0.1:7", true),
            (Some("[::ffff:127.0.0.1]:7"), "[::ffff:127.0.0.1]:7", true),
            (Some("10.0.0.1:7"), "10.0.0.1:7", false),
        ] {
            let peer = peer.map(|it| it.parse().unwrap());
            let caller = Caller::of_connection(peer, Account::default());
            assert_eq!(
                (caller.to_string().as_str(), caller.is_local()),
                (shown, local)
            );
        }
    }

    /// Without a caller a request is refused, not taken for one of this process.
    #[test]
    fn a_request_without_a_caller_is_refused() {
        let mut request = tonic::Request::new(());
        let status = tonic::Status::from(Caller::of(&request).unwrap_err());
        assert_eq!(status.code(), tonic::Code::Internal);
        let address = "10.0.0.1:7".parse().unwrap();
        let caller = Caller::of_connection(Some(address), Account::default());
        request.extensions_mut().insert(caller);
        assert_eq!(Caller::of(&request).unwrap().to_string(), "10.0.0.1:7");
    }
}
