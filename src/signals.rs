//! Signals that a process was started with: `nohup` and shells set some to be ignored.

use std::fs;

/// The line of `/proc/PID/status` that holds the ignored signals, as hexadecimal digits.
const IGNORED: &str = "SigIgn:";

/// Whether this process ignores `signal`. Asked before a handler is registered, it tells how the process was started:
/// under `nohup`, SIGHUP is ignored, and a program that handles SIGHUP leaves that as it is.
///
/// ```
/// // SIGKILL cannot be ignored.
/// assert!(!gopherstore::signals::is_ignored(9));
/// ```
///
/// # Source
///
/// proc_pid_status(5), `SigIgn`.
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_ignored_in(&status, signal)
}

fn is_ignored_in(status: &str, signal: i32) -> bool {
    let digits = status.lines().find_map(|line| line.strip_prefix(IGNORED));
    let mask = digits.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    // Bit 0 is signal 1.
    let bit = u32::try_from(signal).ok().and_then(|n| n.checked_sub(1));
    let bit = bit.and_then(|bit| 1_u64.checked_shl(bit));
    mask.zip(bit).is_some_and(|(mask, bit)| mask & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_counts_from_signal_1() {
        let status =
            "Name:\tsleep\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        let ignored: Vec<i32> = (-1..70).filter(|&n| is_ignored_in(status, n)).collect();
        assert_eq!(ignored, [1, 13]);
        let all = "SigIgn:\tffffffffffffffff\n";
        assert!(is_ignored_in(all, 64) && !is_ignored_in(all, 65) && !is_ignored_in(all, 0));
    }

    #[test]
    fn a_system_that_does_not_tell_ignores_nothing() {
        for status in ["", "SigIgn:\n", "SigIgn:\tx\n", "SigBlk:\tffff\n"] {
            assert!(!is_ignored_in(status, 1), "{status:?}");
        }
    }
}
