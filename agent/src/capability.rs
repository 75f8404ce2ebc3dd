//! Capabilities of Linux that the agent needs. Pure.
//!
//! Numbers are those of `include/uapi/linux/capability.h`; the kernel prints a process' effective
//! set as a hexadecimal mask in the line `CapEff` of `/proc/PID/status`.

use std::fmt;

/// What the agent needs a capability for.
struct Need {
    bit: u8,
    name: &'static str,
    reason: &'static str,
    /// First kernel version (major, minor) that no longer needs it.
    until: Option<(u32, u32)>,
}

const NEEDS: [Need; 5] = [
    Need {
        bit: 39,
        name: "CAP_BPF",
        reason: "load eBPF programs and maps",
        until: None,
    },
    Need {
        bit: 38,
        name: "CAP_PERFMON",
        reason: "attach them to kernel functions",
        until: None,
    },
    Need {
        bit: 19,
        name: "CAP_SYS_PTRACE",
        reason: "read /proc of other users' processes",
        until: None,
    },
    Need {
        bit: 2,
        name: "CAP_DAC_READ_SEARCH",
        reason: "read executables of other users",
        until: None,
    },
    // Memory of maps is charged to the memory cgroup since 5.11, and to RLIMIT_MEMLOCK before.
    Need {
        bit: 24,
        name: "CAP_SYS_RESOURCE",
        reason: "raise the memlock limit",
        until: Some((5, 11)),
    },
];

/// Stands in for `CAP_BPF` and `CAP_PERFMON`, which were split from it in 5.8.
const CAP_SYS_ADMIN: u8 = 21;

/// A set of capabilities, as a mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    pub const fn from_mask(mask: u64) -> Self {
        Self(mask)
    }

    /// From the text of `/proc/PID/status`.
    pub fn effective(status: &str) -> Option<Self> {
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(mask.trim(), 16).ok().map(Self)
    }

    /// What this kernel asks for.
    pub fn required(major: u32, minor: u32) -> Self {
        let needed = NEEDS
            .iter()
            .filter(|need| need.until.is_none_or(|end| (major, minor) < end));
        Self(needed.fold(0, |mask, need| mask | 1 << need.bit))
    }

    /// What of `required` is not in this set.
    #[must_use]
    pub const fn missing_of(self, required: Self) -> Self {
        let split_from_admin = if self.0 & 1 << CAP_SYS_ADMIN == 0 {
            0
        } else {
            1 << 39 | 1 << 38
        };
        Self(required.0 & !(self.0 | split_from_admin))
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Names, in the order of the needs.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.needs().map(|(name, _)| name)
    }

    /// Name and what it is needed for.
    pub fn needs(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let mask = self.0;
        NEEDS
            .iter()
            .filter(move |need| mask & 1 << need.bit != 0)
            .map(|need| (need.name, need.reason))
    }
}

impl fmt::Display for CapabilitySet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.names().collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is missing depends on the kernel's version and on the effective set.
    #[test]
    fn missing_capabilities() {
        let all = "CapEff:\t000001ffffffffff\n";
        let none = "Name:\tx\nCapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n";
        let admin = "CapEff:\t0000000000200000\n";
        let table = [
            (all, (6, 1), ""),
            (all, (5, 8), ""),
            (
                none,
                (6, 1),
                "CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH",
            ),
            (
                none,
                (5, 10),
                "CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_SYS_RESOURCE",
            ),
            (admin, (6, 1), "CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH"),
        ];
        for (status, (major, minor), expected) in table {
            let effective = CapabilitySet::effective(status).expect("the table has CapEff");
            let missing = effective.missing_of(CapabilitySet::required(major, minor));
            assert_eq!(
                missing.to_string(),
                expected,
                "{status:?} on {major}.{minor}"
            );
        }
        assert_eq!(CapabilitySet::effective("Name:\tx\n"), None);
    }
}
