//! The whole engine on records made here; real ones are in `tests/recordings/`.

mod idle;

use agent_common::{
    connection::{ConnectionClosing, ConnectionEstablished, ConnectionOpened, FAMILY_INET},
    payload::{SocketData, flags},
    process::{ExecutionUnit, ProcessFork},
    record::{RecordHeader, RecordKind},
    tcp_option::ContextCarried,
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::*;
use crate::{
    event::ClosingStep,
    span::attribute::{HTTP_RESPONSE_STATUS_CODE, UNOBSERVED},
};

const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const LONG_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n";
const MS: u64 = 1_000_000;

fn engine() -> Engine {
    Engine::new(Config::default(), Arc::new(SelfMetrics::default()))
}

/// What a test says of a data record; the rest is that of a server's connection.
#[derive(Clone, Copy)]
struct Record<'a> {
    id: u64,
    port: u16,
    thread_id: u32,
    flags: u16,
    role: Role,
    position: u64,
    other: u64,
    sequence: u32,
    bytes: &'a [u8],
    time_ns: u64,
}

impl<'a> Record<'a> {
    fn inbound(id: u64, bytes: &'a [u8], time_ns: u64) -> Self {
        Self {
            id,
            port: 4_000,
            thread_id: 2,
            flags: flags::TURN_START | flags::COMPLETE,
            role: Role::Server,
            position: 0,
            other: 0,
            sequence: 0,
            bytes,
            time_ns,
        }
    }

    fn outbound(id: u64, bytes: &'a [u8], time_ns: u64) -> Self {
        let inbound = Self::inbound(id, bytes, time_ns);
        Self {
            flags: inbound.flags | flags::OUTBOUND,
            ..inbound
        }
    }

    fn written(self) -> Vec<u8> {
        let mut record = SocketData::new_zeroed();
        let length = size_of::<SocketData>() + self.bytes.len();
        record.header = header(RecordKind::SocketData, length, self.time_ns);
        record.unit = ExecutionUnit {
            process_id: 1,
            thread_id: self.thread_id,
            process_start_ns: 0,
        };
        record.connection = self.id;
        record.addresses.family = FAMILY_INET;
        record.addresses.local_port = 80;
        record.addresses.remote_port = self.port;
        record.position = self.position;
        record.original_length = self.bytes.len() as u32;
        record.tcp_sequence = self.sequence;
        record.captured_length = self.bytes.len() as u32;
        record.flags = self.flags;
        record.role = self.role as u8;
        record.other_flow.position = self.other;
        [record.as_bytes(), self.bytes].concat()
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

fn fork(kind: RecordKind, parent: u32, child: u32) -> Vec<u8> {
    let mut record = ProcessFork::new_zeroed();
    record.header = header(kind, size_of::<ProcessFork>(), MS);
    for (unit, pid) in [(&mut record.parent, parent), (&mut record.child, child)] {
        (unit.process_id, unit.thread_id) = (pid, pid);
    }
    record.as_bytes().to_vec()
}

fn closing(id: u64, step: ClosingStep, time_ns: u64) -> Vec<u8> {
    let mut record = ConnectionClosing::new_zeroed();
    let length = size_of::<ConnectionClosing>();
    record.header = header(RecordKind::ConnectionClosing, length, time_ns);
    record.connection = id;
    record.step = step as u8;
    record.as_bytes().to_vec()
}

fn established(id: u64, port: u16, time_ns: u64) -> Vec<u8> {
    let mut record = ConnectionEstablished::new_zeroed();
    let length = size_of::<ConnectionEstablished>();
    record.header = header(RecordKind::ConnectionEstablished, length, time_ns);
    record.connection = id;
    record.addresses.family = FAMILY_INET;
    record.addresses.local_port = port;
    record.addresses.remote_port = 80;
    record.as_bytes().to_vec()
}

fn opened(id: u64, time_ns: u64) -> Vec<u8> {
    let mut record = ConnectionOpened::new_zeroed();
    let length = size_of::<ConnectionOpened>();
    record.header = header(RecordKind::ConnectionOpened, length, time_ns);
    record.connection = id;
    record.addresses.family = FAMILY_INET;
    record.role = Role::Client as u8;
    record.as_bytes().to_vec()
}

/// A request from a program that is not traced is known for good when it is answered; one from a
/// program that is waits for its client to be recorded.
#[test]
fn a_server_waits_for_a_traced_client_only() {
    for (is_traced, spans) in [(false, 1), (true, 0)] {
        let mut engine = engine();
        if is_traced {
            feed(&mut engine, &[opened(1, 10), established(1, 4_000, 11)]);
        }
        // With sequence numbers, by which both ends would be joined.
        let mut request = Record::inbound(2, b"GET / HTTP/1.1\r\n\r\n", 20).written();
        let sequence = std::mem::offset_of!(SocketData, tcp_sequence);
        request[sequence] = 1;
        feed(
            &mut engine,
            &[
                request,
                Record {
                    other: 18,
                    ..Record::outbound(2, b"HTTP/1.1 204 No Content\r\n\r\n", 30)
                }
                .written(),
            ],
        );
        engine.handle_tick(50 * MS);
        assert_eq!(engine.take_spans().len(), spans);
    }
}

fn feed(engine: &mut Engine, records: &[Vec<u8>]) {
    for record in records {
        engine.handle_record(record);
    }
}

fn spans(engine: &mut Engine) -> Vec<Span> {
    engine.handle_tick(u64::MAX / 2);
    engine.take_spans()
}

fn has(span: &Span, key: &str) -> bool {
    span.attributes.iter().any(|attribute| attribute.key == key)
}

fn assert_nothing_is_left(engine: &Engine, what: &str) {
    assert!(engine.connections.is_empty(), "{what}: connections");
    assert!(
        engine.exchanges.is_empty(),
        "{what}: {:?}",
        engine.exchanges
    );
    assert!(engine.stitcher.is_empty(), "{what}: stitcher");
}

/// Scenario: identities are socket addresses, and a closing record was lost. Guarantee: the old
/// connection's request is not answered by the new one's response.
#[test]
fn a_reused_identity_is_another_connection() {
    let other_peer = Record {
        port: 4_001,
        ..Record::inbound(7, REQUEST, 20)
    };
    let counted_anew = Record::inbound(7, REQUEST, 20);
    for second in [other_peer, counted_anew] {
        let mut engine = engine();
        let answer = Record {
            port: second.port,
            other: 28,
            ..Record::outbound(7, RESPONSE, 30)
        };
        let first = Record::inbound(7, REQUEST, 10);
        feed(
            &mut engine,
            &[first.written(), second.written(), answer.written()],
        );
        feed(&mut engine, &[closing(7, ClosingStep::Destroyed, 40)]);
        let mut spans = spans(&mut engine);
        spans.sort_by_key(|span| span.start_ns);
        let [old, new] = spans.as_slice() else {
            panic!("two: {spans:?}")
        };
        assert!(
            has(old, UNOBSERVED) && !has(old, HTTP_RESPONSE_STATUS_CODE),
            "{old:?}"
        );
        assert!(
            has(new, HTTP_RESPONSE_STATUS_CODE) && !has(new, UNOBSERVED),
            "{new:?}"
        );
        assert_nothing_is_left(&engine, "reuse");
    }
}

/// Scenario: the kernel side has forgotten a connection whose last record is still queued.
/// Guarantee: the end is that of the record; without one, the connection is given up in time.
#[test]
fn the_last_record_is_waited_for() {
    let half = [
        Record::inbound(7, REQUEST, 10).written(),
        Record {
            other: 28,
            ..Record::outbound(7, LONG_HEAD, 20)
        }
        .written(),
    ];
    let id = ConnectionId(7);
    let mut closed = engine();
    feed(&mut closed, &half);
    closed.handle_connection_state(id, None, 30 * MS);
    feed(&mut closed, &[closing(7, ClosingStep::LocalClosed, 30)]);
    feed(&mut closed, &[closing(7, ClosingStep::Destroyed, 30)]);
    let spans_of_closed = spans(&mut closed);
    let [span] = spans_of_closed.as_slice() else {
        panic!("one: {spans_of_closed:?}")
    };
    assert!(!has(span, UNOBSERVED), "it was seen to break: {span:?}");

    let mut lost = engine();
    feed(&mut lost, &half);
    lost.handle_connection_state(id, None, 30 * MS);
    lost.handle_connection_state(id, None, 1_000 * MS);
    assert!(!lost.connections.is_empty());
    lost.handle_connection_state(id, None, 1_031 * MS);
    let spans_of_lost = spans(&mut lost);
    assert!(has(&spans_of_lost[0], UNOBSERVED), "{spans_of_lost:?}");
    assert_nothing_is_left(&lost, "lost");

    // Records are read late: those that were written before it was gone are to come.
    let mut behind = engine();
    feed(&mut behind, &half);
    behind.handle_tick(5_000 * MS);
    behind.handle_connection_state(id, None, 40 * MS);
    behind.handle_connection_state(id, None, 3_000 * MS);
    assert!(!behind.connections.is_empty());
    behind.handle_connection_state(id, None, 6_001 * MS);
    assert!(behind.connections.is_empty());
}

/// A call that a blocking thread makes is its request's child; after a loss nothing proves it.
#[test]
fn a_loss_ends_what_threads_prove() {
    for is_lost in [false, true] {
        let mut engine = engine();
        feed(&mut engine, &[Record::inbound(7, REQUEST, 10).written()]);
        if is_lost {
            engine.handle_loss();
        }
        let call = Record {
            role: Role::Client,
            port: 5_000,
            ..Record::outbound(8, REQUEST, 20)
        };
        feed(&mut engine, &[call.written()]);
        engine.handle_shutdown(30);
        let spans = engine.take_spans();
        let call = spans
            .iter()
            .find(|span| span.kind == Kind::Client)
            .expect("the call");
        assert_eq!(call.parent.is_none(), is_lost, "{call:?}");
    }
}

/// Guarantee, over random records of few connections and threads, in any order and with losses:
/// no panic, and once all connections have ended nothing is remembered.
#[test]
fn nothing_is_left_behind() {
    let pieces: [&[u8]; 8] = [
        REQUEST,
        RESPONSE,
        LONG_HEAD,
        b"G",
        b"\0\x01nonsense",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc",
        b"0\r\n\r\n",
    ];
    let steps = [
        ClosingStep::LocalClosed,
        ClosingStep::RemoteClosed,
        ClosingStep::Aborted,
        ClosingStep::Destroyed,
    ];
    for seed in 0..400 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut engine = engine();
        let mut now_ns = MS;
        for _ in 0..120 {
            now_ns += random.random_range(0..50 * MS);
            let id = random.random_range(1..5);
            match random.random_range(0..10) {
                0..=6 => {
                    let record = Record {
                        port: random.random_range(1..3),
                        thread_id: random.random_range(1..4),
                        flags: random.random_range(0..32),
                        role: Role::from(random.random_range(0..3)),
                        position: random.random_range(0..200),
                        other: random.random_range(0..200),
                        ..Record::inbound(id, pieces[random.random_range(0..8)], now_ns)
                    };
                    engine.handle_record(&record.written());
                }
                7 => engine.handle_record(&closing(id, steps[random.random_range(0..4)], now_ns)),
                8 => engine.handle_tick(now_ns),
                _ if random.random() => engine.handle_loss(),
                _ => engine.handle_connection_state(ConnectionId(id), None, now_ns),
            }
            while engine.poll_command().is_some() {}
        }
        for id in 1..5 {
            engine.handle_record(&closing(id, ClosingStep::Destroyed, now_ns));
        }
        engine.handle_tick(now_ns + 10_000 * MS);
        assert_nothing_is_left(&engine, &format!("seed {seed}"));
        for span in engine.take_spans() {
            assert!(span.end_ns >= span.start_ns, "seed {seed}: {span:?}");
        }
    }
}

/// Scenario: a blocking thread reads a request and calls out before it answers. Guarantee: the call
/// is the request's child where both are HTTP/1, and nobody's where either is HTTP/2: the thread
/// may have been reading, or writing, for any stream.
#[test]
fn a_thread_that_moves_streams_proves_nothing() {
    let head = b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let streams = [&preface[..], head].concat();
    let stream_answer = &b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x01\x88"[..];
    let plain = (REQUEST, RESPONSE);
    let stream = (&streams[..], stream_answer);
    for (served, called, is_child) in [
        (plain, plain, true),
        (stream, plain, false),
        (plain, stream, false),
    ] {
        let mut engine = engine();
        let call = |record| Record {
            port: 5_000,
            role: Role::Client,
            ..record
        };
        let records = [
            Record::inbound(7, served.0, 10),
            call(Record::outbound(8, called.0, 20)),
            call(Record {
                other: called.0.len() as u64,
                ..Record::inbound(8, called.1, 30)
            }),
            Record {
                other: served.0.len() as u64,
                ..Record::outbound(7, served.1, 40)
            },
        ];
        feed(&mut engine, &records.map(Record::written));
        let spans = spans(&mut engine);
        assert_eq!(spans.len(), 2, "{spans:?}");
        let call = spans.iter().find(|span| span.kind == Kind::Client);
        let parent = call.expect("the call").parent;
        assert_eq!(parent.is_some(), is_child, "{spans:?}");
    }
}

/// A TCP option at this sequence number, with ids made of `id`.
fn carried(connection: u64, id: u8, tcp_sequence: u32, time_ns: u64) -> Vec<u8> {
    let mut record = ContextCarried::new_zeroed();
    let length = size_of::<ContextCarried>();
    record.header = header(RecordKind::ContextCarried, length, time_ns);
    record.connection = connection;
    record.trace_id = [u64::from_ne_bytes([id; 8]); 2];
    record.span_id = u64::from_ne_bytes([id; 8]);
    record.tcp_sequence = tcp_sequence;
    record.trace_flags = 1;
    record.as_bytes().to_vec()
}

/// A request that came with a TCP option is below the span that the option names, if it begins at
/// the option's byte and nowhere else.
#[test]
fn an_option_names_the_parent_of_the_request_at_its_byte() {
    for (sequence, is_joined) in [(1_000, true), (1_001, false), (999, false)] {
        let mut engine = engine();
        let request = Record {
            sequence: 1_000,
            ..Record::inbound(7, REQUEST, 20)
        };
        let answer = Record {
            other: REQUEST.len() as u64,
            ..Record::outbound(7, RESPONSE, 30)
        };
        let records = [
            carried(7, 9, sequence, 10),
            request.written(),
            answer.written(),
            closing(7, ClosingStep::Destroyed, 40),
        ];
        feed(&mut engine, &records);
        let spans = spans(&mut engine);
        let [span] = spans.as_slice() else {
            panic!("one: {spans:?}")
        };
        let parent = span.parent.map(|parent| parent.span_id.to_bytes());
        assert_eq!(parent, is_joined.then_some([9; 8]), "{sequence}");
        assert_eq!(span.trace_id.to_bytes() == [9; 16], is_joined);
        assert_nothing_is_left(&engine, "an option");
    }
}

/// A call that left with a TCP option has the ids of the option, also when it was recorded before
/// it left, because TCP held it back.
#[test]
fn a_call_is_what_its_option_said() {
    for place in 0..2 {
        let mut engine = engine();
        let request = Record {
            role: Role::Client,
            sequence: 1_000,
            ..Record::outbound(7, REQUEST, 20)
        };
        let answer = Record {
            role: Role::Client,
            other: REQUEST.len() as u64,
            ..Record::inbound(7, RESPONSE, 30)
        };
        let mut records = vec![request.written(), answer.written()];
        records.insert(place, carried(7, 9, 1_000, 10));
        records.push(closing(7, ClosingStep::Destroyed, 40));
        feed(&mut engine, &records);
        let spans = spans(&mut engine);
        let [span] = spans.as_slice() else {
            panic!("one: {spans:?}")
        };
        assert_eq!(span.span_id.to_bytes(), [9; 8], "{place}");
        assert_eq!(span.trace_id.to_bytes(), [9; 16], "{place}");
        assert_nothing_is_left(&engine, "an option");
    }
}

/// Whether a program is one that the user chose may be known only after it forked: that is asked
/// of the child too, and only then.
#[test]
fn children_of_undecided_programs_are_decided_upon() {
    let asked = |kind| {
        let mut engine = engine();
        engine.handle_record(&fork(kind, 1, 2));
        let mut commands = std::iter::from_fn(|| engine.poll_command());
        commands.any(|command| matches!(command, Command::Consider(id) if id.pid == 2))
    };
    assert!(asked(RecordKind::ProvisionalFork));
    assert!(!asked(RecordKind::ProcessFork));
}
