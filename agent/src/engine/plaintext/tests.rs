//! What TLS sessions carry, through the whole engine; real ones are in `tests/tests/tls.rs`.

use std::sync::Arc;

use agent_common::{
    connection::{FAMILY_INET, PlaintextOpened, SocketAddresses, plaintext_identity},
    payload::{SocketData, flags},
    process::ExecutionUnit,
    record::{RecordHeader, RecordKind},
};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::super::{Command, Config, Engine};
use crate::{
    event::Role,
    self_metrics::SelfMetrics,
    span::{Kind, Span, attribute},
};

const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const CLIENT_PORT: u16 = 50_000;
const SERVER_PORT: u16 = 8_443;
/// Longer after an answer than its proof is waited for.
const LATE_NS: u64 = 2_000_000_000;
/// Where the client's direction began.
const ORIGIN: u32 = 7_000;

/// One end of a session.
#[derive(Clone, Copy)]
struct End {
    role: Role,
    carrier: u64,
    process_id: u32,
    origin: u32,
}

const CLIENT: End = End {
    role: Role::Client,
    carrier: 1,
    process_id: 10,
    origin: ORIGIN,
};
const SERVER: End = End {
    role: Role::Server,
    carrier: 2,
    process_id: 20,
    origin: ORIGIN,
};

impl End {
    fn unit(self) -> ExecutionUnit {
        ExecutionUnit {
            process_id: self.process_id,
            thread_id: self.process_id,
            process_start_ns: 0,
        }
    }

    fn addresses(self) -> SocketAddresses {
        let mut addresses = SocketAddresses::new_zeroed();
        addresses.family = FAMILY_INET;
        (addresses.local_port, addresses.remote_port) = match self.role {
            Role::Client => (CLIENT_PORT, SERVER_PORT),
            _ => (SERVER_PORT, CLIENT_PORT),
        };
        addresses
    }

    fn opened(self, time_ns: u64) -> Vec<u8> {
        let mut record = PlaintextOpened::new_zeroed();
        let length = size_of::<PlaintextOpened>();
        record.header = header(RecordKind::PlaintextOpened, length, time_ns);
        record.unit = self.unit();
        record.connection = plaintext_identity(self.carrier);
        record.carrier = self.carrier;
        record.addresses = self.addresses();
        record.origins = match self.role {
            Role::Client => [1, self.origin],
            _ => [self.origin, 1],
        };
        record.role = self.role as u8;
        record.as_bytes().to_vec()
    }

    /// A request or an answer; `known` says whether its connection has been told.
    fn data(self, bytes: &[u8], known: bool, time_ns: u64) -> Vec<u8> {
        let is_request = bytes == REQUEST;
        let mut record = SocketData::new_zeroed();
        let length = size_of::<SocketData>() + bytes.len();
        record.header = header(RecordKind::SocketData, length, time_ns);
        record.unit = self.unit();
        record.connection = plaintext_identity(self.carrier);
        if known {
            record.addresses = self.addresses();
            record.role = self.role as u8;
        }
        record.original_length = bytes.len() as u32;
        record.captured_length = record.original_length;
        record.flags = flags::TURN_START | flags::COMPLETE | flags::PLAINTEXT | flags::NON_BLOCKING;
        if is_request == (self.role == Role::Client) {
            record.flags |= flags::OUTBOUND;
        }
        if !is_request {
            record.other_flow.position = REQUEST.len() as u64;
        }
        [record.as_bytes(), bytes].concat()
    }
}

fn header(kind: RecordKind, length: usize, timestamp_ns: u64) -> RecordHeader {
    RecordHeader {
        kind: kind as u16,
        reserved: 0,
        length: length as u32,
        timestamp_ns,
    }
}

fn spans(records: &[Vec<u8>]) -> Vec<Span> {
    let mut engine = Engine::new(Config::default(), Arc::new(SelfMetrics::default()));
    for record in records {
        engine.handle_record(record);
    }
    engine.handle_tick(u64::MAX / 2);
    engine.take_spans()
}

fn of(spans: &[Span], kind: Kind) -> &Span {
    let mut found = spans.iter().filter(|span| span.kind == kind);
    found.next().expect("a span of this kind")
}

fn text(span: &Span, key: &str) -> String {
    let value = attribute::find(&span.attributes, key);
    value.map_or_else(String::new, |value| format!("{value:?}"))
}

/// Scenario: both ends of a session are on this host. Guarantee: https, the peers, and one trace by
/// the place in the plaintext; and two if the ends do not name the same place.
#[test]
fn both_ends_of_a_session_are_joined() {
    for (origin, is_joined) in [(ORIGIN, true), (ORIGIN + 1, false)] {
        let server = End { origin, ..SERVER };
        let spans = spans(&[
            CLIENT.opened(10),
            CLIENT.data(REQUEST, true, 10),
            server.opened(12),
            server.data(REQUEST, true, 12),
            server.data(RESPONSE, true, 14),
            CLIENT.data(RESPONSE, true, 16),
        ]);
        assert_eq!(spans.len(), 2, "{spans:#?}");
        let (client, server) = (of(&spans, Kind::Client), of(&spans, Kind::Server));
        assert_eq!(server.trace_id == client.trace_id, is_joined);
        assert_eq!(server.parent.is_some(), is_joined);
        assert_eq!(text(server, attribute::URL_SCHEME), "String(\"https\")");
        assert_eq!(text(client, attribute::URL_FULL), "String(\"https://h/a\")");
        assert_eq!(text(client, attribute::SERVER_PORT), "Int(443)");
        assert_eq!(text(client, attribute::NETWORK_PEER_PORT), "Int(8443)");
    }
}

/// Scenario: a program moves the encrypted bytes itself, so that a server's request is seen before
/// its connection is proven. Guarantee: its span has the peer, and is joined to the client's, if
/// the proof comes before the answer or right behind it; else it has none, but is there.
#[test]
fn a_request_waits_for_the_proof_of_its_connection() {
    let request = SERVER.data(REQUEST, false, 20);
    let answer = |is_known| SERVER.data(RESPONSE, is_known, 30);
    let elsewhere = End {
        carrier: 3,
        ..SERVER
    };
    let goes_on = in_plain_text(&elsewhere.data(REQUEST, true, 32));
    let proof = |time_ns| Some(SERVER.opened(time_ns));
    let table = [
        ([proof(25), Some(answer(true)), None], true),
        ([Some(answer(false)), proof(35), None], true),
        ([Some(answer(false)), None, None], false),
        ([Some(answer(false)), None, proof(LATE_NS)], false),
        // The thread does something else before: that is not the proof of this one.
        ([Some(answer(false)), Some(goes_on), proof(35)], false),
    ];
    for ([first, second, late], is_proven) in table {
        let mut engine = Engine::new(Config::default(), Arc::new(SelfMetrics::default()));
        let client = [CLIENT.opened(10), CLIENT.data(REQUEST, true, 10)];
        let begun = client.into_iter().chain([request.clone()]);
        for record in begun.chain(first).chain(second) {
            engine.handle_record(&record);
        }
        engine.handle_tick(LATE_NS);
        if let Some(record) = late {
            engine.handle_record(&record);
        }
        engine.handle_record(&CLIENT.data(RESPONSE, true, 40));
        engine.handle_tick(u64::MAX / 2);
        let spans = engine.take_spans();
        let (client, server) = (of(&spans, Kind::Client), of(&spans, Kind::Server));
        let port = text(server, attribute::NETWORK_PEER_PORT);
        assert_eq!(port, if is_proven { "Int(50000)" } else { "" });
        assert_eq!(server.trace_id == client.trace_id, is_proven);
        assert_eq!(
            text(server, attribute::HTTP_RESPONSE_STATUS_CODE),
            "Int(200)"
        );
        assert_eq!(text(server, attribute::URL_PATH), "String(\"/a\")");
        assert_eq!(text(server, attribute::URL_SCHEME), "String(\"https\")");
    }
}

/// Scenario: a client's request is seen before its connection is proven, or a session is older than
/// the agent. Guarantee: its answer is the last that is waited for, so that what the thread does
/// next is known to come later; a proof behind it is none.
#[test]
fn whose_answer_proves_nothing_does_not_wait() {
    let older = |bytes, time_ns| {
        let record = SERVER.data(bytes, false, time_ns);
        with_flags(&record, |flags| flags & !flags::COMPLETE)
    };
    let client = |is_known| CLIENT.data(RESPONSE, is_known, 20);
    let request = || CLIENT.data(REQUEST, false, 10);
    let table = [
        (
            vec![request(), CLIENT.opened(11), client(true)],
            "Int(8443)",
        ),
        (vec![request(), client(false)], ""),
        (vec![request(), client(false), CLIENT.opened(21)], ""),
        (vec![older(REQUEST, 10), older(RESPONSE, 20)], ""),
        (
            vec![older(REQUEST, 10), older(RESPONSE, 20), SERVER.opened(21)],
            "",
        ),
    ];
    for (records, port) in table {
        let mut engine = Engine::new(Config::default(), Arc::new(SelfMetrics::default()));
        for record in &records {
            engine.handle_record(record);
        }
        engine.handle_tick(400_000_000);
        let spans = engine.take_spans();
        assert_eq!(spans.len(), 1, "{spans:#?}");
        let [span] = spans.as_slice() else { return };
        assert_eq!(text(span, attribute::NETWORK_PEER_PORT), port);
        assert_eq!(text(span, attribute::HTTP_RESPONSE_STATUS_CODE), "Int(200)");
    }
}

/// Scenario: a session ends right behind its first answer, without a proof. Guarantee: its span is
/// there, and what was understood is judged before it is forgotten.
#[test]
fn a_session_that_ends_is_not_waited_for() {
    let mut engine = Engine::new(Config::default(), Arc::new(SelfMetrics::default()));
    engine.handle_record(&SERVER.data(REQUEST, false, 20));
    engine.handle_record(&SERVER.data(RESPONSE, false, 30));
    engine.handle_shutdown(40);
    assert_eq!(engine.take_spans().len(), 1);
    let mut commands = std::iter::from_fn(|| engine.poll_command());
    assert!(commands.any(|command| matches!(command, Command::NotePlaintext(_, true))));
}

/// The record as it is where no TLS library is between.
fn in_plain_text(record: &[u8]) -> Vec<u8> {
    with_flags(record, |flags| flags & !flags::PLAINTEXT)
}

fn with_flags(record: &[u8], change: impl Fn(u16) -> u16) -> Vec<u8> {
    let (mut head, rest) = zerocopy::FromBytes::read_from_prefix(record)
        .map(|(head, rest): (SocketData, &[u8])| (head, rest.to_vec()))
        .expect("a whole record");
    head.flags = change(head.flags);
    [head.as_bytes(), &rest].concat()
}

/// A handshake that is seen encrypted tells that a library is not known; plaintext that looks like
/// one does not.
#[test]
fn an_unknown_library_is_noticed() {
    const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01";
    for is_plaintext in [false, true] {
        let mut engine = Engine::new(Config::default(), Arc::new(SelfMetrics::default()));
        let mut record = CLIENT.data(HELLO, true, 10);
        if !is_plaintext {
            record = in_plain_text(&record);
        }
        engine.handle_record(&record);
        let mut commands = std::iter::from_fn(|| engine.poll_command());
        let is_told = commands.any(|command| matches!(command, Command::NoteTls(_)));
        assert_eq!(is_told, !is_plaintext);
    }
}

/// What a session carries is judged once, when it is known; what is in plain text is not.
#[test]
fn sessions_are_judged_once() {
    const OTHER: &[u8] = b"\x10\x0c\0\x04MQTT";
    for (first, expected) in [(REQUEST, Some(true)), (OTHER, Some(false))] {
        for is_plaintext in [true, false] {
            let mut engine = Engine::new(Config::default(), Arc::new(SelfMetrics::default()));
            if is_plaintext {
                engine.handle_record(&SERVER.opened(10));
            }
            let mut judged = Vec::new();
            for (bytes, time_ns) in [(first, 12), (RESPONSE, 14)] {
                let mut record = SERVER.data(bytes, true, time_ns);
                if !is_plaintext {
                    record = in_plain_text(&record);
                }
                engine.handle_record(&record);
                judged.extend(
                    std::iter::from_fn(|| engine.poll_command()).filter_map(
                        |command| match command {
                            Command::NotePlaintext(_, is_understood) => Some(is_understood),
                            _ => None,
                        },
                    ),
                );
            }
            let expected: Vec<bool> = expected.filter(|_| is_plaintext).into_iter().collect();
            assert_eq!(judged, expected, "{first:?} {is_plaintext}");
        }
    }
}
