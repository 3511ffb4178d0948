//! The random numbers of a run: SplitMix64, so that a seed means the same run on every machine.

/// A generator of random numbers.
#[derive(Clone, Debug)]
pub(super) struct Random {
    state: u64,
    is_calm: bool,
}

impl Random {
    /// The generator of a seed.
    pub(super) const fn new(seed: u64) -> Random {
        Random {
            state: seed,
            is_calm: false,
        }
    }

    /// A generator whose numbers only differ: no time depends on how many were drawn before. A number below an end is
    /// half of that, and the last eight bits of each number are the same.
    pub(super) const fn calm() -> Random {
        Random {
            state: 0,
            is_calm: true,
        }
    }

    /// The next number.
    pub(super) const fn next(&mut self) -> u64 {
        if self.is_calm {
            self.state += 0x100;
            return self.state;
        }
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is 1 at least.
    pub(super) const fn below(&mut self, end: u64) -> u64 {
        if self.is_calm {
            return end / 2;
        }
        self.next() % end
    }

    /// A number from `first` to `last`.
    pub(super) const fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// A place in something with `len` elements, which is 1 at least.
    pub(super) fn place(&mut self, len: usize) -> usize {
        let len = u64::try_from(len).expect("a length has 64 bits at most");
        usize::try_from(self.below(len)).expect("it is less than a length")
    }

    /// One of `items`.
    pub(super) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.place(items.len())]
    }

    /// Whether something happens that happens `count` times in a thousand.
    pub(super) const fn happens(&mut self, count: u64) -> bool {
        self.below(1_000) < count
    }

    /// A generator of its own for a part of the run.
    pub(super) const fn split(&mut self) -> Random {
        Random {
            state: self.next(),
            is_calm: self.is_calm,
        }
    }
}

#[test]
fn a_seed_means_the_same_numbers_everywhere() {
    let mut random = Random::new(0);
    assert_eq!(random.next(), 0xE220_A839_7B1D_CDAF);
    assert_eq!(random.next(), 0x6E78_9E6A_A1B9_65F4);
    let mut seen = [false; 5];
    for _ in 0..100 {
        let number = random.between(3, 7);
        seen[usize::try_from(number - 3).unwrap()] = true;
        assert!(random.place(3) < 3);
    }
    assert_eq!(seen, [true; 5]);
}
