//! Asks an instance for its descriptors by gRPC server reflection, v1 and then v1alpha. An address comes in, the raw
//! bytes of its files go to the agent; bounded in time, size and number, and tried again with back-off while the
//! instance lives. What the descriptors mean is `schema`'s.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};
use tracing::{debug, info, warn};

use super::{
    Agent,
    book::Joined,
    schema::{MAX_SCHEMA_BYTES, Schema, SchemaError, is_infrastructure},
};
use crate::retry::Retry;

/// One attempt in all.
const ATTEMPT: Duration = Duration::from_secs(10);
/// The most files of one service.
const MAX_FILES: usize = 2000;
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// The two names of one protocol; their messages are equal on the wire.
const VERSIONS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

#[derive(Debug, thiserror::Error)]
pub enum ReflectError {
    #[error(
        "it has no gRPC server reflection: name its `protos`, or send `file_descriptor_set` with Register"
    )]
    NoReflection,
    #[error("it does not answer: {0}")]
    Unreachable(String),
    #[error("its reflection answered against the protocol: {0}")]
    Protocol(String),
    #[error("its descriptors pass the bound of 4 MiB or {MAX_FILES} files")]
    TooLarge,
    #[error("its reflection gave descriptors that cannot be read: {0}")]
    Schema(#[from] SchemaError),
}

/// Asks until it has an answer. The caller stops it when the registration ends.
pub async fn learn(agent: Agent, joined: Joined) {
    let mut retry = Retry::new(FIRST_RETRY, LAST_RETRY);
    let mut told = false;
    loop {
        let answer = match tokio::time::timeout(ATTEMPT, ask(&joined.address.to_string())).await {
            Ok(answer) => answer,
            Err(_) => Err(ReflectError::Unreachable(format!(
                "nothing within {ATTEMPT:?}"
            ))),
        };
        match answer {
            Ok(schema) => {
                info!(instance = %joined.key, bytes = schema.bytes.len(), sha256 = %schema.sha256, "descriptors by reflection");
                agent.set_schema(&joined.key, &joined.registration, schema);
                return;
            }
            // A server may be registered before it listens; but one without reflection is worth one word.
            Err(error @ (ReflectError::NoReflection | ReflectError::TooLarge)) if !told => {
                told = true;
                warn!(instance = %joined.key, "not routable by proto service: {error}");
            }
            Err(error) => debug!(instance = %joined.key, "no descriptors yet: {error}"),
        }
        tokio::time::sleep(retry.wait()).await;
    }
}

/// One attempt.
///
/// # Errors
/// See [`ReflectError`].
pub async fn ask(address: &str) -> Result<Schema, ReflectError> {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| ReflectError::Unreachable(e.to_string()))?
        .connect_timeout(Duration::from_secs(2))
        .connect()
        .await
        .map_err(|e| ReflectError::Unreachable(in_full(&e)))?;
    for path in VERSIONS {
        match ask_version(channel.clone(), path).await {
            Err(ReflectError::NoReflection) => {}
            other => return other,
        }
    }
    Err(ReflectError::NoReflection)
}

async fn ask_version(channel: Channel, path: &'static str) -> Result<Schema, ReflectError> {
    let mut session = Session::open(channel, path).await?;
    let names = session.list().await?;
    let mut files = Files::default();
    for name in names.iter().filter(|name| !is_infrastructure(name)) {
        for file in session
            .files(MessageRequest::FileContainingSymbol(name.clone()))
            .await?
        {
            files.add(file)?;
        }
    }
    while let Some(missing) = files.missing.pop_first() {
        for file in session
            .files(MessageRequest::FileByFilename(missing))
            .await?
        {
            files.add(file)?;
        }
    }
    Ok(Schema::from_files(&files.raw)?)
}

/// The closure of files as it grows.
#[derive(Default)]
struct Files {
    raw: BTreeMap<String, Bytes>,
    missing: BTreeSet<String>,
    asked: BTreeSet<String>,
    bytes: usize,
}

impl Files {
    fn add(&mut self, bytes: Bytes) -> Result<(), ReflectError> {
        let file = FileDescriptorProto::decode(bytes.clone())
            .map_err(|e| ReflectError::Protocol(e.to_string()))?;
        let name = file.name().to_owned();
        self.missing.remove(&name);
        if name.is_empty() || self.raw.contains_key(&name) {
            return Ok(());
        }
        self.bytes += bytes.len();
        if self.bytes > MAX_SCHEMA_BYTES || self.raw.len() >= MAX_FILES {
            return Err(ReflectError::TooLarge);
        }
        self.raw.insert(name, bytes);
        for dependency in file.dependency {
            // Asked for once: a server that lacks it says so, or gives it under another name.
            if !self.raw.contains_key(&dependency) && self.asked.insert(dependency.clone()) {
                self.missing.insert(dependency);
            }
        }
        Ok(())
    }
}

/// One reflection stream: question, answer, question, answer.
struct Session {
    requests: mpsc::Sender<ServerReflectionRequest>,
    responses: Streaming<ServerReflectionResponse>,
}

impl Session {
    async fn open(channel: Channel, path: &'static str) -> Result<Self, ReflectError> {
        let (requests, stream) = mpsc::channel(1);
        // Some servers send no headers before they have seen a question.
        let first = request(MessageRequest::ListServices("*".into()));
        requests
            .try_send(first)
            .map_err(|e| ReflectError::Protocol(e.to_string()))?;
        let mut client = Grpc::new(channel).max_decoding_message_size(MAX_SCHEMA_BYTES + 64 * 1024);
        client
            .ready()
            .await
            .map_err(|e| ReflectError::Unreachable(in_full(&e)))?;
        let codec: ProstCodec<ServerReflectionRequest, ServerReflectionResponse> =
            ProstCodec::default();
        let streaming = tonic::Request::new(ReceiverStream::new(stream));
        let responses = client
            .streaming(streaming, PathAndQuery::from_static(path), codec)
            .await
            .map_err(|s| from_status(&s))?;
        Ok(Self {
            requests,
            responses: responses.into_inner(),
        })
    }

    /// The answer to the question that `open` sent.
    async fn list(&mut self) -> Result<Vec<String>, ReflectError> {
        match self.answer().await? {
            MessageResponse::ListServicesResponse(list) => {
                Ok(list.service.into_iter().map(|s| s.name).collect())
            }
            MessageResponse::ErrorResponse(error) => {
                Err(ReflectError::Protocol(error.error_message))
            }
            _ => Err(ReflectError::Protocol(
                "another answer than asked for".into(),
            )),
        }
    }

    /// The files, none if the server does not have them.
    async fn files(&mut self, question: MessageRequest) -> Result<Vec<Bytes>, ReflectError> {
        let sent = self.requests.send(request(question)).await;
        sent.map_err(|_| ReflectError::Protocol("the stream ended early".into()))?;
        match self.answer().await? {
            MessageResponse::FileDescriptorResponse(files) => Ok(files
                .file_descriptor_proto
                .into_iter()
                .map(Bytes::from)
                .collect()),
            MessageResponse::ErrorResponse(_) => Ok(Vec::new()),
            _ => Err(ReflectError::Protocol(
                "another answer than asked for".into(),
            )),
        }
    }

    async fn answer(&mut self) -> Result<MessageResponse, ReflectError> {
        let message = self
            .responses
            .message()
            .await
            .map_err(|s| from_status(&s))?;
        message
            .and_then(|m| m.message_response)
            .ok_or_else(|| ReflectError::Protocol("the stream ended early".into()))
    }
}

fn request(question: MessageRequest) -> ServerReflectionRequest {
    ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    }
}

fn from_status(status: &tonic::Status) -> ReflectError {
    match status.code() {
        tonic::Code::Unimplemented => ReflectError::NoReflection,
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => ReflectError::TooLarge,
        code => ReflectError::Unreachable(format!("{code:?}: {}", status.message())),
    }
}

/// A status as a sentence: the other side's words, or why the connection broke.
pub fn status_words(status: &tonic::Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut last = None;
    while let Some(error) = cause {
        last = Some(error.to_string());
        cause = error.source();
    }
    match last {
        Some(last) => format!("the connection broke ({last})"),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// An error with its causes: tonic's own text is only "transport error".
pub fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
