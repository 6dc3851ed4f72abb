//! Checks one instance once: gRPC health v1, HTTP or TCP, each within the plan's timeout. Input: a plan. Output: a
//! finding with its reason. When to check and what follows is not decided here.

use std::{net::SocketAddr, time::Duration};

use heddle_proto::error_text::{root_cause, status_text};
use heddle_proto::registry::v1::health_check::Kind;
use tokio::{net::TcpStream, time::timeout};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{http, printable, thresholds::Finding};
use crate::agent::{instance_table::Joined, validate::CheckPlan};

/// The largest response; one of the health service is a single number.
const MAX_ANSWER: usize = 64 * 1024;

/// The checks of one instance.
pub(super) struct Probe {
    address: SocketAddr,
    plan: CheckPlan,
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
            kept: None,
            cut: false,
        }
    }

    /// Whether the last check found the kept connection closed: the instance may have been restarted.
    pub(super) fn was_cut(&self) -> bool {
        self.cut
    }

    pub(super) async fn ask(&mut self) -> Finding {
        self.cut = false;
        let within = self.plan.timeout;
        let asked = async {
            match self.plan.kind {
                Kind::Grpc => self.ask_grpc().await,
                Kind::Http => http::ask(self.address, &self.plan.path).await,
                _ => match connect(self.address, within).await {
                    Ok(()) => Finding::Passed,
                    Err(why) => Finding::Failed(why),
                },
            }
        };
        if let Ok(finding) = timeout(within, asked).await {
            return finding;
        }
        // The check may have hung because of the connection.
        self.kept = None;
        let kind = match self.plan.kind {
            Kind::Grpc => "gRPC",
            Kind::Http => "HTTP",
            _ => "TCP",
        };
        Finding::Failed(format!("its {kind} check got no answer within {within:?}"))
    }

    async fn ask_grpc(&mut self) -> Finding {
        if let Some(channel) = self.kept.take() {
            match check(channel.clone(), &self.plan.grpc_service).await {
                // A connection that was closed in the meantime does not count as a failure: check over a new one.
                Err(status) if std::error::Error::source(&status).is_some() => self.cut = true,
                answer => return self.finding_of(answer, channel),
            }
        }
        let Ok(endpoint) = Endpoint::from_shared(format!("http://{}", self.address)) else {
            return Finding::Failed(format!("{} is not an address", self.address));
        };
        match endpoint.connect_timeout(self.plan.timeout).connect().await {
            Ok(channel) => {
                let answer = check(channel.clone(), &self.plan.grpc_service).await;
                self.finding_of(answer, channel)
            }
            Err(error) => Finding::Failed(format!(
                "no connection to {}: {}",
                self.address,
                root_cause(&error)
            )),
        }
    }

    fn finding_of(
        &mut self,
        answer: Result<ServingStatus, tonic::Status>,
        channel: Channel,
    ) -> Finding {
        let service = &self.plan.grpc_service;
        let status = match answer {
            Ok(answer) => {
                self.kept = Some(channel);
                return match answer {
                    ServingStatus::Serving => Finding::Passed,
                    other => Finding::Declined(format!(
                        "its health service answers {}",
                        other.as_str_name()
                    )),
                };
            }
            Err(status) => status,
        };
        Finding::Failed(match status.code() {
            Code::Unimplemented => {
                "it has no grpc.health.v1.Health: use health kind tcp or none".to_owned()
            }
            Code::NotFound => format!(
                "its health service does not know \"{service}\": name one that it knows in health.grpc_service, or \
                 leave it out"
            ),
            _ => format!(
                "its health check failed: {}",
                printable(&status_text(&status))
            ),
        })
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

pub(super) async fn connect(address: SocketAddr, within: Duration) -> Result<(), String> {
    match timeout(within, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("no connection to {address}: {error}")),
        Err(_) => Err(format!("no connection to {address} within {within:?}")),
    }
}
