//! What each thread works for, of requests that a TLS library decrypts: the rules of
//! `inject_context`, by what the probes of the library see.

use agent_common::{
    connection::{Direction, Role, plaintext_identity},
    injection::process,
    payload::flags,
};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};

use super::{
    inject_context::{TraceContext, armed, minted, work_for},
    inject_option_reader, inject_search,
};
use crate::maps::{REQUESTS, WORK};

/// Plaintext that a call of a library moved.
pub(crate) struct Decrypted {
    pub(crate) direction: Direction,
    pub(crate) role: Role,
    /// Identity of the plaintext's connection.
    pub(crate) identity: u64,
    /// Whether the connection that carries it is known.
    pub(crate) is_proven: bool,
    pub(crate) is_multiplexed: bool,
    pub(crate) turn_start: bool,
    /// Position of the first byte.
    pub(crate) position: u64,
    /// As in `SocketData::flags`.
    pub(crate) waiting: u16,
    /// Address of the bytes; 0: not known.
    pub(crate) buffer: u64,
    pub(crate) moved: u32,
    /// TCP sequence number of the first encrypted byte that the call moved; 0: not known.
    pub(crate) sequence: u32,
}

/// Plaintext moved. `LOOPS`: with `bpf_loop`; without it the context of a request is not searched
/// for, and what is called for it carries nothing.
#[inline(always)]
pub(crate) fn moved<const LOOPS: bool>(data: &Decrypted) {
    let mode = armed();
    // Goroutines are told apart by other means.
    if mode == 0 || mode & process::GOROUTINES != 0 || !matches!(data.role, Role::Server) {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    let is_loop = mode & process::LOOP != 0;
    match data.direction {
        Direction::Inbound if data.is_multiplexed || (is_loop && !data.is_proven) => {
            let _ = WORK.remove(&thread);
        }
        Direction::Inbound if data.turn_start => {
            if !is_loop && data.waiting & flags::NON_BLOCKING != 0 {
                let _ = WORK.remove(&thread);
                return;
            }
            let context = context::<LOOPS>(data);
            let _ = WORK.insert(&thread, &context, 0);
            if is_loop {
                let _ = REQUESTS.insert(&plaintext_identity(data.identity), &context, 0);
            }
        }
        Direction::Inbound if is_loop => {
            let carrier = plaintext_identity(data.identity);
            // SAFETY: copied at once.
            work_for(thread, unsafe { REQUESTS.get(&carrier) }.copied());
        }
        Direction::Outbound if data.turn_start && !is_loop && !is_interim(data) => {
            let _ = WORK.remove(&thread);
        }
        _ => {}
    }
}

#[inline(always)]
fn context<const LOOPS: bool>(data: &Decrypted) -> TraceContext {
    if !LOOPS {
        return TraceContext::UNKNOWN;
    }
    let found = inject_search::inbound_of_user(data.buffer, data.moved).or_else(|| {
        let carrier = plaintext_identity(data.identity);
        inject_option_reader::of_encrypted(carrier, data.sequence)
    });
    match found {
        Some(context) => context,
        None => minted(data.identity, data.position),
    }
}

/// As in `inject_context`.
#[inline(always)]
fn is_interim(data: &Decrypted) -> bool {
    let digit = (data.buffer + 9) as *const u8;
    // SAFETY: the helper checks the address and fails instead of faulting.
    data.moved > 9 && unsafe { bpf_probe_read_user(digit) } == Ok(b'1')
}
