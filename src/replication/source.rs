//! The sending side: one follower's stream, on the connection that asked for it, or one observer's.
//!
//! An observer is sent what a follower is, by the same code and within the same bounds, and counts as nobody's
//! follower: it is in no table and no figure of the node's, it need not say anything, and the stop does not wait for
//! it. Unlike a follower's its source may itself be a follower, whose data set can be replaced while it is read, and
//! whose history grows when its leader restarts. The stream then ends before the first entry of the other data set or
//! of the new era, and the observer asks again.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use crate::engine::entry::Entry;
use crate::engine::store::Copied;
use crate::history::History;
use crate::log::{Cursor, Found, Log};
use crate::node::{Node, SILENT_HEARTBEATS};
use crate::progress::Turn;
use crate::wire::Buffer;
use crate::wire::replication::{BatchEncoder, Eras, Fields, Head, Message, Parsed, Start, parse};
use crate::wire::request::{self, Limits, Parsed::Whole};

use super::accept::{Accepted, OTHER_DATA, Place};
use super::rules::CopyRule;

/// After fewer entries than this a sender lets some gather before it looks again: a write to the socket for each few of
/// them, and a thread woken on the other side, costs the clients more than it wins a follower.
const FEW: u32 = 512;

/// For how long.
const GATHER: Duration = Duration::from_micros(500);

/// Bytes of frames in a batch at the most, but for a single larger one.
const BATCH_BYTES: usize = 256 << 10;

/// For reading frames that this node has accepted.
const ANY_VALUE: Limits = Limits {
    value_len_max: u32::MAX,
};

/// Bytes after which a chunk of a copy is sent.
const CHUNK_BYTES: usize = 64 << 10;

/// How long a stopping source waits for a follower to say that it has everything.
const LAST_ACK: Duration = Duration::from_secs(3);

/// How long an observer of a node that stops may take nothing.
const PAUSE_AT_STOP: Duration = Duration::from_millis(500);

/// Sends the stream until the follower is gone, falls too far behind, or the node stops. `early` are bytes that came
/// behind the request.
pub(crate) fn serve(
    node: &Node,
    stream: &TcpStream,
    accepted: &mut Accepted<'_>,
    early: &[u8],
) -> io::Result<()> {
    let (Some(log), Some(member)) = (node.log(), node.member()) else {
        return Ok(());
    };
    let interval = member.replication.heartbeat_interval;
    let silence = interval * SILENT_HEARTBEATS;
    let place = accepted.place.as_ref();
    // An observer may pause for longer; in between the sender looks whether it may pause on.
    let write_timeout = match place {
        Some(_) => silence,
        None => interval.min(PAUSE_AT_STOP),
    };
    stream.set_write_timeout(Some(write_timeout))?;
    // An observer may be silent. TCP's retransmissions or its keepalive end one that has vanished.
    stream.set_read_timeout(place.map(|_| silence))?;
    let name = accepted.name.as_str();
    let (verb, thread) = match place {
        Some(_) => ("follow", name),
        None => ("observe", "observer"),
    };
    match accepted.start {
        Start::FullCopy | Start::Unknown => info!("{name} {verb}s: full copy"),
        Start::Resume { from_index } => info!("{name} {verb}s: from index {from_index}"),
    }
    if place.is_some() {
        node.count_stream(accepted.start == Start::FullCopy);
    }
    let end = OnceLock::new();
    let mut sender = Sender {
        node,
        log,
        stream,
        name,
        place,
        end: &end,
        dataset: accepted.dataset,
        epoch: accepted.history.last().map_or(0, |era| era.epoch),
        history: &accepted.history,
        cursor: accepted.cursor,
        interval,
        turn: accepted.turn.take(),
        out: Vec::new(),
        run: Vec::new(),
    };
    let result = thread::scope(|scope| {
        thread::Builder::new()
            .name(format!("acks-{thread}"))
            .spawn_scoped(scope, || {
                let why = read_acks(name, place, stream, early);
                let _ = end.set(why);
                // At once, so that the follower is let in again.
                if let Some(place) = place {
                    place.leave();
                }
                // Both wake the sender, out of a write or out of its wait for entries.
                let _ = stream.shutdown(Shutdown::Both);
                log.wake_readers();
            })
            .map_err(|error| io::Error::new(error.kind(), format!("no thread for it: {error}")))?;
        let result = sender.run(accepted.cursor);
        // Where the other side ended the stream, that is why the sender failed.
        let result = result.map_err(|error| end.get().map_or(error, StreamEnd::to_error));
        let _ = stream.shutdown(Shutdown::Both);
        result
    });
    match &result {
        Ok(()) => info!("{name} no longer {verb}s"),
        // Observers come and go as they like.
        Err(error) if place.is_none() => info!("{name} no longer {verb}s: {error}"),
        Err(error) => warn!("{name} no longer {verb}s: {error}"),
    }
    result
}

/// Why nothing more comes from a follower.
#[derive(Debug)]
struct StreamEnd(ErrorKind, String);

impl StreamEnd {
    fn to_error(&self) -> io::Error {
        io::Error::new(self.0, self.1.clone())
    }
}

struct Sender<'a> {
    node: &'a Node,
    log: &'a Log,
    stream: &'a TcpStream,
    name: &'a str,
    /// None of an observer's.
    place: Option<&'a Place<'a>>,
    /// Set once nothing more comes from the other side.
    end: &'a OnceLock<StreamEnd>,
    dataset: u64,
    epoch: u64,
    /// The one that the request was judged by.
    history: &'a History,
    /// The place in the log behind what is being written.
    cursor: Option<Cursor>,
    interval: Duration,
    /// Held until the follower has said that it has the whole copy.
    turn: Option<Turn>,
    /// What is about to be written.
    out: Vec<u8>,
    /// Frames read from the log.
    run: Vec<u8>,
}

impl Sender<'_> {
    fn run(&mut self, cursor: Option<Cursor>) -> io::Result<()> {
        let mut cursor = match cursor {
            Some(cursor) => cursor,
            None => self.copy()?,
        };
        let mut beat_at = Instant::now();
        loop {
            let now = Instant::now();
            if beat_at <= now {
                self.beat(cursor)?;
                beat_at = now + self.interval;
            }
            if let Some(place) = self.place {
                match place.progress(|follower| follower.is_copying()) {
                    None => return Err(silent()),
                    Some(true) => {}
                    Some(false) => self.turn = None,
                }
            }
            let (end, log) = (self.end, self.log);
            let found = log.read(&mut cursor, BATCH_BYTES, &mut self.run, beat_at, || {
                end.get().is_some()
            });
            self.check_source()?;
            match found {
                Found::Small(count) => {
                    self.send_entries(count, cursor)?;
                    if count < FEW {
                        thread::sleep(GATHER);
                    }
                }
                Found::Large(entry) => self.send_large(&entry, cursor)?,
                Found::Nothing => {}
                Found::Gone => return Err(fell_behind()),
                Found::Ended => return self.last(cursor),
            }
        }
    }

    /// What comes last where the node stops and all of the log is sent: a follower says that it has it.
    fn last(&mut self, cursor: Cursor) -> io::Result<()> {
        let Some(place) = self.place else {
            return Ok(());
        };
        self.beat(cursor)?;
        let (index, deadline) = (cursor.next - 1, Instant::now() + LAST_ACK);
        let (name, number) = (&place.name, place.number);
        if self.node.wait_for_follower(name, number, index, deadline) {
            return Ok(());
        }
        let text = format!("it has not said that it has everything up to index {index}");
        Err(io::Error::new(ErrorKind::TimedOut, text))
    }

    fn write(&mut self) -> io::Result<()> {
        let result = self.write_all(&self.out);
        self.out.clear();
        result
    }

    /// Writes all of `bytes`. A follower that takes nothing for three heartbeats is given up. An observer may pause for
    /// as long as this node holds what comes next.
    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.stream;
        while !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if !is_timeout(&error) => return Err(error),
                Err(_) if self.place.is_some() => {
                    let why = "it took nothing for three heartbeats";
                    return Err(io::Error::new(ErrorKind::TimedOut, why));
                }
                Err(_) => self.check_pause()?,
            }
        }
        Ok(())
    }

    /// Whether an observer that takes nothing can still be sent what comes next.
    fn check_pause(&self) -> io::Result<()> {
        self.check_source()?;
        if self.log.has_ended() {
            return Err(stops());
        }
        match self.cursor {
            Some(cursor) if !self.log.holds(&cursor) => Err(fell_behind()),
            _ => Ok(()),
        }
    }

    /// Fails where nothing more comes from the other side, or where the data set is no longer the one that the
    /// request was judged by: a follower has given it up for another, distrusts it, or has adopted a history with a
    /// newer era.
    ///
    /// To be called after each read of the log or the store, and before what was read is sent: what was read is then
    /// of this stream's history, and no entry of a newer era goes out under the epoch of an older one.
    fn check_source(&self) -> io::Result<()> {
        if let Some(end) = self.end.get() {
            Err(end.to_error())
        } else if self.node.dataset_generation() == self.dataset {
            Ok(())
        } else {
            Err(io::Error::other(OTHER_DATA))
        }
    }

    fn beat(&mut self, cursor: Cursor) -> io::Result<()> {
        self.cursor = Some(cursor);
        let mut digest_index = cursor.next - 1;
        let digest = match self.log.digest_at(digest_index) {
            Some(digest) => digest,
            // A sign of life all the same, with another digest: an observer may stand where the log knows none.
            None if self.place.is_none() => {
                let kept = self.log.kept_head();
                digest_index = kept.index;
                kept.digest
            }
            None => return Ok(()),
        };
        let beat = Message::Heartbeat {
            epoch: self.epoch,
            last_index: self.log.head().index,
            digest_index,
            digest: digest.to_u128(),
        };
        self.check_source()?;
        beat.encode(&mut self.out).map_err(io::Error::other)?;
        self.write()
    }

    /// Sends the entries whose frames are in `run`. `cursor` stands behind them.
    fn send_entries(&mut self, count: u32, cursor: Cursor) -> io::Result<()> {
        self.cursor = Some(cursor);
        let first_index = cursor.next - u64::from(count);
        let mut batch = BatchEncoder::entries(&mut self.out, self.epoch, first_index);
        if !batch.push_run(&self.run, count) {
            return Err(too_long());
        }
        batch.finish();
        self.write()
    }

    /// Sends a large entry from where it lies. `cursor` stands behind it.
    fn send_large(&mut self, entry: &Entry, cursor: Cursor) -> io::Result<()> {
        self.cursor = Some(cursor);
        let fields = Fields::Entries {
            epoch: self.epoch,
            first_index: cursor.next - 1,
            count: 1,
        };
        self.write_large(fields, entry)
    }

    fn write_large(&mut self, fields: Fields, entry: &Entry) -> io::Result<()> {
        let head = Head::new(fields, entry.frame()).map_err(|_| too_long())?;
        head.encode(&mut self.out);
        self.write()?;
        self.write_all(entry.frame())
    }

    /// Sends a full copy, and returns where the log goes on after it.
    fn copy(&mut self) -> io::Result<Cursor> {
        let (node, log) = (self.node, self.log);
        let started = Instant::now();
        let mut cursor = log.cursor_after(log.head().index).ok_or_else(fell_behind)?;
        self.cursor = Some(cursor);
        let begin = Message::SnapshotBegin {
            epoch: self.epoch,
            keys: u64::try_from(node.store().len()).unwrap_or(u64::MAX),
            bytes: node.store().bytes(),
            history: Eras::of(self.history).ok_or_else(too_long)?,
        };
        begin.encode(&mut self.out).map_err(io::Error::other)?;
        self.write()?;
        let mut rule = CopyRule::default();
        let mut chunks = 0;
        let mut copied = Copied::default();
        for partition in 0..node.store().partitions() {
            let index = || log.head().index;
            rule.copied(node.store().copy_partition(partition, &mut copied, index));
            self.check_source()?;
            self.send_copied(&copied, &mut chunks)?;
            while self.send_gained(&mut cursor, &rule, &mut chunks, Instant::now())? {}
        }
        while cursor.next <= rule.exact_from() {
            let deadline = Instant::now() + self.interval;
            self.send_gained(&mut cursor, &rule, &mut chunks, deadline)?;
        }
        let index = cursor.next - 1;
        let digest = log.digest_at(index).ok_or_else(fell_behind)?;
        self.check_source()?;
        let end = Message::SnapshotEnd {
            epoch: self.epoch,
            index,
            digest: digest.to_u128(),
            chunks,
        };
        end.encode(&mut self.out).map_err(io::Error::other)?;
        // Before the follower can say that it has all of it.
        if let Some(place) = self.place {
            place.progress(|follower| follower.copy_ends_at(index));
        }
        self.write()?;
        info!(
            "{} was sent a full copy up to index {index} in {} ms",
            self.name,
            started.elapsed().as_millis()
        );
        Ok(cursor)
    }

    /// Sends what the log has gained and the copy needs; says whether there was anything.
    fn send_gained(
        &mut self,
        cursor: &mut Cursor,
        rule: &CopyRule,
        chunks: &mut u64,
        deadline: Instant,
    ) -> io::Result<bool> {
        let (log, store) = (self.log, self.node.store());
        let mut index = cursor.next;
        let end = self.end;
        let found = log.read(cursor, BATCH_BYTES, &mut self.run, deadline, || {
            end.get().is_some()
        });
        self.check_source()?;
        self.cursor = Some(*cursor);
        match found {
            Found::Small(_) => {
                let run = std::mem::take(&mut self.run);
                let mut rest = &run[..];
                let mut batch = BatchEncoder::chunk(&mut self.out, self.epoch, *chunks);
                while let Ok(Whole(frame)) = request::parse(rest, &ANY_VALUE) {
                    rest = &rest[frame.bytes().len()..];
                    let partition = store.partition_of(frame.request().key());
                    if rule.sends(partition, index) && !batch.push(frame.bytes()) {
                        return Err(too_long());
                    }
                    index += 1;
                }
                *chunks += u64::from(batch.finish() > 0);
                self.run = run;
                self.write()?;
                Ok(true)
            }
            Found::Large(entry) => {
                if rule.sends(store.partition_of(entry.key()), index) {
                    self.send_large_chunk(&entry, chunks)?;
                }
                Ok(true)
            }
            Found::Nothing => Ok(false),
            Found::Gone => Err(fell_behind()),
            Found::Ended => Err(stops()),
        }
    }

    fn send_copied(&mut self, copied: &Copied, chunks: &mut u64) -> io::Result<()> {
        let mut rest = copied.short();
        while !rest.is_empty() {
            let (mut len, mut count) = (0, 0);
            for frame in request::frames(rest) {
                len += frame.bytes().len();
                count += 1;
                if len >= CHUNK_BYTES {
                    break;
                }
            }
            let (chunk, after) = rest.split_at(len);
            let mut batch = BatchEncoder::chunk(&mut self.out, self.epoch, *chunks);
            if !batch.push_run(chunk, count) {
                return Err(too_long());
            }
            batch.finish();
            rest = after;
            *chunks += 1;
            self.write()?;
            thread::yield_now();
        }
        let mut rest = copied.long();
        while let Some(first) = rest.first() {
            if first.frame().len() > BATCH_BYTES {
                self.send_large_chunk(first, chunks)?;
                rest = &rest[1..];
                continue;
            }
            let mut batch = BatchEncoder::chunk(&mut self.out, self.epoch, *chunks);
            let count = rest
                .iter()
                .take_while(|entry| batch.value_len() < CHUNK_BYTES && batch.push(entry.frame()))
                .count();
            batch.finish();
            rest = &rest[count..];
            *chunks += 1;
            self.write()?;
            thread::yield_now();
        }
        Ok(())
    }

    fn send_large_chunk(&mut self, entry: &Entry, chunks: &mut u64) -> io::Result<()> {
        let fields = Fields::SnapshotChunk {
            epoch: self.epoch,
            sequence: *chunks,
            count: 1,
        };
        *chunks += 1;
        self.write_large(fields, entry)
    }
}

/// Whether a write made no progress in the socket's time. Systems differ in the kind.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn fell_behind() -> io::Error {
    io::Error::other("it fell behind what backlog_bytes keeps of the log")
}

fn too_long() -> io::Error {
    io::Error::other("an entry is longer than a batch can carry")
}

fn silent() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "it said nothing for three heartbeats")
}

fn stops() -> io::Error {
    io::Error::new(ErrorKind::Interrupted, "this node stops")
}

/// Reads what the follower says until it is gone, and says why nothing more comes. What an observer says changes
/// nothing.
fn read_acks(
    name: &str,
    place: Option<&Place<'_>>,
    mut stream: &TcpStream,
    early: &[u8],
) -> StreamEnd {
    let mut buffer = Buffer::new();
    let space = buffer.space(early.len());
    let count = space.len().min(early.len());
    space[..count].copy_from_slice(&early[..count]);
    buffer.filled(count);
    loop {
        let needed = match parse(buffer.bytes()) {
            Ok(Parsed::Whole { message, frame_len }) => {
                let Message::Ack { applied_index, .. } = message else {
                    let what = message.opcode().name();
                    let text = format!("it sent {what}, which a follower does not");
                    return StreamEnd(ErrorKind::InvalidData, text);
                };
                let now = Instant::now();
                if let Some(place) = place
                    && place
                        .progress(|follower| follower.acknowledged(applied_index, now))
                        .is_none()
                {
                    return StreamEnd(
                        ErrorKind::TimedOut,
                        "a newer stream of it is there".to_owned(),
                    );
                }
                buffer.consume(frame_len);
                continue;
            }
            Ok(Parsed::Incomplete { needed }) => needed,
            Err(error) => {
                return StreamEnd(ErrorKind::InvalidData, format!("it sent no frame: {error}"));
            }
        };
        match stream.read(buffer.space(needed)) {
            Ok(0) => {
                let text = "it closed the connection".to_owned();
                return StreamEnd(ErrorKind::UnexpectedEof, text);
            }
            Ok(count) => buffer.filled(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => {
                let error = silent();
                return StreamEnd(error.kind(), error.to_string());
            }
            Err(error) => {
                debug!("{name}: {error}");
                return StreamEnd(error.kind(), error.to_string());
            }
        }
    }
}
