//! How the two ends of a connection on this host find each other. Pure.

use std::net::IpAddr;

/// The same byte as both ends of a connection see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WireKey {
    /// The client's address and port (they survive destination NAT) and the TCP sequence number
    /// of the request's first byte.
    Tcp {
        client: (IpAddr, u16),
        sequence: u32,
    },
    /// The same of a TLS session: the TCP sequence number at which the connection's direction
    /// began, and from there on the plaintext.
    Tls { client: (IpAddr, u16), place: u32 },
    /// Identities of both sockets and the position of the request's first byte.
    Unix {
        client: u64,
        server: u64,
        position: u64,
    },
}
