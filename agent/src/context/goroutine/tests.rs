use super::*;

const PROCESS: ProcessId = ProcessId {
    pid: 1,
    start_ticks: 1,
};
const A: ConnectionId = ConnectionId(10);
const B: ConnectionId = ConnectionId(11);
/// Accepts connections, and starts a goroutine for each.
const ACCEPTOR: u64 = 1;
const SERVER: Task = Task {
    id: 20,
    parent: ACCEPTOR,
};
const OTHER: Task = Task {
    id: 21,
    parent: ACCEPTOR,
};
/// Writes to a kept connection; started by whoever dialled.
const WRITER: Task = Task { id: 30, parent: 29 };
const FD: u32 = 7;

struct Sample(Goroutines<u32>);

impl Sample {
    fn new() -> Self {
        Self(Goroutines::default())
    }

    /// `task` reads a request while its processor has ids from `next` up to a multiple of 16.
    fn read(&mut self, task: Task, connection: ConnectionId, exchange: u32, at: u64, next: u64) {
        let end = (next - 1).next_multiple_of(16).max(next);
        let ids = TaskIds {
            next,
            left: (end + 1 - next) as u32,
            allotted: end + 16,
        };
        self.0.handle_seen(PROCESS, task, Some(ids), at);
        self.0
            .handle_request(PROCESS, task, connection, exchange, at);
    }

    /// `task` calls, and the request is written by the connection's own goroutine.
    fn call(&mut self, task: Task, at: u64) -> Option<u32> {
        self.0.handle_call(PROCESS, task, FD, at);
        self.0.caller(PROCESS, WRITER, Some(FD), Some(1), at + 1)
    }
}

fn child(id: u64, parent: Task) -> Task {
    Task {
        id,
        parent: parent.id,
    }
}

#[test]
fn a_goroutine_works_for_what_it_read_until_it_answered() {
    let mut sample = Sample::new();
    sample.read(SERVER, A, 1, 10, 40);
    sample.read(OTHER, B, 2, 11, 41);
    assert_eq!(sample.call(SERVER, 20), Some(1));
    assert_eq!(sample.call(OTHER, 21), Some(2));
    sample.0.handle_answered(A, 1);
    assert_eq!(sample.call(SERVER, 30), None);
    assert_eq!(sample.call(OTHER, 31), Some(2));
}

#[test]
fn children_and_their_children_work_for_it_too() {
    let mut sample = Sample::new();
    sample.read(SERVER, A, 1, 10, 40);
    let one = child(41, SERVER);
    assert_eq!(sample.call(one, 20), Some(1));
    assert_eq!(sample.call(child(42, one), 21), Some(1));
    // A grandchild whose own parent was seen reading only.
    let silent = child(43, SERVER);
    sample.0.handle_seen(PROCESS, silent, None, 22);
    assert_eq!(sample.call(child(44, silent), 23), Some(1));
    // Of a batch that was allotted after the read.
    assert_eq!(sample.call(child(70, SERVER), 24), Some(1));
    // Of another processor's batch: it may be older.
    assert_eq!(sample.call(child(55, SERVER), 25), None);
}

/// Scenario: a handler starts a goroutine and answers; the connection's next request is read; then
/// the goroutine calls. Guarantee: it is not the next request's child.
#[test]
fn a_child_of_an_earlier_request_is_not_the_next_ones() {
    let mut sample = Sample::new();
    sample.read(SERVER, A, 1, 10, 40);
    sample.0.handle_answered(A, 1);
    sample.read(SERVER, A, 2, 30, 42);
    assert_eq!(
        sample.call(child(41, SERVER), 40),
        None,
        "started before 42"
    );
    assert_eq!(sample.call(child(42, SERVER), 41), Some(2));
    // One that called for the first request belongs to it for ever.
    let mut sample = Sample::new();
    sample.read(SERVER, A, 1, 10, 40);
    let early = child(40, SERVER);
    assert_eq!(sample.call(early, 20), Some(1));
    sample.0.handle_answered(A, 1);
    sample.read(SERVER, A, 2, 30, 41);
    assert_eq!(sample.call(early, 40), Some(1), "closed by now, but not 2");
}

/// Scenario: two requests arrive in one read. Guarantee: the goroutine's own calls follow the
/// answers; a child is evidence for the first alone.
#[test]
fn pipelined_requests_are_worked_on_in_order() {
    let mut sample = Sample::new();
    sample.read(SERVER, A, 1, 10, 40);
    sample.0.handle_request(PROCESS, SERVER, A, 2, 10);
    assert_eq!(sample.call(SERVER, 20), Some(1));
    assert_eq!(sample.call(child(40, SERVER), 21), Some(1));
    sample.0.handle_answered(A, 1);
    assert_eq!(sample.call(SERVER, 30), Some(2));
    assert_eq!(sample.call(child(41, SERVER), 31), None);
}

/// Scenario: an event loop written in Go reads a second connection before it answered the first.
/// Guarantee: it proves nothing, then or later.
#[test]
fn a_goroutine_that_serves_two_connections_at_once_proves_nothing() {
    let mut sample = Sample::new();
    sample.read(SERVER, A, 1, 10, 40);
    sample.read(SERVER, B, 2, 11, 41);
    assert_eq!(sample.call(SERVER, 20), None);
    sample.0.handle_connection_end(A);
    sample.0.handle_connection_end(B);
    sample.read(SERVER, A, 3, 30, 42);
    assert_eq!(sample.call(SERVER, 40), None);
}

/// Scenario: a goroutine that serves writes a request itself; another one, whose parent serves,
/// does the same. Guarantee: only the first is proof.
#[test]
fn a_write_is_proof_only_by_who_serves() {
    let mut sample = Sample::new();
    sample.read(SERVER, A, 1, 10, 40);
    let caller = |sample: &mut Sample, task| sample.0.caller(PROCESS, task, Some(FD), None, 20);
    assert_eq!(caller(&mut sample, SERVER), Some(1));
    assert_eq!(caller(&mut sample, child(40, SERVER)), None);
}

/// Guarantee: a call counts once, not for a connection that was opened after it, and not for ever.
#[test]
fn a_call_binds_one_request() {
    let mut sample = Sample::new();
    sample.read(SERVER, A, 1, 10, 40);
    let mut write = |opened_ns, time_ns| {
        sample.0.handle_call(PROCESS, SERVER, FD, 20);
        let one = sample
            .0
            .caller(PROCESS, WRITER, Some(FD), opened_ns, time_ns);
        let two = sample
            .0
            .caller(PROCESS, WRITER, Some(FD), opened_ns, time_ns);
        (one, two)
    };
    assert_eq!(write(Some(15), 30), (Some(1), None));
    assert_eq!(write(None, 30), (Some(1), None));
    assert_eq!(write(Some(25), 30), (None, None));
    assert_eq!(write(Some(15), 21 + CALL_NS), (None, None));
}

/// Reads the streams of connection A.
const READER: Task = Task {
    id: 22,
    parent: ACCEPTOR,
};

impl Sample {
    /// The reader reads heads of these streams at once, when its processor has ids from `next` on.
    fn read_streams(&mut self, streams: &[u32], at: u64, next: u64) {
        let end = next.next_multiple_of(16);
        let ids = TaskIds {
            next,
            left: (end - next) as u32 + 1,
            allotted: end + 16,
        };
        self.0.handle_seen(PROCESS, READER, Some(ids), at);
        for stream in streams {
            let head = (2 * stream - 1, *stream);
            self.0.handle_stream(PROCESS, READER, A, head, at);
        }
    }
}

/// Scenario: gRPC's reader starts a handler for each stream, and the handlers call in another
/// order. Guarantee: each call belongs to the stream its handler was started for, and what the
/// reader itself calls to none.
#[test]
fn handlers_belong_to_the_stream_read_before_them() {
    let mut sample = Sample::new();
    sample.read_streams(&[1], 10, 40);
    sample.read_streams(&[2], 20, 41);
    sample.read_streams(&[3], 30, 42);
    assert_eq!(sample.call(child(41, READER), 40), Some(2));
    assert_eq!(sample.call(child(42, READER), 41), Some(3));
    assert_eq!(sample.call(child(40, READER), 42), Some(1));
    assert_eq!(sample.call(child(43, child(42, READER)), 43), Some(3));
    assert_eq!(sample.call(READER, 44), None);
}

/// Scenario: two heads come with one read; a handler's id says only that it is younger than a
/// stream; a stream was answered. Guarantee: no proof.
#[test]
fn handlers_of_unclear_birth_belong_to_none() {
    let mut sample = Sample::new();
    sample.read_streams(&[1, 2], 10, 40);
    assert_eq!(sample.call(child(40, READER), 11), None, "of either");
    sample.read_streams(&[3], 20, 42);
    // Of a batch allotted later, and seen only after the next stream was read.
    sample.read_streams(&[4], 30, 43);
    assert_eq!(sample.call(child(70, READER), 40), Some(4));
    assert_eq!(sample.call(child(55, READER), 41), None, "it may be older");
    let mut sample = Sample::new();
    sample.read_streams(&[1], 10, 40);
    sample.0.handle_stream(PROCESS, READER, A, (3, 2), 20);
    assert_eq!(
        sample.call(child(40, READER), 30),
        None,
        "not known to be older than the second read"
    );
    let mut sample = Sample::new();
    sample.read_streams(&[1], 10, 40);
    sample.0.handle_answered(A, 1);
    sample.read_streams(&[2], 20, 41);
    assert_eq!(sample.call(child(40, READER), 30), None, "answered");
    assert_eq!(sample.call(child(41, READER), 31), Some(2));
    sample.0.handle_connection_end(A);
    assert!(sample.0.is_empty());
}

/// Scenario: gRPC's reader takes several heads at once, and the program says which goroutine serves
/// which. Guarantee: each, and what it starts, works for its own stream, a stream that was answered
/// has nobody, and neither do goroutines that the reader did not start.
#[test]
fn handlers_are_told() {
    let mut sample = Sample::new();
    sample.read_streams(&[1, 2, 3], 10, 40);
    let handler = |id| child(id, READER);
    for (id, stream) in [(42, 1), (40, 5), (41, 3)] {
        sample.0.handle_served(PROCESS, handler(id), stream);
    }
    assert_eq!(sample.call(handler(40), 20), Some(3));
    assert_eq!(sample.call(handler(41), 21), Some(2));
    assert_eq!(sample.call(child(60, handler(42)), 22), Some(1));
    sample.0.handle_answered(A, 3);
    sample.0.handle_served(PROCESS, handler(43), 5);
    assert_eq!(sample.call(handler(43), 23), None, "answered");
    sample.0.handle_served(PROCESS, child(44, OTHER), 1);
    assert_eq!(sample.call(child(44, OTHER), 24), None, "another reader's");
    sample.0.handle_served(PROCESS, handler(45), 7);
    assert_eq!(sample.call(handler(45), 25), None, "not read");
}

/// Scenario: `net/http` serves a connection by one goroutine, which starts another one to read and
/// one for each stream. Guarantee: those belong to the streams that their sibling has read; where
/// two siblings read streams, of the same number or not, each is asked for its own.
#[test]
fn handlers_are_siblings_of_who_reads() {
    let mut sample = Sample::new();
    sample.read_streams(&[1, 2], 10, 40);
    let handler = |id| Task { id, ..READER };
    sample.0.handle_served(PROCESS, handler(50), 3);
    assert_eq!(sample.call(handler(50), 20), Some(2));
    // The acceptor starts readers of its own, too.
    let other = Task { id: 23, ..READER };
    sample.0.handle_stream(PROCESS, other, B, (1, 9), 30);
    sample.0.handle_served(PROCESS, handler(51), 1);
    assert_eq!(sample.call(handler(51), 40), None, "of either");
    sample.0.handle_connection_end(A);
    sample.0.handle_connection_end(B);
    assert!(sample.0.is_empty());
}

/// Scenario: grpc-go's clients make streams that one goroutine begins, in another order than they
/// call. Guarantee: each stream is for the request that its maker works for, once, and within the
/// time of a call.
#[test]
fn streams_are_begun_for_others() {
    let mut sample = Sample::new();
    sample.read(SERVER, A, 1, 10, 40);
    sample.read(OTHER, B, 2, 11, 41);
    let begun = [(SERVER, 7), (OTHER, 5), (child(90, OTHER), 3)];
    for (task, stream) in begun {
        let writer = (WRITER.id, stream);
        sample.0.handle_begun(PROCESS, task, writer, 20);
    }
    let mut caller = |writer, stream, at| sample.0.stream_caller(PROCESS, writer, stream, at);
    assert_eq!(caller(WRITER, 3, 21), Some(2), "by a child");
    assert_eq!(caller(WRITER, 3, 21), None, "once");
    assert_eq!(caller(WRITER, 9, 21), None, "not told");
    assert_eq!(caller(OTHER, 7, 21), None, "another writer's");
    assert_eq!(caller(WRITER, 7, 21), Some(1));
    assert_eq!(caller(WRITER, 5, 21 + CALL_NS), None, "long ago");
}

/// Guarantee: nothing remains of connections and processes that ended, and after a loss nobody
/// works for anything.
#[test]
fn what_ended_is_forgotten() {
    let mut sample = Sample::new();
    for number in 0..100 {
        let task = Task {
            id: 100 + number,
            parent: ACCEPTOR,
        };
        let connection = ConnectionId(100 + number);
        sample.read(task, connection, 1, 10, 300 + number);
        sample.0.handle_connection_end(connection);
    }
    assert!(sample.0.is_empty());
    sample.read(SERVER, A, 1, 10, 40);
    sample.0.handle_loss();
    assert_eq!(sample.call(SERVER, 20), None);
    sample.read_streams(&[1], 30, 48);
    sample.0.handle_begun(PROCESS, OTHER, (WRITER.id, 1), 31);
    sample.0.handle_loss();
    sample.0.handle_served(PROCESS, child(48, READER), 1);
    assert_eq!(sample.call(child(48, READER), 32), None);
    assert_eq!(sample.0.stream_caller(PROCESS, WRITER, 1, 32), None);
    sample.read(SERVER, A, 2, 30, 40);
    sample.0.handle_exit(PROCESS);
    assert!(sample.0.is_empty() && sample.0.programs.is_empty());
}

#[test]
fn tables_are_bounded() {
    let mut goroutines = Goroutines::<u32>::default();
    for id in 1..100_000 {
        let ids = TaskIds {
            next: id * 16 + 2,
            left: 15,
            allotted: id * 16 + 16,
        };
        goroutines.handle_seen(PROCESS, Task { id, parent: 1 }, Some(ids), id);
    }
    let program = &goroutines.programs[&PROCESS];
    assert_eq!(program.parents.values.len(), GOROUTINES);
    assert_eq!(program.births.remembered(), [births::BATCHES; 2]);
}
