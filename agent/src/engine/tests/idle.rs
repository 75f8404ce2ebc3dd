//! Connections on which nothing moves for long.

use super::*;

const MINUTE: u64 = 60_000 * MS;
const STREAM: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
      9\r\ndata: 0\n\n\r\n";
const END: &[u8] = b"0\r\n\r\n";

/// A stream of events after its first one.
fn streaming() -> Engine {
    let mut engine = engine();
    let answer = Record {
        other: REQUEST.len() as u64,
        ..Record::outbound(1, STREAM, 20)
    };
    feed(
        &mut engine,
        &[Record::inbound(1, REQUEST, 10).written(), answer.written()],
    );
    engine
}

/// Minutes pass; questions about the connection are answered with `state`.
fn pass(engine: &mut Engine, from_ns: u64, minutes: u64, state: Option<&ConnectionState>) -> u64 {
    let end_ns = from_ns + minutes * MINUTE;
    for now_ns in (from_ns..=end_ns).step_by(1_000 * MS as usize) {
        engine.handle_tick(now_ns);
        while let Some(command) = engine.poll_command() {
            if let Command::ReadConnection(id) = command {
                engine.handle_connection_state(id, state, now_ns);
            }
        }
    }
    end_ns
}

/// An event after an hour belongs to the stream it is on, and so does its end.
#[test]
fn a_silent_stream_goes_on() {
    let mut engine = streaming();
    let mut state = ConnectionState::new_zeroed();
    (state.inbound.position, state.inbound.last_ns) = (REQUEST.len() as u64, 10);
    (state.outbound.position, state.outbound.last_ns) = (STREAM.len() as u64, 20);
    let now_ns = pass(&mut engine, MS, 60, Some(&state));
    assert_eq!(engine.take_spans(), []);
    let end = Record {
        position: STREAM.len() as u64,
        other: REQUEST.len() as u64,
        flags: flags::OUTBOUND | flags::COMPLETE,
        ..Record::outbound(1, END, now_ns)
    };
    feed(&mut engine, &[end.written()]);
    engine.handle_tick(now_ns + 10_000 * MS);
    let spans = engine.take_spans();
    assert_eq!(spans.len(), 1);
    assert!(!has(&spans[0], UNOBSERVED), "{spans:#?}");
    assert_eq!(spans[0].end_ns - spans[0].start_ns, now_ns - 10);
}

/// One that the kernel side has forgotten has ended unseen.
#[test]
fn a_connection_that_is_gone_is_forgotten() {
    let mut engine = streaming();
    pass(&mut engine, MS, 20, None);
    let spans = engine.take_spans();
    assert_eq!(spans.len(), 1);
    assert!(has(&spans[0], UNOBSERVED), "{spans:#?}");
    assert!(engine.connections.is_empty());
}
