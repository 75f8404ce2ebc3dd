//! What vectors do not show: order of records, bounds, heads in pieces, ends that were not seen.

mod calls;
mod lost;

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::protocol::{Address, EndCause};
use crate::span::{Details, Kind, Value, attribute};

const SECOND: u64 = 1_000_000_000;

/// `:method GET`, `:scheme http`, `:path /`, and an authority that becomes an entry.
const GET: &[u8] = b"\x82\x86\x84\x41\x01a";

struct Harness {
    session: Http2,
    positions: [u64; 2],
}

impl Harness {
    /// A connection past its preface and both SETTINGS.
    fn new(kind: Kind) -> Self {
        let mut harness = Self::at(kind, true);
        harness.feed(Flow::Request, super::super::frame::PREFACE, 1);
        harness.frame(Flow::Request, 4, 0, 0, b"");
        harness.frame(Flow::Response, 4, 0, 0, b"");
        harness
    }

    fn at(kind: Kind, complete: bool) -> Self {
        let address = Address::Inet {
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 80,
        };
        let session = Http2::new(Endpoint {
            kind,
            local: address.clone(),
            peer: address,
            complete,
            encrypted: false,
        });
        Self {
            session,
            positions: [0; 2],
        }
    }

    fn feed(&mut self, flow: Flow, data: &[u8], time_ns: u64) {
        let position = &mut self.positions[usize::from(flow == Flow::Response)];
        let input = Input::Bytes {
            data,
            position: *position,
            time_ns,
            turn_start: false,
        };
        *position += data.len() as u64;
        self.session.handle(flow, input);
    }

    fn frame_at(&mut self, flow: Flow, [kind, flags, stream]: [u8; 3], payload: &[u8], at_ns: u64) {
        self.feed(flow, &frame(kind, flags, stream, payload), at_ns);
    }

    fn frame(&mut self, flow: Flow, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
        self.frame_at(flow, [kind, flags, stream], payload, 1);
    }

    fn skip(&mut self, flow: Flow, length: u64, last_ns: u64) {
        let position = &mut self.positions[usize::from(flow == Flow::Response)];
        let input = Input::Skipped {
            length,
            position: *position,
            last_ns,
            tail: [0; 8],
        };
        *position += length;
        self.session.handle(flow, input);
    }

    fn progress(&mut self) -> Vec<Progress> {
        std::iter::from_fn(|| self.session.poll()).collect()
    }

    /// Number, start, end and details of what has finished.
    fn finished(&mut self) -> Vec<(u64, u64, u64, Details)> {
        let finished = |progress| match progress {
            Progress::Finished {
                exchange,
                start_ns,
                end_ns,
                details,
            } => Some((exchange, start_ns, end_ns, details)),
            _ => None,
        };
        self.progress().into_iter().filter_map(finished).collect()
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [.., high, low] = (payload.len() as u32).to_be_bytes();
    [&[0, high, low, kind, flags, 0, 0, 0, stream], payload].concat()
}

fn text(details: &Details, key: &str) -> Option<String> {
    Some(match attribute::find(&details.attributes, key)? {
        Value::String(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        other => format!("{other:?}"),
    })
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
/// `END_STREAM` and `END_HEADERS`.
const WHOLE: u8 = 5;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Scenario: a thread reads the response before the record of the request was written. Guarantee:
/// one exchange, in the order of the contract, that does not end before it starts.
#[test]
fn a_response_may_be_recorded_before_its_request() {
    let mut harness = Harness::new(Kind::Client);
    harness.frame_at(Flow::Response, [HEADERS, END_HEADERS, 1], b"\x88", 200);
    harness.frame_at(Flow::Response, [DATA, END_STREAM, 1], b"ok", 300);
    assert_eq!(harness.progress(), []);
    harness.frame_at(Flow::Request, [HEADERS, WHOLE, 1], GET, 310);
    let progress = harness.progress();
    let kinds: Vec<&str> = progress
        .iter()
        .map(|step| match step {
            Progress::RequestStarted { .. } => "started",
            Progress::RequestHead { .. } => "head",
            Progress::ResponseStarted { .. } => "response",
            Progress::Finished { .. } => "finished",
        })
        .collect();
    assert_eq!(kinds, ["started", "head", "response", "finished"]);
    let Some(Progress::Finished {
        start_ns,
        end_ns,
        details,
        ..
    }) = progress.last()
    else {
        panic!("it finished");
    };
    assert_eq!((*start_ns, *end_ns), (310, 310));
    assert_eq!(
        text(details, attribute::HTTP_RESPONSE_BODY_SIZE).as_deref(),
        Some("2")
    );
}

/// The same with a refusal; and a response whose request never comes is counted, with those before
/// it that must have been.
#[test]
fn a_reset_may_be_recorded_before_its_request() {
    let mut harness = Harness::new(Kind::Client);
    harness.frame(Flow::Response, RST_STREAM, 0, 1, &[0, 0, 0, 7]);
    harness.frame(Flow::Request, HEADERS, WHOLE, 1, GET);
    let finished = harness.finished();
    assert_eq!(
        text(&finished[0].3, attribute::ERROR_TYPE).as_deref(),
        Some("refused_stream")
    );
    harness.frame(Flow::Response, HEADERS, END_HEADERS, 7, b"\x88");
    assert_eq!(harness.session.take_shortfall(), Shortfall::default());
    harness.frame_at(Flow::Response, [6, 0, 0], &[0; 8], 10 * SECOND);
    assert_eq!(harness.session.take_shortfall().exchanges, 3);
    assert_eq!(harness.progress(), []);
}

/// A head in any number of pieces is one head, with the time and place of its first byte; padding
/// and priority are no part of it.
#[test]
fn heads_come_in_pieces() {
    let traceparent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let head = [
        GET,
        b"\x00\x0btraceparent",
        &[traceparent.len() as u8],
        traceparent,
    ]
    .concat();
    for cut in 0..head.len() {
        let mut harness = Harness::new(Kind::Server);
        let start = harness.positions[0];
        let (first, rest) = head.split_at(cut);
        // Pad length, dependency and weight before; padding after.
        let padded = [&[3, 0, 0, 0, 0, 9][..], first, &[0; 3]].concat();
        harness.frame_at(Flow::Request, [HEADERS, 0x28 | END_STREAM, 1], &padded, 100);
        assert_eq!(harness.progress(), [], "cut at {cut}");
        let (second, third) = rest.split_at(rest.len() / 2);
        harness.frame_at(Flow::Request, [CONTINUATION, 0, 1], second, 200);
        harness.frame_at(Flow::Request, [CONTINUATION, END_HEADERS, 1], third, 300);
        let progress = harness.progress();
        let started = Progress::RequestStarted {
            exchange: 0,
            stream: Some(1),
            position: start,
            time_ns: 100,
        };
        assert_eq!(progress[0], started, "cut at {cut}");
        let Progress::RequestHead { headers, .. } = &progress[1] else {
            panic!("cut at {cut}: {progress:?}");
        };
        let expected = str::from_utf8(traceparent).expect("text");
        assert_eq!(headers.traceparent.as_deref(), Some(expected));
    }
}

/// Scenario: another frame stands where a continuation must, or a gap took the rest of a head.
/// Guarantee: the request starts with what was seen, says that its head is not known, and entries
/// that may be missing stay unknown.
#[test]
fn a_head_that_is_cut_is_used_as_far_as_it_goes() {
    for by_gap in [true, false] {
        let mut harness = Harness::new(Kind::Server);
        harness.frame(Flow::Request, HEADERS, WHOLE, 1, GET);
        if by_gap {
            let head = frame(HEADERS, WHOLE, 3, b"\x82\x86\xbe\x44\x05/path");
            harness.feed(Flow::Request, &head[..12], 1);
            harness.skip(Flow::Request, head.len() as u64 - 12, 1);
        } else {
            harness.frame(Flow::Request, HEADERS, END_STREAM, 3, b"\x82\x86\xbe");
            harness.frame(Flow::Request, 6, 0, 0, &[0; 8]);
        }
        // The authority of the first request is not believed any more.
        harness.frame(Flow::Request, HEADERS, WHOLE, 5, b"\x82\x86\x84\xbe");
        for stream in [3, 5] {
            harness.frame(Flow::Response, HEADERS, WHOLE, stream, b"\x88");
        }
        let finished = harness.finished();
        let [cut, later] = &finished[..] else {
            panic!("{finished:?}");
        };
        let says = |details, key| text(details, key);
        assert_eq!(says(&cut.3, attribute::URL_PATH), None, "gap: {by_gap}");
        assert_eq!(
            says(&cut.3, attribute::UNOBSERVED).as_deref(),
            Some("request_head")
        );
        assert_eq!(
            says(&cut.3, attribute::SERVER_ADDRESS).as_deref(),
            Some("a")
        );
        assert_eq!(says(&later.3, attribute::URL_PATH).as_deref(), Some("/"));
        assert_eq!(
            says(&later.3, attribute::SERVER_ADDRESS).as_deref(),
            Some("127.0.0.1")
        );
        assert_eq!(
            says(&later.3, attribute::UNOBSERVED).as_deref(),
            Some("request_head")
        );
    }
}

/// The bound holds, and what is beyond it is counted; streams that end make room.
#[test]
fn streams_are_bounded() {
    let mut harness = Harness::new(Kind::Server);
    let open = |harness: &mut Harness, nth: u32| {
        let mut head = frame(HEADERS, WHOLE, 0, b"\x82\x86\x84");
        head[5..9].copy_from_slice(&(2 * nth + 1).to_be_bytes());
        harness.feed(Flow::Request, &head, 1);
    };
    let limit = STREAMS_LIMIT as u32;
    (0..limit + 3).for_each(|nth| open(&mut harness, nth));
    assert_eq!(harness.session.streams.len(), STREAMS_LIMIT);
    assert_eq!(harness.session.take_shortfall().exchanges, 3);
    harness.frame(Flow::Response, HEADERS, WHOLE, 1, b"\x88");
    open(&mut harness, limit + 3);
    assert_eq!(harness.session.streams.len(), STREAMS_LIMIT);
    assert_eq!(harness.session.take_shortfall().exchanges, 0);
}

/// Scenario: frames of the response flow are lost while a stream is open. Guarantee: it still
/// finishes with its end where that is seen; where not, unobserved, and not before two minutes.
#[test]
fn ends_that_may_have_passed_are_waited_for_and_given_up() {
    for seen in [true, false] {
        let mut harness = Harness::new(Kind::Server);
        harness.frame(Flow::Request, HEADERS, WHOLE, 1, GET);
        harness.frame_at(Flow::Response, [HEADERS, END_HEADERS, 1], b"\x88", 5);
        harness.skip(Flow::Response, 500, SECOND);
        assert_eq!(harness.session.take_shortfall().late_joins, 1);
        harness.frame_at(Flow::Response, [DATA, 0, 1], b"later", 2 * SECOND);
        assert_eq!(harness.finished(), []);
        if seen {
            harness.frame_at(Flow::Response, [DATA, END_STREAM, 1], b"", 3 * SECOND);
            let (_, _, end_ns, details) = &harness.finished()[0];
            assert_eq!(*end_ns, 3 * SECOND);
            assert_eq!(text(details, attribute::UNOBSERVED), None);
            assert_eq!(text(details, attribute::HTTP_RESPONSE_BODY_SIZE), None);
        } else {
            harness.frame_at(Flow::Response, [6, 0, 0], &[0; 8], 100 * SECOND);
            assert_eq!(harness.finished(), []);
            harness.frame_at(Flow::Response, [6, 0, 0], &[0; 8], 130 * SECOND);
            let (_, _, end_ns, details) = &harness.finished()[0];
            assert_eq!(*end_ns, 2 * SECOND);
            assert_eq!(
                text(details, attribute::UNOBSERVED).as_deref(),
                Some("response_end")
            );
        }
    }
}

/// GOAWAY ends what the server will not answer, and nothing else (section 6.8).
#[test]
fn goaway_ends_later_streams_alone() {
    let mut harness = Harness::new(Kind::Client);
    for stream in [1, 3, 5] {
        harness.frame(Flow::Request, HEADERS, WHOLE, stream, GET);
    }
    harness.frame_at(
        Flow::Response,
        [GOAWAY, 0, 0],
        &[0x7f, 255, 255, 255, 0, 0, 0, 0],
        50,
    );
    assert_eq!(harness.finished(), []);
    harness.frame_at(
        Flow::Response,
        [GOAWAY, 0, 0],
        &[0, 0, 0, 1, 0, 0, 0, 0],
        60,
    );
    let ended: Vec<_> = harness
        .finished()
        .into_iter()
        .map(|(number, _, end_ns, details)| (number, end_ns, text(&details, attribute::ERROR_TYPE)))
        .collect();
    let goaway = || Some("goaway".to_owned());
    assert_eq!(ended, [(1, 60, goaway()), (2, 60, goaway())]);
    harness.frame(Flow::Response, HEADERS, WHOLE, 1, b"\x88");
    assert_eq!(text(&harness.finished()[0].3, attribute::ERROR_TYPE), None);
}

/// The rest of the frame that ends a stream is asked for, and its last byte ends the exchange.
#[test]
fn the_end_of_a_long_frame_is_awaited() {
    let mut harness = Harness::new(Kind::Server);
    harness.frame(Flow::Request, HEADERS, WHOLE, 1, GET);
    harness.frame(Flow::Response, HEADERS, END_HEADERS, 1, b"\x88");
    assert_eq!(harness.session.awaited(Flow::Response), None);
    let last = frame(DATA, END_STREAM, 1, &[7; 1000]);
    harness.feed(Flow::Response, &last[..109], 20);
    let awaited = Some(Awaited::Bytes(900));
    assert_eq!(harness.session.awaited(Flow::Response), awaited);
    harness.skip(Flow::Response, 899, 30);
    assert_eq!(harness.finished(), []);
    harness.skip(Flow::Response, 1, 40);
    let (_, _, end_ns, details) = &harness.finished()[0];
    assert_eq!(*end_ns, 40);
    assert_eq!(
        text(details, attribute::HTTP_RESPONSE_BODY_SIZE).as_deref(),
        Some("1000")
    );
}

/// How a connection ends decides what its open streams say.
#[test]
fn the_end_of_the_connection_is_told_as_it_was() {
    for (cause, client_left, error, unobserved) in [
        (EndCause::Closed, false, Some("connection_closed"), None),
        (EndCause::Reset, false, Some("connection_reset"), None),
        (EndCause::TimedOut, false, Some("timeout"), None),
        (EndCause::Closed, true, None, Some("response")),
        (EndCause::Unobserved, false, None, Some("response")),
    ] {
        let mut harness = Harness::new(Kind::Client);
        harness.frame(Flow::Request, HEADERS, WHOLE, 1, GET);
        let end = |cause| Input::End { cause, time_ns: 90 };
        if client_left {
            harness.session.handle(Flow::Request, end(EndCause::Closed));
            assert_eq!(harness.session.standing(), Standing::Going);
        }
        harness.session.handle(Flow::Response, end(cause));
        let details = &harness.finished()[0].3;
        assert_eq!(text(details, attribute::ERROR_TYPE).as_deref(), error);
        assert_eq!(text(details, attribute::UNOBSERVED).as_deref(), unobserved);
        assert_eq!(harness.session.standing(), Standing::Over);
    }
}

/// Scenario: a gap takes the end of a request. Guarantee: its response ends it, without a size.
#[test]
fn a_request_whose_end_was_missed_is_not_waited_for() {
    let mut harness = Harness::new(Kind::Server);
    harness.frame(Flow::Request, HEADERS, END_HEADERS, 1, GET);
    harness.skip(Flow::Request, 100, 2);
    harness.frame_at(Flow::Response, [HEADERS, WHOLE, 1], b"\x88", 30);
    let (_, _, end_ns, details) = &harness.finished()[0];
    assert_eq!(*end_ns, 30);
    assert_eq!(text(details, attribute::HTTP_REQUEST_BODY_SIZE), None);
    assert_eq!(text(details, attribute::UNOBSERVED), None);
}

/// What the server takes is known while every word of it was seen: the least that it said, and how
/// often it spoke.
#[test]
fn what_the_server_takes_is_known_or_unknown() {
    let mut harness = Harness::new(Kind::Client);
    let said = |harness: &Harness| harness.session.server_settings();
    let settings = |seen, list_limit| Some(ServerSettings { seen, list_limit });
    assert_eq!(said(&harness), settings(1, None));
    let limit = |bytes: u16| [&[0, 3, 0, 0, 0, 9, 0, 6, 0, 0][..], &bytes.to_be_bytes()].concat();
    // What the client says of itself, and what it confirms, says nothing of the server.
    harness.frame(Flow::Request, 4, 0, 0, &limit(10));
    harness.frame(Flow::Response, 4, 1, 0, b"");
    assert_eq!(said(&harness), settings(1, None));
    harness.frame(Flow::Response, 4, 0, 0, &limit(9_000));
    harness.frame(Flow::Response, 4, 0, 0, &limit(10_000));
    assert_eq!(said(&harness), settings(3, Some(9_000)));
    harness.skip(Flow::Response, 100, 2);
    assert_eq!(said(&harness), None);
    assert_eq!(said(&Harness::at(Kind::Client, false)), None);
}
