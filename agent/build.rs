//! Compiles `agent-ebpf` for the kernel and leaves the object in `OUT_DIR/agent-ebpf`, from where
//! the agent embeds it.
//!
//! - `AGENT_EBPF_OBJECT=FILE`: that object is embedded, nothing is compiled.
//! - `AGENT_EBPF_SKIP=1`: an empty object is embedded; the pure code and its tests build with
//!   stable Rust alone.
//! - else with the compiler that `cargo xtask setup` chose.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a build script reads its environment and files, and speaks to cargo's user"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use object::{build::elf, elf::SHT_STRTAB};
use toolchain::{TARGET, Toolchain};

#[path = "../xtask/src/toolchain.rs"]
#[expect(dead_code, reason = "shared with xtask, which also writes the choice")]
mod toolchain;

/// The name of the package, of its binary and of the file that is embedded.
const PROGRAM: &str = "agent-ebpf";

/// What the object is made from, relative to the workspace.
const SOURCES: [&str; 4] = ["agent-ebpf", "agent-common", "Cargo.toml", "Cargo.lock"];

/// Said by cargo as the whole error when no compiler was chosen yet.
const NO_TOOLCHAIN: &str = "no compiler for the eBPF programs yet: run `cargo xtask setup`";

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<()> {
    for variable in [
        "AGENT_EBPF_OBJECT",
        "AGENT_EBPF_SKIP",
        "XDG_CACHE_HOME",
        "HOME",
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let object = path_from("OUT_DIR")?.join(PROGRAM);
    if let Some(ready) = env::var_os("AGENT_EBPF_OBJECT").filter(|path| !path.is_empty()) {
        let ready = Path::new(&ready);
        println!("cargo::rerun-if-changed={}", ready.display());
        return copy(ready, &object);
    }
    if env::var_os("AGENT_EBPF_SKIP").is_some_and(|skip| skip == "1") {
        return fs::write(&object, []).context("cannot write the empty eBPF object");
    }
    if let Some(choice) = toolchain::choice_file() {
        println!("cargo::rerun-if-changed={}", choice.display());
    }
    let Some(toolchain) = Toolchain::read() else {
        println!("cargo::error={NO_TOOLCHAIN}");
        return Ok(());
    };
    compile(&toolchain, &object)
}

/// Runs cargo for the kernel's target in a target directory of its own, because the outer cargo
/// holds the lock of this one. Profiles share it: there is one way to compile for the kernel.
fn compile(toolchain: &Toolchain, object: &Path) -> Result<()> {
    let workspace = path_from("CARGO_MANIFEST_DIR")?.join("..");
    for source in SOURCES {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    let is_debug = env::var_os("CARGO_FEATURE_DEBUG").is_some();
    let target_directory = shared_directory()?.join(if is_debug { "ebpf-debug" } else { "ebpf" });
    let mut cargo = toolchain.cargo("build");
    cargo.args([
        "--quiet",
        "--package",
        PROGRAM,
        "--bin",
        PROGRAM,
        "--target-dir",
    ]);
    cargo.arg(&target_directory).current_dir(&workspace);
    if is_debug {
        cargo.args(["--features", "debug"]);
    }
    let status = cargo
        .status()
        .with_context(|| format!("cannot run {cargo:?}"))?;
    ensure!(
        status.success(),
        "the eBPF programs do not compile (with {})",
        toolchain.description
    );
    let built = target_directory.join(TARGET).join("release").join(PROGRAM);
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let stripped =
        stripped(&bytes, is_debug).with_context(|| format!("cannot strip {}", built.display()))?;
    fs::write(object, stripped).context("cannot embed the eBPF object")
}

/// Where cargo keeps what it builds of all profiles; `OUT_DIR` is `PROFILE/build/NAME/out` in it.
fn shared_directory() -> Result<PathBuf> {
    const DEPTH: usize = 4;
    let out = path_from("OUT_DIR")?;
    let shared = out.ancestors().nth(DEPTH);
    Ok(shared.context("OUT_DIR is not deep enough")?.to_owned())
}

/// The object without what the agent has no use for at run time, most of it, which it would keep in
/// memory: DWARF, from which the linker made the type information, and which instruction came from
/// which line, which only a debug build has the kernel say.
fn stripped(object: &[u8], with_lines: bool) -> Result<Vec<u8>> {
    const FUNCTIONS: &[u8] = b".BTF.ext";
    let mut elf = elf::Builder::read(object)?;
    let mut gone = Vec::new();
    let mut kept_bytes = usize::MAX;
    for section in &mut elf.sections {
        if section.name.starts_with(b".debug_") || section.name.starts_with(b".rel.debug_") {
            section.delete = true;
            gone.push(section.id());
        }
        if let elf::SectionData::Data(data) = &mut section.data
            && *section.name == *FUNCTIONS
            && !with_lines
        {
            let functions = without_lines(data)?;
            kept_bytes = functions.len();
            *data = functions.into();
        }
    }
    for section in &mut elf.sections {
        if let elf::SectionData::Relocation(places) = &mut section.data
            && section.name.ends_with(FUNCTIONS)
        {
            places.retain(|place| place.r_offset < kept_bytes as u64);
        }
    }
    for symbol in &mut elf.symbols {
        symbol.delete |= symbol
            .section
            .is_some_and(|section| gone.contains(&section));
    }
    // LLVM keeps the names of sections and of symbols in one table, the writer in two.
    let names = elf.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.data = elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    Ok(stripped)
}

/// `.BTF.ext` with the functions alone, by which the kernel names programs: a header with the
/// places and lengths of three tables behind it (Documentation/bpf/btf.rst, section 4.2), of which
/// the others become empty.
fn without_lines(section: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes = section.get(at..at + 4).context(".BTF.ext is cut short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let (header, functions, length) = (word(4)?, word(8)?, word(12)?);
    ensure!(functions == 0, ".BTF.ext does not begin with functions");
    let end = header + length;
    let kept = section.get(..end).context(".BTF.ext is cut short")?;
    let mut kept = kept.to_vec();
    for table in (16..header).step_by(8) {
        let place = u32::try_from(length)?.to_le_bytes();
        let empty = [place, [0; 4]].concat();
        let words = kept.get_mut(table..table + 8);
        words
            .context(".BTF.ext is cut short")?
            .copy_from_slice(&empty);
    }
    Ok(kept)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = fs::copy(from, to).map(drop);
    copied.with_context(|| format!("cannot embed {}", from.display()))
}

fn path_from(variable: &str) -> Result<PathBuf> {
    let value = env::var_os(variable).with_context(|| format!("cargo did not set {variable}"))?;
    Ok(PathBuf::from(value))
}
