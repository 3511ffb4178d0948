//! Trying less and less often while it fails.

/// Decides whether to try something that may not be worth it: after the first failure it is left out once, and each
/// further one doubles that, up to 255 times.
#[derive(Default)]
pub(super) struct BackOff {
    /// How many times to leave it out, and how many after the next failure.
    pauses: u8,
    pauses_next: u8,
}

impl BackOff {
    /// Whether to try it this time.
    pub(super) const fn is_due(&mut self) -> bool {
        let is_due = self.pauses == 0;
        self.pauses = self.pauses.saturating_sub(1);
        is_due
    }

    /// Notes how the last try went.
    pub(super) const fn has_gone(&mut self, well: bool) {
        self.pauses_next = if well {
            0
        } else {
            self.pauses_next.saturating_mul(2).saturating_add(1)
        };
        self.pauses = self.pauses_next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_pauses_and_a_success_ends_them() {
        let mut back_off = BackOff::default();
        for pauses in [1, 3, 7, 15, 31, 63, 127, 255, 255] {
            assert!(back_off.is_due());
            back_off.has_gone(false);
            for _ in 0..pauses {
                assert!(!back_off.is_due(), "{pauses}");
            }
        }
        assert!(back_off.is_due());
        back_off.has_gone(true);
        assert!(back_off.is_due());
    }
}
