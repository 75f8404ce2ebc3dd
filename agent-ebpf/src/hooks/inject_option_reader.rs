//! The reading side of the TCP option that carries trace context: from the segment that brings it
//! to the program that reads the request's first byte. See `inject_option` for the hooks.

use agent_common::{
    connection::Direction,
    injection::InjectionOutcome,
    tcp_option::{
        KIND, NOT_SAMPLED, OPTION_BYTES, ReceivedContext, SAMPLED, SAMPLED_FLAG, TAKEN, TOLD,
    },
};
use aya_ebpf::{helpers::generated::bpf_load_hdr_opt, programs::SockOpsContext};

use super::{
    inject::count,
    inject_context::TraceContext,
    inject_option::{TcpOption, context, identity, report, socket},
};
use crate::maps::{RECEIVED, config};

/// A segment came with an option that the kernel does not know: maybe ours.
#[inline(always)]
pub(super) fn arrived(ctx: &SockOpsContext) -> Option<()> {
    let sk = socket(ctx)?;
    let (option, flags) = match load(ctx, SAMPLED) {
        Some(option) => (option, SAMPLED_FLAG),
        None => (load(ctx, NOT_SAMPLED)?, 0),
    };
    let received = ReceivedContext {
        trace_id: [
            joined(option.trace_id[0], option.trace_id[1]),
            joined(option.trace_id[2], option.trace_id[3]),
        ],
        span_id: joined(option.span_id[0], option.span_id[1]),
        sequence: sequence(ctx)?,
        trace_flags: flags as u16,
        state: 0,
    };
    if received.trace_id == [0; 2] || received.span_id == 0 {
        return None;
    }
    let connection = identity(ctx, sk);
    if let Some(known) = RECEIVED.get_ptr_mut(&connection) {
        // SAFETY: a pointer into the map's value; the socket is locked, so nobody else is here.
        let known = unsafe { &mut *known };
        if known.span_id == received.span_id {
            // A later segment of the same packet, or an earlier one that was overtaken.
            if (received.sequence.wrapping_sub(known.sequence) as i32) < 0 {
                known.sequence = received.sequence;
            }
            return None;
        }
    }
    let _ = RECEIVED.insert(&connection, &received, 0);
    Some(())
}

#[inline(always)]
fn joined(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[inline(always)]
fn load(ctx: &SockOpsContext, identifier: [u8; 2]) -> Option<TcpOption> {
    /// Kind, length and identifier: what is searched for.
    const SEARCHED_BYTES: u8 = 4;
    let mut option = TcpOption {
        begin: [KIND, SEARCHED_BYTES, identifier[0], identifier[1]],
        trace_id: [0; 4],
        span_id: [0; 2],
    };
    // SAFETY: the helper takes the program's own context and writes that many bytes.
    let length =
        unsafe { bpf_load_hdr_opt(ctx.ops, (&raw mut option).cast(), OPTION_BYTES as u32, 0) };
    (length == OPTION_BYTES as i64).then_some(option)
}

/// Sequence number of the segment that is being received, from its TCP header.
#[inline(always)]
fn sequence(ctx: &SockOpsContext) -> Option<u32> {
    /// Bytes of a TCP header without options, and where the sequence number is.
    const HEADER_BYTES: usize = 20;
    const PLACE: usize = 4;
    let data = context!(ctx, __bindgen_anon_3.skb_data) as usize;
    let end = context!(ctx, __bindgen_anon_4.skb_data_end) as usize;
    if data + HEADER_BYTES > end {
        return None;
    }
    // SAFETY: inside the packet, as the comparison shows the verifier.
    let bytes: u32 = unsafe { core::ptr::read_volatile((data + PLACE) as *const u32) };
    Some(u32::from_be(bytes))
}

/// The program has read up to `behind`: user space is told of the context that came with it.
#[inline(never)]
pub(crate) fn read_up_to(connection: u64, behind: u32) -> u32 {
    // A number: the verifier wants to know what a function returns.
    u32::from(try_read_up_to(connection, behind).is_some())
}

#[inline(always)]
fn try_read_up_to(connection: u64, behind: u32) -> Option<()> {
    let found = RECEIVED.get_ptr_mut(&connection)?;
    // SAFETY: a pointer into the map's value; what the network writes meanwhile is another
    // request's, which begins behind what was read.
    let received = unsafe { &mut *found };
    let is_read = (received.sequence.wrapping_sub(behind) as i32) < 0;
    if received.state & TOLD != 0 || !is_read {
        return None;
    }
    received.state |= TOLD;
    count(InjectionOutcome::OptionReceived);
    report(
        Direction::Inbound,
        connection,
        received.sequence,
        received.span_id,
        TraceContext {
            trace_id: received.trace_id,
            flags: u32::from(received.trace_flags),
            reserved: 0,
        },
    );
    Some(())
}

/// The context that came for the request which begins at a sequence number.
#[inline(always)]
pub(crate) fn of_request(connection: u64, sequence: u32) -> Option<TraceContext> {
    if config!(inject_option) == 0 {
        return None;
    }
    // SAFETY: copied at once.
    let received = unsafe { RECEIVED.get(&connection) }.copied()?;
    (received.sequence == sequence).then_some(TraceContext {
        trace_id: received.trace_id,
        flags: u32::from(received.trace_flags),
        reserved: 0,
    })
}

/// The context that came last, up to the first encrypted byte of a request (0: up to what the
/// program has read), if no request has it yet.
#[inline(always)]
pub(super) fn of_encrypted(carrier: u64, sequence: u32) -> Option<TraceContext> {
    if config!(inject_option) == 0 {
        return None;
    }
    let found = RECEIVED.get_ptr_mut(&carrier)?;
    // SAFETY: a pointer into the map's value, copied at once but for its state.
    let received = unsafe { &mut *found };
    let has_passed = if sequence == 0 {
        received.state & TOLD != 0
    } else {
        (received.sequence.wrapping_sub(sequence) as i32) <= 0
    };
    if !has_passed || received.state & TAKEN != 0 {
        return None;
    }
    received.state |= TAKEN;
    Some(TraceContext {
        trace_id: received.trace_id,
        flags: u32::from(received.trace_flags),
        reserved: 0,
    })
}
