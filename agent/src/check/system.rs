//! What the machine says about itself.
#![expect(clippy::disallowed_methods, reason = "edge: reads /proc and /sys")]

use std::{fs, path::Path};

use anyhow::Context as _;

use crate::capability::CapabilitySet;
use crate::{enrich::Host, failure::Failure};

/// First kernel with `BPF_MAP_TYPE_RINGBUF`, `CAP_BPF` and `CAP_PERFMON`.
const OLDEST_KERNEL: (u32, u32) = (5, 8);

/// The architecture whose registers the kernel side reads.
const SUPPORTED_ARCHITECTURE: &str = "x86_64";

/// Inode of the initial PID namespace: `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// `uname -r`.
    pub release: String,
    pub architecture: String,
    /// `/sys/kernel/btf/vmlinux` exists.
    pub has_type_information: bool,
    pub capabilities: CapabilitySet,
    /// `integrity` or `confidentiality` when the kernel is locked down.
    pub lockdown: Option<String>,
    pub in_initial_pid_namespace: bool,
}

impl System {
    pub fn read() -> anyhow::Result<Self> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("cannot read the kernel's release; is /proc mounted?")?;
        let status = fs::read_to_string("/proc/self/status").context("cannot read own status")?;
        let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Ok(Self {
            release: release.trim().to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            has_type_information: Path::new("/sys/kernel/btf/vmlinux").exists(),
            capabilities: CapabilitySet::effective(&status).unwrap_or_default(),
            lockdown: chosen_word(&lockdown)
                .filter(|mode| *mode != "none")
                .map(str::to_owned),
            in_initial_pid_namespace: namespace.as_os_str() == INITIAL_PID_NAMESPACE,
        })
    }

    /// Major and minor version; (0, 0) where the release does not begin with them.
    pub fn version(&self) -> (u32, u32) {
        let mut numbers = self
            .release
            .split(|character: char| !character.is_ascii_digit());
        let mut next = || {
            numbers
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or(0)
        };
        (next(), next())
    }

    pub fn missing_capabilities(&self) -> CapabilitySet {
        let (major, minor) = self.version();
        self.capabilities
            .missing_of(CapabilitySet::required(major, minor))
    }

    /// The first thing that stands in the way of tracing; the most fundamental comes first.
    pub fn obstacle(&self) -> Option<Failure> {
        let release = self.release.clone();
        if self.architecture != SUPPORTED_ARCHITECTURE {
            let architecture = self.architecture.clone();
            return Some(Failure::ArchitectureUnsupported { architecture });
        }
        if self.version() < OLDEST_KERNEL {
            return Some(Failure::KernelTooOld { release });
        }
        if !self.has_type_information {
            return Some(Failure::NoTypeInformation { release });
        }
        let missing = self.missing_capabilities();
        (!missing.is_empty()).then_some(Failure::NotPermitted { missing })
    }
}

/// Name and id of this host.
pub fn host() -> Host {
    let line = |path: &str| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    Host {
        name: line("/proc/sys/kernel/hostname"),
        id: line("/etc/machine-id"),
    }
}

/// The word in brackets, as `/sys` marks the chosen one: `none [integrity] confidentiality`.
fn chosen_word(text: &str) -> Option<&str> {
    text.split_once('[')?
        .1
        .split_once(']')
        .map(|(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able() -> System {
        System {
            release: "6.1.0-18-amd64".to_owned(),
            architecture: "x86_64".to_owned(),
            has_type_information: true,
            capabilities: CapabilitySet::from_mask(u64::MAX),
            lockdown: None,
            in_initial_pid_namespace: true,
        }
    }

    /// The most fundamental obstacle is named, each with exit code 3.
    #[test]
    fn obstacles() {
        assert!(able().obstacle().is_none());
        let none = CapabilitySet::default();
        let table = [
            (
                System {
                    capabilities: none,
                    ..able()
                },
                "CAP_BPF",
            ),
            (
                System {
                    capabilities: none,
                    has_type_information: false,
                    ..able()
                },
                "BTF",
            ),
            (
                System {
                    release: "5.4.0-1".into(),
                    has_type_information: false,
                    ..able()
                },
                "5.8",
            ),
            (
                System {
                    architecture: "aarch64".into(),
                    ..able()
                },
                "aarch64",
            ),
        ];
        for (system, part) in table {
            let failure = system.obstacle().expect("an obstacle");
            assert!(failure.to_string().contains(part), "{failure}");
            assert_eq!(failure.exit_code(), 3);
        }
    }

    #[test]
    fn releases() {
        let table = [
            ("6.18.44-fc", (6, 18)),
            ("5.10.0-8-amd64", (5, 10)),
            ("6.1+", (6, 1)),
            ("x", (0, 0)),
        ];
        for (release, version) in table {
            assert_eq!(
                System {
                    release: release.to_owned(),
                    ..able()
                }
                .version(),
                version
            );
        }
        assert_eq!(
            chosen_word("none [integrity] confidentiality\n"),
            Some("integrity")
        );
        assert_eq!(chosen_word(""), None);
    }

    /// This machine can be read, and its facts agree with other sources.
    #[test]
    fn this_machine() {
        let system = System::read().expect("/proc is mounted");
        assert!(system.version() > (2, 6), "{system:?}");
        assert_eq!(
            system.has_type_information,
            Path::new("/sys/kernel/btf/vmlinux").exists()
        );
        assert!(host().name.is_some());
    }
}
