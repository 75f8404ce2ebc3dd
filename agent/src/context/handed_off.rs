//! Work that a thread does for another one, which waits for it. Pure.
//!
//! A request's thread wakes an idle worker, and waits. The worker calls out, and wakes the thread
//! that waits for the outcome. The kernel side tells of such wake-ups in processes that are
//! followed ([`HandOffs::handle_wake`]): by the futex, eventfd, pipe or unix socket that the woken
//! thread waits on. A worker that wakes someone who has waited since before the answer to its call
//! was read, does so for that call. The call then counts as one of the waiting thread's own, and
//! belongs to the request which that thread answers next ([`super::answering`]).
//!
//! | seen | evidence |
//! |---|---|
//! | the request's thread woke the idle worker, which woke it; it was served alone | `handed_off` |
//! | anything less, but that the worker woke who had waited | `handed_back` |
//!
//! A request is alone when the process had no other one open as the call began: nobody else had
//! work to give that anyone would wait for. Beside another one wake-ups prove nothing, not even of
//! an idle worker: queues wake one worker for several pieces of work, and the one that wakes takes
//! the oldest. When that is another request's, which called out and for whose outcome nobody waits
//! yet, and the next one does not call out, the call seems to be that one's.
//!
//! Two things look like a hand-off and are none: a lock that is held, and a connection of a pool
//! that is lent, for as long as a call takes. Who waits for those goes on to use them, and who
//! holds them mostly holds them for nobody. So nothing is proven
//!
//! - when the call's thread woke two threads that had both waited for its answer,
//! - when the request's own thread made calls, too,
//! - when few of the calls of a thread are waited for.
//!
//! The hooks for it are costly, so a process is followed only when requests without calls of their
//! own were answered while calls were made that nothing explains, and only while that helps.

use std::collections::VecDeque;

use rustc_hash::{FxHashMap, FxHashSet};

use super::Evidence;
use crate::event::{HandOff, ProcessId, Unit};

/// Requests that look as if they had handed their calls to others, before a process is followed.
const SUSPICIONS: u32 = 8;

/// Calls of a followed process that nobody waited for, in a row, before it is given up for good.
const FRUITLESS: u32 = 512;

/// After a thread was woken, another one that waited for the same call would be woken within this
/// time: its waker's processor may be taken away once.
const GRACE_NS: u64 = 20_000_000;

/// Calls followed at one time; one beyond it has no parent.
const CALLS: usize = 65_536;

/// Of the calls of a thread, one in so many must be waited for.
const WAITED_FOR: u32 = 4;

/// Calls after which older ones count half in a thread's score.
const SCORED: u32 = 32;

/// What became of a call that was handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<E> {
    /// It was made for this exchange.
    Made {
        call: E,
        exchange: E,
        evidence: Evidence,
    },
    /// It may be for several, or for none.
    Unknown { call: E },
}

/// How a process is dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Suspected(u32),
    /// With the calls in a row that nobody waited for.
    Followed(u32),
    GivenUp,
}

/// A call whose request is not known.
#[derive(Clone, Copy, Debug)]
struct Pending<E> {
    maker: Unit,
    start_ns: u64,
    /// The only request that its process had open when it began.
    sole: Option<E>,
    /// When the beginning of its answer was read.
    answered_ns: Option<u64>,
    handed: Option<Handed<E>>,
}

impl<E> Pending<E> {
    /// Whether it is the last call that its thread had an answer to. Those before are rather of
    /// another work, for whose outcome nobody waited, yet.
    fn is_last(&self, wake: &HandOff) -> bool {
        self.answered_ns == Some(wake.answer_ns)
    }

    /// Whether who is woken by the call's thread had waited since before its answer was read.
    fn is_awaited(&self, wake: &HandOff, now_ns: u64) -> bool {
        self.answered_ns
            .is_some_and(|answered_ns| wake.waiting_since_ns < answered_ns && answered_ns <= now_ns)
    }
}

#[derive(Clone, Copy, Debug)]
struct Handed<E> {
    from: Unit,
    to: Unit,
    at_ns: u64,
    evidence: Evidence,
    /// When the worker was woken for it; 0 unknown.
    ordered_ns: u64,
    is_ambiguous: bool,
    /// The request that `to` answered next.
    exchange: Option<E>,
}

/// Calls of a thread, and those of them that were waited for.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    made: u32,
    waited_for: u32,
}

impl Score {
    fn add(&mut self, waited_for: u32) {
        self.made += 1;
        self.waited_for += waited_for;
        if self.made > SCORED {
            self.made /= 2;
            self.waited_for /= 2;
        }
    }
}

/// `E` names an exchange, a request that was read or a call that was made.
#[derive(Debug)]
pub struct HandOffs<E> {
    programs: FxHashMap<ProcessId, Program>,
    pending: FxHashMap<E, Pending<E>>,
    /// Calls that each thread handed back and that may still turn out to be ambiguous.
    handed: FxHashMap<Unit, Vec<E>>,
    /// Requests whose own thread called out.
    calling: FxHashSet<E>,
    /// When to let go of those, by their end.
    over: VecDeque<(u64, E)>,
    /// Calls whose request was answered, by the time at which that is final.
    settling: VecDeque<(u64, E)>,
    scores: FxHashMap<Unit, Score>,
    /// Who woke an idle worker for a request, and when.
    orders: FxHashMap<Unit, (Unit, u64)>,
    outcomes: VecDeque<Outcome<E>>,
}

impl<E> Default for HandOffs<E> {
    fn default() -> Self {
        Self {
            programs: FxHashMap::default(),
            pending: FxHashMap::default(),
            handed: FxHashMap::default(),
            calling: FxHashSet::default(),
            over: VecDeque::new(),
            settling: VecDeque::new(),
            scores: FxHashMap::default(),
            orders: FxHashMap::default(),
            outcomes: VecDeque::new(),
        }
    }
}

impl<E: Copy + Eq + std::hash::Hash> HandOffs<E> {
    /// A request was answered that had no calls, while calls were made that nothing explains.
    /// Returns whether the process is to be followed from now on.
    pub fn handle_suspicion(&mut self, process: ProcessId) -> bool {
        let program = self
            .programs
            .entry(process)
            .or_insert(Program::Suspected(0));
        let Program::Suspected(count) = program else {
            return false;
        };
        *count += 1;
        if *count < SUSPICIONS {
            return false;
        }
        *program = Program::Followed(0);
        true
    }

    pub fn is_followed(&self, process: ProcessId) -> bool {
        matches!(self.programs.get(&process), Some(Program::Followed(_)))
    }

    /// A thread made a call of which it is not known, yet, for whom. `sole` is the request that its
    /// process has open, if it is only one.
    pub fn handle_call(&mut self, maker: Unit, call: E, start_ns: u64, sole: Option<E>) {
        if self.is_followed(maker.process) && self.pending.len() < CALLS {
            let pending = Pending {
                maker,
                start_ns,
                sole,
                answered_ns: None,
                handed: None,
            };
            self.pending.insert(call, pending);
        }
    }

    /// A thread made a call while no request was open. Returns whether its process is to be
    /// followed no more.
    pub fn handle_idle_call(&mut self, maker: Unit) -> bool {
        self.is_followed(maker.process) && self.miss(maker)
    }

    /// The beginning of the answer to a call was read.
    pub fn handle_answer(&mut self, call: E, time_ns: u64) {
        if let Some(pending) = self.pending.get_mut(&call) {
            pending.answered_ns = Some(time_ns);
        }
    }

    /// The thread that works for this request made a call for it.
    pub fn handle_own_call(&mut self, maker: Unit, exchange: E) {
        if self.is_followed(maker.process) {
            self.calling.insert(exchange);
        }
    }

    /// A thread woke another one: to begin a work, or because it is done. That may say something of
    /// calls handed back before.
    pub fn handle_wake(&mut self, wake: &HandOff, now_ns: u64) {
        let HandOff { from, to, .. } = *wake;
        if wake.request_ns != 0 {
            self.orders.insert(to, (from, now_ns));
        }
        for call in self.handed.get(&from).into_iter().flatten() {
            if let Some(pending) = self.pending.get_mut(call)
                && pending.is_awaited(wake, now_ns)
                && let Some(handed) = &mut pending.handed
                && handed.to != to
            {
                handed.is_ambiguous = true;
            }
        }
    }

    /// Whether a thread that is woken had waited for this call of its waker.
    pub fn is_awaited(&self, call: E, wake: &HandOff, now_ns: u64) -> bool {
        let evidence = self.evidence(wake);
        self.pending.get(&call).is_some_and(|pending| {
            let is_of_work = match evidence {
                (Evidence::HandedOff, since_ns) => pending.start_ns > since_ns,
                _ => pending.is_last(wake),
            };
            is_of_work && pending.is_awaited(wake, now_ns)
        })
    }

    /// What a wake-up of someone who waits proves of its waker's calls, and of which: those made
    /// since then.
    fn evidence(&self, wake: &HandOff) -> (Evidence, u64) {
        match self.orders.get(&wake.from) {
            Some((orderer, at_ns)) if *orderer == wake.to => (Evidence::HandedOff, *at_ns),
            _ => (Evidence::HandedBack, 0),
        }
    }

    /// A call, in the order of their start, is the work of the thread that was woken.
    pub fn handle_handed(&mut self, call: E, wake: &HandOff, at_ns: u64) {
        let (evidence, ordered_ns) = self.evidence(wake);
        let HandOff { from, to, .. } = *wake;
        if let Some(pending) = self.pending.get_mut(&call) {
            let before = pending.handed.replace(Handed {
                from,
                to,
                at_ns,
                evidence,
                ordered_ns,
                is_ambiguous: false,
                exchange: None,
            });
            if let Some(before) = before {
                self.unlist(before.from, call);
            }
            self.handed.entry(from).or_default().push(call);
        }
    }

    /// A worker woke someone who had waited for its calls: its work is done.
    pub fn handle_done(&mut self, worker: Unit) {
        self.orders.remove(&worker);
    }

    /// The thread that a call was handed back to answered this request. Returns whether the call
    /// is one of those; what becomes of it is told later.
    pub fn handle_made(&mut self, call: E, exchange: E) -> bool {
        let Some(pending) = self.pending.get_mut(&call) else {
            return false;
        };
        let Some(handed) = &mut pending.handed else {
            let maker = pending.maker;
            self.forget(call);
            self.handle_own_call(maker, exchange);
            return false;
        };
        handed.exchange = Some(exchange);
        let due_ns = handed.at_ns.saturating_add(GRACE_NS);
        self.settling.push_back((due_ns, call));
        true
    }

    /// Nothing more will be known of a call. Returns whether its process is to be followed no
    /// more.
    pub fn handle_unknown(&mut self, call: E) -> Option<ProcessId> {
        let pending = self.forget(call)?;
        let process = pending.maker.process;
        self.miss(pending.maker).then_some(process)
    }

    /// A request was answered to its end.
    pub fn handle_finished(&mut self, exchange: E, now_ns: u64) {
        if self.calling.contains(&exchange) {
            self.over.push_back((now_ns, exchange));
        }
    }

    /// Time passes; `began_ns` says when a request began.
    pub fn handle_tick(&mut self, now_ns: u64, began_ns: impl Fn(E) -> Option<u64>) {
        while let Some((due_ns, call)) = self.settling.front().copied() {
            if due_ns > now_ns {
                break;
            }
            self.settling.pop_front();
            self.settle(call, &began_ns);
        }
        while let Some((end_ns, exchange)) = self.over.front().copied() {
            if end_ns.saturating_add(2 * GRACE_NS) > now_ns {
                break;
            }
            self.over.pop_front();
            self.calling.remove(&exchange);
        }
    }

    fn settle(&mut self, call: E, began_ns: &impl Fn(E) -> Option<u64>) {
        let Some(pending) = self.forget(call) else {
            return;
        };
        let maker = pending.maker;
        self.scores.entry(maker).or_default().add(1);
        if let Some(Program::Followed(fruitless)) = self.programs.get_mut(&maker.process) {
            *fruitless = 0;
        }
        let is_worker = self
            .scores
            .get(&maker)
            .is_some_and(|score| score.waited_for * WAITED_FOR >= score.made);
        let made_for = pending
            .handed
            .filter(|handed| is_worker && !handed.is_ambiguous)
            .and_then(|handed| {
                let exchange = handed.exchange.filter(|of| !self.calling.contains(of))?;
                let began_ns = began_ns(exchange)?;
                // Whatever was ordered for an earlier request was done by then.
                let is_in_time = began_ns <= pending.start_ns
                    && (handed.evidence != Evidence::HandedOff || began_ns <= handed.ordered_ns);
                let evidence = match handed.evidence {
                    Evidence::HandedOff if pending.sole != Some(exchange) => Evidence::HandedBack,
                    evidence => evidence,
                };
                is_in_time.then_some((exchange, evidence))
            });
        self.outcomes.push_back(match made_for {
            Some((exchange, evidence)) => Outcome::Made {
                call,
                exchange,
                evidence,
            },
            None => Outcome::Unknown { call },
        });
    }

    /// What was decided since the last call.
    pub fn poll(&mut self) -> Option<Outcome<E>> {
        self.outcomes.pop_front()
    }

    /// Records were lost: wake-ups may be among them.
    pub fn handle_loss(&mut self) {
        for (_, call) in self.settling.drain(..) {
            self.outcomes.push_back(Outcome::Unknown { call });
        }
        self.pending.clear();
        self.handed.clear();
        self.calling.clear();
        self.over.clear();
        self.orders.clear();
    }

    pub fn handle_thread_exit(&mut self, unit: Unit) {
        self.scores.remove(&unit);
        self.orders.remove(&unit);
    }

    /// The process ended, or runs another program. Returns whether it was followed.
    pub fn handle_exit(&mut self, process: ProcessId) -> bool {
        let was_followed = self.is_followed(process);
        if self.programs.remove(&process).is_some() {
            self.scores.retain(|unit, _| unit.process != process);
            self.orders.retain(|unit, _| unit.process != process);
        }
        was_followed
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
            && self.handed.is_empty()
            && self.calling.is_empty()
            && self.over.is_empty()
            && self.settling.is_empty()
    }

    fn forget(&mut self, call: E) -> Option<Pending<E>> {
        let pending = self.pending.remove(&call)?;
        if let Some(handed) = pending.handed {
            self.unlist(handed.from, call);
        }
        Some(pending)
    }

    fn unlist(&mut self, from: Unit, call: E) {
        if let Some(calls) = self.handed.get_mut(&from) {
            calls.retain(|other| *other != call);
            if calls.is_empty() {
                self.handed.remove(&from);
            }
        }
    }

    /// A call that nobody waited for. Returns whether the process is given up.
    fn miss(&mut self, maker: Unit) -> bool {
        self.scores.entry(maker).or_default().add(0);
        let Some(Program::Followed(fruitless)) = self.programs.get_mut(&maker.process) else {
            return false;
        };
        *fruitless += 1;
        let is_given_up = *fruitless >= FRUITLESS;
        if is_given_up {
            self.programs.insert(maker.process, Program::GivenUp);
        }
        is_given_up
    }
}

#[cfg(test)]
mod tests;
