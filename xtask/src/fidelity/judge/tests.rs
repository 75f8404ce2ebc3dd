//! Made-up spans, one fault in each.

use super::*;

fn span(role: Role, subject: Subject, id: &str, parent: &str) -> Span {
    Span {
        role,
        subject,
        trace_id: "t".to_owned(),
        id: id.to_owned(),
        parent_id: parent.to_owned(),
        duration_ns: 1_000_000,
        evidence: (!parent.is_empty()).then(|| "thread".to_owned()),
        links: Vec::new(),
    }
}

/// The three spans of a case, with ids `fN`, `cN` and `bN`, joined as they must be.
fn case(number: u32) -> [Span; 3] {
    let subject = Subject::Case(number);
    let [front, call, back] = ["f", "c", "b"].map(|letter| format!("{letter}{number}"));
    [
        span(Role::FrontServer, subject, &front, ""),
        span(Role::FrontClient, subject, &call, &front),
        span(Role::BackServer, subject, &back, &call),
    ]
}

fn requests(count: u32) -> Vec<Request> {
    let request = |case| Request {
        case,
        duration_ns: 1_050_000,
    };
    (0..count).map(request).collect()
}

fn judged(count: u32, spans: &[Span]) -> Cell {
    judge(1, &requests(count), spans).0
}

const ONE_RIGHT: Joins = Joins {
    right: 1,
    orphan: 0,
    wrong: 0,
};
const ONE_WRONG: Joins = Joins {
    right: 0,
    orphan: 0,
    wrong: 1,
};

/// All is there and joined: no fault, and the error is the client's duration less the span's.
#[test]
fn a_right_case() {
    let (cell, faults) = judge(8, &requests(1), &case(0));
    assert_eq!(cell.clients, 8);
    assert_eq!((cell.in_process, cell.on_wire), (ONE_RIGHT, ONE_RIGHT));
    assert_eq!((cell.whole_chains, cell.missing(), cell.wrong()), (1, 0, 0));
    assert_eq!(cell.evidence, BTreeMap::from([("thread".to_owned(), 2)]));
    assert_eq!(cell.duration_error.median_us, 50);
    assert!(faults.is_empty(), "{faults:?}");
}

/// A call without a parent is an orphan; the wire below it may still be right.
#[test]
fn an_orphan() {
    let mut spans = case(0);
    spans[1].parent_id.clear();
    spans[1].links = vec!["f0".to_owned(), "f1".to_owned()];
    let cell = judged(1, &spans);
    assert_eq!((cell.in_process.orphan, cell.in_process.right), (1, 0));
    assert_eq!(cell.on_wire, ONE_RIGHT);
    assert_eq!((cell.whole_chains, cell.wrong()), (0, 0));
    assert_eq!((cell.linked_right, cell.linked_wrong), (1, 1));
}

/// A parent of another case is wrong, and the words name both cases and the evidence.
#[test]
fn a_parent_of_another_case() {
    let mut spans = [case(0), case(1)].concat();
    spans[1].parent_id = "f1".to_owned();
    let (cell, faults) = judge(1, &requests(2), &spans);
    assert_eq!((cell.in_process.right, cell.in_process.wrong), (1, 1));
    assert_eq!((cell.whole_chains, cell.wrong()), (1, 1));
    let said = "the front's client span of case 0 (span c0) is a child of front's server span of \
                case 1 (span f1) by thread";
    assert_eq!(faults, [said]);
}

/// The right span id in another trace is wrong, and so is a parent that nobody sent, on the wire
/// as well.
#[test]
fn a_parent_elsewhere() {
    let mut spans = case(0);
    spans[1].trace_id = "u".to_owned();
    let cell = judged(1, &spans);
    assert_eq!((cell.in_process, cell.on_wire), (ONE_WRONG, ONE_WRONG));

    let mut spans = case(0);
    spans[2].parent_id = "nobody".to_owned();
    let cell = judged(1, &spans);
    assert_eq!((cell.in_process, cell.on_wire), (ONE_RIGHT, ONE_WRONG));
    assert_eq!(cell.whole_chains, 0);
}

/// One of two spans for the same call is enough to make the case wrong.
#[test]
fn the_heavier_verdict_counts() {
    let mut spans = [case(0), case(1)].concat();
    let mut again = spans[1].clone();
    again.id = "again".to_owned();
    again.parent_id = "f1".to_owned();
    spans.push(again);
    let cell = judged(2, &spans);
    assert_eq!((cell.in_process.right, cell.in_process.wrong), (1, 1));
    assert_eq!(cell.recorded.front_client, 2);
}

/// The client is not traced, so nothing can be the parent of what it asked for.
#[test]
fn a_first_span_with_a_parent() {
    let mut spans = [case(0), case(1)].concat();
    spans[3].parent_id = "c0".to_owned();
    let cell = judged(2, &spans);
    assert_eq!((cell.roots_with_parent, cell.wrong()), (1, 1));
}

/// A background call has no parent; what the back does for it is the call's child.
#[test]
fn background_calls() {
    let subject = Subject::Background(7);
    let mut spans = case(0).to_vec();
    spans.push(span(Role::FrontClient, subject, "c", ""));
    spans.push(span(Role::BackServer, subject, "b", "c"));
    let cell = judged(1, &spans);
    assert_eq!((cell.background.calls, cell.wrong()), (1, 0));

    spans[3].parent_id = "f0".to_owned();
    let cell = judged(1, &spans);
    assert_eq!((cell.background.with_parent, cell.wrong()), (1, 1));

    spans[3].parent_id.clear();
    spans[3].links.push("f0".to_owned());
    spans[4].parent_id = "c0".to_owned();
    let cell = judged(1, &spans);
    assert_eq!((cell.background.wrong_on_wire, cell.wrong()), (1, 1));
    assert_eq!(cell.background.linked, 1);
}

/// What is not there is neither right nor wrong, and has no duration.
#[test]
fn missing_spans() {
    let [front, client, back] = case(0);
    let cell = judged(1, &[front, back]);
    assert_eq!(cell.recorded.front_client, 0);
    assert_eq!(cell.missing(), 1);
    assert_eq!(cell.in_process, Joins::default());
    assert_eq!(cell.on_wire, ONE_WRONG, "its parent was not received");

    let cell = judged(2, &[client]);
    assert_eq!(cell.missing(), 5);
    assert_eq!(cell.duration_error, DurationError::default());
}

/// Nearest rank from above, so that the 99th of few values is the greatest.
#[test]
fn errors_of_durations() {
    let error = DurationError::of((0..100).rev().map(|us| us * 1_000).collect());
    let expected = DurationError {
        least_us: 0,
        median_us: 50,
        p99_us: 99,
        most_us: 99,
    };
    assert_eq!(error, expected);
    let error = DurationError::of(vec![-2_000, 9_000, 1_000]);
    assert_eq!((error.least_us, error.median_us, error.p99_us), (-2, 1, 9));
}

/// Paths and whole URLs; what is neither a case nor in the background is nothing.
#[test]
fn subjects() {
    assert_eq!(Subject::parse("/case/12"), Some(Subject::Case(12)));
    let url = "http://127.0.0.1:8/background/3";
    assert_eq!(Subject::parse(url), Some(Subject::Background(3)));
    assert_eq!(Subject::parse("/case/"), None);
    assert_eq!(Subject::parse("/"), None);
}
