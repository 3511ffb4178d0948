//! A follower is killed at any call by which a full copy changes its data directory. It then has its old data set or
//! the new one.

use std::fs;

use crate::faults::{BACKLOG_BYTES, QUICK_AND_SMALL};
use crate::support::cluster::{Cluster, Options, rounds};
use crate::support::load::Random;
use crate::support::names::key;
use crate::support::node::{PATIENCE, wait_for};
use crate::support::recorder::{Fault, Recorder, Trace, drawn};

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

/// Whether the follower's directory has a snapshot, and nothing of another data set.
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

/// Whether the follower's process has copied its leader's data set.
fn copied(cluster: &Cluster) -> bool {
    let log = cluster.process(1).own_log();
    log.contains("copied n1 up to")
}

/// Whether what it has copied is in its directory, and the data set before is gone.
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

#[test]
fn a_follower_that_is_killed_at_any_call_of_a_full_copy_has_its_old_data_or_the_new() {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let mut random = Random::from_env();
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
    // How many calls there are.
    let calls = copy(&mut cluster, &recorder, None).calls();
    assert!(calls.len() > 20, "{calls:?}");
    let keys = keys();
    let (mut old, mut found) = (0, [0, 0]);
    let count = rounds(4, calls.len() * 5);
    let faults = drawn(vec![calls; 5].concat(), count, &mut random);
    for (version, fault) in (1..).zip(&faults) {
        fill(&cluster, version);
        copy(&mut cluster, &recorder, Some(fault));
        // Without its leader, it has what its disk has.
        cluster.link(1, 0).refuse(true);
        cluster.restart(1);
        cluster.wait_for_status(1, PATIENCE, "its own data", |status| {
            status.is_state("serving")
        });
        let values = cluster.read_all(1, &keys).unwrap();
        let has = |version| {
            let value = value(version);
            values.iter().all(|it| it.as_ref() == Some(&value))
        };
        let is_new = has(version);
        println!("{fault}: the follower has the new data: {is_new}");
        assert!(is_new || has(old), "{fault}: a mixture");
        found[usize::from(is_new)] += 1;
        let link = cluster.link(1, 0);
        link.refuse(false);
        link.pass();
        cluster.wait_converged(PATIENCE);
        assert!(cluster.number(0, key::INDEX) > version);
        cluster.equal_contents(&keys);
        old = version;
        // It may have had the new data by itself.
        let has_copied = copied(&cluster);
        wait_for("the copy on the disk", || {
            (!has_copied || is_kept(&cluster)).then_some(())
        });
        cluster.kill(1);
    }
    eprintln!("{count} kills: old data and new {found:?}");
}
