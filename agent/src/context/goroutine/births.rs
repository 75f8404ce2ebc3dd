//! When goroutines were started, as far as the ids tell that Go gives them. Pure.

use std::collections::BTreeMap;

use crate::event::TaskIds;

/// Batches of ids and allotments remembered of each process; each processor holds one batch.
pub(super) const BATCHES: usize = 512;

/// Ids of a batch.
const BATCH: u64 = 16;

/// First and last time at which an id was the next one to be given; 0: never seen so.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    first_ns: u64,
    last_ns: u64,
}

/// When goroutine ids were still to be given.
#[derive(Debug, Default)]
pub(super) struct Births {
    /// By the end of a batch: when each of its ids was seen to be the next one.
    batches: BTreeMap<u64, [Seen; BATCH as usize]>,
    /// When each highest allotted id was last seen.
    allotted: BTreeMap<u64, u64>,
}

impl Births {
    pub(super) fn observe(&mut self, ids: TaskIds, time_ns: u64) {
        let left = u64::from(ids.left);
        if (1..=BATCH).contains(&left)
            && let Some(end) = ids.next.checked_add(left)
        {
            let batch = self.batches.entry(end).or_default();
            if let Some(seen) = batch.get_mut((BATCH - left) as usize) {
                seen.last_ns = time_ns.max(seen.last_ns);
                if seen.first_ns == 0 || time_ns < seen.first_ns {
                    seen.first_ns = time_ns;
                }
            }
        }
        if ids.allotted != 0 {
            let seen = self.allotted.entry(ids.allotted).or_default();
            *seen = time_ns.max(*seen);
        }
        while self.batches.len() > BATCHES {
            self.batches.pop_first();
        }
        while self.allotted.len() > BATCHES {
            self.allotted.pop_first();
        }
    }

    /// Batches and allotments remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> [usize; 2] {
        [self.batches.len(), self.allotted.len()]
    }

    /// The latest time known at which the goroutine did not exist yet.
    pub(super) fn after(&self, id: u64) -> Option<u64> {
        let in_batch = self.batch(id).and_then(|(seen, place)| {
            let not_yet = seen.iter().take(place + 1);
            not_yet.map(|seen| seen.last_ns).max()
        });
        let unallotted = self.allotted.range(..id).next_back().map(|(_, seen)| *seen);
        in_batch.max(unallotted).filter(|seen| *seen != 0)
    }

    /// The earliest time known at which it did: a later id of its batch was the next one.
    pub(super) fn before(&self, id: u64) -> Option<u64> {
        let (seen, place) = self.batch(id)?;
        let later = seen.iter().skip(place + 1).map(|seen| seen.first_ns);
        later.filter(|first_ns| *first_ns != 0).min()
    }

    /// The batch that has the id, and the id's place in it.
    fn batch(&self, id: u64) -> Option<(&[Seen; BATCH as usize], usize)> {
        let (end, seen) = self.batches.range(id.checked_add(1)?..).next()?;
        let place = id.checked_sub(end.saturating_sub(BATCH))?;
        Some((seen, place as usize))
    }
}
