//! What is due when. Pure.

use std::collections::BTreeMap;

/// Width of a bucket, as a power of two of nanoseconds: 4.2 ms, about as often as time passes here.
/// What is due is found within this time, never early.
const BUCKET_BITS: u32 = 22;

/// Entries by time, in buckets: many are due at nearly the same time, so that a heap would sort far
/// more than is asked for.
#[derive(Debug)]
pub(super) struct Timers<T> {
    buckets: BTreeMap<u64, Vec<T>>,
    length: usize,
    /// An emptied bucket, for the next one to begin.
    spare: Vec<T>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self {
            buckets: BTreeMap::new(),
            length: 0,
            spare: Vec::new(),
        }
    }
}

impl<T> Timers<T> {
    pub(super) fn insert(&mut self, due_ns: u64, entry: T) {
        // Rounded up: an entry is never due before its time.
        let bucket = (due_ns >> BUCKET_BITS).saturating_add(1);
        let spare = &mut self.spare;
        self.buckets
            .entry(bucket)
            .or_insert_with(|| std::mem::take(spare))
            .push(entry);
        self.length += 1;
    }

    /// Moves what is due to `out`, earliest bucket first, within a bucket in order of insertion.
    pub(super) fn take_due(&mut self, now_ns: u64, out: &mut Vec<T>) {
        while let Some(first) = self.buckets.first_entry() {
            if *first.key() > now_ns >> BUCKET_BITS {
                break;
            }
            let bucket = first.remove();
            self.take(bucket, out);
        }
    }

    /// Moves the earliest bucket to `out`, due or not.
    pub(super) fn take_first(&mut self, out: &mut Vec<T>) {
        if let Some((_, bucket)) = self.buckets.pop_first() {
            self.take(bucket, out);
        }
    }

    fn take(&mut self, mut bucket: Vec<T>, out: &mut Vec<T>) {
        self.length -= bucket.len();
        out.append(&mut bucket);
        self.spare = bucket;
    }

    pub(super) const fn len(&self) -> usize {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKET_NS: u64 = 1 << BUCKET_BITS;

    /// Nothing is early, nothing is more than two buckets late, and order is kept.
    #[test]
    fn due_within_two_buckets() {
        let mut timers = Timers::default();
        for due_ns in [7 * BUCKET_NS + 1, 3 * BUCKET_NS, 3 * BUCKET_NS + 5, 0] {
            timers.insert(due_ns, due_ns);
        }
        let mut out = Vec::new();
        let mut now_ns = 0;
        while timers.len() > 0 {
            let before = out.len();
            timers.take_due(now_ns, &mut out);
            for due_ns in out.iter().skip(before) {
                assert!(*due_ns <= now_ns, "{due_ns} at {now_ns}");
                assert!(due_ns + 2 * BUCKET_NS > now_ns, "{due_ns} at {now_ns}");
            }
            now_ns += BUCKET_NS / 3;
        }
        assert_eq!(
            out,
            [0, 3 * BUCKET_NS, 3 * BUCKET_NS + 5, 7 * BUCKET_NS + 1]
        );
    }
}
