//! Each call by which a node changes its directory fails, or the node is killed at it. Afterwards every acknowledged
//! write is there.
//!
//! The calls are those of a node that creates its directory, or recovers from one that a power failure has left, and
//! then has new segments and snapshots. `GOPHERSTORE_LONG=1` injects a fault into each of
//! them; otherwise some are drawn.
//! `GOPHERSTORE_SEED=N` repeats the run of a failed test.

use std::path::Path;
use std::process::{Child, ExitStatus};

use gopherstore::client::{Client, ClientOptions};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::cluster::{is_long, rounds};
use crate::durable::{log, ready_addr};
use crate::load::Random;
use crate::node::{PATIENCE, wait_for};
use crate::power::{open, recorded};
use crate::recorder::{Fault, Image, Kind, Marker, Recorder, Survival, Trace, drawn};
use crate::writes::Writes;

/// Writes of a run.
const COUNT: u64 = 55;
/// Bytes of a segment, and of the log after which there is a snapshot.
const TINY: &str = "2000";

/// A node that makes its writes until it ends.
struct Run {
    dir: TempDir,
    child: Child,
    /// Empty where it has ended at its start.
    addr: String,
}

impl Run {
    fn start(recorder: &Recorder, base: &Image, fault: Option<&Fault>) -> Run {
        let dir = tempfile::tempdir().unwrap();
        base.write(&dir.path().join("data"));
        let mut command = recorded(recorder, dir.path(), "always", fault);
        let mut child = command
            .env("GOPHERSTORE_SNAPSHOT_LOG_BYTES", TINY)
            .spawn()
            .unwrap();
        let addr = ready_addr(&mut child);
        Run { dir, child, addr }
    }

    /// A client, or the end of the node.
    fn client(&mut self) -> Result<Client, ExitStatus> {
        let options = ClientOptions {
            timeout: PATIENCE,
            ..ClientOptions::default()
        };
        wait_for("a client or the end of the node", || {
            if self.addr.is_empty() {
                return self.child.try_wait().unwrap().map(Err);
            }
            // A node that is ending takes connections for some time.
            let client = Client::connect_with(&self.addr, options.clone());
            let client = client.and_then(|mut client| client.get(b"k").map(|_| client));
            match client {
                Ok(client) => Some(Ok(client)),
                Err(_) => self.child.try_wait().unwrap().map(Err),
            }
        })
    }

    /// Makes the writes, and ends the node if nothing else does.
    fn finish(&mut self, writes: &Writes) -> ExitStatus {
        let marker = Marker::new(&self.dir.path().join("trace"));
        let (mut writes, last) = (writes.clone(), writes.done + COUNT);
        loop {
            let mut client = match self.client() {
                Ok(client) => client,
                Err(status) => return status,
            };
            // It is unknown whether a write that failed was carried out.
            let range = (writes.done, writes.done + 1);
            let Ok(found) = writes.read(&mut client) else {
                continue;
            };
            writes.find(&found, range);
            while writes.done < last && writes.write(&mut client, &marker) {
                if writes.done == last - 10 {
                    self.wait_for_snapshot();
                }
            }
            if writes.done >= last {
                break;
            }
        }
        // It may be ending.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        wait_for("the end of the node", || self.child.try_wait().unwrap())
    }

    /// Waits until there is a snapshot, the log names the reason why there is none, or the node has ended.
    fn wait_for_snapshot(&mut self) {
        wait_for("a snapshot", || {
            let text = log(self.dir.path());
            let is_over = text.contains("wrote a snapshot of")
                || text.contains("there is no new snapshot")
                || self.child.try_wait().unwrap().is_some();
            is_over.then_some(())
        });
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    fn trace(&self) -> Trace {
        trace_of(self.dir.path())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn trace_of(dir: &Path) -> Trace {
    Trace::read(&dir.join("trace"))
}

/// Where a node starts.
struct Start {
    files: Image,
    writes: Writes,
}

impl Start {
    /// There is no directory.
    fn nothing() -> Start {
        Start {
            files: Image(None),
            writes: Writes::new(0),
        }
    }

    /// A power failure amid a write has left a log with a torn end, and a snapshot or one that was not finished.
    fn torn(recorder: &Recorder, random: &mut Random) -> Start {
        let mut start = Start::nothing();
        let fault = Fault {
            kind: Kind::Write,
            class: "log-0".to_owned(),
            number: usize::try_from(random.within(30..=50)).unwrap(),
            action: 0,
        };
        let mut run = Run::start(recorder, &start.files, Some(&fault));
        run.finish(&start.writes);
        let trace = run.trace();
        let until = trace.events.len();
        let files = trace.image(0, &start.files, until, Survival::Drawn(random));
        let expected = expected(&trace, &start.writes);
        open(&files, "always", &mut [&mut start.writes], &[expected]);
        start.files = files;
        start
    }

    /// The calls of a node that starts here and has no faults.
    fn calls(&self, recorder: &Recorder) -> Vec<Fault> {
        let mut run = Run::start(recorder, &self.files, None);
        let status = run.finish(&self.writes);
        assert_eq!(status.code(), Some(0), "{}", log(run.dir.path()));
        let trace = run.trace();
        for class in ["log-0", "snapshot-0"] {
            let mut renames = trace.events.iter().filter(|it| it.kind == Kind::Rename);
            assert!(
                renames.any(|it| it.error == 0 && it.name.starts_with(class)),
                "no {class}:\n{}",
                log(run.dir.path())
            );
        }
        trace.calls()
    }
}

/// The number of the last write that was acknowledged, and of the one that was sent.
fn expected(trace: &Trace, before: &Writes) -> (u64, u64) {
    let all = trace.events.len();
    let (acknowledged, sent) = trace.progress(0, all, all);
    (
        acknowledged.unwrap_or(before.done),
        sent.unwrap_or(before.done),
    )
}

/// Runs the node with this fault, and opens its files as they are, and as a power failure leaves them.
fn survive(recorder: &Recorder, start: &Start, fault: &Fault, random: &mut Random) {
    let mut run = Run::start(recorder, &start.files, Some(fault));
    let status = run.finish(&start.writes);
    let (trace, text) = (run.trace(), log(run.dir.path()));
    let failure = trace.failure(fault);
    println!("{fault}: {status}, call {failure:?}");
    assert!(!text.contains("panicked"), "{fault}: {text}");
    if let Some(failure) = failure {
        let mut behind = trace.events[failure..].iter();
        let has_gone_on = behind.any(|it| it.kind == Kind::Acknowledged);
        judge_end(fault, status, &text, has_gone_on);
        let ended_by_it = status.code() == Some(1);
        let late = trace.events[failure..]
            .iter()
            .find(|it| it.kind == Kind::Sent);
        let acknowledged = expected(&trace, &start.writes).0;
        assert!(
            !ended_by_it || late.is_none_or(|late| late.offset > acknowledged),
            "{fault}: {late:?} was acknowledged after it"
        );
    } else {
        assert_eq!(status.code(), Some(0), "{fault}: {text}");
    }
    let expected = expected(&trace, &start.writes);
    let all = trace.events.len();
    for image in [
        trace.image(0, &start.files, all, Survival::of(random)),
        Image::of(&run.data()),
    ] {
        let mut writes = start.writes.clone();
        open(&image, "always", &mut [&mut writes], &[expected]);
    }
}

/// Checks that the node was killed, named the reason for its end, or went on. `has_gone_on` says that it acknowledged
/// writes after the call.
fn judge_end(fault: &Fault, status: ExitStatus, text: &str, has_gone_on: bool) {
    if fault.action == 0 {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(9), "{fault}: {status}");
        return;
    }
    // A later sync does not replace one that failed. A sync of the directory may be the last call of the node.
    let must_end =
        fault.kind == Kind::Sync && (fault.class == "log-0" || fault.class == "." && has_gone_on);
    let codes: &[i32] = if must_end { &[1] } else { &[0, 1] };
    let code = status.code().unwrap_or(-1);
    assert!(codes.contains(&code), "{fault}: {status}: {text}");
    // A recovery opens a snapshot once to learn the number of its keys, and ignores an error of that call. The next
    // snapshot may overwrite the file of a discarded one. A start whose disk is full looks for space again at once.
    let is_full = fault.action == Errno::NOSPC.raw_os_error();
    let is_said = match (fault.kind, &*fault.class) {
        (Kind::Open, "snapshot-0") => fault.number > 1,
        (Kind::Open, "spare-0") => !is_full,
        (Kind::Unlink, "new-snapshot") => false,
        _ => true,
    };
    let why = format!("(os error {})", fault.action);
    assert!(!is_said || text.contains(&why), "{fault}: {status}: {text}");
}

fn survive_all(faults: &[Fault], recorder: &Recorder, start: &Start, random: &mut Random) {
    for fault in faults {
        survive(recorder, start, fault, random);
    }
}

/// Both starts, a half of `count` for each, with all calls so often in the long run.
fn each_start(count: usize, times: usize, actions: impl Fn(&Fault, usize) -> i32) {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let mut random = Random::from_env();
    for start in [Start::nothing(), Start::torn(&recorder, &mut random)] {
        let calls = start.calls(&recorder);
        let faults = (0..times).flat_map(|time| {
            let calls = calls.iter().cloned();
            let actions = &actions;
            calls.map(move |call| {
                let action = actions(&call, time);
                Fault { action, ..call }
            })
        });
        let all = times * calls.len();
        let faults = drawn(faults.collect(), rounds(count / 2, all), &mut random);
        survive_all(&faults, &recorder, &start, &mut random);
        if is_long() {
            eprintln!("{} of {} calls × {times}", faults.len(), calls.len());
        }
    }
}

/// Two threads sync the directory. An error is reported to one of them, and ends the node whichever that is.
#[test]
fn a_node_whose_directory_is_not_synced_ends() {
    let Some(recorder) = Recorder::compile() else {
        return;
    };
    let mut random = Random::from_env();
    let start = Start::nothing();
    let calls = start.calls(&recorder).into_iter();
    let syncs = calls.filter(|call| call.kind == Kind::Sync && call.class == ".");
    let action = Errno::IO.raw_os_error();
    let faults: Vec<Fault> = syncs.map(|call| Fault { action, ..call }).collect();
    assert!(faults.len() > 6, "{}", faults.len());
    survive_all(&faults, &recorder, &start, &mut random);
}

#[test]
fn a_node_that_is_killed_at_any_call_has_everything_acknowledged() {
    each_start(12, 5, |_, _| 0);
}

#[test]
fn a_node_of_which_any_call_fails_has_everything_acknowledged() {
    each_start(12, 3, |call, time| {
        let last = if call.kind == Kind::Open {
            Errno::MFILE
        } else {
            Errno::ROFS
        };
        [Errno::NOSPC, Errno::IO, last][time].raw_os_error()
    });
}
