//! Faults that are planted in the shipped code. A run finds each of them.
//!
//! A change of the simulator or of the shipped code makes other runs of the seeds. Then
//! `GOPHERSTORE_PLANTED=1 cargo test --lib simulation::planted -- --nocapture` says which seeds find the faults.

use super::trace::Mode;
use super::world::{run, run_with_disks};
use crate::planted::{Fault, plant};

/// Seeds within which a search finds each fault.
const SEEDS_MAX: u64 = 2_000;

/// Each fault, a seed that finds it, and a part of what that says.
const FOUND: [(Fault, u64, &str); 16] = [
    (
        Fault::SkippedOnResume,
        4,
        "diverged: the leader has sent everything up to index",
    ),
    (Fault::AppliedTwice, 1, "never was"),
    (
        Fault::TailOfSnapshot,
        51,
        "diverged: the copy is not what was sent",
    ),
    (Fault::DigestNotCompared, 209, "the digest at"),
    (Fault::EpochReused, 5, "which opened that epoch"),
    (Fault::RefusingEmptied, 1, "and nobody else has requests"),
    (Fault::WatermarkSurvives, 16, "is answered by OK, and"),
    (Fault::RecordTorn, 1, "diverged: the digest at index"),
    (
        Fault::StopDoesNotWait,
        1_139,
        "said that another one held it",
    ),
    (Fault::OldAckCounts, 1_391, "is taken to have"),
    (Fault::HiddenIsPresent, 2, "is answered by"),
    (Fault::FollowerExpires, 1, "diverged"),
    (Fault::ClockGoesBack, 1, "its clock says"),
    (Fault::ClockNotPulled, 1, "its clock says"),
    (Fault::DeadlineNotInDigest, 1, "the digest at"),
    (Fault::TokenOfRun, 2, "is answered by"),
];

/// The same of faults that runs with disks find.
const FOUND_WITH_DISKS: [(Fault, u64, &str); 6] = [
    (Fault::AcknowledgedBeforeSync, 6, "is recovered"),
    (Fault::SyncErrorIgnored, 27, "is recovered"),
    (Fault::DirectoryNotSynced, 1, "is recovered"),
    (Fault::SnapshotNotWhole, 1, "cannot recover"),
    (Fault::LogRemovedBeforeSnapshot, 21, "cannot recover"),
    (Fault::CopyShownAtOnce, 87, "it answers about"),
];

/// The violation that a run with a fault finds.
fn violation(fault: Fault, seed: u64) -> Option<String> {
    let has_disks = FOUND_WITH_DISKS.iter().any(|(found, ..)| *found == fault);
    plant(Some(fault));
    let result = if has_disks {
        run_with_disks(seed, Mode::Off)
    } else {
        run(seed, Mode::Off)
    };
    plant(None);
    result.err().map(|failure| failure.what)
}

#[test]
fn each_planted_fault_is_found() {
    for (fault, seed, expected) in FOUND.into_iter().chain(FOUND_WITH_DISKS) {
        let what = violation(fault, seed);
        let is_found = what.as_deref().is_some_and(|what| what.contains(expected));
        assert!(is_found, "{fault:?}, seed {seed}: {what:?}");
    }
}

#[test]
fn without_its_fault_a_seed_with_disks_finds_nothing() {
    for (fault, seed, _) in FOUND_WITH_DISKS {
        let result = run_with_disks(seed, Mode::Off);
        assert!(result.is_ok(), "{fault:?}, seed {seed}: {:?}", result.err());
    }
}

/// With `GOPHERSTORE_PLANTED=1` set: searches a seed for each fault, or with the name of one for that.
#[test]
fn a_search_of_two_thousand_seeds_finds_each_planted_fault() {
    let Ok(wanted) = std::env::var("GOPHERSTORE_PLANTED") else {
        return;
    };
    let mut missing = Vec::new();
    for (fault, _, text) in FOUND.into_iter().chain(FOUND_WITH_DISKS) {
        if wanted != "1" && wanted != format!("{fault:?}") {
            continue;
        }
        let found = (1..=SEEDS_MAX).find_map(|seed| {
            Some((
                seed,
                violation(fault, seed).filter(|what| what.contains(text))?,
            ))
        });
        match found {
            Some((seed, what)) => println!("{fault:?}, seed {seed}: {what}"),
            None => missing.push(fault),
        }
    }
    assert!(missing.is_empty(), "not found: {missing:?}");
}
