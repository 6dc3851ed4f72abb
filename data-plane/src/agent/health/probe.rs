//! Checks one instance once: gRPC health v1, HTTP or TCP, each within the plan's timeout; with `auto` the question for
//! gRPC health and TCP after each other. Input: a plan. Output: a finding with its reason. When to check and what follows is not decided here.

use std::{error::Error, io, net::SocketAddr, time::Duration};

use heddle_proto::error_text::{chain, root_cause, status_text};
use heddle_proto::registry::v1::health_check::Kind;
use tokio::{net::TcpStream, time::timeout};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{choice::Choice, http, printable, thresholds::Finding};
use crate::agent::{check_plan::CheckPlan, instance_table::Joined};

/// The largest response; one of the health service is a single number.
const MAX_ANSWER: usize = 64 * 1024;

/// The checks of one instance.
pub(super) struct Probe {
    address: SocketAddr,
    plan: CheckPlan,
    /// For `auto`.
    choice: Choice,
    /// The gRPC connection of the last check that was answered; it is reused, so that not every check opens one.
    kept: Option<Channel>,
    /// The last check found the kept connection closed.
    cut: bool,
}

impl Probe {
    pub(super) fn new(joined: &Joined) -> Self {
        Self {
            address: joined.address,
            plan: joined.plan.clone(),
            choice: Choice::resumed(joined.checked_by),
            kept: None,
            cut: false,
        }
    }

    /// Whether the last check found the kept connection closed: the instance may have been restarted.
    pub(super) fn was_cut(&self) -> bool {
        self.cut
    }

    /// The kind of check in use; with `auto` the chosen one, or `Unspecified` if none is chosen.
    pub(super) fn kind(&self) -> Kind {
        match self.plan.kind {
            Kind::Auto => self.choice.kind(),
            kind => kind,
        }
    }

    /// A call found that no program listens at the address.
    pub(super) fn refused(&mut self) {
        self.choice.refused();
    }

    pub(super) async fn run(&mut self) -> Finding {
        self.cut = false;
        let within = self.plan.timeout;
        match self.plan.kind {
            Kind::Auto => self.check_auto().await,
            Kind::Grpc => match timeout(within, self.check_grpc()).await {
                Ok(answer) => answer.into(),
                Err(_) => self.unanswered("gRPC"),
            },
            Kind::Http => match timeout(within, http::check(self.address, &self.plan.path)).await {
                Ok(finding) => finding,
                Err(_) => self.unanswered("HTTP"),
            },
            _ => match connect(self.address, within).await {
                Ok(()) => Finding::Passed,
                Err(why) => Finding::Failed(why.reason),
            },
        }
    }

    /// Asks for gRPC health until it is known whether the program has it, then checks in the way that was chosen.
    async fn check_auto(&mut self) -> Finding {
        let known = self.choice.kind() == Kind::Grpc;
        if known || self.choice.tries_grpc() {
            match timeout(self.plan.timeout, self.check_grpc()).await {
                Ok(GrpcAnswer::Health(finding)) => {
                    self.choice.answered();
                    return finding;
                }
                Ok(GrpcAnswer::Refused(reason)) => {
                    self.choice.refused();
                    return Finding::Failed(reason);
                }
                // A program that answered before still has its health service: this failure is one of its health.
                Ok(GrpcAnswer::Failed(reason)) if known => return Finding::Failed(reason),
                Err(_) if known => return self.unanswered("gRPC"),
                Ok(GrpcAnswer::NoHealth | GrpcAnswer::Failed(_)) => {
                    return self.check_tcp(Choice::has_none).await;
                }
                Err(_) => {
                    self.kept = None;
                    return self.check_tcp(Choice::unanswered).await;
                }
            }
        }
        self.check_tcp(|_| {}).await
    }

    /// `connected`: what it means for the choice that the program accepts connections.
    async fn check_tcp(&mut self, connected: impl FnOnce(&mut Choice)) -> Finding {
        match connect(self.address, self.plan.timeout).await {
            Ok(()) => {
                connected(&mut self.choice);
                Finding::Passed
            }
            Err(why) => {
                if why.refused {
                    self.choice.refused();
                }
                Finding::Failed(why.reason)
            }
        }
    }

    fn unanswered(&mut self, kind: &str) -> Finding {
        // The check may have hung because of the connection.
        self.kept = None;
        let within = self.plan.timeout;
        Finding::Failed(format!("its {kind} check got no answer within {within:?}"))
    }

    async fn check_grpc(&mut self) -> GrpcAnswer {
        if let Some(channel) = self.kept.take() {
            match check(channel.clone(), &self.plan.grpc_service).await {
                // A connection that was closed in the meantime does not count as a failure: check over a new one.
                Err(status) if Error::source(&status).is_some() => self.cut = true,
                answer => return self.answer_of(answer, channel),
            }
        }
        let Ok(endpoint) = Endpoint::from_shared(format!("http://{}", self.address)) else {
            return GrpcAnswer::Failed(format!("{} is not an address", self.address));
        };
        match endpoint.connect_timeout(self.plan.timeout).connect().await {
            Ok(channel) => {
                let answer = check(channel.clone(), &self.plan.grpc_service).await;
                self.answer_of(answer, channel)
            }
            Err(error) => {
                let reason = format!("no connection to {}: {}", self.address, root_cause(&error));
                match chain(&error).any(is_refusal) {
                    true => GrpcAnswer::Refused(reason),
                    false => GrpcAnswer::Failed(reason),
                }
            }
        }
    }

    fn answer_of(
        &mut self,
        answer: Result<ServingStatus, tonic::Status>,
        channel: Channel,
    ) -> GrpcAnswer {
        let service = &self.plan.grpc_service;
        let status = match answer {
            Ok(answer) => {
                self.kept = Some(channel);
                return GrpcAnswer::Health(match answer {
                    ServingStatus::Serving => Finding::Passed,
                    other => Finding::Declined(format!(
                        "its health service answers {}",
                        other.as_str_name()
                    )),
                });
            }
            Err(status) => status,
        };
        match status.code() {
            Code::Unimplemented => GrpcAnswer::NoHealth,
            Code::NotFound => GrpcAnswer::Failed(format!(
                "its health service does not know \"{service}\": name one that it knows in health.grpc_service, or \
                 leave it out"
            )),
            _ => GrpcAnswer::Failed(format!(
                "its health check failed: {}",
                printable(&status_text(&status))
            )),
        }
    }
}

/// What a `Check` of gRPC health resulted in.
enum GrpcAnswer {
    /// The health service answered.
    Health(Finding),
    /// A gRPC server without a health service.
    NoHealth,
    /// No program listens.
    Refused(String),
    Failed(String),
}

impl From<GrpcAnswer> for Finding {
    fn from(answer: GrpcAnswer) -> Self {
        match answer {
            GrpcAnswer::Health(finding) => finding,
            GrpcAnswer::NoHealth => Self::Failed(
                "it has no grpc.health.v1.Health: use health kind auto, tcp or none".to_owned(),
            ),
            GrpcAnswer::Refused(reason) | GrpcAnswer::Failed(reason) => Self::Failed(reason),
        }
    }
}

async fn check(channel: Channel, service: &str) -> Result<ServingStatus, tonic::Status> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut client = HealthClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let answer = client.check(request).await?;
    Ok(answer.get_ref().status())
}

/// Why an address could not be connected to.
pub(super) struct ConnectError {
    pub(super) reason: String,
    /// No program listens there.
    pub(super) refused: bool,
}

pub(super) async fn connect(address: SocketAddr, within: Duration) -> Result<(), ConnectError> {
    let (why, refused) = match timeout(within, TcpStream::connect(address)).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => (format!(": {error}"), is_refusal(&error)),
        Err(_) => (format!(" within {within:?}"), false),
    };
    Err(ConnectError {
        reason: format!("no connection to {address}{why}"),
        refused,
    })
}

fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
