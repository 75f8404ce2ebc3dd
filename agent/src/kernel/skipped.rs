//! EDGE: runs of hooks that the kernel left out.
//!
//! A tracing program does not run while another thread is in the middle of it on the same
//! processor (`prog->active`, `kernel/trace/bpf_trace.c` and `kernel/bpf/trampoline.c`). That needs
//! a kernel that takes the processor away within a hook: behind a trampoline since 5.12, in a
//! tracepoint since 7.0. The program itself cannot know; the kernel counts it, and says so in the
//! program's `fdinfo` (5.12).
#![expect(clippy::disallowed_methods, reason = "edge: procfs")]

use std::{
    fs::File,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::FileExt as _,
    },
    sync::atomic::{AtomicU64, Ordering},
};

use aya::Ebpf;

/// The line of `fdinfo` with the count.
const FIELD: &str = "recursion_misses:";

/// Bytes of a program's `fdinfo`; it has some 250.
const FDINFO_BYTES: usize = 1024;

/// How often each program was left out.
pub(super) struct Skipped {
    programs: Vec<Program>,
}

struct Program {
    fdinfo: File,
    /// As it was read last: of a program that is gone nothing can be read.
    count: AtomicU64,
}

impl Skipped {
    /// Of the programs that are loaded; of a kernel that does not count, none.
    pub(super) fn of(ebpf: &Ebpf) -> Self {
        let programs = ebpf.programs().filter_map(|(_, program)| {
            let descriptor = program.fd().ok()?.as_fd().as_raw_fd();
            let fdinfo = File::open(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
            read(&fdinfo)?;
            Some(Program {
                fdinfo,
                count: AtomicU64::new(0),
            })
        });
        Self {
            programs: programs.collect(),
        }
    }

    /// Of all programs since the start.
    pub(super) fn total(&self) -> u64 {
        self.programs.iter().map(Program::count).sum()
    }
}

impl Program {
    fn count(&self) -> u64 {
        if let Some(count) = read(&self.fdinfo) {
            self.count.store(count, Ordering::Relaxed);
        }
        self.count.load(Ordering::Relaxed)
    }
}

fn read(fdinfo: &File) -> Option<u64> {
    let mut buffer = [0; FDINFO_BYTES];
    let length = fdinfo.read_at(&mut buffer, 0).ok()?;
    parse(str::from_utf8(buffer.get(..length)?).ok()?)
}

fn parse(fdinfo: &str) -> Option<u64> {
    let mut lines = fdinfo.lines();
    lines.find_map(|line| line.strip_prefix(FIELD)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The count is found where the kernel says it, and nowhere else.
    #[test]
    fn the_count_is_read_from_its_line() {
        // Linux 6.18.
        let fdinfo = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t1057\nprog_type:\t26\n\
                      prog_jited:\t1\nprog_tag:\t0a1b2c3d4e5f6071\nmemlock:\t16384\nprog_id:\t73\n\
                      run_time_ns:\t0\nrun_cnt:\t0\nrecursion_misses:\t12\nverified_insns:\t9281\n";
        assert_eq!(parse(fdinfo), Some(12));
        let before_5_12 = fdinfo.replace(FIELD, "something_else:");
        assert_eq!(parse(&before_5_12), None);
    }
}
