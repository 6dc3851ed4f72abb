//! Answers as each request asks: echo, wait, fail, a given number of bytes or responses. Responses also name the
//! instance that answered. No state is kept between calls.

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use heddle_proto::echo::v1::{EchoRequest, EchoResponse, echo_server};
use heddle_sdk::Registration;
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::{KeyAndValueRef, MetadataMap},
};

/// The largest request, the largest response, and the most bytes that one ClientStream joins: large enough for any
/// trial, small enough that a mistyped size does not exhaust the machine.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024 * 1024;
/// The limit that echo.proto documents.
const MAX_DELAY_MS: u32 = 600_000;
/// The most responses of a stream that wait for the connection: one is written while the next is made.
const WAITING_RESPONSES: usize = 2;

/// The identity of this instance. Its node is known once it is registered.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    pub service: String,
    pub version: String,
    pub instance: String,
    pub node: Option<Registration>,
}

/// The Echo service.
#[derive(Clone, Debug)]
pub struct Echo {
    identity: Arc<Identity>,
}

impl Echo {
    #[must_use]
    pub fn new(identity: Arc<Identity>) -> Self {
        Self { identity }
    }

    fn answer(&self, payload: Bytes, metadata: &HashMap<String, String>) -> EchoResponse {
        let node = self.identity.node.as_ref().map(Registration::node);
        EchoResponse {
            payload,
            service: self.identity.service.clone(),
            version: self.identity.version.clone(),
            instance: self.identity.instance.clone(),
            node: node.as_deref().unwrap_or_default().to_owned(),
            metadata: metadata.clone(),
        }
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    type ServerStreamStream = Responses;
    type BidiStreamStream = Responses;

    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let metadata = received(request.metadata());
        let valid = ValidRequest::read(request.into_inner())?;
        valid.wait().await;
        valid.fail()?;
        Ok(Response::new(self.answer(valid.payload(), &metadata)))
    }

    /// Sends `response_count` responses, each after the delay, then the requested status, if any.
    async fn server_stream(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<Self::ServerStreamStream>, Status> {
        let metadata = received(request.metadata());
        let valid = ValidRequest::read(request.into_inner())?;
        let echo = self.clone();
        Ok(spawn(|responses| async move {
            let payload = valid.payload();
            for _ in 0..valid.count {
                valid.wait().await;
                let answer = echo.answer(payload.clone(), &metadata);
                if responses.send(Ok(answer)).await.is_err() {
                    return Ok(());
                }
            }
            if valid.count == 0 {
                valid.wait().await;
            }
            valid.fail()
        }))
    }

    /// Joins the payloads of all requests. The delay of each request passes before the next is read, and a requested
    /// status ends the call at once.
    async fn client_stream(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<EchoResponse>, Status> {
        let metadata = received(request.metadata());
        let mut requests = request.into_inner();
        let mut joined = BytesMut::new();
        while let Some(request) = requests.message().await? {
            let valid = ValidRequest::read(request)?;
            valid.wait().await;
            valid.fail()?;
            let payload = valid.payload();
            if joined.len() + payload.len() > MAX_MESSAGE_BYTES {
                let text =
                    format!("the payloads together are larger than {MAX_MESSAGE_BYTES} bytes");
                return Err(Status::resource_exhausted(text));
            }
            joined.extend_from_slice(&payload);
        }
        Ok(Response::new(self.answer(joined.freeze(), &metadata)))
    }

    async fn bidi_stream(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Self::BidiStreamStream>, Status> {
        let metadata = received(request.metadata());
        let mut requests = request.into_inner();
        let echo = self.clone();
        Ok(spawn(|responses| async move {
            while let Some(request) = requests.message().await? {
                let valid = ValidRequest::read(request)?;
                valid.wait().await;
                valid.fail()?;
                if responses
                    .send(Ok(echo.answer(valid.payload(), &metadata)))
                    .await
                    .is_err()
                {
                    break;
                }
            }
            Ok(())
        }))
    }
}

/// Runs `body`, which fills the response stream; its error ends the stream. If the caller cancels, the receiver is
/// dropped, and with it the body.
fn spawn<F>(
    body: impl FnOnce(mpsc::Sender<Result<EchoResponse, Status>>) -> F,
) -> Response<Responses>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(WAITING_RESPONSES);
    let body = body(sender.clone());
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = body => ended,
            () = sender.closed() => return,
        };
        if let Err(status) = ended {
            let _ = sender.send(Err(status)).await;
        }
    });
    Response::new(Box::pin(ReceiverStream::new(receiver)))
}

/// A validated request.
struct ValidRequest {
    payload: Bytes,
    delay: Duration,
    status: Option<(Code, String)>,
    size: usize,
    count: u32,
}

impl ValidRequest {
    fn read(request: EchoRequest) -> Result<Self, Status> {
        let EchoRequest {
            payload,
            delay_ms,
            status_code,
            status_message,
            response_size,
            response_count,
        } = request;
        if delay_ms > MAX_DELAY_MS {
            let text = format!("delay_ms: {delay_ms} is more than {MAX_DELAY_MS}");
            return Err(Status::invalid_argument(text));
        }
        if response_size as usize > MAX_MESSAGE_BYTES {
            let text = format!("response_size: {response_size} is more than {MAX_MESSAGE_BYTES}");
            return Err(Status::invalid_argument(text));
        }
        let status = match status_code {
            0 => None,
            code @ 1..=16 => Some((Code::from(code.cast_signed()), status_message)),
            code => {
                let text = format!(
                    "status_code: {code} is not a gRPC status code; use 1 to 16 for an error, 0 \
                     for success"
                );
                return Err(Status::invalid_argument(text));
            }
        };
        Ok(Self {
            payload,
            delay: Duration::from_millis(delay_ms.into()),
            status,
            size: response_size as usize,
            count: response_count,
        })
    }

    async fn wait(&self) {
        if !self.delay.is_zero() {
            sleep(self.delay).await;
        }
    }

    fn fail(&self) -> Result<(), Status> {
        match &self.status {
            Some((code, message)) => Err(Status::new(*code, message.clone())),
            None => Ok(()),
        }
    }

    /// The request's payload, or zeros if a size is given.
    fn payload(&self) -> Bytes {
        match self.size {
            0 => self.payload.clone(),
            size => vec![0; size].into(),
        }
    }
}

/// All metadata as received: several values of a key are joined by commas, as gRPC reads them; binary values are in
/// base64.
fn received(metadata: &MetadataMap) -> HashMap<String, String> {
    let mut all: HashMap<String, String> = HashMap::new();
    for entry in metadata.iter() {
        let (key, value) = match entry {
            KeyAndValueRef::Ascii(key, value) => (
                key.as_str(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            ),
            KeyAndValueRef::Binary(key, value) => {
                let value = match value.to_bytes() {
                    Ok(bytes) => STANDARD.encode(bytes),
                    Err(_) => String::from_utf8_lossy(value.as_encoded_bytes()).into_owned(),
                };
                (key.as_str(), value)
            }
        };
        all.entry(key.to_owned())
            .and_modify(|joined| {
                joined.push(',');
                joined.push_str(&value);
            })
            .or_insert(value);
    }
    all
}
