//! Work that threads hand to each other, told to the parts that join traces. Pure.

use super::{Exchanges, Finished, Open};
use crate::{
    context::{Evidence, Stitcher, handed_off::Outcome, stitch::NodeKey},
    event::{HandOff, ProcessId, Unit},
};

/// A change in which processes are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Followed {
    FromNowOn(ProcessId),
    NoMore(ProcessId),
}

impl Exchanges {
    /// A thread woke another one, to begin a work or because it is done.
    pub(in crate::engine) fn handle_hand_off(
        &mut self,
        wake: &HandOff,
        now_ns: u64,
        stitcher: &mut Stitcher<Finished>,
    ) {
        self.hand_offs.handle_wake(wake, now_ns);
        let hand_offs = &self.hand_offs;
        let is_theirs = |call| hand_offs.is_awaited(call, wake, now_ns);
        let handed = self.answering.hand_over(wake.from, wake.to, is_theirs);
        for call in &handed {
            self.hand_offs.handle_handed(*call, wake, now_ns);
        }
        if wake.waiting_since_ns < wake.answer_ns {
            self.hand_offs.handle_done(wake.from);
        }
        self.tell_verdicts(stitcher);
    }

    /// Whose processes are followed from now on, or no more.
    pub(in crate::engine) fn poll_followed(&mut self) -> Option<Followed> {
        self.followed.pop_front()
    }

    /// The process runs another program now.
    pub(in crate::engine) fn handle_exec(&mut self, process: ProcessId) {
        if self.hand_offs.handle_exit(process) {
            self.followed.push_back(Followed::NoMore(process));
        }
    }

    /// A request was answered to its end. When it had no calls, and calls were made meanwhile that
    /// nothing explains, it may have handed them to other threads.
    pub(super) fn note_finished(
        &mut self,
        open: &Open,
        start_ns: u64,
        end_ns: u64,
        stitcher: &Stitcher<Finished>,
    ) {
        let process = open.unit.process;
        self.hand_offs.handle_finished(open.node, end_ns);
        if !stitcher.has_calls(open.node)
            && self.answering.has_calls_since(process, start_ns)
            && self.hand_offs.handle_suspicion(process)
        {
            self.followed.push_back(Followed::FromNowOn(process));
        }
    }

    /// A call was made, and whose it is may be known later.
    pub(super) fn leave_open(
        &mut self,
        unit: Unit,
        call: NodeKey,
        time_ns: u64,
        stitcher: &mut Stitcher<Finished>,
    ) {
        let supposed = self.starts.handle_call(unit, call, time_ns);
        if supposed.is_some() {
            stitcher.handle_undecided(call, supposed);
        } else if self.answering.handle_call(unit, call, time_ns) {
            let sole = self.sole_request(unit.process);
            self.hand_offs.handle_call(unit, call, time_ns, sole);
            stitcher.handle_undecided(call, None);
        } else {
            self.note_idle_call(unit);
            if let Some(request) = self.sole_request(unit.process) {
                stitcher.handle_caller(call, request, Evidence::Sole);
            }
        }
    }

    /// The one request that a process has open.
    fn sole_request(&self, process: ProcessId) -> Option<NodeKey> {
        let open = self.serving.get(&process)?;
        open.iter().next().copied().filter(|_| open.len() == 1)
    }

    pub(super) fn forget_served(&mut self, open: &Open) {
        if let Some(others) = self.serving.get_mut(&open.unit.process) {
            others.remove(&open.node);
            if others.is_empty() {
                self.serving.remove(&open.unit.process);
            }
        }
    }

    /// A thread made a call while no request was open that it may be for.
    fn note_idle_call(&mut self, unit: Unit) {
        if self.hand_offs.handle_idle_call(unit) {
            self.followed.push_back(Followed::NoMore(unit.process));
        }
    }

    /// Nothing explains a call, and nothing more will be known of it.
    pub(super) fn note_unknown(&mut self, call: NodeKey) {
        if let Some(process) = self.hand_offs.handle_unknown(call) {
            self.followed.push_back(Followed::NoMore(process));
        }
    }

    /// Time passes.
    pub(super) fn settle_handed(&mut self, now_ns: u64, stitcher: &mut Stitcher<Finished>) {
        self.hand_offs
            .handle_tick(now_ns, |exchange| stitcher.start_ns(exchange));
        self.tell_outcomes(stitcher);
    }

    pub(super) fn tell_outcomes(&mut self, stitcher: &mut Stitcher<Finished>) {
        while let Some(outcome) = self.hand_offs.poll() {
            match outcome {
                Outcome::Made {
                    call,
                    exchange,
                    evidence,
                } => stitcher.handle_caller(call, exchange, evidence),
                Outcome::Unknown { call } => stitcher.handle_no_caller(call),
            }
        }
    }
}
