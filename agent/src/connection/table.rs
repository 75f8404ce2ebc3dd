//! All connections: bounded, with expiry, and with a list of those whose end is awaited. Pure.

use std::{
    collections::{BTreeSet, hash_map::Entry},
    net::IpAddr,
};

use rustc_hash::FxHashMap;

use crate::{
    connection::Connection,
    event::{ConnectionId, Endpoints, OtherEnd, ProcessId, Role, Unit},
};

/// A connection that nothing was heard of for this long is forgotten, unless the kernel side says
/// that it is still there: unix sockets end without notice.
const IDLE_NS: u64 = 10 * 60 * 1_000_000_000;

/// The kernel is asked this long after a connection fell silent with its end awaited, then after
/// twice as long each time, up to [`LAST_ASK_NS`].
const FIRST_ASK_NS: u64 = 20_000_000;
const LAST_ASK_NS: u64 = 2_000_000_000;

/// How long the proof of a TLS session's connection may follow the session's first answer: the
/// program hands it to the socket next, unless it loses its CPU in between.
const PROOF_NS: u64 = 100_000_000;

/// When to ask the kernel about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ask {
    due_ns: u64,
    delay_ns: u64,
}

pub struct Table {
    connections: FxHashMap<ConnectionId, Connection>,
    asks: FxHashMap<ConnectionId, Ask>,
    /// `asks` by time.
    due: BTreeSet<(u64, ConnectionId)>,
    /// The own ends of clients' connections, and how many have each: as many as there are network
    /// namespaces.
    clients: FxHashMap<(IpAddr, u16), u32>,
    /// By the thread that answered: TLS sessions that wait for the proof of their connection, and
    /// until when.
    unproven: FxHashMap<Unit, (u64, ConnectionId)>,
    capacity: usize,
    swept_ns: u64,
}

impl Table {
    pub fn new(capacity: usize) -> Self {
        Self {
            connections: FxHashMap::default(),
            asks: FxHashMap::default(),
            due: BTreeSet::new(),
            clients: FxHashMap::default(),
            unproven: FxHashMap::default(),
            capacity,
            swept_ns: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.connections.len()
    }

    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    pub fn get(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(&id)
    }

    /// The connection of this id, made if it is new. `None` when there is no room.
    pub fn get_or_insert(
        &mut self,
        id: ConnectionId,
        unit: Unit,
        endpoints: Endpoints,
        role: Role,
        now_ns: u64,
    ) -> Option<&mut Connection> {
        if self.connections.len() >= self.capacity && !self.connections.contains_key(&id) {
            return None;
        }
        Some(
            self.connections
                .entry(id)
                .or_insert_with(|| Connection::new(unit, endpoints, role, now_ns)),
        )
    }

    /// Connections that this process used last.
    pub fn of_process(&self, process: ProcessId) -> Vec<ConnectionId> {
        self.connections
            .iter()
            .filter(|(_, connection)| connection.process == process)
            .map(|(id, _)| *id)
            .collect()
    }

    pub fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        self.forget_ask(id);
        let removed = self.connections.remove(&id)?;
        if let Some(end) = removed.client_end
            && let Entry::Occupied(mut count) = self.clients.entry(end)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(removed)
    }

    /// The addresses of this client's connection are known now.
    pub fn note_client(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.client_end.is_none()
            && let Endpoints::Inet { local, .. } = connection.endpoints
            && local.1 != 0
        {
            connection.client_end = Some(local);
            *self.clients.entry(local).or_default() += 1;
        }
    }

    /// Who may be at the other end of a connection that was seen from its first byte on.
    pub fn other_end(&self, endpoints: Endpoints) -> OtherEnd {
        match endpoints {
            Endpoints::Inet { remote, .. } if self.clients.contains_key(&remote) => {
                OtherEnd::Traced
            }
            Endpoints::Inet { .. } => OtherEnd::NotTraced,
            Endpoints::Unix { .. } | Endpoints::Unknown => OtherEnd::Unknown,
        }
    }

    /// Notes whether the connection's end is awaited, after something was heard of it.
    pub fn update_ask(&mut self, id: ConnectionId, now_ns: u64) {
        let waiting = self
            .connections
            .get(&id)
            .is_some_and(|connection| connection.is_waiting() || connection.is_breaking());
        if waiting {
            self.set_ask(
                id,
                Ask {
                    due_ns: now_ns.saturating_add(FIRST_ASK_NS),
                    delay_ns: FIRST_ASK_NS,
                },
            );
        } else {
            self.forget_ask(id);
        }
    }

    /// What this TLS session said is read when its connection is proven, or else a little later.
    pub fn note_unproven(&mut self, unit: Unit, id: ConnectionId, now_ns: u64) {
        let due_ns = now_ns.saturating_add(PROOF_NS);
        self.unproven.entry(unit).or_insert((due_ns, id));
    }

    /// The session whose proof this thread has not sent, and will not: it goes on with another
    /// connection.
    pub fn take_unproven(&mut self, unit: Unit, id: ConnectionId) -> Option<ConnectionId> {
        if self.unproven.is_empty() {
            return None;
        }
        let (_, held) = *self.unproven.get(&unit)?;
        if id == held || id == held.carrier() {
            return None;
        }
        self.unproven.remove(&unit);
        Some(held)
    }

    /// Sessions that have waited long enough for the proof of their connection, where what was
    /// recorded until now has been handled.
    pub fn overdue_unproven(&mut self, now_ns: u64) -> Vec<ConnectionId> {
        let due = self.unproven.extract_if(|_, (due_ns, _)| *due_ns <= now_ns);
        due.map(|(_, (_, id))| id).collect()
    }

    /// A connection to ask the kernel about now; it will come again, later each time, until
    /// something is heard of it.
    pub fn poll_ask(&mut self, now_ns: u64) -> Option<ConnectionId> {
        let &(due_ns, id) = self.due.first()?;
        if due_ns > now_ns {
            return None;
        }
        let delay_ns = self.asks.get(&id).map_or(FIRST_ASK_NS, |ask| ask.delay_ns);
        let delay_ns = (delay_ns * 2).min(LAST_ASK_NS);
        self.set_ask(
            id,
            Ask {
                due_ns: now_ns.saturating_add(delay_ns),
                delay_ns,
            },
        );
        Some(id)
    }

    /// Connections that nothing was heard of for very long.
    pub fn idle(&mut self, now_ns: u64) -> Vec<ConnectionId> {
        if now_ns.saturating_sub(self.swept_ns) < IDLE_NS / 10 {
            return Vec::new();
        }
        self.swept_ns = now_ns;
        self.connections
            .iter()
            .filter(|(_, connection)| now_ns.saturating_sub(connection.last_ns) > IDLE_NS)
            .map(|(id, _)| *id)
            .collect()
    }

    pub fn ids(&self) -> Vec<ConnectionId> {
        let mut ids: Vec<_> = self.connections.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn set_ask(&mut self, id: ConnectionId, ask: Ask) {
        if let Some(before) = self.asks.insert(id, ask) {
            self.due.remove(&(before.due_ns, id));
        }
        self.due.insert((ask.due_ns, id));
    }

    fn forget_ask(&mut self, id: ConnectionId) {
        if let Some(ask) = self.asks.remove(&id) {
            self.due.remove(&(ask.due_ns, id));
        }
    }
}

#[cfg(test)]
mod tests;
