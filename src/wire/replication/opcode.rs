//! The table of stream messages: one row for each message of the replication stream.
//!
//! # Source
//!
//! GBP §6 "The replication stream".

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
    /// Fields of the key, in their order.
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
    /// Client frames, one after another: [`Frames`](super::Frames).
    Frames,
    /// A history: [`Epochs`](super::Epochs).
    History,
}

/// Makes [`StreamOpcode`] and the specs from the table.
macro_rules! messages {
    ($(
        $(#[$doc:meta])*
        $variant:ident = $byte:literal $name:literal $sender:ident $value:ident {
            $($kind:ident $field:ident $size:literal,)+
        }
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
                        const SPEC: MessageSpec = MessageSpec {
                            opcode: StreamOpcode::$variant,
                            name: $name,
                            sender: Sender::$sender,
                            fields: &[$(Field::$kind(stringify!($field), $size)),+],
                            key_len: 0 $(+ $size)+,
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
    };
}

messages! {
    /// Entries of the log, in order.
    Entries = 0x61 "ENTRIES" Leader Frames {
        number epoch 8,
        number first_index 8,
        number count 4,
        hex value_crc 4,
        hex head_crc 4,
    }
    /// A full copy begins: the receiver discards its data set.
    SnapshotBegin = 0x62 "SNAPSHOT_BEGIN" Leader History {
        number epoch 8,
        number keys 8,
        number bytes 8,
        hex value_crc 4,
        hex head_crc 4,
    }
    /// A part of the full copy.
    SnapshotChunk = 0x63 "SNAPSHOT_CHUNK" Leader Frames {
        number epoch 8,
        number sequence 8,
        number count 4,
        hex value_crc 4,
        hex head_crc 4,
    }
    /// The full copy is complete.
    SnapshotEnd = 0x64 "SNAPSHOT_END" Leader Empty {
        number epoch 8,
        number index 8,
        hex digest 16,
        number chunks 8,
        hex value_crc 4,
        hex head_crc 4,
    }
    /// The leader is alive; its last index and its digest.
    Heartbeat = 0x65 "HEARTBEAT" Leader Empty {
        number epoch 8,
        number last_index 8,
        number digest_index 8,
        hex digest 16,
        hex value_crc 4,
        hex head_crc 4,
    }
    /// The follower is alive; the last index that it has applied.
    Ack = 0x66 "ACK" Follower Empty {
        number epoch 8,
        number applied_index 8,
        hex value_crc 4,
        hex head_crc 4,
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
            MessageValue::Frames | MessageValue::History => true,
        }
    }
}
