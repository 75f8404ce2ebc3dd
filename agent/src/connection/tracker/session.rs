//! What a connection's session says, and which one follows it.

use super::{Connection, Origin, Understanding};
use crate::{
    connection::{Observation, beginning::Undecided},
    event::Endpoints,
    protocol::{Address, Endpoint, REGISTRY, Standing, Successor},
    span::Kind,
};

impl Connection {
    /// Takes what the session learned; notes when it is over.
    pub(super) fn collect(&mut self, origin: Option<Origin>) {
        let Understanding::Speaks { session, kind } = &mut self.understanding else {
            return;
        };
        let kind = *kind;
        while let Some(progress) = session.poll() {
            self.observations
                .push_back(Observation { progress, origin });
        }
        let shortfall = session.take_shortfall();
        self.shortfall.exchanges += shortfall.exchanges;
        self.shortfall.late_joins += shortfall.late_joins;
        self.highest_stream = session.highest_stream();
        match session.standing() {
            Standing::Going => {}
            Standing::Lost => {
                self.has_lost_track = true;
                self.shortfall.exchanges += 1;
                self.understanding = Understanding::Undecided(Undecided::default());
            }
            Standing::Over => {
                let successor = session.take_successor();
                self.understanding = Understanding::Opaque;
                if let Some((successor, origin)) = successor.zip(origin) {
                    self.hand_on(&successor, kind, origin);
                }
            }
        }
    }

    /// Whether what a TLS session carries is one of our protocols, as soon as that is known; once.
    pub fn take_judgement(&mut self) -> Option<bool> {
        if matches!(self.understanding, Understanding::Undecided(_)) {
            return None;
        }
        let plaintext = self.plaintext.as_mut()?;
        // Of one that is over nothing else is known.
        let is_understood = plaintext.is_understood;
        let was_judged = std::mem::replace(&mut plaintext.is_judged, true);
        (!was_judged).then_some(is_understood)
    }

    /// Both sides go on with another protocol.
    fn hand_on(&mut self, successor: &Successor, kind: Kind, origin: Origin) {
        let protocol = REGISTRY
            .iter()
            .find(|protocol| protocol.name == successor.protocol);
        let Some(protocol) = protocol else { return };
        self.is_multiplexed = protocol.is_multiplexed;
        self.understanding = Understanding::Speaks {
            session: (protocol.session)(self.endpoint(kind)),
            kind,
        };
        if !successor.rest.is_empty() {
            let origin = Origin {
                tcp_sequence: origin.sequence_at(successor.position),
                position: successor.position,
                ..origin
            };
            self.feed_bytes(&successor.rest, false, origin);
        }
    }

    pub(super) fn endpoint(&self, kind: Kind) -> Endpoint {
        let (local, peer) = match self.endpoints {
            Endpoints::Inet { local, remote, .. } => (
                Address::Inet {
                    ip: local.0,
                    port: local.1,
                },
                Address::Inet {
                    ip: remote.0,
                    port: remote.1,
                },
            ),
            Endpoints::Unknown => (Address::Unknown, Address::Unknown),
            Endpoints::Unix { .. } => {
                let named = Address::Unix {
                    path: self.unix_path.clone().unwrap_or_default(),
                };
                let unnamed = Address::Unix {
                    path: String::new(),
                };
                match kind {
                    Kind::Server => (named, unnamed),
                    Kind::Client => (unnamed, named),
                }
            }
        };
        Endpoint {
            kind,
            local,
            peer,
            complete: self.complete && !self.has_lost_track,
            encrypted: self.plaintext.is_some(),
        }
    }
}
