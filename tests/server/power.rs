//! Power failures: the calls of a node are recorded, and what the record leaves on the disk at any of its moments is
//! opened by another node.
//!
//! `GOPHERSTORE_LONG=1` has each as often as the long run asks for, `GOPHERSTORE_LONG=10%` a tenth of that;
//! `GOPHERSTORE_SEED=N` repeats what a failed test drew.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::thread;

use gopherstore::client::{Client, Error};

use crate::cluster::rounds;
use crate::durability::{Durable, check, command, log};
use crate::load::Random;
use crate::recorder::{Fault, Image, Kind, Marker, Recorder, Survival, Trace};

/// Clients of a node whose power fails.
const CLIENTS: usize = 4;
/// Keys of a client.
const KEYS: u64 = 20;
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
        .envs(recorder.env(data.to_str().unwrap(), &dir.join("trace"), fault));
    command
}

/// The writes of a client, one after the other, and the contents of its keys after them. What the n-th write is
/// follows from n, so the contents say how many writes are there, and whether one is missing among them.
#[derive(Clone, Debug)]
pub(crate) struct Writes {
    client: usize,
    /// Writes that were carried out.
    pub(crate) done: u64,
    contents: BTreeMap<String, Vec<u8>>,
}

impl Writes {
    pub(crate) const fn new(client: usize) -> Writes {
        Writes {
            client,
            done: 0,
            contents: BTreeMap::new(),
        }
    }

    fn key(&self, number: u64) -> String {
        format!("client:{}:{}", self.client, number % KEYS)
    }

    /// Key and new value of the next write; no value is a DEL.
    fn next(&self) -> (String, Option<Vec<u8>>) {
        let number = self.done + 1;
        let key = self.key(number);
        if number % 7 == 3 && self.contents.contains_key(&key) {
            return (key, None);
        }
        // Some need a segment of their own.
        let len = if number % 101 == 50 {
            20_000
        } else {
            number * 37 % 200
        };
        let mut value = number.to_string().into_bytes();
        value.resize(value.len() + usize::try_from(len).unwrap(), b'x');
        (key, Some(value))
    }

    fn advance(&mut self) {
        let (key, value) = self.next();
        match value {
            Some(value) => self.contents.insert(key, value),
            None => self.contents.remove(&key),
        };
        self.done += 1;
    }

    /// Makes the next write. Returns whether it was acknowledged.
    pub(crate) fn write(&mut self, client: &mut Client, marker: &Marker) -> bool {
        let (key, value) = self.next();
        marker.mark(Kind::Sent, self.client, self.done + 1);
        let is_done = match value {
            Some(value) => client.set(key.as_bytes(), &value).is_ok(),
            None => client.del(key.as_bytes()).is_ok(),
        };
        if is_done {
            marker.mark(Kind::Acknowledged, self.client, self.done + 1);
            self.advance();
        }
        is_done
    }

    /// The contents of the keys that a node has.
    pub(crate) fn read(&self, client: &mut Client) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        let mut found = BTreeMap::new();
        for number in 0..KEYS {
            let key = self.key(number);
            if let Some(value) = client.get(key.as_bytes())? {
                found.insert(key, value);
            }
        }
        Ok(found)
    }

    /// Finds out which writes lead to these contents: `acknowledged` at least, and `sent` at most.
    #[track_caller]
    pub(crate) fn find(
        &mut self,
        found: &BTreeMap<String, Vec<u8>>,
        (acknowledged, sent): (u64, u64),
    ) {
        while self.done < acknowledged || (&self.contents != found && self.done < sent) {
            self.advance();
        }
        if &self.contents != found {
            let shown = |contents: &BTreeMap<String, Vec<u8>>| {
                let lines = contents.iter().map(|(key, value)| {
                    let len = value.len().min(10);
                    format!("{key} = {}\n", value[..len].escape_ascii())
                });
                lines.collect::<String>()
            };
            panic!(
                "client {}: writes {acknowledged} to {sent} do not lead to\n{}but the last one to\n{}",
                self.client,
                shown(found),
                shown(&self.contents)
            );
        }
    }
}

/// Starts a node in the directory, and has all clients make that many writes.
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

/// Draws the event before which the power fails: any one, one of the start, or one by which names change.
fn moment(trace: &Trace, random: &mut Random) -> usize {
    let events = &trace.events;
    let of_names: Vec<usize> = (0..events.len())
        .filter(|&at| {
            let is_change = matches!(events[at].kind, Kind::Rename | Kind::Unlink | Kind::Mkdir);
            is_change || (events[at].kind == Kind::Sync && !events[at].name.starts_with("log-"))
        })
        .collect();
    match random.index(8) {
        0..4 => random.index(events.len() + 1),
        4 => random.index(events.len().min(60)),
        _ => of_names[random.index(of_names.len())] + random.index(2),
    }
}

/// Opens what a power failure has left with the program that checks it and with a node. Moves `writes` to what is
/// there.
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

/// Fails the power that often. Each time the next node goes on with what was left.
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
            let until = moment(&trace, &mut random);
            let image = trace.image(&base, until, Survival::Drawn(&mut random));
            let acknowledged = match sync {
                "always" => until,
                _ => trace.last_sync(until).unwrap_or(0),
            };
            let mut found = writes.clone();
            let expected: Vec<(u64, u64)> = found
                .iter()
                .enumerate()
                .map(|(client, writes)| {
                    let progress = trace.progress(client, until, acknowledged);
                    let at_least = progress.0.unwrap_or(writes.done);
                    (at_least, progress.1.unwrap_or(writes.done))
                })
                .collect();
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
    power_failures("always", rounds(4, 20));
}

#[test]
fn no_more_than_what_was_not_synced_is_lost_in_a_power_failure_with_interval() {
    power_failures("interval", rounds(2, 20));
}

#[test]
fn no_more_than_what_was_not_synced_is_lost_in_a_power_failure_with_never() {
    power_failures("never", rounds(2, 20));
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
    assert_eq!(node.stop().code(), Some(0), "{}", log(dir.path()));
    let trace = Trace::read(&dir.path().join("trace"));
    let all = trace.events.len();
    let image = trace.image(&Image::default(), all, Survival::Everything);
    let real = Image::of(&dir.path().join("data"));
    assert!(image == real, "{}\n{}", image.summary(), real.summary());
    let count = |kind| trace.events.iter().filter(|it| it.kind == kind).count();
    let least = 100 * CLIENTS;
    assert_eq!(
        (count(Kind::Sent), count(Kind::Acknowledged)),
        (least, least)
    );
    let has = |kind, class: &str| {
        let mut events = trace.events.iter();
        events.any(|it| it.kind == kind && it.name.starts_with(class))
    };
    for class in ["log-", "snapshot-", "spare-", "identity"] {
        assert!(has(Kind::Rename, class), "{class}");
    }
}
