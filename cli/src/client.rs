//! One connection to the control plane. Input: URLs and requests. Output: answers, or failures that say where, what and
//! what to do. How they are printed is not known here.

use std::{error::Error as _, time::Duration};

use heddle_proto::error_text::root_cause;
use heddle_proto::status::v1::{GetServiceRequest, mesh_status_client::MeshStatusClient};
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::exit::Exit;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer, in bytes: a mesh of thousands of instances needs more than tonic's 4 MiB.
const ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Where the control plane is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ControlOptions {
    /// The control plane; several replicas, separated by commas, are tried in turn
    #[arg(
        long,
        value_name = "URL",
        env = "HEDDLE_CONTROL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:15010"
    )]
    pub(crate) control: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("--control {url}: {why}; give http://HOST:PORT")]
    Address { url: String, why: String },
    #[error(
        "no control plane answers at {url} ({why}); start one (heddle demo, heddle control), or \
         give its address with --control URL"
    )]
    Unreachable { url: String, why: String },
    #[error("the control plane at {url} did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Slow { url: String },
    #[error("the control plane at {url} ended its response early; try again")]
    Ended { url: String },
    #[error(
        "{url} does not know this method ({text}): it is not a Heddle control plane, or one of \
         another version"
    )]
    Stranger { url: String, text: String },
    #[error("the control plane at {url} answers {code:?}: {text}")]
    Refused {
        url: String,
        code: Code,
        text: String,
    },
    #[error("no service of namespace {namespace} is registered at {url}")]
    EmptyNamespace { url: String, namespace: String },
    #[error("no control plane is given; give its address with --control URL")]
    Nowhere,
}

impl ClientError {
    /// The exit code: the answer is no, too late, or nobody answers.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Address { .. } | Self::Nowhere => Exit::Usage,
            Self::Unreachable { .. } | Self::Ended { .. } | Self::Stranger { .. } => {
                Exit::Unreachable
            }
            Self::EmptyNamespace { .. } => Exit::No,
            Self::Slow { .. } => Exit::Late,
            Self::Refused { code, .. } => match code {
                Code::DeadlineExceeded => Exit::Late,
                Code::Unavailable => Exit::Unreachable,
                _ => Exit::No,
            },
        }
    }
}

/// A control plane with an open connection.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    url: String,
    pub(crate) mesh: MeshStatusClient<Channel>,
}

impl Control {
    /// Connects to the first replica that answers.
    pub(crate) async fn connect(options: &ControlOptions) -> Result<Self, ClientError> {
        let mut failure = ClientError::Nowhere;
        for url in options
            .control
            .iter()
            .map(|url| url.trim())
            .filter(|url| !url.is_empty())
        {
            match Self::connect_to(url).await {
                Ok(control) => return Ok(control),
                Err(why) => failure = why,
            }
        }
        Err(failure)
    }

    async fn connect_to(url: &str) -> Result<Self, ClientError> {
        let whole = if url.contains("://") {
            url.to_owned()
        } else {
            format!("http://{url}")
        };
        let endpoint = Endpoint::from_shared(whole.clone())
            .map_err(|why| ClientError::Address {
                url: url.to_owned(),
                why: why.to_string(),
            })?
            .connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint
            .connect()
            .await
            .map_err(|why| ClientError::Unreachable {
                url: whole.clone(),
                why: root_cause(&why),
            })?;
        let mesh = MeshStatusClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        Ok(Self { url: whole, mesh })
    }

    /// The failure if a namespace was named in which nothing is registered.
    pub(crate) fn empty(&self, namespace: &str) -> ClientError {
        ClientError::EmptyNamespace {
            url: self.url.clone(),
            namespace: namespace.to_owned(),
        }
    }

    /// Fails with the control plane's answer if a service was named and does not exist. For answers that are empty: an
    /// empty table would look as if all was well with it.
    pub(crate) async fn knows(&self, service: &str) -> Result<(), ClientError> {
        if service.is_empty() {
            return Ok(());
        }
        let name = service.to_owned();
        let mut mesh = self.mesh.clone();
        let answer = self.answer(mesh.get_service(GetServiceRequest { name }));
        answer.await.map(drop)
    }

    /// The answer to one request, with a timeout.
    pub(crate) async fn answer<T>(
        &self,
        request: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(ANSWER_TIMEOUT, request).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.refused(&status)),
            Err(_) => Err(self.slow()),
        }
    }

    /// The next message of a stream that must have one now, with a timeout.
    pub(crate) async fn next<T>(&self, answers: &mut Streaming<T>) -> Result<T, ClientError> {
        tokio::time::timeout(ANSWER_TIMEOUT, self.message(answers))
            .await
            .unwrap_or_else(|_| Err(self.slow()))
    }

    /// The next message of a stream, without a timeout.
    pub(crate) async fn message<T>(&self, answers: &mut Streaming<T>) -> Result<T, ClientError> {
        match answers.message().await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(ClientError::Ended {
                url: self.url.clone(),
            }),
            Err(status) => Err(self.refused(&status)),
        }
    }

    /// Classifies a failed request.
    fn refused(&self, status: &Status) -> ClientError {
        let url = self.url.clone();
        match (status.code(), status.source()) {
            (Code::Unavailable | Code::Unknown, Some(why)) => ClientError::Unreachable {
                url,
                why: root_cause(why),
            },
            (Code::Unimplemented, _) => ClientError::Stranger {
                url,
                text: status.message().to_owned(),
            },
            (code, _) => ClientError::Refused {
                url,
                code,
                text: status.message().to_owned(),
            },
        }
    }

    fn slow(&self) -> ClientError {
        ClientError::Slow {
            url: self.url.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Control, ControlOptions, Exit};

    #[tokio::test]
    async fn a_missing_control_plane_is_one_line_with_where_and_what_to_do() {
        // Bound but not listening, so that nothing else can take the port.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let error = Control::connect(&ControlOptions {
            control: vec![url.clone()],
        })
        .await
        .unwrap_err();
        assert_eq!(error.exit(), Exit::Unreachable);
        let text = error.to_string();
        assert!(
            text.contains(&url) && text.contains("refused") && text.contains("--control"),
            "{text}"
        );
        assert!(!text.contains('\n'));
        for (control, part) in [("http://", "give http://HOST:PORT"), ("", "--control URL")] {
            let options = ControlOptions {
                control: vec![control.into()],
            };
            let error = Control::connect(&options).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(part), "{control}: {text}");
            assert_eq!(error.exit(), Exit::Usage, "{text}");
        }
    }
}
