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
    #[error("the control plane at {url} did not answer within {} s", timeout.as_secs_f32())]
    Slow { url: String, timeout: Duration },
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
    /// Connects to the first replica that answers. Of several, each has a share of the time, so that one that hangs leaves
    /// enough for the next.
    pub(crate) async fn connect(options: &ControlOptions) -> Result<Self, ClientError> {
        let urls = options.control.iter().map(|url| url.trim());
        let urls = urls.filter(|url| !url.is_empty()).map(endpoint);
        let endpoints = urls.collect::<Result<Vec<_>, _>>()?;
        let replicas = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        let share = CONNECT_TIMEOUT.min(ANSWER_TIMEOUT / replicas.max(1));
        let mut failure = ClientError::Nowhere;
        for (url, endpoint) in endpoints {
            let connected = async {
                let control = Self::connect_to(url, endpoint.connect_timeout(share)).await?;
                if replicas > 1 {
                    control.probe(share).await?;
                }
                Ok(control)
            };
            match connected.await {
                Ok(control) => return Ok(control),
                Err(why) => failure = why,
            }
        }
        Err(failure)
    }

    async fn connect_to(url: String, endpoint: Endpoint) -> Result<Self, ClientError> {
        let channel = endpoint
            .connect()
            .await
            .map_err(|why| ClientError::Unreachable {
                url: url.clone(),
                why: root_cause(&why),
            })?;
        let mesh = MeshStatusClient::new(channel).max_decoding_message_size(ANSWER_BYTES);
        Ok(Self { url, mesh })
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
            // A status with a source was made here: the connection broke, or what came is not gRPC.
            (_, Some(why)) => ClientError::Unreachable {
                url,
                why: root_cause(why),
            },
            (code, _) if code == Code::Unimplemented || is_no_grpc(status) => {
                ClientError::Stranger {
                    url,
                    text: status.message().to_owned(),
                }
            }
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
            timeout: ANSWER_TIMEOUT,
        }
    }

    /// Whether the process at this address answers at all. A process that hangs still accepts connections.
    async fn probe(&self, timeout: Duration) -> Result<(), ClientError> {
        let mut mesh = self.mesh.clone();
        // Refused at once, for want of a name.
        let question = mesh.get_service(GetServiceRequest::default());
        let slow = |_| ClientError::Slow {
            url: self.url.clone(),
            timeout,
        };
        match tokio::time::timeout(timeout, question)
            .await
            .map_err(slow)?
        {
            Ok(_) => Ok(()),
            Err(status) => match self.refused(&status) {
                ClientError::Refused { .. } => Ok(()),
                why => Err(why),
            },
        }
    }
}

/// Whether the answer came from an HTTP server that does not speak gRPC. tonic has no other mark of it.
fn is_no_grpc(status: &Status) -> bool {
    status.message().starts_with("grpc-status header missing")
}

/// The URL with its scheme, and how to connect to it.
fn endpoint(url: &str) -> Result<(String, Endpoint), ClientError> {
    let refused = |why: String| ClientError::Address {
        url: url.to_owned(),
        why,
    };
    let whole = match url.split_once("://") {
        None => format!("http://{url}"),
        Some(("http", _)) => url.to_owned(),
        Some((scheme, _)) => return Err(refused(format!("the scheme {scheme} is not supported"))),
    };
    match Endpoint::from_shared(whole.clone()) {
        Ok(endpoint) => Ok((whole, endpoint)),
        Err(why) => Err(refused(why.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::{ANSWER_TIMEOUT, Control, ControlOptions, Exit};

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
        for (control, part) in [
            ("http://", "give http://HOST:PORT"),
            ("", "--control URL"),
            (
                "ftp://x",
                "--control ftp://x: the scheme ftp is not supported; give http://HOST:PORT",
            ),
            ("https://x", "the scheme https is not supported"),
        ] {
            let options = ControlOptions {
                control: vec![control.into()],
            };
            let error = Control::connect(&options).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(part), "{control}: {text}");
            assert_eq!(error.exit(), Exit::Usage, "{text}");
        }
    }

    fn options(control: &[&str]) -> ControlOptions {
        let control = control.iter().map(ToString::to_string).collect();
        ControlOptions { control }
    }

    /// An address at which every connection gets this answer, or none.
    async fn server(answer: Option<&'static [u8]>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                if let Some(answer) = answer {
                    let _ = stream.write_all(answer).await;
                }
                open.push(stream);
            }
        });
        url
    }

    /// Issue 10, E1: the first replica hung, and the good one was not asked.
    #[tokio::test]
    async fn a_replica_that_hangs_leaves_time_for_the_next() {
        let hangs = server(None).await;
        let refuses = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            format!("http://{}", listener.local_addr().unwrap())
        };
        let begun = Instant::now();
        let error = Control::connect(&options(&[&hangs, &refuses])).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&refuses), "the next one was tried: {error}");
        assert!(begun.elapsed() < ANSWER_TIMEOUT / 2);
        let error = Control::connect(&options(&[&refuses, &hangs])).await;
        assert_eq!(error.unwrap_err().exit(), Exit::Late);
    }

    /// Issue 10, E1: an address without a control plane had different codes.
    #[tokio::test]
    async fn what_is_no_control_plane_is_nobody_to_ask() {
        const HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        for junk in [b"junk, and more of it\r\n".as_slice(), HTTP] {
            let url = server(Some(junk)).await;
            let control = Control::connect(&options(&[&url])).await;
            let error = match control {
                Ok(control) => control.knows("users").await.unwrap_err(),
                Err(error) => error,
            };
            assert_eq!(error.exit(), Exit::Unreachable, "{error}");
        }
    }
}
