//! The small root from which a guest starts: this program, its libraries, a few modules, the job.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::guest::{self, Job};
use crate::steps::capture;

/// What the shared root and kTLS need, in the order in which it is inserted. A kernel that has one
/// built in has no file of it; one that has no `tls.ko` either does not know kTLS.
const MODULES: [&str; 15] = [
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "fs/fuse/fuse.ko",
    "fs/fuse/virtiofs.ko",
    "fs/overlayfs/overlay.ko",
    "crypto/cryptd.ko",
    "crypto/crypto_simd.ko",
    "crypto/gf128mul.ko",
    "lib/crypto/gf128mul.ko",
    "arch/x86/crypto/glue_helper.ko",
    "arch/x86/crypto/aesni-intel.ko",
    "net/tls/tls.ko",
];

/// Permissions and kinds of files, `include/uapi/linux/stat.h`.
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;

/// The archive for the kernel whose modules are below `modules` (`lib/modules/VERSION/kernel`).
pub(super) fn build(modules: &Path, job: &Job) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["dev", guest::MODULES, "root"] {
        archive.add(directory, DIRECTORY, &[]);
    }
    // Where the kernel opens the first process's standard output: character device 5:1.
    archive.add_device("dev/console", 5, 1);
    let own = std::env::current_exe().context("the path of this program is not known")?;
    archive.add(guest::INIT, PROGRAM, &fs::read(&own)?);
    for library in libraries(&own)? {
        archive.add_with_parents(&library)?;
    }
    for (index, module) in MODULES.iter().enumerate() {
        if let Some(content) = read_module(&modules.join(module))? {
            archive.add(
                &format!("{}/{index:02}.ko", guest::MODULES),
                PROGRAM,
                &content,
            );
        }
    }
    archive.add(guest::JOB, PROGRAM, &job.to_bytes());
    Ok(archive.finish())
}

/// Shared libraries and loader of a program, as its own loader names them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = capture(Command::new("ldd").arg(program))?;
    let paths = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// Kernels since 6.12 have their modules compressed.
fn read_module(path: &Path) -> Result<Option<Vec<u8>>> {
    if path.exists() {
        return Ok(Some(fs::read(path)?));
    }
    let packed = path.with_extension("ko.xz");
    if !packed.exists() {
        return Ok(None);
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(&packed)
        .output()
        .context("cannot run xz")?;
    anyhow::ensure!(
        output.status.success(),
        "xz cannot unpack {}",
        packed.display()
    );
    Ok(Some(output.stdout))
}

/// A cpio archive in the "newc" format that the kernel unpacks,
/// Documentation/driver-api/early-userspace/buffer-format.rst.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<PathBuf>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, mode, (0, 0), content);
    }

    fn add_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, DEVICE, (major, minor), &[]);
    }

    /// A file of the host at its own place, links followed.
    fn add_with_parents(&mut self, path: &Path) -> Result<()> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let mut parents: Vec<_> = relative.ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents {
            if !parent.as_os_str().is_empty() && self.directories.insert(parent.to_owned()) {
                self.add(&parent.to_string_lossy(), DIRECTORY, &[]);
            }
        }
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(&relative.to_string_lossy(), PROGRAM, &content);
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }

    /// Header, name and content, the last two padded to four bytes.
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let name_bytes = name.len() as u32 + 1;
        let links = 1;
        let header: [u32; 13] = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name_bytes,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header has the fields in the format's order, and all begins at a multiple of four.
    #[test]
    fn archive_layout() {
        let mut archive = Archive::default();
        archive.add("a", PROGRAM, b"xyz");
        let bytes = archive.finish();
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], format!("{PROGRAM:08x}").as_bytes());
        assert_eq!(&bytes[54..62], b"00000003");
        assert_eq!(&bytes[94..102], b"00000002");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..115], b"xyz");
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
