//! Sending the stream: entries as the log gains them, and heartbeats.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use super::accept::{OTHER_DATA, Registration};
use super::acks_in::StreamEnd;
use crate::engine::entry::Entry;
use crate::history::History;
use crate::log::{Cursor, Found, Log};
use crate::node::Node;
use crate::replication::Peers;
use crate::replication::core::snapshot_permits::Permit;
use crate::wire::replication::{BatchEncoder, Fields, Head, Message};

/// After a batch of fewer entries the sender pauses, so that more of them gather: a write to the socket for every few
/// entries, and a thread woken on the other side, costs the clients more than it gains a follower.
const FEW_ENTRIES: u32 = 512;

/// The pause after such a batch.
const GATHER: Duration = Duration::from_micros(500);

/// Most bytes of frames in a batch, except for a single larger frame.
pub(in crate::replication) const BATCH_BYTES: usize = 256 << 10;

/// How long a node that stops waits for a follower to acknowledge the last entry.
const LAST_ACK_TIMEOUT: Duration = Duration::from_secs(3);

/// The sending half of a stream.
pub(in crate::replication) struct Sender<'a> {
    pub(in crate::replication) node: &'a Node,
    pub(in crate::replication) peers: &'a Peers,
    pub(in crate::replication) log: &'a Log,
    pub(in crate::replication) stream: &'a TcpStream,
    pub(in crate::replication) name: &'a str,
    /// `None` for an observer.
    pub(in crate::replication) registration: Option<&'a Registration<'a>>,
    /// Set once the other side has ended the stream.
    pub(in crate::replication) end: &'a OnceLock<StreamEnd>,
    /// [`Node::dataset_generation`] of the data set that is sent.
    pub(in crate::replication) generation: u64,
    pub(in crate::replication) epoch: u64,
    /// The history that the other side was told.
    pub(in crate::replication) history: &'a History,
    /// The position in the log after what is being written.
    pub(in crate::replication) cursor: Option<Cursor>,
    /// Interval of heartbeats.
    pub(in crate::replication) interval: Duration,
    /// Held until the follower has acknowledged the whole snapshot.
    pub(in crate::replication) permit: Option<Permit>,
    /// Bytes to write.
    pub(in crate::replication) out: Vec<u8>,
    /// Frames read from the log.
    pub(in crate::replication) run: Vec<u8>,
}

impl Sender<'_> {
    /// Sends a snapshot where there is no cursor, and then the log from the cursor on, until the stream ends.
    pub(in crate::replication) fn run(&mut self, cursor: Option<Cursor>) -> io::Result<()> {
        let mut cursor = match cursor {
            Some(cursor) => cursor,
            None => self.send_snapshot()?,
        };
        let mut beat_at = Instant::now();
        loop {
            let now = Instant::now();
            if beat_at <= now {
                self.beat(cursor)?;
                beat_at = now + self.interval;
            }
            if let Some(registration) = self.registration {
                match registration.progress(|follower| follower.is_copying()) {
                    None => return Err(silent()),
                    Some(true) => {}
                    Some(false) => self.permit = None,
                }
            }
            let (end, log) = (self.end, self.log);
            let found = log.read(&mut cursor, BATCH_BYTES, &mut self.run, beat_at, || {
                end.get().is_some()
            });
            self.check_dataset()?;
            match found {
                Found::Small(count) => {
                    self.send_entries(count, cursor)?;
                    if count < FEW_ENTRIES {
                        thread::sleep(GATHER);
                    }
                }
                Found::Large(entry) => self.send_large(&entry, cursor)?,
                Found::Nothing => {}
                Found::Gone => return Err(fell_behind()),
                Found::Ended => return self.finish(cursor),
            }
        }
    }

    /// Ends the stream where the node stops and has sent all of the log: waits for the follower to acknowledge it.
    fn finish(&mut self, cursor: Cursor) -> io::Result<()> {
        let Some(registration) = self.registration else {
            return Ok(());
        };
        self.beat(cursor)?;
        let (index, deadline) = (cursor.next - 1, Instant::now() + LAST_ACK_TIMEOUT);
        let (name, number) = (&registration.name, registration.number);
        if self.peers.wait_for_follower(name, number, index, deadline) {
            return Ok(());
        }
        let text = format!("it has not said that it has everything up to index {index}");
        Err(io::Error::new(ErrorKind::TimedOut, text))
    }

    /// Writes `out`, and empties it.
    pub(in crate::replication) fn write(&mut self) -> io::Result<()> {
        let result = self.write_all(&self.out);
        self.out.clear();
        result
    }

    /// Writes all of `bytes`. The stream of a follower that accepts no bytes for three heartbeats ends. An observer may
    /// pause for as long as this node holds the next entry.
    fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.stream;
        while !bytes.is_empty() {
            match stream.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if !is_timeout(&error) => return Err(error),
                Err(_) if self.registration.is_some() => {
                    let why = "it took nothing for three heartbeats";
                    return Err(io::Error::new(ErrorKind::TimedOut, why));
                }
                Err(_) => self.check_pause()?,
            }
        }
        Ok(())
    }

    /// Checks that an observer that accepts no bytes can still be sent the next entry.
    fn check_pause(&self) -> io::Result<()> {
        self.check_dataset()?;
        if self.log.has_ended() {
            return Err(stops());
        }
        match self.cursor {
            Some(cursor) if !self.log.holds(&cursor) => Err(fell_behind()),
            Some(_) | None => Ok(()),
        }
    }

    /// Fails where the other side has ended the stream, or where the data set is no longer the one of this stream: a
    /// follower has discarded it, has found that it diverged, or has adopted a history with a newer epoch.
    ///
    /// To be called after each read of the log or the store, and before the data are sent. They are then of this
    /// stream's history, and no entry of a newer epoch is sent under the epoch of an older one.
    pub(in crate::replication) fn check_dataset(&self) -> io::Result<()> {
        if let Some(end) = self.end.get() {
            Err(end.to_error())
        } else if self.node.dataset_generation() == self.generation {
            Ok(())
        } else {
            Err(io::Error::other(OTHER_DATA))
        }
    }

    /// Sends a heartbeat with the digest at the cursor.
    fn beat(&mut self, cursor: Cursor) -> io::Result<()> {
        self.cursor = Some(cursor);
        let mut digest_index = cursor.next - 1;
        let digest = match self.log.digest_at(digest_index) {
            Some(digest) => digest,
            // An observer may be at an index whose digest the log does not have. It gets the newest one that it has.
            None if self.registration.is_none() => {
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
        self.check_dataset()?;
        beat.encode(&mut self.out).map_err(io::Error::other)?;
        self.write()
    }

    /// Sends the entries whose frames are in `run`. `cursor` is the position after them.
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

    /// Sends a large entry without a copy. `cursor` is the position after it.
    fn send_large(&mut self, entry: &Entry, cursor: Cursor) -> io::Result<()> {
        self.cursor = Some(cursor);
        let fields = Fields::Entries {
            epoch: self.epoch,
            first_index: cursor.next - 1,
            count: 1,
        };
        self.write_large(fields, entry)
    }

    /// Writes a batch of one large entry.
    pub(in crate::replication) fn write_large(
        &mut self,
        fields: Fields,
        entry: &Entry,
    ) -> io::Result<()> {
        let head = Head::new(fields, entry.frame()).map_err(|_| too_long())?;
        head.encode(&mut self.out);
        self.write()?;
        self.write_all(entry.frame())
    }
}

/// Whether the socket's timeout has passed. Systems differ in the kind of error.
pub(in crate::replication) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

pub(in crate::replication) fn fell_behind() -> io::Error {
    io::Error::other("it fell behind what backlog_bytes keeps of the log")
}

pub(in crate::replication) fn too_long() -> io::Error {
    io::Error::other("an entry is longer than a batch can carry")
}

pub(in crate::replication) fn silent() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "it said nothing for three heartbeats")
}

pub(in crate::replication) fn stops() -> io::Error {
    io::Error::new(ErrorKind::Interrupted, "this node stops")
}
