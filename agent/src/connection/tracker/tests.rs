//! One connection under all that can happen to its records. The protocol is HTTP/1.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::{connection::beginning::KEPT, event::Pieces, protocol::Progress, span::attribute};

const PROCESS: ProcessId = ProcessId {
    pid: 10,
    start_ticks: 5,
};
const UNIT: Unit = Unit {
    process: PROCESS,
    thread_id: 11,
};
const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const LONG_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";

fn endpoints(port: u16) -> Endpoints {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Endpoints::Inet {
        local: (address, 80),
        remote: (address, port),
        network_namespace: 1,
    }
}

fn connection(role: Role) -> Connection {
    Connection::new(UNIT, endpoints(4_000), role, 0)
}

fn flowed(position: u64, last_ns: u64) -> DirectionState {
    DirectionState {
        position,
        last_ns,
        tail: [0; 8],
    }
}

/// A record of bytes that begin a turn on a connection seen from its first byte.
fn data(direction: Direction, position: u64, bytes: &[u8]) -> Data<'_> {
    Data {
        unit: UNIT,
        task: None,
        task_ids: None,
        descriptor: None,
        connection: crate::event::ConnectionId(1),
        endpoints: endpoints(4_000),
        role: Role::Unknown,
        direction,
        position,
        original_length: bytes.len() as u32,
        tcp_sequence: 0,
        turn_start: true,
        non_blocking: false,
        polled: false,
        complete: true,
        end_of_stream: false,
        plaintext: false,
        bytes,
        further: Pieces::default(),
        tail: [0; 8],
        other_flow: flowed(0, 0),
    }
}

fn inbound(position: u64, bytes: &[u8]) -> Data<'_> {
    data(Direction::Inbound, position, bytes)
}

fn outbound(position: u64, bytes: &[u8]) -> Data<'_> {
    data(Direction::Outbound, position, bytes)
}

/// What was learned, in short.
fn learned(connection: &mut Connection) -> Vec<String> {
    let told =
        std::iter::from_fn(|| connection.poll()).map(|observation| match observation.progress {
            Progress::RequestStarted { time_ns, .. } => format!("started {time_ns}"),
            Progress::RequestHead { .. } => "head".to_owned(),
            Progress::ResponseStarted { time_ns, .. } => format!("answered {time_ns}"),
            Progress::Finished {
                end_ns, details, ..
            } => {
                let of = |key| attribute::find(&details.attributes, key);
                let text = |key| of(key).map(|found| format!(" {found:?}"));
                let all = [
                    attribute::HTTP_RESPONSE_STATUS_CODE,
                    attribute::ERROR_TYPE,
                    attribute::UNOBSERVED,
                ]
                .map(|key| text(key).unwrap_or_default());
                format!("finished {end_ns}{}", all.concat())
            }
        });
    told.collect()
}

#[test]
fn a_request_and_its_answer() {
    let mut connection = connection(Role::Server);
    connection.handle_data(&inbound(0, REQUEST), 10);
    assert_eq!(learned(&mut connection), ["started 10", "head"]);
    connection.handle_data(&outbound(0, RESPONSE), 20);
    assert_eq!(
        learned(&mut connection),
        ["answered 20", "finished 20 Int(200)"]
    );
    assert!(!connection.is_waiting());
}

/// The end of a long response is only in the kernel's counts; the time is that of its last byte.
#[test]
fn an_uncaptured_end_comes_with_the_counts() {
    let mut connection = connection(Role::Server);
    connection.handle_data(&inbound(0, REQUEST), 10);
    connection.handle_data(&outbound(0, LONG_HEAD), 20);
    assert!(connection.is_waiting());
    assert_eq!(
        connection.awaited(Direction::Outbound),
        Some(Awaited::Bytes(1_000))
    );
    let length = LONG_HEAD.len() as u64;
    let read = flowed(REQUEST.len() as u64, 10);
    connection.handle_counts([&read, &flowed(length + 400, 30)]);
    assert_eq!(
        connection.awaited(Direction::Outbound),
        Some(Awaited::Bytes(600))
    );
    connection.handle_counts([&read, &flowed(length + 1_000, 40)]);
    assert_eq!(learned(&mut connection)[3..], ["finished 40 Int(200)"]);
    assert!(!connection.is_waiting());
    assert_eq!(
        connection.last_ns, 40,
        "bytes that flow uncaptured keep it alive"
    );
}

/// The next request tells how far the answer before it had come.
#[test]
fn the_other_flow_is_caught_up_before_a_turn() {
    let mut connection = connection(Role::Server);
    connection.handle_data(&inbound(0, REQUEST), 10);
    connection.handle_data(&outbound(0, LONG_HEAD), 20);
    learned(&mut connection);
    let end = LONG_HEAD.len() as u64 + 1_000;
    let next = Data {
        other_flow: flowed(end, 30),
        ..inbound(REQUEST.len() as u64, REQUEST)
    };
    connection.handle_data(&next, 50);
    assert_eq!(
        learned(&mut connection),
        ["finished 30 Int(200)", "started 50", "head"]
    );
}

/// Scenario: the first record of a turn is lost, and with it what flowed the other way.
/// Guarantee: the answer to a request that was not seen does not end the one before it.
#[test]
fn a_later_record_of_a_turn_catches_up_too() {
    let mut client = connection(Role::Client);
    client.handle_data(&outbound(0, REQUEST), 10);
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe";
    client.handle_data(
        &Data {
            other_flow: flowed(28, 10),
            ..inbound(0, head)
        },
        20,
    );
    learned(&mut client);
    // Lost: the rest of the response, another request, and the head of its response.
    let late = Data {
        turn_start: false,
        other_flow: flowed(2 * REQUEST.len() as u64, 100),
        ..inbound(300, b"0\r\n\r\n")
    };
    client.handle_data(&late, 110);
    let told = learned(&mut client);
    assert_eq!(told, ["finished 20 Int(200) String(\"response_end\")"]);
}

/// Bytes that are known already are not handed on, and what follows them begins no turn.
#[test]
fn overlapping_records_are_read_once() {
    let mut connection = connection(Role::Server);
    connection.handle_data(&inbound(0, REQUEST), 10);
    connection.handle_data(&inbound(0, REQUEST), 11);
    assert_eq!(learned(&mut connection), ["started 10", "head"]);
    let twice = [REQUEST, REQUEST].concat();
    connection.handle_data(&inbound(0, &twice), 12);
    assert_eq!(learned(&mut connection), ["started 12", "head"]);
}

/// Positions at the end of their range are no overflow.
#[test]
fn extreme_positions_do_not_overflow() {
    let mut connection = connection(Role::Server);
    for position in [0, u64::MAX - 3, u64::MAX, 1] {
        let original_length = u32::MAX;
        let extreme = Data {
            original_length,
            ..inbound(position, REQUEST)
        };
        connection.handle_data(&extreme, u64::MAX);
        connection.handle_counts([&flowed(u64::MAX, u64::MAX), &flowed(u64::MAX, 0)]);
        connection.handle_tick(u64::MAX);
    }
}

/// Which side closed first decides whose failure an unanswered request is.
#[test]
fn the_order_of_closing_decides() {
    let server_left = "finished 30 String(\"connection_closed\")";
    let client_left = "finished 30 String(\"response\")";
    let table = [
        (Role::Server, ClosingStep::LocalClosed, server_left),
        (Role::Server, ClosingStep::RemoteClosed, client_left),
        (Role::Client, ClosingStep::RemoteClosed, server_left),
    ];
    for (role, first, expected) in table {
        let mut connection = connection(role);
        let request = match role {
            Role::Client => outbound(0, REQUEST),
            _ => inbound(0, REQUEST),
        };
        connection.handle_data(&request, 10);
        let counts = [request.direction, request.direction.opposite()].map(|direction| {
            flowed(
                if direction == Direction::Inbound {
                    REQUEST.len() as u64
                } else {
                    0
                },
                10,
            )
        });
        let counts = if role == Role::Client {
            [flowed(0, 0), flowed(REQUEST.len() as u64, 10)]
        } else {
            counts
        };
        let [one, two] = &counts;
        connection.handle_closing(first, 0, [one, two], 30);
        connection.handle_closing(ClosingStep::Destroyed, 0, [one, two], 30);
        let told = learned(&mut connection);
        assert_eq!(
            told.last().map(String::as_str),
            Some(expected),
            "{role:?} {first:?}: {told:?}"
        );
    }
}

/// A broken connection still hands over what had come before; after a grace it is given up, and
/// nothing that comes later begins anything.
#[test]
fn bytes_after_an_abort_count_until_the_end() {
    let read = flowed(REQUEST.len() as u64, 10);
    let none = flowed(0, 0);
    let mut broken = connection(Role::Client);
    broken.handle_data(&outbound(0, REQUEST), 10);
    broken.handle_closing(ClosingStep::Aborted, 104, [&none, &read], 20);
    assert!(broken.is_breaking());
    broken.handle_data(
        &Data {
            other_flow: read,
            ..inbound(0, RESPONSE)
        },
        25,
    );
    assert_eq!(
        learned(&mut broken)[2..],
        ["answered 25", "finished 25 Int(200)"]
    );

    let mut silent = connection(Role::Client);
    silent.handle_data(&outbound(0, REQUEST), 10);
    silent.handle_closing(ClosingStep::Aborted, 104, [&none, &read], 20);
    silent.handle_tick(20 + ABORT_GRACE_NS);
    assert_eq!(learned(&mut silent), ["started 10", "head"]);
    silent.handle_tick(21 + ABORT_GRACE_NS);
    assert_eq!(
        learned(&mut silent),
        ["finished 20 String(\"connection_reset\")"]
    );
    assert!(!silent.is_breaking());
    silent.handle_data(&outbound(REQUEST.len() as u64, REQUEST), 2 * ABORT_GRACE_NS);
    silent.handle_closing(
        ClosingStep::Destroyed,
        104,
        [&none, &read],
        3 * ABORT_GRACE_NS,
    );
    assert_eq!(learned(&mut silent), [""; 0]);
}

/// A timeout of the kernel is told apart from a reset.
#[test]
fn a_timeout_is_told() {
    let mut connection = connection(Role::Client);
    connection.handle_data(&outbound(0, REQUEST), 10);
    let counts = [&flowed(0, 0), &flowed(REQUEST.len() as u64, 10)];
    connection.handle_closing(ClosingStep::Aborted, ETIMEDOUT, counts, 20);
    connection.handle_lost(30);
    assert_eq!(
        learned(&mut connection)[2..],
        ["finished 20 String(\"timeout\")"]
    );
}

/// Which end we are follows from the bytes, and stays so when the session is over.
#[test]
fn an_unknown_role_is_found_out() {
    let mut server = connection(Role::Unknown);
    assert_eq!(server.kind(), None);
    server.handle_data(&inbound(0, REQUEST), 10);
    assert_eq!(server.kind(), Some(Kind::Server));

    let mut client = connection(Role::Unknown);
    client.handle_data(&outbound(0, REQUEST), 10);
    assert_eq!(client.kind(), Some(Kind::Client));
    let switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n";
    client.handle_data(
        &Data {
            other_flow: flowed(28, 10),
            ..inbound(0, switched)
        },
        20,
    );
    assert_eq!(
        learned(&mut client).last().map(String::as_str),
        Some("finished 20 Int(101)")
    );
    assert_eq!(client.kind(), Some(Kind::Client), "as it was");
}

/// A request in pieces of one byte is the same request, with the time of its first byte.
#[test]
fn single_bytes_are_kept_until_they_tell() {
    let mut connection = connection(Role::Unknown);
    for (index, byte) in REQUEST.iter().enumerate() {
        let piece = std::slice::from_ref(byte);
        let record = Data {
            turn_start: index == 0,
            ..inbound(index as u64, piece)
        };
        connection.handle_data(&record, 10 + index as u64);
    }
    assert_eq!(learned(&mut connection), ["started 10", "head"]);
}

/// Scenario: the program reads in ways whose bytes cannot be captured. Guarantee: what is kept
/// for it is bounded.
#[test]
fn what_is_kept_undecided_is_bounded() {
    let mut connection = connection(Role::Unknown);
    for turn in 0..5_000 {
        let inbound = Data {
            original_length: 10,
            ..inbound(turn * 10, b"")
        };
        connection.handle_data(&inbound, turn);
        let kept = match &connection.understanding {
            Understanding::Undecided(undecided) => undecided.kept.len(),
            _ => 0,
        };
        assert!(kept <= KEPT, "{kept} kept");
    }
}

/// Scenario: one direction ends before it is known what the connection speaks. Guarantee: the
/// exchange that shows then still ends.
#[test]
fn an_end_before_the_protocol_is_known_is_told() {
    let mut client = connection(Role::Client);
    let ended = Data {
        end_of_stream: true,
        turn_start: false,
        ..inbound(0, b"")
    };
    client.handle_data(&outbound(0, b"G"), 5);
    client.handle_data(&ended, 10);
    let rest = Data {
        turn_start: false,
        ..outbound(1, &REQUEST[1..])
    };
    client.handle_data(&rest, 20);
    let counts = [&flowed(0, 0), &flowed(REQUEST.len() as u64, 20)];
    client.handle_closing(ClosingStep::Destroyed, 0, counts, 30);
    let told = learned(&mut client);
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[2].starts_with("finished"), "{told:?}");
}

/// An identity that comes back with other ends, or counted anew, is another connection.
#[test]
fn reuse_of_an_identity_shows() {
    let mut known = connection(Role::Server);
    known.handle_data(&inbound(0, REQUEST), 10);
    let next = inbound(REQUEST.len() as u64, REQUEST);
    assert!(!known.is_replaced_by(&next));
    let end = Data {
        end_of_stream: true,
        turn_start: false,
        ..inbound(0, b"")
    };
    assert!(!known.is_replaced_by(&end));
    assert!(known.is_replaced_by(&Data {
        endpoints: endpoints(4_001),
        ..next.clone()
    }));
    assert!(known.is_replaced_by(&Data {
        complete: false,
        ..next
    }));
    assert!(known.is_replaced_by(&inbound(0, REQUEST)));

    let unix = |local, remote| Endpoints::Unix { local, remote };
    let known = Connection::new(UNIT, unix(1, 0), Role::Unknown, 0);
    assert!(
        !known.is_elsewhere(unix(1, 2)),
        "an end that was not known differs from nothing"
    );
    assert!(known.is_elsewhere(unix(3, 2)));
    assert!(known.is_elsewhere(endpoints(1)));
}

/// Scenario: a request asks for HTTP/2 and gets it; the first bytes of HTTP/2 come in one call with
/// the answer (RFC 7540, section 3.2). Guarantee: the switch ends the span of HTTP/1, and what
/// follows is understood as HTTP/2, in which exchanges run side by side.
#[test]
fn an_upgrade_to_http2_is_followed() {
    let ask = b"GET /a HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\n\r\n";
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let mut connection = connection(Role::Server);
    connection.handle_data(&inbound(0, ask), 10);
    assert!(!connection.is_multiplexed());
    connection.handle_data(&outbound(0, answer), 20);
    assert_eq!(
        learned(&mut connection),
        ["started 10", "head", "answered 20", "finished 20 Int(101)"]
    );
    assert!(connection.is_multiplexed());
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    connection.handle_data(&inbound(ask.len() as u64, preface), 30);
    // The answer to the request that asked, then a request of HTTP/2 and its answer.
    let first = b"\0\0\x01\x01\x05\0\0\0\x01\x88";
    let mut position = answer.len() as u64;
    let request = b"\0\0\x03\x01\x05\0\0\0\x03\x82\x86\x84";
    let after_preface = (ask.len() + preface.len()) as u64;
    let answered = Data {
        // Of the request that another thread reads meanwhile: counted, and not recorded, yet.
        other_flow: flowed(after_preface + request.len() as u64, 35),
        ..outbound(position, first)
    };
    connection.handle_data(&answered, 40);
    assert_eq!(learned(&mut connection), [""; 0]);
    connection.handle_data(&inbound(after_preface, request), 50);
    position += first.len() as u64;
    let second = b"\0\0\x01\x01\x05\0\0\0\x03\x8d";
    connection.handle_data(&outbound(position, second), 60);
    assert_eq!(
        learned(&mut connection),
        ["started 50", "head", "answered 60", "finished 60 Int(404)"]
    );
    assert_eq!(connection.take_shortfall(), Shortfall::default());
}

/// Scenario: the head of a request goes beyond what was captured of its call. Guarantee: the
/// request that was seen in part is told with the record it came in, so that both ends can be
/// matched.
#[test]
fn a_request_cut_by_the_capture_has_an_origin() {
    let mut connection = connection(Role::Server);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    connection.handle_data(&inbound(0, preface), 10);
    let head = b"\0\0\x40\x01\x05\0\0\0\x01\x82\x86\x84";
    let mut record = inbound(preface.len() as u64, head);
    record.tcp_sequence = 700;
    record.original_length = 9 + 0x40;
    connection.handle_data(&record, 20);
    let observation = connection.poll().expect("the request has begun");
    let position = preface.len() as u64;
    let started = Progress::RequestStarted {
        exchange: 0,
        stream: Some(1),
        position,
        time_ns: 20,
    };
    assert_eq!(observation.progress, started);
    let origin = observation.origin.expect("it came in a record");
    assert_eq!(origin.sequence_at(position), 700);
}

/// Scenario: three pipelined requests leave in one call, and a header of ours is put into each of
/// them, which TCP counts. Guarantee: each has the sequence number of its first byte on the wire.
#[test]
fn sequence_numbers_of_requests_with_headers_of_ours() {
    const HEADER: u32 = 70;
    let length = REQUEST.len() as u32;
    let bytes = REQUEST.repeat(3);
    let mut connection = connection(Role::Client);
    for number in 1..=3 {
        // Before the empty line that ends the head.
        let place = u64::from(number * length - 2);
        connection.handle_added(place, HEADER, Place::Before);
    }
    // The record says what TCP has counted, less what the program was told.
    let first = 1_000_000;
    connection.handle_data(
        &Data {
            role: Role::Client,
            tcp_sequence: first + 3 * HEADER,
            ..outbound(0, &bytes)
        },
        1,
    );
    let starts: Vec<u32> = std::iter::from_fn(|| connection.poll())
        .filter_map(|observation| match observation.progress {
            Progress::RequestStarted { position, .. } => {
                Some(observation.origin?.sequence_at(position))
            }
            _ => None,
        })
        .collect();
    let expected = [0, 1, 2].map(|number| first + number * (length + HEADER));
    assert_eq!(starts, expected);
}

/// Scenario: three requests of HTTP/2 leave in one call with content between them that is not
/// captured, in two records, and a field of ours is added to each. Guarantee: as above.
#[test]
fn sequence_numbers_of_streams_with_fields_of_ours() {
    const FIELD: u32 = 69;
    const CONTENT: u32 = 1_000;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".as_slice();
    // Each request's head, and the header of a frame of content behind it.
    let request = |stream: u8| {
        let head = [
            b"\0\0\x04\x01\x04\0\0\0".as_slice(),
            &[stream],
            b"\x82\x86\x84\x81",
        ];
        let content = [&[0, 3, 232, 0, 0, 0, 0, 0][..], &[stream]];
        [head.concat(), content.concat()].concat()
    };
    let length = 22 + CONTENT;
    let begin = preface.len() as u32;
    let starts = [0, 1, 2].map(|number| begin + number * length);
    let mut connection = connection(Role::Client);
    for start in starts {
        connection.handle_added(u64::from(start + 13), FIELD, Place::Behind);
    }
    let first = 1_000_000;
    let told = first + 3 * FIELD;
    let all_bytes = begin + 3 * length;
    let piece = |offset: u32, bytes: &[u8]| {
        let head = u64::from(bytes.len() as u32) << 32 | u64::from(offset);
        [&head.to_le_bytes(), bytes].concat()
    };
    let further = piece(starts[1], &request(3));
    let beginning = [preface, &request(1)].concat();
    connection.handle_data(
        &Data {
            role: Role::Client,
            tcp_sequence: told,
            original_length: starts[2],
            further: Pieces::new(&further, starts[2]).expect("one piece"),
            ..outbound(0, &beginning)
        },
        1,
    );
    let last = request(5);
    connection.handle_data(
        &Data {
            role: Role::Client,
            tcp_sequence: told + starts[2],
            original_length: all_bytes - starts[2],
            ..outbound(starts[2].into(), &last)
        },
        2,
    );
    let found: Vec<u32> = std::iter::from_fn(|| connection.poll())
        .filter_map(|observation| match observation.progress {
            Progress::RequestStarted { position, .. } => {
                Some(observation.origin?.sequence_at(position))
            }
            _ => None,
        })
        .collect();
    let expected = [0, 1, 2].map(|number| first + begin + number * (length + FIELD));
    assert_eq!(found, expected);
}
