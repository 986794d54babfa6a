//! The clocks: the only place that reads the kernel's time for the data path. Nothing here keeps time.

/// Nanoseconds of `CLOCK_MONOTONIC_COARSE`: the clock XDP reads (`bpf_ktime_get_coarse_ns`), so that both sides agree
/// on a cookie's age. It advances with the tick (1–10 ms) and costs a third of the precise one.
pub fn coarse_clock_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC_COARSE)
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to. Both clocks exist on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    // The monotonic clocks start at boot: neither field is ever negative.
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::{coarse_clock_ns, monotonic_ns};

    #[test]
    fn the_coarse_clock_trails_the_precise_one_by_at_most_a_tick() {
        let before = coarse_clock_ns();
        let precise = monotonic_ns();
        assert!(before <= precise);
        assert!(precise - before < 50_000_000, "{} ns behind", precise - before);
        assert!(coarse_clock_ns() >= before);
    }
}
