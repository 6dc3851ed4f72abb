//! Metadata comes as it was sent: order, duplicates and `-bin` values. Field blocks by hand go in on both ends, since maps
//! of headers group names and cannot see order.

use heddle_h2::Fields;
use heddle_h2::hpack::Decoder;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::link_faults::*;
use crate::rig::*;

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

fn by_hand(socket: TcpStream) -> Link {
    Link {
        socket,
        decoder: Decoder::new(4096),
    }
}

/// The next field block.
async fn fields(link: &mut Link) -> Fields {
    loop {
        let frame = link.frame().await.expect("the connection lives");
        if frame.kind == HEADERS {
            return link.decode(&frame);
        }
    }
}

/// Takes one call, answers it with the same fields in headers and trailers, and gives those that came.
async fn answer(listener: TcpListener) -> Vec<(String, String)> {
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut preface = [0; 24];
    socket.read_exact(&mut preface).await.unwrap();
    let mut link = by_hand(socket);
    link.send(&frame(SETTINGS, 0, 0, &[])).await;
    let request = mixed(&fields(&mut link).await);
    let head = with(&[(":status", "200"), ("content-type", "application/grpc")]);
    link.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    let trailers = with(&[("grpc-status", "0")]);
    let end = END_HEADERS | END_STREAM;
    link.send(&frame(HEADERS, end, 1, &trailers)).await;
    // Open until the other side has all of it and goes.
    while link
        .socket
        .read(&mut preface)
        .await
        .is_ok_and(|len| len > 0)
    {}
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_keeps_its_order_and_every_value() {
    for way in ["one hop", "two hops"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (a, b) = (Node::start("a"), Node::start("b"));
        b.publish(vec![on_b("e1", address)]);
        a.publish(vec![match way {
            "one hop" => echo(vec![local("e1", address)]),
            _ => remote("e1", &b),
        }]);
        let backend = tokio::spawn(answer(listener));

        let mut caller = by_hand(TcpStream::connect(a.outbound).await.unwrap());
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
        let request = with(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/test.Echo/Put"),
            (":authority", "echo.default"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]);
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &request));
        bytes.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
        caller.send(&bytes).await;
        let sent = MIXED.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(mixed(&fields(&mut caller).await), sent, "{way}: headers");
        assert_eq!(mixed(&fields(&mut caller).await), sent, "{way}: trailers");
        drop((caller, a, b));
        assert_eq!(within(backend).await.unwrap(), sent, "{way}: request");
    }
}
