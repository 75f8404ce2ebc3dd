//! Connections: begin, role, end.
//!
//! hook: tp_btf inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate),
//!       since 5.5 (BTF tracepoints); the tracepoint itself since 4.16
//! hook: tp_btf tcp_destroy_sock(struct sock *sk), since 5.5; the tracepoint itself since 4.16
//! hook: fentry unix_release(struct socket *sock) -> int, since 5.5; fallback: kprobe, in
//!       `kretprobe.rs`; not with the tracepoints, which key connections by cookie

use agent_common::{
    connection::{
        Carried, ClosingStep, ConnectionClosing, ConnectionEstablished, ConnectionState, Role,
        plaintext_identity,
    },
    process::ProcessListen,
    record::RecordKind,
};
use aya_ebpf::{
    macros::{btf_tracepoint, fentry},
    programs::{BtfTracePointContext, FEntryContext},
};

use crate::{
    connection::{self, NewState},
    emit,
    hooks::{
        inject_context,
        socket_data::{announce, socket_sock},
    },
    maps::{ACCEPTED, CONNECTIONS, config},
    process::{self, TracedUnit},
    read::{
        sock::{Sock, Stream},
        task,
    },
    scratch::Slot,
};

/// TCP states, `include/net/tcp_states.h`.
mod state {
    pub(super) const ESTABLISHED: i32 = 1;
    pub(super) const SYN_SENT: i32 = 2;
    pub(super) const SYN_RECEIVED: i32 = 3;
    pub(super) const FIN_WAIT_1: i32 = 4;
    pub(super) const CLOSE: i32 = 7;
    pub(super) const CLOSE_WAIT: i32 = 8;
    pub(super) const LISTEN: i32 = 10;
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let sock = Sock(ctx.arg(0));
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    match (old, new) {
        (_, state::SYN_SENT) => connecting(sock),
        (state::SYN_SENT, state::ESTABLISHED) => established(sock),
        (state::SYN_RECEIVED, state::ESTABLISHED) => accepted(sock),
        (_, state::LISTEN) => listening(sock),
        (state::ESTABLISHED, state::FIN_WAIT_1) => closing(sock, ClosingStep::LocalClosed),
        (state::ESTABLISHED, state::CLOSE_WAIT) => closing(sock, ClosingStep::RemoteClosed),
        (_, state::CLOSE) if sock.error() != 0 => closing(sock, ClosingStep::Aborted),
        _ => {}
    }
    0
}

#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    let sock = Sock(ctx.arg(0));
    closing(sock, ClosingStep::Destroyed);
    let identity = sock.identity();
    let _ = CONNECTIONS.remove(&identity);
    let _ = ACCEPTED.remove(&identity);
    if config!(inject) == 1 {
        inject_context::destroyed(identity);
    }
    0
}

#[fentry(function = "unix_release")]
pub(crate) fn unix_release(ctx: FEntryContext) -> i32 {
    unix_released(Sock(socket_sock(ctx.arg(0))));
    0
}

/// Ends a unix socket. Where connections are keyed by the socket's address, the next socket at
/// that address would be taken for this one.
#[inline(always)]
pub(crate) fn unix_released(sock: Sock) {
    if sock.0.is_null() {
        return;
    }
    closing(sock, ClosingStep::Destroyed);
    let _ = CONNECTIONS.remove(&sock.identity());
}

/// Runs in the connecting thread.
#[inline(always)]
fn connecting(sock: Sock) {
    if let Some(TracedUnit { unit, .. }) = process::traced_unit()
        && sock.stream() == Some(Stream::Tcp)
    {
        let identity = sock.identity();
        let new = NewState {
            role: Role::Client,
            complete: 1,
            opened_ns: emit::now_ns(),
        };
        if connection::insert(sock, identity, unit, new, Slot::State).is_some() {
            announce(sock, identity, unit, Role::Client, Slot::State);
        }
        if config!(inject) == 1 {
            inject_context::connecting(identity);
        }
    }
}

/// Runs wherever the answer of the other end is handled, before a byte can be sent: whoever reads
/// from this connection on this host is told first that there is somebody to wait for.
#[inline(always)]
fn established(sock: Sock) {
    let connection = sock.identity();
    let Some(state) = CONNECTIONS.get_ptr_mut(&connection) else {
        return;
    };
    // SAFETY: a pointer into the map's value; nothing was sent or received on the socket yet.
    let addresses = unsafe { &mut (*state).addresses };
    sock.write_addresses(addresses);
    let header = emit::header(
        RecordKind::ConnectionEstablished,
        size_of::<ConnectionEstablished>(),
        emit::now_ns(),
    );
    emit::record(&ConnectionEstablished {
        header,
        connection,
        addresses: *addresses,
    });
}

/// Runs wherever the last packet of the handshake is handled: whose connection it is shows later.
#[inline(always)]
fn accepted(sock: Sock) {
    let _ = ACCEPTED.insert(&sock.identity(), &emit::now_ns(), 0);
}

/// Runs in the listening thread.
#[inline(always)]
fn listening(sock: Sock) {
    if sock.stream() != Some(Stream::Tcp) {
        return;
    }
    let process_id = task::process_id();
    let port = sock.local_port();
    if !process::is_traced(process_id)
        && process_id != config!(agent_process_id)
        && is_selected(port)
    {
        process::trace(process_id, task::process_start_ns(task::current()));
    }
    let traced = process::is_traced(process_id);
    if !traced && config!(port_count) == 0 {
        return;
    }
    let Some(unit) = task::unit(task::current()) else {
        return;
    };
    emit::record(&ProcessListen {
        header: emit::header(
            RecordKind::ProcessListen,
            size_of::<ProcessListen>(),
            emit::now_ns(),
        ),
        unit,
        port,
        reserved: 0,
        traced: u32::from(traced),
    });
}

#[inline(always)]
fn is_selected(port: u16) -> bool {
    for index in 0..agent_common::limits::PORT_RANGES {
        if index as u32 >= config!(port_count) {
            return false;
        }
        if port >= config!(ports[index].first) && port <= config!(ports[index].last) {
            return true;
        }
    }
    false
}

/// Reports what flowed on a connection that is watched.
#[inline(always)]
fn closing(sock: Sock, step: ClosingStep) {
    let identity = sock.identity();
    // SAFETY: copied at once; a concurrent update may mix counts, never memory.
    let Some(state) = (unsafe { CONNECTIONS.get(&identity) }) else {
        return;
    };
    if state.carried == Carried::Encrypted as u8 {
        plaintext_closing(plaintext_identity(identity), step, sock.error());
    }
    report(identity, state, step, sock.error());
}

/// What was encrypted ends with what carried it.
#[inline(always)]
fn plaintext_closing(identity: u64, step: ClosingStep, error: u32) {
    // SAFETY: as in `closing`.
    if let Some(state) = unsafe { CONNECTIONS.get(&identity) } {
        report(identity, state, step, error);
    }
    if matches!(step, ClosingStep::Destroyed) {
        let _ = CONNECTIONS.remove(&identity);
    }
}

/// A TLS session ends whose connection is not known.
#[inline(always)]
pub(crate) fn plaintext_ends(identity: u64) {
    plaintext_closing(identity, ClosingStep::Destroyed, 0);
}

#[inline(always)]
fn report(identity: u64, state: &ConnectionState, step: ClosingStep, error: u32) {
    emit::record(&ConnectionClosing {
        header: emit::header(
            RecordKind::ConnectionClosing,
            size_of::<ConnectionClosing>(),
            emit::now_ns(),
        ),
        connection: identity,
        inbound: state.inbound,
        outbound: state.outbound,
        step: step as u8,
        reserved: [0; 3],
        error,
    });
}
