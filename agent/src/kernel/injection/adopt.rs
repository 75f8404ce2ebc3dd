//! EDGE: client connections that were open before the agent knew their process.
//!
//! The agent takes a descriptor of its own for each of them for a moment (`pidfd_getfd(2)`, Linux
//! 5.6), puts the socket into the map, and closes it. This needs no iterator of the kernel (those
//! over TCP sockets may stall below Linux 6.4 when they change a socket map) and finds the sockets
//! of one process in whatever network namespace it is.
//!
//! Only sockets that do not block: a thread may be waiting in a receive, see `hooks/inject.rs`.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: reads /proc and takes descriptors of other processes"
)]

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use procfs::{
    net::{TcpNetEntry, TcpState},
    process::Process as ProcProcess,
};
use rustix::{
    net::sockopt::socket_cookie,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::event::ProcessId;

/// Connections looked at in one process at most.
const SOCKETS: usize = 16_384;

/// `O_NONBLOCK` of x86-64, `include/uapi/asm-generic/fcntl.h`.
const NON_BLOCKING: u32 = 0o4000;

/// A socket of a process, held for a moment.
pub(super) struct Held {
    pub(super) socket: OwnedFd,
    pub(super) cookie: u64,
}

/// Calls `found` with each client connection of the process that does not block.
pub(super) fn each(process: ProcessId, mut found: impl FnMut(&Held)) -> io::Result<()> {
    let directory = PathBuf::from(format!("/proc/{}", process.pid));
    let mut descriptors = sockets(&directory)?;
    if descriptors.is_empty() {
        return Ok(());
    }
    let inodes = clients(&connections(&directory));
    descriptors.retain(|(_, inode)| inodes.contains(inode));
    if descriptors.is_empty() {
        return Ok(());
    }
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    for (descriptor, _) in descriptors.into_iter().take(SOCKETS) {
        if !is_non_blocking(&directory, descriptor) {
            continue;
        }
        let flags = PidfdGetfdFlags::empty();
        let socket = match pidfd_getfd(&handle, descriptor, flags) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::PERM) => return Err(io::ErrorKind::PermissionDenied.into()),
            // It was closed meanwhile.
            Err(_) => continue,
        };
        // Another file may have the number by now; only sockets have a cookie.
        if let Ok(cookie) = socket_cookie(&socket) {
            found(&Held { socket, cookie });
        }
    }
    Ok(())
}

impl Held {
    pub(super) fn descriptor(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

/// Descriptors of sockets, each with its inode.
fn sockets(directory: &Path) -> io::Result<Vec<(i32, u64)>> {
    let entries = fs::read_dir(directory.join("fd"))?;
    let found = entries.flatten().filter_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        let descriptor = entry.file_name().to_str()?.parse().ok()?;
        Some((descriptor, inode.parse().ok()?))
    });
    Ok(found.collect())
}

/// The TCP sockets of the network namespace of a process.
fn connections(directory: &Path) -> Vec<TcpNetEntry> {
    let Ok(process) = ProcProcess::new_with_root(directory.to_owned()) else {
        return Vec::new();
    };
    let tables = [process.tcp(), process.tcp6()];
    tables.into_iter().flatten().flatten().collect()
}

/// Inodes of established connections that nobody accepted: their own port is not listened on. One
/// that was accepted by a listener which is gone is taken for a client, sends what is no request,
/// and is given up.
fn clients(entries: &[TcpNetEntry]) -> HashSet<u64> {
    let ports: HashSet<u16> = entries
        .iter()
        .filter(|entry| entry.state == TcpState::Listen)
        .map(|entry| entry.local_address.port())
        .collect();
    entries
        .iter()
        .filter(|entry| entry.state == TcpState::Established)
        .filter(|entry| !ports.contains(&entry.local_address.port()))
        .filter(|entry| {
            let port = u32::from(entry.remote_address.port());
            !agent_common::injection::PORTS_LEFT_ALONE.contains(&port)
        })
        .map(|entry| entry.inode)
        .collect()
}

/// `flags:` of the descriptor in octal (`man 5 proc_pid_fdinfo`).
fn is_non_blocking(directory: &Path, descriptor: i32) -> bool {
    let path = directory.join(format!("fdinfo/{descriptor}"));
    let text = File::open(path).and_then(io::read_to_string);
    text.is_ok_and(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
            .is_some_and(|flags| flags & NON_BLOCKING != 0)
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

    use super::*;

    /// Of the agent's own sockets: the connecting end that does not block, and no other.
    #[test]
    fn clients_that_do_not_block_are_found() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let to: SocketAddr = listener.local_addr().expect("bound");
        let [blocking, other] = [(); 2].map(|()| TcpStream::connect(to).expect("it listens"));
        let [(accepted, _), (_open, _)] = [(); 2].map(|()| listener.accept().expect("two came"));
        other.set_nonblocking(true).expect("a socket");
        accepted.set_nonblocking(true).expect("a socket");
        let process = ProcessId {
            pid: std::process::id(),
            start_ticks: 0,
        };
        let mut cookies = Vec::new();
        each(process, |held| cookies.push(held.cookie)).expect("our own process");
        let cookie = |end: &TcpStream| socket_cookie(end).expect("a socket");
        assert!(cookies.contains(&cookie(&other)), "{cookies:?}");
        for end in [&blocking, &accepted] {
            assert!(!cookies.contains(&cookie(end)), "{cookies:?}");
        }
    }
}
