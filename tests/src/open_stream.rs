//! A stream that stays open during a fault: it is on one instance, and either continues there or fails. Also how to see
//! that a proxy is stopping while open streams continue.

use std::time::Duration;

use heddle_proto::echo::v1::{EchoRequest, EchoResponse};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::echo::{Failed, echo, payload};
use crate::mesh::Mesh;
use crate::wait::{seen, until};

/// An open stream, and the instance that answered its first message.
pub struct OpenStream {
    pub instance: String,
    send: mpsc::Sender<EchoRequest>,
    answers: Streaming<EchoResponse>,
}

impl OpenStream {
    pub async fn start(channel: Channel) -> Self {
        let (send, requests) = mpsc::channel(1);
        send.send(payload("first")).await.unwrap();
        let mut client = echo(channel);
        let opened = client.bidi_stream(ReceiverStream::new(requests)).await;
        let mut answers = opened.expect("a stream").into_inner();
        let first = answers.message().await.expect("an answer").unwrap();
        Self {
            instance: first.instance,
            send,
            answers,
        }
    }

    /// It continues on the same instance and ends with OK.
    pub async fn continues(mut self) {
        self.send.send(payload("second")).await.unwrap();
        let second = self.answers.message().await.expect("an answer").unwrap();
        assert_eq!(second.payload, "second");
        assert_eq!(second.instance, self.instance);
        drop(self.send);
        assert!(self.answers.message().await.expect("an end").is_none());
    }

    /// A message that the instance answers only after this time: a call in flight all the while.
    pub async fn asks_for_an_answer_in(&self, delay: Duration) {
        let late = EchoRequest {
            delay_ms: u32::try_from(delay.as_millis()).unwrap(),
            ..payload("late")
        };
        self.send.send(late).await.unwrap();
    }

    /// The answer to that comes.
    pub async fn is_answered(&mut self) {
        let late = self.answers.message().await.expect("an answer").unwrap();
        assert_eq!(late.payload, "late");
    }

    /// It fails, with this error.
    pub async fn fails(mut self) -> Failed {
        let answer = self.answers.message().await;
        Failed::from(&answer.expect_err("the stream is lost"))
    }
}

/// Waits until a node's stopping proxy accepts no more connections.
pub async fn refuses_connections(mesh: &Mesh, node: &str) {
    let outbound = mesh.node(node).outbound;
    until(&format!("node {node} takes no more callers"), async || {
        let connected = TcpStream::connect(outbound).await;
        seen(connected.is_err(), "it takes one")
    })
    .await;
}
