//! The command table: one row for each operation of this version of GBP.
//!
//! A row of the `commands!` table below has an operation's opcode, name, fields and limits, and the properties that the
//! parser, the batching, the admission, the client and the annotation need. They read [`CommandSpec`] and do not name
//! operations. [`Opcode`] and [`Request`] are made from the rows. A new operation is a row here, a function in the
//! engine, its documentation in docs/GBP.md, and its vectors there.
//!
//! # Example
//!
//! ```
//! use gopherstore::wire::{Access, Opcode};
//!
//! let list = Opcode::List.spec();
//! assert_eq!((list.name, list.access, list.writes), ("LIST", Access::Admin, false));
//! assert_eq!(list.operands.iter().map(|field| field.name).collect::<Vec<_>>(), ["incarnation", "partition", "bits"]);
//! ```
//!
//! # Source
//!
//! GBP §3 "Opcodes", §4 "Operations".

use byteorder::{BigEndian, ByteOrder};

use super::batch::{self, Batch};
use super::comparison::{List, Sums};
use super::conditional::{Add, CONDITION_NAMES, Put, Take, Want};
use super::expiry::{self, EXPIRY_NAMES};
use super::replication::{Follow, Watch};
use super::request::Limits;
use super::scan::Scan;
use super::sync::SYNC_MODES;
use super::{Field, Status, SyncRequest};

/// One operation of the protocol: a row of the command table.
#[derive(Clone, Copy, Debug)]
pub struct CommandSpec {
    /// Byte 0 of the request.
    pub opcode: Opcode,
    /// Name, as people write it.
    pub name: &'static str,
    /// Whether the request carries a key.
    pub has_key: bool,
    /// Fields at the start of the value, in their order.
    pub operands: &'static [Field],
    /// Name of what follows the operands.
    pub rest: &'static str,
    /// Longest rest of the value.
    pub rest_max: Limit,
    /// Judges key and value beyond their lengths.
    pub check: Option<Check>,
    /// Right that a client needs.
    pub access: Access,
    /// Whether it changes the data set, so that only the leader executes it.
    pub writes: bool,
    /// Whether its frame may be a record of the log: the effect of a write, or a record that nodes alone make.
    pub is_record: bool,
    /// Where the effect of a write is computed from the old entry: bytes by which the frame of its effect may be longer
    /// than that of the request. `None` where the request is its own effect, or has none.
    pub effect_extra: Option<usize>,
    /// Whether it may share a [`Run`](super::Run) with other requests.
    pub batchable: bool,
    /// Whether a connection beyond `max_connections` may send it.
    pub reserve: Reserve,
    /// Statuses that it answers.
    pub statuses: &'static [Status],
    /// Value of its OK.
    pub ok: OkValue,
}

/// Judges the key and the value of a request.
pub type Check = fn(key: &[u8], value: &[u8]) -> Result<(), OperandError>;

/// Right that a client needs for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads data of the cluster; any node that holds it may answer.
    Read,
    /// Changes data of the cluster.
    Write,
    /// Reads or changes the state of the very node that it is sent to.
    Admin,
    /// Belongs to other nodes of the cluster.
    Peer,
}

/// Use of an operation on a connection beyond `max_connections` (GBP §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// The request gets the ERROR of the limit.
    Refused,
    /// The request is executed, but not as the first one.
    Answered,
    /// The request is executed, and as the first one it admits the connection.
    Admitted,
}

/// Limit on the length of the rest of a value, behind the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The node's `max_value_bytes`.
    Node,
    /// This many bytes, independent of the node's limit.
    Bytes(u32),
}

/// Value of an operation's OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OkValue {
    /// Empty.
    Empty,
    /// The value of a key: any bytes.
    Bytes,
    /// Text in UTF-8.
    Text,
    /// A signed number of 64 bits, in decimal, behind the token where that is wanted:
    /// [`sum_of`](super::conditional::sum_of).
    Number,
    /// Empty, or what a key had: a [`Found`](super::conditional::Found).
    Found,
    /// A time in milliseconds, or empty: [`ttl_of`](super::expiry::ttl_of).
    Remaining,
    /// The responses to the requests of a BATCH: a [`BatchAnswer`](super::batch::BatchAnswer).
    Batch,
    /// The four bytes `PONG`.
    Pong,
    /// A [`Token`](super::Token).
    Token,
    /// Sums of buckets: a [`SumsAnswer`](super::comparison::SumsAnswer).
    Sums,
    /// Items of buckets: a [`ListAnswer`](super::comparison::ListAnswer).
    Items,
    /// Keys or entries: a [`ScanAnswer`](super::scan::ScanAnswer).
    Entries,
    /// A [`FollowAnswer`](super::replication::FollowAnswer), and behind the response frames of a stream.
    Stream,
}

/// A key or value whose fields are not acceptable, though the frame's lengths are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperandError {
    /// Offset in the frame of the field that is wrong.
    pub at: usize,
    /// The fault, with the limit where there is one.
    pub reason: String,
}

const NO_VALUE: Limit = Limit::Bytes(0);

/// Where a SUMS or LIST goes on.
const COMPARISON: &[Field] = &[
    Field::hex("incarnation", 8),
    Field::number("partition", 4),
    Field::number("bits", 1),
];

/// Statuses of an operation that every node executes in every state.
const ALWAYS: &[Status] = &[Status::Ok, Status::Error];

/// Statuses of an operation that needs a complete data set.
const READ: &[Status] = &[Status::Ok, Status::Error, Status::Loading];

/// Statuses of a GET. NOT_LEADER is for a read that waited for the disk of a leader which leads no longer.
const READ_KEY: &[Status] = &[
    Status::Ok,
    Status::Error,
    Status::NotLeader,
    Status::NotFound,
    Status::Loading,
];

/// Statuses of a SCAN.
const SCAN: &[Status] = &[
    Status::Ok,
    Status::Error,
    Status::NotLeader,
    Status::Loading,
];

/// Statuses of a SYNC.
const SYNC: &[Status] = &[
    Status::Ok,
    Status::Error,
    Status::NotLeader,
    Status::Loading,
    Status::Timeout,
    Status::Lost,
    Status::Compacted,
];

/// Statuses of a write.
const WRITE: &[Status] = &[
    Status::Ok,
    Status::Error,
    Status::NotLeader,
    Status::Loading,
    Status::Full,
    Status::Timeout,
];

/// Statuses of a FOLLOW.
const FOLLOW: &[Status] = &[
    Status::Ok,
    Status::Error,
    Status::NotLeader,
    Status::Loading,
];

/// Statuses of a WATCH.
const WATCH: &[Status] = &[
    Status::Ok,
    Status::Error,
    Status::Loading,
    Status::Lost,
    Status::Compacted,
];

/// Statuses of a record that only nodes make.
const RECORD: &[Status] = &[Status::Error];

/// Statuses of a write to a key that must exist.
const WRITE_KEY: &[Status] = &[
    Status::Ok,
    Status::Error,
    Status::NotLeader,
    Status::NotFound,
    Status::Loading,
    Status::Full,
    Status::Timeout,
];

/// Statuses of a write with a condition.
const WRITE_IF: &[Status] = &[
    Status::Ok,
    Status::Error,
    Status::NotLeader,
    Status::Loading,
    Status::Conflict,
    Status::Full,
    Status::Timeout,
];

/// Statuses of a removal with a condition.
const TAKE: &[Status] = &[
    Status::Ok,
    Status::Error,
    Status::NotLeader,
    Status::NotFound,
    Status::Loading,
    Status::Conflict,
    Status::Full,
    Status::Timeout,
];

/// True where a name is given.
macro_rules! is_given {
    () => {
        false
    };
    ($name:ident) => {
        true
    };
}

/// The named slice, or an empty one.
macro_rules! or_empty {
    () => {
        &[]
    };
    ($name:ident) => {
        $name
    };
}

/// Makes [`Opcode`], [`Request`] and the specs from the table. The braces behind a variant hold `key`, where the
/// request carries one, and `, value`, where it carries operands or anything behind them.
macro_rules! commands {
    ($(
        $(#[$doc:meta])*
        $variant:ident $({ $($key:ident)? $(, $value:ident)? })? = $byte:literal { $($spec:tt)* }
    )+) => {
        /// Operation of a request: byte 0 of its frame (GBP §3).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Opcode {
            $($(#[$doc])* $variant = $byte,)+
        }

        impl Opcode {
            /// Every opcode of this version, in the order of their bytes.
            pub const ALL: [Opcode; [$($byte),+].len()] = [$(Opcode::$variant),+];

            /// The operation's row of the command table.
            #[must_use]
            pub const fn spec(self) -> &'static CommandSpec {
                match self {
                    $(Opcode::$variant => {
                        const SPEC: CommandSpec = CommandSpec {
                            opcode: Opcode::$variant,
                            has_key: is_given!($($($key)?)?),
                            $($spec)*
                        };
                        const _: () = SPEC.assert_consistent(is_given!($($($value)?)?));
                        &SPEC
                    })+
                }
            }
        }

        impl TryFrom<u8> for Opcode {
            /// The byte that is no opcode of this version.
            type Error = u8;

            #[inline]
            fn try_from(byte: u8) -> Result<Opcode, u8> {
                // A load, where a match is a call with several branches for each frame.
                static BY_BYTE: [Option<Opcode>; 256] = {
                    let mut by_byte = [None; 256];
                    $(by_byte[$byte] = Some(Opcode::$variant);)+
                    by_byte
                };
                BY_BYTE[usize::from(byte)].ok_or(byte)
            }
        }

        /// One operation with its key and value, both borrowed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Request<'a> {
            $($(#[$doc])* $variant $({
                $(
                    /// 0 to [`KEY_LEN_MAX`](super::KEY_LEN_MAX) bytes.
                    $key: &'a [u8],
                )?
                $(
                    /// The [operands](CommandSpec::operands) and the rest of the value, as they came.
                    $value: &'a [u8],
                )?
            })?,)+
        }

        impl<'a> Request<'a> {
            /// The operation with this key and value. One that it does not carry is ignored.
            #[must_use]
            pub const fn new(opcode: Opcode, key: &'a [u8], value: &'a [u8]) -> Request<'a> {
                match opcode {
                    $(Opcode::$variant => Request::$variant $({ $($key: key,)? $($value: value,)? })?,)+
                }
            }

            /// The operation's opcode.
            #[must_use]
            pub const fn opcode(&self) -> Opcode {
                match self {
                    $(Request::$variant $({ $($key: _,)? .. })? => Opcode::$variant,)+
                }
            }

            /// The key, empty for an operation without one.
            #[must_use]
            pub const fn key(&self) -> &'a [u8] {
                match *self {
                    $(Request::$variant $({ $($key,)? .. })? => or_empty!($($($key)?)?),)+
                }
            }

            /// The value, empty for an operation without one.
            #[must_use]
            pub const fn value(&self) -> &'a [u8] {
                match *self {
                    $(Request::$variant $({ $($value,)? .. })? => or_empty!($($($value)?)?),)+
                }
            }
        }
    };
}

commands! {
    /// Stores `value` under `key` and replaces an earlier value.
    Set { key, value } = 0x01 {
        name: "SET",
        operands: &[],
        rest: "value",
        rest_max: Limit::Node,
        check: None,
        access: Access::Write,
        writes: true,
        is_record: true,
        effect_extra: None,
        batchable: true,
        reserve: Reserve::Refused,
        statuses: WRITE,
        ok: OkValue::Empty,
    }
    /// Reads the value of `key`.
    Get { key } = 0x02 {
        name: "GET",
        operands: &[],
        rest: "value",
        rest_max: NO_VALUE,
        check: None,
        access: Access::Read,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: true,
        reserve: Reserve::Refused,
        statuses: READ_KEY,
        ok: OkValue::Bytes,
    }
    /// Removes `key`.
    Del { key } = 0x03 {
        name: "DEL",
        operands: &[],
        rest: "value",
        rest_max: NO_VALUE,
        check: None,
        access: Access::Write,
        writes: true,
        is_record: true,
        effect_extra: None,
        batchable: true,
        reserve: Reserve::Refused,
        statuses: WRITE_KEY,
        ok: OkValue::Empty,
    }
    /// Checks that the node responds.
    Ping = 0x04 {
        name: "PING",
        operands: &[],
        rest: "value",
        rest_max: NO_VALUE,
        check: None,
        access: Access::Read,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: false,
        reserve: Reserve::Answered,
        statuses: ALWAYS,
        ok: OkValue::Pong,
    }
    /// Stores a value that expires at a deadline; [`SetAt::decode`](super::expiry::SetAt::decode) judges the value.
    SetAt { key, value } = 0x05 {
        name: "SETAT",
        operands: &[Field::number("deadline", 8)],
        rest: "value",
        rest_max: Limit::Node,
        check: Some(expiry::check_setat),
        access: Access::Write,
        writes: true,
        is_record: true,
        effect_extra: Some(0),
        batchable: true,
        reserve: Reserve::Refused,
        statuses: WRITE,
        ok: OkValue::Empty,
    }
    /// Stores a value where a condition is met; [`Put::decode`] judges the value.
    Put { key, value } = 0x06 {
        name: "PUT",
        operands: &[
            Field::choice("if", CONDITION_NAMES),
            Field::choice("expiry", EXPIRY_NAMES),
            Field::flags("want", Want::BITS),
            Field::number("time", 8),
            Field::length("expected_len", 2, "expected"),
        ],
        rest: "value",
        rest_max: Limit::Node,
        check: Some(Put::check),
        access: Access::Write,
        writes: true,
        is_record: false,
        effect_extra: Some(0),
        batchable: true,
        reserve: Reserve::Refused,
        statuses: WRITE_IF,
        ok: OkValue::Found,
    }
    /// Removes `key` where a condition is met; [`Take::decode`] judges the value.
    Take { key, value } = 0x07 {
        name: "TAKE",
        operands: &[
            Field::choice("if", CONDITION_NAMES),
            Field::flags("want", Want::BITS),
            Field::length("expected_len", 2, "expected"),
        ],
        rest: "expected",
        // As long as `EXPECTED_LEN_MAX`.
        rest_max: Limit::Bytes(4_096),
        check: Some(Take::check),
        access: Access::Write,
        writes: true,
        is_record: false,
        effect_extra: Some(0),
        batchable: true,
        reserve: Reserve::Refused,
        statuses: TAKE,
        ok: OkValue::Found,
    }
    /// Adds a number to the decimal value of `key`; [`Add::decode`] judges the value.
    Add { key, value } = 0x08 {
        name: "ADD",
        operands: &[
            Field::flags("want", Want::TOKEN_BIT),
            Field::signed("delta", 8),
            Field::signed("start", 8),
            Field::number("ttl", 8),
        ],
        rest: "value",
        rest_max: NO_VALUE,
        check: Some(Add::check),
        access: Access::Write,
        writes: true,
        is_record: false,
        effect_extra: Some(3),
        batchable: true,
        reserve: Reserve::Refused,
        statuses: WRITE,
        ok: OkValue::Number,
    }
    /// Sets, changes or removes the deadline of `key`; [`expiry_of`](super::expiry::expiry_of) judges the value.
    Expire { key, value } = 0x0B {
        name: "EXPIRE",
        operands: &[Field::choice("expiry", EXPIRY_NAMES), Field::number("time", 8)],
        rest: "value",
        rest_max: NO_VALUE,
        check: Some(expiry::check_expire),
        access: Access::Write,
        writes: true,
        is_record: true,
        effect_extra: Some(0),
        batchable: true,
        reserve: Reserve::Refused,
        statuses: WRITE_KEY,
        ok: OkValue::Empty,
    }
    /// Reads the time that is left until `key` expires.
    Ttl { key } = 0x0C {
        name: "TTL",
        operands: &[],
        rest: "value",
        rest_max: NO_VALUE,
        check: None,
        access: Access::Read,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: true,
        reserve: Reserve::Refused,
        statuses: READ_KEY,
        ok: OkValue::Remaining,
    }
    /// Reads keys, or entries, that begin with `key`; [`Scan::decode`] judges key and value.
    Scan { key, value } = 0x0E {
        name: "SCAN",
        operands: &[
            Field::flags("want", &[(1, "values")]),
            Field::number("max", 4),
            Field::hex("incarnation", 8),
            Field::number("partition", 4),
        ],
        rest: "from",
        // A key.
        rest_max: Limit::Bytes(65_535),
        check: Some(Scan::check),
        access: Access::Read,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: false,
        reserve: Reserve::Refused,
        statuses: SCAN,
        ok: OkValue::Entries,
    }
    /// Carries out the requests in its value together, or none of them; [`Batch::decode`] judges it.
    Batch { , value } = 0x0F {
        name: "BATCH",
        operands: &[],
        rest: "requests",
        // A record may be longer than a request, which `Batch::decode` limits.
        rest_max: Limit::Bytes(batch::BATCH_RECORD_BYTES_MAX),
        check: Some(Batch::check),
        access: Access::Write,
        writes: true,
        is_record: true,
        effect_extra: Some(batch::EFFECT_EXTRA),
        batchable: false,
        reserve: Reserve::Refused,
        statuses: WRITE_IF,
        ok: OkValue::Batch,
    }
    /// Reads the position of the node's data set, or waits until it has one; [`SyncRequest::decode`] judges the value.
    Sync { , value } = 0x10 {
        name: "SYNC",
        operands: &[Field::choice("mode", SYNC_MODES), Field::number("timeout", 4)],
        rest: "token",
        rest_max: Limit::Bytes(24),
        check: Some(SyncRequest::check),
        access: Access::Read,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: false,
        reserve: Reserve::Refused,
        statuses: SYNC,
        ok: OkValue::Token,
    }
    /// Requests the changes of the keys that begin with `key`; [`Watch::decode`] judges key and value.
    Watch { key, value } = 0x11 {
        name: "WATCH",
        operands: &[
            Field::flags("want", &[(1, "values"), (2, "snapshot")]),
            Field::number("epoch", 8),
            Field::number("index", 8),
            Field::hex("nonce", 8),
        ],
        rest: "value",
        rest_max: NO_VALUE,
        check: Some(Watch::check_operands),
        access: Access::Read,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: false,
        reserve: Reserve::Refused,
        statuses: WATCH,
        ok: OkValue::Stream,
    }
    /// Reads the node's state.
    Status = 0x40 {
        name: "STATUS",
        operands: &[],
        rest: "value",
        rest_max: NO_VALUE,
        check: None,
        access: Access::Admin,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: false,
        reserve: Reserve::Admitted,
        statuses: ALWAYS,
        ok: OkValue::Text,
    }
    /// Orders a follower that refuses its leader's data set to discard its own and to take a snapshot.
    Discard = 0x41 {
        name: "DISCARD",
        operands: &[],
        rest: "value",
        rest_max: NO_VALUE,
        check: None,
        access: Access::Admin,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: false,
        reserve: Reserve::Refused,
        statuses: ALWAYS,
        ok: OkValue::Empty,
    }
    /// Reads checksums of the node's data; [`Sums::decode`] judges key and value.
    Sums { key, value } = 0x42 {
        name: "SUMS",
        operands: COMPARISON,
        rest: "value",
        rest_max: NO_VALUE,
        check: Some(Sums::check),
        access: Access::Admin,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: false,
        reserve: Reserve::Refused,
        statuses: READ,
        ok: OkValue::Sums,
    }
    /// Lists some of the node's keys, with hashes; [`List::decode`] judges key and value.
    List { key, value } = 0x43 {
        name: "LIST",
        operands: COMPARISON,
        rest: "buckets",
        // A bit for each of 4,096 buckets.
        rest_max: Limit::Bytes(512),
        check: Some(List::check),
        access: Access::Admin,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: false,
        reserve: Reserve::Refused,
        statuses: READ,
        ok: OkValue::Items,
    }
    /// Orders a node with a disk to begin a snapshot of its data.
    Snapshot = 0x44 {
        name: "SNAPSHOT",
        operands: &[],
        rest: "value",
        rest_max: NO_VALUE,
        check: None,
        access: Access::Admin,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: false,
        reserve: Reserve::Refused,
        statuses: ALWAYS,
        ok: OkValue::Empty,
    }
    /// Requests the replication stream; [`Follow::decode`] judges key and value.
    Follow { key, value } = 0x60 {
        name: "FOLLOW",
        operands: &[
            Field::number("version", 1),
            Field::flags("flags", &[(2, "snapshot"), (4, "to lead")]),
            Field::number("epoch", 8),
            Field::hex("nonce", 8),
            Field::number("last_index", 8),
        ],
        rest: "cluster_id",
        rest_max: Limit::Bytes(1_024),
        check: Some(Follow::check_operands),
        access: Access::Peer,
        writes: false,
        is_record: false,
        effect_extra: None,
        batchable: false,
        reserve: Reserve::Admitted,
        statuses: FOLLOW,
        ok: OkValue::Stream,
    }
    /// Begins an epoch of the log, as its first record. A request of a client with it is refused.
    Epoch { , value } = 0x67 {
        name: "EPOCH",
        operands: &[Field::number("epoch", 8), Field::hex("nonce", 8)],
        rest: "value",
        rest_max: NO_VALUE,
        check: None,
        access: Access::Peer,
        writes: false,
        is_record: true,
        effect_extra: None,
        batchable: false,
        reserve: Reserve::Refused,
        statuses: RECORD,
        ok: OkValue::Empty,
    }
}

impl Opcode {
    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        // The discriminants are the protocol's numbers, so this is the definition and not a conversion that can lose.
        self as u8
    }

    /// The operation's name as people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// Whether a request with this opcode carries a key.
    #[must_use]
    pub const fn uses_key(self) -> bool {
        self.spec().has_key
    }

    /// Whether a request with this opcode carries a value.
    #[must_use]
    pub const fn uses_value(self) -> bool {
        self.spec().uses_value()
    }
}

impl CommandSpec {
    /// Whether the request carries a value: operands, or anything behind them.
    #[must_use]
    pub const fn uses_value(&self) -> bool {
        !self.operands.is_empty() || !matches!(self.rest_max, Limit::Bytes(0))
    }

    /// Bytes of the operands.
    #[must_use]
    pub const fn operands_len(&self) -> usize {
        Field::total(self.operands)
    }

    /// Longest value in bytes, operands included, on a node with these limits.
    #[must_use]
    pub const fn value_len_max(&self, limits: &Limits) -> u32 {
        let rest_max = match self.rest_max {
            Limit::Node => limits.value_len_max,
            Limit::Bytes(len) => len,
        };
        // `assert_consistent` bounds the operands, so that the conversion loses nothing.
        #[allow(clippy::cast_possible_truncation)]
        let operands_len = self.operands_len() as u32;
        rest_max.saturating_add(operands_len)
    }

    /// Whether a request may take longer than other clients can wait for.
    #[must_use]
    pub const fn may_take_long(&self) -> bool {
        match self.access {
            Access::Admin | Access::Peer => true,
            Access::Read | Access::Write => matches!(self.ok, OkValue::Entries | OkValue::Stream),
        }
    }

    /// Whether the operation answers with this status.
    #[must_use]
    pub fn answers(&self, status: Status) -> bool {
        self.statuses.contains(&status)
    }

    /// Judges the key and the value of a request whose lengths are within their limits.
    ///
    /// # Errors
    ///
    /// The first field that is wrong. The request is answered with ERROR, and the connection goes on.
    pub fn check(&self, key: &[u8], value: &[u8]) -> Result<(), OperandError> {
        if let Some(check) = self.check {
            return check(key, value);
        }
        self.has_operands(value)
    }

    /// The error for an operand of a request with this key: the one whose name `reason` begins with, or else the length
    /// of the value.
    pub(super) fn wrong(&self, key: &[u8], reason: String) -> OperandError {
        let name = reason.split(' ').next().unwrap_or_default();
        let at = match self.operands.iter().position(|field| field.name == name) {
            Some(number) => {
                super::request::HEADER_LEN + key.len() + Field::total(&self.operands[..number])
            }
            None => super::request::VALUE_LEN_AT,
        };
        OperandError { at, reason }
    }

    /// Whether a value is long enough for the operands, and nothing else.
    pub(super) fn has_operands(&self, value: &[u8]) -> Result<(), OperandError> {
        if value.len() >= self.operands_len() {
            return Ok(());
        }
        Err(self.too_short(value.len()))
    }

    /// The error for a value of `len` bytes, which does not hold the operands.
    #[cold]
    pub(super) fn too_short(&self, len: usize) -> OperandError {
        let (name, needed) = (self.name, self.operands_len());
        let reason = format!("value of {len} bytes in {name}, must have {needed}");
        self.wrong(&[], reason)
    }

    /// Reads the first `N` operands at the start of a request's value as unsigned numbers, in their order.
    ///
    /// # Errors
    ///
    /// Where the value is shorter than the operands, or one of them is wrong.
    pub fn operands_of<const N: usize>(&self, value: &[u8]) -> Result<[u64; N], OperandError> {
        self.check(&[], value)?;
        self.operands_before(value)
    }

    /// The same for what judges the operands: only the length of the value is wrong.
    pub(super) fn operands_before<const N: usize>(
        &self,
        value: &[u8],
    ) -> Result<[u64; N], OperandError> {
        self.has_operands(value)?;
        let (mut operands, mut rest) = ([0; N], value);
        for (operand, field) in operands.iter_mut().zip(self.operands) {
            let (bytes, after) = rest.split_at_checked(field.size).unwrap_or((rest, &[]));
            *operand = BigEndian::read_uint(bytes, field.size.clamp(1, 8));
            rest = after;
        }
        Ok(operands)
    }

    /// Writes operands, each in the size of its field.
    #[must_use]
    pub fn value_of<const N: usize>(&self, operands: [u64; N]) -> Vec<u8> {
        let mut value = Vec::with_capacity(self.operands_len());
        for (operand, field) in operands.iter().zip(self.operands) {
            let bytes = operand.to_be_bytes();
            value.extend_from_slice(&bytes[bytes.len() - field.size.min(bytes.len())..]);
        }
        value
    }

    /// Rejects a row that contradicts itself, while the program is built.
    const fn assert_consistent(&self, has_value: bool) {
        assert!(has_value == self.uses_value(), "the shape says otherwise");
        assert!(self.operands_len() <= 1_024, "operands are few");
        assert!(
            self.writes || !self.is_record || matches!(self.access, Access::Peer),
            "a record is a write, or of nodes alone"
        );
        assert!(
            !self.writes || self.is_record || self.effect_extra.is_some(),
            "a write has an effect"
        );
        assert!(
            self.writes == matches!(self.access, Access::Write),
            "a write needs the right to write"
        );
        assert!(
            self.effect_extra.is_none() || self.writes,
            "only a write has an effect"
        );
        assert!(self.has_key || !self.batchable, "runs are sorted by key");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_read_as_they_are_written() {
        const OPERANDS: &[Field] = &[
            Field::number("a", 1),
            Field::signed("b", 8),
            Field::hex("c", 4),
        ];
        let spec = CommandSpec {
            operands: OPERANDS,
            check: None,
            ..*Opcode::Set.spec()
        };
        let minus_two = (-2_i64).cast_unsigned();
        let value = spec.value_of([7, minus_two, 0x0102_0304]);
        assert_eq!(
            value,
            b"\x07\xff\xff\xff\xff\xff\xff\xff\xfe\x01\x02\x03\x04"
        );
        assert_eq!(spec.operands_of(&value), Ok([7, minus_two, 0x0102_0304]));
        let rest = [&value[..], b"rest"].concat();
        assert_eq!(spec.operands_of(&rest), Ok([7, minus_two, 0x0102_0304]));
        for len in 0..value.len() {
            let error = spec.operands_of::<3>(&value[..len]).unwrap_err();
            assert_eq!(
                error.reason,
                format!("value of {len} bytes in SET, must have 13")
            );
        }
    }

    #[test]
    fn a_request_is_made_of_its_opcode_key_and_value() {
        for opcode in Opcode::ALL {
            let request = Request::new(opcode, b"key", b"value");
            let part = |is_there: bool, part: &'static [u8]| if is_there { part } else { b"" };
            assert_eq!(request.opcode(), opcode);
            assert_eq!(request.key(), part(opcode.uses_key(), b"key"));
            assert_eq!(request.value(), part(opcode.uses_value(), b"value"));
        }
    }

    #[test]
    fn opcodes_are_in_the_order_of_their_bytes_and_none_is_given_twice() {
        let bytes = Opcode::ALL.map(Opcode::byte);
        assert!(bytes.is_sorted_by(|a, b| a < b), "{bytes:x?}");
        let names = Opcode::ALL.map(Opcode::name);
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "{name}");
            assert_eq!(*name, name.to_ascii_uppercase());
        }
    }
}
