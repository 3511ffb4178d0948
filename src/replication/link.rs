//! The receiving side: a node's one connection to the node that it copies, and what a leader does before it serves.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::hint::black_box;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use parking_lot::{Condvar, Mutex};

use super::accept::leads;
use super::ask::identify;
use super::rules::{Position, Verdict, takes};
use super::start::{self, Next, Own};
use super::{Stop, connect};
use crate::config::NodeConfig;
use crate::engine::digest::Digest;
use crate::engine::entry::Entry;
use crate::engine::store::Staged;
use crate::history::{Era, History};
use crate::log::Head;
use crate::node::{Diverged, Member, Node, Phase, digest};
use crate::report::{Contact, Expected};
use crate::wire::replication::{Follow, FollowAnswer, Frames, Message, Parsed, Start, parse};
use crate::wire::response::{self, Response};
use crate::wire::{Buffer, Request, Status};

/// Pause before the link is tried again: doubled each time, from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Pause, and for how long, while the leader may be starting.
const EAGER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Between two looks at what the peers have said.
const DECISION_PAUSE: Duration = Duration::from_millis(5);

/// A leader that starts logs what it waits for once it has waited for so long.
const NOTABLE_WAIT: Duration = Duration::from_millis(500);

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
    /// Another node than the expected one answers.
    Stranger(String),
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
    let mut pauses = Pauses::new();
    let mut said = Said::default();
    while !stop.is_stopped() {
        let mut link = Link::new(node, member, &leader.name, Goal::Follow);
        let fault = match link.run(&leader.addr, stop) {
            Ok(()) => return,
            Err(fault) => fault,
        };
        if stop.is_stopped() {
            return;
        }
        if link.has_followed {
            pauses = Pauses::new();
            said = Said::default();
        }
        let text = describe(&fault, member);
        match &fault {
            Fault::Diverged(_) => node.distrust(&text),
            Fault::Refused(_) => node.enter(Phase::Refusing(Arc::from(text.as_str()))),
            Fault::Io(_)
            | Fault::Answer(_)
            | Fault::NotYet(_)
            | Fault::Stranger(_)
            | Fault::Stream(_) => {}
        }
        let text = format!("not following {}: {text}", leader.name);
        node.set_not_following(Some(&text));
        said.say(&fault, text);
        let longest = match fault {
            // Asking costs little, and the leader is followed soon after it can be.
            Fault::NotYet(_) | Fault::Answer(_) => member.replication.heartbeat_interval,
            _ => BACK_OFF.1,
        };
        let pause = pauses.next(is_eager(&fault), longest, Instant::now());
        if pause_for(node, &leader.name, stop, pause) {
            return;
        }
    }
}

/// Whether the leader may be followed at any moment: it is starting.
fn is_eager(fault: &Fault) -> bool {
    match fault {
        Fault::NotYet(_) => true,
        Fault::Io(error) => error.kind() == ErrorKind::ConnectionRefused,
        Fault::Answer(_)
        | Fault::Stranger(_)
        | Fault::Stream(_)
        | Fault::Diverged(_)
        | Fault::Refused(_) => false,
    }
}

/// Logs why the leader is not followed: one line for a state of affairs, not one for each attempt. Texts that differ in
/// numbers alone, such as ports, are about the same state.
#[derive(Default)]
struct Said {
    last: String,
    waits: bool,
}

impl Said {
    fn say(&mut self, fault: &Fault, text: String) {
        // What a starting leader waits for may change; that is its own log's matter.
        let waits = matches!(fault, Fault::NotYet(_));
        let is_same = {
            let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
            words(&text) == words(&self.last)
        };
        if is_same || (waits && self.waits) {
            return;
        }
        match fault {
            Fault::Stranger(_) => error!("{text}"),
            _ => warn!("{text}"),
        }
        self.last = text;
        self.waits = waits;
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
            format!("it said nothing for {limit} ms")
        }
        Fault::Io(error) => error.to_string(),
        Fault::Answer(text)
        | Fault::NotYet(text)
        | Fault::Stranger(text)
        | Fault::Stream(text)
        | Fault::Diverged(text)
        | Fault::Refused(text) => text.clone(),
    }
}

/// What a node that is to lead does before it serves: it asks its peers where they stand, follows one that leads
/// already, catches up with the one furthest ahead, and opens a new era. The decisions are [`start::next`]'s.
fn recover(node: &Node, member: &Member, stop: &Stop) {
    let mut pauses = Pauses::new();
    stop.hurry(true);
    while let Some(next) = decide(node, member, stop) {
        let (peer, goal, reason) = match next {
            // `decide` waits itself.
            Next::Wait { .. } => continue,
            Next::Lead { epoch, passed_over } => {
                report_passed_over(&passed_over);
                lead(node, epoch);
                stop.hurry(false);
                return;
            }
            Next::Follow { peer, reason } => {
                error!("{reason}");
                (peer, Goal::Follow, reason)
            }
            Next::CatchUp {
                peer,
                epoch,
                index,
                passed_over,
            } => {
                report_passed_over(&passed_over);
                info!("{peer} is furthest ahead, at index {index} of epoch {epoch}; copying it");
                let reason = format!("this leader is copying its data from {peer}");
                (peer, Goal::CatchUp(index), reason)
            }
        };
        let Some(peer) = member.peers.iter().find(|found| found.name == peer) else {
            continue;
        };
        node.enter(Phase::Loading(Arc::from(reason.as_str())));
        let mut link = Link::new(node, member, &peer.name, goal);
        link.reason = Some(Arc::from(reason));
        stop.hurry(false);
        let result = link.run(&peer.addr, stop);
        if stop.is_stopped() {
            return;
        }
        stop.hurry(true);
        if let Err(fault) = result {
            let text = describe(&fault, member);
            warn!("no longer copying {}: {text}", peer.name);
            if link.copy.is_some() {
                // A part of a copy is no data set.
                node.give_up("this leader is asking the other nodes for data");
            }
            if link.has_followed {
                pauses = Pauses::new();
            }
            let reason = format!("this leader cannot copy {}: {text}", peer.name);
            node.enter(Phase::Loading(Arc::from(reason)));
            let pause = pauses.next(is_eager(&fault), BACK_OFF.1, Instant::now());
            if stop.wait(pause) {
                return;
            }
        }
    }
}

/// Waits until the peers have said enough to do something, and returns what; `None` at the stop.
fn decide(node: &Node, member: &Member, stop: &Stop) -> Option<Next> {
    let began = Instant::now();
    let timeout = member.replication.leader_timeout;
    let mut said = String::new();
    loop {
        let history = node.history();
        let own = Own {
            history: &history,
            index: node.head().index,
        };
        let now = Instant::now();
        let next = start::next(own, node.liveness().lock().peers(), began, timeout, now);
        let Next::Wait {
            reason,
            is_conflict,
        } = next
        else {
            return Some(next);
        };
        if reason != said {
            node.enter(Phase::Loading(Arc::from(reason.as_str())));
            // What is over at once is not worth a line.
            if now - began >= NOTABLE_WAIT {
                if is_conflict {
                    error!("not leading: {reason}");
                } else {
                    warn!("not leading yet: {reason}");
                }
                said = reason;
            }
        }
        if stop.wait(DECISION_PAUSE) {
            return None;
        }
    }
}

fn report_passed_over(peers: &[(String, String)]) {
    for (name, how) in peers {
        error!(
            "{name} does not answer, and is passed over ({how}); what it alone holds is not taken"
        );
    }
}

fn lead(node: &Node, epoch: u64) {
    let era = Era {
        epoch,
        nonce: random(),
        start_index: node.head().index + 1,
    };
    match node.open_era(era) {
        Ok(()) => info!(
            "leading from index {} on, in epoch {epoch}",
            era.start_index
        ),
        Err(error) => error!("cannot lead: {error}"),
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

/// What a link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// To follow the node until the stream ends.
    Follow,
    /// To have everything up to this index.
    CatchUp(u64),
}

/// One connection to the node that is copied.
struct Link<'a> {
    node: &'a Node,
    member: &'a Member,
    source: &'a str,
    goal: Goal,
    /// Why the node does not serve while it follows; none of a follower, which serves.
    reason: Option<Arc<str>>,
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
    /// A copy is complete, which the source is to know though its index be the one that was said before.
    is_due: bool,
    is_over: bool,
}

impl<'a> Link<'a> {
    const fn new(node: &'a Node, member: &'a Member, source: &'a str, goal: Goal) -> Link<'a> {
        Link {
            node,
            member,
            source,
            goal,
            reason: None,
            has_followed: false,
            awaits_copy: false,
            copy: None,
            epoch: 0,
        }
    }

    /// Asks for the stream and applies it until it ends, or until the goal is reached, which is `Ok`.
    fn run(&mut self, addr: &str, stop: &Stop) -> Result<(), Fault> {
        let timeout = self.member.replication.leader_timeout;
        let deadline = Instant::now() + timeout;
        let stream = Arc::new(connect(addr, deadline, stop)?);
        stop.watch(Some(&stream))?;
        let result = self
            .check_identity(&stream, addr, deadline, stop)
            .and_then(|()| self.run_on(&stream, deadline));
        self.node.leader_lost();
        stop.watch(None)?;
        result
    }

    /// Asks for STATUS first, so that no other node is taken for the one that is meant.
    fn check_identity(
        &self,
        stream: &TcpStream,
        addr: &str,
        deadline: Instant,
        stop: &Stop,
    ) -> Result<(), Fault> {
        let expected = Expected {
            cluster: &self.member.cluster,
            own: &self.member.name,
            peer: self.source,
        };
        match identify(stream, expected, addr, deadline, stop).0 {
            Contact::Report(_) => Ok(()),
            Contact::Stranger(text) => Err(Fault::Stranger(text)),
            Contact::Unclear(text) => Err(Fault::NotYet(text)),
            Contact::Silent(text) => Err(Fault::Answer(text)),
            Contact::NoProcess => Err(Fault::Io(ErrorKind::ConnectionRefused.into())),
        }
    }

    /// Whether the goal is reached.
    fn is_done(&self) -> bool {
        let is_whole = self.copy.is_none() && !self.awaits_copy;
        match self.goal {
            Goal::Follow => false,
            Goal::CatchUp(index) => is_whole && self.node.head().index >= index,
        }
    }

    fn run_on(&mut self, stream: &TcpStream, deadline: Instant) -> Result<(), Fault> {
        let node = self.node;
        let timeout = self.member.replication.leader_timeout;
        stream.set_write_timeout(Some(timeout))?;
        // What it was ordered to discard does not count.
        let own = if node.is_to_discard() {
            Position::default()
        } else {
            Position::of(&node.history(), node.head().index)
        };
        let mut request = Vec::new();
        let follow = Follow {
            name: self.member.name.as_bytes(),
            is_observer: false,
            wants_full_copy: node.wants_full_copy(),
            is_to_lead: leads(node),
            epoch: own.epoch,
            nonce: own.nonce,
            last_index: own.index,
            cluster_id: self.member.cluster.as_bytes(),
        };
        follow.encode(&mut request).map_err(io::Error::other)?;
        let mut writing = stream;
        writing.write_all(&request)?;
        let mut buffer = Buffer::new();
        let judge = |answer: &Response<'_>| self.judge(answer, own);
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
                    "its offer does not fit this node's position".to_owned(),
                ));
            }
            Verdict::Resume => {
                node.count_stream(false);
                self.adopt(history);
                info!("following {} from index {}", self.source, own.index + 1);
            }
            Verdict::TakeCopy => {
                node.count_stream(true);
                self.awaits_copy = true;
            }
        }
        node.leader_heard(Instant::now());
        node.set_not_following(None);
        stream.set_read_timeout(Some(timeout))?;
        let acks = Acks::default();
        // Of what is given up for a copy, nothing counts.
        acks.state.lock().applied = if self.awaits_copy { 0 } else { own.index };
        thread::scope(|scope| {
            let (interval, epoch) = (self.member.replication.heartbeat_interval, self.epoch);
            let writer = thread::Builder::new().name("link-acks".to_owned());
            let acks = &acks;
            writer.spawn_scoped(scope, move || acknowledge(stream, acks, interval, epoch))?;
            let result = self.receive(stream, &mut buffer, acks);
            acks.state.lock().is_over = true;
            acks.changed.notify_all();
            result
        })
    }

    fn judge(&self, answer: &Response<'_>, own: Position) -> Result<(Verdict, History), Fault> {
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
        Ok((takes(own, start, &history), history))
    }

    fn receive(
        &mut self,
        mut stream: &TcpStream,
        buffer: &mut Buffer,
        acks: &Acks,
    ) -> Result<(), Fault> {
        while !self.is_done() {
            let needed =
                match parse(buffer.bytes()).map_err(|error| Fault::Stream(error.to_string()))? {
                    Parsed::Incomplete { needed } => needed,
                    Parsed::Whole { message, frame_len } => {
                        let had_copy = self.copy.is_some();
                        self.take(&message)?;
                        buffer.consume(frame_len);
                        if self.copy.is_none() {
                            let mut state = acks.state.lock();
                            state.applied = self.node.head().index;
                            state.is_due |= had_copy;
                            drop(state);
                            acks.changed.notify_all();
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
        Ok(())
    }

    /// The node holds a data set of this history. A follower serves it.
    fn adopt(&mut self, history: History) {
        self.node.adopt(history);
        if let Some(reason) = &self.reason {
            self.node.enter(Phase::Loading(Arc::clone(reason)));
        }
        self.has_followed = true;
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
                    last_index,
                    digest_index,
                    digest,
                    ..
                },
                None,
            ) if !self.awaits_copy => {
                node.leader_told(last_index, Instant::now());
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
                if let Some(log) = node.log() {
                    log.reset(Head {
                        index,
                        digest: copy.digest,
                    });
                }
                info!(
                    "copied {} up to index {index} in {} ms",
                    self.source,
                    copy.started.elapsed().as_millis()
                );
                let history = std::mem::take(&mut copy.history);
                self.copy = None;
                self.adopt(history);
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
        while !state.is_over && !state.is_due && said == Some(state.applied) {
            if acks.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        if state.is_over {
            return;
        }
        let applied_index = state.applied;
        state.is_due = false;
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

/// Pauses between attempts: short ones at first where the peer may be starting, then such that double, with jitter, so
/// that followers of one leader do not come back all at once.
struct Pauses {
    eager_since: Option<Instant>,
    next: Duration,
}

impl Pauses {
    const fn new() -> Pauses {
        Pauses {
            eager_since: None,
            next: BACK_OFF.0,
        }
    }

    fn next(&mut self, is_eager: bool, longest: Duration, now: Instant) -> Duration {
        if is_eager && now - *self.eager_since.get_or_insert(now) < EAGER.1 {
            return EAGER.0.min(longest);
        }
        let pause = self.next.min(longest);
        self.next = (self.next * 2).min(BACK_OFF.1);
        let jitter = u32::try_from(random() % 256).unwrap_or(0);
        pause * (768 + jitter) / 1_024
    }
}

/// A number that nobody can foresee, from the keys that the standard library draws for its hash maps.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
