//! The snapshot that a node writes when it stops with much log behind the last one. Everything is on the disk before.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::io::Errno;
use tempfile::TempDir;

use crate::cluster::rounds;
use crate::durability::check;
use crate::durable::{Durable, log, status_of};
use crate::load::Random;
use crate::node::wait_for;
use crate::power::{open, recorded};
use crate::recorder::{Fault, Image, Marker, Recorder, Survival, Trace, drawn};
use crate::writes::Writes;

/// Bytes of a segment, and of the log after which a node that stops writes a snapshot.
const TINY: &str = "2000";
/// Writes whose log is longer than that, and shorter than the snapshot before them.
const COUNT: u64 = 40;

/// A directory with a snapshot that is longer than the log of the next writes.
fn base(recorder: &Recorder) -> (Image, Writes) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = recorded(recorder, dir.path(), "always", None);
    command.env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", TINY);
    let node = Durable::of(command, dir.path());
    let (mut client, mut writes) = (node.client(), Writes::new(0));
    let marker = Marker::new(&dir.path().join("trace"));
    for _ in 0..60 {
        assert!(writes.write(&mut client, &marker));
    }
    wait_for("a snapshot of all writes", || {
        // One that is under way already counts as ordered.
        client.snapshot().unwrap();
        let status = status_of(&mut client);
        (status.snapshot_index == status.index).then_some(())
    });
    drop(client);
    assert_eq!(node.stop().code(), Some(0), "{}", log(dir.path()));
    (Image::of(&dir.path().join("data")), writes)
}

/// A node that has started from a directory, made its writes, and stopped.
struct Stopped {
    dir: TempDir,
    status: ExitStatus,
    trace: Trace,
    /// The writes that it has acknowledged.
    writes: Writes,
}

impl Stopped {
    fn run(
        recorder: &Recorder,
        (base, writes): &(Image, Writes),
        fault: Option<&Fault>,
    ) -> Stopped {
        let (dir, mut writes) = (tempfile::tempdir().unwrap(), writes.clone());
        base.write(&dir.path().join("data"));
        let mut command = recorded(recorder, dir.path(), "always", fault);
        command.env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", TINY);
        let node = Durable::of(command, dir.path());
        let (mut client, marker) = (node.client(), Marker::new(&dir.path().join("trace")));
        for _ in 0..COUNT {
            assert!(writes.write(&mut client, &marker));
        }
        drop(client);
        assert!(
            !log(dir.path()).contains("wrote a snapshot"),
            "it is no last one"
        );
        let status = node.stop();
        let trace = Trace::read(&dir.path().join("trace"));
        Stopped {
            dir,
            status,
            trace,
            writes,
        }
    }

    fn files(&self) -> Image {
        Image::of(&self.dir.path().join("data"))
    }

    /// The names of its snapshots.
    fn snapshots(&self) -> Vec<String> {
        let files = self.files().0.unwrap();
        let names = files.into_keys();
        names.filter(|name| name.starts_with("snapshot-")).collect()
    }
}

#[test]
fn a_node_that_stops_with_a_long_log_writes_a_snapshot_of_all_of_it() {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let stopped = Stopped::run(&recorder, &base(&recorder), None);
    let (dir, text) = (stopped.dir.path(), log(stopped.dir.path()));
    assert_eq!(stopped.status.code(), Some(0), "{text}");
    for said in [
        "all of the log is on the disk; the node ends once",
        "wrote a snapshot of",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    // An EPOCH of each start is in the log as well.
    let last = stopped.writes.done + 2;
    assert_eq!(
        stopped.snapshots(),
        [format!("snapshot-00000001-{last:016x}")],
        "{text}"
    );
    let (code, checked) = check(dir);
    assert_eq!(code, Some(0), "{checked}");
    let mut found = stopped.writes.clone();
    let node = Durable::start(dir, "always");
    let mut client = node.client();
    assert_eq!(status_of(&mut client).recovered_records, Some(0));
    let expected = (found.done, found.done);
    found.find(&stopped.writes.read(&mut client).unwrap(), expected);
    assert_eq!(node.stop().code(), Some(0));
    assert_eq!(
        stopped.snapshots(),
        [format!("snapshot-00000001-{last:016x}")],
        "nothing is new"
    );
}

/// Each call of the last snapshot kills the node, or fails. The log is whole.
#[test]
fn nothing_depends_on_the_last_snapshot_of_a_node_that_stops() {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let (mut random, base) = (Random::from_env(), base(&recorder));
    let calls = Stopped::run(&recorder, &base, None).trace.calls();
    let begin = calls.iter().position(|call| call.class == "new-snapshot");
    let calls = &calls[begin.expect("a last snapshot")..];
    let faults = calls.iter().flat_map(|call| {
        [0, Errno::IO.raw_os_error()].map(|action| Fault {
            action,
            ..call.clone()
        })
    });
    let (faults, all) = (faults.collect(), 2 * calls.len());
    for fault in drawn(faults, rounds(12, all), &mut random) {
        let stopped = Stopped::run(&recorder, &base, Some(&fault));
        let (text, status) = (log(stopped.dir.path()), stopped.status);
        let failure = stopped.trace.failure(&fault);
        assert!(
            failure.is_some() || !fault.class.contains("snapshot"),
            "{fault}: {text}"
        );
        match (failure, fault.action) {
            (Some(_), 0) => assert_eq!(status.signal(), Some(9), "{fault}: {status}"),
            (Some(_), _) => {
                assert_eq!(status.code(), Some(0), "{fault}: {text}");
                assert!(
                    text.contains(" ERROR ") && text.contains("(os error 5)"),
                    "{fault}: {text}"
                );
            }
            (None, _) => assert_eq!(status.code(), Some(0), "{fault}: {text}"),
        }
        let end = stopped.trace.events.len();
        let survival = Survival::of(&mut random);
        let expected = (stopped.writes.done, stopped.writes.done);
        for image in [
            stopped.files(),
            stopped.trace.image(0, &base.0, end, survival),
        ] {
            let mut writes = stopped.writes.clone();
            open(&image, "always", &mut [&mut writes], &[expected]);
        }
    }
}
