//! Records the calls by which a node changes the files of its data directory, makes one of them fail or kill the node,
//! and builds from the record what a power failure leaves.
//!
//! `recorder.c` is loaded into the node with `LD_PRELOAD`, and appends its events to a file. The test appends the
//! writes that its clients send, and those that are acknowledged, to the same file. So all events have one order.
//!
//! # State after a power failure
//!
//! The bytes of a file up to its last sync are durable, and so is its name, its absence or its new name up to the last
//! sync of the directory. Of the rest each sector has what it had at any one moment since then, and each change of a
//! name is there or not, as drawn.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

use super::load::Random;
use super::tools;

/// Bytes that a disk writes as a whole or not at all.
const SECTOR: usize = 512;
/// Bytes of an event before its name.
const HEAD_LEN: usize = 40;
/// The event's call creates a file where there is none (`O_CREAT`).
const CREATES: u64 = 0o100;

/// Error of the call that kills the node (`EINTR`).
const KILLED: u32 = 4;

/// The compiled library.
#[derive(Debug)]
pub(crate) struct Recorder {
    library: PathBuf,
    _dir: TempDir,
}

/// A kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Open,
    Write,
    Sync,
    Rename,
    Unlink,
    Mkdir,
    /// A client has begun to send a write.
    Sent,
    /// A client has the answer to a write.
    Acknowledged,
}

const KINDS: [(u32, Kind, &str); 8] = [
    (1, Kind::Open, "open"),
    (2, Kind::Write, "write"),
    (3, Kind::Sync, "sync"),
    (4, Kind::Rename, "rename"),
    (5, Kind::Unlink, "unlink"),
    (6, Kind::Mkdir, "mkdir"),
    (7, Kind::Sent, "sent"),
    (8, Kind::Acknowledged, "acknowledged"),
];

/// A call, or what a client has seen.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    /// A file descriptor, or the number of a client.
    pub(crate) fd: i32,
    /// Offset of a write, flags of an open, or the number of a client's write.
    pub(crate) offset: u64,
    /// By the clock of the system that goes on steadily, when it was recorded.
    pub(crate) time: Duration,
    /// The call failed with this error, or did nothing and killed the node.
    pub(crate) error: u32,
    /// The node that made the call.
    node: u32,
    /// Name of the file; "." is the directory, and ".." its parent.
    pub(crate) name: String,
    /// The bytes that were written, or the name before a rename.
    data: Vec<u8>,
}

/// The call that fails.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// Beginning of the file's name; "." is the directory, and ".." its parent.
    pub(crate) class: String,
    /// The first one is 1.
    pub(crate) number: usize,
    /// An errno; 0 kills the node.
    pub(crate) action: i32,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault {
            kind,
            class,
            number,
            action,
        } = self;
        write!(f, "{} {class} {number} {action}", kind.name())
    }
}

impl Event {
    fn is_call(&self) -> bool {
        !matches!(self.kind, Kind::Sent | Kind::Acknowledged)
    }

    /// The name without the numbers in it.
    fn class(&self) -> &str {
        match self.name.split_once("-0") {
            Some((class, _)) => &self.name[..class.len() + 2],
            None => &self.name,
        }
    }
}

impl Kind {
    fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind, _)| *kind == self).unwrap().2
    }
}

impl Recorder {
    /// Compiles the library. `None` where there is no compiler; that is said.
    pub(crate) fn compile() -> Option<Recorder> {
        if !tools::are_there(&["cc"]) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("recorder.so");
        let source = dir.path().join("recorder.c");
        fs::write(&source, include_str!("recorder.c")).unwrap();
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.is_empty(), "{text}");
        Some(Recorder { library, _dir: dir })
    }

    /// The environment of a node that is recorded. `dir` is the data directory as the node spells it.
    pub(crate) fn env(
        &self,
        node: u32,
        dir: &str,
        trace: &Path,
        fault: Option<&Fault>,
    ) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut env = vec![
            ("LD_PRELOAD", text(&self.library)),
            ("RECORDER_DIR", dir.to_owned()),
            ("RECORDER_TRACE", text(trace)),
            ("RECORDER_NODE", node.to_string()),
        ];
        env.extend(fault.map(|fault| ("RECORDER_FAULT", fault.to_string())));
        env
    }
}

/// That many of these, in an order that is drawn: first the first one of each kind and class, then the second one.
pub(crate) fn drawn(mut faults: Vec<Fault>, count: usize, random: &mut Random) -> Vec<Fault> {
    for at in (1..faults.len()).rev() {
        faults.swap(at, random.index(at + 1));
    }
    let mut counts: HashMap<(Kind, String), usize> = HashMap::new();
    let mut ranked: Vec<(usize, Fault)> = faults
        .into_iter()
        .map(|fault| {
            let rank = counts.entry((fault.kind, fault.class.clone())).or_default();
            *rank += 1;
            (*rank, fault)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|it| it.1).take(count).collect()
}

/// Appends to a trace what a client sees.
#[derive(Debug)]
pub(crate) struct Marker(File);

impl Marker {
    pub(crate) fn new(trace: &Path) -> Marker {
        let file = File::options().create(true).append(true).open(trace);
        Marker(file.unwrap())
    }

    pub(crate) fn mark(&self, kind: Kind, client: usize, number: u64) {
        let code = KINDS.iter().find(|it| it.1 == kind).unwrap().0;
        let mut event = Vec::new();
        event.extend(code.to_ne_bytes());
        event.extend(i32::try_from(client).unwrap().to_ne_bytes());
        event.extend(number.to_ne_bytes());
        let now = clock_gettime(ClockId::Monotonic);
        let now = Duration::try_from(now).unwrap().as_nanos();
        event.extend(u64::try_from(now).unwrap().to_ne_bytes());
        event.resize(HEAD_LEN, 0);
        // One call, which the system does not divide.
        assert_eq!((&self.0).write(&event).unwrap(), HEAD_LEN);
    }
}

/// The events of a node and its clients, in their order.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) events: Vec<Event>,
}

impl Trace {
    pub(crate) fn read(path: &Path) -> Trace {
        let bytes = fs::read(path).unwrap();
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while let Some((head, behind)) = rest.split_at_checked(HEAD_LEN) {
            let number = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
            let long = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().unwrap());
            let len = |at| usize::try_from(number(at)).unwrap();
            let kind = KINDS.iter().find(|it| it.0 == number(0)).unwrap().1;
            // The node may have been killed as it wrote the last one.
            let Some((name, behind)) = behind.split_at_checked(len(28)) else {
                break;
            };
            let Some((data, behind)) = behind.split_at_checked(len(32)) else {
                break;
            };
            events.push(Event {
                kind,
                fd: number(4).cast_signed(),
                offset: long(8),
                time: Duration::from_nanos(long(16)),
                error: number(24),
                node: number(36),
                name: String::from_utf8(name.to_vec()).unwrap(),
                data: data.to_vec(),
            });
            rest = behind;
        }
        Trace { events }
    }

    /// All calls, each as one that does not fail, in order. Each is the N-th one of its kind and its class of names.
    pub(crate) fn calls(&self) -> Vec<Fault> {
        let mut counts: HashMap<(Kind, &str), usize> = HashMap::new();
        let calls = self.events.iter().filter(|it| it.is_call());
        let calls = calls.map(|event| {
            let class = event.class();
            let number = counts.entry((event.kind, class)).or_default();
            *number += 1;
            Fault {
                kind: event.kind,
                class: class.to_owned(),
                number: *number,
                action: 0,
            }
        });
        calls.collect()
    }

    /// The call that failed, or that killed the node.
    pub(crate) fn failure(&self, fault: &Fault) -> Option<usize> {
        let error = match fault.action {
            0 => KILLED,
            errno => errno.cast_unsigned(),
        };
        let is_it =
            |it: &Event| it.error == error && it.kind == fault.kind && it.class() == fault.class;
        self.events.iter().position(is_it)
    }

    /// Draws the event before which the power fails: any one, the one behind an answer, one of the start, or one by
    /// which names change.
    pub(crate) fn moment(&self, random: &mut Random) -> usize {
        let events = &self.events;
        let of_names: Vec<usize> = (0..events.len())
            .filter(|&at| {
                let is_change =
                    matches!(events[at].kind, Kind::Rename | Kind::Unlink | Kind::Mkdir);
                is_change || (events[at].kind == Kind::Sync && !events[at].name.starts_with("log-"))
            })
            .collect();
        let is_answer = |at: &usize| events[*at].kind == Kind::Acknowledged;
        match random.index(8) {
            0..2 => random.index(events.len() + 1),
            2..4 => {
                let from = random.index(events.len());
                let answer = (from..events.len()).find(is_answer);
                answer.map_or(events.len(), |at| at + 1)
            }
            4 => random.index(events.len().min(60)),
            _ => of_names[random.index(of_names.len())] + random.index(2),
        }
    }

    /// The last write of a client before this event that was sent, and the last one of those before `acknowledged`
    /// that was acknowledged.
    pub(crate) fn progress(
        &self,
        client: usize,
        sent: usize,
        acknowledged: usize,
    ) -> (Option<u64>, Option<u64>) {
        let last = |until: usize, kind| {
            let mut events = self.events[..until].iter().rev();
            let is_of = |it: &&Event| it.kind == kind && usize::try_from(it.fd) == Ok(client);
            events.find(is_of).map(|it| it.offset)
        };
        (
            last(acknowledged, Kind::Acknowledged),
            last(sent, Kind::Sent),
        )
    }

    /// The event before which everything that the first node has acknowledged is on its disk, where the power fails
    /// before `until`.
    pub(crate) fn kept(&self, sync: &str, until: usize) -> usize {
        match sync {
            "always" => until,
            _ => self.last_sync(0, until).unwrap_or(0),
        }
    }

    /// The last successful sync of a node's log before this event.
    fn last_sync(&self, node: u32, until: usize) -> Option<usize> {
        self.events[..until].iter().rposition(|it| {
            let is_of = it.node == node && it.name.starts_with("log-");
            is_of && it.kind == Kind::Sync && it.error == 0
        })
    }

    /// The files of a node after the events before this one, which began with those of `base`.
    pub(crate) fn image(
        &self,
        node: u32,
        base: &Image,
        until: usize,
        survival: Survival<'_>,
    ) -> Image {
        let mut disk = Disk::new(base);
        for event in self.events[..until].iter().filter(|it| it.node == node) {
            disk.apply(event);
        }
        disk.image(survival)
    }
}

/// How much a power failure leaves of what was not synced.
#[derive(Debug)]
pub(crate) enum Survival<'r> {
    Nothing,
    Drawn(&'r mut Random),
    Everything,
}

impl<'r> Survival<'r> {
    /// Nothing at times, and else what is drawn.
    pub(crate) fn of(random: &'r mut Random) -> Survival<'r> {
        if random.index(3) == 0 {
            Survival::Nothing
        } else {
            Survival::Drawn(random)
        }
    }

    /// A number up to `most`.
    fn draw(&mut self, most: usize) -> usize {
        match self {
            Survival::Nothing => 0,
            Survival::Drawn(random) => random.index(most + 1),
            Survival::Everything => most,
        }
    }
}

/// The files of a data directory; `None` where there is no directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image(pub(crate) Option<BTreeMap<String, Vec<u8>>>);

impl Image {
    pub(crate) fn of(dir: &Path) -> Image {
        let Ok(entries) = fs::read_dir(dir) else {
            return Image(None);
        };
        let files = entries.map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        });
        Image(Some(files.collect()))
    }

    pub(crate) fn write(&self, dir: &Path) {
        let Some(files) = &self.0 else {
            return;
        };
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        for (name, bytes) in files {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    /// Whether it has a log or a snapshot.
    pub(crate) fn has_data(&self) -> bool {
        let mut names = self.0.iter().flat_map(BTreeMap::keys);
        names.any(|name| name.starts_with("log-") || name.starts_with("snapshot-"))
    }

    /// Names and lengths, for messages.
    pub(crate) fn summary(&self) -> String {
        let files = self.0.iter().flatten();
        let lines = files.map(|(name, bytes)| format!("{name}: {} bytes\n", bytes.len()));
        lines.collect()
    }
}

/// A disk with what is durable, and what is not yet.
#[derive(Debug, Default)]
struct Disk {
    contents: Vec<Content>,
    /// Contents that are open.
    fds: HashMap<i32, usize>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes of names since the last sync of the directory.
    changes: Vec<Change>,
    exists: bool,
    durably_exists: bool,
}

#[derive(Debug, Default)]
struct Content {
    durable: Vec<u8>,
    /// Writes since the last sync.
    writes: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum Change {
    Create(String, usize),
    Rename(String, String, usize),
    Remove(String),
}

fn change(names: &mut BTreeMap<String, usize>, change: Change) {
    match change {
        Change::Create(name, content) => {
            names.insert(name, content);
        }
        Change::Rename(from, to, content) => {
            if names.get(&from) == Some(&content) {
                names.remove(&from);
            }
            names.insert(to, content);
        }
        Change::Remove(name) => {
            names.remove(&name);
        }
    }
}

impl Disk {
    fn new(base: &Image) -> Disk {
        let mut disk = Disk {
            exists: base.0.is_some(),
            durably_exists: base.0.is_some(),
            ..Disk::default()
        };
        for (name, bytes) in base.0.iter().flatten() {
            disk.names.insert(name.clone(), disk.contents.len());
            disk.contents.push(Content {
                durable: bytes.clone(),
                writes: Vec::new(),
            });
        }
        disk.durable_names = disk.names.clone();
        disk
    }

    fn apply(&mut self, event: &Event) {
        let name = &event.name;
        let is_directory = name == "." || name == "..";
        match event.kind {
            Kind::Write => {
                let at = usize::try_from(event.offset).unwrap();
                let content = &mut self.contents[self.fds[&event.fd]];
                content.writes.push((at, event.data.clone()));
            }
            // The system may have dropped what it could not write, and says so only once.
            Kind::Sync if event.error != 0 && !is_directory => {
                self.contents[self.fds[&event.fd]].writes.clear();
            }
            _ if event.error != 0 => {}
            Kind::Open if is_directory => {}
            Kind::Open => {
                let known = self.names.get(name).copied();
                let content = known.unwrap_or_else(|| {
                    assert!(event.offset & CREATES != 0, "{event:?} finds no file");
                    self.contents.push(Content::default());
                    let content = self.contents.len() - 1;
                    self.change(Change::Create(name.clone(), content));
                    content
                });
                self.fds.insert(event.fd, content);
            }
            Kind::Sync if name == ".." => self.durably_exists = self.exists,
            Kind::Sync if name == "." => {
                self.durable_names = self.names.clone();
                self.changes.clear();
            }
            Kind::Sync => {
                let content = &mut self.contents[self.fds[&event.fd]];
                for (at, data) in std::mem::take(&mut content.writes) {
                    put(&mut content.durable, at, &data);
                }
            }
            Kind::Rename => {
                let from = String::from_utf8(event.data.clone()).unwrap();
                let content = self.names[&from];
                self.change(Change::Rename(from, name.clone(), content));
            }
            Kind::Unlink => self.change(Change::Remove(name.clone())),
            Kind::Mkdir => self.exists = true,
            Kind::Sent | Kind::Acknowledged => {}
        }
    }

    fn change(&mut self, new: Change) {
        self.changes.push(new.clone());
        change(&mut self.names, new);
    }

    fn image(&self, mut survival: Survival<'_>) -> Image {
        let exists = self.durably_exists || (self.exists && survival.draw(1) == 1);
        if !exists {
            return Image(None);
        }
        let mut names = self.durable_names.clone();
        for new in &self.changes {
            if survival.draw(1) == 1 {
                change(&mut names, new.clone());
            }
        }
        let mut contents = BTreeMap::new();
        let mut files = BTreeMap::new();
        for (name, content) in names {
            let bytes = contents
                .entry(content)
                .or_insert_with(|| self.contents[content].after(&mut survival));
            files.insert(name, bytes.clone());
        }
        Image(Some(files))
    }
}

impl Content {
    /// The files after a power failure.
    fn after(&self, survival: &mut Survival<'_>) -> Vec<u8> {
        let count = self.writes.len();
        // All writes up to one, and more of single sectors, or each sector by itself.
        let whole = match survival.draw(3) {
            0 => 0,
            1 => survival.draw(count),
            2 => 0,
            _ => count,
        };
        let is_torn = !matches!(survival, Survival::Everything) && survival.draw(3) > 0;
        let mut bytes = self.durable.clone();
        for (at, data) in &self.writes[..whole] {
            put(&mut bytes, *at, data);
        }
        let rest = &self.writes[whole..];
        if is_torn {
            let sectors: BTreeSet<usize> = rest
                .iter()
                .flat_map(|(at, data)| at / SECTOR..(at + data.len()).div_ceil(SECTOR))
                .collect();
            for sector in sectors {
                let kept = survival.draw(rest.len());
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                for (at, data) in &rest[..kept] {
                    let from = range.start.max(*at);
                    let to = range.end.min(at + data.len());
                    if from < to {
                        put(&mut bytes, from, &data[from - at..to - at]);
                    }
                }
            }
            // The length may be durable before the bytes.
            let ends = rest.iter().map(|(at, data)| at + data.len());
            let len = ends.max().unwrap_or(0);
            if len > bytes.len() && survival.draw(2) == 0 {
                bytes.resize(len, 0);
            }
        }
        bytes
    }
}

/// Writes into a file, which grows.
fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(data);
}
