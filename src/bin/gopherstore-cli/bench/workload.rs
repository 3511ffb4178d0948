//! The workload: operations, keys and values. All follow from the seed.

use std::{fmt, ops::Range, str::FromStr};

use gopherstore::wire::KEY_LEN_MAX;
use rand::{Rng, RngExt, SeedableRng, rngs::ChaCha8Rng};
use rand_distr::{Distribution, Zipf};

/// Exponent of the Zipf distribution: the frequency of the key of rank r is proportional to 1/r^0.99, as in YCSB.
const ZIPF_EXPONENT: f64 = 0.99;
/// Random bytes in addition to the longest value, so that values of equal length differ.
const POOL_SPARE_LEN: usize = 64 << 10;
/// Digits of a key's number, so that all keys have the same length.
const DIGITS: usize = 10;

/// Lengths of values in bytes, uniformly distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) min: u32,
    pub(super) max: u32,
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        let number = |text: &str| {
            text.parse::<u32>()
                .map_err(|_| "write bytes, as in 64, or a range of them, as in 16..1024".to_owned())
        };
        let (min, max) = match text.split_once("..") {
            Some((min, max)) => (number(min)?, number(max)?),
            None => (number(text)?, number(text)?),
        };
        if min > max {
            return Err("the range ends before it begins; write it as in 16..1024".to_owned());
        }
        Ok(Sizes { min, max })
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{}..{}", self.min, self.max)
        }
    }
}

/// Prefix of a run's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix(String);

impl Prefix {
    /// The key with this number.
    pub(super) fn key(&self, number: u32, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(self.0.as_bytes());
        key.extend_from_slice(format!("{number:0DIGITS$}").as_bytes());
    }

    /// The key that marks a run.
    pub(super) fn marker(&self) -> String {
        format!("{}running", self.0)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Prefix, String> {
        if text.is_empty() {
            return Err("every key begins with nothing; write a prefix such as bench:".to_owned());
        }
        if text.len() + DIGITS > KEY_LEN_MAX {
            return Err(format!(
                "{} bytes leave no room for a number in a key of {KEY_LEN_MAX}; write a shorter one",
                text.len()
            ));
        }
        Ok(Prefix(text.to_owned()))
    }
}

/// Distribution of a run's operations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workload {
    /// Number of keys, at least 1. Keys are numbered from 0.
    pub(super) keys: u32,
    pub(super) sizes: Sizes,
    /// Average percentage of GETs; the others are SETs.
    pub(super) get_percent: u8,
    pub(super) is_zipf: bool,
    pub(super) seed: u64,
}

/// Each use of the seed has its own random sequence, so that none depends on the length of another.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    /// The bytes from which values are taken.
    Pool,
    /// The values of keys before the run.
    Load,
    WarmUp {
        connection: u64,
    },
    Measured {
        connection: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Get,
    Set,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) kind: Kind,
    pub(super) key: u32,
    /// Place of a SET's value in the pool; empty for a GET.
    pub(super) value: Range<usize>,
}

/// The infinite sequence of operations of one connection.
#[derive(Debug)]
pub(super) struct Operations {
    workload: Workload,
    generator: ChaCha8Rng,
    zipf: Option<Zipf<f64>>,
}

impl Workload {
    pub(super) fn operations(&self, stream: Stream) -> Operations {
        let exponent = ZIPF_EXPONENT;
        // It cannot fail with at least one key and a positive exponent.
        let zipf = Zipf::new(f64::from(self.keys), exponent).ok();
        Operations {
            workload: *self,
            generator: self.generator(stream),
            zipf: zipf.filter(|_| self.is_zipf),
        }
    }

    /// The bytes from which all values are taken.
    pub(super) fn pool(&self) -> Vec<u8> {
        let mut pool = vec![0; self.sizes.max as usize + POOL_SPARE_LEN];
        self.generator(Stream::Pool).fill_bytes(&mut pool);
        pool
    }

    fn generator(&self, stream: Stream) -> ChaCha8Rng {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(match stream {
            Stream::Pool => 0,
            Stream::Load => 1,
            Stream::WarmUp { connection } => 2 + 2 * connection,
            Stream::Measured { connection } => 3 + 2 * connection,
        });
        generator
    }
}

impl Operations {
    pub(super) fn draw(&mut self) -> Operation {
        let kind = if self.generator.random_range(0..100) < self.workload.get_percent {
            Kind::Get
        } else {
            Kind::Set
        };
        let key = self.key();
        let value = match kind {
            Kind::Get => 0..0,
            Kind::Set => self.value(),
        };
        Operation { kind, key, value }
    }

    /// Place of the next value in the pool.
    pub(super) fn value(&mut self) -> Range<usize> {
        let Sizes { min, max } = self.workload.sizes;
        let len = self.generator.random_range(min..=max) as usize;
        let start = self.generator.random_range(0..POOL_SPARE_LEN);
        start..start + len
    }

    fn key(&mut self) -> u32 {
        let last = self.workload.keys - 1;
        match &self.zipf {
            None => self.generator.random_range(0..=last),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rank is a whole number from 1 to the number of keys"
            )]
            Some(zipf) => (zipf.sample(&mut self.generator) as u32 - 1).min(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKLOAD: Workload = Workload {
        keys: 1_000,
        sizes: Sizes { min: 16, max: 64 },
        get_percent: 90,
        is_zipf: false,
        seed: 42,
    };

    fn draw(workload: &Workload, stream: Stream, count: usize) -> Vec<Operation> {
        let mut operations = workload.operations(stream);
        (0..count).map(|_| operations.draw()).collect()
    }

    const STREAM: Stream = Stream::Measured { connection: 0 };

    #[test]
    fn the_same_seed_gives_the_same_operations_and_another_one_others() {
        for is_zipf in [false, true] {
            let workload = Workload {
                is_zipf,
                ..WORKLOAD
            };
            let first = draw(&workload, STREAM, 1_000);
            assert_eq!(first, draw(&workload, STREAM, 1_000));
            assert_ne!(
                first,
                draw(&workload, Stream::Measured { connection: 1 }, 1_000)
            );
            assert_ne!(
                first,
                draw(&workload, Stream::WarmUp { connection: 0 }, 1_000)
            );
            let other = Workload {
                seed: 43,
                ..workload
            };
            assert_ne!(first, draw(&other, STREAM, 1_000));
            assert_ne!(workload.pool(), other.pool());
        }
    }

    #[test]
    fn a_seed_means_the_same_sequence_in_every_version() {
        let keys = |is_zipf| -> Vec<u32> {
            let workload = Workload {
                is_zipf,
                ..WORKLOAD
            };
            let operations = draw(&workload, STREAM, 6);
            operations.iter().map(|operation| operation.key).collect()
        };
        assert_eq!(keys(false), [361, 592, 730, 499, 200, 31]);
        assert_eq!(keys(true), [121, 20, 0, 186, 0, 32]);
    }

    #[test]
    fn operations_are_mixed_and_values_long_as_was_asked_for() {
        let operations = draw(&WORKLOAD, STREAM, 100_000);
        let gets = operations
            .iter()
            .filter(|operation| operation.kind == Kind::Get);
        let gets = gets.count();
        // The standard deviation is 95.
        assert!((89_500..=90_500).contains(&gets), "{gets}");
        let pool_len = WORKLOAD.pool().len();
        let mut lens = [0_u32; 65];
        for operation in operations {
            match operation.kind {
                Kind::Get => assert_eq!(operation.value.len(), 0),
                Kind::Set => lens[operation.value.len()] += 1,
            }
            assert!(operation.value.end <= pool_len);
        }
        assert!(lens[..16].iter().all(|&count| count == 0));
        // About 204 of each, with a standard deviation of 14.
        for count in &lens[16..] {
            assert!((120..=290).contains(count), "{count}");
        }
        for (percent, kind) in [(0, Kind::Set), (100, Kind::Get)] {
            let workload = Workload {
                get_percent: percent,
                ..WORKLOAD
            };
            let operations = draw(&workload, STREAM, 10_000);
            assert!(operations.iter().all(|operation| operation.kind == kind));
        }
    }

    fn counts(is_zipf: bool, draws: usize) -> Vec<f64> {
        let workload = Workload {
            is_zipf,
            ..WORKLOAD
        };
        let mut counts = vec![0.0; 1_000];
        for operation in draw(&workload, STREAM, draws) {
            counts[operation.key as usize] += 1.0;
        }
        counts
    }

    /// The chi-squared statistic: for 1,000 keys about 999, and above 1,150 about once in a thousand times. The seed is
    /// fixed, so the result is always the same.
    fn chi_squared(counts: &[f64], expected: impl Fn(usize) -> f64) -> f64 {
        let deviations = counts.iter().enumerate();
        deviations
            .map(|(key, count)| (count - expected(key)).powi(2) / expected(key))
            .sum()
    }

    #[test]
    fn uniform_keys_are_all_as_likely() {
        let counts = counts(false, 200_000);
        let deviation = chi_squared(&counts, |_| 200.0);
        assert!((850.0..1_150.0).contains(&deviation), "{deviation}");
    }

    #[test]
    fn zipf_keys_are_as_likely_as_their_rank_says() {
        let weight = |key: usize| (key as f64 + 1.0).powf(-ZIPF_EXPONENT);
        let sum: f64 = (0..1_000).map(weight).sum();
        let counts = counts(true, 200_000);
        let deviation = chi_squared(&counts, |key| 200_000.0 * weight(key) / sum);
        assert!((850.0..1_150.0).contains(&deviation), "{deviation}");
        let top: f64 = counts[..100].iter().sum();
        assert!(
            top > 0.68 * 200_000.0,
            "a tenth of the keys takes two thirds: {top}"
        );
    }

    #[test]
    fn one_key_is_enough() {
        for is_zipf in [false, true] {
            let workload = Workload {
                keys: 1,
                is_zipf,
                ..WORKLOAD
            };
            let operations = draw(&workload, STREAM, 100);
            assert!(operations.iter().all(|operation| operation.key == 0));
        }
    }

    #[test]
    fn sizes_are_a_number_or_a_range() {
        let sizes = |text: &str| text.parse::<Sizes>();
        assert_eq!(sizes("64"), Ok(Sizes { min: 64, max: 64 }));
        assert_eq!(sizes("16..1024"), Ok(Sizes { min: 16, max: 1024 }));
        assert_eq!(sizes("0..0"), Ok(Sizes { min: 0, max: 0 }));
        for text in ["64", "16..1024"] {
            assert_eq!(
                sizes(text).map(|sizes| sizes.to_string()),
                Ok(text.to_owned())
            );
        }
        for bad in [
            "",
            "..",
            "1..",
            "..1",
            "2..1",
            "-1",
            "1k",
            "1...2",
            "4294967296",
        ] {
            assert!(sizes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_equally_long_and_none_is_the_marker() {
        let prefix: Result<Prefix, String> = "bench:".parse();
        let Ok(prefix) = prefix else {
            unreachable!("{prefix:?}")
        };
        let mut key = Vec::new();
        prefix.key(0, &mut key);
        assert_eq!(key, b"bench:0000000000");
        prefix.key(u32::MAX, &mut key);
        assert_eq!(key, b"bench:4294967295");
        assert_eq!(prefix.marker(), "bench:running");
        assert!("".parse::<Prefix>().is_err());
        assert!("x".repeat(65_526).parse::<Prefix>().is_err());
        assert!("x".repeat(65_525).parse::<Prefix>().is_ok());
    }
}
