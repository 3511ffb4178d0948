//! The receiving side: a node's one connection to the node that it copies, and what a leader does before it serves.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::hint::black_box;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};
use parking_lot::{Condvar, Mutex};

use super::rules::{Position, Standing, Verdict, furthest, next_epoch, takes};
use super::source::leads;
use super::{Stop, connect, heartbeat};
use crate::config::NodeConfig;
use crate::digest::Digest;
use crate::entry::Entry;
use crate::history::{Era, History};
use crate::journal::Head;
use crate::node::{Diverged, Member, Node, Phase, digest};
use crate::store::Staged;
use crate::wire::replication::{Follow, FollowAnswer, Frames, Message, Parsed, Start, parse};
use crate::wire::response::{self, Response};
use crate::wire::{Buffer, Request, Status};

/// Pause before the link is tried again: doubled each time, from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Entries that a copy's announcement makes room for at the most, whatever it says: half a gigabyte of empty table.
const EXPECTED_MAX: usize = 1 << 26;

/// Most that the allocator is asked for in advance: glibc maps what is larger apart, and unmaps it again.
const ROOM_BYTES_MAX: usize = 120 << 10;

/// Entries of a copy that are put into the store together: a few dozen for each partition.
const STAGED_MAX: usize = 1 << 15;

/// Bytes of them, about. One key may come again and again, and each time counts until they are put in.
const STAGED_BYTES_MAX: usize = 4 << 20;

/// How long they wait at the most while more of them come: the node's status counts what is in the store.
const STAGED_FOR: Duration = Duration::from_millis(100);

/// Between two acknowledgements at least, so that a busy stream does not have one for each batch.
const ACK_PAUSE: Duration = Duration::from_millis(1);

/// Why a link ended.
#[derive(Debug)]
enum Fault {
    Io(io::Error),
    /// The peer refused to be followed.
    Answer(String),
    /// The peer cannot be followed yet: it has no data set, or another follower is being copied to.
    NotYet(String),
    /// The stream is not what it should be.
    Stream(String),
    /// The data set is not what the leader's is.
    Diverged(String),
    /// Keep the own data set and follow nobody.
    Refused(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::Io(error)
    }
}

/// Follows the leader, or as the leader finds data and begins to serve, until the node stops.
pub(super) fn run(node: &Node, member: &Member, stop: &Stop) {
    if leads(node) {
        recover(node, member, stop);
    } else if let Some(leader) = member.peers.iter().find(|peer| peer.name == member.leader) {
        follow(node, member, leader, stop);
    }
}

fn follow(node: &Node, member: &Member, leader: &NodeConfig, stop: &Stop) {
    let mut back_off = BackOff::new();
    let mut last = String::new();
    while !stop.is_stopped() {
        let mut link = Link::new(node, member, &leader.name);
        let fault = match link.run(&leader.addr, stop, false) {
            Ok(()) => return,
            Err(fault) => fault,
        };
        if stop.is_stopped() {
            return;
        }
        if link.has_followed {
            back_off = BackOff::new();
        }
        let mut pause = back_off.next();
        let text = match fault {
            Fault::NotYet(text) => {
                // It is there and asking costs little, so that it is followed soon after it can be.
                pause = pause.min(member.replication.heartbeat_interval);
                text
            }
            Fault::Diverged(text) => {
                node.distrust(&text);
                text
            }
            Fault::Refused(text) => {
                node.enter(Phase::Refusing(Arc::from(text.as_str())));
                text
            }
            fault => describe(&fault, member),
        };
        // A leader that is away for an hour is one line, not one for each try.
        if text != last {
            warn!("not following {}: {text}", leader.name);
            last = text;
        }
        if link.has_followed {
            last.clear();
        }
        if pause_for(node, &leader.name, stop, pause) {
            return;
        }
    }
}

/// Pauses, but no longer than until the leader comes up again, and says whether it is over.
fn pause_for(node: &Node, leader: &str, stop: &Stop, time: Duration) -> bool {
    let begin = Instant::now();
    let has_come = || {
        let liveness = node.liveness().lock();
        let mut peers = liveness.peers().iter();
        peers.any(|peer| peer.name == leader && peer.is_up && peer.since > begin)
    };
    loop {
        let left = time.saturating_sub(begin.elapsed());
        if stop.wait(left.min(BACK_OFF.0)) {
            return true;
        }
        if left <= BACK_OFF.0 || has_come() {
            return false;
        }
    }
}

fn describe(fault: &Fault, member: &Member) -> String {
    match fault {
        Fault::Io(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            let limit = member.replication.leader_timeout.as_millis();
            format!("leader timeout: it said nothing for {limit} ms")
        }
        Fault::Io(error) => error.to_string(),
        Fault::Answer(text)
        | Fault::NotYet(text)
        | Fault::Stream(text)
        | Fault::Diverged(text)
        | Fault::Refused(text) => text.clone(),
    }
}

/// What became of asking a peer.
enum Asked {
    /// It is there, or its machine says that it is not.
    Answered(Option<Standing>),
    Silent,
}

/// What a leader does before it serves: it asks its peers where they stand, copies the one furthest ahead, and opens a
/// new era. Only where none has data does it start with nothing.
fn recover(node: &Node, member: &Member, stop: &Stop) {
    let mut back_off = BackOff::new();
    loop {
        let (peers, found): (Vec<_>, Vec<_>) = ask_all(node, member, stop).into_iter().unzip();
        if stop.is_stopped() {
            return;
        }
        if let Some(at) = furthest(&found) {
            let (source, Standing { epoch, index, .. }) = (peers[at], found[at]);
            let name = &source.name;
            info!("{name} is furthest ahead, at index {index} of epoch {epoch}; copying it");
            node.enter(Phase::Loading(Arc::from(format!(
                "this leader is copying its data from {name}"
            ))));
            let mut link = Link::new(node, member, name);
            if let Err(fault) = link.run(&source.addr, stop, true) {
                warn!("cannot copy {name}: {}", describe(&fault, member));
                // Part of a copy is no data set: where nobody is left to copy, the leader starts with nothing.
                node.give_up("this leader is asking the other nodes for data");
                if stop.wait(back_off.next()) {
                    return;
                }
                continue;
            }
        }
        let head = node.head();
        let era = Era {
            epoch: next_epoch(&node.history(), &found),
            nonce: random(),
            start_index: head.index + 1,
        };
        match node.open_era(era) {
            Ok(()) => info!(
                "leading from index {} on, in epoch {}",
                era.start_index, era.epoch
            ),
            Err(error) => warn!("cannot lead: {error}"),
        }
        return;
    }
}

/// Asks all peers at once, until each has answered or `leader_timeout` is over.
fn ask_all<'a>(node: &Node, member: &'a Member, stop: &Stop) -> Vec<(&'a NodeConfig, Standing)> {
    let deadline = Instant::now() + member.replication.leader_timeout;
    thread::scope(|scope| {
        let ask_peer = |peer: &'a NodeConfig| {
            move || {
                loop {
                    match ask(peer, deadline, stop) {
                        Asked::Answered(None) => return None,
                        Asked::Answered(Some(found)) => {
                            // A leader that is stopped right after its start has to know who lives.
                            let change = node.liveness().lock().observe(&peer.name, Instant::now());
                            change.into_iter().for_each(heartbeat::report);
                            return Some((peer, found));
                        }
                        Asked::Silent if Instant::now() >= deadline => {
                            warn!("{} does not answer; going on without it", peer.name);
                            return None;
                        }
                        Asked::Silent if stop.wait(BACK_OFF.0) => return None,
                        Asked::Silent => {}
                    }
                }
            }
        };
        let asked: Vec<_> = member
            .peers
            .iter()
            .map(|peer| scope.spawn(ask_peer(peer)))
            .collect();
        asked
            .into_iter()
            .filter_map(|thread| thread.join().ok().flatten())
            .collect()
    })
}

fn ask(peer: &NodeConfig, deadline: Instant, stop: &Stop) -> Asked {
    let status = || -> io::Result<String> {
        let mut stream = connect(&peer.addr, deadline, stop)?;
        let mut request = Vec::new();
        Request::Status
            .encode(&mut request)
            .map_err(io::Error::other)?;
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(&request)?;
        let mut buffer = Buffer::new();
        read_answer(&stream, &mut buffer, deadline, |answer| {
            String::from_utf8_lossy(answer.value).into_owned()
        })
    };
    match status() {
        Ok(text) => {
            let field = |key: &str| {
                let mut lines = text.lines().filter_map(|line| line.split_once(": "));
                lines
                    .find(|(name, _)| *name == key)
                    .map_or("", |(_, value)| value)
            };
            let number = |key: &str| field(key).parse().unwrap_or(0);
            Asked::Answered(Some(Standing {
                epoch: number("epoch"),
                index: number("index"),
                has_data: matches!(field("state"), "serving" | "refused"),
            }))
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Asked::Answered(None),
        Err(_) => Asked::Silent,
    }
}

/// Reads one answer by `deadline`; what follows it stays in `buffer`.
fn read_answer<T>(
    mut stream: &TcpStream,
    buffer: &mut Buffer,
    deadline: Instant,
    f: impl FnOnce(&Response<'_>) -> T,
) -> io::Result<T> {
    loop {
        let needed = match response::parse(buffer.bytes()).map_err(io::Error::other)? {
            response::Parsed::Whole(answer) => {
                let len = answer.frame_len();
                let result = f(&answer);
                buffer.consume(len);
                return Ok(result);
            }
            response::Parsed::Incomplete { needed } => needed,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer.space(needed))? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => buffer.filled(count),
        }
    }
}

/// One connection to the node that is copied.
struct Link<'a> {
    node: &'a Node,
    member: &'a Member,
    source: &'a str,
    /// The stream has come to where the node follows it.
    has_followed: bool,
    /// A full copy was agreed on, and has not begun.
    awaits_copy: bool,
    copy: Option<Copy>,
    epoch: u64,
}

/// A full copy that is coming in.
struct Copy {
    history: History,
    /// Of all that came, staged or not; of what a staged entry will replace, too.
    digest: Digest,
    /// SETs that came and are not in the store yet.
    staged: Staged,
    /// Bytes of their frames.
    staged_bytes: usize,
    /// When the last ones were put in.
    put_at: Instant,
    chunks: u64,
    started: Instant,
}

/// What the link tells the thread that acknowledges.
#[derive(Default)]
struct Acks {
    state: Mutex<AckState>,
    changed: Condvar,
}

#[derive(Default)]
struct AckState {
    applied: u64,
    is_over: bool,
}

impl<'a> Link<'a> {
    const fn new(node: &'a Node, member: &'a Member, source: &'a str) -> Link<'a> {
        Link {
            node,
            member,
            source,
            has_followed: false,
            awaits_copy: false,
            copy: None,
            epoch: 0,
        }
    }

    /// Asks for the stream and applies it until it ends; with `only_copy` until a full copy is complete. `Ok` means
    /// that it has what it came for.
    fn run(&mut self, addr: &str, stop: &Stop, only_copy: bool) -> Result<(), Fault> {
        let timeout = self.member.replication.leader_timeout;
        let deadline = Instant::now() + timeout;
        let stream = Arc::new(connect(addr, deadline, stop)?);
        stop.watch(Some(&stream))?;
        let result = self.run_on(&stream, deadline, only_copy);
        self.node.leader_lost();
        stop.watch(None)?;
        result
    }

    fn run_on(
        &mut self,
        stream: &TcpStream,
        deadline: Instant,
        only_copy: bool,
    ) -> Result<(), Fault> {
        let node = self.node;
        let timeout = self.member.replication.leader_timeout;
        stream.set_write_timeout(Some(timeout))?;
        let own = Position::of(&node.history(), node.head().index);
        let discards = node.is_to_discard();
        let mut request = Vec::new();
        let follow = Follow {
            name: self.member.name.as_bytes(),
            is_observer: false,
            wants_full_copy: node.wants_full_copy() || only_copy,
            epoch: own.epoch,
            nonce: own.nonce,
            last_index: own.index,
            cluster_id: self.member.cluster.as_bytes(),
        };
        follow.encode(&mut request).map_err(io::Error::other)?;
        let mut writing = stream;
        writing.write_all(&request)?;
        let mut buffer = Buffer::new();
        let judge = |answer: &Response<'_>| self.judge(answer, own, discards || only_copy);
        let (verdict, history) = read_answer(stream, &mut buffer, deadline, judge)??;
        self.epoch = history.last().map_or(0, |era| era.epoch);
        match verdict {
            Verdict::Refuse => {
                let text = format!(
                    "{}'s data set does not include this node's, which ends at index {} of epoch {}; keeping it \
                     (gopherstore-cli resync --discard gives it up)",
                    self.source, own.index, own.epoch
                );
                return Err(Fault::Refused(text));
            }
            Verdict::Misfit => {
                return Err(Fault::Stream(
                    "it offers to resume at another index".to_owned(),
                ));
            }
            Verdict::Resume => {
                node.count_stream(false);
                node.adopt(history);
                self.has_followed = true;
                info!("following {} from index {}", self.source, own.index + 1);
            }
            Verdict::TakeCopy => {
                node.count_stream(true);
                self.awaits_copy = true;
            }
        }
        node.leader_heard(Instant::now());
        stream.set_read_timeout(Some(timeout))?;
        let acks = Acks::default();
        // Of what is given up for a copy, nothing counts.
        acks.state.lock().applied = if self.awaits_copy { 0 } else { own.index };
        thread::scope(|scope| {
            let (interval, epoch) = (self.member.replication.heartbeat_interval, self.epoch);
            let writer = thread::Builder::new().name("link-acks".to_owned());
            let acks = &acks;
            writer.spawn_scoped(scope, move || acknowledge(stream, acks, interval, epoch))?;
            let result = self.receive(stream, &mut buffer, acks, only_copy);
            acks.state.lock().is_over = true;
            acks.changed.notify_all();
            result
        })
    }

    fn judge(
        &self,
        answer: &Response<'_>,
        own: Position,
        discards: bool,
    ) -> Result<(Verdict, History), Fault> {
        if answer.status != Status::Ok.byte() {
            let name = Status::try_from(answer.status).map_or("an unknown status", Status::name);
            let text = String::from_utf8_lossy(answer.value);
            let text = format!("{} answers {name}: {text}", self.source);
            return Err(if answer.status == Status::Loading.byte() {
                Fault::NotYet(text)
            } else {
                Fault::Answer(text)
            });
        }
        let offer =
            FollowAnswer::decode(answer.value).map_err(|error| Fault::Stream(error.to_string()))?;
        let history = offer.history.to_history();
        let start: Start = offer.start;
        Ok((takes(own, discards, start, &history), history))
    }

    fn receive(
        &mut self,
        mut stream: &TcpStream,
        buffer: &mut Buffer,
        acks: &Acks,
        only_copy: bool,
    ) -> Result<(), Fault> {
        loop {
            let needed =
                match parse(buffer.bytes()).map_err(|error| Fault::Stream(error.to_string()))? {
                    Parsed::Incomplete { needed } => needed,
                    Parsed::Whole { message, frame_len } => {
                        let is_end = matches!(message, Message::SnapshotEnd { .. });
                        self.take(&message)?;
                        buffer.consume(frame_len);
                        if self.copy.is_none() {
                            acks.state.lock().applied = self.node.head().index;
                            acks.changed.notify_all();
                        }
                        if is_end && only_copy {
                            return Ok(());
                        }
                        continue;
                    }
                };
            match stream.read(buffer.space(needed)) {
                Ok(0) => return Err(Fault::Stream(format!("{} ended the stream", self.source))),
                Ok(count) => {
                    self.node.leader_heard(Instant::now());
                    buffer.filled(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take(&mut self, message: &Message<'_>) -> Result<(), Fault> {
        let stream_fault = |text: String| Err(Fault::Stream(text));
        if message.epoch() != self.epoch {
            return stream_fault(format!(
                "a message of epoch {}, not {}",
                message.epoch(),
                self.epoch
            ));
        }
        let node = self.node;
        match (*message, &mut self.copy) {
            (
                Message::Entries {
                    first_index,
                    frames,
                    ..
                },
                None,
            ) if !self.awaits_copy => {
                let next = node.head().index + 1;
                if first_index != next {
                    return stream_fault(format!("entry {first_index} came, expected {next}"));
                }
                for run in frames.runs() {
                    node.apply_run(&run).map_err(|Diverged { key }| {
                        let key = key.escape_ascii().to_string();
                        Fault::Diverged(format!("the leader removed {key:.40}, which is not here"))
                    })?;
                }
            }
            (
                Message::Heartbeat {
                    digest_index,
                    digest,
                    ..
                },
                None,
            ) if !self.awaits_copy => {
                let head = node.head();
                if digest_index != head.index {
                    // Whatever was sent before it is applied, so this node has entries of another origin.
                    return Err(Fault::Diverged(format!(
                        "the leader has sent everything up to index {digest_index}, and this node is at {}",
                        head.index
                    )));
                }
                if digest != head.digest.to_u128() {
                    let theirs = Digest::from_u128(digest);
                    return Err(Fault::Diverged(format!(
                        "the digest at index {digest_index} is {}, and the leader's {theirs}",
                        head.digest
                    )));
                }
            }
            (Message::Heartbeat { .. }, Some(_)) => {}
            (
                Message::SnapshotBegin {
                    keys,
                    bytes,
                    history,
                    ..
                },
                None,
            ) if self.awaits_copy => {
                self.awaits_copy = false;
                info!(
                    "taking a full copy of {}: about {keys} keys, {bytes} bytes",
                    self.source
                );
                node.give_up("this node is receiving a full copy");
                let expected = usize::try_from(keys).unwrap_or(usize::MAX);
                node.store().reserve(expected.min(EXPECTED_MAX));
                self.copy = Some(Copy {
                    history: history.to_history(),
                    digest: Digest::EMPTY,
                    staged: Staged::default(),
                    staged_bytes: 0,
                    put_at: Instant::now(),
                    chunks: 0,
                    started: Instant::now(),
                });
            }
            (
                Message::SnapshotChunk {
                    sequence, frames, ..
                },
                Some(copy),
            ) => {
                if sequence != copy.chunks {
                    return stream_fault(format!(
                        "chunk {sequence} came, expected {}",
                        copy.chunks
                    ));
                }
                copy.chunks += 1;
                copy.apply(node, frames);
            }
            (
                Message::SnapshotEnd {
                    index,
                    digest,
                    chunks,
                    ..
                },
                Some(copy),
            ) => {
                copy.put(node);
                if chunks != copy.chunks || digest != copy.digest.to_u128() {
                    return Err(Fault::Diverged("the copy is not what was sent".to_owned()));
                }
                if let Some(journal) = node.journal() {
                    journal.reset(Head {
                        index,
                        digest: copy.digest,
                    });
                }
                info!(
                    "copied {} up to index {index} in {} ms",
                    self.source,
                    copy.started.elapsed().as_millis()
                );
                node.adopt(std::mem::take(&mut copy.history));
                self.copy = None;
                self.has_followed = true;
            }
            (message, _) => {
                return stream_fault(format!(
                    "{} where it does not belong",
                    message.opcode().name()
                ));
            }
        }
        Ok(())
    }
}

impl Copy {
    fn apply(&mut self, node: &Node, frames: Frames<'_>) {
        make_room(frames.bytes().len());
        for frame in frames.iter() {
            if let Request::Set { .. } = frame.request() {
                self.digest = self.digest.plus(digest(frame));
                node.store().stage(&mut self.staged, Entry::copy_of(&frame));
                self.staged_bytes += frame.bytes().len();
            } else {
                self.put(node);
                let old = node.store().remove(frame.request().key());
                let old = old.as_ref().map(Digest::of).unwrap_or_default();
                self.digest = self.digest.changed(old, Digest::EMPTY);
            }
        }
        if self.staged.len() >= STAGED_MAX
            || self.staged_bytes >= STAGED_BYTES_MAX
            || self.put_at.elapsed() >= STAGED_FOR
        {
            self.put(node);
        }
        // Others on this machine may have more urgent work. Once a chunk, which is a third of a millisecond: each time
        // gives away what the scheduler would have let this thread run.
        thread::yield_now();
    }

    /// Puts in what is staged.
    fn put(&mut self, node: &Node) {
        let sum = &mut self.digest;
        node.store().put(&mut self.staged, |old| {
            *sum = sum.changed(Digest::of(old), Digest::EMPTY);
        });
        self.staged_bytes = 0;
        self.put_at = Instant::now();
    }
}

/// Has the allocator take from the system at once what entries of so many bytes need. glibc takes a page at a time in
/// any thread but the first, each with a system call; what is freed here it keeps, and makes the entries of.
fn make_room(bytes: usize) {
    black_box(Vec::<u8>::with_capacity((2 * bytes).min(ROOM_BYTES_MAX)));
}

/// Says how far the node is, when that changes and at every heartbeat.
fn acknowledge(mut stream: &TcpStream, acks: &Acks, interval: Duration, epoch: u64) {
    let (mut said, mut out) = (None, Vec::new());
    loop {
        let deadline = Instant::now() + interval;
        let mut state = acks.state.lock();
        while !state.is_over && said == Some(state.applied) {
            if acks.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        if state.is_over {
            return;
        }
        let applied_index = state.applied;
        drop(state);
        said = Some(applied_index);
        out.clear();
        let ack = Message::Ack {
            epoch,
            applied_index,
        };
        // The reading side notices a connection that is gone.
        if ack.encode(&mut out).is_err() || stream.write_all(&out).is_err() {
            return;
        }
        thread::sleep(ACK_PAUSE);
    }
}

/// Pauses that double, with jitter, so that followers of one leader do not come back all at once.
struct BackOff(Duration);

impl BackOff {
    const fn new() -> BackOff {
        BackOff(BACK_OFF.0)
    }

    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(BACK_OFF.1);
        let jitter = u32::try_from(random() % 256).unwrap_or(0);
        pause * (768 + jitter) / 1_024
    }
}

/// A number that nobody can foresee, from the keys that the standard library draws for its hash maps.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
