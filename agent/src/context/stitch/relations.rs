//! How two nodes stand to each other. Pure.

use super::{DEPTH, NodeKey, Stitcher};
use crate::context::{Evidence, RemoteContext};

impl<T> Stitcher<T> {
    /// The exchange a client call was made for.
    pub fn caller(&self, key: NodeKey) -> Option<NodeKey> {
        self.nodes
            .get(key)
            .and_then(|node| node.caller)
            .map(|(caller, _)| caller)
    }

    /// The same exchange as the other end of its connection sees it, where that is known.
    pub fn opposite(&self, key: NodeKey) -> Option<NodeKey> {
        self.nodes.get(key).and_then(|node| node.opposite)
    }

    /// Two ends of one connection see the same exchange.
    pub(super) fn set_opposite(&mut self, client: NodeKey, server: NodeKey) {
        for (key, opposite) in [(client, server), (server, client)] {
            if let Some(node) = self.nodes.get_mut(key) {
                node.opposite = Some(opposite);
            }
        }
    }

    pub fn is_open(&self, key: NodeKey) -> bool {
        self.nodes
            .get(key)
            .is_some_and(|node| node.end_ns.is_none())
    }

    /// Whether calls are known to have been made for an exchange.
    pub fn has_calls(&self, key: NodeKey) -> bool {
        self.nodes.get(key).is_some_and(|node| node.children > 0)
    }

    pub fn start_ns(&self, key: NodeKey) -> Option<u64> {
        self.nodes.get(key).map(|node| node.start_ns)
    }

    /// Whether `above` is among the callers of `key`: a request that comes of itself is none.
    pub(super) fn is_below(&self, mut key: NodeKey, above: NodeKey) -> bool {
        for _ in 0..DEPTH {
            if key == above {
                return true;
            }
            let Some((caller, _)) = self.nodes.get(key).and_then(|node| node.caller) else {
                return false;
            };
            key = caller;
        }
        true
    }

    /// A request that was answered before the call began is not its parent. The other end of a
    /// connection is, whatever its client did meanwhile.
    pub(super) fn was_open_at(&self, caller: NodeKey, start_ns: u64, evidence: Evidence) -> bool {
        self.nodes.get(caller).is_some_and(|node| {
            evidence == Evidence::LocalWire || node.end_ns.is_none_or(|end_ns| end_ns >= start_ns)
        })
    }

    /// What a node's own request carried.
    pub(super) fn inbound_header(&self, key: NodeKey) -> Option<RemoteContext> {
        self.nodes.get(key).and_then(|node| node.header.clone())
    }
}
