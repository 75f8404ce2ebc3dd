//! Which kernels are booted, and getting them: Debian's cloud kernels, fetched and checked by apt.
//!
//! They stay unpacked in the user's cache directory and are fetched again only when asked for.
//! A metapackage says which version is current, because older ones vanish from the archive.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    steps::{capture, remove_directory, say},
    toolchain,
};

/// A row of the matrix.
pub(super) struct Kernel {
    /// How a user names it.
    pub(super) name: &'static str,
    /// Debian's release, and which archive has it.
    suite: &'static str,
    archive: Archive,
    /// Part of `--quick`: the oldest and the newest.
    pub(super) quick: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Archive {
    Main,
    Security,
}

/// Oldest first.
pub(super) const KERNELS: [Kernel; 4] = [
    Kernel {
        name: "5.10",
        suite: "bullseye-security",
        archive: Archive::Security,
        quick: true,
    },
    Kernel {
        name: "6.1",
        suite: "bookworm",
        archive: Archive::Main,
        quick: false,
    },
    Kernel {
        name: "6.12",
        suite: "bookworm-backports",
        archive: Archive::Main,
        quick: false,
    },
    Kernel {
        name: "newest",
        suite: "sid",
        archive: Archive::Main,
        quick: true,
    },
];

/// Depends on the current kernel of its suite.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// Debian's keys, of the package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel ready to boot.
pub(super) struct Image {
    pub(super) name: &'static str,
    /// As `uname -r` will say.
    pub(super) release: String,
    pub(super) kernel: PathBuf,
    /// `.../lib/modules/VERSION/kernel`.
    pub(super) modules: PathBuf,
}

/// Whether a kernel that is there already may be outdated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    Cached,
    Current,
}

/// Fetches what is missing.
pub(super) fn images(kernels: &[&Kernel], freshness: Freshness) -> Result<Vec<Image>> {
    let cache = toolchain::cache_directory().context("neither XDG_CACHE_HOME nor HOME is set")?;
    let cache = cache.join("kernels");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock().context("cannot lock the cache directory")?;
    let mut apt = None;
    kernels
        .iter()
        .map(|kernel| {
            let place = cache.join(kernel.name);
            if freshness == Freshness::Cached
                && let Ok(image) = Image::find(kernel.name, &place)
            {
                return Ok(image);
            }
            let apt = match &mut apt {
                Some(apt) => apt,
                none => none.insert(Apt::update(&cache.join("apt"))?),
            };
            fetch(apt, kernel, &place)?;
            Image::find(kernel.name, &place)
        })
        .collect()
}

impl Image {
    /// In an unpacked package: since 7.x all of it lies under `usr/lib/modules/VERSION`.
    fn find(name: &'static str, tree: &Path) -> Result<Self> {
        let modules = ["usr/lib/modules", "lib/modules"].map(|place| tree.join(place));
        let release = modules
            .iter()
            .find_map(|place| Some(fs::read_dir(place).ok()?.next()?.ok()?.path()));
        let directory = release.with_context(|| format!("no modules in {}", tree.display()))?;
        let release = directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let kernel = [
            directory.join("vmlinuz"),
            tree.join(format!("boot/vmlinuz-{release}")),
        ]
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("no kernel in {}", tree.display()))?;
        Ok(Self {
            name,
            release,
            kernel,
            modules: directory.join("kernel"),
        })
    }
}

fn fetch(apt: &Apt, kernel: &Kernel, place: &Path) -> Result<()> {
    let packages = apt.packages(kernel)?;
    say("vm", &format!("fetches {}", packages.join(" ")));
    let scratch = place.with_extension("unfinished");
    remove_directory(&scratch)?;
    let (archives, tree) = (scratch.join("archives"), scratch.join("tree"));
    fs::create_dir_all(&archives).and_then(|()| fs::create_dir_all(&tree))?;
    capture(
        apt.command("apt-get")
            .arg("download")
            .args(&packages)
            .current_dir(&archives),
    )?;
    for archive in fs::read_dir(&archives)? {
        capture(
            Command::new("dpkg")
                .arg("-x")
                .arg(archive?.path())
                .arg(&tree),
        )?;
    }
    remove_directory(place)?;
    fs::rename(&tree, place).with_context(|| format!("cannot fill {}", place.display()))?;
    remove_directory(&scratch)
}

/// apt with own lists, so that the machine's configuration stays as it is.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn update(state: &Path) -> Result<Self> {
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(state.join(directory))?;
        }
        let sources: Vec<String> = KERNELS
            .iter()
            .map(|kernel| {
                let mirror = mirror(kernel.archive)?;
                Ok(format!(
                    "deb [arch=amd64 signed-by={KEYRING}] {mirror} {} main\n",
                    kernel.suite
                ))
            })
            .collect::<Result<_>>()?;
        let list = state.join("sources.list");
        fs::write(&list, sources.concat())?;
        let option = |key: &str, path: &Path| format!("-o{key}={}", path.display());
        let apt = Self {
            options: vec![
                option("Dir::Etc::SourceList", &list),
                option("Dir::Etc::SourceParts", Path::new("-")),
                option("Dir::State::Lists", &state.join("lists")),
                option("Dir::Cache", &state.join("cache")),
                "-oDebug::NoLocking=1".to_owned(),
                "-oAcquire::Languages=none".to_owned(),
            ],
        };
        say("vm", "fetches the lists of Debian's kernels");
        capture(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").arg("-q").args(&self.options);
        command
    }

    /// What has the kernel of a suite in it, as apt wants it named.
    fn packages(&self, kernel: &Kernel) -> Result<Vec<String>> {
        let versions = capture(self.command("apt-cache").args(["madison", METAPACKAGE]))?;
        let version = versions
            .lines()
            .find_map(|line| {
                let mut columns = line.split('|').map(str::trim);
                let (_, version, origin) = (columns.next()?, columns.next()?, columns.next()?);
                origin
                    .contains(&format!(" {}/", kernel.suite))
                    .then(|| version.to_owned())
            })
            .with_context(|| format!("{} has no {METAPACKAGE}", kernel.suite))?;
        let image = self.dependencies(&format!("{METAPACKAGE}={version}"), &["linux-image-"])?;
        let Some(image) = image.into_iter().next() else {
            bail!("{METAPACKAGE} {version} names no kernel");
        };
        // Since 7.x the image is a shell around these.
        let parts = self.dependencies(&image, &["linux-binary-", "linux-modules-"])?;
        Ok(if parts.is_empty() { vec![image] } else { parts })
    }

    /// Dependencies of a package whose names begin with one of `prefixes`.
    fn dependencies(&self, package: &str, prefixes: &[&str]) -> Result<Vec<String>> {
        let shown = capture(self.command("apt-cache").args(["show", package]))?;
        let depends = shown
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "));
        let names = depends.unwrap_or_default().split([',', '|']);
        Ok(names
            .filter_map(|dependency| dependency.split_whitespace().next())
            .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
            .map(str::to_owned)
            .collect())
    }
}

/// Where the machine's own apt gets Debian from.
fn mirror(archive: Archive) -> Result<String> {
    let listed = capture(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))
        .context("kernels come from Debian's archive by apt")?;
    let mirror = listed
        .lines()
        .map(|line| line.trim_end_matches('/'))
        .find(|line| match archive {
            Archive::Main => line.ends_with("/debian"),
            Archive::Security => line.ends_with("/debian-security"),
        });
    mirror
        .map(str::to_owned)
        .context("this machine's apt knows no mirror of Debian")
}
