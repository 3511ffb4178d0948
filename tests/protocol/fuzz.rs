//! A short run of the fuzzing that `scripts/fuzz.sh` does at length: seeds and dictionary, mutated at random.
//!
//! `GOPHERSTORE_SEED=N` runs again what a failure names; `GOPHERSTORE_FUZZ_SECONDS=N` runs for that long.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

#[path = "../../fuzz/checks.rs"]
mod checks;

/// How many mutated inputs a run tries when no time is set: about a second without optimization.
const ITERATIONS: u64 = 12_000;

/// Longest input in bytes, so that one round stays fast.
const INPUT_LEN_MAX: usize = 4 << 10;

#[test]
fn every_seed_holds_and_so_does_every_prefix_of_it() {
    for seed in seeds() {
        for len in 0..=seed.len() {
            checked(&seed[..len], "a prefix of a seed");
        }
    }
}

#[test]
fn every_first_byte_holds_with_lengths_small_and_large() {
    for byte in 0..=u8::MAX {
        for other in [1, 0xFF] {
            // Nowhere, in one byte of the lengths, and in all of them.
            for ones in [0, 1, 2, 4, 8, 16, 32, 63] {
                let mut input = vec![byte];
                input.extend((0..6).map(|bit| if ones >> bit & 1 == 1 { other } else { 0 }));
                checked(&input, "a header");
            }
        }
    }
}

#[test]
fn mutated_seeds_hold() {
    let seed = number("GOPHERSTORE_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let time = number("GOPHERSTORE_FUZZ_SECONDS").map(Duration::from_secs);
    let replay = format!("GOPHERSTORE_SEED={seed} cargo test --test protocol mutated_seeds_hold");
    println!("seed {seed}; to run it again: {replay}");

    let (seeds, dictionary) = (seeds(), dictionary());
    let mut random = Random(seed);
    let started = Instant::now();
    let mut rounds = 0;
    while time.map_or(rounds < ITERATIONS, |time| started.elapsed() < time) {
        let input = mutated(&mut random, &seeds, &dictionary);
        checked(&input, &format!("round {rounds} of {replay}"));
        rounds += 1;
    }
    println!("{rounds} inputs in {:?}", started.elapsed());
}

/// Runs the checks, and where one panics prints the input, in the form of a seed.
fn checked(input: &[u8], what: &str) {
    struct OnPanic<'a>(&'a [u8], &'a str);

    impl Drop for OnPanic<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
                eprintln!("does not hold for {hex} ({})", self.1);
                eprintln!("once it is mended, keep that line in fuzz/seeds/frames.hex");
            }
        }
    }

    let _on_panic = OnPanic(input, what);
    checks::check(input);
}

/// One or more seeds in a row, with some changes.
fn mutated(random: &mut Random, seeds: &[Vec<u8>], dictionary: &[Vec<u8>]) -> Vec<u8> {
    let mut input = Vec::new();
    for _ in 0..=random.below(3) {
        input.extend_from_slice(random.pick(seeds));
    }
    for _ in 0..random.below(6) {
        let at = random.below(input.len() + 1);
        let len = random.below(input.len() - at + 1).min(random.below(32));
        let range = at..at + len;
        match random.below(8) {
            0 => drop(input.drain(range)),
            1 => input.truncate(at),
            2 => input.extend_from_within(range),
            3 => {
                let token = random.pick(dictionary).clone();
                input.splice(at..at, token);
            }
            4 => {
                let token = random.pick(dictionary);
                let len = token.len().min(input.len() - at);
                input[at..at + len].copy_from_slice(&token[..len]);
            }
            5 => input[range]
                .iter_mut()
                .for_each(|byte| *byte = random.byte()),
            6 => {
                let run = vec![random.byte(); random.below(300)];
                input.splice(at..at, run);
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    input.truncate(INPUT_LEN_MAX);
    input
}

/// SplitMix64: small, and the same everywhere, so that a seed says everything.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn pick<'a>(&mut self, from: &'a [Vec<u8>]) -> &'a Vec<u8> {
        &from[self.below(from.len())]
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text:?} is not a whole number")),
    )
}

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The lines of `fuzz/seeds/frames.hex`: hexadecimal digits, two blanks or more, a meaning.
fn seeds() -> Vec<Vec<u8>> {
    let text = fs::read_to_string(fuzz_folder().join("seeds/frames.hex")).unwrap();
    let seeds: Vec<_> = lines(&text)
        .map(|line| {
            let digits: String = line
                .split("  ")
                .next()
                .unwrap()
                .split_whitespace()
                .collect();
            assert!(digits.len().is_multiple_of(2), "half a byte: {line}");
            (0..digits.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect(line))
                .collect()
        })
        .collect();
    assert!(seeds.len() > 20, "seeds are missing: {seeds:?}");
    seeds
}

/// The tokens of `fuzz/gbp.dict`, which is in libFuzzer's form: `name="bytes"` with `\\`, `\"` and `\xAB`.
fn dictionary() -> Vec<Vec<u8>> {
    let text = fs::read_to_string(fuzz_folder().join("gbp.dict")).unwrap();
    let tokens: Vec<_> = lines(&text).map(|line| token(line).expect(line)).collect();
    assert!(tokens.len() > 10, "tokens are missing: {tokens:?}");
    tokens
}

fn token(line: &str) -> Option<Vec<u8>> {
    let (_, quoted) = line.split_once('=')?;
    let mut rest = quoted.strip_prefix('"')?.strip_suffix('"')?;
    let mut bytes = Vec::new();
    while let Some(char) = rest.chars().next() {
        let mut len = 1;
        if char == '\\' {
            len = if rest.as_bytes().get(1) == Some(&b'x') {
                4
            } else {
                2
            };
        }
        bytes.push(match len {
            4 => u8::from_str_radix(rest.get(2..4)?, 16).ok()?,
            len => *rest.as_bytes().get(len - 1)?,
        });
        rest = rest.get(len..)?;
    }
    Some(bytes)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}
