//! The table of stream messages: one row for each message of the replication stream.
//!
//! A row has the opcode, the name, the side that sends the message, the fields of its key in their order, and its
//! value. [`StreamOpcode`], [`MessageSpec`], [`Fields`] and [`Message`] are made from the rows, with the functions that
//! read and write them. A new message is a row here, its documentation in docs/GBP.md, and its vectors there.
//!
//! # Source
//!
//! GBP §6 "The replication stream".

use super::{Changes, Epochs, Frames, ReplicationError};
use crate::wire::Field;

/// One message of the stream: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageSpec {
    /// Byte 0 of the frame.
    pub opcode: StreamOpcode,
    /// Name, as people write it.
    pub name: &'static str,
    /// The side that sends it.
    pub sender: Sender,
    /// Fields of the key in their order, the two checksums at the end included.
    pub fields: &'static [Field],
    /// Bytes of the key: those of all fields.
    pub key_len: u16,
    /// Kind of the value.
    pub value: MessageValue,
}

/// The side of a stream that sends a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The node that was asked for the stream.
    Leader,
    /// The node that asked.
    Follower,
}

/// Kind of a message's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageValue {
    /// None: the length must be 0.
    Empty,
    /// Records, one after another: [`Frames`].
    Frames,
    /// A history: [`Epochs`].
    History,
    /// The effects of one record: [`Changes`].
    Changes,
}

/// An `Option` with what is given.
macro_rules! some {
    () => {
        None
    };
    ($given:ident) => {
        Some($given)
    };
}

/// Makes [`StreamOpcode`], the specs, [`Fields`] and [`Message`] from the table.
///
/// A field is its notation (a constructor of [`Field`]), its name and its type. `[count of frames]` stands for the
/// number of frames in the value, which is a field of the key, and which a [`Message`] has in its frames.
macro_rules! messages {
    ($(
        $(#[$doc:meta])*
        $variant:ident = $byte:literal $name:literal $sender:ident {
            $($(#[$head_doc:meta])* $head_form:ident $head:ident $head_type:ident,)+
            $(
                [$count:ident of $counted:ident]
                $($(#[$tail_doc:meta])* $tail_form:ident $tail:ident $tail_type:ident,)*
            )?
        } $value:ident $({ $(#[$part_doc:meta])* $part:ident: $part_type:ty })?
    )+) => {
        /// Message of a frame of the stream: byte 0 (GBP §6).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum StreamOpcode {
            $($(#[$doc])* $variant = $byte,)+
        }

        impl StreamOpcode {
            /// Every opcode of the stream, in the order of their bytes.
            pub const ALL: [StreamOpcode; [$($byte),+].len()] = [$(StreamOpcode::$variant),+];

            /// The message's row of the table.
            #[must_use]
            pub const fn spec(self) -> &'static MessageSpec {
                match self {
                    $(StreamOpcode::$variant => {
                        const FIELDS: &[Field] = &[
                            $(Field::$head_form(stringify!($head), size_of::<$head_type>()),)+
                            $(
                                Field::number(stringify!($count), size_of::<u32>()),
                                $(Field::$tail_form(stringify!($tail), size_of::<$tail_type>()),)*
                            )?
                            Field::hex("value_crc", 4),
                            Field::hex("head_crc", 4),
                        ];
                        const SPEC: MessageSpec = MessageSpec {
                            opcode: StreamOpcode::$variant,
                            name: $name,
                            sender: Sender::$sender,
                            fields: FIELDS,
                            key_len: key_len(FIELDS),
                            value: MessageValue::$value,
                        };
                        &SPEC
                    })+
                }
            }
        }

        impl TryFrom<u8> for StreamOpcode {
            /// The byte that is no opcode of the stream.
            type Error = u8;

            fn try_from(byte: u8) -> Result<StreamOpcode, u8> {
                match byte {
                    $($byte => Ok(StreamOpcode::$variant),)+
                    _ => Err(byte),
                }
            }
        }

        /// Fields of a frame's key without the checksums, in their order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fields {
            $($(#[$doc])* $variant {
                $($(#[$head_doc])* $head: $head_type,)+
                $(
                    /// Frames in the value, at least 1.
                    $count: u32,
                    $($(#[$tail_doc])* $tail: $tail_type,)*
                )?
            },)+
        }

        impl Fields {
            /// The opcode of a frame with these fields.
            #[must_use]
            pub const fn opcode(&self) -> StreamOpcode {
                match self {
                    $(Fields::$variant { .. } => StreamOpcode::$variant,)+
                }
            }

            /// Frames in the value; `None` of a message that has none.
            pub(super) const fn count(&self) -> Option<u32> {
                match *self {
                    $(Fields::$variant { $($count,)? .. } => some!($($count)?),)+
                }
            }

            /// Reads the fields of a key that has the length of its opcode.
            pub(super) fn decode(opcode: StreamOpcode, key: &[u8]) -> Fields {
                let mut key = Reader(key);
                match opcode {
                    $(StreamOpcode::$variant => Fields::$variant {
                        $($head: key.$head_type(),)+
                        $($count: key.u32(), $($tail: key.$tail_type(),)*)?
                    },)+
                }
            }

            /// Writes the fields into a key that has the length of their opcode.
            pub(super) fn write(&self, key: &mut [u8]) {
                let mut key = Writer(key);
                match *self {
                    $(Fields::$variant { $($head,)+ $($count, $($tail,)*)? } => {
                        $(key.put(&$head.to_be_bytes());)+
                        $(
                            key.put(&$count.to_be_bytes());
                            $(key.put(&$tail.to_be_bytes());)*
                        )?
                    })+
                }
            }

            /// The message with these fields and this value, which is judged to its last byte.
            pub(super) fn message<'a>(self, value: &'a [u8]) -> Result<Message<'a>, ReplicationError> {
                Ok(match self {
                    $(Fields::$variant { $($head,)+ $($($tail,)*)? .. } => Message::$variant {
                        $($head,)+
                        $($($tail,)*)?
                        $($part: <$part_type>::of_value(&self, value)?,)?
                    },)+
                })
            }
        }

        /// One frame of the stream, its value borrowed.
        ///
        /// Every message carries the epoch of its sender. A receiver that knows a higher one refuses the message.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Message<'a> {
            $($(#[$doc])* $variant {
                $($(#[$head_doc])* $head: $head_type,)+
                $($($(#[$tail_doc])* $tail: $tail_type,)*)?
                $($(#[$part_doc])* $part: $part_type,)?
            },)+
        }

        impl Message<'_> {
            /// The opcode of the frame.
            #[must_use]
            pub const fn opcode(&self) -> StreamOpcode {
                match self {
                    $(Message::$variant { .. } => StreamOpcode::$variant,)+
                }
            }

            /// The sender's epoch.
            #[must_use]
            pub const fn epoch(&self) -> u64 {
                match *self {
                    $(Message::$variant { epoch, .. } => epoch,)+
                }
            }

            /// The fields of the frame's key.
            pub(super) const fn fields(&self) -> Fields {
                match *self {
                    $(Message::$variant { $($head,)+ $($($tail,)* $counted,)? .. } => Fields::$variant {
                        $($head,)+
                        $($count: $counted.count(), $($tail,)*)?
                    },)+
                }
            }

            /// Appends the value to `out`.
            pub(super) fn encode_value(&self, out: &mut Vec<u8>) {
                match self {
                    $(Message::$variant { $($part,)? .. } => {
                        $($part.encode(out);)?
                    })+
                }
            }
        }
    };
}

messages! {
    /// Leader to follower: a group of records of the log, in order. It ends where an append of the leader ends.
    Entries = 0x61 "ENTRIES" Leader {
        /// Epoch of the stream.
        number epoch u64,
        /// Index of the first record, at least 1. It must be the follower's next index.
        number first_index u64,
        [count of frames]
        /// The index up to which the leader has committed records.
        number committed_index u64,
        /// The leader's clock when it sent the group, in milliseconds since 1970 UTC.
        number time_ms u64,
        /// The digest of the data set after the last record.
        hex digest u128,
    } Frames {
        /// The records, one frame each.
        frames: Frames<'a>
    }
    /// Leader to follower: a snapshot begins, and the follower discards its data and its history.
    SnapshotBegin = 0x62 "SNAPSHOT_BEGIN" Leader {
        /// Epoch of the stream.
        number epoch u64,
        /// Approximate number of keys in the snapshot, since writes go on.
        number keys u64,
        /// Approximate bytes of keys and values in the snapshot.
        number bytes u64,
    } History {
        /// The snapshot's history.
        history: Epochs<'a>
    }
    /// Leader to follower: a part of the snapshot. Parts are applied in their order.
    SnapshotChunk = 0x63 "SNAPSHOT_CHUNK" Leader {
        /// Epoch of the stream.
        number epoch u64,
        /// The number of chunks before this one.
        number sequence u64,
        [count of frames]
    } Frames {
        /// Keys and values of the snapshot, and writes that were made while it was sent.
        frames: Frames<'a>
    }
    /// Leader to follower: the snapshot is complete.
    SnapshotEnd = 0x64 "SNAPSHOT_END" Leader {
        /// Epoch of the stream.
        number epoch u64,
        /// Index of the last record that the snapshot holds; 0 where there is none.
        number index u64,
        /// The digest at that index.
        hex digest u128,
        /// The number of chunks.
        number chunks u64,
    } Empty
    /// Leader to follower: the leader is alive; its position and its digest.
    Heartbeat = 0x65 "HEARTBEAT" Leader {
        /// Epoch of the stream.
        number epoch u64,
        /// Number of this heartbeat, which rises with each and which the follower's ACKs return.
        number round u64,
        /// Index of the last record in the leader's log; 0 where there is none.
        number last_index u64,
        /// The index up to which the leader has committed records.
        number committed_index u64,
        /// The index up to which the leader's log is on its disk; 0 where it has none.
        number durable_index u64,
        /// The leader's clock, in milliseconds since 1970 UTC.
        number time_ms u64,
        /// The index that the digest belongs to.
        number digest_index u64,
        /// The leader's digest at that index.
        hex digest u128,
    } Empty
    /// Follower to leader: the follower is alive; its position.
    Ack = 0x66 "ACK" Follower {
        /// Epoch of the stream.
        number epoch u64,
        /// Round of the newest heartbeat that the follower has received; 0 before the first.
        number round u64,
        /// Index of the last record in the follower's log; 0 where it holds no complete data set.
        number last_index u64,
        /// Index of the last record that the follower has applied; 0 where it holds no complete data set.
        number applied_index u64,
        /// The index up to which the follower's log is on its disk; 0 where it has none.
        number durable_index u64,
    } Empty
    /// Leader to follower: the follower is to lead, in an epoch above this one.
    Lead = 0x68 "LEAD" Leader {
        /// Epoch of the stream, in which the leader leads no more.
        number epoch u64,
        /// Index of the last record of the leader's log, which the follower must hold as its last.
        number last_index u64,
        /// The digest at that index.
        hex digest u128,
    } Empty
    /// Node to watcher: one record of the log, as far as it is about keys that are watched.
    Event = 0x69 "EVENT" Leader {
        /// Epoch of the stream.
        number epoch u64,
        /// Index of the record, at least 1.
        number index u64,
        /// 1 where the frames are whole, 0 where they end behind their operands.
        number values u8,
        [count of changes]
    } Changes {
        /// The effects of the record, one frame each.
        changes: Changes<'a>
    }
}

impl StreamOpcode {
    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        // The discriminants are the protocol's numbers, so this is the definition and not a conversion that can lose.
        self as u8
    }

    /// The name that people write.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// The fields of the key, in their order.
    #[must_use]
    pub const fn fields(self) -> &'static [Field] {
        self.spec().fields
    }

    /// Bytes of the key of every frame with this opcode.
    #[must_use]
    pub const fn key_len(self) -> u16 {
        self.spec().key_len
    }

    /// Whether a frame with this opcode carries a value.
    #[must_use]
    pub const fn uses_value(self) -> bool {
        match self.spec().value {
            MessageValue::Empty => false,
            MessageValue::Frames | MessageValue::History | MessageValue::Changes => true,
        }
    }
}

/// Bytes of a key with these fields.
const fn key_len(fields: &[Field]) -> u16 {
    let len = Field::total(fields);
    assert!(len <= 0xFF, "fields are few");
    #[allow(clippy::cast_possible_truncation)]
    {
        len as u16
    }
}

/// Reads numbers from the start of a key.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (bytes, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *bytes
    }

    fn u8(&mut self) -> u8 {
        u8::from_be_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }

    fn u128(&mut self) -> u128 {
        u128::from_be_bytes(self.take())
    }
}

/// Writes numbers to the start of a key.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let (place, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        place.copy_from_slice(bytes);
        self.0 = rest;
    }
}
