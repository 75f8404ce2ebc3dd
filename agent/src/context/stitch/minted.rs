//! Ids that left with a request before anything else of it was known. Pure.
//!
//! What left on the wire cannot be taken back: a client's span is what its header said, and whoever
//! has no trace yet above it takes that one.

use opentelemetry::{SpanId, TraceId};

use super::{DEPTH, NodeKey, Stitcher};

/// Ids that the kernel side chose for a request, before anything else of it was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minted {
    pub trace_id: TraceId,
    /// The span of a client's request, whose header has left with it.
    pub span_id: Option<SpanId>,
}

impl<T> Stitcher<T> {
    /// The kernel side chose ids for the request.
    pub fn handle_minted(&mut self, key: NodeKey, minted: Minted) {
        let Some(node) = self.nodes.get_mut(key) else {
            return;
        };
        if node.identity.is_some() {
            return;
        }
        if let Some(span_id) = minted.span_id {
            node.span_id = span_id;
        }
        node.minted = Some(minted.trace_id);
        self.suggest(key, minted.trace_id);
    }

    /// Tells everything above a request, as far as it is not settled, which trace was chosen below.
    fn suggest(&mut self, mut key: NodeKey, trace_id: TraceId) {
        for _ in 0..DEPTH {
            let Some(node) = self.nodes.get_mut(key) else {
                return;
            };
            if node.suggested.is_some() || node.identity.is_some() {
                return;
            }
            node.suggested = Some(trace_id);
            let Some((caller, _)) = node.caller else {
                return;
            };
            key = caller;
        }
    }

    /// As [`Self::suggest`], when a request has just got its caller.
    pub(super) fn suggest_upwards(&mut self, key: NodeKey, caller: NodeKey) {
        if let Some(trace_id) = self.nodes.get(key).and_then(|node| node.suggested) {
            self.suggest(caller, trace_id);
        }
    }
}
