//! Runs many seeds.

use std::env;
use std::time::{Duration, Instant};

use super::disk::{DATA_SETS_REPLACED, LAST_SNAPSHOTS, RECOVERIES, SNAPSHOTS};
use super::process::{EVICTED, EXPIRED, MET_EXPIRED};
use super::trace::Mode;
use super::world::{Failure, Summary, run, run_with_disks};

/// Time for the seeds of one test.
const BUDGET: Duration = Duration::from_secs(50);

/// The same with disks.
const BUDGET_WITH_DISKS: Duration = Duration::from_secs(10);

/// Seeds that are run however long it takes.
const SEEDS_MIN: u64 = 50;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// Seeds that failed once, by a fault that is mended.
const RECORDED: [u64; 1] = [
    // A leader whose data set had become empty stopped while its followers lacked the last removals.
    15_667,
];

/// The same with disks.
const RECORDED_WITH_DISKS: [u64; 3] = [
    // A node that had just been recovered took a full copy before its log writer began, and then a snapshot of nothing
    // took the place of the data set on the disk.
    51, // What the writer of a data set had synced counted for the one that replaced it.
    296,
    // A follower whose disk was full became the leader, and showed what only the disk of the leader before it had.
    462,
];

/// Failures after which no more seeds are run.
const FAILURES_MAX: usize = 10;

/// Runs a seed.
type Run = fn(u64, Mode) -> Result<Summary, Failure>;

/// Runs a seed again, with its trace, and fails.
fn report(run: Run, test: &str, seed: u64, failure: &Failure) -> ! {
    let again = run(seed, Mode::Kept);
    let (what, trace) = match &again {
        Ok(_) => ("not found again: the run does not follow from its seed", ""),
        Err(again) => (again.what.as_str(), again.trace.as_str()),
    };
    panic!(
        "seed {seed}: {}\n{trace}\nseed {seed} again: {what}\n\
         GOPHERSTORE_SEED={seed} cargo test --lib {test} prints all of it",
        failure.what
    );
}

/// Runs the recorded seeds and those from 1 on: for `budget`, or as many as are wanted.
fn run_seeds(run: Run, test: &str, recorded: &[u64], budget: Duration) -> Option<Summary> {
    if let Some(seed) = number("GOPHERSTORE_SEED") {
        let result = run(seed, Mode::Printed);
        println!("{result:?}");
        assert!(result.is_ok(), "seed {seed} fails");
        return None;
    }
    let (begin, count) = (Instant::now(), number("GOPHERSTORE_SEEDS"));
    let mut sum = Summary::default();
    let mut failures = Vec::new();
    for seed in recorded {
        if let Err(failure) = run(*seed, Mode::Off) {
            report(run, test, *seed, &failure);
        }
    }
    let mut seeds = number("GOPHERSTORE_FIRST_SEED").map_or(0, |first| first - 1);
    let last = seeds + count.unwrap_or(SEEDS_MIN);
    while seeds < last || (count.is_none() && begin.elapsed() < budget) {
        seeds += 1;
        match run(seeds, Mode::Off) {
            Ok(summary) => sum.add(&summary),
            Err(failure) => {
                println!("seed {seeds}: {}", failure.what);
                failures.push((seeds, failure));
            }
        }
        if failures.len() == FAILURES_MAX {
            break;
        }
    }
    if let Some((seed, failure)) = failures.first() {
        report(run, test, *seed, failure);
    }
    println!(
        "{seeds} seeds in {} ms: {sum:#?}",
        begin.elapsed().as_millis()
    );
    Some(sum)
}

#[test]
fn simulated_clusters_keep_what_they_acknowledged_and_agree_in_the_end() {
    let Some(sum) = run_seeds(run, "simulated_clusters", &RECORDED, BUDGET) else {
        return;
    };
    for met in MET_EXPIRED.into_iter().chain([EXPIRED, EVICTED]) {
        assert!(sum.counts.contains_key(met), "no run has {met}");
    }
}

#[test]
fn clusters_with_disks_keep_what_their_disks_had_and_agree_in_the_end() {
    let (test, recorded) = (
        "clusters_with_disks",
        [&RECORDED[..], &RECORDED_WITH_DISKS].concat(),
    );
    let Some(sum) = run_seeds(run_with_disks, test, &recorded, BUDGET_WITH_DISKS) else {
        return;
    };
    for met in [RECOVERIES, SNAPSHOTS, LAST_SNAPSHOTS, DATA_SETS_REPLACED] {
        assert!(sum.counts.contains_key(met), "no run has {met}");
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in 1..4 {
        for run in [run, run_with_disks] {
            let sums = [(); 2].map(|()| run(seed, Mode::Kept).unwrap().sum);
            assert_eq!(sums[0], sums[1], "seed {seed}");
        }
    }
}
