//! Gaps, and where the walk goes on after them.

use super::*;

const NONE_OPEN: &dyn Fn(u32) -> bool = &|_| false;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [.., high, low] = (payload.len() as u32).to_be_bytes();
    [&[0, high, low, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// What happened, in short.
fn walk(walker: &mut Walker, position: u64, data: &[u8]) -> Vec<String> {
    let mut chunk = Chunk {
        data,
        position,
        time_ns: 1,
    };
    let events = std::iter::from_fn(|| walker.next(&mut chunk, NONE_OPEN).map(name));
    events.collect()
}

fn skip(walker: &mut Walker, length: u64, tail: [u8; 8]) -> (Vec<String>, bool) {
    let mut gap = Gap {
        length,
        position: 0,
        time_ns: 1,
        tail,
    };
    let mut header = None;
    let events = std::iter::from_fn(|| walker.skip(&mut gap, &mut header).map(name)).collect();
    (events, header.is_some())
}

fn name(event: Event<'_>) -> String {
    match event {
        Event::Frame(header, start) => {
            format!("{:?} {} at {}", header.kind, header.stream, start.position)
        }
        Event::Payload(bytes) => format!("{} bytes", bytes.len()),
        Event::Missing(length) => format!("{length} missing"),
        Event::End => "end".to_owned(),
        Event::Lost => "lost".to_owned(),
        Event::Refused => "refused".to_owned(),
    }
}

/// A server's frames, past its SETTINGS.
fn server() -> Walker {
    let mut walker = Walker::new(Flow::Response, Begin::Whole);
    walk(&mut walker, 0, &frame(4, 0, 0, b""));
    walker
}

#[test]
fn a_gap_within_a_payload_costs_nothing() {
    let mut walker = server();
    let data = frame(0, 0, 1, &[7; 100]);
    assert_eq!(
        walk(&mut walker, 9, &data[..19]),
        ["Data 1 at 9", "10 bytes"]
    );
    assert_eq!(skip(&mut walker, 50, [0; 8]).0, ["50 missing"]);
    assert_eq!(walk(&mut walker, 78, &data[69..]), ["40 bytes", "end"]);
    // A gap to the end of one frame, and the next one.
    walk(&mut walker, 118, &data[..9]);
    assert_eq!(skip(&mut walker, 100, [0; 8]).0, ["100 missing", "end"]);
    assert_eq!(
        walk(&mut walker, 227, &frame(6, 0, 0, &[0; 8])),
        ["Ping 0 at 227", "8 bytes", "end"]
    );
}

/// Scenario: a gap reaches into the next frame. Guarantee: the frame in progress has ended, and the
/// walk goes on at the next place that must be a frame, not before.
#[test]
fn a_gap_over_a_header_is_a_loss() {
    let mut walker = server();
    walk(&mut walker, 9, &frame(0, 0, 1, &[7; 100])[..20]);
    let (events, _) = skip(&mut walker, 200, [0; 8]);
    assert_eq!(events, ["89 missing", "end", "lost"]);
    assert!(walker.is_lost());
    let mut rest = b"the middle of some content\0\0\0\x01".to_vec();
    let from = rest.len() as u64;
    rest.extend(frame(1, 4, 3, b"\x88"));
    rest.extend(frame(0, 1, 3, b"ok"));
    assert_eq!(
        walk(&mut walker, 300, &rest),
        [
            format!("Headers 3 at {}", 300 + from),
            "1 bytes".to_owned(),
            "end".to_owned(),
            format!("Data 3 at {}", 310 + from),
            "2 bytes".to_owned(),
            "end".to_owned()
        ]
    );
}

/// Scenario: a call ends with the empty frame that ends a stream, and only its last eight bytes
/// are known. Guarantee: the frame is found, unless frames may be so long that the ninth matters.
#[test]
fn the_tail_of_a_gap_may_be_a_frame_header() {
    let end = frame(0, 1, 1, b"");
    let tail: [u8; 8] = end[1..].try_into().expect("eight bytes");
    let mut walker = server();
    walk(&mut walker, 9, &frame(0, 0, 1, &[7; 100])[..9]);
    assert_eq!(
        skip(&mut walker, 109, tail),
        (vec!["100 missing".to_owned(), "end".to_owned()], true)
    );
    let mut walker = server();
    walker.allow(1 << 20);
    walk(&mut walker, 9, &frame(0, 0, 1, &[7; 100])[..9]);
    let (events, found) = skip(&mut walker, 109, tail);
    assert_eq!(events, ["100 missing", "end", "lost"]);
    assert!(!found);
}

/// Section 3.4: both sides begin as they must, or this is another protocol.
#[test]
fn beginnings_are_checked() {
    let mut walker = Walker::new(Flow::Request, Begin::Whole);
    assert_eq!(walk(&mut walker, 0, b"PRI * HTTP/2.1"), ["refused"]);
    let mut walker = Walker::new(Flow::Response, Begin::Whole);
    assert_eq!(walk(&mut walker, 0, b"HTTP/1.1 400 Bad"), ["refused"]);
    let mut walker = Walker::new(Flow::Request, Begin::Whole);
    assert_eq!(walk(&mut walker, 0, &PREFACE[..10]), [""; 0]);
    assert_eq!(walk(&mut walker, 10, &PREFACE[10..]), [""; 0]);
    assert_eq!(
        walk(&mut walker, 24, &frame(4, 0, 0, b"")),
        ["Settings 0 at 24", "end"]
    );
}

/// A frame longer than its receiver allows is no frame (section 4.2); one that it allows is.
#[test]
fn frames_are_as_long_as_their_receiver_allows() {
    let long = [0, 0x40, 0x01, 0, 0, 0, 0, 0, 1];
    let mut walker = server();
    assert_eq!(walk(&mut walker, 9, &long), ["lost"]);
    let mut walker = server();
    walker.allow(0x4001);
    assert_eq!(walk(&mut walker, 9, &long), ["Data 1 at 9"]);
    assert_eq!(walker.remaining(), Some(0x4001));
}

/// Bytes that could be a frame are not enough, unless their stream is known to be open.
#[test]
fn a_frame_that_could_be_is_not_enough() {
    let mut content = b"content\x55".to_vec();
    content.extend([0, 0x0f, 0xff, 0, 0, 0, 0x01, 0x23, 0x45]);
    content.extend([7; 20]);
    let mut walker = Walker::new(Flow::Request, Begin::Late);
    assert_eq!(walk(&mut walker, 0, &content), [""; 0]);
    assert!(walker.is_lost());
    let mut chunk = Chunk {
        data: &content,
        position: 0,
        time_ns: 1,
    };
    let event = walker.next(&mut chunk, &|id| id == 0x0001_2345);
    assert_eq!(event.map(name).as_deref(), Some("Data 74565 at 8"));
}

/// Scenario: the agent comes within a SETTINGS frame whose values, read from the wrong byte, pass
/// for two frames in a row (from a connection of tonic and grpcio). Guarantee: the walk begins with
/// the frame behind it.
#[test]
fn settings_are_not_taken_for_frames() {
    let settings = b"\x40\0\0\0\x06\0\0\x40\0\xfe\x03\0\0\0\x01";
    let rest = [&settings[..], &frame(8, 0, 0, b"\0\x3f\0\x01")].concat();
    let mut walker = Walker::new(Flow::Response, Begin::Late);
    assert_eq!(
        walk(&mut walker, 0, &rest),
        ["WindowUpdate 0 at 15", "4 bytes", "end"]
    );
}
