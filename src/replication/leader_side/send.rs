//! Sending the stream: entries as the log gains them, and heartbeats.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use super::accept::{OTHER_DATA, Place};
use super::acks_in::StreamEnd;
use crate::engine::entry::Entry;
use crate::history::History;
use crate::log::{Cursor, Found, Log};
use crate::node::Node;
use crate::replication::Peers;
use crate::replication::core::snapshot_permits::Permit;
use crate::wire::replication::{BatchEncoder, Fields, Head, Message};

/// After fewer entries than this a sender lets some gather before it looks again: a write to the socket for each few of
/// them, and a thread woken on the other side, costs the clients more than it wins a follower.
const FEW: u32 = 512;

/// For how long.
const GATHER: Duration = Duration::from_micros(500);

/// Bytes of frames in a batch at the most, but for a single larger one.
pub(super) const BATCH_BYTES: usize = 256 << 10;

/// How long a stopping source waits for a follower to say that it has everything.
const LAST_ACK: Duration = Duration::from_secs(3);

pub(super) struct Sender<'a> {
    pub(super) node: &'a Node,
    pub(super) peers: &'a Peers,
    pub(super) log: &'a Log,
    pub(super) stream: &'a TcpStream,
    pub(super) name: &'a str,
    /// None of an observer's.
    pub(super) place: Option<&'a Place<'a>>,
    /// Set once nothing more comes from the other side.
    pub(super) end: &'a OnceLock<StreamEnd>,
    pub(super) dataset: u64,
    pub(super) epoch: u64,
    /// The one that the request was judged by.
    pub(super) history: &'a History,
    /// The place in the log behind what is being written.
    pub(super) cursor: Option<Cursor>,
    pub(super) interval: Duration,
    /// Held until the follower has said that it has the whole copy.
    pub(super) permit: Option<Permit>,
    /// What is about to be written.
    pub(super) out: Vec<u8>,
    /// Frames read from the log.
    pub(super) run: Vec<u8>,
}

impl Sender<'_> {
    pub(super) fn run(&mut self, cursor: Option<Cursor>) -> io::Result<()> {
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
                    Some(false) => self.permit = None,
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
        if self.peers.wait_for_follower(name, number, index, deadline) {
            return Ok(());
        }
        let text = format!("it has not said that it has everything up to index {index}");
        Err(io::Error::new(ErrorKind::TimedOut, text))
    }

    pub(super) fn write(&mut self) -> io::Result<()> {
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
            Some(_) | None => Ok(()),
        }
    }

    /// Fails where nothing more comes from the other side, or where the data set is no longer the one that the
    /// request was judged by: a follower has given it up for another, distrusts it, or has adopted a history with a
    /// newer epoch.
    ///
    /// To be called after each read of the log or the store, and before what was read is sent: what was read is then
    /// of this stream's history, and no entry of a newer epoch goes out under the epoch of an older one.
    pub(super) fn check_source(&self) -> io::Result<()> {
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

    pub(super) fn write_large(&mut self, fields: Fields, entry: &Entry) -> io::Result<()> {
        let head = Head::new(fields, entry.frame()).map_err(|_| too_long())?;
        head.encode(&mut self.out);
        self.write()?;
        self.write_all(entry.frame())
    }
}

/// Whether a write made no progress in the socket's time. Systems differ in the kind.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

pub(super) fn fell_behind() -> io::Error {
    io::Error::other("it fell behind what backlog_bytes keeps of the log")
}

pub(super) fn too_long() -> io::Error {
    io::Error::other("an entry is longer than a batch can carry")
}

pub(super) fn silent() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "it said nothing for three heartbeats")
}

pub(super) fn stops() -> io::Error {
    io::Error::new(ErrorKind::Interrupted, "this node stops")
}
