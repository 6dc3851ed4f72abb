//! Calls to heddle-echo through a proxy, and the contents of a failure: status, message, reason, details. The client is a
//! plain gRPC client with one address, as a service of the mesh has it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use heddle_proto::echo::v1::echo_client::EchoClient;
use heddle_proto::echo::v1::{EchoRequest, EchoResponse};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::wait::until;

/// A channel to `addr`; calls carry `addr` as authority, so that they are routed by their path.
pub fn channel(addr: SocketAddr) -> Channel {
    endpoint(addr).connect_lazy()
}

/// A channel to `addr` whose calls name a service by authority.
pub fn channel_as(addr: SocketAddr, authority: &str) -> Channel {
    let origin = format!("http://{authority}").parse().expect("an authority");
    endpoint(addr).origin(origin).connect_lazy()
}

fn endpoint(addr: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{addr}")).expect("an address is a URI")
}

/// An echo client without a limit on message size.
pub fn echo(channel: Channel) -> EchoClient<Channel> {
    EchoClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

/// A request that is echoed.
pub fn payload(text: &str) -> EchoRequest {
    EchoRequest {
        payload: text.as_bytes().to_vec().into(),
        ..EchoRequest::default()
    }
}

/// One unary call by path, on a connection of its own.
pub async fn call(addr: SocketAddr, request: EchoRequest) -> Result<EchoResponse, Failed> {
    echo(channel(addr))
        .unary(request)
        .await
        .map(tonic::Response::into_inner)
        .map_err(|status| Failed::from(&status))
}

/// What a failed call carries (docs/errors.md).
#[derive(Clone, Debug)]
pub struct Failed {
    pub code: Code,
    pub message: String,
    /// `heddle-reason`; none where the service itself answered.
    pub reason: Option<String>,
    /// The reason in `google.rpc.ErrorInfo`, if its domain is Heddle's.
    pub info: Option<String>,
}

impl From<&Status> for Failed {
    fn from(status: &Status) -> Self {
        let reason = status.metadata().get("heddle-reason");
        let info = status.get_details_error_info();
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason: reason.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
            info: info
                .filter(|info| info.domain == "heddle")
                .map(|info| info.reason),
        }
    }
}

impl Failed {
    /// Asserts status, reason in both places (in one where there are no details), and that the sentence names what it is
    /// about.
    pub fn assert(&self, code: Code, reason: &str, names: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.reason.as_deref(), Some(reason), "{self:?}");
        let bare = matches!(reason, "NO_ROUTE" | "DEADLINE_EXCEEDED");
        let info = Some(reason).filter(|_| !bare);
        assert_eq!(self.info.as_deref(), info, "ErrorInfo of {self:?}");
        for name in names {
            assert!(self.message.contains(name), "no {name:?} in {self:?}");
        }
    }
}

/// Calls until answers have come from exactly these instances within one batch, by path or by authority.
pub async fn reach(channel: &Channel, instances: &[&str]) {
    let expected: BTreeSet<String> = instances.iter().map(|&id| id.to_owned()).collect();
    let what = format!("calls reach exactly {expected:?}");
    // Choice is random among equals: with so many calls an instance is left out once in millions.
    let batch = 16 * expected.len().max(2);
    until(&what, async || {
        let mut client = echo(channel.clone());
        let mut reached = BTreeSet::new();
        for _ in 0..batch {
            let answer = client.unary(payload("where are you")).await;
            let answer = answer.map_err(|status| format!("{:?}", Failed::from(&status)))?;
            reached.insert(answer.into_inner().instance);
        }
        if reached == expected {
            Ok(())
        } else {
            Err(format!("{reached:?}"))
        }
    })
    .await;
}
