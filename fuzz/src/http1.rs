//! A session of HTTP/1 at either end of a connection, fed in any pieces and any order of flows.
//!
//! The first byte says the end and whether the connection is older than the agent. The rest are
//! the bytes that flowed, with steps between them: [`ESCAPE`] and a code. So an input reads like
//! the connection it stands for, and a byte put in or taken out leaves the rest as it was.
//!
//! | code | step |
//! |---|---|
//! | `>` `<` | what follows flows from client to server, from server to client |
//! | `,` | what follows comes later, and begins no turn |
//! | `#` | a hole: its length (8 bytes, little-endian) and its last 8 bytes |
//! | `c` `r` `t` `u` | the flow ends: closed, reset, timed out, unobserved |
//! | any other | that byte itself |

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use agent::{
    protocol::{
        Address, EndCause, Endpoint, Flow, Input, Progress, Standing,
        detect::{Opening, detect},
        http1,
    },
    span::{Kind, attribute::UNOBSERVED},
};

/// Begins a step. It does not occur in text.
pub const ESCAPE: u8 = 0xff;

/// Bits of the first byte.
pub const CLIENT: u8 = 1;
pub const OLDER: u8 = 2;

/// Nanoseconds from one step to the next.
const STEP_NS: u64 = 100;

/// The code of a flow's end.
pub const fn code(cause: EndCause) -> u8 {
    match cause {
        EndCause::Closed => b'c',
        EndCause::Reset => b'r',
        EndCause::TimedOut => b't',
        EndCause::Unobserved => b'u',
    }
}

fn cause(byte: u8) -> Option<EndCause> {
    let causes = [
        EndCause::Closed,
        EndCause::Reset,
        EndCause::TimedOut,
        EndCause::Unobserved,
    ];
    causes.into_iter().find(|cause| code(*cause) == byte)
}

/// One input of a session.
#[derive(Clone, Debug)]
enum What {
    Bytes(Vec<u8>),
    Hole(u64, [u8; 8]),
    End(EndCause),
}

#[derive(Clone, Debug)]
struct Step {
    flow: Flow,
    time_ns: u64,
    turn_start: bool,
    what: What,
}

/// Panics when the session breaks its contract, or says something else of the same bytes when they
/// come one by one.
pub fn run(data: &[u8]) {
    let Some((&head, rest)) = data.split_first() else {
        return;
    };
    let (kind, complete) = (
        if head & CLIENT == 0 {
            Kind::Server
        } else {
            Kind::Client
        },
        head & OLDER == 0,
    );
    let steps = steps(rest);
    check_detection(&steps);
    let whole = run_steps(kind, complete, &steps);
    if steps.iter().any(begins_with_line_end) {
        return;
    }
    let split: Vec<Step> = steps.iter().flat_map(one_by_one).collect();
    let pieces = run_steps(kind, complete, &split);
    assert_eq!(
        certain(whole),
        certain(pieces),
        "whole (left) and byte by byte (right): {steps:?}"
    );
}

fn steps(bytes: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut current = Step {
        flow: Flow::Request,
        time_ns: STEP_NS,
        turn_start: true,
        what: What::Bytes(Vec::new()),
    };
    let mut bytes = bytes.iter().copied();
    while let Some(byte) = bytes.next() {
        let code = if byte == ESCAPE { bytes.next() } else { None };
        let (flow, what) = match code {
            Some(b'>') => (Flow::Request, None),
            Some(b'<') => (Flow::Response, None),
            Some(b',') => (current.flow, None),
            Some(b'#') => (current.flow, Some(hole(&mut bytes))),
            Some(byte) if let Some(cause) = cause(byte) => (current.flow, Some(What::End(cause))),
            other => {
                if let What::Bytes(data) = &mut current.what {
                    data.push(other.unwrap_or(byte));
                }
                continue;
            }
        };
        let time_ns = current.time_ns + STEP_NS;
        let next = |time_ns, turn_start| Step {
            flow,
            time_ns,
            turn_start,
            what: What::Bytes(Vec::new()),
        };
        let turn_start = flow != current.flow;
        steps.push(std::mem::replace(&mut current, next(time_ns, turn_start)));
        if let Some(what) = what {
            let step = Step { what, ..current };
            current = next(time_ns + STEP_NS, false);
            steps.push(step);
        }
    }
    steps.push(current);
    steps.retain(|step| !matches!(&step.what, What::Bytes(data) if data.is_empty()));
    steps
}

fn hole(bytes: &mut impl Iterator<Item = u8>) -> What {
    let mut take = || [(); 8].map(|()| bytes.next().unwrap_or(0));
    // Positions of a flow count its bytes: no connection comes near the end of their range.
    let length = u64::from_le_bytes(take()) >> 8;
    What::Hole(length, take())
}

/// Where a parser lost its place, a line end at the start of a turn alone could still be followed
/// by a message; together with what does follow it can not. Both are honest and not the same.
fn begins_with_line_end(step: &Step) -> bool {
    matches!(&step.what, What::Bytes(data) if step.turn_start
        && matches!(data.first(), Some(b'\r' | b'\n')))
}

/// The bytes of a step each on its own, but for the first line of a turn: where a parser lost its
/// place, it looks for a message there, and needs the line whole.
fn one_by_one(step: &Step) -> Vec<Step> {
    let What::Bytes(data) = &step.what else {
        return vec![step.clone()];
    };
    let line = data.iter().position(|byte| *byte == b'\n');
    let whole = match line {
        Some(end) if step.turn_start => end + 1,
        _ => 1,
    };
    let (first, rest) = data.split_at_checked(whole).unwrap_or((data, &[]));
    let piece = |bytes: &[u8], turn_start| Step {
        turn_start,
        what: What::Bytes(bytes.to_vec()),
        ..step.clone()
    };
    let rest = rest.iter().map(|byte| piece(&[*byte], false));
    std::iter::once(piece(first, step.turn_start))
        .chain(rest)
        .collect()
}

/// Without the end of what was not seen whole: how far it got may depend on the pieces.
fn certain(mut progress: Vec<Progress>) -> Vec<Progress> {
    for news in &mut progress {
        if let Progress::Finished {
            start_ns,
            end_ns,
            details,
            ..
        } = news
            && details.attributes.iter().any(|each| each.key == UNOBSERVED)
        {
            *end_ns = *start_ns;
        }
    }
    progress
}

/// What detection says is asked at every length, as the tracker does.
fn check_detection(steps: &[Step]) {
    let mut flows = [Vec::new(), Vec::new()];
    for step in steps.iter().take(16) {
        let What::Bytes(data) = &step.what else {
            continue;
        };
        let own = usize::from(step.flow == Flow::Response);
        if let Some(flow) = flows.get_mut(own) {
            flow.extend_from_slice(data.get(..data.len().min(256)).unwrap_or(data));
            http1::detect(step.flow, flow);
        }
        for kind in [None, Some(Kind::Server), Some(Kind::Client)] {
            for complete in [false, true] {
                let [inbound, outbound] = &flows;
                detect(Opening {
                    inbound,
                    outbound,
                    kind,
                    complete,
                });
            }
        }
    }
}

fn endpoint(kind: Kind, complete: bool) -> Endpoint {
    let address = |last, port| Address::Inet {
        ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)),
        port,
    };
    let (local, peer) = match kind {
        Kind::Server => (address(1, 8080), address(2, 50_000)),
        Kind::Client => (address(2, 50_000), address(1, 8080)),
    };
    Endpoint {
        kind,
        local,
        peer,
        complete,
        encrypted: false,
    }
}

/// Feeds a session as the tracker does: nothing after the end of a flow, nothing once it is over;
/// at last the observation ends.
fn run_steps(kind: Kind, complete: bool, steps: &[Step]) -> Vec<Progress> {
    let mut session = http1::session(endpoint(kind, complete));
    let mut progress = Vec::new();
    let mut positions = [0_u64; 2];
    let mut ended = [false; 2];
    let last_ns = steps.last().map_or(0, |step| step.time_ns) + STEP_NS;
    let rest = [Flow::Request, Flow::Response].map(|flow| Step {
        flow,
        time_ns: last_ns,
        turn_start: false,
        what: What::End(EndCause::Unobserved),
    });
    let mut open = BTreeMap::new();
    for step in steps.iter().chain(&rest) {
        let flow = usize::from(step.flow == Flow::Response);
        let (Some(position), Some(has_ended)) = (positions.get_mut(flow), ended.get_mut(flow))
        else {
            continue;
        };
        if *has_ended {
            continue;
        }
        *has_ended = matches!(step.what, What::End(_));
        session.handle(step.flow, input(step, position));
        while let Some(news) = session.poll() {
            check_order(&mut open, &news);
            progress.push(news);
        }
        for flow in [Flow::Request, Flow::Response] {
            session.awaited(flow);
        }
        if session.standing() != Standing::Going {
            break;
        }
    }
    assert!(
        open.values().all(|state| *state == State::Finished),
        "left open: {open:?}, {:?}: {steps:?}",
        session.standing()
    );
    progress
}

fn input<'a>(step: &'a Step, position: &mut u64) -> Input<'a> {
    let start = *position;
    let time_ns = step.time_ns;
    match &step.what {
        What::Bytes(data) => {
            *position += data.len() as u64;
            Input::Bytes {
                data,
                position: start,
                time_ns,
                turn_start: step.turn_start,
            }
        }
        What::Hole(length, tail) => {
            *position += length;
            Input::Skipped {
                length: *length,
                position: start,
                last_ns: time_ns,
                tail: *tail,
            }
        }
        What::End(cause) => Input::End {
            cause: *cause,
            time_ns,
        },
    }
}

/// How far an exchange is, in the order of [`Progress`].
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum State {
    Started,
    Head,
    Response,
    Finished,
}

fn check_order(open: &mut BTreeMap<u64, State>, news: &Progress) {
    let (exchange, next) = match news {
        Progress::RequestStarted { exchange, .. } => {
            assert_eq!(*exchange, open.len() as u64, "numbers follow each other");
            open.insert(*exchange, State::Started);
            return;
        }
        Progress::RequestHead { exchange, .. } => (exchange, State::Head),
        Progress::ResponseStarted { exchange, .. } => (exchange, State::Response),
        Progress::Finished {
            exchange,
            start_ns,
            end_ns,
            details,
        } => {
            assert!(start_ns <= end_ns, "{news:?}");
            assert!(!details.name.is_empty(), "{news:?}");
            (exchange, State::Finished)
        }
    };
    let state = open.get_mut(exchange).expect("it was started");
    assert!(*state < next, "{news:?} after {state:?}");
    *state = next;
}
