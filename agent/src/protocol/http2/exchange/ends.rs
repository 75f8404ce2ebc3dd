//! How exchanges end: with both directions of their stream, by a reset, with the connection, or
//! unobserved.

use super::super::describe::{self, Outcome};
use super::{DOUBTFUL_NS, EARLY_NS, Http2, SWEEP_NS};
use crate::protocol::{EndCause, Flow, Progress, Standing};

/// Error codes of RFC 9113, section 7, as `error.type`.
const ERRORS: [&str; 14] = [
    "no_error", // see `error_name`
    "protocol_error",
    "internal_error",
    "flow_control_error",
    "settings_timeout",
    "stream_closed",
    "frame_size_error",
    "refused_stream",
    "cancel",
    "compression_error",
    "connect_error",
    "enhance_your_calm",
    "inadequate_security",
    "http_1_1_required",
];

const NO_ERROR: u32 = 0;
const CANCEL: u32 = 8;

/// The name of an error code; of one that was not captured, has none, or says that there is no
/// error where something broke all the same, the event's own.
fn error_name(code: Option<u32>, event: &'static str) -> &'static str {
    code.filter(|code| *code != NO_ERROR)
        .and_then(|code| ERRORS.get(usize::try_from(code).ok()?))
        .copied()
        .unwrap_or(event)
}

impl Http2 {
    /// Ends the stream if both of its directions have.
    pub(super) fn settle(&mut self, id: u32) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        if stream.is_complete() || stream.is_tunnel() {
            let end_ns = stream.up.ended_ns.max(stream.down.ended_ns);
            let end_ns = end_ns.unwrap_or(stream.last_ns);
            self.finish(id, Outcome::Complete, end_ns);
        } else if let (Some((outcome, end_ns)), true) =
            (stream.early_reset, stream.request.is_some())
        {
            self.finish(id, outcome, end_ns);
        }
    }

    /// RFC 9113, section 6.4.
    pub(super) fn reset(&mut self, flow: Flow, id: u32, code: Option<u32>, time_ns: u64) {
        let error = error_name(code, "stream_reset");
        let outcome = match (flow, code) {
            // A code that was not captured is taken for the usual one, which is no fault.
            (Flow::Request, None | Some(NO_ERROR | CANCEL)) => Outcome::Cancelled { error },
            _ => Outcome::Broken(error),
        };
        let Some(stream) = self.stream_or_early(id, time_ns) else {
            return;
        };
        if stream.request.is_none() {
            stream.early_reset = Some((outcome, time_ns));
        } else if let Some(end_ns) = stream.down.ended_ns {
            // A response may end before its request, whose rest is then given up (section 8.1).
            self.finish(id, Outcome::Complete, end_ns);
        } else {
            self.finish(id, outcome, time_ns);
        }
    }

    /// The server will not answer requests above the last one it names (section 6.8). What a
    /// client says so concerns pushed streams.
    pub(super) fn go_away(
        &mut self,
        flow: Flow,
        last: Option<u32>,
        code: Option<u32>,
        time_ns: u64,
    ) {
        let code = code.filter(|code| *code != NO_ERROR);
        let error = error_name(code, "goaway");
        if code.is_some() {
            self.connection_error = Some(error);
        }
        let Some(last) = last.filter(|_| flow == Flow::Response) else {
            return;
        };
        let outcome = Outcome::Broken(error);
        for id in self.open_ids() {
            if id > last & 0x7fff_ffff {
                self.finish(id, outcome, time_ns);
            }
        }
    }

    /// Identifiers of all streams, oldest first.
    fn open_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.streams.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Frames of this flow are missing, and with them maybe entries of its header table, bounds of
    /// the other flow, and ends of streams.
    pub(super) fn lose(&mut self, flow: Flow, time_ns: u64) {
        self.abandon_block(flow, time_ns);
        let half = self.half_mut(flow);
        half.current = None;
        half.hpack.restart();
        half.has_hole = true;
        if flow == Flow::Response {
            self.server_settings = None;
        }
        let bounded = self.half_mut(flow.opposite());
        bounded.walker.allow_all();
        bounded.hpack.allow(u32::MAX);
        if !std::mem::replace(&mut self.is_late, true) {
            self.shortfall.late_joins += 1;
        }
        for id in self.open_ids() {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.side(flow).lose();
                self.settle(id);
            }
        }
    }

    /// What flows is not HTTP/2.
    pub(super) fn refuse(&mut self, time_ns: u64) {
        for id in self.open_ids() {
            self.finish(id, Outcome::Broken("protocol_error"), time_ns);
        }
        self.standing = Standing::Over;
    }

    pub(super) fn end(&mut self, flow: Flow, cause: EndCause, time_ns: u64) {
        if flow == Flow::Request && cause == EndCause::Closed {
            // Responses may still come.
            self.request_flow_closed = true;
            if self.streams.is_empty() {
                self.standing = Standing::Over;
            }
            return;
        }
        self.abandon_block(flow, time_ns);
        for id in self.open_ids() {
            let Some(stream) = self.streams.get(&id) else {
                continue;
            };
            let (outcome, end_ns) = match cause {
                _ if stream.down.ended_ns.is_some() => {
                    (Outcome::Complete, stream.down.ended_ns.unwrap_or(time_ns))
                }
                EndCause::Unobserved => (Outcome::Unobserved, stream.last_ns),
                _ if stream.down.has_hole => (Outcome::Unobserved, time_ns),
                EndCause::Closed | EndCause::Reset if self.connection_error.is_some() => {
                    let error = self.connection_error.unwrap_or("goaway");
                    (Outcome::Broken(error), time_ns)
                }
                // The client left first: what it did not wait for is no failure.
                EndCause::Closed | EndCause::Reset if self.request_flow_closed => {
                    (Outcome::Unobserved, time_ns)
                }
                EndCause::Closed => (Outcome::Broken("connection_closed"), time_ns),
                EndCause::Reset => (Outcome::Broken("connection_reset"), time_ns),
                EndCause::TimedOut => (Outcome::Broken("timeout"), time_ns),
            };
            self.finish(id, outcome, end_ns);
        }
        self.standing = Standing::Over;
    }

    /// Gives up streams whose end may have passed unseen, and responses whose request did.
    pub(super) fn sweep(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.swept_ns) < SWEEP_NS {
            return;
        }
        self.swept_ns = now_ns;
        for id in self.open_ids() {
            let Some(stream) = self.streams.get(&id) else {
                continue;
            };
            let silent_ns = now_ns.saturating_sub(stream.last_ns);
            let last_ns = stream.last_ns;
            let end_ns = stream.down.ended_ns;
            if stream.request.is_none() {
                if silent_ns > EARLY_NS {
                    self.finish(id, Outcome::Unobserved, last_ns);
                }
            } else if silent_ns > DOUBTFUL_NS {
                if let Some(end_ns) = end_ns {
                    // Its request goes on for nobody.
                    self.finish(id, Outcome::Complete, end_ns);
                } else if stream.down.has_hole {
                    self.finish(id, Outcome::Unobserved, last_ns);
                }
            }
        }
    }

    fn finish(&mut self, id: u32, outcome: Outcome, end_ns: u64) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        let Some(request) = &stream.request else {
            // Requests below the last one were counted when they were missed.
            if self.counts_from_first() && id > self.last_opened {
                self.shortfall.exchanges += u64::from(self.streams_up_to(id));
                self.last_opened = id;
            }
            return;
        };
        let end_ns = end_ns.max(request.start_ns);
        let details = describe::details(&self.ends, request, &stream, outcome, end_ns);
        self.progress.push_back(Progress::Finished {
            exchange: request.exchange,
            start_ns: request.start_ns,
            end_ns,
            details,
        });
        if self.request_flow_closed && self.streams.is_empty() {
            self.standing = Standing::Over;
        }
    }
}
