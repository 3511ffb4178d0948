//! The workloads: which keys are accessed, and in which order.

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};

use crate::{ACCESSES, CAPACITY};

/// Keys of a skewed workload.
const KEYS: u32 = 500_000;

/// Accesses of a polluted workload from one scan to the next.
const SCAN_EVERY: usize = 50_000;

/// Keys of a scan: half of a cache.
const SCAN_LEN: usize = CAPACITY / 2;

/// Name and accesses of each workload.
pub(crate) fn all() -> Vec<(&'static str, Vec<u32>)> {
    vec![
        ("zipf 0.8", zipf(0.8)),
        ("zipf 0.99", zipf(0.99)),
        ("zipf 1.2", zipf(1.2)),
        ("zipf 0.99 with scans", with_scans(&zipf(0.99))),
        ("loop of 1.1 x the cache", cycle(CAPACITY / 10 * 11)),
        ("loop of 2 x the cache", cycle(CAPACITY * 2)),
    ]
}

fn zipf(exponent: f64) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(99);
    let ranks = Zipf::new(f64::from(KEYS), exponent).unwrap();
    let ranks = ranks.sample_iter(&mut random).take(ACCESSES);
    // A rank is a whole number of at most `KEYS`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    ranks.map(|rank| rank as u32).collect()
}

/// Once in a while keys that nothing else accesses are read one after another.
fn with_scans(accesses: &[u32]) -> Vec<u32> {
    let mut scanned = KEYS;
    let mut mixed = Vec::with_capacity(ACCESSES);
    for piece in accesses.chunks(SCAN_EVERY) {
        mixed.extend_from_slice(piece);
        let from = scanned;
        scanned += u32::try_from(SCAN_LEN).unwrap();
        mixed.extend(from..scanned);
    }
    mixed.truncate(ACCESSES);
    mixed
}

fn cycle(keys: usize) -> Vec<u32> {
    let keys = u32::try_from(keys).unwrap();
    (1..=keys).cycle().take(ACCESSES).collect()
}
