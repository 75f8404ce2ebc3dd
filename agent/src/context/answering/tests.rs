use super::*;

const PROCESS: ProcessId = ProcessId {
    pid: 1,
    start_ticks: 1,
};
const A: ConnectionId = ConnectionId(1);
const B: ConnectionId = ConnectionId(2);

fn thread(thread_id: u32) -> Unit {
    Unit {
        process: PROCESS,
        thread_id,
    }
}

fn verdicts(answering: &mut Answering<u32>) -> Vec<Verdict<u32>> {
    std::iter::from_fn(|| answering.poll()).collect()
}

const fn made(call: u32, exchange: u32) -> Verdict<u32> {
    Verdict::Made { call, exchange }
}

const fn unknown(call: u32) -> Verdict<u32> {
    Verdict::Unknown { call }
}

/// Scenario: one thread reads requests, others work on them and answer. Guarantee: calls belong to
/// what their thread answers, whatever the order, and those of a thread that answers nobody to
/// nothing, as soon as no request can be theirs.
#[test]
fn calls_of_a_pool_belong_to_what_their_thread_answers() {
    let mut answering = Answering::default();
    let (reader, first, second, background) = (thread(1), thread(2), thread(3), thread(4));
    answering.handle_request(reader, A, 1, 10);
    answering.handle_request(reader, B, 2, 11);
    assert!(answering.handle_call(second, 101, 20));
    assert!(answering.handle_call(background, 102, 21));
    assert!(answering.handle_call(first, 103, 22));
    assert!(answering.handle_call(second, 104, 23));
    assert_eq!(verdicts(&mut answering), []);
    answering.handle_answer(second, 1, false);
    assert_eq!(verdicts(&mut answering), [made(101, 1), made(104, 1)]);
    answering.handle_finished(1, Some(second));
    answering.handle_answer(first, 2, false);
    assert_eq!(verdicts(&mut answering), [made(103, 2), unknown(102)]);
    answering.handle_finished(2, Some(first));
    assert!(!answering.handle_call(background, 105, 40));
    assert!(answering.is_empty(), "{answering:?}");
}

/// Scenario: a worker calls out for something else, then takes a request that was read meanwhile,
/// or had answered another one before. Guarantee: only calls after the reading and after the
/// previous answer count.
#[test]
fn calls_before_the_request_or_the_previous_answer_do_not_belong() {
    let mut answering = Answering::default();
    let (reader, worker) = (thread(1), thread(2));
    answering.handle_request(reader, A, 1, 10);
    assert!(answering.handle_call(worker, 101, 11));
    answering.handle_request(reader, B, 2, 12);
    assert!(answering.handle_call(worker, 102, 13));
    answering.handle_answer(worker, 2, false);
    assert_eq!(verdicts(&mut answering), [unknown(101), made(102, 2)]);
    answering.handle_finished(2, Some(worker));
    answering.handle_answer(worker, 1, false);
    answering.handle_finished(1, Some(worker));
    assert_eq!(verdicts(&mut answering), []);
    assert!(answering.is_empty(), "{answering:?}");
}

/// Scenario: `100 Continue`, or a response that begins before its work is done. Guarantee: calls
/// until the end belong to it when the same thread writes the end, else to nothing.
#[test]
fn calls_during_an_answer() {
    for (last, expected) in [(thread(2), made(101, 1)), (thread(3), unknown(101))] {
        let mut answering = Answering::default();
        answering.handle_request(thread(1), A, 1, 10);
        answering.handle_answer(thread(2), 1, false);
        assert!(answering.handle_call(thread(2), 101, 20));
        assert_eq!(verdicts(&mut answering), []);
        answering.handle_finished(1, Some(last));
        assert_eq!(verdicts(&mut answering), [expected]);
        assert!(answering.is_empty(), "{answering:?}");
    }
}

/// A thread that answers on a polled socket is a loop, now and later.
#[test]
fn a_loop_by_its_polled_socket_proves_nothing() {
    let mut answering = Answering::default();
    let unit = thread(1);
    answering.handle_request(unit, A, 1, 10);
    assert!(answering.handle_call(unit, 101, 11));
    answering.handle_answer(unit, 1, true);
    assert_eq!(verdicts(&mut answering), [unknown(101)]);
    answering.handle_finished(1, Some(unit));
    answering.handle_request(unit, A, 2, 20);
    assert!(!answering.handle_call(unit, 102, 21));
    answering.handle_answer(unit, 2, false);
    assert_eq!(verdicts(&mut answering), []);
}

/// Scenario: a loop without epoll reads two requests and answers both. Guarantee: nothing is
/// proven while both are open, and nothing later.
#[test]
fn a_loop_by_overlap_proves_nothing() {
    let mut answering = Answering::default();
    let unit = thread(1);
    answering.handle_request(unit, A, 1, 10);
    answering.handle_request(unit, B, 2, 11);
    assert!(answering.handle_call(unit, 101, 12));
    answering.handle_answer(unit, 1, false);
    assert!(answering.handle_call(unit, 102, 13));
    answering.handle_answer(unit, 2, false);
    assert_eq!(verdicts(&mut answering), [unknown(101), unknown(102)]);
    answering.handle_finished(1, Some(unit));
    answering.handle_finished(2, Some(unit));
    answering.handle_request(unit, A, 3, 20);
    assert!(!answering.handle_call(unit, 103, 21));
}

/// Scenario: a worker reads half a request and gives it back to the pool, where another one
/// finishes it. Guarantee: it proves nothing until that one is answered, and is no loop.
#[test]
fn a_worker_that_hands_a_request_on_is_no_loop() {
    let mut answering = Answering::default();
    let (worker, other) = (thread(1), thread(2));
    answering.handle_request(worker, A, 1, 10);
    answering.handle_request(worker, B, 2, 11);
    assert!(answering.handle_call(worker, 101, 12));
    answering.handle_answer(worker, 2, false);
    answering.handle_finished(2, Some(worker));
    assert_eq!(verdicts(&mut answering), [unknown(101)]);
    answering.handle_answer(other, 1, false);
    answering.handle_finished(1, Some(other));
    answering.handle_request(worker, B, 3, 20);
    assert!(answering.handle_call(worker, 102, 21));
    answering.handle_answer(worker, 3, false);
    assert_eq!(verdicts(&mut answering), [made(102, 3)]);
}

/// Pipelined requests of one connection do not make a loop of their reader.
#[test]
fn pipelined_requests_are_no_overlap() {
    let mut answering = Answering::default();
    let unit = thread(1);
    answering.handle_request(unit, A, 1, 10);
    answering.handle_request(unit, A, 2, 10);
    assert!(answering.handle_call(unit, 101, 11));
    answering.handle_answer(unit, 1, false);
    answering.handle_finished(1, Some(unit));
    assert!(answering.handle_call(unit, 102, 12));
    answering.handle_answer(unit, 2, false);
    assert_eq!(verdicts(&mut answering), [made(101, 1), made(102, 2)]);
}

/// Lost records and the end of a process leave nothing waiting.
#[test]
fn loss_and_exit_let_go() {
    for end in [
        |answering: &mut Answering<u32>| answering.handle_loss(),
        |answering: &mut Answering<u32>| answering.handle_exit(PROCESS),
        |answering: &mut Answering<u32>| answering.handle_thread_exit(thread(2)),
    ] {
        let mut answering = Answering::default();
        answering.handle_request(thread(1), A, 1, 10);
        assert!(answering.handle_call(thread(2), 101, 11));
        end(&mut answering);
        assert_eq!(verdicts(&mut answering), [unknown(101)]);
        answering.handle_answer(thread(2), 1, false);
        answering.handle_finished(1, Some(thread(2)));
        assert_eq!(verdicts(&mut answering), []);
        assert!(answering.is_empty(), "{answering:?}");
    }
}
