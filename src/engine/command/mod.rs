//! Commands: functions from the old entry of a key to an answer and an effect.
//!
//! One file per family of operations. A new operation is one function here, one row in the command table
//! ([`crate::wire::command`]), its documentation and its vectors.

mod counter;
pub(super) mod value;

use std::borrow::Cow;

use super::answers::Answers;
use super::entry::Entry;
use crate::wire::{Opcode, RequestFrame};

/// The change that a command makes to its key. Effects are absolute, so replaying one is harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect<'a> {
    /// Nothing.
    None,
    /// The request is its own effect, byte for byte: a SET.
    AsSent,
    /// The key has this value from now on, as if by a SET. That frame is at most as long as the request and the
    /// `effect_extra` bytes of its row in the command table.
    Put(Cow<'a, [u8]>),
    /// The key is removed, as if by a DEL.
    Remove,
}

/// A command. It adds one answer, and is called with the key's partition locked.
pub(super) type Function =
    for<'a> fn(&RequestFrame<'a>, old: Option<&Entry>, answers: &mut Answers) -> Effect<'a>;

/// How the engine executes an operation.
#[derive(Clone, Copy)]
pub(super) enum Command {
    /// SET, which is its own effect. [`value::set`] answers it.
    Set,
    /// GET. [`value::get`] answers it.
    Get,
    /// DEL, which is its own effect where the key exists. [`value::del`] answers it.
    Del,
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
        Opcode::Add => Command::Computed(counter::add),
        Opcode::SetAt
        | Opcode::Put
        | Opcode::Take
        | Opcode::Expire
        | Opcode::Ttl
        | Opcode::Ping
        | Opcode::Sync
        | Opcode::Status
        | Opcode::Discard
        | Opcode::Sums
        | Opcode::List
        | Opcode::Follow
        | Opcode::Epoch => Command::None,
    }
}
