//! Changes a recording: entries and single records are dropped, repeated, moved, cut and damaged,
//! and news of time and loss is put in between.

use agent::{
    engine::replay::{self, Entry, MAGIC},
    event::decode,
};
use agent_common::record::RecordHeader;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::LATEST_NS;

/// Changes of one call, at most.
const CHANGES: u32 = 4;

/// Items that are dropped, repeated or moved in one piece, at most.
const PIECE: usize = 16;

/// Values at which arithmetic on 64 bits goes wrong if it does.
const EDGES: [u64; 8] = [
    0,
    1,
    0xffff,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 62,
    u64::MAX - 1,
    u64::MAX,
];

/// What can be moved on its own: an entry, or one record of a batch.
#[derive(Clone)]
enum Item {
    Record(Vec<u8>),
    Entry(Entry),
}

/// When a record was written.
pub fn timestamp(record: &[u8]) -> Option<u64> {
    let (header, _) = RecordHeader::read_from_prefix(record).ok()?;
    Some(header.timestamp_ns)
}

/// A recording like this one, of at most `limit` bytes. `damage` changes some bytes in place and
/// may leave more or fewer of them.
pub fn mutate(
    recording: &[u8],
    limit: usize,
    seed: u32,
    damage: &mut dyn FnMut(&mut Vec<u8>),
) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(seed.into());
    let mut items = items(recording);
    for _ in 0..random.random_range(1..=CHANGES) {
        change(&mut items, &mut random, damage);
    }
    let mut out = write(&items);
    while out.len() > limit && !items.is_empty() {
        items.truncate(items.len() * 3 / 4);
        out = write(&items);
    }
    out.truncate(limit);
    out
}

fn items(recording: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    for entry in replay::read(recording).unwrap_or_default() {
        match entry {
            Entry::Records(batch) => {
                items.extend(replay::records(&batch).map(|record| Item::Record(record.to_vec())));
            }
            other => items.push(Item::Entry(other)),
        }
    }
    items
}

fn write(items: &[Item]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let mut batch = Vec::new();
    for item in items {
        match item {
            Item::Record(record) => batch.extend_from_slice(record),
            Item::Entry(entry) => {
                flush(&mut batch, &mut out);
                replay::write(entry, &mut out);
            }
        }
    }
    flush(&mut batch, &mut out);
    out
}

fn flush(batch: &mut Vec<u8>, out: &mut Vec<u8>) {
    if !batch.is_empty() {
        replay::write(&Entry::Records(std::mem::take(batch)), out);
    }
}

fn change(items: &mut Vec<Item>, random: &mut SmallRng, damage: &mut dyn FnMut(&mut Vec<u8>)) {
    if items.is_empty() {
        items.push(Item::Entry(Entry::Start { boot_seconds: 1 }));
        return;
    }
    let at = random.random_range(0..items.len());
    let end = items.len().min(at + random.random_range(1..=PIECE));
    match random.random_range(0..9) {
        0 => drop(items.drain(at..end)),
        1 => {
            let piece = items.get(at..end).unwrap_or_default().to_vec();
            let to = random.random_range(0..=items.len());
            items.splice(to..to, piece);
        }
        2 => {
            let piece: Vec<Item> = items.drain(at..end).collect();
            let to = random.random_range(0..=items.len());
            items.splice(to..to, piece);
        }
        3 => {
            let other = random.random_range(0..items.len());
            items.swap(at, other);
        }
        4 => items.insert(at, Item::Entry(news(items, at, random))),
        5 => copy_word(items, at, random),
        6 => {
            if let Some(Item::Record(record)) = items.get_mut(at) {
                let length = random.random_range(0..=record.len());
                record.truncate(length);
                settle(record);
            }
        }
        7 => {
            if let Some(Item::Record(record)) = items.get_mut(at) {
                set_word(record, random);
            }
        }
        _ => {
            if let Some(Item::Record(record)) = items.get_mut(at) {
                let start = record.len().min(random.random_range(0..256));
                let mut rest = record.split_off(start);
                damage(&mut rest);
                record.append(&mut rest);
                settle(record);
            }
        }
    }
}

/// Time passes, records are lost, or a connection is gone.
fn news(items: &[Item], at: usize, random: &mut SmallRng) -> Entry {
    let before = items.get(..at).unwrap_or_default().iter().rev();
    let mut times = before.filter_map(|item| match item {
        Item::Record(record) => timestamp(record),
        Item::Entry(Entry::Tick { now_ns }) => Some(*now_ns),
        Item::Entry(_) => None,
    });
    let power = random.random_range(0..44);
    let now_ns = times.next().unwrap_or(0).min(LATEST_NS) + (1 << power);
    match random.random_range(0..4) {
        0 => Entry::Loss,
        1 => Entry::Shutdown { now_ns },
        _ => Entry::Tick { now_ns },
    }
}

/// Puts a word of another record in the same place of this one: the same connection, thread or
/// address, or a number that fits nothing.
fn copy_word(items: &mut [Item], at: usize, random: &mut SmallRng) {
    let other = random.random_range(0..items.len());
    let from = match items.get(other) {
        Some(Item::Record(from)) => from.clone(),
        _ => return,
    };
    let Some(Item::Record(record)) = items.get_mut(at) else {
        return;
    };
    let place = random.random_range(0..32) * 8;
    let range = place..place + 8;
    if let (Some(to), Some(word)) = (record.get_mut(range.clone()), from.get(range)) {
        to.copy_from_slice(word);
    }
    settle(record);
}

/// One of the words of a record becomes an extreme, or moves a little.
fn set_word(record: &mut Vec<u8>, random: &mut SmallRng) {
    let place = random.random_range(0..64) * 4;
    let Some(bytes) = record.get_mut(place..place + 8) else {
        return;
    };
    let mut word = u64::read_from_bytes(bytes).unwrap_or(0);
    word = match random.random_range(0..3) {
        0 => EDGES
            .get(random.random_range(0..EDGES.len()))
            .copied()
            .unwrap_or(0),
        1 => word.wrapping_add(random.random_range(1..=64)),
        _ => word.wrapping_sub(random.random_range(1..=64)),
    };
    bytes.copy_from_slice(word.as_bytes());
    settle(record);
}

/// A record of a changed length says so and is padded, or the rest of its batch would be lost with
/// it. Times stay possible.
fn settle(record: &mut Vec<u8>) {
    let length = record.len();
    let Ok((header, _)) = RecordHeader::mut_from_prefix(record) else {
        return;
    };
    header.length = header.length.min(length as u32);
    header.timestamp_ns = header.timestamp_ns.min(LATEST_NS);
    let padded = decode::padded_length(record).unwrap_or(length);
    record.resize(padded.max(length).next_multiple_of(8), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A changed recording is a recording, and differs.
    #[test]
    fn recordings_stay_recordings() {
        let mut recording = MAGIC.to_vec();
        replay::write(&Entry::Start { boot_seconds: 7 }, &mut recording);
        replay::write(&Entry::Tick { now_ns: 8 }, &mut recording);
        let mut different = 0;
        for seed in 0..100 {
            let changed = mutate(&recording, 4096, seed, &mut |_| {});
            assert!(replay::read(&changed).is_ok(), "{changed:?}");
            different += u32::from(changed != recording);
        }
        assert!(different > 50, "{different} of 100");
    }
}
