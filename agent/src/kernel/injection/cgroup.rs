//! EDGE: where the hierarchy of control groups (version 2) is mounted.
#![expect(
    clippy::disallowed_methods,
    reason = "edge: reads the mount table and opens a directory"
)]

use std::{
    fs::{self, File},
    path::PathBuf,
};

use anyhow::{Context as _, Result};

const MOUNTS: &str = "/proc/self/mounts";

/// The root of the hierarchy: programs attached there see every connection of the host.
pub(super) fn root() -> Result<File> {
    let mounts = fs::read_to_string(MOUNTS).with_context(|| format!("cannot read {MOUNTS}"))?;
    let path = mount_point(&mounts)
        .context("no cgroup2 file system is mounted; mount one, as at /sys/fs/cgroup")?;
    File::open(&path).with_context(|| format!("cannot open {}", path.display()))
}

/// The first mount of type `cgroup2`; fields are separated by spaces, proc(5).
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .find(|(_, kind)| *kind == "cgroup2")
        // Spaces in paths are written as octal escapes.
        .map(|(path, _)| PathBuf::from(path.replace("\\040", " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both hierarchies are mounted on many hosts; only version 2 counts.
    #[test]
    fn the_second_version_is_found() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
            cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw,relatime 0 0\n";
        assert_eq!(
            mount_point(mounts),
            Some(PathBuf::from("/sys/fs/cgroup/uni fied"))
        );
        assert_eq!(mount_point("tmpfs / tmpfs rw 0 0\n"), None);
    }
}
