//! Free ports for servers that cannot choose one themselves.

use std::net::{Ipv4Addr, TcpListener};

/// A loopback port that was free a moment ago. The kernel hands out ephemeral ports in a random
/// order, so that another process takes this one before its user binds it is unlikely.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free loopback port");
    listener
        .local_addr()
        .expect("a bound socket has an address")
        .port()
}
