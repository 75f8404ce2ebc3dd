//! Whether requests fare worse since headers are put into them. Pure.
//!
//! For each process the calls with a header of ours are compared with those without: before it
//! was begun, on connections that are left alone, or to which nothing could be added. What a
//! server says when a head is too much for it (400, 431), and exchanges that broke, count against
//! us. When in doubt, the process is given up.

use rustc_hash::FxHashMap;

use crate::{
    event::ProcessId,
    span::{Details, attribute, attribute::Value},
};

/// Bad ends before anything is concluded: a few broken connections are everyday.
const BAD: u32 = 5;

/// Bad ends among this many calls are too many, unless calls without header fare as badly.
const BAD_PER_CALLS: u32 = 20;

/// Calls without header fare as badly when so many times their share of bad ends is not reached.
const TIMES_WORSE: u32 = 3;

/// Beyond this many calls old ones count half.
const WINDOW: u32 = 2_000;

/// Processes watched at most.
const PROCESSES: usize = 4_096;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Good,
    /// It broke, or its head was refused.
    Bad,
}

/// What servers say of a head that is too much for them: RFC 9110, section 15.5.1, and RFC 6585,
/// section 5.
const REFUSED_HEAD: [i64; 2] = [400, 431];

/// What gRPC says of it. `INTERNAL` is what programs say of themselves.
const REFUSED_CALL: &str = "RESOURCE_EXHAUSTED";

/// What servers of HTTP/2 say of frames they cannot make sense of: RFC 9113, section 7.
const REFUSED_FRAMES: [&str; 5] = [
    "protocol_error",
    "internal_error",
    "frame_size_error",
    "compression_error",
    "enhance_your_calm",
];

/// What a client says when it gives a call up by itself.
const GIVEN_UP: [&str; 2] = ["cancel", "DEADLINE_EXCEEDED"];

impl End {
    /// How a call ended; what was not observed is not held against anyone.
    pub(super) fn of(details: &Details) -> Self {
        let find = |key| attribute::find(&details.attributes, key);
        let text = |key| find(key).and_then(Value::as_str);
        let error = text(attribute::ERROR_TYPE);
        let is_refused = match find(attribute::HTTP_RESPONSE_STATUS_CODE) {
            Some(Value::Int(status)) => REFUSED_HEAD.contains(status),
            _ => match text(attribute::RPC_RESPONSE_STATUS_CODE) {
                Some(status) => status == REFUSED_CALL,
                None => error.is_some_and(|error| !GIVEN_UP.contains(&error)),
            },
        };
        let is_broken = error.is_some_and(|error| REFUSED_FRAMES.contains(&error));
        if is_refused || is_broken {
            Self::Bad
        } else {
            Self::Good
        }
    }
}

/// Whether a call carried a header of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    Ours,
    Nothing,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    calls: u32,
    bad: u32,
}

impl Tally {
    fn add(&mut self, end: End) {
        self.calls += 1;
        self.bad += u32::from(end == End::Bad);
        if self.calls > WINDOW {
            self.calls /= 2;
            self.bad /= 2;
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    with: Tally,
    without: Tally,
    is_given_up: bool,
}

impl Watched {
    /// Shares are compared by cross products.
    fn is_suspicious(&self) -> bool {
        let (with, without) = (self.with, self.without);
        let is_often = with.bad >= BAD
            && u64::from(with.bad) * u64::from(BAD_PER_CALLS) >= u64::from(with.calls);
        let is_worse = u64::from(with.bad) * u64::from(without.calls)
            >= u64::from(TIMES_WORSE) * u64::from(without.bad) * u64::from(with.calls);
        is_often && is_worse
    }
}

#[derive(Debug, Default)]
pub(super) struct Watchdog {
    processes: FxHashMap<ProcessId, Watched>,
}

impl Watchdog {
    /// A call ended; returns whether its process is to be given up now.
    pub(super) fn handle_end(&mut self, process: ProcessId, carried: Carried, end: End) -> bool {
        let is_known = self.processes.contains_key(&process);
        if !is_known && self.processes.len() >= PROCESSES {
            return false;
        }
        let watched = self.processes.entry(process).or_default();
        match carried {
            Carried::Ours => watched.with.add(end),
            Carried::Nothing => watched.without.add(end),
        }
        if watched.is_given_up || end == End::Good || !watched.is_suspicious() {
            return false;
        }
        watched.is_given_up = true;
        true
    }

    pub(super) fn handle_exit(&mut self, process: ProcessId) {
        self.processes.remove(&process);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::{Attribute, Status};

    const PROCESS: ProcessId = ProcessId {
        pid: 7,
        start_ticks: 1,
    };

    fn given_up(ends: impl IntoIterator<Item = (Carried, End)>) -> Option<usize> {
        let mut watchdog = Watchdog::default();
        ends.into_iter()
            .position(|(carried, end)| watchdog.handle_end(PROCESS, carried, end))
    }

    /// A server that refuses every head with our header is noticed at the fifth; a single one is
    /// not enough.
    #[test]
    fn refused_heads_are_noticed() {
        let all_bad = std::iter::repeat_n((Carried::Ours, End::Bad), 10);
        assert_eq!(given_up(all_bad), Some(BAD as usize - 1));
        assert_eq!(given_up([(Carried::Ours, End::Bad)]), None);
        // Nobody waits for us when it is others who fail.
        assert_eq!(given_up([(Carried::Nothing, End::Bad); 100]), None);
    }

    /// Scenario: one in ten fails, before and after. Guarantee: that is not our doing; when it is
    /// one in two afterwards, it is.
    #[test]
    fn what_failed_before_is_not_held_against_us() {
        let tenth = |carried| {
            (0..200).map(move |n| (carried, if n % 10 == 0 { End::Bad } else { End::Good }))
        };
        let same = tenth(Carried::Nothing).chain(tenth(Carried::Ours));
        assert_eq!(given_up(same), None);
        let half = (0..200).map(|n| (Carried::Ours, if n % 2 == 0 { End::Bad } else { End::Good }));
        assert!(given_up(tenth(Carried::Nothing).chain(half)).is_some());
    }

    /// What servers and programs say of calls for reasons of their own is not held against us; what
    /// they say of a head or of frames is.
    #[test]
    fn only_what_is_said_of_heads_counts() {
        let end = |attributes: &[(&'static str, &str)]| {
            let attributes = attributes.iter().map(|(key, text)| Attribute {
                key: (*key).into(),
                value: text
                    .parse()
                    .map_or_else(|_| Value::String((*text).into()), Value::Int),
            });
            End::of(&Details {
                name: "call".into(),
                status: Status::Unset,
                attributes: attributes.collect(),
            })
        };
        let (http, rpc) = (
            attribute::HTTP_RESPONSE_STATUS_CODE,
            attribute::RPC_RESPONSE_STATUS_CODE,
        );
        let error = attribute::ERROR_TYPE;
        for good in [
            &[][..],
            &[(http, "404"), (error, "404")],
            &[(rpc, "INTERNAL"), (error, "INTERNAL")],
            &[(error, "cancel")],
            &[(error, "DEADLINE_EXCEEDED")],
        ] {
            assert_eq!(end(good), End::Good, "{good:?}");
        }
        for bad in [
            &[(http, "400"), (error, "400")][..],
            &[(http, "431")],
            &[(http, "200"), (error, "protocol_error")],
            &[(rpc, "RESOURCE_EXHAUSTED")],
            &[(error, "connection_reset")],
        ] {
            assert_eq!(end(bad), End::Bad, "{bad:?}");
        }
    }

    /// A process is given up once.
    #[test]
    fn said_once() {
        let mut watchdog = Watchdog::default();
        let count = (0..50)
            .filter(|_| watchdog.handle_end(PROCESS, Carried::Ours, End::Bad))
            .count();
        assert_eq!(count, 1);
    }
}
