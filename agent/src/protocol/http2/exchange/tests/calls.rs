//! gRPC and its like: statuses, deadlines, messages.

use super::*;

/// Scenario: a caller gives its call 100 ms and resets it. Guarantee: that is a missed deadline
/// when they have passed, for both ends, and otherwise a call given up, which is no fault of the
/// server. No status is made up.
#[test]
fn a_call_reset_after_its_deadline_has_missed_it() {
    let head = [
        &b"\x83\x86\x44\x04/s/m\x41\x01a"[..],
        b"\x00\x0ccontent-type\x10application/grpc\x00\x0cgrpc-timeout\x04100m",
    ]
    .concat();
    for (kind, end_ns, expected) in [
        (Kind::Client, SECOND, Some("DEADLINE_EXCEEDED")),
        (Kind::Server, SECOND, Some("DEADLINE_EXCEEDED")),
        (Kind::Client, 50_000_000, Some("cancel")),
        (Kind::Server, 50_000_000, None),
    ] {
        let mut harness = Harness::new(kind);
        harness.frame_at(Flow::Request, [HEADERS, WHOLE, 1], &head, 1);
        harness.frame_at(Flow::Request, [RST_STREAM, 0, 1], &[0, 0, 0, 8], end_ns);
        let (_, _, actual_ns, details) = &harness.finished()[0];
        assert_eq!(*actual_ns, end_ns);
        assert_eq!(details.name, "s/m");
        assert_eq!(text(details, attribute::ERROR_TYPE).as_deref(), expected);
        assert_eq!(text(details, attribute::RPC_RESPONSE_STATUS_CODE), None);
        assert_eq!(
            text(details, attribute::UNOBSERVED).as_deref(),
            Some("response")
        );
    }
}

/// A response of HTTP without a gRPC status, as proxies send: the client reads it as gRPC says, the
/// server's side keeps to what it sent.
#[test]
fn a_call_without_a_status_of_its_own() {
    let head = b"\x83\x86\x44\x04/s/m\x00\x0ccontent-type\x10application/grpc";
    for (kind, status, error) in [
        (Kind::Client, Some("UNAVAILABLE"), "UNAVAILABLE"),
        (Kind::Server, None, "503"),
    ] {
        let mut harness = Harness::new(kind);
        harness.frame(Flow::Request, HEADERS, WHOLE, 1, head);
        harness.frame(Flow::Response, HEADERS, WHOLE, 1, b"\x08\x03503");
        let details = &harness.finished()[0].3;
        let says = |key| text(details, key);
        assert_eq!(says(attribute::RPC_RESPONSE_STATUS_CODE).as_deref(), status);
        assert_eq!(
            says(attribute::HTTP_RESPONSE_STATUS_CODE).as_deref(),
            Some("503")
        );
        assert_eq!(says(attribute::ERROR_TYPE).as_deref(), Some(error));
        assert_eq!(says(attribute::UNOBSERVED), None);
    }
}

/// Scenario: the agent joins a connection whose client repeats itself, so that the path is an entry
/// made before. Guarantee: the call is a span without a method, which says why.
#[test]
fn a_path_that_is_not_on_the_wire_stays_unknown() {
    let mut harness = Harness::at(Kind::Server, false);
    let head = b"\x83\x86\xc3\xc2\xc1\x00\x0ccontent-type\x10application/grpc";
    harness.frame(Flow::Request, HEADERS, WHOLE, 101, head);
    let trailers = b"\x00\x0bgrpc-status\x010";
    harness.frame(Flow::Response, HEADERS, END_HEADERS, 101, b"\x88");
    harness.frame(Flow::Response, HEADERS, WHOLE, 101, trailers);
    let details = &harness.finished()[0].3;
    assert_eq!(details.name, "grpc");
    assert_eq!(text(details, attribute::RPC_METHOD), None);
    assert_eq!(
        text(details, attribute::RPC_RESPONSE_STATUS_CODE).as_deref(),
        Some("OK")
    );
    assert_eq!(
        text(details, attribute::UNOBSERVED).as_deref(),
        Some("request_head")
    );
    assert_eq!(harness.session.take_shortfall().late_joins, 1);
}

/// Padding is no part of a message, nor of a body, wherever the frame is cut.
#[test]
fn padding_is_not_content() {
    let head = b"\x83\x86\x44\x04/s/m\x00\x0ccontent-type\x10application/grpc";
    // Pad length, one message of two bytes in each frame, and padding that looks like a message.
    let padded = frame(DATA, 8, 1, b"\x05\0\0\0\0\x02ab\0\0\0\0\0");
    for cut in 0..padded.len() {
        let mut harness = Harness::new(Kind::Server);
        harness.frame(Flow::Request, HEADERS, END_HEADERS, 1, head);
        harness.feed(Flow::Request, &padded[..cut], 1);
        harness.feed(Flow::Request, &padded[cut..], 1);
        harness.frame(Flow::Request, DATA, END_STREAM, 1, b"\0\0\0\0\0");
        harness.frame(
            Flow::Response,
            HEADERS,
            WHOLE,
            1,
            b"\x88\x00\x0bgrpc-status\x010",
        );
        let details = &harness.finished()[0].3;
        let messages = text(details, attribute::RPC_REQUEST_MESSAGES);
        assert_eq!(messages.as_deref(), Some("2"), "cut at {cut}");
    }
    let mut harness = Harness::new(Kind::Server);
    harness.frame(Flow::Request, HEADERS, END_HEADERS, 1, GET);
    harness.feed(Flow::Request, &padded, 1);
    harness.frame(Flow::Request, DATA, END_STREAM, 1, b"123");
    harness.frame(Flow::Response, HEADERS, WHOLE, 1, b"\x88");
    let details = &harness.finished()[0].3;
    let size = text(details, attribute::HTTP_REQUEST_BODY_SIZE);
    assert_eq!(size.as_deref(), Some("10"));
}

/// Scenario: only the beginning of each frame of a call is captured. Guarantee: messages are
/// counted as long as their prefixes are there, and not at all where one may be missing.
#[test]
fn messages_are_counted_over_gaps() {
    let head = b"\x83\x86\x44\x04/s/m\x00\x0ccontent-type\x10application/grpc";
    let long = [&b"\0\0\0\x03\xe8"[..], &[7; 1000]].concat();
    let two = [&long[..], b"\0\0\0\0\0"].concat();
    for (payload, captured, expected) in [(&long, 20, Some("2")), (&two, 20, None)] {
        let mut harness = Harness::new(Kind::Server);
        harness.frame(Flow::Request, HEADERS, END_HEADERS, 1, head);
        harness.feed(
            Flow::Request,
            &frame(DATA, 0, 1, payload)[..9 + captured],
            1,
        );
        harness.skip(Flow::Request, (payload.len() - captured) as u64, 1);
        harness.frame(Flow::Request, DATA, END_STREAM, 1, b"\0\0\0\0\x01a");
        harness.frame(
            Flow::Response,
            HEADERS,
            WHOLE,
            1,
            b"\x88\x00\x0bgrpc-status\x010",
        );
        let details = &harness.finished()[0].3;
        let messages = text(details, attribute::RPC_REQUEST_MESSAGES);
        assert_eq!(messages.as_deref(), expected);
    }
}

/// gRPC-Web and Connect are recognised and counted; a status in the body is not made up.
#[test]
fn other_calls_are_recognised() {
    let head = |content_type: &str| {
        let length = content_type.len() as u8;
        let fields = [&b"\x83\x86\x44\x04/s/m\x00\x0ccontent-type"[..], &[length]].concat();
        [&fields, content_type.as_bytes()].concat()
    };
    for (content_type, system, unobserved) in [
        ("application/grpc-web+proto", "grpc", Some("rpc_status")),
        ("application/connect+json", "connectrpc", Some("rpc_status")),
        ("application/proto", "connectrpc", None),
    ] {
        let mut harness = Harness::new(Kind::Client);
        let mut fields = head(content_type);
        if system == "connectrpc" {
            fields.extend(b"\x00\x18connect-protocol-version\x011");
        }
        harness.frame(Flow::Request, HEADERS, WHOLE, 1, &fields);
        harness.frame(Flow::Response, HEADERS, WHOLE, 1, b"\x88");
        let details = &harness.finished()[0].3;
        assert_eq!(details.name, "s/m");
        assert_eq!(
            text(details, attribute::RPC_SYSTEM_NAME).as_deref(),
            Some(system)
        );
        assert_eq!(text(details, attribute::RPC_RESPONSE_STATUS_CODE), None);
        assert_eq!(text(details, attribute::UNOBSERVED).as_deref(), unobserved);
        assert_eq!(text(details, attribute::ERROR_TYPE), None);
    }
}
