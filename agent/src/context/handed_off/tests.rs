use super::*;

const PROCESS: ProcessId = ProcessId {
    pid: 1,
    start_ticks: 1,
};

const fn unit(thread_id: u32) -> Unit {
    Unit {
        process: PROCESS,
        thread_id,
    }
}

const SERVER: Unit = unit(1);
const OTHER_SERVER: Unit = unit(2);
const WORKER: Unit = unit(3);

const REQUEST: u32 = 1;
const CALL: u32 = 101;

/// A followed process. The request begins at 100 unless a test says otherwise.
fn followed() -> HandOffs<u32> {
    let mut hand_offs = HandOffs::default();
    let news: Vec<bool> = (0..SUSPICIONS)
        .map(|_| hand_offs.handle_suspicion(PROCESS))
        .collect();
    assert_eq!(news.iter().position(|news| *news), Some(news.len() - 1));
    assert!(hand_offs.is_followed(PROCESS));
    hand_offs
}

/// The server's thread, which read a request at 100, wakes the worker.
fn begin(hand_offs: &mut HandOffs<u32>, at_ns: u64) {
    let wake = HandOff {
        from: SERVER,
        to: WORKER,
        waiting_since_ns: 50,
        request_ns: 100,
        answer_ns: 0,
    };
    hand_offs.handle_wake(&wake, at_ns);
}

/// The worker calls while only [`REQUEST`] is open.
fn call(hand_offs: &mut HandOffs<u32>, call: u32, start_ns: u64, answered_ns: u64) {
    hand_offs.handle_call(WORKER, call, start_ns, Some(REQUEST));
    hand_offs.handle_answer(call, answered_ns);
}

/// The worker wakes a thread that has waited; returns which of these calls count as that one's.
fn end(
    hand_offs: &mut HandOffs<u32>,
    to: Unit,
    [waiting_since_ns, answer_ns, at_ns]: [u64; 3],
    calls: &[u32],
) -> Vec<u32> {
    let wake = HandOff {
        from: WORKER,
        to,
        waiting_since_ns,
        request_ns: 0,
        answer_ns,
    };
    hand_offs.handle_wake(&wake, at_ns);
    let handed: Vec<u32> = calls
        .iter()
        .copied()
        .filter(|call| hand_offs.is_awaited(*call, &wake, at_ns))
        .collect();
    for call in &handed {
        hand_offs.handle_handed(*call, &wake, at_ns);
    }
    hand_offs.handle_done(WORKER);
    handed
}

/// Some time later.
fn outcomes(hand_offs: &mut HandOffs<u32>) -> Vec<Outcome<u32>> {
    hand_offs.handle_tick(1_000 + GRACE_NS, |request| Some(100 * u64::from(request)));
    std::iter::from_fn(|| hand_offs.poll()).collect()
}

const fn made(call: u32, evidence: Evidence) -> Outcome<u32> {
    Outcome::Made {
        call,
        exchange: REQUEST,
        evidence,
    }
}

/// Scenario: the request's thread wakes an idle worker and waits; the worker calls out and wakes
/// it. Guarantee: the call belongs to the request, but not before it is certain that nobody else
/// waited for it.
#[test]
fn a_round_trip_is_proof() {
    let mut hand_offs = followed();
    begin(&mut hand_offs, 110);
    call(&mut hand_offs, CALL, 120, 200);
    assert_eq!(
        end(&mut hand_offs, SERVER, [115, 200, 210], &[CALL]),
        [CALL]
    );
    assert!(hand_offs.handle_made(CALL, REQUEST));
    hand_offs.handle_tick(210 + GRACE_NS - 1, |_| Some(100));
    assert_eq!(hand_offs.poll(), None);
    assert_eq!(outcomes(&mut hand_offs), [made(CALL, Evidence::HandedOff)]);
    assert!(hand_offs.is_empty());
}

/// Scenario: the worker was busy when the work was handed to it. Guarantee: weak evidence.
#[test]
fn the_end_alone_is_a_hint() {
    let mut hand_offs = followed();
    call(&mut hand_offs, CALL, 120, 200);
    assert_eq!(
        end(&mut hand_offs, SERVER, [115, 200, 210], &[CALL]),
        [CALL]
    );
    assert!(hand_offs.handle_made(CALL, REQUEST));
    assert_eq!(outcomes(&mut hand_offs), [made(CALL, Evidence::HandedBack)]);
}

/// Scenario: a worker makes two calls for a request that is open alone. Guarantee: both are its
/// own.
#[test]
fn calls_before_the_last_one_are_proven_alike() {
    let mut hand_offs = followed();
    begin(&mut hand_offs, 110);
    call(&mut hand_offs, 101, 120, 200);
    call(&mut hand_offs, 102, 220, 300);
    let handed = end(&mut hand_offs, SERVER, [115, 300, 310], &[101, 102]);
    assert_eq!(handed, [101, 102]);
    for call in handed {
        assert!(hand_offs.handle_made(call, REQUEST));
    }
    let expected = [
        made(101, Evidence::HandedOff),
        made(102, Evidence::HandedOff),
    ];
    assert_eq!(outcomes(&mut hand_offs), expected);
}

/// Scenario: the worker that a request woke first takes the work of another one, which is open,
/// too, and does not wait yet. It calls out for that, and then does what it was woken for without a
/// call. Guarantee: a hint, whichever of the two is thought of.
#[test]
fn what_another_request_may_have_given_is_a_hint() {
    for sole in [None, Some(2)] {
        let mut hand_offs = followed();
        begin(&mut hand_offs, 110);
        hand_offs.handle_call(WORKER, CALL, 120, sole);
        hand_offs.handle_answer(CALL, 200);
        assert_eq!(
            end(&mut hand_offs, SERVER, [115, 200, 210], &[CALL]),
            [CALL]
        );
        assert!(hand_offs.handle_made(CALL, REQUEST));
        assert_eq!(outcomes(&mut hand_offs), [made(CALL, Evidence::HandedBack)]);
    }
}

/// Scenario: a lock is released for which someone began to wait after the answer was read; an
/// answer that is older than the last one read, of a database for instance. Guarantee: no hand-off.
#[test]
fn who_did_not_wait_for_the_call_gets_none() {
    let mut hand_offs = followed();
    call(&mut hand_offs, CALL, 120, 200);
    assert!(end(&mut hand_offs, SERVER, [205, 200, 210], &[CALL]).is_empty());
    assert!(end(&mut hand_offs, SERVER, [115, 250, 260], &[CALL]).is_empty());
    assert_eq!(hand_offs.handle_unknown(CALL), None);
    assert!(hand_offs.is_empty());
}

/// Scenario: two threads wait for one outcome. Guarantee: it is nobody's.
#[test]
fn two_candidates_are_none() {
    let mut hand_offs = followed();
    begin(&mut hand_offs, 110);
    call(&mut hand_offs, CALL, 120, 200);
    end(&mut hand_offs, SERVER, [115, 200, 210], &[CALL]);
    end(&mut hand_offs, OTHER_SERVER, [116, 200, 211], &[]);
    assert!(hand_offs.handle_made(CALL, REQUEST));
    let expected = [Outcome::Unknown { call: CALL }];
    assert_eq!(outcomes(&mut hand_offs), expected);
}

/// Scenario: the request's thread also calls out, so it may have waited for a connection that the
/// worker had. Guarantee: no hand-off.
#[test]
fn who_calls_out_itself_hands_nothing_off() {
    let mut hand_offs = followed();
    begin(&mut hand_offs, 110);
    call(&mut hand_offs, CALL, 120, 200);
    end(&mut hand_offs, SERVER, [115, 200, 210], &[CALL]);
    hand_offs.handle_own_call(SERVER, REQUEST);
    assert!(hand_offs.handle_made(CALL, REQUEST));
    let expected = [Outcome::Unknown { call: CALL }];
    assert_eq!(outcomes(&mut hand_offs), expected);
    hand_offs.handle_finished(REQUEST, 300);
    hand_offs.handle_tick(300 + 2 * GRACE_NS, |_| None);
    assert!(hand_offs.is_empty());
}

/// Scenario: the worker was woken for an earlier request of the same thread, whose outcome nobody
/// waited for; or the call is older than the request. Guarantee: no hand-off.
#[test]
fn an_earlier_request_is_another_one() {
    for (request, ordered_ns, start_ns) in [(2, 110, 220), (2, 205, 190)] {
        let mut hand_offs = followed();
        begin(&mut hand_offs, ordered_ns);
        call(&mut hand_offs, CALL, start_ns, 250);
        end(&mut hand_offs, SERVER, [115, 250, 260], &[CALL]);
        hand_offs.handle_made(CALL, request);
        let found = outcomes(&mut hand_offs);
        let is_made = found
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Made { .. }));
        assert!(!is_made, "{found:?}");
    }
}

/// Scenario: a background job, for which hardly anyone ever waits, holds a lock while it calls.
/// Guarantee: no hand-off.
#[test]
fn who_works_for_itself_is_no_worker() {
    let mut hand_offs = followed();
    for number in 1..10 {
        hand_offs.handle_call(WORKER, 200 + number, u64::from(number), Some(REQUEST));
        assert_eq!(hand_offs.handle_unknown(200 + number), None);
    }
    begin(&mut hand_offs, 110);
    call(&mut hand_offs, CALL, 120, 200);
    end(&mut hand_offs, SERVER, [115, 200, 210], &[CALL]);
    assert!(hand_offs.handle_made(CALL, REQUEST));
    let expected = [Outcome::Unknown { call: CALL }];
    assert_eq!(outcomes(&mut hand_offs), expected);
}

/// Scenario: nobody ever waits for a call of a followed process. Guarantee: it is let go of, once
/// and for all.
#[test]
fn what_does_not_help_ends() {
    let mut hand_offs = followed();
    let ends = (0..FRUITLESS).filter(|_| hand_offs.handle_idle_call(WORKER));
    assert_eq!(ends.count(), 1);
    assert!(!hand_offs.is_followed(PROCESS));
    assert!((0..100).all(|_| !hand_offs.handle_suspicion(PROCESS)));
    assert!(!hand_offs.handle_exit(PROCESS));
}

/// Scenario: records are lost while a call waits for its outcome. Guarantee: it is known of no
/// more, and it is told.
#[test]
fn a_loss_leaves_no_proof() {
    let mut hand_offs = followed();
    begin(&mut hand_offs, 110);
    call(&mut hand_offs, CALL, 120, 200);
    end(&mut hand_offs, SERVER, [115, 200, 210], &[CALL]);
    assert!(hand_offs.handle_made(CALL, REQUEST));
    hand_offs.handle_loss();
    let expected = [Outcome::Unknown { call: CALL }];
    assert_eq!(outcomes(&mut hand_offs), expected);
    assert!(hand_offs.is_empty());
}
