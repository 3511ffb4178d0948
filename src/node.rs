//! What a node answers to a request, whatever the request came in by.

use std::sync::Arc;

use crate::entry::Entry;
use crate::store::Store;
use crate::wire::response::ResponseHeader;
use crate::wire::{Request, RequestFrame, Status};

/// What a node is in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes reads and writes.
    Leader,
    /// Refuses writes with the leader's address. Until it holds a complete data set it refuses reads as well.
    Follower {
        /// The leader's `host:port`, as in `cluster.toml`.
        leader_addr: Arc<str>,
    },
}

/// One node: its role and its data. Knows no socket, so every rule about answers is tested without one.
#[derive(Debug)]
pub struct Node {
    role: Role,
    store: Store,
}

/// The answer to one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// OK, empty: the answer to SET, and to DEL of a key that was there.
    Done,
    /// OK and `PONG`.
    Pong,
    /// OK and the entry's value.
    Value(Entry),
    /// NOT_FOUND.
    NotFound,
    /// NOT_LEADER and the leader's address.
    NotLeader(Arc<str>),
    /// LOADING and a message.
    Loading(&'static str),
    /// ERROR and a message.
    Error(String),
}

impl Node {
    /// A node with an empty store.
    #[must_use]
    pub fn new(role: Role) -> Node {
        Node {
            role,
            store: Store::new(),
        }
    }

    /// The node's data.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Carries out one request (GBP §4).
    #[must_use]
    pub fn execute(&self, frame: &RequestFrame<'_>) -> Reply {
        match (frame.request(), &self.role) {
            (Request::Ping, _) => Reply::Pong,
            (request @ (Request::Status | Request::Discard | Request::Follow { .. }), _) => {
                let name = request.opcode().name();
                Reply::Error(format!("not implemented in this version: {name}"))
            }
            (Request::Set { .. }, _) => self.set(|| Entry::copy_of(frame)),
            (Request::Get { key }, Role::Leader) => {
                self.store.get(key).map_or(Reply::NotFound, Reply::Value)
            }
            (Request::Get { .. }, Role::Follower { .. }) => {
                Reply::Loading("this follower holds no complete data set yet; ask the leader")
            }
            (Request::Del { key }, _) => self.refuses_writes().unwrap_or_else(|| {
                let removed = self.store.remove(key);
                removed.map_or(Reply::NotFound, |_| Reply::Done)
            }),
        }
    }

    /// Carries out a SET, whose entry is made only where it is wanted.
    #[must_use]
    pub fn set(&self, entry: impl FnOnce() -> Entry) -> Reply {
        self.refuses_writes().unwrap_or_else(|| {
            self.store.set(entry());
            Reply::Done
        })
    }

    /// The answer to every write, where this node takes none.
    #[must_use]
    pub fn refuses_writes(&self) -> Option<Reply> {
        match &self.role {
            Role::Leader => None,
            Role::Follower { leader_addr } => Some(Reply::NotLeader(Arc::clone(leader_addr))),
        }
    }
}

impl Reply {
    /// The answer's status.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Reply::Done | Reply::Pong | Reply::Value(_) => Status::Ok,
            Reply::NotFound => Status::NotFound,
            Reply::NotLeader(_) => Status::NotLeader,
            Reply::Loading(_) => Status::Loading,
            Reply::Error(_) => Status::Error,
        }
    }

    /// The answer's value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        match self {
            Reply::Done | Reply::NotFound => b"",
            Reply::Pong => b"PONG",
            Reply::Value(entry) => entry.value(),
            Reply::NotLeader(addr) => addr.as_bytes(),
            Reply::Loading(message) => message.as_bytes(),
            Reply::Error(message) => message.as_bytes(),
        }
    }

    /// The header of the answer's frame.
    #[must_use]
    pub fn header(&self) -> ResponseHeader {
        match ResponseHeader::new(self.status(), self.value().len()) {
            Ok(header) => header,
            Err(_) => unreachable!("a stored value came in a frame whose length field is as wide"),
        }
    }
}
