//! Metadata keeps its order, duplicates and `-bin` values. Field blocks are written by hand on both ends, because
//! header maps group names and lose the order.

use std::sync::Arc;

use heddle_h2::Fields;
use tokio::net::TcpListener;

use crate::fixture::*;
use crate::wire::*;

/// Names that take turns, in no order that sorting gives, one of them with a list of binary values.
const MIXED: [Pair; 7] = [
    ("x-b", "1"),
    ("x-a", "2"),
    ("x-b", "3"),
    ("x-c-bin", "AQID,BA"),
    ("x-a", "4"),
    ("x-c-bin", "AA"),
    ("x-b", "1"),
];

fn with(first: &[Pair]) -> Vec<u8> {
    block(&[first, &MIXED].concat())
}

fn mixed(fields: &Fields) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let all = fields.iter().map(|it| (text(it.name), text(it.value)));
    all.filter(|(name, _)| name.starts_with("x-")).collect()
}

/// The next field block.
async fn fields(wire: &mut Wire) -> Fields {
    loop {
        let frame = wire.frame().await.expect("the connection lives");
        if frame.kind == HEADERS {
            return wire.decode(&frame);
        }
    }
}

/// Takes one call, answers it with the same fields in headers and trailers, and gives those that came.
async fn answer(listener: Arc<TcpListener>) -> Vec<(String, String)> {
    let mut wire = Wire::accept(&listener).await;
    let request = mixed(&fields(&mut wire).await);
    let head = with(&[(":status", "200"), ("content-type", "application/grpc")]);
    wire.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    let trailers = with(&[("grpc-status", "0")]);
    let end = END_HEADERS | END_STREAM;
    wire.send(&frame(HEADERS, end, 1, &trailers)).await;
    // Open until the other side has all of it and goes.
    while wire.frame().await.is_some() {}
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_keeps_its_order_and_every_value() {
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
    for (way, nodes, service) in paths(listener.local_addr().unwrap()) {
        nodes[0].publish(vec![service]);
        let backend = tokio::spawn(answer(Arc::clone(&listener)));

        let mut caller = Wire::connect(nodes[0].outbound).await;
        caller
            .send(&frame(HEADERS, END_HEADERS, 1, &with(&CALL)))
            .await;
        caller.send(&frame(DATA, END_STREAM, 1, &[0; 5])).await;
        let sent = MIXED.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(mixed(&fields(&mut caller).await), sent, "{way}: headers");
        assert_eq!(mixed(&fields(&mut caller).await), sent, "{way}: trailers");
        drop((caller, nodes));
        assert_eq!(within(backend).await.unwrap(), sent, "{way}: request");
    }
}
