//! Kernel time to wall time. Pure: the edge samples the clocks.
//!
//! Records carry `CLOCK_BOOTTIME`, which neither jumps nor stops in suspend; spans carry Unix
//! time. The offset between the two is sampled now and then, so that a wall clock that was set or
//! slewed shows up in later spans only.

/// Offset from `CLOCK_BOOTTIME` to Unix time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallClock {
    offset_ns: i64,
}

impl WallClock {
    /// From one look at both clocks, in nanoseconds.
    pub const fn sampled(boottime_ns: u64, unix_ns: u64) -> Self {
        Self {
            offset_ns: unix_ns.wrapping_sub(boottime_ns) as i64,
        }
    }

    /// Unix time in nanoseconds.
    pub const fn unix_ns(self, boottime_ns: u64) -> u64 {
        boottime_ns.wrapping_add(self.offset_ns as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_maps_both_earlier_and_later_times() {
        let clock = WallClock::sampled(5_000, 1_700_000_000_000_000_000);
        assert_eq!(clock.unix_ns(5_000), 1_700_000_000_000_000_000);
        assert_eq!(clock.unix_ns(4_000), 1_699_999_999_999_999_000);
    }

    #[test]
    fn a_wall_clock_before_boot_time_is_not_an_overflow() {
        assert_eq!(WallClock::sampled(1_000, 10).unix_ns(1_005), 15);
    }
}
