//! Go's own TLS: what it encrypts and decrypts. The probes sit on calls inside of its functions,
//! found by user space (`process::binary::go_tls`), which says why.
//!
//! hook: uprobe the call of runtime.memmove (to `rax`, from `rbx`, length `rcx`) in
//!       crypto/tls.(*Conn).Read; the connection is on the stack, `r14` the goroutine
//! hook: uprobe the calls of crypto/tls.(*Conn).writeRecordLocked (connection `rax`, type of record
//!       `rbx`, data `rcx`, length `rdi`) in crypto/tls.(*Conn).Write, Go 1.17 and newer
//! fallback: none; what such a connection carries is then not understood

use agent_common::{connection::Direction, drop_reason::DropReason};
use aya_ebpf::{macros::uprobe, programs::ProbeContext};

use crate::{
    emit, process,
    read::go,
    tls::goroutines::{self, Moved},
};

#[uprobe]
pub(crate) fn go_tls_read(ctx: ProbeContext) -> u32 {
    if let Some((traced, program)) = process::traced_go() {
        // SAFETY: the context of a uprobe is the thread's registers; the verifier checks the loads.
        let (stack, buffer, length, goroutine) = unsafe {
            let registers = &*ctx.regs;
            (registers.rsp, registers.rbx, registers.rcx, registers.r14)
        };
        let place = stack.wrapping_add(program.tls_connection.into());
        let Some(object) = go::word(place) else {
            emit::count(DropReason::GoSocketUnknown);
            return 0;
        };
        goroutines::moved(&Moved {
            traced,
            program,
            direction: Direction::Inbound,
            object,
            buffer,
            length,
            goroutine,
        });
    }
    0
}

#[uprobe]
pub(crate) fn go_tls_write(ctx: ProbeContext) -> u32 {
    if let Some((traced, program)) = process::traced_go() {
        // SAFETY: as above.
        let (object, buffer, length, goroutine) = unsafe {
            let registers = &*ctx.regs;
            (registers.rax, registers.rcx, registers.rdi, registers.r14)
        };
        goroutines::moved(&Moved {
            traced,
            program,
            direction: Direction::Outbound,
            object,
            buffer,
            length,
            goroutine,
        });
    }
    0
}
