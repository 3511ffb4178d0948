//! SYNC: positions of data sets, and reads that see an earlier write.

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
    /// [`Error::Server`] where the node has no log: only one with peers has. Any other [`Error`].
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
    /// assert_eq!(error.to_string(), "SYNC: a token needs a log, which a node has with peers in cluster.toml");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotReached`] after `timeout`; [`Error::Lost`] where the position was never part of the node's history,
    /// so the writes that the token covers were not kept; [`Error::Compacted`] where the history no longer says;
    /// [`Error::Loading`] where the node stops, or its data set is replaced meanwhile. Any other [`Error`].
    pub fn sync_at(&mut self, token: Token, timeout: Duration) -> Result<Token> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let timeout_ms = timeout_ms.min(SYNC_TIMEOUT_MAX_MS);
        self.sync(SyncRequest::At { token, timeout_ms }, false)
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
