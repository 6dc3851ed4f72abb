//! Queries an instance once by gRPC server reflection, v1 and then v1alpha: for the names of its services, then for their
//! files and imports. Input: an address. Output: names and raw files. Each request, and all of them together, are
//! bounded in time, size and number. Nothing is remembered for the next time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use heddle_proto::error_text::{root_cause, status_text};
use heddle_proto::rules::{MAX_PROTOS, is_proto_name};
use http::uri::PathAndQuery;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Streaming,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};

use super::{MAX_FILES, REQUEST_TIMEOUT, ROUND_TIMEOUT, ReflectError};
use crate::agent::{
    schema::{Cost, MAX_SCHEMA_BYTES, Schema, is_infrastructure},
    served::Reflected,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// If the descriptors take longer than this, the names are reported first, so that calls find the service meanwhile.
const DESCRIPTORS_DUE: Duration = Duration::from_millis(500);
/// Some servers end the stream instead of answering that they do not know a symbol: at most this many new streams are
/// opened.
const MAX_REOPENED: usize = 16;
/// The longest text of the instance in a reason, in characters.
const MAX_TEXT: usize = 100;

/// The two names of one protocol; their messages are equal on the wire.
const VERSIONS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// What an instance reported.
#[derive(Debug)]
pub struct ReflectionReport {
    pub reflected: Reflected,
    /// Why it is not complete.
    pub lacking: Option<ReflectError>,
}

/// Queries once. `listed` gets the names first if the descriptors take long.
///
/// # Errors
/// It listed no services at all.
pub async fn query(
    address: &str,
    listed: &(dyn Fn(&[String]) + Send + Sync),
) -> Result<ReflectionReport, ReflectError> {
    let until = Instant::now() + ROUND_TIMEOUT;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| ReflectError::Unreachable(error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT);
    let channel = timeout(CONNECT_TIMEOUT, endpoint.connect())
        .await
        .map_err(|_| ReflectError::Unreachable("no connection in time".to_owned()))?
        .map_err(|error| ReflectError::Unreachable(printable(&root_cause(&error))))?;
    let mut outcome = Err(ReflectError::NoReflection);
    for path in VERSIONS {
        outcome = list(channel.clone(), path).await;
        if !matches!(outcome, Err(ReflectError::NoReflection)) {
            break;
        }
    }
    let (session, all) = outcome?;
    let names = served(&all);
    if names.is_empty() {
        return Ok(ReflectionReport {
            reflected: Reflected::default(),
            lacking: Some(ReflectError::ListsNothing),
        });
    }
    let (schema, lacking) = {
        let mut describing = std::pin::pin!(session.describe(&names, until));
        match timeout(DESCRIPTORS_DUE, &mut describing).await {
            Ok(described) => described,
            Err(_) => {
                listed(&names);
                describing.await
            }
        }
    };
    Ok(ReflectionReport {
        reflected: Reflected { names, schema },
        lacking,
    })
}

/// The listed services that the instance serves: sorted, without those that every server has, and at most
/// [`MAX_PROTOS`].
fn served(all: &[String]) -> Vec<String> {
    let names: BTreeSet<&String> = all
        .iter()
        .filter(|name| !is_infrastructure(name) && is_proto_name(name))
        .collect();
    names.into_iter().take(MAX_PROTOS).cloned().collect()
}

async fn list(
    channel: Channel,
    path: &'static str,
) -> Result<(ReflectionClient, Vec<String>), ReflectError> {
    let mut session = ReflectionClient {
        channel,
        path,
        stream: None,
    };
    let request = MessageRequest::ListServices("*".into());
    let answer = timeout(REQUEST_TIMEOUT, session.exchange(request)).await;
    match answer.map_err(|_| ReflectError::Silent)?? {
        MessageResponse::ListServicesResponse(list) => {
            let names = list.service.into_iter().map(|service| service.name);
            Ok((session, names.collect()))
        }
        MessageResponse::ErrorResponse(error) => {
            let code = Code::from(error.error_code);
            Err(from_status(tonic::Status::new(code, error.error_message)))
        }
        _ => Err(ReflectError::Protocol(
            "an answer to another request".into(),
        )),
    }
}

/// The files collected so far.
#[derive(Default)]
struct Files {
    raw: BTreeMap<String, Bytes>,
    imports: BTreeMap<String, Vec<String>>,
    missing: BTreeSet<String>,
    requested: BTreeSet<String>,
    bytes: usize,
    cost: Cost,
}

impl Files {
    fn add(&mut self, bytes: Bytes) -> Result<(), ReflectError> {
        let file = self.cost.index(&bytes)?;
        self.missing.remove(&file.name);
        if self.raw.contains_key(&file.name) {
            return Ok(());
        }
        self.bytes += bytes.len();
        if self.bytes > MAX_SCHEMA_BYTES || self.raw.len() >= MAX_FILES {
            return Err(ReflectError::TooLarge);
        }
        self.raw.insert(file.name.clone(), bytes);
        for import in &file.imports {
            // Requested only once: a server may lack it, or return it under another name.
            if !self.raw.contains_key(import) && self.requested.insert(import.clone()) {
                self.missing.insert(import.clone());
            }
        }
        self.imports.insert(file.name, file.imports);
        Ok(())
    }

    /// Keeps only files whose imports are all there.
    fn keep_whole(&mut self) {
        loop {
            let lacks = |imports: &Vec<String>| imports.iter().any(|i| !self.raw.contains_key(i));
            let open: Vec<String> = self
                .imports
                .iter()
                .filter(|(_, imports)| lacks(imports))
                .map(|(name, _)| name.clone())
                .collect();
            if open.is_empty() {
                return;
            }
            for name in open {
                self.raw.remove(&name);
                self.imports.remove(&name);
            }
        }
    }
}

/// A connection with one request at a time, normally all on one stream.
struct ReflectionClient {
    channel: Channel,
    path: &'static str,
    stream: Option<Open>,
}

struct Open {
    requests: mpsc::Sender<ServerReflectionRequest>,
    responses: Streaming<ServerReflectionResponse>,
}

impl ReflectionClient {
    /// The descriptors of these services, as far as they come, and why some are missing.
    async fn describe(
        mut self,
        names: &[String],
        until: Instant,
    ) -> (Option<Schema>, Option<ReflectError>) {
        let mut files = Files::default();
        let mut lacking = None;
        let gathered = self.gather(names, &mut files, &mut lacking, until).await;
        if let Err(why) = gathered {
            if matches!(why, ReflectError::TooLarge | ReflectError::Schema(_)) {
                return (None, Some(why));
            }
            files.keep_whole();
            lacking = Some(why);
        }
        if files.raw.is_empty() {
            return (None, lacking);
        }
        match Schema::from_files(&files.raw) {
            Ok(schema) => (Some(schema), lacking),
            Err(error) => (None, Some(error.into())),
        }
    }

    async fn gather(
        &mut self,
        names: &[String],
        files: &mut Files,
        lacking: &mut Option<ReflectError>,
        until: Instant,
    ) -> Result<(), ReflectError> {
        let mut reopened = 0;
        let mut names = names.iter();
        loop {
            let (request, what) = if let Some(name) = names.next() {
                (
                    MessageRequest::FileContainingSymbol(name.clone()),
                    name.clone(),
                )
            } else if let Some(file) = files.missing.pop_first() {
                (MessageRequest::FileByFilename(file.clone()), file)
            } else {
                return Ok(());
            };
            let each = Instant::now() + REQUEST_TIMEOUT;
            let answer = match timeout_at(each.min(until), self.exchange(request)).await {
                Err(_) if until <= each => return Err(ReflectError::Slow),
                Err(_) => return Err(ReflectError::Silent),
                Ok(answer) => answer,
            };
            match answer {
                Ok(MessageResponse::FileDescriptorResponse(found)) => {
                    for file in found.file_descriptor_proto {
                        files.add(file.into())?;
                    }
                }
                Ok(MessageResponse::ErrorResponse(error)) => {
                    let status =
                        tonic::Status::new(Code::from(error.error_code), error.error_message);
                    lacking.get_or_insert(not_given(what, Box::new(status)));
                }
                Ok(_) => {
                    return Err(ReflectError::Protocol(
                        "an answer to another request".into(),
                    ));
                }
                // Some servers end the stream instead of answering that they do not have it.
                Err(ReflectError::Status(status)) if reopened < MAX_REOPENED => {
                    reopened += 1;
                    lacking.get_or_insert(not_given(what, status));
                }
                Err(ReflectError::NoReflection) if reopened < MAX_REOPENED => {
                    reopened += 1;
                    lacking.get_or_insert(ReflectError::Lacks(what));
                }
                Err(why) => return Err(why),
            }
        }
    }

    /// One request and its answer. After an error the next request opens a new stream.
    async fn exchange(&mut self, request: MessageRequest) -> Result<MessageResponse, ReflectError> {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(request),
        };
        let mut stream = match self.stream.take() {
            Some(stream) => {
                let sent = stream.requests.send(request).await;
                sent.map_err(|_| ReflectError::Protocol("the stream ended early".into()))?;
                stream
            }
            None => self.open(request).await?,
        };
        let message = stream.responses.message().await.map_err(from_status)?;
        let answer = message.and_then(|message| message.message_response);
        self.stream = Some(stream);
        answer.ok_or_else(|| ReflectError::Protocol("the stream ended early".into()))
    }

    /// Opens a stream with its first request: some servers send no headers before they have received one.
    async fn open(&self, first: ServerReflectionRequest) -> Result<Open, ReflectError> {
        let (requests, stream) = mpsc::channel(1);
        requests
            .try_send(first)
            .map_err(|error| ReflectError::Protocol(error.to_string()))?;
        let mut client =
            Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_SCHEMA_BYTES + 64 * 1024);
        client
            .ready()
            .await
            .map_err(|error| ReflectError::Unreachable(printable(&root_cause(&error))))?;
        let codec: ProstCodec<ServerReflectionRequest, ServerReflectionResponse> =
            ProstCodec::default();
        let streaming = tonic::Request::new(ReceiverStream::new(stream));
        let responses = client
            .streaming(streaming, PathAndQuery::from_static(self.path), codec)
            .await
            .map_err(from_status)?
            .into_inner();
        Ok(Open {
            requests,
            responses,
        })
    }
}

/// Why the program did not give the descriptors of `symbol`. Only NOT_FOUND says that it has none.
fn not_given(symbol: String, status: Box<tonic::Status>) -> ReflectError {
    match status.code() {
        Code::NotFound => ReflectError::Lacks(symbol),
        _ => ReflectError::Denied { symbol, status },
    }
}

fn from_status(status: tonic::Status) -> ReflectError {
    if std::error::Error::source(&status).is_some() || status.code() == Code::Unavailable {
        return ReflectError::Unreachable(printable(&status_text(&status)));
    }
    match status.code() {
        Code::Unimplemented => ReflectError::NoReflection,
        Code::OutOfRange | Code::ResourceExhausted => ReflectError::TooLarge,
        _ => ReflectError::Status(Box::new(status)),
    }
}

/// Text of the instance, bounded and in one line.
pub(super) fn printable(text: &str) -> String {
    let one = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(MAX_TEXT).map(one).collect()
}
