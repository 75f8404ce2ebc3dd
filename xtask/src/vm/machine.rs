//! One guest: started, watched on its serial line, ended.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    guest::{EXIT, Job, MARKER, READY, SHARE_TAG},
    initramfs,
    kernels::Image,
};
use crate::{
    child::Running,
    steps::{self, Privilege, say},
};

/// Boots before a guest counts as failed.
const TRIES: u32 = 3;

/// How often the serial line is read.
const POLL: Duration = Duration::from_millis(50);

/// Memory in MiB: it also holds what the guest writes.
const MEMORY: u32 = 2048;

/// Words of a kernel that will not come back.
const FATAL: [&str; 3] = [
    "Kernel panic",
    "rcu_sched self-detected stall",
    "rcu: INFO: rcu_",
];

/// What moves a guest's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// The machine's own, on two processors.
    Machine,
    /// The instructions of its one processor: what takes time in it takes as long in every run,
    /// however busy the machine is.
    Instructions,
}

impl Clock {
    /// A boot takes 8 to 13 s of CPU time; on rare occasions one hangs.
    const fn boot(self) -> Duration {
        match self {
            Self::Machine => Duration::from_secs(90),
            Self::Instructions => Duration::from_mins(5),
        }
    }

    /// Mostly a boot hangs between the firmware and the kernel's first word. One that goes well
    /// says something every second or two, and every 6 s at a load of 16 on two cores.
    const fn silence(self) -> Duration {
        match self {
            Self::Machine => Duration::from_secs(20),
            Self::Instructions => Duration::from_mins(1),
        }
    }

    /// What lies elsewhere in every run would make runs differ.
    const fn kernel_arguments(self) -> &'static str {
        match self {
            Self::Machine => "",
            Self::Instructions => "norandmaps",
        }
    }

    /// An instruction takes 2 to the power of `shift` nanoseconds. While the processor has nothing
    /// to do, as when it waits for a file of the host, time passes as in the machine.
    const fn qemu_arguments(self) -> &'static str {
        match self {
            Self::Machine => "-accel tcg,thread=multi -smp 2",
            Self::Instructions => "-accel tcg,thread=single -smp 1 -icount shift=1,sleep=on",
        }
    }
}

/// What a guest is started with.
pub(super) struct Machine<'a> {
    pub(super) image: &'a Image,
    pub(super) job: &'a Job,
    pub(super) clock: Clock,
    /// Where its logs stay: the serial line's is `NAME.serial.out`.
    pub(super) logs: &'a Path,
    /// For the command alone, the boot excluded.
    pub(super) deadline: Duration,
}

/// Why a guest ended without an exit code.
enum Fault {
    /// Worth a second try: it never came up.
    Boot(anyhow::Error),
    Run(anyhow::Error),
}

impl Machine<'_> {
    /// Runs the command and returns its exit code. A boot that hangs is tried again; its log is
    /// kept as `NAME.serial.failed-TRY`.
    pub(super) fn run(&self, mut line: impl FnMut(&str)) -> Result<i32> {
        let mut number = 1;
        loop {
            match self.attempt(&mut line) {
                Ok(code) => return Ok(code),
                Err(Fault::Boot(error)) if number < TRIES => {
                    let name = &self.image.name;
                    let kept = self.logs.join(format!("{name}.serial.failed-{number}"));
                    fs::copy(self.log(), &kept).context("cannot keep the log")?;
                    let log = kept.display();
                    say("vm", &format!("{error:#}; tries again, its log is {log}"));
                    number += 1;
                }
                Err(Fault::Boot(error) | Fault::Run(error)) => {
                    return Err(error.context(format!("its log is {}", self.log().display())));
                }
            }
        }
    }

    fn attempt(&self, line: &mut impl FnMut(&str)) -> Result<i32, Fault> {
        let started = Instant::now();
        let mut guest = self.start().map_err(Fault::Run)?;
        let mut serial = Serial::open(&guest.qemu.stdout).map_err(Fault::Run)?;
        let mut ready: Option<Instant> = None;
        let mut heard = started;
        loop {
            // Whether it lives is asked before the rest of what it said is read.
            let ended = guest.qemu.has_ended().map_err(Fault::Run)?;
            for text in serial.lines().map_err(Fault::Run)? {
                heard = Instant::now();
                match text.find(MARKER).map(|at| &text[at + MARKER.len()..]) {
                    Some(READY) => {
                        ready = Some(Instant::now());
                        let seconds = started.elapsed().as_secs_f64();
                        say(
                            "vm",
                            &format!("{}: up after {seconds:.0} s", self.image.name),
                        );
                    }
                    Some(rest) if rest.starts_with(EXIT) => {
                        let code = rest[EXIT.len()..].trim().parse();
                        return code
                            .context("an exit code that is none")
                            .map_err(Fault::Run);
                    }
                    // What the kernel says of its boot stands in the log.
                    None if ready.is_none() => {}
                    _ => line(&text),
                }
                if FATAL.iter().any(|word| text.contains(word)) {
                    return Err(self.fault(ready, &format!("its kernel gave up: {text}")));
                }
            }
            if ended {
                return Err(self.fault(ready, &format!("it ended early: {}", guest.qemu.said())));
            }
            let limits: &[(Instant, Duration)] = match ready {
                Some(ready) => &[(ready, self.deadline)],
                None => &[(started, self.clock.boot()), (heard, self.clock.silence())],
            };
            let passed = limits
                .iter()
                .find(|(since, limit)| since.elapsed() > *limit);
            if let Some((_, limit)) = passed {
                return Err(self.fault(ready, &format!("nothing in {limit:?}")));
            }
            thread::sleep(POLL);
        }
    }

    fn log(&self) -> PathBuf {
        self.logs.join(format!("{}.serial.out", self.image.name))
    }

    fn fault(&self, ready: Option<Instant>, what: &str) -> Fault {
        let error = anyhow::anyhow!("{}: {what}", self.image.name);
        if ready.is_some() {
            Fault::Run(error)
        } else {
            Fault::Boot(error)
        }
    }

    fn start(&self) -> Result<Guest> {
        let name = &self.image.name;
        let initrd = self.logs.join(format!("{name}.initrd"));
        let archive = initramfs::build(&self.image.modules, self.job)?;
        File::create(&initrd).and_then(|mut file| file.write_all(&archive))?;

        let socket = self.logs.join(format!("{name}.socket"));
        // One that an earlier run left behind would look like the new one.
        let _ = fs::remove_file(&socket);
        let privilege = Privilege::detect();
        let start = |name: &str, program: &Path, arguments: &[String]| -> Result<Running> {
            let mut command = privilege
                .command(program, &[])
                .context("sharing the root with a guest needs root")?;
            command.args(arguments);
            Running::start_as(privilege, name, self.logs, &mut command)
        };
        let mut share = start(
            &format!("{name}.share"),
            &share_program()?,
            &share_arguments(&socket),
        )?;
        share.wait_until("socket", Duration::from_secs(10), || socket.exists())?;
        let qemu = steps::find_program("qemu-system-x86_64")
            .context("qemu-system-x86_64 is not installed")?;
        let qemu = start(
            &format!("{name}.serial"),
            &qemu,
            &self.qemu_arguments(&socket, &initrd),
        )?;
        Ok(Guest {
            qemu,
            _share: share,
        })
    }

    fn qemu_arguments(&self, socket: &Path, initrd: &Path) -> Vec<String> {
        // Never KVM: some hosts offer one in which stock kernels hang.
        let text = format!(
            "-machine q35 {processor} -cpu max,cx16=off -m {MEMORY} \
             -object memory-backend-memfd,id=mem,size={MEMORY}M,share=on -numa node,memdev=mem \
             -chardev socket,id=c0,path={socket} \
             -device vhost-user-fs-pci,chardev=c0,tag={SHARE_TAG},queue-size=1024 \
             -nodefaults -no-user-config -nographic -serial stdio -no-reboot \
             -kernel {kernel} -initrd {initrd}",
            processor = self.clock.qemu_arguments(),
            socket = socket.display(),
            kernel = self.image.kernel.display(),
            initrd = initrd.display(),
        );
        let mut arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        arguments.push("-append".to_owned());
        // Enough words to tell a slow boot from one that hangs; the first process lowers the level.
        // What follows `--` are its arguments.
        arguments.push(format!(
            "console=ttyS0 earlyprintk=ttyS0 panic=-1 loglevel=6 noapic \
             lsm=lockdown,capability,bpf {} -- vm-guest init",
            self.clock.kernel_arguments(),
        ));
        arguments
    }
}

/// A running guest and the program that shares the root with it. The guest ends first.
struct Guest {
    qemu: Running,
    _share: Running,
}

/// Debian has it outside the search path.
pub(crate) fn share_program() -> Result<PathBuf> {
    let known = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"].map(PathBuf::from);
    let found = known.into_iter().find(|path| path.is_file());
    found
        .or_else(|| steps::find_program("virtiofsd"))
        .context("virtiofsd is not installed (Debian: qemu-system-common)")
}

fn share_arguments(socket: &Path) -> Vec<String> {
    let socket = format!("--socket-path={}", socket.display());
    let rest = "-o source=/ -o cache=always -o sandbox=chroot --thread-pool-size=4";
    [socket]
        .into_iter()
        .chain(rest.split(' ').map(str::to_owned))
        .collect()
}

/// The growing file of what the guest says.
struct Serial {
    file: File,
    pending: Vec<u8>,
}

impl Serial {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            file,
            pending: Vec::new(),
        })
    }

    /// Whole lines that came since the last call.
    fn lines(&mut self) -> Result<Vec<String>> {
        self.file.read_to_end(&mut self.pending)?;
        let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Vec::new());
        };
        let rest = self.pending.split_off(end + 1);
        let whole = std::mem::replace(&mut self.pending, rest);
        let text = String::from_utf8_lossy(&whole);
        Ok(text
            .lines()
            .map(|line| line.trim_end_matches('\r').to_owned())
            .collect())
    }
}

/// Says what is missing on this machine before anything is fetched.
pub(super) fn ensure_programs() -> Result<()> {
    share_program()?;
    for program in ["qemu-system-x86_64", "xz", "ldd"] {
        ensure!(
            steps::find_program(program).is_some(),
            "{program} is not installed"
        );
    }
    if Privilege::detect() == Privilege::Missing {
        bail!("sharing the root with a guest needs root: run `sudo -v` first, or this as root");
    }
    Ok(())
}
