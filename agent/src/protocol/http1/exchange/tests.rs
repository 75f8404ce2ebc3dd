//! Long bodies and heads, which are too large for vectors.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::protocol::Address;
use crate::protocol::http1::HEAD_LIMIT;
use crate::span::{Kind, attribute};

const GIGABYTE: u64 = 1 << 30;

fn session() -> Http1 {
    let address = Address::Inet {
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 80,
    };
    let (local, peer) = (address.clone(), address);
    Http1::new(Endpoint {
        kind: Kind::Server,
        local,
        peer,
        complete: true,
        encrypted: false,
    })
}

fn feed(session: &mut Http1, flow: Flow, data: &[u8], time_ns: u64) {
    session.handle(
        flow,
        Input::Bytes {
            data,
            position: 0,
            time_ns,
            turn_start: true,
        },
    );
}

fn skip(session: &mut Http1, length: u64, last_ns: u64, tail: [u8; 8]) {
    let input = Input::Skipped {
        length,
        position: 0,
        last_ns,
        tail,
    };
    session.handle(Flow::Response, input);
}

/// End of the only finished exchange, and its response size if known.
fn finished(session: &mut Http1) -> Option<(u64, Option<String>)> {
    std::iter::from_fn(|| session.poll()).find_map(|progress| match progress {
        Progress::Finished {
            end_ns, details, ..
        } => {
            let size = attribute::find(&details.attributes, "http.response.body.size")
                .map(|size| format!("{size:?}"));
            Some((end_ns, size))
        }
        _ => None,
    })
}

/// A gigabyte by length: exactly the missing bytes are awaited, and the last one ends it.
#[test]
fn a_long_response_is_awaited_by_length() {
    let mut session = session();
    feed(
        &mut session,
        Flow::Request,
        b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
        100,
    );
    assert_eq!(session.awaited(Flow::Response), None);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {GIGABYTE}\r\n\r\n0123456789");
    feed(&mut session, Flow::Response, head.as_bytes(), 200);
    assert_eq!(session.awaited(Flow::Request), None);
    assert_eq!(
        session.awaited(Flow::Response),
        Some(Awaited::Bytes(GIGABYTE - 10))
    );
    skip(&mut session, GIGABYTE - 11, 300, *b"abcdefgh");
    assert_eq!(session.awaited(Flow::Response), Some(Awaited::Bytes(1)));
    assert_eq!(finished(&mut session), None);
    skip(&mut session, 1, 400, *b"bcdefghi");
    assert_eq!(session.awaited(Flow::Response), None);
    assert_eq!(
        finished(&mut session),
        Some((400, Some(format!("Int({GIGABYTE})"))))
    );
}

/// A gigabyte in chunks whose sizes were not captured: the tail proves the end, nothing less.
#[test]
fn a_long_chunked_response_ends_by_its_tail() {
    let mut session = session();
    feed(
        &mut session,
        Flow::Request,
        b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
        100,
    );
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8000\r\nxyz";
    feed(&mut session, Flow::Response, head, 200);
    assert_eq!(session.awaited(Flow::Response), Some(Awaited::End));
    skip(&mut session, GIGABYTE / 2, 300, [0; 8]);
    assert_eq!(session.awaited(Flow::Response), Some(Awaited::End));
    assert_eq!(finished(&mut session), None);
    skip(&mut session, GIGABYTE / 2, 400, *b"z\r\n0\r\n\r\n");
    assert_eq!(finished(&mut session), Some((400, None)));
    assert_eq!(session.awaited(Flow::Response), None);
}

/// Without a known tail, the next request's turn proves the end, with the time of the last
/// byte that is known.
#[test]
fn a_long_chunked_response_ends_by_the_next_turn() {
    let mut session = session();
    feed(
        &mut session,
        Flow::Request,
        b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n",
        100,
    );
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8000\r\nxyz";
    feed(&mut session, Flow::Response, head, 200);
    skip(&mut session, GIGABYTE, 300, [0; 8]);
    assert_eq!(finished(&mut session), None);
    feed(
        &mut session,
        Flow::Request,
        b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n",
        900,
    );
    assert_eq!(finished(&mut session), Some((300, None)));
}

/// Of a head beyond the limit what was kept is used, and its response still finishes it.
#[test]
fn an_endless_head_is_cut_at_the_limit() {
    let mut session = session();
    let head = format!(
        "GET /x HTTP/1.1\r\nHost: a\r\nX: {}",
        "h".repeat(2 * HEAD_LIMIT)
    );
    feed(&mut session, Flow::Request, head.as_bytes(), 100);
    assert!(session.requests.partial_head().is_empty());
    feed(
        &mut session,
        Flow::Response,
        b"HTTP/1.1 431 X\r\nContent-Length: 0\r\n\r\n",
        200,
    );
    assert_eq!(
        finished(&mut session),
        Some((200, Some("Int(0)".to_owned())))
    );
}
