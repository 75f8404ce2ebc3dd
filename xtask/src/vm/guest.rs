//! The first process of a guest: makes the host's root usable, runs one command, powers off.
//!
//! It is this same program, put into the initramfs with the libraries it needs. The host's root
//! comes by virtiofs, read-only; what the command writes lands in memory and is gone at the end.

use std::{
    env,
    ffi::{CStr, OsString},
    fs,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::chroot,
    },
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};
use rustix::{
    mount::{MountFlags, mount},
    net::{AddressFamily, SendFlags, SocketType, netlink::SocketAddrNetlink, sendto, socket},
    system::{RebootCommand, init_module, reboot},
};

/// Before everything that is meant for the host; kernel messages share the serial line.
pub(super) const MARKER: &str = "@guest ";

/// Follows [`MARKER`] when the command is about to run, and before its exit code.
pub(super) const READY: &str = "ready";
pub(super) const EXIT: &str = "exit ";

/// Files of the initramfs.
pub(super) const INIT: &str = "init";
pub(super) const JOB: &str = "job";
pub(super) const MODULES: &str = "modules";

/// What the shared root is called between host and guest.
pub(super) const SHARE_TAG: &str = "hroot";

/// Level of the console from when the command runs, so that the kernel does not speak into its
/// lines: `KERN_WARNING` and above are not shown.
const ERRORS_ONLY: &str = "4";

/// What a guest has in these places is its own: it does not see the host's files there.
pub(super) const FILE_SYSTEMS: [(&str, &str); 9] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("tracefs", "/sys/kernel/tracing"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("securityfs", "/sys/kernel/security"),
];

/// What is to be run. In the initramfs it is a file of strings that end in NUL.
pub(super) struct Job {
    pub(super) directory: OsString,
    /// `NAME=value`.
    pub(super) environment: Vec<OsString>,
    pub(super) command: Vec<OsString>,
}

impl Job {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let count = OsString::from(self.environment.len().to_string());
        let mut bytes = Vec::new();
        for text in [&self.directory, &count]
            .into_iter()
            .chain(&self.environment)
            .chain(&self.command)
        {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.strip_suffix(&[0])?;
        let mut texts = bytes
            .split(|byte| *byte == 0)
            .map(|text| OsString::from_vec(text.to_vec()));
        let directory = texts.next()?;
        let count = texts.next()?.to_str()?.parse().ok()?;
        let environment = texts.by_ref().take(count).collect();
        Some(Self {
            directory,
            environment,
            command: texts.collect(),
        })
    }
}

/// Never returns to the kernel other than by power off: the end of process 1 is a panic.
pub(super) fn run() -> Result<()> {
    let code = match prepare_and_run() {
        Ok(code) => code,
        Err(error) => {
            println!("{MARKER}error {error:#}");
            125
        }
    };
    println!("\n{MARKER}{EXIT}{code}");
    // With `panic=-1` the machine ends either way.
    reboot(RebootCommand::PowerOff).context("cannot power off")
}

fn prepare_and_run() -> Result<i32> {
    let job = fs::read(Path::new("/").join(JOB)).context("no job")?;
    let job = Job::from_bytes(&job).context("the job is damaged")?;
    insert_modules(&Path::new("/").join(MODULES))?;
    mount_root("/root")?;
    chroot("/root").context("cannot change the root")?;
    env::set_current_dir("/")?;
    mount_kernel_file_systems()?;
    bring_up_loopback().context("cannot bring up the loopback interface")?;
    fs::write("/proc/sys/kernel/printk", ERRORS_ONLY).context("cannot quieten the kernel")?;
    println!("{MARKER}{READY}");
    execute(&job)
}

/// In the order of their names; those of a kernel that has them built in are not there.
fn insert_modules(directory: &Path) -> Result<()> {
    let mut modules: Vec<_> = fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    modules.sort();
    for module in modules {
        init_module(&fs::read(&module)?, c"")
            .with_context(|| format!("cannot insert {}", module.display()))?;
    }
    Ok(())
}

/// The host's root below a layer in memory.
fn mount_root(place: &str) -> Result<()> {
    for directory in ["/host", "/memory", place] {
        fs::create_dir_all(directory)?;
    }
    mount_one(SHARE_TAG, "/host", "virtiofs", MountFlags::RDONLY, None)?;
    mount_one("memory", "/memory", "tmpfs", MountFlags::empty(), None)?;
    for directory in ["/memory/upper", "/memory/work"] {
        fs::create_dir_all(directory)?;
    }
    let layers = c"lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work";
    mount_one("root", place, "overlay", MountFlags::empty(), Some(layers))
}

fn mount_kernel_file_systems() -> Result<()> {
    for (kind, place) in FILE_SYSTEMS {
        mount_one(kind, place, kind, MountFlags::empty(), None)?;
    }
    Ok(())
}

fn mount_one(
    source: &str,
    place: &str,
    kind: &str,
    flags: MountFlags,
    data: Option<&CStr>,
) -> Result<()> {
    mount(source, place, kind, flags, data)
        .with_context(|| format!("cannot mount {kind} on {place}"))
}

/// By a netlink message, so that the host needs no program for it.
///
/// `struct nlmsghdr` (length, type, flags, sequence, port), then `struct ifinfomsg` (family,
/// padding, type, index, flags, change), of `include/uapi/linux/{netlink,rtnetlink}.h`.
fn bring_up_loopback() -> Result<()> {
    const LENGTH: u32 = 32;
    const NEW_LINK: u16 = 16;
    const REQUEST: u16 = 1;
    const LOOPBACK_INDEX: u32 = 1;
    const UP: u32 = 1;
    let mut message = Vec::new();
    message.extend(LENGTH.to_ne_bytes());
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(LOOPBACK_INDEX.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    sendto(
        &socket,
        &message,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    Ok(())
}

/// The exit code as a shell would give it.
fn execute(job: &Job) -> Result<i32> {
    let (program, arguments) = job.command.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(&job.directory)
        .env_clear();
    for variable in &job.environment {
        let text = variable.to_string_lossy();
        if let Some((name, value)) = text.split_once('=') {
            command.env(name, value);
        }
    }
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    Ok(status.code().unwrap_or(128))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job comes out of the initramfs as it went in, empty arguments included.
    #[test]
    fn a_job_survives_the_initramfs() {
        let texts = |texts: &[&str]| texts.iter().map(OsString::from).collect::<Vec<_>>();
        let job = Job {
            directory: "/srv".into(),
            environment: texts(&["A=1", "B="]),
            command: texts(&["sh", "-c", ""]),
        };
        let read = Job::from_bytes(&job.to_bytes()).expect("whole");
        assert_eq!(read.directory, job.directory);
        assert_eq!(read.environment, job.environment);
        assert_eq!(read.command, job.command);
        assert!(Job::from_bytes(b"/srv\x00").is_none());
    }
}
