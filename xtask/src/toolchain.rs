//! The compiler of the eBPF programs: where `setup` notes its choice, and how cargo is called
//! with it.
//!
//! Compiled into xtask and, by path, into `agent/build.rs`, so that both agree on the file.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The target of the eBPF programs: little-endian, as all machines the agent runs on.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// What `cargo xtask setup` chose. On disk it is one `key=value` a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// For people: which compiler this is and where it came from.
    pub(crate) description: String,
    /// The rustup toolchain whose cargo builds; the caller's own cargo when absent.
    pub(crate) rustup: Option<String>,
    /// A compiler that stands outside rustup.
    pub(crate) rustc: Option<PathBuf>,
    /// Where that compiler's shared libraries are.
    pub(crate) libraries: Option<PathBuf>,
    /// The lint driver that belongs to that compiler.
    pub(crate) clippy: Option<PathBuf>,
    /// `bpf-linker`, by path.
    pub(crate) linker: PathBuf,
    /// The compiler has `core` as source only, so each build compiles it.
    pub(crate) build_core: bool,
}

impl Toolchain {
    /// The choice on disk, if there is one whose files still exist.
    pub(crate) fn read() -> Option<Self> {
        let text = fs::read_to_string(choice_file()?).ok()?;
        let value = |key: &str| {
            let found = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.filter(|value| !value.is_empty()).map(str::to_owned)
        };
        let toolchain = Self {
            description: value("description")?,
            rustup: value("rustup"),
            rustc: value("rustc").map(PathBuf::from),
            libraries: value("libraries").map(PathBuf::from),
            clippy: value("clippy").map(PathBuf::from),
            linker: PathBuf::from(value("linker")?),
            build_core: value("build_core").is_some_and(|value| value == "true"),
        };
        let rustc_exists = toolchain.rustc.as_deref().is_none_or(Path::exists);
        (rustc_exists && toolchain.linker.exists()).then_some(toolchain)
    }

    /// The content of the choice file.
    pub(crate) fn to_text(&self) -> String {
        let path = |path: &Option<PathBuf>| {
            path.as_ref()
                .map_or_else(String::new, |path| path.display().to_string())
        };
        format!(
            "description={}\nrustup={}\nrustc={}\nlibraries={}\nclippy={}\nlinker={}\nbuild_core={}\n",
            self.description,
            self.rustup.as_deref().unwrap_or_default(),
            path(&self.rustc),
            path(&self.libraries),
            path(&self.clippy),
            self.linker.display(),
            self.build_core,
        )
    }

    /// `cargo SUBCOMMAND` for the eBPF target in release mode; arguments may follow.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = match &self.rustup {
            Some(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo"]);
                command
            }
            None => Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
        };
        command.args([subcommand, "--release", "--target", TARGET]);
        if self.build_core {
            command.args(["-Z", "build-std=core"]);
        }
        // What an outer cargo says about its own compiler does not hold for this one.
        for variable in OUTER_BUILD {
            command.env_remove(variable);
        }
        if self.rustup.is_some() {
            command.env_remove("RUSTUP_TOOLCHAIN");
        }
        if let Some(rustc) = &self.rustc {
            command.env("RUSTC", rustc);
        }
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", search_path(libraries));
        }
        // aya-ebpf uses unstable features; a nightly compiler permits them by itself.
        command.env("RUSTC_BOOTSTRAP", "1");
        command.env("CARGO_ENCODED_RUSTFLAGS", self.rustc_flags());
        command
    }

    /// Separated by 0x1f, as cargo wants it.
    fn rustc_flags(&self) -> OsString {
        let mut flags = OsString::from("-Clinker=");
        flags.push(&self.linker);
        // bpf-linker makes the program's type information (BTF) from the debug information.
        flags.push("\u{1f}-Clink-arg=--btf\u{1f}-Cdebuginfo=2");
        // Where aya-ebpf reads function arguments from: the registers of the machine's ABI.
        flags.push("\u{1f}--cfg=bpf_target_arch=\"");
        flags.push(env::consts::ARCH);
        flags.push("\"");
        flags
    }
}

/// Variables through which cargo or a user steer the compiler of an outer build.
const OUTER_BUILD: [&str; 9] = [
    "RUSTC",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_MANIFEST_DIR",
];

/// `libraries`, before what is searched already.
fn search_path(libraries: &Path) -> OsString {
    let mut path = libraries.as_os_str().to_owned();
    if let Some(outer) = env::var_os("LD_LIBRARY_PATH").filter(|outer| !outer.is_empty()) {
        path.push(":");
        path.push(outer);
    }
    path
}

/// Where this project keeps compilers and tools between builds: outside the checkout, so that a
/// clean one finds them.
pub(crate) fn cache_directory() -> Option<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|path| Path::new(path).is_absolute()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("HOME")?).join(".cache"),
    };
    Some(base.join("ebpf-agent"))
}

/// The file that holds the choice.
pub(crate) fn choice_file() -> Option<PathBuf> {
    Some(cache_directory()?.join("toolchain"))
}
