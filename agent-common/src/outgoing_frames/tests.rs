extern crate std;

use std::{string::String, vec, vec::Vec};

use super::{
    block::{CODED_NAME, STATIC_SIZE},
    rehearsal, *,
};

const VALUE: &[u8; 55] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A server that set no limit.
const ANY: Option<PeerSettings> = Some(PeerSettings {
    seen: 3,
    list_limit: UNLIMITED,
});

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![high, middle, low, kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn settings() -> Vec<u8> {
    frame(kind::SETTINGS, 0, 0, &[])
}

type Fields = Vec<(String, String)>;

fn fields(names: &[(&str, &str)]) -> Fields {
    let pair = |(name, value): &(&str, &str)| (String::from(*name), String::from(*value));
    names.iter().map(pair).collect()
}

/// The heads that a server's decoder reads from frames, in order; panics where it must not be.
fn decoded(bytes: &[u8]) -> Vec<(u32, Fields)> {
    let mut decoder = loona_hpack::Decoder::new();
    let mut heads = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        let (kind, flags) = (rest[3], rest[4]);
        let stream = u32::from_be_bytes([rest[5], rest[6], rest[7], rest[8]]);
        let mut block = &rest[9..9 + length];
        rest = &rest[9 + length..];
        if kind != kind::HEADERS {
            continue;
        }
        if flags & flag::PADDED != 0 {
            let padding = block[0] as usize;
            block = &block[1..block.len() - padding];
        }
        if flags & flag::PRIORITY != 0 {
            block = &block[5..];
        }
        let mut head = Fields::new();
        decoder
            .decode_with_cb(block, |name, value| {
                let [name, value] = [name, value].map(|text| String::from_utf8_lossy(&text).into());
                head.push((name, value));
            })
            .expect("a strict decoder reads it");
        heads.push((stream, head));
    }
    heads
}

/// A client's connection with what a peer's decoder should see of each head, and whether a field
/// is to be added to it.
struct Scene {
    bytes: Vec<u8>,
    heads: Vec<(u32, Fields, bool)>,
}

impl Scene {
    fn new() -> Self {
        Self {
            bytes: settings(),
            heads: Vec::new(),
        }
    }

    fn head(&mut self, flags: u8, stream: u32, block: &[u8], head: Fields, gets: bool) {
        let bytes = frame(kind::HEADERS, flags | flag::END_HEADERS, stream, block);
        self.bytes.extend(bytes);
        self.heads.push((stream, head, gets));
    }

    /// What arrives when it is sent in pieces of these lengths.
    fn sent(&self, lengths: &[usize]) -> (Vec<u8>, Vec<InjectionOutcome>) {
        let mut frames = OutgoingFrames::BEGIN;
        let (mut arrived, mut outcomes) = (Vec::new(), Vec::new());
        let mut rest = self.bytes.as_slice();
        let mut lengths = lengths.iter().cycle();
        while !rest.is_empty() {
            let length = (*lengths.next().expect("it cycles")).min(rest.len());
            let (message, behind) = rest.split_at(length);
            let sent = rehearsal::send(&mut frames, message, ANY, VALUE);
            assert!(!sent.is_given_up, "{:?}", sent.outcomes);
            arrived.extend(sent.bytes);
            outcomes.extend(sent.outcomes);
            rest = behind;
        }
        (arrived, outcomes)
    }

    /// Each head is what was sent, with one field more where one was added.
    fn assert_arrives(&self, lengths: &[usize], are_whole: bool) {
        let (arrived, outcomes) = self.sent(lengths);
        let heads = decoded(&arrived);
        assert_eq!(heads.len(), self.heads.len());
        let mut added = 0;
        for ((stream, mut head), (sent_stream, sent, gets)) in heads.into_iter().zip(&self.heads) {
            assert_eq!(stream, *sent_stream);
            let ours = fields(&[("traceparent", core::str::from_utf8(VALUE).expect("ASCII"))]);
            if head.len() > sent.len() {
                assert!(gets, "{head:?}");
                assert_eq!(head.pop().as_ref(), ours.first());
                added += 1;
            } else {
                assert!(!(*gets && are_whole), "{head:?}");
            }
            assert_eq!(head, *sent);
        }
        let injected = |outcome: &&InjectionOutcome| **outcome == InjectionOutcome::Injected;
        assert_eq!(outcomes.iter().filter(injected).count(), added);
    }
}

/// What clients send: indexed and literal fields of every kind, coded and plain, with padding and
/// priority, trailers, settings, content and frames of extensions.
fn scene() -> Scene {
    let mut scene = Scene::new();
    let mut encoder = loona_hpack::Encoder::new();
    let long: String = "v".repeat(300);
    for call in 0..3u32 {
        let path = std::format!("/shop.Store/Unary{call}");
        let head = fields(&[
            (":method", "POST"),
            (":path", &path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("x-long", &long),
        ]);
        let pairs = head
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let block = encoder.encode(pairs);
        let stream = 4 * call + 1;
        scene.head(0, stream, &block, head, true);
        scene.bytes.extend(frame(kind::DATA, 0, stream, &[7; 40]));
        scene
            .bytes
            .extend(frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]));
        // Coded strings (RFC 7541, appendix C.4.1), padded and with priority.
        let coded = b"\x82\x86\x84\x01\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        let payload = [&[3u8][..], &[0, 0, 0, 0, 15], coded, &[0; 3]].concat();
        let head = fields(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
        ]);
        let flags = flag::PADDED | flag::PRIORITY | 1;
        scene.head(flags, stream + 2, &payload, head, true);
        // Trailers, then a name and a value of nothing the table has, never indexed.
        let trailers = b"\x10\x03abc\x02de\x00\x0btraceparens\x00";
        let head = fields(&[("abc", "de"), ("traceparens", "")]);
        scene.head(1, stream, trailers, head, false);
        scene.bytes.extend(frame(kind::SETTINGS, flag::ACK, 0, &[]));
        scene.bytes.extend(frame(0xc8, 3, 0, &[1, 2, 3]));
        scene.bytes.extend(frame(kind::PING, 0, 0, &[0; 8]));
    }
    scene
}

/// Sent at once: each request gets a field, and nothing else changes for a strict decoder.
#[test]
fn each_request_gets_a_field() {
    let scene = scene();
    scene.assert_arrives(&[scene.bytes.len()], true);
}

/// Sent in two pieces, cut at every byte: a head that is cut goes without, all others do not.
#[test]
fn a_message_cut_anywhere_stays_right() {
    let scene = scene();
    for at in 1..scene.bytes.len() {
        scene.assert_arrives(&[at, scene.bytes.len() - at], false);
        let (_, outcomes) = scene.sent(&[at, scene.bytes.len() - at]);
        let cut = outcomes
            .iter()
            .filter(|outcome| **outcome == InjectionOutcome::FrameInPieces);
        assert!(cut.count() <= 1, "{outcomes:?}");
    }
}

/// Sent in pieces of a few bytes: tokens are put together over any number of them.
#[test]
fn messages_of_a_few_bytes_are_understood() {
    let scene = scene();
    for length in 1..40 {
        scene.assert_arrives(&[length], false);
        scene.assert_arrives(&[length, 1, 2], false);
    }
}

/// Cut short anywhere, or with any byte changed: it is never read beyond, and what is added is
/// added where a strict decoder, if it reads the original, reads the result.
#[test]
fn broken_bytes_break_nothing_more() {
    let scene = scene();
    for at in 0..scene.bytes.len() {
        for flip in [0x01, 0x04, 0x08, 0x20, 0x40, 0x80, 0xff] {
            let mut bytes = scene.bytes.clone();
            bytes[at] ^= flip;
            let mut frames = OutgoingFrames::BEGIN;
            let sent = rehearsal::send(&mut frames, &bytes, ANY, VALUE);
            let injected = |outcome: &&InjectionOutcome| **outcome == InjectionOutcome::Injected;
            let added = sent.outcomes.iter().filter(injected).count();
            let expected = bytes.len() + added * FIELD_BYTES as usize;
            assert_eq!(sent.bytes.len(), expected);
        }
        rehearsal_of(&scene.bytes[..at]);
    }
}

fn rehearsal_of(message: &[u8]) -> rehearsal::Sent {
    rehearsal::send(&mut { OutgoingFrames::BEGIN }, message, ANY, VALUE)
}

fn outcomes_of(payloads: &[&[u8]]) -> Vec<InjectionOutcome> {
    let mut bytes = settings();
    for (index, payload) in payloads.iter().enumerate() {
        let stream = 2 * index as u32 + 1;
        bytes.extend(frame(kind::HEADERS, flag::END_HEADERS, stream, payload));
    }
    rehearsal_of(&bytes).outcomes
}

/// A program that sends the header by itself: coded or not, one that goes into the table ends it
/// for good, and any other keeps this request as it is.
#[test]
fn a_header_of_its_own_is_seen() {
    use InjectionOutcome::{AlreadyPresent, Injected, Propagates};
    let plain = |first: u8| [&[first, 11][..], b"traceparent", &[1, b'x']].concat();
    let coded = |first: u8| [&[first, 0x88][..], &CODED_NAME.to_le_bytes(), &[1, b'x']].concat();
    let mut encoder = loona_hpack::Encoder::new();
    let name_and_value = (&b"traceparent"[..], &b"x"[..]);
    let other = encoder.encode([name_and_value]);
    let other_makes = outcomes_of(&[&other]);
    for own in [plain(0), plain(0x10), coded(0), coded(0x10)] {
        let all = outcomes_of(&[&own, b"\x82"]);
        assert_eq!(all, [AlreadyPresent, Injected], "{own:?}");
    }
    for own in [plain(0x40), coded(0x40)] {
        assert_eq!(outcomes_of(&[&own, b"\x82"]), [Propagates], "{own:?}");
    }
    assert!(
        [AlreadyPresent, Propagates].contains(&other_makes[0]),
        "{other_makes:?}"
    );
    // What only looks like it, in a value or with more letters.
    let value = [&[0u8, 1, b'a', 11][..], b"traceparent"].concat();
    let longer = [&[0x40u8, 12][..], b"traceparents", &[0]].concat();
    assert_eq!(outcomes_of(&[&value, &longer]), [Injected; 2]);
}

/// Huffman's code of the name, as another make writes it.
#[test]
fn the_coded_name_is_what_others_write() {
    let block = [&[0u8, 0x88][..], &CODED_NAME.to_le_bytes(), &[0]].concat();
    let bytes = frame(kind::HEADERS, flag::END_HEADERS, 1, &block);
    assert_eq!(decoded(&bytes)[0].1, fields(&[("traceparent", "")]));
}

/// What is not understood is given up, and nothing behind it is changed.
#[test]
fn what_is_not_understood_is_given_up() {
    use InjectionOutcome::{Continued, NotHttp};
    let head = frame(kind::HEADERS, flag::END_HEADERS, 1, b"\x82");
    let refused = |bytes: &[u8], expected| {
        let all = [bytes, &head].concat();
        let sent = rehearsal_of(&all);
        assert_eq!((sent.outcomes, sent.bytes), (vec![expected], all));
        assert!(sent.is_given_up);
    };
    let after = |bytes: Vec<u8>| [settings(), bytes].concat();
    let block = |block: &[u8]| after(frame(kind::HEADERS, flag::END_HEADERS, 1, block));
    refused(&[], NotHttp);
    refused(&frame(kind::SETTINGS, flag::ACK, 0, &[]), NotHttp);
    refused(&after(frame(kind::HEADERS, 0, 1, b"\x82")), Continued);
    refused(&after(frame(kind::CONTINUATION, 4, 1, b"\x82")), NotHttp);
    refused(&after(frame(kind::PUSH_PROMISE, 4, 1, b"\x82")), NotHttp);
    for stream in [0, 2, 0x8000_0001] {
        refused(&after(frame(kind::HEADERS, 4, stream, b"\x82")), NotHttp);
        refused(&after(frame(kind::DATA, 0, stream, b"")), NotHttp);
    }
    refused(&after(frame(kind::PING, 0, 0, &[0; 7])), NotHttp);
    refused(&after(frame(kind::SETTINGS, 0, 0, &[0; 7])), NotHttp);
    // A block without fields, one that ends within a field, index 0 or one that nothing is at.
    for bad in [
        &b""[..],
        b"\x20",
        b"\x82\x00",
        b"\x82\x00\x05ab",
        b"\x00\x00",
        b"\x41",
        b"\x41\x82",
        b"\x80",
        b"\xbe",
        b"\x7f",
        b"\x82\x20",
        b"\xff\x80\x80\x80\x80\x01",
    ] {
        refused(&block(bad), NotHttp);
    }
    let padded = frame(kind::HEADERS, 4 | flag::PADDED, 1, &[9, 0x82]);
    refused(&after(padded), NotHttp);
}

/// A field is added only when the server's settings are known, and allow it whatever the block may
/// stand for.
#[test]
fn the_servers_limit_is_kept() {
    let judged = |block: &[u8], list_limit, seen| {
        let bytes = [
            settings(),
            frame(kind::SETTINGS, flag::ACK, 0, &[]),
            frame(kind::HEADERS, flag::END_HEADERS, 1, block),
        ];
        let peer = PeerSettings { seen, list_limit };
        let mut frames = OutgoingFrames::BEGIN;
        let bytes = bytes.concat();
        rehearsal::send(&mut frames, &bytes, Some(peer), VALUE).outcomes[0]
    };
    let one = b"\x82";
    let needed = STATIC_SIZE + FIELD_SIZE;
    assert_eq!(judged(one, needed, 1), InjectionOutcome::Injected);
    assert_eq!(judged(one, needed - 1, 1), InjectionOutcome::ListTooLong);
    assert_eq!(judged(one, needed, 0), InjectionOutcome::SettingsAwaited);
    // A field that is named by its index counts as much as the largest one that has been.
    let table = [&[0x40u8, 1, b'a', 100][..], &[b'v'; 100], &[0xbe]].concat();
    let counted = 2 * (32 + 101) + FIELD_SIZE;
    assert_eq!(judged(&table, counted, 1), InjectionOutcome::Injected);
    assert_eq!(
        judged(&table, counted - 1, 1),
        InjectionOutcome::ListTooLong
    );
    // A name that is meant by its index is as long as the longest one, however often values change.
    let changing = [
        &[0x40u8, 1, b'a', 2, b'v', b'v'][..],
        &[0x7e, 1, b'v'].repeat(9),
    ]
    .concat();
    let counted = 10 * (32 + 1) + 2 + 9 + FIELD_SIZE;
    assert_eq!(judged(&changing, counted, 1), InjectionOutcome::Injected);
    assert_eq!(
        judged(&changing, counted - 1, 1),
        InjectionOutcome::ListTooLong
    );
    // Coded, it may be longer.
    let coded = [&[0u8, 1, b'a', 0x80 | 0x64][..], &[0; 100]].concat();
    let counted = 32 + 1 + 160 + FIELD_SIZE;
    assert_eq!(judged(&coded, counted, 1), InjectionOutcome::Injected);
    assert_eq!(
        judged(&coded, counted - 1, 1),
        InjectionOutcome::ListTooLong
    );
    let none = rehearsal::send(
        &mut { OutgoingFrames::BEGIN },
        &[settings(), frame(kind::HEADERS, 4, 1, one)].concat(),
        None,
        VALUE,
    );
    assert_eq!(none.outcomes, [InjectionOutcome::SettingsAwaited]);
}

/// No frame grows beyond what every server takes.
#[test]
fn a_full_frame_is_left_alone() {
    let block = |length: usize| {
        let value = length - 7;
        let lower = [
            (value - 127) as u8 & 0x7f | 0x80,
            ((value - 127) >> 7) as u8,
        ];
        let mut block = vec![0, 1, b'a', 0x7f, lower[0], lower[1] | 0x80, 0];
        block.resize(length, b'v');
        block
    };
    let room = (FRAME_BYTES - FIELD_BYTES) as usize;
    assert_eq!(outcomes_of(&[&block(room)]), [InjectionOutcome::Injected]);
    assert_eq!(
        outcomes_of(&[&block(room + 1)]),
        [InjectionOutcome::FrameFull]
    );
}

/// A send that TCP took in part: the bytes come again, and are walked again from where they are.
#[test]
fn bytes_that_are_sent_again_are_found_again() {
    let head = frame(kind::HEADERS, flag::END_HEADERS, 1, b"\x82");
    let next = frame(kind::HEADERS, flag::END_HEADERS, 3, b"\x82");
    let content = frame(kind::DATA, 0, 1, &[7; 500]);
    let before = [settings(), head].concat();
    let message = [&before[..], &content, &content, &content].concat();
    for unsent in 0..message.len() - before.len() {
        let mut frames = OutgoingFrames::BEGIN;
        let sent = rehearsal::send(&mut frames, &message, ANY, VALUE);
        assert_eq!(sent.outcomes, [InjectionOutcome::Injected]);
        let taken = message.len() - unsent;
        // Within the head of a frame it is not known what comes.
        let is_within_head = (1..9).contains(&((taken - before.len()) % content.len()));
        assert_eq!(frames.take_back(unsent as u32), !is_within_head, "{unsent}");
        if is_within_head {
            continue;
        }
        let again = [&message[taken..], &next].concat();
        let sent = rehearsal::send(&mut frames, &again, ANY, VALUE);
        assert_eq!(sent.outcomes, [InjectionOutcome::Injected], "{unsent}");
    }
    let mut frames = OutgoingFrames::BEGIN;
    let _ = rehearsal::send(&mut frames, &message, ANY, VALUE);
    assert!(!frames.take_back(message.len() as u32 - 12));
}
