//! Which protocol a connection speaks, from the first bytes of both directions. Pure.
//!
//! Each row of the registry says what it thinks of each direction. `Certain` in one direction
//! decides; `Maybe` needs the other direction to agree; what is ambiguous waits for more bytes.
//! Nothing is guessed: a caller that has buffered [`LIMIT`] bytes or [`TURNS`] turns without an
//! answer stops asking.

use super::{Flow, Protocol, REGISTRY, Verdict};
use crate::span::Kind;

/// Bytes of one direction that are worth buffering for a verdict: the longest request line that
/// common servers accept (nginx, Apache and Node allow 8 to 16 KiB).
pub const LIMIT: usize = 16 * 1024;

/// Turns that are worth a try on a connection older than the agent, whose first bytes seen may
/// stand anywhere in a message.
pub const TURNS: usize = 8;

/// What was captured of a connection so far.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// First bytes received, contiguous; may be empty. On a connection older than the agent:
    /// those of the latest turn.
    pub inbound: &'a [u8],
    /// First bytes sent.
    pub outbound: &'a [u8],
    /// Our end, where it is known.
    pub kind: Option<Kind>,
    /// Bytes were seen from the connection's first one on, in both flows.
    pub complete: bool,
}

#[derive(Clone, Copy)]
pub enum Detection {
    /// Call again when there are more bytes.
    Undecided,
    /// This protocol, and our end is this kind: found out from the bytes where it was unknown.
    Found {
        protocol: &'static Protocol,
        kind: Kind,
    },
    /// None of ours. On a connection older than the agent a later turn may tell more.
    Unrecognised,
}

/// Asks every protocol of the registry.
pub fn detect(opening: Opening<'_>) -> Detection {
    detect_among(REGISTRY, opening)
}

fn detect_among(registry: &'static [Protocol], opening: Opening<'_>) -> Detection {
    let mut best: Option<(&'static Protocol, Kind)> = None;
    let mut ambiguous = false;
    let mut is_open = false;
    for protocol in registry {
        for kind in [Kind::Server, Kind::Client] {
            if opening.kind.is_some_and(|known| known != kind) {
                continue;
            }
            match judge(protocol, kind, opening) {
                Verdict::No => {}
                Verdict::NeedMore | Verdict::Maybe => is_open = true,
                Verdict::Certain => {
                    ambiguous |= best.is_some();
                    best = Some((protocol, kind));
                }
            }
        }
    }
    match best {
        Some((protocol, kind)) if !ambiguous => Detection::Found { protocol, kind },
        Some(_) => Detection::Undecided,
        None if is_open => Detection::Undecided,
        None => Detection::Unrecognised,
    }
}

/// One protocol's view of both directions, were our end of this kind.
fn judge(protocol: &Protocol, kind: Kind, opening: Opening<'_>) -> Verdict {
    let (request, response) = match kind {
        Kind::Server => (opening.inbound, opening.outbound),
        Kind::Client => (opening.outbound, opening.inbound),
    };
    let verdicts = (
        flow_verdict(protocol, Flow::Request, request),
        flow_verdict(protocol, Flow::Response, response),
    );
    match verdicts {
        (Verdict::Certain, _) | (_, Verdict::Certain) | (Verdict::Maybe, Verdict::Maybe) => {
            Verdict::Certain
        }
        (Verdict::No, Verdict::No) => Verdict::No,
        // The first byte of a flow that cannot begin this protocol says it all, but only where
        // it really was the first.
        (Verdict::No, _) | (_, Verdict::No) if opening.complete => Verdict::No,
        _ => Verdict::NeedMore,
    }
}

fn flow_verdict(protocol: &Protocol, flow: Flow, bytes: &[u8]) -> Verdict {
    if bytes.is_empty() {
        Verdict::NeedMore
    } else {
        (protocol.detect)(flow, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(inbound: &[u8], outbound: &[u8], kind: Option<Kind>, complete: bool) -> String {
        match detect(Opening {
            inbound,
            outbound,
            kind,
            complete,
        }) {
            Detection::Undecided => "undecided".to_owned(),
            Detection::Found { protocol, kind } => format!("{} {kind:?}", protocol.name),
            Detection::Unrecognised => "unrecognised".to_owned(),
        }
    }

    /// A first chunk of one byte is not enough, and not too little: Go's server reads one.
    #[test]
    fn waits_for_the_whole_request_line() {
        let request = b"GET / HTTP/1.1\r\n";
        for length in 0..request.len() {
            let (begun, _) = request.split_at(length);
            assert_eq!(found(begun, b"", Some(Kind::Server), true), "undecided");
        }
        assert_eq!(found(request, b"", Some(Kind::Server), true), "http Server");
    }

    /// Where the role is unknown, the side the request line comes from is the client.
    #[test]
    fn finds_the_role() {
        assert_eq!(
            found(b"GET / HTTP/1.1\r\n", b"", None, false),
            "http Server"
        );
        assert_eq!(
            found(b"", b"PUT /a HTTP/1.0\r\n", None, false),
            "http Client"
        );
        assert_eq!(
            found(b"HTTP/1.1 200 OK\r\n", b"", None, false),
            "http Client"
        );
        assert_eq!(
            found(b"", b"HTTP/1.1 200 OK\r\n", None, false),
            "http Server"
        );
    }

    /// On an older connection the middle of a message says nothing; the next head does.
    #[test]
    fn an_older_connection_may_begin_anywhere() {
        let body = b"\x00\x01middle of a body";
        assert_eq!(found(body, b"", None, false), "undecided");
        assert_eq!(
            found(body, b"HTTP/1.1 200 OK\r\n", None, false),
            "http Server"
        );
        assert_eq!(found(body, body, None, false), "unrecognised");
        assert_eq!(found(body, b"", Some(Kind::Server), true), "unrecognised");
    }

    /// Other line protocols and TLS are no HTTP of any version, whichever side we are.
    #[test]
    fn other_protocols_are_not_http() {
        let conversations: [(&[u8], &[u8]); 8] = [
            (
                b"EHLO client.example\r\n",
                b"220 mail.example ESMTP Postfix\r\n",
            ),
            (b"USER anonymous\r\n", b"220 (vsFTPd 3.0.3)\r\n"),
            (b"get x\r\n", b"END\r\n"),
            (b"GET x\r\n", b"$-1\r\n"),
            (b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"),
            (
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                b"\x16\x03\x03\x00\x7a\x02",
            ),
            (
                b"OPTIONS rtsp://example/x RTSP/1.0\r\n",
                b"RTSP/1.0 200 OK\r\n",
            ),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", b"SSH-2.0-OpenSSH_9.2p1\r\n"),
        ];
        for (request, response) in conversations {
            for kind in [None, Some(Kind::Server), Some(Kind::Client)] {
                assert_eq!(found(request, response, kind, true), "unrecognised");
                assert_eq!(found(response, request, kind, false), "unrecognised");
            }
        }
    }

    /// What could still become a request line is waited for, not taken.
    #[test]
    fn an_unfinished_line_is_not_http_yet() {
        assert_eq!(found(b"GET x", b"", Some(Kind::Server), true), "undecided");
        assert_eq!(
            found(b"GET /?q=HTTP/1.1", b"", Some(Kind::Server), true),
            "undecided"
        );
        assert_eq!(
            found(b"\r\nPROPFIND /d HTTP/1.1\n", b"", None, true),
            "http Server"
        );
    }

    /// A preface is enough, and nothing less of it is; a server may speak first.
    #[test]
    fn a_preface_is_http2() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let settings = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00d";
        for length in 0..preface.len() {
            let (begun, _) = preface.split_at(length);
            let server = Some(Kind::Server);
            assert_eq!(found(begun, b"", server, true), "undecided", "{length}");
            assert_eq!(
                found(begun, settings, server, true),
                "undecided",
                "{length}"
            );
        }
        assert_eq!(found(preface, b"", None, true), "http2 Server");
        assert_eq!(found(b"", preface, None, true), "http2 Client");
        assert_eq!(found(settings, b"", Some(Kind::Client), true), "undecided");
    }

    /// On an older connection frames are believed where both directions have them; whose are whose
    /// is told by their heads, and if no head tells, by nothing.
    #[test]
    fn frames_in_both_directions_are_http2() {
        let request =
            b"\0\0\x05\x01\x05\0\0\x01\x01\x82\x86\x84\xbf\xbe\0\0\x04\x08\0\0\0\0\0\0\0\x01\0";
        let response = b"\0\0\x01\x01\x04\0\0\x01\x01\x88\0\0\x02\0\x01\0\0\x01\x01ok";
        assert_eq!(found(request, response, None, false), "http2 Server");
        assert_eq!(found(response, request, None, false), "http2 Client");
        let as_client = found(request, response, Some(Kind::Client), false);
        assert_eq!(as_client, "unrecognised");
        assert_eq!(found(request, b"", None, false), "undecided");
        let (lone, _) = request.split_at(14);
        assert_eq!(found(lone, response, None, false), "http2 Server");
        let ping = b"\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(found(ping, ping, None, false), "undecided");
        assert_eq!(found(ping, ping, Some(Kind::Server), false), "http2 Server");
        let body = b"the middle of a body";
        assert_eq!(found(request, body, Some(Kind::Server), false), "undecided");
    }
}
