//! Reads `/proc`: all processes at start, single ones as they appear.
//!
//! A process may end between two reads; what is then unreadable is left empty, and a process
//! without `stat` is none.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: this module is the reader of /proc"
)]

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use procfs::{net::TcpState, process::Process as ProcProcess};

use super::{
    Facts, Process,
    select::{Candidate, PidState},
    text::{self, Environment, Stat},
};
use crate::event::ProcessId;

/// What the kernel appends to the link of an executable that was removed or replaced.
const DELETED: &str = " (deleted)";

/// Generations to go up for the environment of a process that wrote over its own. Servers fork
/// workers from a master; deeper chains of one executable are not known.
const ENVIRONMENT_GENERATIONS: usize = 4;

/// The `/proc` file system.
#[derive(Clone, Debug)]
pub struct ProcFs {
    root: PathBuf,
    boot_seconds: u64,
}

impl ProcFs {
    pub fn open() -> anyhow::Result<Self> {
        let root = PathBuf::from("/proc");
        let stat = fs::read_to_string(root.join("stat")).context("cannot read /proc/stat")?;
        let boot_seconds = text::boot_seconds(&stat).context("/proc/stat has no boot time")?;
        Ok(Self { root, boot_seconds })
    }

    /// Boot of this host in whole seconds since the Unix epoch.
    pub const fn boot_seconds(&self) -> u64 {
        self.boot_seconds
    }

    /// Facts of one process, by single-file reads. An error when it does not exist (any more).
    pub fn read(&self, pid: u32) -> io::Result<Process> {
        let directory = self.directory(pid);
        let stat = read_stat(&directory)?;
        let executable = read_executable(&directory);
        let environment = self.environment(pid, stat.parent_pid, &executable);
        let cgroup = fs::read_to_string(directory.join("cgroup")).unwrap_or_default();
        let facts = Facts {
            parent_pid: stat.parent_pid,
            executable,
            arguments: text::parse_arguments(&read_or_empty(&directory.join("cmdline"))),
            environment,
            container_id: text::container_id(&cgroup),
            command: stat.command,
            creation_time: Some(text::creation_time(self.boot_seconds, stat.start_ticks)),
            go_version: None,
        };
        Ok(Process {
            id: ProcessId {
                pid,
                start_ticks: stat.start_ticks,
            },
            facts,
        })
    }

    /// Name of a thread.
    pub fn thread_name(&self, pid: u32, thread_id: u32) -> io::Result<String> {
        let path = self.directory(pid).join(format!("task/{thread_id}/comm"));
        Ok(fs::read_to_string(path)?.trim_end().to_owned())
    }

    /// Threads of a process, while it is there.
    pub fn threads(&self, pid: u32) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(self.directory(pid).join("task")) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.parse().ok()).collect()
    }

    /// Every user process that has not ended.
    pub fn scan(&self) -> anyhow::Result<Vec<Process>> {
        let entries = fs::read_dir(&self.root).context("cannot list /proc")?;
        let pids = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let living = pids.filter(|&pid| matches!(self.state(pid), PidState::Running));
        Ok(living.filter_map(|pid| self.read(pid).ok()).collect())
    }

    /// Every user process with the ports it listens on.
    pub fn candidates(&self) -> anyhow::Result<Vec<Candidate>> {
        let processes = self.scan()?;
        let mut listening = self.listening_ports(processes.iter().map(|process| process.id.pid));
        let with_ports = processes.into_iter().map(|process| {
            let listening = listening.remove(&process.id.pid).unwrap_or_default();
            Candidate { process, listening }
        });
        Ok(with_ports.collect())
    }

    /// TCP ports that each of `pids` listens on. Ports are looked up in the network namespace of
    /// each process, so that those inside containers are found.
    pub fn listening_ports(&self, pids: impl Iterator<Item = u32>) -> HashMap<u32, BTreeSet<u16>> {
        let mut by_namespace: HashMap<PathBuf, HashMap<u64, u16>> = HashMap::new();
        let mut listening = HashMap::new();
        for pid in pids {
            let directory = self.directory(pid);
            let Ok(namespace) = fs::read_link(directory.join("ns/net")) else {
                continue;
            };
            let listeners = by_namespace
                .entry(namespace)
                .or_insert_with(|| listeners(&directory));
            if listeners.is_empty() {
                continue;
            }
            let sockets = socket_inodes(&directory);
            let ports: BTreeSet<u16> = sockets
                .iter()
                .filter_map(|inode| listeners.get(inode).copied())
                .collect();
            if !ports.is_empty() {
                listening.insert(pid, ports);
            }
        }
        listening
    }

    /// What the number is: thread ids have a directory too, though listings hide it.
    pub fn state(&self, pid: u32) -> PidState {
        let directory = self.directory(pid);
        let Ok(stat) = read_stat(&directory) else {
            return PidState::Missing;
        };
        let status = fs::read_to_string(directory.join("status")).unwrap_or_default();
        let leader = text::status_value(&status, "Tgid").and_then(|text| text.parse().ok());
        match leader {
            Some(of) if of != pid => {
                let leader = read_stat(&self.directory(of)).unwrap_or(stat);
                PidState::Thread {
                    of,
                    name: leader.command,
                }
            }
            _ if stat.kernel_thread => PidState::KernelThread { name: stat.command },
            _ if stat.has_ended() => PidState::Zombie { name: stat.command },
            _ => PidState::Running,
        }
    }

    fn directory(&self, pid: u32) -> PathBuf {
        self.root.join(pid.to_string())
    }

    /// `OTEL_*` variables of a process; of its nearest ancestor with the same executable when the
    /// process wrote over its own block.
    fn environment(&self, pid: u32, parent_pid: u32, executable: &Path) -> Vec<(String, String)> {
        let (mut pid, mut parent_pid) = (pid, parent_pid);
        for _ in 0..ENVIRONMENT_GENERATIONS {
            let block = read_or_empty(&self.directory(pid).join("environ"));
            let environment = Environment::parse(&block);
            if !environment.overwritten {
                return environment.variables;
            }
            let parent = self.directory(parent_pid);
            let Ok(stat) = read_stat(&parent) else { break };
            if read_executable(&parent) != executable {
                break;
            }
            (pid, parent_pid) = (parent_pid, stat.parent_pid);
        }
        Vec::new()
    }
}

fn read_stat(directory: &Path) -> io::Result<Stat> {
    let stat = fs::read(directory.join("stat"))?;
    Stat::parse(&String::from_utf8_lossy(&stat)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn read_executable(directory: &Path) -> PathBuf {
    let link = fs::read_link(directory.join("exe")).unwrap_or_default();
    match link.to_str().and_then(|path| path.strip_suffix(DELETED)) {
        Some(path) => path.into(),
        None => link,
    }
}

fn read_or_empty(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}

/// Listening sockets of the network namespace of a process: inode to port.
fn listeners(directory: &Path) -> HashMap<u64, u16> {
    let Ok(process) = ProcProcess::new_with_root(directory.to_owned()) else {
        return HashMap::new();
    };
    let tables = [process.tcp(), process.tcp6()];
    let entries = tables.into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.state == TcpState::Listen)
        .map(|entry| (entry.inode, entry.local_address.port()))
        .collect()
}

fn socket_inodes(directory: &Path) -> Vec<u64> {
    let Ok(descriptors) = fs::read_dir(directory.join("fd")) else {
        return Vec::new();
    };
    let links = descriptors
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    links
        .filter_map(|link| {
            link.to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?
                .parse()
                .ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    };

    use super::*;

    /// A child that is ended with the test.
    struct Spawned(Child);

    impl Spawned {
        fn new(program: &str, arguments: &[&str]) -> Self {
            let child = Command::new(program)
                .args(arguments)
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .env("OTEL_SERVICE_NAME", "checkout")
                .env("SECRET", "no")
                .stdin(Stdio::piped())
                .spawn()
                .expect("the program is part of every Linux");
            Self(child)
        }

        fn pid(&self) -> u32 {
            self.0.id()
        }
    }

    impl Drop for Spawned {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < deadline, "timed out waiting until {what}");
            std::thread::yield_now();
        }
    }

    /// Facts of a real child: program, arguments, its `OTEL_*` variables and nothing else of its
    /// environment, and a start that the scan agrees on.
    #[test]
    fn facts_of_a_running_child() {
        let proc_fs = ProcFs::open().expect("/proc is mounted");
        let child = Spawned::new("cat", &["-", "-u"]);
        let read = || proc_fs.read(child.pid()).expect("the child runs");
        wait_until("the child runs its program", || {
            read().facts.command == "cat"
        });
        let process = read();
        assert_eq!(process.facts.executable_name(), Some("cat"));
        assert_eq!(process.facts.arguments, ["cat", "-", "-u"]);
        assert_eq!(process.facts.parent_pid, std::process::id());
        assert_eq!(
            process.facts.environment,
            [("OTEL_SERVICE_NAME".to_owned(), "checkout".to_owned())]
        );
        assert!(process.id.start_ticks > 0);
        let scanned = proc_fs.scan().expect("/proc can be listed");
        assert!(scanned.contains(&process));
    }

    /// A listener's port is found for the process that holds it, in IPv4 and IPv6.
    #[test]
    fn ports_of_this_process() {
        let proc_fs = ProcFs::open().expect("/proc is mounted");
        let four = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let mut expected = vec![four.local_addr().expect("bound").port()];
        let six = TcpListener::bind("[::1]:0");
        expected.extend(
            six.iter()
                .map(|six| six.local_addr().expect("bound").port()),
        );
        let own = std::process::id();
        let ports = proc_fs
            .listening_ports([own].into_iter())
            .remove(&own)
            .unwrap_or_default();
        for port in expected {
            assert!(ports.contains(&port), "{port} is not among {ports:?}");
        }
    }

    /// Threads, kernel threads, zombies and numbers without process are told apart.
    #[test]
    fn kinds_of_numbers() {
        let proc_fs = ProcFs::open().expect("/proc is mounted");
        let own = std::process::id();
        assert_eq!(proc_fs.state(own), PidState::Running);
        assert_eq!(proc_fs.state(u32::MAX), PidState::Missing);

        // Each test runs on a thread of its own, unless it is asked to run on the main one.
        let own_thread = fs::read_link("/proc/thread-self").expect("/proc is mounted");
        let name = own_thread.file_name().and_then(std::ffi::OsStr::to_str);
        let thread = name
            .and_then(|name| name.parse().ok())
            .expect("PID/task/TID");
        if thread != own {
            assert!(matches!(proc_fs.state(thread), PidState::Thread { of, .. } if of == own));
        }

        let mut child = Spawned::new("true", &[]);
        drop(child.0.stdin.take());
        let zombie = PidState::Zombie {
            name: "true".to_owned(),
        };
        wait_until("the child has ended", || {
            proc_fs.state(child.pid()) == zombie
        });
        assert!(
            !proc_fs
                .scan()
                .expect("/proc can be listed")
                .iter()
                .any(|p| p.id.pid == child.pid())
        );
    }

    /// A child that cleared its environment block gets that of the parent of the same program,
    /// and none if the parent is another program.
    #[test]
    fn overwritten_environment() {
        let scratch = std::env::temp_dir().join(format!("agent-watch-{}", std::process::id()));
        let process = |pid: u32, parent: u32, executable: &str, environ: &[u8]| {
            let directory = scratch.join(pid.to_string());
            fs::create_dir_all(&directory).expect("scratch space");
            let stat = format!("{pid} (x) S {parent} 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 500 0");
            fs::write(directory.join("stat"), stat).expect("scratch space");
            fs::write(directory.join("environ"), environ).expect("scratch space");
            std::os::unix::fs::symlink(executable, directory.join("exe")).expect("scratch space");
        };
        process(1, 0, "/sbin/init", b"OTEL_SERVICE_NAME=init\0");
        process(2, 1, "/usr/sbin/nginx", b"OTEL_SERVICE_NAME=web\0");
        process(3, 2, "/usr/sbin/nginx (deleted)", b"rker process\0\0\0");
        process(4, 1, "/usr/sbin/nginx", b"\0\0");
        let proc_fs = ProcFs {
            root: scratch.clone(),
            boot_seconds: 0,
        };
        let facts = |pid| proc_fs.read(pid).expect("just written").facts;
        assert_eq!(facts(3).executable, Path::new("/usr/sbin/nginx"));
        assert_eq!(facts(3).variable("OTEL_SERVICE_NAME"), Some("web"));
        assert_eq!(facts(4).environment, []);
        fs::remove_dir_all(scratch).expect("scratch space");
    }
}
