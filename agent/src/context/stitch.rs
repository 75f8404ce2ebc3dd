//! Traces put together from exchanges. Pure.
//!
//! An exchange becomes a [`Node`] when its request begins, so that what happens meanwhile can name
//! it as parent. Its identity (trace, parent) is settled late: when both ends of a connection are
//! on this host, either end may be recorded first. A server's request waits for its client, as
//! long as it makes sense by what is known of the other end of its connection, and until then so
//! does everything below it. A call whose request is found by who
//! answers waits for that answer, and so does everything below it.

mod identity;
mod minted;
mod relations;
mod timers;
mod wire;

use std::collections::VecDeque;

use opentelemetry::{SpanId, TraceId};
use rustc_hash::FxHashMap;
use slotmap::{SlotMap, new_key_type};

pub use self::{identity::Identity, minted::Minted, wire::WireKey};
use self::{
    identity::{client_identity, injected_identity, server_identity},
    timers::Timers,
};
use super::{Evidence, IdGenerator, RemoteContext};
use crate::{event::OtherEnd, span::Kind};

/// How long a server's request waits for the client's end of it to be recorded, when it is not
/// known whether that is traced. Both are recorded within microseconds of each other unless a
/// thread loses its CPU in between.
pub const HOLD_NS: u64 = 100_000_000;

/// As [`HOLD_NS`], when it is known to be traced: a sender may lose its CPU before it is recorded,
/// for several periods of a CPU limit (100 ms, `cpu.cfs_period_us`) or on a crowded host.
const TRACED_HOLD_NS: u64 = 1_000_000_000;

/// A client's request that got no answer is remembered this long after its end: its server may be
/// late, not absent. One that was answered was read before, and is remembered for [`HOLD_NS`].
const WIRE_LINGER_NS: u64 = 5_000_000_000;

/// A server may be recorded before its client by this much on a unix socket: the sender is recorded
/// only after the bytes have left. Not longer, because the next socket may have the same identity.
/// On TCP as long as it waits.
const UNIX_SLACK_NS: u64 = 50_000_000;

/// How long a call waits for the answer that tells whose it is. As long as requests usually take at
/// most: proxies and clients give up after 60 s (nginx, `proxy_read_timeout`).
pub const VERDICT_NS: u64 = 60_000_000_000;

/// Parents above a node at most: more is a loop, which the rules exclude.
const DEPTH: u32 = 256;

new_key_type! {
    /// An exchange that has begun.
    pub struct NodeKey;
}

#[derive(Debug)]
struct Node<T> {
    kind: Kind,
    span_id: SpanId,
    start_ns: u64,
    end_ns: Option<u64>,
    is_answered: bool,
    /// What the request itself says.
    header: Option<RemoteContext>,
    /// What came with a TCP option where the request begins.
    carried: Option<RemoteContext>,
    /// The exchange this one was made for, or the other end of its connection.
    caller: Option<(NodeKey, Evidence)>,
    wire: Option<WireKey>,
    /// The exchange as the other end of its connection sees it.
    opposite: Option<NodeKey>,
    /// How long a server's request waits for its client.
    hold_ns: u64,
    /// Whose call this is will be known when a request is answered.
    is_undecided: bool,
    /// The request that an undecided call may turn out to be for, which stays until then.
    supposed: Option<NodeKey>,
    identity: Option<Identity>,
    /// The trace that the kernel side chose for the request. A client's has left with it.
    minted: Option<TraceId>,
    /// The first trace that was chosen for a request below this one.
    suggested: Option<TraceId>,
    /// Nodes whose `caller` is this one and that are still there.
    children: u32,
    payload: Option<T>,
}

/// An exchange that begins.
#[derive(Clone, Copy, Debug)]
pub struct Beginning {
    pub kind: Kind,
    pub start_ns: u64,
    pub caller: Option<(NodeKey, Evidence)>,
    pub wire: Option<WireKey>,
    pub other_end: OtherEnd,
    pub minted: Option<Minted>,
}

/// Joins exchanges; `T` is what the caller wants back with the identity.
#[derive(Debug)]
pub struct Stitcher<T> {
    nodes: SlotMap<NodeKey, Node<T>>,
    ids: IdGenerator,
    /// The end that was recorded first waits here for the other.
    clients: FxHashMap<WireKey, NodeKey>,
    servers: FxHashMap<WireKey, NodeKey>,
    /// When a node stops waiting in one of the two maps above.
    expiry: Timers<NodeKey>,
    /// Ended nodes by the time at which they are settled at the latest.
    waiting: Timers<NodeKey>,
    /// Ended nodes at or below an undecided call.
    blocked: FxHashMap<NodeKey, Vec<NodeKey>>,
    ready: VecDeque<(T, Identity)>,
    /// Ended nodes that wait.
    held: usize,
    capacity: usize,
    forced: u64,
    weakest: Evidence,
    /// For the loops over what is due.
    due: Vec<NodeKey>,
}

/// When a node's place is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    At(u64),
    /// When this call's request is known, or at this time.
    After(NodeKey, u64),
}

impl<T> Stitcher<T> {
    /// At most `capacity` ended exchanges wait. Evidence weaker than `weakest` makes links.
    pub fn new(ids: IdGenerator, capacity: usize, weakest: Evidence) -> Self {
        Self {
            nodes: SlotMap::with_key(),
            ids,
            clients: FxHashMap::default(),
            servers: FxHashMap::default(),
            expiry: Timers::default(),
            waiting: Timers::default(),
            blocked: FxHashMap::default(),
            ready: VecDeque::new(),
            held: 0,
            capacity,
            forced: 0,
            weakest,
            due: Vec::new(),
        }
    }

    /// A request's first byte was seen.
    pub fn handle_started(&mut self, beginning: Beginning) -> NodeKey {
        let span_id = self.ids.span_id();
        let Beginning {
            kind,
            start_ns,
            caller,
            wire,
            other_end,
            minted,
        } = beginning;
        let caller = caller.filter(|(parent, _)| self.nodes.contains_key(*parent));
        if let Some((parent, _)) = caller {
            self.adopt(parent);
        }
        let key = self.nodes.insert(Node {
            kind,
            span_id,
            start_ns,
            end_ns: None,
            is_answered: false,
            header: None,
            carried: None,
            caller,
            wire,
            opposite: None,
            hold_ns: match other_end {
                OtherEnd::Unknown => HOLD_NS,
                OtherEnd::Traced => TRACED_HOLD_NS,
                OtherEnd::NotTraced => 0,
            },
            is_undecided: false,
            supposed: None,
            identity: None,
            minted: None,
            suggested: None,
            children: 0,
            payload: None,
        });
        if let Some(minted) = minted {
            self.handle_minted(key, minted);
        }
        if let Some(wire) = wire {
            self.meet(kind, wire, key);
        }
        key
    }

    /// The request's head says which context it carries.
    pub fn handle_header(&mut self, key: NodeKey, context: RemoteContext) {
        if let Some(node) = self.nodes.get_mut(key) {
            node.header = Some(context);
        }
    }

    /// A TCP option says which context the request carries.
    pub fn handle_carried(&mut self, key: NodeKey, context: RemoteContext) {
        if let Some(node) = self.nodes.get_mut(key) {
            node.carried = Some(context);
        }
    }

    /// The first byte of the response was seen.
    pub fn handle_answered(&mut self, key: NodeKey) {
        if let Some(node) = self.nodes.get_mut(key) {
            node.is_answered = true;
        }
    }

    /// The exchange is over; `payload` comes back from [`Self::poll`].
    pub fn handle_ended(&mut self, key: NodeKey, end_ns: u64, payload: T) {
        let Some(node) = self.nodes.get_mut(key) else {
            return;
        };
        node.end_ns = Some(end_ns);
        node.payload = Some(payload);
        self.held += 1;
        if let (Kind::Client, Some(wire)) = (node.kind, node.wire)
            && self.clients.contains_key(&wire)
        {
            let linger_ns = if node.is_answered {
                HOLD_NS
            } else {
                WIRE_LINGER_NS
            };
            self.expiry.insert(end_ns.saturating_add(linger_ns), key);
        }
        self.schedule(key);
        while self.held > self.capacity && self.waiting.len() > 0 {
            self.force_first();
        }
    }

    /// Too many wait: those that would be settled first go as they are.
    fn force_first(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.waiting.take_first(&mut due);
        for key in due.drain(..) {
            if self.is_held(key) {
                self.forced += 1;
                self.release(key);
            }
        }
        self.due = due;
    }

    /// Whose call this is, will be told by [`Self::handle_caller`] or [`Self::handle_no_caller`].
    /// A request that it may be for is kept until then.
    pub fn handle_undecided(&mut self, call: NodeKey, supposed: Option<NodeKey>) {
        let supposed = supposed.filter(|exchange| self.nodes.contains_key(*exchange));
        let Some(node) = self.nodes.get_mut(call) else {
            return;
        };
        node.is_undecided = true;
        let before = std::mem::replace(&mut node.supposed, supposed);
        if let Some(exchange) = supposed {
            self.adopt(exchange);
        }
        self.disown(before);
    }

    /// One node less refers to this one.
    fn disown(&mut self, parent: Option<NodeKey>) {
        let Some(key) = parent else { return };
        if let Some(parent) = self.nodes.get_mut(key) {
            parent.children -= 1;
        }
        self.let_go(key);
    }

    /// An undecided call was made for this exchange.
    pub fn handle_caller(&mut self, call: NodeKey, exchange: NodeKey, evidence: Evidence) {
        let is_free = self.nodes.get(call).is_some_and(|node| {
            node.kind == Kind::Client && node.caller.is_none() && node.identity.is_none()
        });
        if is_free && self.nodes.contains_key(exchange) && !self.is_below(exchange, call) {
            self.adopt(exchange);
            if let Some(node) = self.nodes.get_mut(call) {
                node.caller = Some((exchange, evidence));
            }
            if evidence <= self.weakest {
                self.suggest_upwards(call, exchange);
            }
        }
        self.handle_no_caller(call);
    }

    /// Nothing more will be known of an undecided call.
    pub fn handle_no_caller(&mut self, call: NodeKey) {
        if let Some(node) = self.nodes.get_mut(call) {
            node.is_undecided = false;
            let supposed = node.supposed.take();
            self.disown(supposed);
        }
        for key in self.blocked.remove(&call).unwrap_or_default() {
            if self.is_held(key) {
                self.schedule(key);
            }
        }
    }

    fn is_held(&self, key: NodeKey) -> bool {
        self.nodes
            .get(key)
            .is_some_and(|node| node.payload.is_some())
    }

    fn schedule(&mut self, key: NodeKey) {
        match self.settled(key) {
            Settled::At(due_ns) => self.waiting.insert(due_ns, key),
            Settled::After(call, due_ns) => {
                self.waiting.insert(due_ns, key);
                self.blocked.entry(call).or_default().push(key);
            }
        }
    }

    /// Time passes.
    pub fn handle_tick(&mut self, now_ns: u64) {
        let mut due = std::mem::take(&mut self.due);
        // What settles now may let others settle now.
        loop {
            self.waiting.take_due(now_ns, &mut due);
            if due.is_empty() {
                break;
            }
            for key in due.drain(..) {
                if !self.is_held(key) {
                    continue;
                }
                match self.settled(key) {
                    Settled::At(due_ns) | Settled::After(_, due_ns) if due_ns > now_ns => {
                        self.schedule(key);
                    }
                    Settled::After(call, _) => {
                        self.handle_no_caller(call);
                        self.release(key);
                    }
                    Settled::At(_) => self.release(key),
                }
            }
        }
        self.expiry.take_due(now_ns, &mut due);
        for key in due.drain(..) {
            self.expire(key);
        }
        self.due = due;
    }

    /// Nothing more will be learned of who belongs to whom: what is open is open, and may be a
    /// parent.
    pub fn settle(&mut self) {
        let keys: Vec<NodeKey> = self.nodes.keys().collect();
        for key in keys {
            self.identify(key, DEPTH);
        }
    }

    /// Nothing more is waited for: what has ended comes out as far as it is known.
    pub fn flush(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.waiting.take_due(u64::MAX, &mut due);
        for key in due.drain(..) {
            self.release(key);
        }
        self.due = due;
        self.blocked.clear();
    }

    /// An ended exchange with its final identity.
    pub fn poll(&mut self) -> Option<(T, Identity)> {
        self.ready.pop_front()
    }

    /// Exchanges that left before they were settled, because too many waited.
    pub fn take_forced(&mut self) -> u64 {
        std::mem::take(&mut self.forced)
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
            && self.clients.is_empty()
            && self.servers.is_empty()
            && self.held == 0
            && self.blocked.is_empty()
    }

    fn adopt(&mut self, parent: NodeKey) {
        if let Some(parent) = self.nodes.get_mut(parent) {
            parent.children += 1;
        }
    }

    /// One end of a connection looks for the other.
    fn meet(&mut self, kind: Kind, wire: WireKey, key: NodeKey) {
        match kind {
            Kind::Client => match self.servers.remove(&wire) {
                Some(server) => self.join(key, server),
                None => {
                    self.clients.insert(wire, key);
                }
            },
            Kind::Server => {
                if let Some(client) = self.clients.remove(&wire) {
                    self.join(client, key);
                } else if let Some(node) = self.nodes.get(key)
                    && node.hold_ns > 0
                {
                    self.servers.insert(wire, key);
                    let until_ns = node.start_ns.saturating_add(node.hold_ns);
                    self.expiry.insert(until_ns, key);
                }
            }
        }
    }

    fn join(&mut self, client: NodeKey, server: NodeKey) {
        let (Some(from), Some(to)) = (self.nodes.get(client), self.nodes.get(server)) else {
            return;
        };
        // One byte cannot be read before it was sent, nor long after the sender gave up.
        let slack_ns = match to.wire {
            Some(WireKey::Unix { .. }) => UNIX_SLACK_NS,
            _ => to.hold_ns.max(HOLD_NS),
        };
        let is_possible = from.start_ns <= to.start_ns.saturating_add(slack_ns)
            && from
                .end_ns
                .is_none_or(|end_ns| to.start_ns <= end_ns.saturating_add(WIRE_LINGER_NS));
        if !is_possible || to.identity.is_some() || self.is_below(client, server) {
            return;
        }
        self.adopt(client);
        if let Some(node) = self.nodes.get_mut(server) {
            node.caller = Some((client, Evidence::LocalWire));
        }
        self.set_opposite(client, server);
        self.suggest_upwards(server, client);
    }

    /// When a node's place is final: when every server above it has met its client or waited long
    /// enough for one, and every call above it has its request.
    fn settled(&self, mut key: NodeKey) -> Settled {
        for _ in 0..DEPTH {
            let Some(node) = self.nodes.get(key) else {
                break;
            };
            if node.identity.is_some() {
                break;
            }
            if node.is_undecided {
                return Settled::After(key, node.start_ns.saturating_add(VERDICT_NS));
            }
            match (node.caller, node.kind) {
                (Some((caller, _)), _) => key = caller,
                (None, Kind::Server) if node.wire.is_some() => {
                    return Settled::At(node.start_ns.saturating_add(node.hold_ns));
                }
                (None, _) => break,
            }
        }
        Settled::At(0)
    }

    /// Hands out an ended node and lets go of what nobody refers to any more.
    fn release(&mut self, key: NodeKey) {
        let Some(identity) = self.identify(key, DEPTH) else {
            return;
        };
        let Some(node) = self.nodes.get_mut(key) else {
            return;
        };
        if let Some(payload) = node.payload.take() {
            self.held -= 1;
            self.ready.push_back((payload, identity));
        }
        if node.is_undecided {
            // What it is now, it stays.
            self.handle_no_caller(key);
        }
        self.let_go(key);
    }

    fn let_go(&mut self, mut key: NodeKey) {
        for _ in 0..DEPTH {
            let Some(node) = self.nodes.get(key) else {
                return;
            };
            let is_awaited = node.wire.is_some_and(|wire| match node.kind {
                Kind::Client => self.clients.get(&wire) == Some(&key),
                Kind::Server => self.servers.get(&wire) == Some(&key),
            });
            if node.children > 0 || node.end_ns.is_none() || node.payload.is_some() || is_awaited {
                return;
            }
            let (caller, supposed) = (node.caller, node.supposed);
            if node.is_undecided {
                self.blocked.remove(&key);
            }
            self.nodes.remove(key);
            self.disown(supposed);
            let Some((caller, _)) = caller else { return };
            if let Some(parent) = self.nodes.get_mut(caller) {
                parent.children -= 1;
            }
            key = caller;
        }
    }

    /// A node waits for its other end no more.
    fn expire(&mut self, key: NodeKey) {
        let Some(node) = self.nodes.get(key) else {
            return;
        };
        let Some(wire) = node.wire else { return };
        let map = match node.kind {
            Kind::Client => &mut self.clients,
            Kind::Server => &mut self.servers,
        };
        if map.get(&wire) == Some(&key) {
            map.remove(&wire);
        }
        self.let_go(key);
    }

    /// The node's final identity; everything above it becomes final too.
    fn identify(&mut self, key: NodeKey, depth: u32) -> Option<Identity> {
        let node = self.nodes.get(key)?;
        if let Some(identity) = &node.identity {
            return Some(identity.clone());
        }
        let (span_id, kind, start_ns) = (node.span_id, node.kind, node.start_ns);
        let (header, carried) = (node.header.clone(), node.carried.clone());
        let (minted, suggested) = (node.minted, node.suggested);
        let caller = node.caller.filter(|(caller, evidence)| {
            depth > 0 && self.was_open_at(*caller, start_ns, *evidence)
        });
        let caller = match caller {
            Some((caller, evidence)) => self
                .identify(caller, depth - 1)
                .map(|identity| (identity, evidence, self.inbound_header(caller))),
            None => None,
        };
        let (caller, weak) = match caller {
            Some((identity, evidence, _)) if evidence > self.weakest => {
                (None, Some((identity, evidence)))
            }
            strong => (strong, None),
        };
        // A header of ours carries the context on, though the program wrote none.
        let passing = match (kind, minted) {
            (Kind::Client, Some(_)) if header.is_none() => None,
            _ => identity::passing(header.as_ref(), caller.as_ref()),
        };
        // A root takes the trace that already left with a request, if one did.
        let mut new_trace = || minted.or(suggested).unwrap_or_else(|| self.ids.trace_id());
        let mut identity = match (kind, minted) {
            (Kind::Server, _) => {
                let remote = identity::remote(header, carried, self.weakest);
                server_identity(span_id, remote, caller, &mut new_trace)
            }
            (Kind::Client, Some(trace_id)) if header.is_none() => {
                injected_identity(span_id, trace_id, caller)
            }
            (Kind::Client, _) => client_identity(span_id, header, caller, &mut new_trace),
        };
        identity
            .links
            .extend(weak.map(|(caller, evidence)| identity::weak_link(&caller, evidence)));
        identity.passing = passing;
        if let Some(node) = self.nodes.get_mut(key) {
            node.identity = Some(identity.clone());
        }
        Some(identity)
    }
}

#[cfg(test)]
mod tests;
