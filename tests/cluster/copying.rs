//! Any call by which a full copy changes a follower's data directory fails, or is the last one before the follower is
//! killed or its power fails. It then has its old data set or the new one.

use std::fs;

use rustix::io::Errno;

use crate::faults::{BACKLOG_BYTES, QUICK_AND_SMALL};
use crate::support::cluster::{Cluster, Options, is_long, rounds};
use crate::support::load::Random;
use crate::support::node::{PATIENCE, wait_for};
use crate::support::recorder::{Fault, Image, Recorder, Survival, Trace, drawn};

/// Bytes of a value. A snapshot has many entries of this length in one write.
const VALUE_LEN: u64 = 150;

fn keys() -> Vec<Vec<u8>> {
    let count = 2 * BACKLOG_BYTES / VALUE_LEN;
    let keys = (0..count).map(|number| format!("key:{number}").into_bytes());
    keys.collect()
}

/// All keys have this value in this version of the data set.
fn value(version: u64) -> Vec<u8> {
    let mut value = version.to_string().into_bytes();
    value.resize(usize::try_from(VALUE_LEN).unwrap(), b'x');
    value
}

/// Writes more than the backlog keeps.
fn fill(cluster: &Cluster, version: u64) {
    let (keys, value) = (keys(), value(version));
    cluster.write_all(keys.iter().map(|key| (&key[..], &value[..])));
}

/// Returns whether the follower's directory has a snapshot, and no file of another data set.
fn is_tidy(cluster: &Cluster) -> bool {
    let entries = fs::read_dir(cluster.folder(1).join("data/n2")).unwrap();
    let names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let Some(snapshot) = names.iter().find(|name| name.starts_with("snapshot-")) else {
        return false;
    };
    let chain = snapshot.split('-').nth(1);
    let is_data = |name: &&String| name.starts_with("log-") || name.starts_with("snapshot-");
    let mut data = names.iter().filter(is_data);
    data.all(|name| name.split('-').nth(1) == chain)
}

/// Returns whether the follower's process has copied its leader's data set.
fn copied(cluster: &Cluster) -> bool {
    let log = cluster.process(1).own_log();
    log.contains("copied n1 up to")
}

/// Returns whether the copy is in the follower's directory, and the old data set is removed.
fn is_kept(cluster: &Cluster) -> bool {
    let log = cluster.process(1).own_log();
    log.contains("wrote a snapshot of") && is_tidy(cluster)
}

/// Starts the follower with this fault. Returns once it is killed, or has its copy on the disk. It does not run then.
fn copy(cluster: &mut Cluster, recorder: &Recorder, fault: Option<&Fault>) -> Trace {
    let trace = cluster.folder(1).join("trace");
    let _ = fs::remove_file(&trace);
    let env = recorder.env(1, "data/n2", &trace, fault);
    cluster.begin_restart(1, env);
    wait_for("the end of the copy, or of the follower", || {
        let is_over = cluster.has_ended(1) || (copied(cluster) && is_kept(cluster));
        is_over.then_some(())
    });
    cluster.kill(1);
    Trace::read(&trace)
}

/// The fault of the directory before the follower starts again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Nothing.
    Stays,
    /// Bytes that were not synced are lost, as drawn.
    PowerFails,
}

/// A leader, and a follower that does not run and lacks more than the leader's log has.
fn cluster() -> Cluster {
    let options = Options {
        replication: QUICK_AND_SMALL.to_owned(),
        storage: "data_dir = \"data\"".to_owned(),
        proxies: true,
        ..Options::default()
    };
    let mut cluster = Cluster::start_with(2, &options);
    cluster.wait_converged(PATIENCE);
    cluster.process(1).wait_for_log("wrote a snapshot of");
    cluster.kill(1);
    fill(&cluster, 0);
    cluster
}

/// The follower has the data set of one of these versions. Returns whether it is the second one.
fn has_one_of(cluster: &mut Cluster, versions: [u64; 2]) -> bool {
    // Without its leader, it serves the data of its own disk.
    cluster.link(1, 0).refuse(true);
    cluster.restart(1);
    cluster.wait_for_status(1, PATIENCE, "its own data", |status| {
        status.is_state("serving")
    });
    let values = cluster.read_all(1, &keys()).unwrap();
    let has = |version| {
        let value = value(version);
        values.iter().all(|it| it.as_ref() == Some(&value))
    };
    assert!(versions.iter().any(|it| has(*it)), "a mixture");
    let link = cluster.link(1, 0);
    link.refuse(false);
    link.pass();
    has(versions[1])
}

/// Each of so many calls of a full copy ends in one of these ways.
fn copies(actions: &[i32], default: usize, then: Then) {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let mut random = Random::from_env();
    let mut cluster = cluster();
    let calls = copy(&mut cluster, &recorder, None).calls();
    assert!(calls.len() > 20, "{calls:?}");
    let faults = actions.iter().flat_map(|&action| {
        let calls = calls.iter().cloned();
        calls.map(move |call| Fault { action, ..call })
    });
    let count = rounds(default, calls.len() * actions.len());
    let faults = drawn(faults.collect(), count, &mut random);
    let (mut old, mut found) = (0, [0, 0]);
    for (version, fault) in (1..).zip(&faults) {
        fill(&cluster, version);
        let data = cluster.folder(1).join("data/n2");
        let before = Image::of(&data);
        let trace = copy(&mut cluster, &recorder, Some(fault));
        if then == Then::PowerFails {
            let all = trace.events.len();
            let image = trace.image(1, &before, all, Survival::of(&mut random));
            println!("{fault} leaves\n{}", image.summary());
            fs::remove_dir_all(&data).unwrap();
            image.write(&data);
        }
        println!("{fault}, after version {old}");
        let is_new = has_one_of(&mut cluster, [old, version]);
        found[usize::from(is_new)] += 1;
        cluster.wait_converged(PATIENCE);
        cluster.equal_contents(&keys());
        old = version;
        // It may have had the new data by itself.
        let has_copied = copied(&cluster);
        wait_for("the copy on the disk", || {
            (!has_copied || is_kept(&cluster)).then_some(())
        });
        cluster.kill(1);
    }
    if is_long() {
        eprintln!("{count} copies that ended early: old data and new {found:?}");
    }
}

#[test]
fn a_follower_that_is_killed_at_any_call_of_a_full_copy_has_its_old_data_or_the_new() {
    copies(&[0; 5], 3, Then::Stays);
}

#[test]
fn a_follower_whose_power_fails_at_any_call_of_a_full_copy_has_its_old_data_or_the_new() {
    copies(&[0; 5], 2, Then::PowerFails);
}

#[test]
fn a_follower_of_which_any_call_of_a_full_copy_fails_has_its_old_data_or_the_new() {
    let actions = [Errno::NOSPC, Errno::IO, Errno::ROFS].map(Errno::raw_os_error);
    copies(&actions, 2, Then::Stays);
}
