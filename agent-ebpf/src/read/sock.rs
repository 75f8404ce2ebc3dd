//! `struct sock` and what hangs on it.

use agent_common::{
    connection::{FAMILY_INET, FAMILY_INET6, FAMILY_UNIX, SocketAddresses, UNIX_PATH_BYTES},
    kernel_config::KernelField,
    payload::flags,
};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_probe_read_kernel as read_raw};

use super::{embedded, field, typed_field};
use crate::maps::config;

/// `SOCK_STREAM`, `IPPROTO_TCP` and `O_NONBLOCK` of x86-64, `include/uapi`.
const STREAM: u16 = 1;
const TCP: u16 = 6;
const NON_BLOCKING: u32 = 0o4000;

/// Stands for a list of epoll sets that cannot be read: no list begins there.
const UNKNOWN: u64 = u64::MAX;

/// `epoll` is the first word of the file's list of epoll sets: since Linux 5.11 zero when it is in
/// none, before it points to itself then. What cannot be told counts as polled.
///
/// Both are plain numbers, not `Option`s: the compiler would compute with the undefined half of
/// `None`, which the verifier refuses.
#[inline(always)]
fn waiting_flags(file: *const u8, modes: u32, epoll: u64) -> u16 {
    let mut waiting = 0;
    if modes & NON_BLOCKING != 0 {
        waiting |= flags::NON_BLOCKING;
    }
    let itself = embedded(file, KernelField::FileEpoll).map_or(0, |links| links as u64);
    if epoll != 0 && epoll != itself {
        waiting |= flags::POLLED;
    }
    waiting
}

/// A kernel address as a number that the verifier lets one compute with ("math between ptr_ pointer
/// and ... is not allowed"): it forgets what a word of the stack held when a byte of it is written.
/// The upper byte of kernel addresses has all bits set anyway.
#[inline(always)]
fn number(pointer: *const u8) -> u64 {
    let mut address = 0u64;
    let place = &raw mut address;
    // SAFETY: all three are inside the variable; volatile, or the compiler would leave them out.
    unsafe {
        place.write_volatile(pointer as u64);
        place.cast::<u8>().add(7).write_volatile(0xff);
        place.read_volatile()
    }
}

/// What kind of stream a socket is; other sockets are not traced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Tcp,
    Unix,
}

#[derive(Clone, Copy)]
pub(crate) struct Sock(pub(crate) *const u8);

impl Sock {
    /// Identity for the life of the socket.
    #[inline(always)]
    pub(crate) fn identity(self) -> u64 {
        if config!(has_socket_cookie) == 1 {
            // SAFETY: the argument is the hook's own socket, as the helper requires.
            return unsafe { bpf_get_socket_cookie(self.0.cast_mut().cast()) };
        }
        number(self.0)
    }

    /// The same of a socket whose type the verifier does not know: what was computed for it before.
    /// 0 where nothing was.
    #[inline(always)]
    pub(crate) fn known_identity(self) -> u64 {
        if config!(has_socket_cookie) == 1 {
            return field(self.0, KernelField::SockCookie).unwrap_or(0);
        }
        self.0 as u64
    }

    #[inline(always)]
    pub(crate) fn family(self) -> u16 {
        field(self.0, KernelField::SockFamily).unwrap_or(0)
    }

    /// TCP or a unix stream, else `None`.
    #[inline(always)]
    pub(crate) fn stream(self) -> Option<Stream> {
        match self.family() {
            FAMILY_INET | FAMILY_INET6 => {
                let protocol: u16 = field(self.0, KernelField::SockProtocol)?;
                (protocol == TCP).then_some(Stream::Tcp)
            }
            FAMILY_UNIX => {
                let kind: u16 = field(self.0, KernelField::SockType)?;
                (kind == STREAM).then_some(Stream::Unix)
            }
            _ => None,
        }
    }

    /// Both ends. Written in place, because the structure is large for the stack.
    #[inline(always)]
    pub(crate) fn write_addresses(self, out: &mut SocketAddresses) {
        let family = self.family();
        out.family = family;
        out.network_namespace = self.network_namespace();
        if family == FAMILY_UNIX {
            out.local[0] = self.own_address();
            out.remote[0] = field(self.0, KernelField::UnixPeer).unwrap_or(0);
            return;
        }
        out.local_port = self.local_port();
        out.remote_port = u16::from_be(field(self.0, KernelField::SockRemotePort).unwrap_or(0));
        if family == FAMILY_INET {
            out.local[0] = field::<u32>(self.0, KernelField::SockLocalV4)
                .unwrap_or(0)
                .into();
            out.remote[0] = field::<u32>(self.0, KernelField::SockRemoteV4)
                .unwrap_or(0)
                .into();
        } else {
            out.local = field(self.0, KernelField::SockLocalV6).unwrap_or([0; 2]);
            out.remote = field(self.0, KernelField::SockRemoteV6).unwrap_or([0; 2]);
        }
    }

    /// Where the structure is, as a number, which the verifier does not take a typed pointer for:
    /// what the program's own end of the socket points to. Not what the peer points to: a peer that
    /// answered and closed before the sender ran on points nowhere (seen on 7.2 under load).
    #[inline(always)]
    fn own_address(self) -> u64 {
        field::<*const u8>(self.0, KernelField::SockSocket)
            .and_then(|socket| field(socket, KernelField::SocketSock))
            .unwrap_or(0)
    }

    #[inline(always)]
    pub(crate) fn local_port(self) -> u16 {
        field(self.0, KernelField::SockLocalPort).unwrap_or(0)
    }

    #[inline(always)]
    fn network_namespace(self) -> u32 {
        field::<*const u8>(self.0, KernelField::SockNet)
            .and_then(|net| field(net, KernelField::NetInode))
            .unwrap_or(0)
    }

    /// How the program waits on this socket, as [`flags`] bits.
    #[inline(always)]
    pub(crate) fn waiting_flags(self) -> u16 {
        if config!(has_socket_cookie) == 1 {
            // The helper works exactly where the verifier knows the socket's type.
            let file = typed_field::<*const u8>(self.0, KernelField::SockSocket)
                .and_then(|socket| typed_field::<*const u8>(socket, KernelField::SocketFile));
            let Some(file) = file else { return 0 };
            let modes = typed_field(file, KernelField::FileFlags).unwrap_or(0);
            let epoll = typed_field(file, KernelField::FileEpoll).unwrap_or(UNKNOWN);
            return waiting_flags(file, modes, epoll);
        }
        let file = field::<*const u8>(self.0, KernelField::SockSocket)
            .and_then(|socket| field::<*const u8>(socket, KernelField::SocketFile));
        let Some(file) = file else { return 0 };
        let modes = field(file, KernelField::FileFlags).unwrap_or(0);
        let epoll = field(file, KernelField::FileEpoll).unwrap_or(UNKNOWN);
        waiting_flags(file, modes, epoll)
    }

    /// Sequence number of the byte after the last one sent.
    #[inline(always)]
    pub(crate) fn write_sequence(self) -> u32 {
        field(self.0, KernelField::TcpWriteSequence).unwrap_or(0)
    }

    /// Sequence number of the byte after the last one the program received.
    #[inline(always)]
    pub(crate) fn copied_sequence(self) -> u32 {
        field(self.0, KernelField::TcpCopiedSequence).unwrap_or(0)
    }

    /// Whether the socket was accepted from a listener: the child is a copy of it, backlog limit
    /// included, which a connecting socket never sets (`sk_clone_lock`, Linux 5.10 to 7.2). A
    /// hint for connections older than the agent.
    #[inline(always)]
    pub(crate) fn looks_accepted(self) -> bool {
        field::<u32>(self.0, KernelField::SockBacklogLimit).unwrap_or(0) != 0
    }

    #[inline(always)]
    pub(crate) fn error(self) -> u32 {
        field::<i32>(self.0, KernelField::SockError)
            .unwrap_or(0)
            .unsigned_abs()
    }

    /// Whether a unix socket is an accepted one: it carries its listener's name, or no name while
    /// its peer has none to connect to.
    #[inline(always)]
    pub(crate) fn unix_is_named(self) -> bool {
        field::<u64>(self.0, KernelField::UnixAddress).unwrap_or(0) != 0
    }

    /// Copies the path of the named end of a unix connection; returns its length.
    #[inline(always)]
    pub(crate) fn write_unix_path(self, out: &mut [u8; UNIX_PATH_BYTES]) -> u32 {
        let named = if self.unix_is_named() {
            self.0
        } else {
            field(self.0, KernelField::UnixPeer).unwrap_or(core::ptr::null())
        };
        copy_unix_path(named, out).unwrap_or(0)
    }
}

/// `unix_address.name` is a `sockaddr_un`: two bytes of family, then the path.
#[inline(always)]
fn copy_unix_path(sock: *const u8, out: &mut [u8; UNIX_PATH_BYTES]) -> Option<u32> {
    const FAMILY_BYTES: u32 = 2;
    let address: *const u8 = field(sock, KernelField::UnixAddress)?;
    let length: u32 = field(address, KernelField::UnixAddressLength)?;
    let name = embedded(address, KernelField::UnixAddressName)?;
    // The verifier wants the bound of the copy next to it, and before Linux 6.12 loses it when the
    // compiler derives it from another value ("R2 min value is negative").
    let mut length = core::hint::black_box(length.saturating_sub(FAMILY_BYTES));
    if length > UNIX_PATH_BYTES as u32 {
        length = UNIX_PATH_BYTES as u32;
    }
    // SAFETY: `length` is at most the size of `out`; the helper checks the source.
    let failed = unsafe {
        read_raw(
            out.as_mut_ptr().cast(),
            length,
            name.add(FAMILY_BYTES as usize).cast(),
        )
    };
    (failed == 0).then_some(length)
}
