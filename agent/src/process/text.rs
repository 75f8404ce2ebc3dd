//! The files of `/proc/PID` as text. Pure.
//!
//! Source: the manual pages proc(5), `proc_pid_stat(5)` and cgroups(7). Single fields are read by
//! hand, because facts of new processes are read while they already serve requests.

/// Prefix of the variables that are kept; others may hold secrets and are dropped at once.
const KEPT_PREFIX: &[u8] = b"OTEL_";

/// `PF_KTHREAD` of `include/linux/sched.h`.
const FLAG_KERNEL_THREAD: u64 = 0x0020_0000;

/// Clock ticks in a second (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// What is used of `/proc/PID/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub command: String,
    pub state: char,
    pub parent_pid: u32,
    pub kernel_thread: bool,
    /// Since boot, in ticks of 10 ms.
    pub start_ticks: u64,
}

impl Stat {
    /// The name may hold blanks and brackets, so fields are counted from the last bracket.
    pub fn parse(stat: &str) -> Option<Self> {
        let (head, tail) = stat.rsplit_once(") ")?;
        let (_, command) = head.split_once(" (")?;
        // Fields are counted from 1 in the manual; the tail begins with field 3.
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            command: command.to_owned(),
            state: field(3)?.chars().next()?,
            parent_pid: field(4)?.parse().ok()?,
            kernel_thread: field(9)?.parse::<u64>().ok()? & FLAG_KERNEL_THREAD != 0,
            start_ticks: field(22)?.parse().ok()?,
        })
    }

    /// Zombies and the dead have no program any more.
    pub const fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// An environment block, less what is not ours to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `OTEL_*` variables; the last of several with one name, as most runtimes read it.
    pub variables: Vec<(String, String)>,
    /// The program wrote over the block: it has bytes, yet no `NAME=value`.
    pub overwritten: bool,
    /// The block was cut: its last string has no NUL, and is left out.
    pub cut: bool,
}

impl Environment {
    /// From `NAME=value` strings that end in NUL.
    pub fn parse(block: &[u8]) -> Self {
        let whole = block
            .iter()
            .rposition(|&byte| byte == 0)
            .map_or(0, |end| end + 1);
        let (strings, rest) = block.split_at(whole);
        let mut variables: Vec<(String, String)> = Vec::new();
        let mut seen_any = false;
        for string in strings.split(|&byte| byte == 0) {
            let Some(equals) = string.iter().position(|&byte| byte == b'=') else {
                continue;
            };
            let (name, value) = (&string[..equals], &string[equals + 1..]);
            if !is_name(name) {
                continue;
            }
            seen_any = true;
            if !name.starts_with(KEPT_PREFIX) {
                continue;
            }
            let name = String::from_utf8_lossy(name).into_owned();
            variables.retain(|(known, _)| *known != name);
            variables.push((name, String::from_utf8_lossy(value).into_owned()));
        }
        Self {
            variables,
            overwritten: !block.is_empty() && !seen_any,
            cut: !rest.is_empty(),
        }
    }
}

/// Names that shells and runtimes can have set. A process title such as `worker: a=b` is none.
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(u8::is_ascii_graphic) && !name.contains(&b':')
}

/// Splits `/proc/PID/cmdline`. A program that wrote its title over it gives one string with
/// blanks, which is left as it is.
pub fn parse_arguments(cmdline: &[u8]) -> Vec<String> {
    let end = cmdline
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |last| last + 1);
    if end == 0 {
        return Vec::new();
    }
    cmdline[..end]
        .split(|&byte| byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// The container in `/proc/PID/cgroup`: the last run of 64 hexadecimal digits of a path, as
/// Docker, containerd, CRI-O and Podman name their cgroups (`docker-<id>.scope`,
/// `cri-containerd-<id>.scope`, `/kubepods/.../<id>`, `libpod-<id>`).
pub fn container_id(cgroup: &str) -> Option<String> {
    const DIGITS: usize = 64;
    cgroup.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        path.rsplit(|digit: char| !digit.is_ascii_hexdigit())
            .find(|run| run.len() == DIGITS)
            .map(str::to_ascii_lowercase)
    })
}

/// `btime` of `/proc/stat`: boot in whole seconds since the Unix epoch.
pub fn boot_seconds(stat: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

/// A value of `/proc/PID/status`, such as `Tgid`.
pub fn status_value<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// When a process started, in RFC 3339 with hundredths. Computed as `ps` does, from whole seconds
/// of boot, so that all observers of a process agree on it.
pub fn creation_time(boot_seconds: u64, start_ticks: u64) -> String {
    let seconds = boot_seconds + start_ticks / TICKS_PER_SECOND;
    let hundredths = start_ticks % TICKS_PER_SECOND;
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{hundredths:02}Z")
}

/// Year, month and day of a day number since 1970-01-01 in the Gregorian calendar. Years are
/// counted from March, so that the leap day is the last of its year.
const fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_EPOCH: u64 = 719_468; // From 0000-03-01.
    const DAYS_PER_ERA: u64 = 146_097; // 400 years.
    let days = days + DAYS_TO_EPOCH;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// Where a file's beginning is mapped, from `/proc/PID/maps`: `start-end modes offset device inode
/// path`, in hexadecimal.
pub fn mapped_at(maps: &str, path: &str) -> Option<u64> {
    maps.lines().find_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let mut words = rest.split_ascii_whitespace();
        let (_end, _modes, offset) = (words.next()?, words.next()?, words.next()?);
        let is_beginning = u64::from_str_radix(offset, 16) == Ok(0)
            && line
                .strip_suffix(path)
                .is_some_and(|before| before.ends_with(' '));
        is_beginning
            .then(|| u64::from_str_radix(start, 16).ok())
            .flatten()
    })
}

/// A file that a process runs code of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping<'a> {
    /// As `/proc/PID/map_files` names it.
    pub range: &'a str,
    pub path: &'a str,
}

impl<'a> Mapping<'a> {
    pub fn file_name(&self) -> &'a str {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(self.path);
        path.rsplit_once('/').map_or(path, |(_, name)| name)
    }
}

/// Mappings of files, of `/proc/PID/maps`, that may be executed.
pub fn executable_mappings(maps: &str) -> impl Iterator<Item = Mapping<'_>> {
    maps.lines().filter_map(|line| {
        let mut words = line.splitn(6, ' ');
        let (range, modes) = (words.next()?, words.next()?);
        let path = words.nth(3)?.trim_start();
        (modes.contains('x') && path.starts_with('/')).then_some(Mapping { range, path })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names with blanks and brackets do not shift the fields; kernel threads are told apart.
    #[test]
    fn mapped_file() {
        let maps = "55d0c0a00000-55d0c0a01000 r--p 00001000 08:01 12    /srv/app\n\
                    55d0c0b00000-55d0c0b01000 r--p 00000000 08:01 12    /srv/app\n\
                    7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n";
        assert_eq!(mapped_at(maps, "/srv/app"), Some(0x55d0_c0b0_0000));
        assert_eq!(mapped_at(maps, "/srv/other"), None);
        assert_eq!(mapped_at("garbage", "garbage"), None);
    }

    #[test]
    fn mappings_that_run() {
        let maps = "55d0-55d1 r--p 00001000 08:01 12                         /srv/app\n\
                    7f00-7f01 r-xp 00001000 00:2f 13                         /srv/a b/libssl.so.3 (deleted)\n\
                    7f01-7f02 r-xp 00000000 00:00 0                          [vdso]\n\
                    7f02-7f03 rwxp 00000000 00:00 0 \n";
        let found: Vec<_> = executable_mappings(maps).collect();
        let library = Mapping {
            range: "7f00-7f01",
            path: "/srv/a b/libssl.so.3 (deleted)",
        };
        assert_eq!(found, [library]);
        assert_eq!(library.file_name(), "libssl.so.3");
    }

    #[test]
    fn stat_lines() {
        let line = "812 (a) b (c)) S 1 812 812 0 -1 4194560 9 0 0 0 1 2 0 0 20 0 5 0 6543 1 2";
        let stat = Stat::parse(line).expect("a whole line");
        assert_eq!(stat.command, "a) b (c)");
        assert_eq!(
            (stat.state, stat.parent_pid, stat.start_ticks),
            ('S', 1, 6543)
        );
        assert!(!stat.kernel_thread && !stat.has_ended());

        let line = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 7 0 0";
        assert!(Stat::parse(line).expect("a whole line").kernel_thread);
        assert_eq!(Stat::parse("2 (kthreadd) S 0"), None);
        assert_eq!(Stat::parse(""), None);
    }

    /// Only `OTEL_*` is kept; overwritten and cut blocks are told apart from empty ones.
    #[test]
    fn environment_blocks() {
        type Row<'a> = (&'a [u8], &'a [(&'a str, &'a str)], bool, bool);
        let table: [Row<'_>; 8] = [
            (b"", &[], false, false),
            (b"PATH=/bin\0SECRET=x\0", &[], false, false),
            (
                b"A=1\0OTEL_SERVICE_NAME=a=b\0",
                &[("OTEL_SERVICE_NAME", "a=b")],
                false,
                false,
            ),
            (b"OTEL_A=\0OTEL_A=2\0", &[("OTEL_A", "2")], false, false),
            (b"OTEL_A=1\0OTEL_B=tw", &[("OTEL_A", "1")], false, true),
            (b"rker process\0\0\0\0", &[], true, false),
            (b"\0\0\0\0", &[], true, false),
            (b"postgres: app db=1 idle\0", &[], true, false),
        ];
        for (block, expected, overwritten, cut) in table {
            let environment = Environment::parse(block);
            let variables: Vec<(&str, &str)> = environment
                .variables
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect();
            let name = String::from_utf8_lossy(block);
            assert_eq!(variables, expected, "{name:?}");
            assert_eq!(environment.overwritten, overwritten, "{name:?}");
            assert_eq!(environment.cut, cut, "{name:?}");
        }
    }

    /// Empty arguments stay, padding at the end goes.
    #[test]
    fn argument_lists() {
        assert_eq!(
            parse_arguments(b"python\0-c\0\0x\0"),
            ["python", "-c", "", "x"]
        );
        assert_eq!(
            parse_arguments(b"nginx: worker process\0\0\0"),
            ["nginx: worker process"]
        );
        assert_eq!(parse_arguments(b""), Vec::<String>::new());
        assert_eq!(parse_arguments(b"\0\0"), Vec::<String>::new());
    }

    /// Cgroup paths of the common container runtimes, versions 1 and 2.
    #[test]
    fn container_ids() {
        let id = "3f5f0a6b1c2d4e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9012a3b4c5d6e7f8";
        let table = [
            (format!("0::/system.slice/docker-{id}.scope\n"), true),
            (format!("12:cpu:/docker/{id}\n0::/\n"), true),
            (
                format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope\n"),
                true,
            ),
            (
                format!("0::/machine.slice/libpod-{id}.scope/container\n"),
                true,
            ),
            (
                "0::/user.slice/user-1000.slice/session-3.scope\n".to_owned(),
                false,
            ),
            (format!("0::/x/{}\n", &id[1..]), false),
            (String::new(), false),
        ];
        for (cgroup, found) in table {
            assert_eq!(
                container_id(&cgroup),
                found.then(|| id.to_owned()),
                "{cgroup}"
            );
        }
    }

    /// Dates around leap days, checked against `date -u -d @SECONDS`.
    #[test]
    fn creation_times() {
        let table = [
            (0, 0, "1970-01-01T00:00:00.00Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.00Z"),
            (1_709_251_199, 199, "2024-03-01T00:00:00.99Z"),
            (1_735_689_599, 50, "2024-12-31T23:59:59.50Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.00Z"),
        ];
        for (boot, ticks, expected) in table {
            assert_eq!(creation_time(boot, ticks), expected);
        }
    }

    /// Values of `/proc/PID/status` are found by their whole name.
    #[test]
    fn status_values() {
        let status = "Name:\tsh\nTgid:\t10\nNgid:\t0\nPid:\t11\nPPid:\t1\n";
        assert_eq!(status_value(status, "Tgid"), Some("10"));
        assert_eq!(status_value(status, "Pid"), Some("11"));
        assert_eq!(status_value(status, "Tg"), None);
        assert_eq!(
            boot_seconds("cpu 1 2\nbtime 1700000000\n"),
            Some(1_700_000_000)
        );
    }
}
