//! Fields that are added to what a client of HTTP/2 sends, by a strict decoder of another make.
//!
//! The first byte says how long messages are, the rest is what the client sends behind its preface.

use agent_common::{
    injection::InjectionOutcome,
    outgoing_frames::{FIELD_BYTES, OutgoingFrames, PeerSettings, UNLIMITED, rehearsal},
};

/// RFC 9113, section 6.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;

const NAME: &[u8] = b"traceparent";
const VALUE: &[u8; 55] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Panics when more is changed than is said, or what a decoder reads is more than one field more.
pub fn run(data: &[u8]) {
    let Some((&size, sent)) = data.split_first() else {
        return;
    };
    let size = if size == 255 {
        sent.len().max(1)
    } else {
        usize::from(size) + 1
    };
    let mut frames = OutgoingFrames::BEGIN;
    let peer = PeerSettings {
        seen: u32::MAX,
        list_limit: UNLIMITED,
    };
    let (mut arrived, mut added, mut is_given_up) = (Vec::new(), 0, false);
    for message in sent.chunks(size) {
        if is_given_up {
            arrived.extend_from_slice(message);
            continue;
        }
        let left = rehearsal::send(&mut frames, message, Some(peer), VALUE);
        let is_ours = |outcome: &&InjectionOutcome| **outcome == InjectionOutcome::Injected;
        let here = left.outcomes.iter().filter(is_ours).count();
        assert_eq!(
            left.bytes.len(),
            message.len() + here * FIELD_BYTES as usize
        );
        added += here;
        is_given_up = left.is_given_up;
        arrived.extend(left.bytes);
    }
    if added == 0 {
        assert_eq!(arrived, sent);
        return;
    }
    let Some((before, is_cut)) = decode(sent) else {
        return;
    };
    let (after, _) = decode(&arrived).expect("what could be read can still be read");
    assert_eq!(before.len(), after.len());
    let mut found = 0;
    for (before, mut after) in before.into_iter().zip(after) {
        if after.len() > before.len() {
            let last = after.pop().expect("it is longer");
            assert_eq!((&*last.0, &*last.1), (NAME, &VALUE[..]));
            assert!(before.iter().all(|(name, _)| name != NAME));
            found += 1;
        }
        assert_eq!(before, after);
    }
    // The padding behind a whole block may be cut.
    assert!(
        found == added || (is_cut && found + 1 == added),
        "{found} of {added}"
    );
}

/// The fields of each block, in order, and whether the last frame is cut, which is left out; `None`
/// when a server would refuse something before the end.
fn decode(mut bytes: &[u8]) -> Option<(Vec<Fields>, bool)> {
    let mut decoder = loona_hpack::Decoder::new();
    let mut heads = Vec::new();
    while let &[high, middle, low, kind, flags, _, _, _, _, ref rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let Some((payload, behind)) = rest.split_at_checked(length) else {
            return Some((heads, true));
        };
        bytes = behind;
        match kind {
            HEADERS if flags & END_HEADERS != 0 => {
                heads.push(fields(&mut decoder, flags, payload)?);
            }
            HEADERS | CONTINUATION => break,
            _ => {}
        }
    }
    Some((heads, false))
}

fn fields(decoder: &mut loona_hpack::Decoder<'_>, flags: u8, payload: &[u8]) -> Option<Fields> {
    let mut block = payload;
    if flags & PADDED != 0 {
        let (padding, rest) = block.split_first()?;
        block = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
    }
    if flags & PRIORITY != 0 {
        block = block.get(5..)?;
    }
    let mut fields = Fields::new();
    let keep = |name: std::borrow::Cow<'_, [u8]>, value: std::borrow::Cow<'_, [u8]>| {
        fields.push((name.into_owned(), value.into_owned()));
    };
    decoder.decode_with_cb(block, keep).ok()?;
    Some(fields)
}
