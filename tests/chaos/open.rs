//! A stream of calls that stays open over a fault: it stands on one instance, and either goes on there or is lost. And
//! how a proxy is seen to stop, which lets open streams go on.

use heddle_proto::echo::v1::{EchoRequest, EchoResponse};
use heddle_tests::echo::{Failed, echo, payload};
use heddle_tests::mesh::Mesh;
use heddle_tests::until::{seen, until};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// A stream that is open on an instance, as that instance itself has answered.
pub(crate) struct Open {
    pub(crate) instance: String,
    send: mpsc::Sender<EchoRequest>,
    answers: Streaming<EchoResponse>,
}

impl Open {
    pub(crate) async fn through(channel: Channel) -> Self {
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

    /// It goes on where it was, and ends well.
    pub(crate) async fn goes_on(mut self) {
        self.send.send(payload("second")).await.unwrap();
        let second = self.answers.message().await.expect("an answer").unwrap();
        assert_eq!(second.payload, "second");
        assert_eq!(second.instance, self.instance);
        drop(self.send);
        assert!(self.answers.message().await.expect("an end").is_none());
    }

    /// It is lost, and says why.
    pub(crate) async fn fails(mut self) -> Failed {
        let answer = self.answers.message().await;
        Failed::from(&answer.expect_err("the stream is lost"))
    }
}

/// Awaits that a node's proxy that was told to stop has begun to.
pub(crate) async fn takes_no_callers(mesh: &Mesh, node: &str) {
    let outbound = mesh.node(node).outbound;
    until(&format!("node {node} takes no more callers"), async || {
        let connected = TcpStream::connect(outbound).await;
        seen(connected.is_err(), "it takes one")
    })
    .await;
}
