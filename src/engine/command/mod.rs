//! Commands: functions from the old entry of a key to an answer and an effect.
//!
//! One file per family of operations. A new operation is one function here, one row in the command table
//! ([`crate::wire::command`]), its documentation and its vectors.

mod conditional;
mod counter;
pub(super) mod expiry;
pub(super) mod value;

use super::answers::Answers;
use super::clock::Now;
use super::entry::Entry;
use crate::wire::expiry::recorded_expiry;
use crate::wire::{Opcode, RequestFrame, Status};

/// The change that a command makes to its key. Effects are absolute, so replaying one is harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect<'a> {
    /// Nothing.
    None,
    /// The request is its own effect, byte for byte: a SET.
    AsSent,
    /// The key has this value and this deadline from now on, as if by a SET or a SETAT. That frame is at most as long
    /// as the request and the `effect_extra` bytes of its row in the command table.
    Put {
        value: NewValue<'a>,
        deadline: Option<u64>,
    },
    /// The key is removed, as if by a DEL.
    Remove,
    /// The key, which exists, has this deadline from now on, or none, as if by an EXPIRE.
    Expire { deadline: Option<u64> },
}

/// The value that a command stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NewValue<'a> {
    /// A part of the request.
    Sent(&'a [u8]),
    /// The decimal form of a number.
    Number(i64),
}

/// Memory for the decimal form of a number.
pub(super) type Digits = itoa::Buffer;

impl NewValue<'_> {
    /// The bytes of the value. Those of a number are in `digits`.
    #[inline]
    pub(super) fn bytes<'d>(&'d self, digits: &'d mut Digits) -> &'d [u8] {
        match self {
            NewValue::Sent(value) => value,
            NewValue::Number(number) => digits.format(*number).as_bytes(),
        }
    }
}

/// The request of a command, and the state that it meets.
pub(super) struct Input<'i, 'a> {
    pub(super) frame: &'i RequestFrame<'a>,
    /// The entry of the key; `None` where there is none, or where its deadline has passed.
    pub(super) old: Option<&'i Entry>,
    /// The deadline that the key has; a request of a BATCH before this one may have changed that of the entry.
    pub(super) deadline: Option<u64>,
    /// The time, which is read where the command asks for it.
    pub(super) clock: &'i Now<'i>,
    /// XXH3-128 of the old entry's value, where it was [asked for](Needs::OldHash).
    pub(super) old_hash: Option<u128>,
    /// Whether writes are logged, so that there are tokens.
    pub(super) has_log: bool,
}

/// The thing that a command needs to be executed, and that takes too long under a lock. It is called again with it, and
/// its answer is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// The XXH3-128 of the old entry's value, which is long.
    OldHash,
}

/// The fault of a request for a token where there is no log.
pub(super) const NO_TOKEN: &str =
    "want 0x02: a token needs a log, which a node has with peers in cluster.toml";

/// The effect of a request that is refused, for this reason.
fn refused<'a>(answers: &mut Answers, reason: &str) -> Result<Effect<'a>, Needs> {
    answers.push(Status::Error, reason.as_bytes());
    Ok(Effect::None)
}

/// A command. It adds one answer, and is called with the key's partition locked. It may be called more than once for
/// one request.
pub(super) type Function =
    for<'i, 'a> fn(&Input<'i, 'a>, answers: &mut Answers) -> Result<Effect<'a>, Needs>;

/// How the engine executes an operation.
#[derive(Clone, Copy)]
pub(super) enum Command {
    /// SET, which is its own effect. [`value::set`] answers it.
    Set,
    /// GET. [`value::get`] answers it.
    Get,
    /// DEL, which is its own effect where the key exists. [`value::del`] answers it.
    Del,
    /// TTL. [`expiry::ttl`] answers it.
    Ttl,
    /// An operation whose effect follows from the old entry.
    Computed(Function),
    /// The engine does not execute the operation.
    None,
}

/// How the engine executes the operation with this opcode.
#[inline]
pub(super) const fn of(opcode: Opcode) -> Command {
    match opcode {
        Opcode::Set => Command::Set,
        Opcode::Get => Command::Get,
        Opcode::Del => Command::Del,
        Opcode::SetAt => Command::Computed(expiry::set_at),
        Opcode::Add => Command::Computed(counter::add),
        Opcode::Expire => Command::Computed(expiry::expire),
        Opcode::Put => Command::Computed(conditional::put),
        Opcode::Take => Command::Computed(conditional::take),
        Opcode::Ttl => Command::Ttl,
        Opcode::Ping
        | Opcode::Scan
        | Opcode::Sync
        | Opcode::Status
        | Opcode::Discard
        | Opcode::Snapshot
        | Opcode::Sums
        | Opcode::List
        | Opcode::Watch
        | Opcode::Follow
        | Opcode::Batch
        | Opcode::Epoch => Command::None,
    }
}

/// Whether the operation may store a value, which takes memory.
pub(super) const fn may_store(opcode: Opcode) -> bool {
    match opcode {
        Opcode::Set | Opcode::SetAt | Opcode::Put | Opcode::Add | Opcode::Batch => true,
        Opcode::Get
        | Opcode::Del
        | Opcode::Take
        | Opcode::Expire
        | Opcode::Ttl
        | Opcode::Ping
        | Opcode::Scan
        | Opcode::Sync
        | Opcode::Status
        | Opcode::Discard
        | Opcode::Snapshot
        | Opcode::Sums
        | Opcode::List
        | Opcode::Watch
        | Opcode::Follow
        | Opcode::Epoch => false,
    }
}

/// Whether the operation changes nothing, or only removes.
pub(super) const fn only_removes(opcode: Opcode) -> bool {
    let removes = matches!(opcode, Opcode::Del | Opcode::Take);
    removes || !opcode.spec().writes
}

/// A record of the log, by its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// SET or SETAT: the frame becomes the entry.
    Put,
    /// DEL.
    Remove,
    /// EXPIRE: the key has this deadline, or none.
    Expire(Option<u64>),
    /// BATCH: the effects in its value, together.
    Batch,
    /// EPOCH, which changes no key.
    Epoch,
}

impl Record {
    /// The effect of a frame that was accepted as a record.
    #[inline(always)]
    pub(super) fn of(frame: &RequestFrame<'_>) -> Record {
        // Nearly all of them are.
        if frame.opcode() == Opcode::Set {
            return Record::Put;
        }
        Record::of_other(frame)
    }

    #[inline(never)]
    fn of_other(frame: &RequestFrame<'_>) -> Record {
        match frame.opcode() {
            Opcode::Set | Opcode::SetAt => Record::Put,
            Opcode::Del => Record::Remove,
            Opcode::Expire => Record::Expire(recorded_expiry(frame.value()).flatten()),
            Opcode::Batch => Record::Batch,
            Opcode::Epoch => Record::Epoch,
            Opcode::Get
            | Opcode::Put
            | Opcode::Take
            | Opcode::Ttl
            | Opcode::Ping
            | Opcode::Add
            | Opcode::Scan
            | Opcode::Sync
            | Opcode::Status
            | Opcode::Discard
            | Opcode::Snapshot
            | Opcode::Sums
            | Opcode::List
            | Opcode::Watch
            | Opcode::Follow => unreachable!("no record has this opcode"),
        }
    }
}
