//! Structures of Go's runtime in the memory of the program, by the offsets that user space found.

use agent_common::{
    connection::{FAMILY_INET, FAMILY_INET6, FAMILY_UNIX},
    kernel_config::ABSENT,
    process::GoProcess,
};
use aya_ebpf::helpers::bpf_probe_read_user;

/// Ids that a processor takes at once at most (`_GoidCacheBatch` in `runtime/proc.go`).
const BATCH: u64 = 16;

/// Wrappers of a connection that are looked through: TLS or a dialler's own around it.
const WRAPPERS: u32 = 3;

/// `internal/poll.FD`: the mutex of 16 bytes, then the descriptor.
const POLL_DESCRIPTOR: u64 = 16;

/// `net.netFD` behind its descriptor's structure: family and type of the socket, as given to
/// `socket()`. Go 1.18 to 1.27.
const NETWORK_FAMILY: u64 = 56;
const NETWORK_TYPE: u64 = 64;

/// `SOCK_STREAM`, `include/uapi`.
const STREAM: u64 = 1;

/// The second word of an interface: its value.
const INTERFACE_VALUE: u64 = 8;

/// A goroutine that runs now.
pub(crate) struct Goroutine {
    pub(crate) id: u64,
    /// 0 where the release does not keep it.
    pub(crate) parent_id: u64,
    /// Address of the thread's structure.
    thread: u64,
}

/// Ids that may be given to new goroutines.
pub(crate) struct Ids {
    pub(crate) next: u64,
    pub(crate) left: u32,
    pub(crate) allotted: u64,
}

/// A word of the program's memory; the helper checks the address and fails instead of faulting.
#[inline(always)]
pub(crate) fn word(address: u64) -> Option<u64> {
    // SAFETY: as above; any bit pattern is a valid word.
    unsafe { bpf_probe_read_user(address as *const u64) }.ok()
}

impl Goroutine {
    /// The goroutine whose structure is at this address, if its thread says that it runs it. So
    /// threads of C code, whose register holds anything, have none.
    #[inline(always)]
    pub(crate) fn at(program: &GoProcess, address: u64) -> Option<Self> {
        let thread = word(address.wrapping_add(program.thread.into()))?;
        if word(thread.wrapping_add(program.running.into()))? != address {
            return None;
        }
        let parent_id = if program.parent_id == ABSENT {
            0
        } else {
            word(address.wrapping_add(program.parent_id.into()))?
        };
        Some(Self {
            id: word(address.wrapping_add(program.id.into()))?,
            parent_id,
            thread,
        })
    }

    /// What the goroutine's processor, the one it left for this system call included, can give.
    #[inline(always)]
    pub(crate) fn ids(&self, program: &GoProcess) -> Option<Ids> {
        let mut processor = word(self.thread.wrapping_add(program.processor.into()))?;
        if processor == 0 {
            processor = word(self.thread.wrapping_add(program.left_processor.into()))?;
        }
        let next = word(processor.wrapping_add(program.next_id.into()))?;
        let end = word(
            processor
                .wrapping_add(program.next_id.into())
                .wrapping_add(8),
        )?;
        let left = end.wrapping_sub(next);
        if left > BATCH {
            return None;
        }
        // Read last: what was allotted since the other reads counts as older than it is.
        let allotted = if program.allotted == 0 {
            0
        } else {
            word(program.allotted)?
        };
        Some(Ids {
            next,
            left: left as u32,
            allotted,
        })
    }
}

/// File descriptor of the connection that a `net/http.persistConn` holds.
#[inline(always)]
pub(crate) fn descriptor(program: &GoProcess, holder: u64) -> Option<u32> {
    let interface = holder.wrapping_add(program.connection.into());
    descriptor_at(network(program, interface)?)
}

/// The same of a `crypto/tls.Conn`, whose first field is the connection below it. What may be any
/// type is taken for a socket of package `net` only where it looks like one all over.
#[inline(always)]
pub(crate) fn tls_descriptor(program: &GoProcess, holder: u64) -> Option<u32> {
    let network = network(program, holder)?;
    let family = word(network.wrapping_add(NETWORK_FAMILY))?;
    let is_known = family == FAMILY_INET.into()
        || family == FAMILY_INET6.into()
        || family == FAMILY_UNIX.into();
    if !is_known || word(network.wrapping_add(NETWORK_TYPE))? != STREAM {
        return None;
    }
    descriptor_at(network)
}

/// Address of the `netFD` of a `net.Conn`, which is a method table and a value. A wrapper begins
/// with one again, a socket of package `net` with the address of its `netFD`.
#[inline(always)]
fn network(program: &GoProcess, interface: u64) -> Option<u64> {
    let mut value = word(interface.wrapping_add(INTERFACE_VALUE))?;
    let mut first = word(value)?;
    let mut wrappers = 0;
    while wrappers < WRAPPERS {
        if first >= program.image_start && first < program.image_end {
            value = word(value.wrapping_add(INTERFACE_VALUE))?;
            first = word(value)?;
        }
        wrappers += 1;
    }
    Some(first)
}

/// A `netFD` begins with the descriptor's structure.
#[inline(always)]
fn descriptor_at(network: u64) -> Option<u32> {
    let descriptor = word(network.wrapping_add(POLL_DESCRIPTOR))?;
    i32::try_from(descriptor)
        .is_ok()
        .then_some(descriptor as u32)
}
