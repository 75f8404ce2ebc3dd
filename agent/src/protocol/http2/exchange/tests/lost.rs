//! Requests of which nothing was recorded: their numbers tell how many there were.

use super::*;

fn missed(harness: &mut Harness) -> u64 {
    harness.session.take_shortfall().exchanges
}

/// Requests in a gap are counted by the identifiers around it.
#[test]
fn requests_in_a_gap_are_counted() {
    let mut harness = Harness::new(Kind::Server);
    harness.frame(Flow::Request, HEADERS, WHOLE, 1, GET);
    harness.skip(Flow::Request, 100, 1);
    harness.frame(Flow::Request, HEADERS, WHOLE, 9, GET);
    let expected = Shortfall {
        exchanges: 3,
        late_joins: 1,
    };
    assert_eq!(harness.session.take_shortfall(), expected);
    assert_eq!(harness.session.highest_stream(), Some(9));
}

/// The records of a connection's beginning are lost: its first requests were numbered from 1.
#[test]
fn requests_in_a_gap_at_the_beginning_are_counted() {
    let mut harness = Harness::at(Kind::Server, true);
    harness.skip(Flow::Request, 1_000, 1);
    harness.frame(Flow::Request, HEADERS, WHOLE, 7, GET);
    assert_eq!(missed(&mut harness), 3);
}

/// On a connection older than the agent nobody knows how many there were before the first.
#[test]
fn requests_before_the_agent_are_not_lost() {
    let mut harness = Harness::at(Kind::Server, false);
    assert_eq!(harness.session.highest_stream(), None);
    harness.frame(Flow::Response, HEADERS, WHOLE, 5, b"\x88");
    harness.frame(Flow::Request, HEADERS, WHOLE, 7, GET);
    assert_eq!(missed(&mut harness), 0);
    assert_eq!(harness.session.highest_stream(), Some(7));
    harness.skip(Flow::Request, 100, 1);
    harness.frame(Flow::Request, HEADERS, WHOLE, 11, GET);
    assert_eq!(missed(&mut harness), 1);
}

/// A client may leave numbers out where nothing was lost.
#[test]
fn numbers_that_were_not_used_are_not_lost() {
    let mut harness = Harness::new(Kind::Server);
    harness.frame(Flow::Request, HEADERS, WHOLE, 1, GET);
    harness.frame(Flow::Request, HEADERS, WHOLE, 9, GET);
    assert_eq!(missed(&mut harness), 0);
}

/// Responses whose requests were lost count these once, whatever comes first: their end, or a
/// later request.
#[test]
fn a_lost_request_is_counted_once() {
    for ends_first in [true, false] {
        let mut harness = Harness::new(Kind::Client);
        harness.frame(Flow::Request, HEADERS, WHOLE, 1, GET);
        harness.skip(Flow::Request, 100, 1);
        for id in [1, 3, 5] {
            harness.frame(Flow::Response, HEADERS, WHOLE, id, b"\x88");
        }
        if ends_first {
            harness.frame_at(Flow::Response, [6, 0, 0], &[0; 8], 10 * SECOND);
            assert_eq!(missed(&mut harness), 2);
        }
        harness.frame_at(Flow::Request, [HEADERS, WHOLE, 9], GET, 11 * SECOND);
        let end = Input::End {
            cause: EndCause::Closed,
            time_ns: 12 * SECOND,
        };
        harness.session.handle(Flow::Response, end);
        assert_eq!(missed(&mut harness), if ends_first { 1 } else { 3 });
        assert_eq!(harness.finished().len(), 2);
    }
}

/// After an upgrade stream 1 is the request that asked for it, which HTTP/1 told.
#[test]
fn the_stream_of_an_upgrade_is_not_lost() {
    let mut harness = Harness::at(Kind::Server, true);
    harness.positions = [200, 100];
    harness.frame(Flow::Response, 4, 0, 0, b"");
    harness.frame(Flow::Response, HEADERS, WHOLE, 1, b"\x88");
    harness.skip(Flow::Request, 100, 1);
    harness.frame_at(Flow::Request, [HEADERS, WHOLE, 5], GET, 10 * SECOND);
    assert_eq!(missed(&mut harness), 1);
}

/// How long fields may refer to what was not seen: until the sender empties its table, or has
/// filled it anew.
#[test]
fn a_connection_lacks_fields_until_they_are_made_anew() {
    let mut harness = Harness::new(Kind::Server);
    harness.frame(Flow::Request, HEADERS, WHOLE, 1, GET);
    assert!(!harness.session.may_lack_fields());
    harness.skip(Flow::Request, 100, 1);
    assert!(harness.session.may_lack_fields());
    harness.frame(Flow::Request, HEADERS, WHOLE, 3, GET);
    assert!(harness.session.may_lack_fields());
    let emptied = [b"\x20", GET].concat();
    harness.frame(Flow::Request, HEADERS, WHOLE, 5, &emptied);
    assert!(!harness.session.may_lack_fields());

    let mut harness = Harness::at(Kind::Server, false);
    assert!(harness.session.may_lack_fields());
    for flow in [Flow::Request, Flow::Response] {
        // An entry of 32 bytes, a name of one and a value of 4,000.
        let mut block = b"\x40\x01x\x7f\xa1\x1e".to_vec();
        block.extend([b'v'; 4_000]);
        for nth in 0..17 {
            harness.frame(flow, HEADERS, WHOLE, 2 * nth + 1, &block);
        }
    }
    assert!(!harness.session.may_lack_fields());
}
