//! When the kernel is asked, and what is forgotten.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::event::{Data, Direction, DirectionState, Pieces, ProcessId};

const UNIT: Unit = Unit {
    process: ProcessId {
        pid: 1,
        start_ticks: 1,
    },
    thread_id: 1,
};
const ID: ConnectionId = ConnectionId(7);

fn endpoints() -> Endpoints {
    let end = (IpAddr::V4(Ipv4Addr::LOCALHOST), 80);
    Endpoints::Inet {
        local: end,
        remote: end,
        network_namespace: 0,
    }
}

fn feed(table: &mut Table, direction: Direction, bytes: &[u8], now_ns: u64) {
    let data = Data {
        unit: UNIT,
        task: None,
        task_ids: None,
        descriptor: None,
        connection: ID,
        endpoints: endpoints(),
        role: Role::Server,
        direction,
        position: 0,
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
        other_flow: DirectionState {
            position: 0,
            last_ns: 0,
            tail: [0; 8],
        },
    };
    let connection = table
        .get_or_insert(ID, UNIT, endpoints(), Role::Server, now_ns)
        .expect("the table has room");
    connection.handle_data(&data, now_ns);
    while connection.poll().is_some() {}
    table.update_ask(ID, now_ns);
}

/// A response whose end was not captured yet.
fn waiting() -> Table {
    let mut table = Table::new(2);
    feed(&mut table, Direction::Inbound, b"GET / HTTP/1.1\r\n\r\n", 0);
    assert_eq!(
        table.poll_ask(u64::MAX),
        None,
        "nothing is awaited before the answer"
    );
    feed(
        &mut table,
        Direction::Outbound,
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        0,
    );
    table
}

/// The kernel is asked soon, then ever less often, and no more once the end is known.
#[test]
fn questions_back_off() {
    let mut table = waiting();
    let (mut now_ns, mut delay_ns) = (0, FIRST_ASK_NS);
    for _ in 0..12 {
        assert_eq!(table.poll_ask(now_ns + delay_ns - 1), None);
        now_ns += delay_ns;
        assert_eq!(table.poll_ask(now_ns), Some(ID));
        assert_eq!(table.poll_ask(now_ns), None, "once");
        delay_ns = (delay_ns * 2).min(LAST_ASK_NS);
    }
    assert_eq!(delay_ns, LAST_ASK_NS);
    // News make it soon again.
    table.update_ask(ID, now_ns);
    assert_eq!(table.poll_ask(now_ns + FIRST_ASK_NS), Some(ID));
    let length = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n".len() as u64 + 9;
    let at = |position| DirectionState {
        position,
        last_ns: 5,
        tail: [0; 8],
    };
    let connection = table.get(ID).expect("known");
    connection.handle_counts([&at(18), &at(length)]);
    table.update_ask(ID, now_ns);
    assert_eq!(table.poll_ask(u64::MAX), None);
    assert!(table.asks.is_empty() && table.due.is_empty());
}

/// A server's other end is traced while a client's connection with that end is there.
#[test]
fn other_ends_are_known_by_their_addresses() {
    let local = |port| (IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let connecting = |own| Endpoints::Inet {
        local: local(own),
        remote: local(80),
        network_namespace: 0,
    };
    let accepted = Endpoints::Inet {
        local: local(80),
        remote: local(4_000),
        network_namespace: 0,
    };
    let mut table = Table::new(4);
    for (id, own) in [(1, 0), (2, 4_000), (3, 4_000)] {
        let id = ConnectionId(id);
        let _ = table.get_or_insert(id, UNIT, connecting(own), Role::Client, 0);
        table.note_client(id);
        table.note_client(id);
    }
    assert_eq!(table.other_end(accepted), OtherEnd::Traced);
    let _ = (table.remove(ConnectionId(1)), table.remove(ConnectionId(2)));
    assert_eq!(table.other_end(accepted), OtherEnd::Traced);
    let _ = table.remove(ConnectionId(3));
    assert_eq!(table.other_end(accepted), OtherEnd::NotTraced);
    assert!(table.clients.is_empty());
    let unix = Endpoints::Unix {
        local: 1,
        remote: 2,
    };
    assert_eq!(table.other_end(unix), OtherEnd::Unknown);
}

#[test]
fn what_is_removed_is_not_asked_for() {
    let mut table = waiting();
    assert!(table.remove(ID).is_some());
    assert_eq!(table.poll_ask(u64::MAX), None);
    assert!(table.asks.is_empty() && table.due.is_empty() && table.is_empty());
}

/// A full table refuses new connections and keeps those it has.
#[test]
fn the_table_is_bounded() {
    let mut table = Table::new(2);
    let mut insert = |id| {
        table
            .get_or_insert(ConnectionId(id), UNIT, endpoints(), Role::Client, 0)
            .is_some()
    };
    assert_eq!([1, 2, 3, 1].map(&mut insert), [true, true, false, true]);
    assert_eq!(table.len(), 2);
}

/// What was silent for very long is named once a while.
#[test]
fn silent_connections_expire() {
    let mut table = waiting();
    assert_eq!(table.idle(IDLE_NS), []);
    assert_eq!(table.idle(IDLE_NS + 1), [], "it was looked at a moment ago");
    assert_eq!(table.idle(IDLE_NS + IDLE_NS / 10), [ID]);
}
