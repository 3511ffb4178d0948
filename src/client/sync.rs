//! SYNC: positions of data sets, reads that see an earlier write, and writes that are on the disk.

use std::time::Duration;

use super::{Client, Error, ProtocolError, Response, Result};
use crate::wire::{Opcode, Request, SYNC_TIMEOUT_MAX_MS, SyncRequest, TOKEN_LEN, Token};

impl Client {
    /// The position of the node's data set now: of the leader that the last write was redirected to, while there is a
    /// connection to it, and otherwise of the client's own node. It covers every write that this client has made.
    ///
    /// With [`sync_at`](Self::sync_at) another client, or this one at another node, waits until a read there sees these
    /// writes:
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use gopherstore::Client;
    ///
    /// let mut leader = Client::connect("127.0.0.1:8000")?;
    /// leader.set(b"user123", b"active")?;
    /// let token = leader.position()?;
    ///
    /// let mut follower = Client::connect("127.0.0.1:8001")?;
    /// follower.sync_at(token, Duration::from_secs(5))?;
    /// assert_eq!(follower.get(b"user123")?, Some(b"active".to_vec()));
    /// # Ok::<(), gopherstore::client::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where the node has no log: only one with peers or with a disk has. Any other [`Error`].
    pub fn position(&mut self) -> Result<Token> {
        self.sync(SyncRequest::Position, true)
    }

    /// Waits until the data set of the client's own node has the position of `token`, and returns its position then.
    /// Later reads of this client see every write that the token covers. A node that has it already answers at once.
    ///
    /// The [`timeout`](super::ClientOptions::timeout) of the options counts in addition to `timeout`, which is an hour
    /// at most.
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// use std::time::Duration;
    /// use gopherstore::{Client, client::Error, wire::Token};
    ///
    /// let token: Token = "0000000000000001000000000000002a00000000000000ff".parse()?;
    /// let mut client = Client::connect(addr)?;
    /// let error = client.sync_at(token, Duration::from_secs(1)).unwrap_err();
    /// assert!(error.to_string().contains("a token needs a log"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotReached`] after `timeout`; [`Error::Lost`] where the position was never part of the node's history,
    /// so the writes that the token covers were not kept; [`Error::Compacted`] where the history no longer says;
    /// [`Error::Loading`] where the node stops, or its data set is replaced meanwhile. Any other [`Error`].
    pub fn sync_at(&mut self, token: Token, timeout: Duration) -> Result<Token> {
        let timeout_ms = millis(timeout);
        self.sync(SyncRequest::At { token, timeout_ms }, false)
    }

    /// Waits until the node's disk has every write that this client has made, whatever the node's `--sync` is, and
    /// returns a position that covers them. The node is that of [`position`](Self::position).
    ///
    /// With `--sync interval` writes are answered before the disk has them. This makes those that matter safe:
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use gopherstore::Client;
    ///
    /// let mut client = Client::connect("127.0.0.1:8000")?;
    /// client.set(b"order:17", b"paid")?;
    /// client.sync_durable(Duration::from_secs(5))?;
    /// // From here on a power failure does not lose the order.
    /// # Ok::<(), gopherstore::client::Error>(())
    /// ```
    ///
    /// The [`timeout`](super::ClientOptions::timeout) of the options counts in addition to `timeout`, which is an hour
    /// at most.
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where the node has no disk. [`Error::NotReached`] after `timeout`: the writes may become
    /// durable later. [`Error::Lost`] where the node's data set was replaced meanwhile by one without them. Any other
    /// [`Error`].
    pub fn sync_durable(&mut self, timeout: Duration) -> Result<Token> {
        let timeout_ms = millis(timeout);
        self.sync(SyncRequest::Durable { timeout_ms }, true)
    }

    fn sync(&mut self, request: SyncRequest, as_write: bool) -> Result<Token> {
        let value = &request.value();
        let response = self.request_as(Request::Sync { value }, as_write)?;
        let bytes = match response {
            Response::Value(bytes) => bytes,
            Response::Done | Response::NotFound | Response::Conflict(_) | Response::Pong => {
                Vec::new()
            }
        };
        match bytes.first_chunk::<TOKEN_LEN>() {
            Some(token) => Ok(Token::decode(*token)),
            // It was judged when it was read.
            None => Err(Error::Protocol {
                addr: self.addr.clone(),
                source: ProtocolError::Fields {
                    opcode: Opcode::Sync,
                    value: bytes,
                },
            }),
        }
    }
}

/// The time of a SYNC, which is limited.
fn millis(timeout: Duration) -> u32 {
    let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    millis.min(SYNC_TIMEOUT_MAX_MS)
}
