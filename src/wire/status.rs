//! The status table: one row for each status of this version of GBP.
//!
//! # Source
//!
//! GBP §7 "Statuses".

/// One status of the protocol: a row of the status table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusSpec {
    /// Byte 0 of the response.
    pub status: Status,
    /// Name, as the documents write it.
    pub name: &'static str,
    /// Kind of the response's value.
    pub value: StatusValue,
}

/// Kind of a response's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusValue {
    /// The result of the operation: its [`OkValue`](super::command::OkValue).
    Result,
    /// A message in UTF-8, for people.
    Message,
    /// The leader's address, `host:port`; empty where the node knows none.
    Address,
    /// Empty.
    Empty,
    /// The state of the key that fails a condition, as the operation defines it.
    State,
    /// An index of the log, 8 bytes.
    Index,
}

/// Makes [`Status`] and the specs from the table.
macro_rules! statuses {
    ($($(#[$doc:meta])* $variant:ident = $byte:literal $name:literal $value:ident;)+) => {
        /// Outcome of a request: byte 0 of its response (GBP §7).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Status {
            $($(#[$doc])* $variant = $byte,)+
        }

        impl Status {
            /// Every status of this version, in the order of their bytes.
            pub const ALL: [Status; [$($byte),+].len()] = [$(Status::$variant),+];

            /// The status's row of the table.
            #[must_use]
            pub const fn spec(self) -> StatusSpec {
                match self {
                    $(Status::$variant => StatusSpec {
                        status: self,
                        name: $name,
                        value: StatusValue::$value,
                    },)+
                }
            }
        }

        impl TryFrom<u8> for Status {
            /// The byte that is no status of this version. A client treats it as an error that carries a message.
            type Error = u8;

            fn try_from(byte: u8) -> Result<Status, u8> {
                match byte {
                    $($byte => Ok(Status::$variant),)+
                    _ => Err(byte),
                }
            }
        }
    };
}

statuses! {
    /// Done.
    Ok = 0x00 "OK" Result;
    /// Refused; nothing was changed.
    Error = 0x01 "ERROR" Message;
    /// This node takes no writes; nothing was changed.
    NotLeader = 0x02 "NOT_LEADER" Address;
    /// There is no such key; nothing was changed.
    NotFound = 0x03 "NOT_FOUND" Empty;
    /// This node has no complete data set yet; nothing was changed.
    Loading = 0x04 "LOADING" Message;
    /// A condition of the request is not met; nothing was changed.
    Conflict = 0x05 "CONFLICT" State;
    /// The write needs more memory than the node's limit leaves; nothing was changed.
    Full = 0x06 "FULL" Message;
    /// The outcome is unknown: the write was executed or will be, or it is lost.
    Timeout = 0x07 "TIMEOUT" Message;
    /// The position was never part of this node's history.
    Lost = 0x08 "LOST" Message;
    /// The log no longer reaches back to the position; the value is the oldest index that is left.
    Compacted = 0x0B "COMPACTED" Index;
}

impl Status {
    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        // The discriminants are the protocol's numbers, so this is the definition and not a conversion that can lose.
        self as u8
    }

    /// The status's name as the documents write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.spec().name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::is_text;

    #[test]
    fn statuses_are_in_the_order_of_their_bytes_and_none_is_text() {
        let bytes = Status::ALL.map(Status::byte);
        assert!(bytes.is_sorted_by(|a, b| a < b), "{bytes:x?}");
        for status in Status::ALL {
            assert_eq!(Status::try_from(status.byte()), Ok(status));
            assert_eq!(status.spec().status, status);
            assert!(!is_text(status.byte()), "{}", status.name());
        }
    }
}
