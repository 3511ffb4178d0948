//! Power failures. The calls of a node are recorded, and another node opens the files that a power failure at a drawn
//! call leaves.
//!
//! `GOPHERSTORE_LONG=1` runs each test as often as the long form asks for, `GOPHERSTORE_LONG=10%` a tenth of that.
//! `GOPHERSTORE_SEED=N` repeats the run of a failed test.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::rounds;
use crate::durability::check;
use crate::durable::{Durable, command, log, status_of};
use crate::load::Random;
use crate::node::{PATIENCE, wait_for};
use crate::recorder::{Fault, Image, Kind, Marker, Recorder, Survival, Trace};
use crate::writes::{Writes, expected};

/// Clients of a node whose power fails.
const CLIENTS: usize = 4;
/// Bytes of a segment, and of the log after which there is a snapshot.
const SMALL: &str = "8000";

/// A command for a node that is recorded, with small segments and many snapshots.
pub(crate) fn recorded(
    recorder: &Recorder,
    dir: &Path,
    sync: &str,
    fault: Option<&Fault>,
) -> Command {
    let mut command = command(dir, sync);
    let data = dir.join("data");
    command
        .env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", SMALL)
        .envs(recorder.env(0, data.to_str().unwrap(), &dir.join("trace"), fault));
    command
}

/// Starts a node in the directory. Each client then makes `count` writes.
fn run(recorder: &Recorder, dir: &Path, sync: &str, writes: &[Writes], count: u64) -> Durable {
    let node = Durable::of(recorded(recorder, dir, sync, None), dir);
    let marker = Marker::new(&dir.join("trace"));
    thread::scope(|scope| {
        for writes in writes {
            let (mut writes, mut client) = (writes.clone(), node.client());
            let marker = &marker;
            scope.spawn(move || {
                for _ in 0..count {
                    assert!(writes.write(&mut client, marker));
                }
            });
        }
    });
    node
}

/// Opens the files that a power failure has left with `gopherstore-cli check` and with a node. Moves `writes` to the
/// writes that are there.
pub(crate) fn open(image: &Image, sync: &str, writes: &mut [&mut Writes], expected: &[(u64, u64)]) {
    let dir = tempfile::tempdir().unwrap();
    image.write(&dir.path().join("data"));
    let (code, text) = check(dir.path());
    let is_good = match code {
        Some(0) => true,
        // No data set, and no data directory.
        Some(1 | 8) => !image.has_data(),
        _ => false,
    };
    assert!(is_good && !text.contains("panicked"), "{code:?}: {text}");
    let node = Durable::start(dir.path(), sync);
    let mut client = node.client();
    for (writes, expected) in writes.iter_mut().zip(expected) {
        writes.find(&writes.read(&mut client).unwrap(), *expected);
    }
    let log = log(dir.path());
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
}

/// Fails the power `count` times. Each time the next node goes on with the files that were left.
fn power_failures(sync: &str, count: usize) {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let mut random = Random::from_env();
    let (mut base, mut count_left) = (Image::default(), count);
    let mut writes: Vec<Writes> = (0..CLIENTS).map(Writes::new).collect();
    while count_left > 0 {
        let dir = tempfile::tempdir().unwrap();
        base.write(&dir.path().join("data"));
        run(
            &recorder,
            dir.path(),
            sync,
            &writes,
            random.within(50..=200),
        )
        .kill();
        let trace = Trace::read(&dir.path().join("trace"));
        let mut next = None;
        for _ in 0..count_left.min(2) {
            count_left -= 1;
            let until = trace.moment(&mut random);
            let image = trace.image(0, &base, until, Survival::of(&mut random));
            let mut found = writes.clone();
            let expected = expected(&trace, &found, until, trace.kept(sync, until));
            println!(
                "{sync}: power fails before event {until} of {}, with {expected:?}, and leaves\n{}",
                trace.events.len(),
                image.summary()
            );
            let mut all: Vec<&mut Writes> = found.iter_mut().collect();
            open(&image, sync, &mut all, &expected);
            next = Some((image, found));
        }
        (base, writes) = next.unwrap();
    }
}

#[test]
fn nothing_acknowledged_is_lost_in_a_power_failure_with_always() {
    power_failures("always", rounds(8, 20));
}

#[test]
fn no_more_than_what_was_not_synced_is_lost_in_a_power_failure_with_interval() {
    power_failures("interval", rounds(2, 20));
}

#[test]
fn no_more_than_what_was_not_synced_is_lost_in_a_power_failure_with_never() {
    power_failures("never", rounds(2, 20));
}

/// The longest time from an answer to the sync that has its write, for each sync of the log.
fn unsynced(trace: &Trace) -> Vec<Duration> {
    let (mut first, mut longest) = (None, Vec::new());
    for event in &trace.events {
        match event.kind {
            Kind::Acknowledged => first = first.or(Some(event.time)),
            Kind::Sync if event.name.starts_with("log-") => {
                longest.extend(first.take().map(|first| event.time - first));
            }
            Kind::Open
            | Kind::Write
            | Kind::Sync
            | Kind::Rename
            | Kind::Unlink
            | Kind::Mkdir
            | Kind::Sent => {}
        }
    }
    longest
}

#[test]
fn what_is_not_synced_is_no_older_than_the_interval() {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let interval = Duration::from_millis(200);
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"127.0.0.1:0\"\n\
         [storage]\ndata_dir = \"data\"\nsync = \"interval\"\nsync_interval_ms = {}\n",
        interval.as_millis()
    );
    fs::write(dir.path().join("cluster.toml"), config).unwrap();
    let path = dir.path().join("trace");
    let mut node = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"));
    node.args(["--config", "cluster.toml", "--node", "n1"])
        .current_dir(dir.path())
        .env_remove("RUST_LOG")
        .envs(recorder.env(0, "data/n1", &path, None))
        .stdout(Stdio::piped())
        .stderr(fs::File::create(dir.path().join("err")).unwrap());
    let node = Durable::of(node, dir.path());
    let (mut writes, mut client) = (Writes::new(0), node.client());
    let marker = Marker::new(&path);
    let begin = Instant::now();
    while begin.elapsed() < 6 * interval {
        assert!(writes.write(&mut client, &marker));
    }
    // The last writes are synced too, though no other request comes.
    wait_for("the last sync", || {
        let status = status_of(&mut client);
        (status.durable_index == status.index).then_some(())
    });
    let trace = Trace::read(&path);
    let mut ages = unsynced(&trace);
    ages.sort_unstable();
    // A busy machine may delay the node.
    let (median, most) = (ages[ages.len() / 2], ages[ages.len() - 1]);
    assert!(ages.len() >= 3 && median < interval * 3 / 2, "{ages:?}");
    assert!(median > interval / 2, "{ages:?}");
    assert!(most < PATIENCE / 10, "{ages:?}");
    node.kill();
}

/// Without this, a call that is not recorded would go unnoticed.
#[test]
fn the_record_of_a_node_leads_to_its_files() {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let writes: Vec<Writes> = (0..CLIENTS).map(Writes::new).collect();
    let node = run(&recorder, dir.path(), "always", &writes, 100);
    let path = dir.path().join("trace");
    for class in ["log-", "snapshot-", "spare-", "identity"] {
        wait_for(class, || {
            let events = Trace::read(&path).events;
            let mut renames = events.iter().filter(|it| it.kind == Kind::Rename);
            renames.any(|it| it.name.starts_with(class)).then_some(())
        });
    }
    assert_eq!(node.stop().code(), Some(0), "{}", log(dir.path()));
    let trace = Trace::read(&path);
    let all = trace.events.len();
    let image = trace.image(0, &Image::default(), all, Survival::Everything);
    let real = Image::of(&dir.path().join("data"));
    assert!(image == real, "{}\n{}", image.summary(), real.summary());
    let count = |kind| trace.events.iter().filter(|it| it.kind == kind).count();
    let least = 100 * CLIENTS;
    assert_eq!(
        (count(Kind::Sent), count(Kind::Acknowledged)),
        (least, least)
    );
}
