//! How an instance leaves: the mode, the Deregister call, and its result. When it leaves is not decided here.

use std::time::Duration;

use heddle_proto::error_text::status_cause;
use heddle_proto::registry::v1::{
    DeregisterRequest, DeregisterResponse, registry_client::RegistryClient,
};
use tokio::time::{error::Elapsed, timeout};
use tonic::{Code, Status, transport::Channel};

/// The longest time for leaving, besides the wait for calls in flight.
pub const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the agent waits for acknowledgements; less than its answer is awaited.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_millis(4_700);

/// How a registration ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaveOutcome {
    /// The agent knew the instance and has removed it.
    pub deregistered: bool,
    /// Every connected client has acknowledged it: no new call can come.
    pub acknowledged: bool,
    /// Clients that have not acknowledged, or why the agent did not answer.
    pub unacknowledged: Vec<String>,
    /// With [`crate::Registration::leave_finished`]: the calls in flight have ended, also those of proxies that are stopping.
    pub finished: bool,
    /// With [`crate::Registration::leave_finished`]: the calls that had not ended when the wait was over.
    pub in_flight: u32,
}

/// How an instance leaves.
#[derive(Clone, Debug)]
pub(crate) enum LeaveMode {
    /// It waits for the clients' acknowledgement.
    Acknowledged,
    /// It waits for the clients' acknowledgement and then, at most this long, for its calls in flight to end.
    Finished(Duration),
    /// It has already ended, with the cause.
    Ended(String),
}

impl LeaveMode {
    /// How long calls in flight are waited for, if they are.
    pub(crate) fn finish(&self) -> Option<Duration> {
        match self {
            Self::Finished(within) => Some(*within),
            Self::Acknowledged | Self::Ended(_) => None,
        }
    }
}

/// The result of a Deregister call.
pub(crate) struct Left {
    pub(crate) departure: LeaveOutcome,
    /// An agent has answered, even if it did not know the instance.
    pub(crate) answered: bool,
}

pub(crate) async fn deregister(
    mut client: RegistryClient<Channel>,
    registration: String,
    mode: LeaveMode,
) -> Left {
    let span = |span: Duration| prost_types::Duration::try_from(span).ok();
    let finish = mode.finish();
    let (waits, cause) = match mode {
        LeaveMode::Acknowledged | LeaveMode::Finished(_) => (true, String::new()),
        LeaveMode::Ended(cause) => (false, cause),
    };
    let request = DeregisterRequest {
        registration,
        wait_acknowledged: waits,
        max_wait: span(ACKNOWLEDGE_TIMEOUT),
        cause,
        wait_finished: finish.is_some(),
        max_finish: finish.and_then(span),
    };
    let longest = LEAVE_TIMEOUT + finish.unwrap_or_default();
    let answer = timeout(longest, client.deregister(request)).await;
    let answered = match &answer {
        Ok(Err(status)) => status.code() != Code::Unavailable,
        answer => answer.is_ok(),
    };
    Left {
        departure: departure(answer),
        answered,
    }
}

type Answer = Result<Result<tonic::Response<DeregisterResponse>, Status>, Elapsed>;

fn departure(answer: Answer) -> LeaveOutcome {
    match answer {
        Ok(Ok(response)) => {
            let response = response.into_inner();
            LeaveOutcome {
                deregistered: true,
                acknowledged: response.acknowledged,
                unacknowledged: response.unacknowledged,
                finished: response.finished,
                in_flight: response.in_flight,
            }
        }
        Ok(Err(status)) => LeaveOutcome {
            unacknowledged: vec![format!("agent: {}", status_cause(&status))],
            ..LeaveOutcome::default()
        },
        Err(_) => LeaveOutcome {
            unacknowledged: vec!["agent: no answer to Deregister".to_owned()],
            ..LeaveOutcome::default()
        },
    }
}
