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
//! The decisions are those of `replication::core`. These files only carry them out, as `replication::stream` and
//! `replication::transport` do with sockets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use gopherstore::engine::digest::Digest;
use gopherstore::engine::entry::Entry;
use gopherstore::history::EpochStart;
use gopherstore::replication::core::liveness::{Change, SILENT_HEARTBEATS};
use gopherstore::replication::core::progress::lag_since;
use gopherstore::replication::core::rules::{PeerPosition, most_up_to_date, next_epoch};

use crate::node::{Node, Phase, entry, epoch_entry, is_del, text};

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Partitions by a key's first letter: a–i, j–r, s–z.
pub(crate) const PARTITIONS: usize = 3;

pub(crate) fn partition_of(key: &[u8]) -> usize {
    usize::from(key[0].saturating_sub(b'a')) / 9 % PARTITIONS
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) begin: Instant,
    pub(crate) backlog: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) nonce: u64,
    pub(crate) out: String,
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

    pub(crate) fn say(&mut self, text: &str) {
        let _ = writeln!(self.out, "{text}");
    }

    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        !self.nodes[from].is_cut_off && !self.nodes[to].is_cut_off
    }

    pub(crate) fn cluster(&mut self, words: &[&str]) {
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

    pub(crate) fn write(&mut self, at: usize, entry: &Entry) {
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

    pub(crate) fn get(&mut self, at: usize, key: &str) {
        let node = &self.nodes[at];
        let answer = match node.map.get(key.as_bytes()) {
            _ if !node.serves() => "LOADING".to_owned(),
            Some(entry) => format!("OK {}", String::from_utf8_lossy(entry.value())),
            None => "NOT_FOUND".to_owned(),
        };
        self.say(&answer);
    }

    /// Starts to lead, as `transport::recover`.
    pub(crate) fn lead(&mut self) {
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
            leader.head = head;
            leader.reset_log(head.index, history, now);
        }
        self.nonce += 1;
        let leader = &mut self.nodes[0];
        let start = EpochStart {
            epoch: next_epoch(&leader.history, &found),
            nonce: self.nonce,
            start_index: leader.head.index + 1,
        };
        leader.apply(&epoch_entry(start), self.now);
        leader.phase = Phase::Serving;
        self.say(&format!(
            "n1 leads from index {} on, in epoch {}",
            start.start_index, start.epoch
        ));
    }

    pub(crate) fn crash(&mut self, at: usize) {
        self.nodes[at].is_running = false;
        for (follower, node) in self.nodes.iter_mut().enumerate() {
            if at == 0 || follower == at {
                node.link = None;
            }
        }
        self.nodes[0].followers.remove(&at);
    }

    pub(crate) fn restart(&mut self, at: usize) {
        let names: Vec<_> = self.nodes.iter().map(|node| node.name.clone()).collect();
        let is_cut_off = self.nodes[at].is_cut_off;
        self.nodes[at] = Node::new(names[at].clone(), self.backlog, &names, self.now);
        self.nodes[at].is_cut_off = is_cut_off;
        if at == 0 {
            self.lead();
        }
    }

    pub(crate) fn tick(&mut self, ms: u64) {
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

    pub(crate) fn probe(&mut self, from: usize) {
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
    pub(crate) fn hear(&mut self, at: usize) {
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

    pub(crate) fn status(&mut self) {
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
