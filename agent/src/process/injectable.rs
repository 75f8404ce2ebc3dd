//! Which programs get headers injected into their requests. Pure.
//!
//! On kernels that deny waiting bytes (`FIONREAD` says 0 on sockets in a socket map while bytes
//! wait; seen on Linux 6.18), a program that asks would stall: Java's `available()`, .NET, Ruby's
//! `nread` and others do. So only programs that are known not to ask get headers there.

use super::{Facts, Runtime};

/// What becomes of a program's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Injected; nginx's rules say whom a call belongs to.
    Loop,
    /// Injected; goroutines say whom a call belongs to.
    Goroutines,
    /// Injected; threads say whom a call belongs to.
    Threads,
    /// Left alone, for this reason.
    LeftAlone(&'static str),
}

/// Programs whose sources do not ask for waiting bytes on the sockets of their HTTP clients, by
/// name of the executable without its version: `CPython` reads until it has what it wants, libuv
/// (Node) and nginx read until `EAGAIN`, and so do curl, wget, ab and the clients of nghttp2.
const UNASKING: [&str; 13] = [
    "python",
    "pypy",
    "node",
    "nodejs",
    "nginx",
    "nginx-debug",
    "openresty",
    "curl",
    "wget",
    "ab",
    "h2load",
    "nghttp",
    "uwsgi",
];

pub fn judge(facts: &Facts, are_waiting_bytes_told: bool) -> Verdict {
    if facts.runtime() == Runtime::Nginx {
        return Verdict::Loop;
    }
    // Package `net` reads until it would block, and has no call that asks.
    if facts.runtime() == Runtime::Go {
        return Verdict::Goroutines;
    }
    let name = facts.executable_name().map_or("", |name| {
        name.trim_end_matches(|character: char| character.is_ascii_digit() || character == '.')
    });
    if are_waiting_bytes_told || UNASKING.contains(&name) {
        Verdict::Threads
    } else {
        Verdict::LeftAlone(
            "this kernel tells programs that ask (FIONREAD) that no bytes wait on such a socket, \
             and this one is not known not to ask",
        )
    }
}

/// As [`judge`], for TCP options: they change nothing that a program can see, so all that matters
/// is whether it can be told which request a call is made for.
pub fn judge_option(facts: &Facts) -> Verdict {
    match judge(facts, true) {
        Verdict::Goroutines => Verdict::LeftAlone(
            "which goroutine a call belongs to is not known where packets are sized",
        ),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where waiting bytes are denied, unknown programs and those that ask are left alone.
    #[test]
    fn programs_that_may_ask_are_left_alone() {
        let judged = |executable: &str, told| {
            let facts = Facts {
                executable: executable.into(),
                ..Facts::default()
            };
            judge(&facts, told)
        };
        assert_eq!(judged("/usr/sbin/nginx", false), Verdict::Loop);
        assert_eq!(judged("/usr/bin/python3.11", false), Verdict::Threads);
        assert_eq!(judged("/usr/bin/node", false), Verdict::Threads);
        for asking in ["/usr/bin/java", "/usr/bin/ruby3.1", "/srv/shop", ""] {
            assert!(
                matches!(judged(asking, false), Verdict::LeftAlone(_)),
                "{asking}"
            );
            assert_eq!(judged(asking, true), Verdict::Threads, "{asking}");
        }
    }
}
