//! Streams between the simulated nodes: FOLLOW, entries, heartbeats and snapshots.

use std::collections::VecDeque;

use gopherstore::engine::entry::Entry;
use gopherstore::replication::core::progress::Progress;
use gopherstore::replication::core::rules::{Decision, Position, SnapshotRule, decide, start_of};

use crate::node::{Copy, Link, Next, Phase, entry_at, text};
use crate::world::{PARTITIONS, World, partition_of};

impl World {
    pub(crate) fn drop_link(&mut self, at: usize, why: &str) {
        self.nodes[at].link = None;
        self.nodes[0].followers.remove(&at);
        let text = format!("{}: {why}", self.nodes[at].name);
        self.say(&text);
    }

    /// FOLLOW and its answer. Says whether there is a stream.
    pub(crate) fn connect(&mut self, at: usize) -> bool {
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
        self.follow(at)
    }

    /// FOLLOW to a leader that is reached, and its answer. Returns whether there is a stream.
    fn follow(&mut self, at: usize) -> bool {
        let name = self.nodes[at].name.clone();
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
        let applied = if copy.is_some() { 0 } else { own.index };
        self.begin(at, applied, next, copy);
        true
    }

    /// Begins a stream, with a snapshot or the entry `next`.
    fn begin(&mut self, at: usize, applied: u64, next: u64, copy: Option<Copy>) {
        let now = self.now;
        self.nodes[0]
            .followers
            .insert(at, Progress::new(applied, now));
        let node = &mut self.nodes[at];
        match copy {
            Some(_) => node.discard_dataset(),
            None => node.adopt(),
        }
        node.link = Some(Link {
            next,
            heard: now,
            copy,
            on_its_way: VecDeque::new(),
        });
    }

    pub(crate) fn deliver(&mut self, at: usize, max: u64) {
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

    pub(crate) fn link(&mut self, at: usize) -> Option<&mut Link> {
        self.nodes[at].link.as_mut()
    }

    /// Sends entries that are not applied yet.
    pub(crate) fn send_entries(&mut self, at: usize, max: u64) {
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

    pub(crate) fn apply_sent(&mut self, at: usize) {
        while let Some(entry) = self.link(at).and_then(|link| link.on_its_way.pop_front()) {
            self.nodes[at].apply(&entry, self.now);
            self.acknowledge(at);
        }
    }

    pub(crate) fn acknowledge(&mut self, at: usize) {
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
    pub(crate) fn beat(&mut self, at: usize) {
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
    pub(crate) fn copy_step(&mut self, at: usize) {
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
            self.nodes[at].reset_log(index, history, self.now);
            self.nodes[at].adopt();
            self.say(&format!("{name}: copied up to index {index}"));
        }
        self.nodes[at].link = Some(link);
        self.acknowledge(at);
    }

    pub(crate) fn send_gained(&mut self, at: usize) {
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
}
