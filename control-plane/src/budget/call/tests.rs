use std::{convert::Infallible, sync::atomic::Ordering};

use futures_util::stream;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use tonic::Code;

use super::*;

const LIMIT: usize = 128 << 20;

fn start(length: usize) -> Bytes {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    let mut bytes = vec![0];
    bytes.extend(length);
    bytes.extend([7; 100]);
    bytes.into()
}

fn inbound(
    account: &Account,
    budget: &Budget,
    data: Vec<Bytes>,
) -> Inbound<impl HttpBody<Data = Bytes, Error = Infallible> + Unpin + use<>> {
    let frames = data.into_iter().map(|data| Ok(Frame::data(data)));
    Inbound {
        body: StreamBody::new(stream::iter(frames)),
        message: Arc::new(Mutex::new(account.charge())),
        framing: Framing::default(),
        budget: budget.clone(),
    }
}

fn peer(host: u8) -> Peer {
    Peer::of(Some([10, 0, 0, host].into()))
}

#[test]
fn lengths_are_read_however_the_bytes_are_cut() {
    let mut wire = Vec::new();
    for length in [0, 3, 300, 70_000] {
        wire.push(0);
        wire.extend(u32::try_from(length).unwrap().to_be_bytes());
        wire.extend(vec![1; length]);
    }
    for cut in [1, 2, 5, 7, 1_000, wire.len()] {
        let (mut framing, mut seen) = (Framing::default(), Vec::new());
        for part in wire.chunks(cut) {
            let fed = framing.feed(part, |length| {
                seen.push(length);
                Ok(())
            });
            assert!(fed.is_ok());
        }
        assert_eq!(seen, [0, 3, 300, 70_000], "in parts of {cut}");
    }
}

/// Issue 10, D1: refused as soon as its length is known, before anything of it is buffered.
#[tokio::test]
async fn a_message_is_admitted_before_it_is_buffered() {
    let budget = Budget::new(LIMIT);
    let mut begun = Vec::new();
    let mut refused = None;
    for host in 0..9 {
        // One message of 15 MiB each, of which 100 bytes have arrived.
        let (account, charge) = budget.connect(peer(host / 3)).unwrap();
        let mut body = inbound(&account, &budget, vec![start(15 << 20)]);
        match body.frame().await.unwrap() {
            Ok(_) => begun.push((body, charge)),
            Err(error) => {
                refused = Some(Status::from_error(error));
                break;
            }
        }
    }
    let refused = refused.unwrap();
    assert_eq!((begun.len(), refused.code()), (2, Code::ResourceExhausted));
    let text = refused.message();
    assert!(text.contains("clients of 10.0.0.0 hold 90."), "{text}");
    assert!(text.contains("of the 128.0 MiB"), "{text}");
    assert!(text.contains("--client-memory"), "{text}");
    assert_eq!(budget.refused().messages.load(Ordering::Relaxed), 1);

    let (account, charge) = budget.connect(peer(5)).unwrap();
    let mut small = inbound(&account, &budget, vec![start(1 << 20), start(9)]);
    assert!(
        small.frame().await.unwrap().is_ok(),
        "another peer finds room"
    );
    drop((begun, small, charge, account));
    assert_eq!(
        budget.figures(),
        (LIMIT, 0, 0),
        "nothing is held for those that went"
    );
}

#[tokio::test]
async fn an_answer_counts_until_it_is_read_and_ends_with_a_status_over_the_bound() {
    let budget = Budget::new(LIMIT);
    let (account, _charge) = budget.connect(peer(1)).unwrap();
    let part = |bytes: usize| Ok::<_, Status>(Frame::data(Bytes::from(vec![0; bytes])));
    let outbound = |bytes: usize| Outbound {
        body: Body::new(StreamBody::new(stream::iter([part(bytes), part(1)]))),
        part: account.charge(),
        refused: false,
        first: None,
        budget: budget.clone(),
        _held: (account.charge(), Arc::new(Mutex::new(account.charge()))),
    };
    let mut slow = outbound(80 << 20);
    assert!(slow.frame().await.unwrap().unwrap().is_data());
    assert!(budget.figures().1 > 80 << 20);
    let mut second = outbound(40 << 20);
    let end = second.frame().await.unwrap().unwrap();
    let trailers = end.into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "8");
    assert!(second.frame().await.is_none() && second.is_end_stream());
    assert_eq!(budget.refused().answers.load(Ordering::Relaxed), 1);

    assert!(
        slow.frame().await.unwrap().unwrap().is_data(),
        "it was read"
    );
    let mut third = outbound(40 << 20);
    assert!(third.frame().await.unwrap().unwrap().is_data());
}

/// Issue 10, D1: neither one that does not end its request nor one that does not read keeps others waiting.
#[tokio::test]
async fn a_turn_waits_for_no_client() {
    let admission = Admission::new(Budget::new(LIMIT), MeshSize::default);
    let (account, _charge) = admission.connect(None).unwrap();
    let list = || Request::builder().uri("/heddle.registry.v1.Registry/ListInstances");
    let pending = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let request = list().body(Box::pin(pending)).unwrap();
    let mut silent = Box::pin(admission.call(account.clone(), request, Routes::default()));
    assert!(futures_util::poll!(&mut silent).is_pending());
    let mut unread = Vec::new();
    for _ in 0..10 {
        let request = list().body(Empty::new()).unwrap();
        let call = admission.call(account.clone(), request, Routes::default());
        unread.push(call.await.unwrap());
    }
    let long = list().body(http_body_util::Full::from(vec![0; SMALL_MESSAGE_BYTES + 1]));
    let call = admission.call(account.clone(), long.unwrap(), Routes::default());
    assert_eq!(call.await.unwrap().headers()["grpc-status"], "3");
}

/// The transport sees an answer that was encoded ahead exactly as any other.
#[tokio::test]
async fn what_was_encoded_ahead_is_charged_and_sent_once() {
    let budget = Budget::new(LIMIT);
    let (account, _charge) = budget.connect(peer(1)).unwrap();
    let idle = budget.figures().1;
    let part = |bytes: usize| Ok::<_, Status>(Frame::data(Bytes::from(vec![0; bytes])));
    let mut answer = Outbound {
        body: Body::new(StreamBody::new(stream::iter([
            part(SMALL_MESSAGE_BYTES + 1),
            part(5),
        ]))),
        part: account.charge(),
        refused: false,
        first: None,
        budget: budget.clone(),
        _held: (account.charge(), Arc::new(Mutex::new(account.charge()))),
    };
    answer.encode().await;
    assert!(!answer.is_end_stream());
    assert_eq!(budget.figures().1, idle + SMALL_MESSAGE_BYTES + 1);
    let sent = answer.collect().await.unwrap().to_bytes();
    assert_eq!(sent.len(), SMALL_MESSAGE_BYTES + 6);
    assert_eq!(budget.figures().1, idle);
}

#[tokio::test]
async fn calls_and_connections_are_admitted() {
    let budget = Budget::new(LIMIT);
    let admission = Admission::new(budget.clone(), || MeshSize {
        instances: 40_000,
        ..MeshSize::default()
    });
    let call = async |account: &Account, path: &str| {
        let request = Request::builder().uri(path).body(Empty::new()).unwrap();
        let routes = Routes::default();
        admission
            .call(account.clone(), request, routes)
            .await
            .unwrap()
    };
    let (account, _charge) = admission.connect(None).unwrap();
    let list = "/heddle.registry.v1.Registry/ListInstances";
    assert_ne!(call(&account, list).await.headers()["grpc-status"], "8");
    let mut held = account.charge();
    held.set("what it holds", 60 << 20).unwrap();
    // Another 40 MiB would exceed its share.
    assert_eq!(call(&account, list).await.headers()["grpc-status"], "8");
    assert_eq!(budget.refused().calls.load(Ordering::Relaxed), 1);
    let answer = call(&account, "/heddle.status.v1.MeshStatus/GetMesh").await;
    assert_ne!(answer.headers()["grpc-status"], "8", "it asks for little");
    drop(held);
    let connections: Vec<_> = (0..1_000)
        .map_while(|_| admission.connect(Some(([10, 0, 0, 1], 1).into())).ok())
        .collect();
    assert!(
        (390..415).contains(&connections.len()),
        "{}",
        connections.len()
    );
    assert_eq!(budget.refused().connections.load(Ordering::Relaxed), 1);
    assert!(admission.connect(Some(([10, 0, 0, 2], 1).into())).is_ok());
    drop(connections);
}
