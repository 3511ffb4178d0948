//! A cluster of simulated nodes, and the commands of the scripts.
//!
//! | command                        | does                                                                        |
//! |--------------------------------|-----------------------------------------------------------------------------|
//! | `cluster nodes=3 backlog=1000` | starts nodes; 1 leads; the log keeps that many bytes                        |
//! | `set 1 a=1 b=2`, `del 1 a`     | writes on a node                                                            |
//! | `get 2 a`                      | reads on a node                                                             |
//! | `deliver`, `deliver 2`, `deliver 2 1` | all followers, or one, come to where the leader is, or by 1 entry    |
//! | `send 2 3`                     | 3 entries are on their way to a follower, which has not applied them yet    |
//! | `copy 2`                       | one step of a snapshot: asking for it, a partition, at last the end         |
//! | `partition 3`, `heal 3`        | no connection of that node with others works, or all do                     |
//! | `crash 2`, `restart 2 empty`   | a node is gone with its data; it starts anew                                |
//! | `discard 3`                    | the order to give up data that the leader does not know                     |
//! | `plant 2 a=9`                  | changes data and digest behind the log's back, at the index where it is     |
//! | `tick 500`                     | time passes; nodes probe each other, the leader sends heartbeats            |
//! | `status`                       | what each node says of itself                                               |
//!
//! A value that ends with `+` makes an entry of 40 KB, so that a few fill a log.
//!
//! The decisions are those of `replication::core`. This file only carries them out, as `replication::leader_side` and
//! `replication::follower_side` do with sockets.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use gopherstore::engine::digest::Digest;
use gopherstore::engine::entry::Entry;
use gopherstore::history::{EpochStart, History};
use gopherstore::log::Head;
use gopherstore::log::append_times::AppendTimes;
use gopherstore::log::backlog::{After, Append, Backlog, Records};
use gopherstore::node::Phase;
use gopherstore::replication::core::liveness::{Change, Liveness, SILENT_HEARTBEATS};
use gopherstore::replication::core::progress::{Progress, lag_since};
use gopherstore::replication::core::rules::{
    Decision, PeerPosition, Position, SnapshotRule, decide, most_up_to_date, next_epoch, start_of,
};
use gopherstore::replication::core::snapshot_permits::{Permit, SnapshotPermits};
use gopherstore::wire::Request;
use gopherstore::wire::request::{Limits, Parsed, parse};

const HEARTBEAT: Duration = Duration::from_millis(500);
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Partitions by a key's first letter: a–i, j–r, s–z.
const PARTITIONS: usize = 3;

fn partition_of(key: &[u8]) -> usize {
    usize::from(key[0].saturating_sub(b'a')) / 9 % PARTITIONS
}

pub(crate) struct World {
    now: Instant,
    begin: Instant,
    backlog: u64,
    nodes: Vec<Node>,
    nonce: u64,
    out: String,
}

struct Node {
    name: String,
    is_running: bool,
    is_cut_off: bool,
    phase: Phase,
    history: History,
    /// Whether it was ordered to give up its data.
    discards: bool,
    /// Whether it found its data to be wrong.
    has_diverged: bool,
    map: BTreeMap<Vec<u8>, Entry>,
    head: Head,
    log: Backlog,
    times: AppendTimes,
    liveness: Liveness,
    /// Of a follower: its connection to the leader.
    link: Option<Link>,
    /// Of the leader.
    followers: BTreeMap<usize, Progress>,
    permits: SnapshotPermits,
}

struct Link {
    /// Next index that the leader sends.
    next: u64,
    heard: Instant,
    copy: Option<Copy>,
    /// Sent, and not applied yet.
    on_its_way: VecDeque<Entry>,
}

struct Copy {
    rule: SnapshotRule,
    partition: usize,
    history: History,
    _permit: Permit,
}

/// A SET, or without a value a DEL.
fn entry(key: &str, value: Option<&str>) -> Entry {
    let key = key.as_bytes();
    // `a=1+` is a large entry, which lies in the log by itself.
    let len = if value.is_some_and(|value| value.ends_with('+')) {
        40_000
    } else {
        0
    };
    let value = value.map(|value| format!("{value:len$}"));
    let request = match &value {
        Some(value) => Request::Set {
            key,
            value: value.as_bytes(),
        },
        None => Request::Del { key },
    };
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    match parse(&bytes, &Limits::default()).unwrap() {
        Parsed::Whole(frame) => Entry::copy_of(&frame),
        Parsed::Incomplete { .. } => unreachable!(),
    }
}

/// The content of a log at an index.
enum Next {
    Entry(Entry),
    Nothing,
    Gone,
}

fn entry_at(log: &Backlog, index: u64) -> Next {
    let mut frame = Vec::new();
    match log.read(index, 0, &mut frame) {
        After::Large(entry) => Next::Entry(entry),
        After::Small(_) => match parse(&frame, &Limits::default()).unwrap() {
            Parsed::Whole(frame) => Next::Entry(Entry::copy_of(&frame)),
            Parsed::Incomplete { .. } => unreachable!(),
        },
        After::Nothing => Next::Nothing,
        After::Gone => Next::Gone,
    }
}

fn is_del(entry: &Entry) -> bool {
    matches!(
        parse(entry.frame(), &Limits::default()),
        Ok(Parsed::Whole(frame)) if matches!(frame.request(), Request::Del { .. })
    )
}

fn text(entry: &Entry) -> String {
    let key = String::from_utf8_lossy(entry.key()).into_owned();
    if is_del(entry) {
        format!("del {key}")
    } else {
        format!(
            "{key}={}",
            String::from_utf8_lossy(entry.value()).trim_end()
        )
    }
}

impl Node {
    fn new(name: String, backlog: u64, names: &[String], now: Instant) -> Node {
        let peers = names.iter().filter(|peer| **peer != name).cloned();
        Node {
            liveness: Liveness::new(peers, HEARTBEAT * SILENT_HEARTBEATS, now),
            name,
            is_running: true,
            is_cut_off: false,
            phase: Phase::Loading("no complete data set yet".into()),
            history: History::default(),
            discards: false,
            has_diverged: false,
            map: BTreeMap::new(),
            head: Head::default(),
            log: Backlog::new(backlog),
            times: AppendTimes::default(),
            link: None,
            followers: BTreeMap::new(),
            permits: SnapshotPermits::default(),
        }
    }

    fn position(&self) -> Position {
        Position::of(&self.history, self.head.index)
    }

    /// Changes the data and gives the digest after it.
    fn change(&mut self, entry: &Entry, digest: Digest) -> Digest {
        let (old, new) = if is_del(entry) {
            (self.map.remove(entry.key()), Digest::EMPTY)
        } else {
            let old = self.map.insert(entry.key().to_vec(), entry.clone());
            (old, Digest::of(entry))
        };
        digest.changed(old.as_ref().map(Digest::of).unwrap_or_default(), new)
    }

    fn apply(&mut self, entry: &Entry, now: Instant) {
        self.head.digest = self.change(entry, self.head.digest);
        self.head.index += 1;
        self.log.push(&Append {
            records: Records::Entry(entry.clone()),
            count: 1,
            digest: self.head.digest,
        });
        self.times.note(self.head.index, self.head.index, now);
    }

    fn serves(&self) -> bool {
        !matches!(self.phase, Phase::Loading(_))
    }

    /// As `Node::adopt`.
    fn adopt(&mut self, history: History) {
        self.history = history;
        self.phase = Phase::Serving;
        self.discards = false;
        self.has_diverged = false;
    }

    /// As `Node::discard_dataset`.
    fn discard_dataset(&mut self) {
        self.history = History::default();
        self.phase = Phase::Loading("receiving a full copy".into());
        self.map.clear();
        self.head.digest = Digest::EMPTY;
    }

    fn reset_log(&mut self, index: u64, now: Instant) {
        self.head.index = index;
        self.times.reset(index, now);
        self.log.reset(index, self.head.digest);
    }
}

impl World {
    pub(crate) fn new() -> World {
        let now = Instant::now();
        World {
            now,
            begin: now,
            backlog: 1 << 20,
            nodes: Vec::new(),
            nonce: 0,
            out: String::new(),
        }
    }

    /// Runs a command and gives what it puts out.
    pub(crate) fn run(&mut self, command: &str) -> String {
        let mut words = command.split(' ');
        let name = words.next().unwrap_or_default();
        let words: Vec<&str> = words.collect();
        let count = self.nodes.len();
        let node = |at: usize| -> usize {
            let number: usize = words
                .get(at)
                .and_then(|word| word.parse().ok())
                .unwrap_or(0);
            assert!((1..=count).contains(&number), "{command}: which node?");
            number - 1
        };
        match name {
            "cluster" => self.cluster(&words),
            "set" => {
                for pair in &words[1..] {
                    let (key, value) = pair.split_once('=').expect("key=value");
                    self.write(node(0), &entry(key, Some(value)));
                }
            }
            "del" => {
                for key in &words[1..] {
                    self.write(node(0), &entry(key, None));
                }
            }
            "get" => self.get(node(0), words[1]),
            "deliver" => {
                let max = words.get(1).map_or(u64::MAX, |word| word.parse().unwrap());
                let followers = match words.first() {
                    Some(_) => vec![node(0)],
                    None => (1..self.nodes.len()).collect(),
                };
                for follower in followers {
                    self.deliver(follower, max);
                }
            }
            "send" => self.send_entries(node(0), words[1].parse().unwrap()),
            "copy" => self.copy_step(node(0)),
            "partition" => {
                let at = node(0);
                self.nodes[at].is_cut_off = true;
            }
            "heal" => {
                let at = node(0);
                self.nodes[at].is_cut_off = false;
            }
            "crash" => self.crash(node(0)),
            "restart" => self.restart(node(0)),
            "discard" => {
                let node = &mut self.nodes[node(0)];
                if matches!(node.phase, Phase::Refusing(_)) {
                    node.discards = true;
                } else {
                    self.out.push_str("ERROR nothing to discard\n");
                }
            }
            "plant" => {
                let (key, value) = words[1].split_once('=').expect("key=value");
                let node = &mut self.nodes[node(0)];
                node.head.digest = node.change(&entry(key, Some(value)), node.head.digest);
            }
            "tick" => self.tick(words[0].parse().unwrap()),
            "status" => self.status(),
            _ => panic!("no command {name:?}"),
        }
        std::mem::take(&mut self.out)
    }

    fn say(&mut self, text: &str) {
        let _ = writeln!(self.out, "{text}");
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        !self.nodes[from].is_cut_off && !self.nodes[to].is_cut_off
    }

    fn cluster(&mut self, words: &[&str]) {
        let option = |name: &str| {
            let pairs = words.iter().filter_map(|word| word.split_once('='));
            pairs
                .filter(|(key, _)| *key == name)
                .map(|(_, value)| value.parse().unwrap())
                .next()
        };
        self.backlog = option("backlog").unwrap_or(self.backlog);
        let names: Vec<_> = (1..=option("nodes").unwrap())
            .map(|number| format!("n{number}"))
            .collect();
        self.nodes = names
            .iter()
            .map(|name| Node::new(name.clone(), self.backlog, &names, self.now))
            .collect();
        self.lead();
    }

    fn write(&mut self, at: usize, entry: &Entry) {
        let now = self.now;
        let node = &mut self.nodes[at];
        assert!(node.is_running, "{} does not run", node.name);
        if at > 0 {
            self.say("NOT_LEADER n1");
        } else if node.phase != Phase::Serving {
            self.say("LOADING");
        } else if is_del(entry) && !node.map.contains_key(entry.key()) {
            self.say("NOT_FOUND");
        } else {
            node.apply(entry, now);
        }
    }

    fn get(&mut self, at: usize, key: &str) {
        let node = &self.nodes[at];
        let answer = match node.map.get(key.as_bytes()) {
            _ if !node.serves() => "LOADING".to_owned(),
            Some(entry) => format!("OK {}", String::from_utf8_lossy(entry.value())),
            None => "NOT_FOUND".to_owned(),
        };
        self.say(&answer);
    }

    /// Starts to lead, as `follower_side::recover`.
    fn lead(&mut self) {
        let (mut found, mut found_at) = (Vec::new(), Vec::new());
        for at in 1..self.nodes.len() {
            let (name, node) = (self.nodes[at].name.clone(), &self.nodes[at]);
            if !self.reaches(0, at) {
                self.say(&format!("{name} does not answer"));
            } else if node.is_running {
                let position = node.position();
                found.push(PeerPosition {
                    epoch: position.epoch,
                    index: position.index,
                    has_data: node.serves(),
                });
                found_at.push(at);
            }
        }
        if let Some(best) = most_up_to_date(&found) {
            let PeerPosition { epoch, index, .. } = found[best];
            let source = &self.nodes[found_at[best]];
            let text = format!("n1 copies {}: index {index} of epoch {epoch}", source.name);
            let (map, head, history) = (source.map.clone(), source.head, source.history.clone());
            self.say(&text);
            let now = self.now;
            let leader = &mut self.nodes[0];
            leader.map = map;
            leader.history = history;
            leader.head = head;
            leader.reset_log(head.index, now);
        }
        self.nonce += 1;
        let leader = &mut self.nodes[0];
        let start = EpochStart {
            epoch: next_epoch(&leader.history, &found),
            nonce: self.nonce,
            start_index: leader.head.index + 1,
        };
        let text = match leader.history.push(start) {
            Ok(()) => {
                leader.phase = Phase::Serving;
                format!(
                    "n1 leads from index {} on, in epoch {}",
                    start.start_index, start.epoch
                )
            }
            Err(error) => format!("n1 CANNOT LEAD: {error}"),
        };
        self.say(&text);
    }

    fn crash(&mut self, at: usize) {
        self.nodes[at].is_running = false;
        for (follower, node) in self.nodes.iter_mut().enumerate() {
            if at == 0 || follower == at {
                node.link = None;
            }
        }
        self.nodes[0].followers.remove(&at);
    }

    fn restart(&mut self, at: usize) {
        let names: Vec<_> = self.nodes.iter().map(|node| node.name.clone()).collect();
        let is_cut_off = self.nodes[at].is_cut_off;
        self.nodes[at] = Node::new(names[at].clone(), self.backlog, &names, self.now);
        self.nodes[at].is_cut_off = is_cut_off;
        if at == 0 {
            self.lead();
        }
    }

    fn drop_link(&mut self, at: usize, why: &str) {
        self.nodes[at].link = None;
        self.nodes[0].followers.remove(&at);
        let text = format!("{}: {why}", self.nodes[at].name);
        self.say(&text);
    }

    /// FOLLOW and its answer. Says whether there is a stream.
    fn connect(&mut self, at: usize) -> bool {
        let name = self.nodes[at].name.clone();
        if !self.nodes[at].is_running || !self.reaches(0, at) || !self.nodes[0].is_running {
            self.nodes[0].followers.remove(&at);
            if self.nodes[at].is_running {
                self.say(&format!("{name}: cannot reach n1"));
            }
            return false;
        }
        if self.nodes[at].link.is_some() {
            return true;
        }
        if self.nodes[0].phase != Phase::Serving {
            self.say(&format!("{name}: n1 answers LOADING"));
            return false;
        }
        let (leader, node) = (&self.nodes[0], &self.nodes[at]);
        let own = if node.discards {
            Position::default()
        } else {
            node.position()
        };
        let wants_snapshot = node.discards || node.has_diverged;
        let is_held = |index| index + 1 >= leader.log.first_index();
        let start = start_of(
            &leader.history,
            leader.head.index,
            is_held,
            own,
            wants_snapshot,
        );
        let decision = decide(own, start, &leader.history);
        let history = leader.history.clone();
        let mut copy = None;
        let (text, next) = match decision {
            Decision::Resume => (format!("resumes from {}", own.index + 1), own.index + 1),
            Decision::TakeSnapshot => {
                let holds_data = own.index > 0 && !wants_snapshot;
                let Some(permit) = leader.permits.begin(holds_data, self.now) else {
                    self.say(&format!(
                        "{name}: n1 answers LOADING until another's copy has ended"
                    ));
                    return false;
                };
                copy = Some(Copy {
                    rule: SnapshotRule::default(),
                    partition: 0,
                    history: history.clone(),
                    _permit: permit,
                });
                ("takes a full copy".to_owned(), leader.head.index + 1)
            }
            Decision::Refuse => {
                let why = format!(
                    "n1 lacks what ends at index {} of epoch {}",
                    own.index, own.epoch
                );
                self.nodes[at].phase = Phase::Refusing(why.as_str().into());
                self.say(&format!("{name}: refuses a full copy: {why}"));
                return false;
            }
            Decision::OfferMismatch => panic!("{start:?} for {own:?}"),
        };
        self.say(&format!("{name}: {text}"));
        let now = self.now;
        let applied = if copy.is_some() { 0 } else { own.index };
        self.nodes[0]
            .followers
            .insert(at, Progress::new(applied, now));
        let node = &mut self.nodes[at];
        match copy {
            Some(_) => node.discard_dataset(),
            None => node.adopt(history),
        }
        node.link = Some(Link {
            next,
            heard: now,
            copy,
            on_its_way: VecDeque::new(),
        });
        true
    }

    fn deliver(&mut self, at: usize, max: u64) {
        if !self.connect(at) {
            return;
        }
        while self.link(at).is_some_and(|link| link.copy.is_some()) {
            self.copy_step(at);
        }
        self.send_entries(at, max);
        self.apply_sent(at);
        self.beat(at);
    }

    fn link(&mut self, at: usize) -> Option<&mut Link> {
        self.nodes[at].link.as_mut()
    }

    /// Sends entries that are not applied yet.
    fn send_entries(&mut self, at: usize, max: u64) {
        for _ in 0..max {
            let Some(next) = self.link(at).map(|link| link.next) else {
                return;
            };
            match entry_at(&self.nodes[0].log, next) {
                Next::Nothing => return,
                Next::Gone => return self.drop_link(at, "fell behind the log"),
                Next::Entry(entry) => {
                    let link = self.link(at).unwrap();
                    link.on_its_way.push_back(entry);
                    link.next += 1;
                }
            }
        }
    }

    fn apply_sent(&mut self, at: usize) {
        while let Some(entry) = self.link(at).and_then(|link| link.on_its_way.pop_front()) {
            self.nodes[at].apply(&entry, self.now);
            self.acknowledge(at);
        }
    }

    fn acknowledge(&mut self, at: usize) {
        let (now, index) = (self.now, self.nodes[at].head.index);
        let follower = &self.nodes[at];
        let is_loading = follower
            .link
            .as_ref()
            .is_some_and(|link| link.copy.is_some());
        let progress = self.nodes[0].followers.get_mut(&at).unwrap();
        progress.acknowledged(if is_loading { 0 } else { index }, now);
    }

    /// A heartbeat and its acknowledgement.
    fn beat(&mut self, at: usize) {
        let now = self.now;
        let Some(link) = self.link(at) else {
            return;
        };
        link.heard = now;
        // The digest comes behind what was sent.
        let waits = link.copy.is_some() || !link.on_its_way.is_empty();
        let index = link.next - 1;
        self.acknowledge(at);
        let digest = self.nodes[0].log.digest_at(index);
        let own = self.nodes[at].head;
        if !waits && digest.is_some_and(|digest| digest != own.digest) {
            let node = &mut self.nodes[at];
            node.phase = Phase::Loading("its data differs from the leader's".into());
            node.has_diverged = true;
            self.drop_link(at, &format!("the digest at index {index} differs"));
        }
    }

    /// As `Sender::copy`: a partition, then what the log has gained.
    fn copy_step(&mut self, at: usize) {
        if self.link(at).is_none() {
            self.connect(at);
            return;
        }
        if !self.connect(at) {
            return self.drop_link(at, "the copy is cut off");
        }
        self.send_gained(at);
        let Some(mut link) = self.nodes[at].link.take() else {
            return;
        };
        let name = self.nodes[at].name.clone();
        let copy = link.copy.as_mut().expect("a copy under way");
        if copy.partition < PARTITIONS {
            let partition = copy.partition;
            let entries = self.nodes[0].map.values();
            let entries: Vec<Entry> = entries
                .filter(|entry| partition_of(entry.key()) == partition)
                .cloned()
                .collect();
            let index = self.nodes[0].head.index;
            copy.rule.partition_copied(index);
            copy.partition += 1;
            let texts: Vec<String> = entries.iter().map(text).collect();
            self.say(&format!(
                "{name}: partition {partition} at index {index}: [{}]",
                texts.join(" ")
            ));
            for entry in &entries {
                let digest = self.nodes[at].head.digest;
                self.nodes[at].head.digest = self.nodes[at].change(entry, digest);
            }
        } else {
            let index = link.next - 1;
            assert!(index >= copy.rule.exact_from(), "the end comes too early");
            let is_exact = self.nodes[0].log.digest_at(index) == Some(self.nodes[at].head.digest);
            assert!(is_exact, "{name}: the copy is not what was sent");
            let history = copy.history.clone();
            link.copy = None;
            self.nodes[at].reset_log(index, self.now);
            self.nodes[at].adopt(history);
            self.say(&format!("{name}: copied up to index {index}"));
        }
        self.nodes[at].link = Some(link);
        self.acknowledge(at);
    }

    fn send_gained(&mut self, at: usize) {
        while let Some(link) = &mut self.nodes[at].link {
            let index = link.next;
            let entry = match entry_at(&self.nodes[0].log, index) {
                Next::Nothing => return,
                Next::Gone => return self.drop_link(at, "the copy fell behind the log"),
                Next::Entry(entry) => entry,
            };
            let link = self.nodes[at].link.as_mut().unwrap();
            link.next += 1;
            let copy = link.copy.as_ref().expect("a copy under way");
            let partition = partition_of(entry.key());
            let is_sent = copy.rule.sends(partition, index);
            let what = if is_sent { "sent" } else { "in a copy" };
            let text = format!(
                "{}: entry {index} ({}, partition {partition}): {what}",
                self.nodes[at].name,
                text(&entry)
            );
            self.say(&text);
            if is_sent {
                let digest = self.nodes[at].head.digest;
                self.nodes[at].head.digest = self.nodes[at].change(&entry, digest);
            }
        }
    }

    fn tick(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while self.now < end {
            self.now += HEARTBEAT.min(end - self.now);
            for from in 0..self.nodes.len() {
                if self.nodes[from].is_running {
                    self.probe(from);
                }
            }
            for at in 1..self.nodes.len() {
                self.hear(at);
            }
        }
    }

    fn probe(&mut self, from: usize) {
        let now = self.now;
        let mut changes: Vec<Change> = Vec::new();
        for to in 0..self.nodes.len() {
            if to == from || !self.reaches(from, to) {
                continue;
            }
            let (is_running, name) = (self.nodes[to].is_running, self.nodes[to].name.clone());
            let table = &mut self.nodes[from].liveness;
            changes.extend(if is_running {
                table.observe(&name, now)
            } else {
                table.refused(&name, now)
            });
        }
        changes.extend(self.nodes[from].liveness.check(now));
        for change in changes {
            let text = format!(
                "{} ms: {} sees {} {} after {} ms",
                self.now.duration_since(self.begin).as_millis(),
                self.nodes[from].name,
                change.name,
                if change.is_up { "up" } else { "down" },
                change.after.as_millis()
            );
            self.say(&text);
        }
    }

    /// A follower hears its leader's heartbeat, or notices that it hears nothing; so does the leader.
    fn hear(&mut self, at: usize) {
        let (is_reached, now) = (self.reaches(0, at), self.now);
        let Some(link) = self.link(at) else {
            return;
        };
        let silence = now.saturating_duration_since(link.heard);
        if is_reached {
            self.beat(at);
        } else if silence >= LEADER_TIMEOUT {
            self.drop_link(at, "leader timeout");
        }
        let timeout = HEARTBEAT * SILENT_HEARTBEATS;
        let progress = self.nodes[0].followers.get(&at);
        if progress.is_some_and(|progress| progress.silence(now) > timeout) {
            self.nodes[0].followers.remove(&at);
            let text = format!(
                "n1: {} said nothing for three heartbeats",
                self.nodes[at].name
            );
            self.say(&text);
        }
    }

    fn status(&mut self) {
        let mut names: BTreeMap<(u64, u64, u64), (Digest, String)> = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| node.is_running) {
            let place = node.position();
            let (state, why) = match &node.phase {
                Phase::Loading(why) => ("loading", why.as_ref()),
                Phase::Serving => ("serving", ""),
                Phase::Refusing(why) => ("refused", why.as_ref()),
            };
            let pairs: Vec<String> = node.map.values().map(text).collect();
            let (name, epoch, index) = (&node.name, place.epoch, place.index);
            let digest = &node.head.digest.to_string()[..8];
            let pairs = pairs.join(" ");
            let out = &mut self.out;
            let _ = write!(out, "{name} {state} {epoch}:{index} {digest} [{pairs}]");
            let _ = writeln!(out, "{}{why}", if why.is_empty() { "" } else { " " });
            for (follower, progress) in &node.followers {
                let (applied, lacks) = (
                    progress.applied_index(),
                    progress.lag_entries(node.head.index),
                );
                let lag = match node.times.of(applied + 1) {
                    Some(since) if lacks > 0 => lag_since(since, self.now),
                    _ => Duration::ZERO,
                };
                let lag = lag.as_millis();
                let _ = writeln!(
                    out,
                    "  n{} applied {applied}, lacks {lacks}, for {lag} ms",
                    follower + 1
                );
            }
            // One name, one data set: what all of it rests on.
            if node.serves() {
                let key = (place.epoch, place.nonce, place.index);
                let digest = node.head.digest;
                let (other, by) = names.entry(key).or_insert((digest, node.name.clone()));
                if *other != digest {
                    let text = format!("{key:?} names one data set on {by} and another on {name}");
                    let _ = writeln!(self.out, "{text}");
                }
            }
        }
    }
}
