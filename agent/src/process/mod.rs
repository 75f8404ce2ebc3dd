//! Which processes to watch, and what is known of each.
//!
//! [`text`] reads the files of `/proc` as text, [`watch`] is the edge that opens them, [`select`]
//! decides, and [`table`] remembers. [`injectable`] says whose requests may get headers. What a
//! program's file says is in [`binary`]; [`tls_file`] is the edge that opens it and its symbols.

pub mod binary;
pub mod injectable;
pub mod pool;
pub mod runtime;
pub mod select;
pub mod table;
pub mod text;
pub mod tls_file;
pub mod watch;

use std::path::PathBuf;

use crate::event::ProcessId;

/// What was learned of one process, from `/proc` or from its exec. Pure data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub parent_pid: u32,
    /// Target of `/proc/PID/exe`, without a ` (deleted)` suffix; empty where unreadable.
    pub executable: PathBuf,
    /// `/proc/PID/cmdline`, split.
    pub arguments: Vec<String>,
    /// `OTEL_*` variables of the target only; other variables are not kept.
    pub environment: Vec<(String, String)>,
    /// 64 hexadecimal digits, from the cgroup path.
    pub container_id: Option<String>,
    /// `/proc/PID/comm`.
    pub command: String,
    /// Seconds since the Unix epoch with fraction, as RFC 3339.
    pub creation_time: Option<String>,
    /// Version of the Go that made the program; `None` when it was another language, or is not
    /// known yet.
    pub go_version: Option<String>,
}

/// A process and what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub id: ProcessId,
    pub facts: Facts,
}

/// Programs whose way of working is known, so that what one thread does may be joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// nginx and what is built from it: a loop with neither a queue for its upstream pool nor
    /// calls of its own.
    Nginx,
    /// Made by Go: what it does is done by goroutines, on any thread.
    Go,
    /// Ruby, whose servers name the threads of their pools (see [`pool`]).
    Ruby,
    #[default]
    Other,
}

impl Facts {
    pub fn runtime(&self) -> Runtime {
        // By file name alone, because argv[0] and comm are free for the program to change.
        match self.executable_name() {
            Some("nginx" | "nginx-debug" | "openresty") => Runtime::Nginx,
            Some(name) if name.starts_with("ruby") => Runtime::Ruby,
            _ if self.go_version.is_some() => Runtime::Go,
            _ => Runtime::Other,
        }
    }

    /// File name of the executable; `None` where it is unreadable or not UTF-8.
    pub fn executable_name(&self) -> Option<&str> {
        self.executable.file_name()?.to_str()
    }

    /// A non-empty variable; the specification treats an empty one as unset.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let found = self.environment.iter().find(|(key, _)| key == name)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nginx is recognised by the name of its file, wherever that is.
    #[test]
    fn runtimes() {
        let table = [
            ("/usr/sbin/nginx", Runtime::Nginx),
            ("/opt/nginx/sbin/nginx-debug", Runtime::Nginx),
            ("/usr/local/openresty/bin/openresty", Runtime::Nginx),
            ("/usr/bin/nginx-exporter", Runtime::Other),
            ("/srv/nginx/run", Runtime::Other),
            ("", Runtime::Other),
        ];
        for (executable, runtime) in table {
            let facts = Facts {
                executable: executable.into(),
                ..Facts::default()
            };
            assert_eq!(facts.runtime(), runtime, "{executable}");
        }
    }
}
