//! Which processes are traced. Pure.
//!
//! What is asked for adds up: a process is chosen when any of it matches. Descendants of a chosen
//! process are chosen too, as the kernel side traces a child of a traced process from its first
//! instruction.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
};

use agent_common::{kernel_config::PortRange, limits};
use globset::{GlobBuilder, GlobMatcher};

use super::{Facts, Process};

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub pids: BTreeSet<u32>,
    pub ports: PortSet,
    pub executables: Vec<ExecutableGlob>,
    pub all: bool,
}

/// Why a process is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    Pid,
    Port(u16),
    /// The glob that its executable matches.
    Executable(String),
    All,
    /// Its nearest chosen ancestor.
    Descendant(u32),
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid => formatter.write_str("chosen by its id"),
            Self::Port(port) => write!(formatter, "listens on port {port}"),
            Self::Executable(glob) => write!(formatter, "its executable matches {glob}"),
            Self::All => formatter.write_str("every process is traced"),
            Self::Descendant(pid) => write!(formatter, "descends from process {pid}"),
        }
    }
}

/// What a number given as a process id turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PidState {
    Running,
    Missing,
    /// A thread of the process `of`, whose name is `name`.
    Thread {
        of: u32,
        name: String,
    },
    KernelThread {
        name: String,
    },
    Zombie {
        name: String,
    },
}

/// A process that may be chosen, and the TCP ports it listens on.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub process: Process,
    pub listening: BTreeSet<u16>,
}

impl Selection {
    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.pids.is_empty() && self.ports.is_empty() && self.executables.is_empty() && !self.all
    }

    /// Whether a program that is yet to start may be chosen for what it is.
    pub fn awaits_programs(&self) -> bool {
        self.all || !self.executables.is_empty()
    }

    /// Whether this process is asked for by itself; descent is [`Selection::choose`]'s.
    pub fn matches(&self, pid: u32, facts: &Facts, listening: &BTreeSet<u16>) -> Option<Reason> {
        if self.pids.contains(&pid) {
            return Some(Reason::Pid);
        }
        if let Some(&port) = listening.iter().find(|&&port| self.ports.contains(port)) {
            return Some(Reason::Port(port));
        }
        if let Some(glob) = self
            .executables
            .iter()
            .find(|glob| glob.matches(&facts.executable))
        {
            return Some(Reason::Executable(glob.text.clone()));
        }
        self.all.then_some(Reason::All)
    }

    /// All that are traced of `candidates`, by process id. `agent_pid` never is, nor does descent
    /// pass through it: what it starts is chosen by its own id.
    pub fn choose(&self, candidates: &[Candidate], agent_pid: u32) -> BTreeMap<u32, Reason> {
        let mut chosen: BTreeMap<u32, Reason> = BTreeMap::new();
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for candidate in candidates {
            let Process { id, facts } = &candidate.process;
            if id.pid == agent_pid {
                continue;
            }
            children.entry(facts.parent_pid).or_default().push(id.pid);
            if let Some(reason) = self.matches(id.pid, facts, &candidate.listening) {
                chosen.insert(id.pid, reason);
            }
        }
        let mut to_visit: Vec<u32> = chosen.keys().copied().collect();
        while let Some(parent) = to_visit.pop() {
            for &child in children.get(&parent).map_or(&[][..], Vec::as_slice) {
                if let std::collections::btree_map::Entry::Vacant(entry) = chosen.entry(child) {
                    entry.insert(Reason::Descendant(parent));
                    to_visit.push(child);
                }
            }
        }
        chosen
    }
}

/// Ports as ranges that neither touch nor overlap, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet {
    ranges: Vec<(u16, u16)>,
}

impl PortSet {
    /// Ranges held by the kernel side.
    pub const MAX_RANGES: usize = limits::PORT_RANGES;

    /// One port or an inclusive range; the error says what is wrong.
    pub fn parse_range(text: &str) -> Result<(u16, u16), &'static str> {
        let port = |text: &str| match text.trim().parse::<u32>() {
            Err(_) => Err("it is not a number"),
            Ok(0) => Err("port 0 does not exist"),
            Ok(port) => u16::try_from(port).map_err(|_| "the highest port is 65535"),
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        if first > last {
            Err("the range ends before it begins")
        } else {
            Ok((first, last))
        }
    }

    pub fn contains(&self, port: u16) -> bool {
        self.ranges
            .iter()
            .any(|&(first, last)| (first..=last).contains(&port))
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// As the kernel side takes them.
    pub fn kernel_ranges(&self) -> impl Iterator<Item = PortRange> + '_ {
        self.ranges
            .iter()
            .map(|&(first, last)| PortRange { first, last })
    }
}

impl FromIterator<(u16, u16)> for PortSet {
    fn from_iter<Ranges: IntoIterator<Item = (u16, u16)>>(ranges: Ranges) -> Self {
        let mut sorted: Vec<(u16, u16)> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match merged.last_mut() {
                Some(before) if u32::from(first) <= u32::from(before.1) + 1 => {
                    before.1 = before.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Self { ranges: merged }
    }
}

/// A glob on the full path of an executable, or on its file name when it holds no `/`.
#[derive(Clone, Debug)]
pub struct ExecutableGlob {
    text: String,
    matcher: GlobMatcher,
    file_name_only: bool,
}

impl ExecutableGlob {
    /// `*` matches any characters, `/` included, so that `*/curl` finds it wherever it is; `?`,
    /// `{a,b}` and `[a-z]` work too. The error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("it is empty".to_owned());
        }
        let glob = GlobBuilder::new(text)
            .literal_separator(false)
            .build()
            .map_err(|error| error.kind().to_string())?;
        Ok(Self {
            text: text.to_owned(),
            matcher: glob.compile_matcher(),
            file_name_only: !text.contains('/'),
        })
    }

    pub fn matches(&self, executable: &Path) -> bool {
        if self.file_name_only {
            return executable
                .file_name()
                .is_some_and(|name| self.matcher.is_match(name));
        }
        self.matcher.is_match(executable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ProcessId;

    fn candidate(pid: u32, parent_pid: u32, executable: &str, ports: &[u16]) -> Candidate {
        let facts = Facts {
            parent_pid,
            executable: executable.into(),
            ..Facts::default()
        };
        let id = ProcessId {
            pid,
            start_ticks: pid.into(),
        };
        Candidate {
            process: Process { id, facts },
            listening: ports.iter().copied().collect(),
        }
    }

    fn host() -> Vec<Candidate> {
        vec![
            candidate(1, 0, "/usr/lib/systemd/systemd", &[]),
            candidate(10, 1, "/usr/sbin/nginx", &[80, 443]),
            candidate(11, 10, "/usr/sbin/nginx", &[80, 443]),
            candidate(20, 1, "/usr/bin/bash", &[]),
            candidate(21, 20, "/usr/bin/node", &[8080]),
            candidate(22, 21, "/usr/bin/curl", &[]),
            candidate(90, 20, "/usr/local/bin/agent", &[9464]),
            candidate(91, 90, "/usr/local/bin/agent", &[]),
        ]
    }

    fn chosen(selection: &Selection) -> Vec<(u32, Reason)> {
        selection.choose(&host(), 90).into_iter().collect()
    }

    /// Each way of choosing brings the process, its descendants, and the reason.
    #[test]
    fn ways_to_choose() {
        assert!(Selection::default().is_empty());
        assert_eq!(chosen(&Selection::default()), []);

        let by_pid = Selection {
            pids: [20].into(),
            ..Selection::default()
        };
        assert_eq!(
            chosen(&by_pid),
            [
                (20, Reason::Pid),
                (21, Reason::Descendant(20)),
                (22, Reason::Descendant(21))
            ]
        );

        let by_port = Selection {
            ports: [(8000, 8999)].into_iter().collect(),
            ..Selection::default()
        };
        assert_eq!(
            chosen(&by_port),
            [(21, Reason::Port(8080)), (22, Reason::Descendant(21))]
        );

        let glob = ExecutableGlob::parse("ngin?").expect("a valid glob");
        let by_executable = Selection {
            executables: vec![glob],
            ..Selection::default()
        };
        let reason = Reason::Executable("ngin?".to_owned());
        assert_eq!(chosen(&by_executable), [(10, reason.clone()), (11, reason)]);

        let all = Selection {
            all: true,
            ..Selection::default()
        };
        let pids: Vec<u32> = chosen(&all).into_iter().map(|(pid, _)| pid).collect();
        assert_eq!(pids, [1, 10, 11, 20, 21, 22, 91]);
    }

    /// The agent is not traced, even when its id or its port is asked for.
    #[test]
    fn the_agent_is_never_chosen() {
        let selection = Selection {
            pids: [90].into(),
            ports: [(9464, 9464)].into_iter().collect(),
            ..Selection::default()
        };
        assert_eq!(chosen(&selection), []);
    }

    /// Ports and ranges, with what is wrong in the wrong ones.
    #[test]
    fn port_ranges() {
        let table = [
            ("80", Ok((80, 80))),
            ("8000-8999", Ok((8000, 8999))),
            (" 1 - 2 ", Ok((1, 2))),
            ("65535", Ok((65535, 65535))),
            ("65536", Err("the highest port is 65535")),
            ("0", Err("port 0 does not exist")),
            ("90-80", Err("the range ends before it begins")),
            ("http", Err("it is not a number")),
            ("80-", Err("it is not a number")),
            ("", Err("it is not a number")),
            ("-1", Err("it is not a number")),
        ];
        for (text, expected) in table {
            assert_eq!(PortSet::parse_range(text), expected, "{text:?}");
        }
    }

    /// Ranges that touch or overlap become one, so that the kernel side's few are enough.
    #[test]
    fn port_ranges_merge() {
        let ports: PortSet = [(90, 95), (80, 80), (81, 85), (84, 86), (65535, 65535)]
            .into_iter()
            .collect();
        assert_eq!(ports.ranges, [(80, 86), (90, 95), (65535, 65535)]);
        assert!(ports.contains(86) && ports.contains(65535));
        assert!(!ports.contains(87) && !ports.contains(0));
        let first = ports.kernel_ranges().next().expect("three ranges");
        assert_eq!((first.first, first.last), (80, 86));
    }

    /// A glob with a slash is for the whole path, one without for the file name.
    #[test]
    fn executable_globs() {
        let table = [
            ("node", "/usr/bin/node", true),
            ("node", "/opt/node/run", false),
            ("python*", "/usr/bin/python3.11", true),
            ("/usr/bin/*", "/usr/bin/node", true),
            ("/usr/*", "/usr/bin/node", true),
            ("*/node", "/usr/bin/node", true),
            ("*/node", "/usr/bin/nodes", false),
            ("/usr/**", "/usr/bin/node", true),
            ("/opt/{a,b}/run", "/opt/b/run", true),
            ("*", "", false),
        ];
        for (glob, executable, expected) in table {
            let glob = ExecutableGlob::parse(glob).expect("a valid glob");
            assert_eq!(
                glob.matches(Path::new(executable)),
                expected,
                "{} {executable}",
                glob.text
            );
        }
        assert!(ExecutableGlob::parse("[").is_err());
        assert!(ExecutableGlob::parse("").is_err());
    }
}
