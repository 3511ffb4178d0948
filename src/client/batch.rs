//! BATCH: requests that are executed together or not at all.

use crate::wire::conditional::{Found, Want};
use crate::wire::expiry::{Expiry, SetAt};
use crate::wire::{self, EncodeError, Opcode, Request};

use super::error::Result;
use super::keys::{
    AddOptions, Added, Conflict, PutOptions, PutOutcome, TakeOptions, TakeOutcome, TimeLeft,
    Written, added_of, conflict_of, expire_value, put_outcome, take_outcome, time_left_of,
};
use super::{Client, Pipeline, Response};

/// Requests that a node executes together, or none of them: for [`Client::batch`] and [`Pipeline::batch`].
///
/// They are executed in their order, and each sees the changes of those before it. At most 64, of 4,096 bytes each with
/// their keys and headers (GBP §4 "BATCH"); the node refuses what is beyond that.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Their frames, one behind the other.
    value: Vec<u8>,
    /// The operation of each, and what it asks for.
    asked: Vec<(Opcode, Want)>,
    /// Error of the first request that is too long for a frame.
    too_long: Option<EncodeError>,
}

/// Outcome of a [`Client::batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchOutcome {
    /// All requests were executed: a result for each, in their order.
    Done(Vec<BatchResult>),
    /// A condition is not met, and nothing was changed.
    Conflict {
        /// The number of the request with that condition, from 0.
        position: usize,
        /// The state of its key.
        found: Conflict,
    },
}

/// Result of one request of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchResult {
    /// A SET or SETAT: the value is stored.
    Stored,
    /// A GET: the value, if there is one.
    Value(Option<Vec<u8>>),
    /// A DEL: whether the key existed.
    Removed(bool),
    /// A PUT: the value is stored.
    Put(Written),
    /// A TAKE: the key is removed; `None` where there was no such key.
    Taken(Option<Written>),
    /// An ADD.
    Added(Added),
    /// An EXPIRE: whether the key exists.
    Expires(bool),
    /// A TTL.
    TimeLeft(TimeLeft),
}

impl BatchOutcome {
    /// Whether the requests were executed.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self, BatchOutcome::Done(_))
    }
}

impl Batch {
    /// A batch without requests.
    #[must_use]
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a SET.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> &mut Batch {
        self.push(&Request::Set { key, value }, Want::default())
    }

    /// Adds a SETAT; see [`Client::set_at`].
    pub fn set_at(&mut self, key: &[u8], value: &[u8], deadline: u64) -> &mut Batch {
        let value = &SetAt { deadline, value }.encode();
        self.push(&Request::SetAt { key, value }, Want::default())
    }

    /// Adds a GET.
    pub fn get(&mut self, key: &[u8]) -> &mut Batch {
        self.push(&Request::Get { key }, Want::default())
    }

    /// Adds a DEL.
    pub fn del(&mut self, key: &[u8]) -> &mut Batch {
        self.push(&Request::Del { key }, Want::default())
    }

    /// Adds a PUT. Where its condition is not met, nothing of the batch is executed.
    pub fn put(&mut self, key: &[u8], value: &[u8], options: &PutOptions<'_>) -> &mut Batch {
        let value = &options.with(value).encode();
        self.push(&Request::Put { key, value }, options.want())
    }

    /// Adds a TAKE. Where its condition is not met, nothing of the batch is executed.
    pub fn take(&mut self, key: &[u8], options: &TakeOptions<'_>) -> &mut Batch {
        let value = &options.take().encode();
        self.push(&Request::Take { key, value }, options.want())
    }

    /// Adds an ADD.
    pub fn add(&mut self, key: &[u8], delta: i64, options: &AddOptions) -> &mut Batch {
        let value = &options.with(delta).encode();
        let want = Want {
            value: false,
            token: options.want_token,
        };
        self.push(&Request::Add { key, value }, want)
    }

    /// Adds an EXPIRE; see [`Client::expire`].
    pub fn expire(&mut self, key: &[u8], expiry: Expiry) -> &mut Batch {
        let value = &expire_value(expiry);
        self.push(&Request::Expire { key, value }, Want::default())
    }

    /// Adds a TTL.
    pub fn ttl(&mut self, key: &[u8]) -> &mut Batch {
        self.push(&Request::Ttl { key }, Want::default())
    }

    /// The number of requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    /// Whether there are no requests.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Whether a request writes. A batch that only reads is executed by followers too.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.asked.iter().any(|(opcode, _)| opcode.spec().writes)
    }

    fn push(&mut self, request: &Request<'_>, want: Want) -> &mut Batch {
        match request.encode(&mut self.value) {
            Ok(()) => self.asked.push((request.opcode(), want)),
            Err(error) => {
                self.too_long.get_or_insert(error);
            }
        }
        self
    }

    /// The request, or why no frame can carry it.
    pub(super) fn request(&self) -> std::result::Result<Request<'_>, EncodeError> {
        match self.too_long {
            Some(error) => Err(error),
            None => Ok(Request::Batch { value: &self.value }),
        }
    }

    /// Reads the response to the batch, as a [`Pipeline`] gives it. `None` where it is no response to this batch.
    #[must_use]
    pub fn outcome(&self, response: &Response) -> Option<BatchOutcome> {
        match response {
            Response::Value(value) => self.done(value).map(BatchOutcome::Done),
            Response::Conflict(value) => self.conflict(value),
            Response::Done | Response::NotFound | Response::Pong => None,
        }
    }

    fn done(&self, value: &[u8]) -> Option<Vec<BatchResult>> {
        let wire::batch::BatchAnswer::Done(responses) =
            wire::batch::BatchAnswer::of_ok(value, self.len())?
        else {
            return None;
        };
        let asked = self.asked.iter().zip(&responses);
        asked
            .map(|(asked, response)| result_of(*asked, response))
            .collect()
    }

    fn conflict(&self, value: &[u8]) -> Option<BatchOutcome> {
        let wire::batch::BatchAnswer::Conflict { position, response } =
            wire::batch::BatchAnswer::of_conflict(value, self.len())?
        else {
            return None;
        };
        let position = usize::from(position);
        let (_, want) = *self.asked.get(position)?;
        let found = conflict_of(Found::of_conflict(response.value, want)?);
        Some(BatchOutcome::Conflict { position, found })
    }
}

/// Decodes a response in a batch; `None` where it is no response to that request.
fn result_of((opcode, want): (Opcode, Want), answer: &wire::Response<'_>) -> Option<BatchResult> {
    let response = Response::in_batch(opcode, answer)?;
    let existed = response != Response::NotFound;
    Some(match opcode {
        Opcode::Set | Opcode::SetAt => BatchResult::Stored,
        Opcode::Get => BatchResult::Value(match response {
            Response::Value(value) => Some(value),
            Response::Done | Response::NotFound | Response::Conflict(_) | Response::Pong => None,
        }),
        Opcode::Del => BatchResult::Removed(existed),
        Opcode::Expire => BatchResult::Expires(existed),
        Opcode::Put => match put_outcome(&response, want)? {
            PutOutcome::Stored(written) => BatchResult::Put(written),
            PutOutcome::Conflict(_) => return None,
        },
        Opcode::Take => match take_outcome(&response, want)? {
            TakeOutcome::Taken(written) => BatchResult::Taken(Some(written)),
            TakeOutcome::NotFound => BatchResult::Taken(None),
            TakeOutcome::Conflict(_) => return None,
        },
        Opcode::Add => BatchResult::Added(added_of(&response, want.token)?),
        Opcode::Ttl => BatchResult::TimeLeft(time_left_of(&response)?),
        Opcode::Ping
        | Opcode::Scan
        | Opcode::Batch
        | Opcode::Sync
        | Opcode::Watch
        | Opcode::Status
        | Opcode::Discard
        | Opcode::Snapshot
        | Opcode::Sums
        | Opcode::List
        | Opcode::Follow
        | Opcode::Epoch => return None,
    })
}

impl Client {
    /// Executes all requests of `batch`, or none of them.
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// use gopherstore::client::{
    ///     AddOptions, Batch, BatchOutcome, BatchResult, Client, Condition, PutOptions,
    /// };
    ///
    /// let mut client = Client::connect(addr)?;
    /// client.set(b"alice", b"100")?;
    ///
    /// // Alice pays Bob 30, once.
    /// let once = PutOptions { condition: Condition::Absent, ..PutOptions::default() };
    /// let mut payment = Batch::new();
    /// payment
    ///     .put(b"payment:7", b"", &once)
    ///     .add(b"alice", -30, &AddOptions::default())
    ///     .add(b"bob", 30, &AddOptions::default())
    ///     .get(b"alice");
    /// let BatchOutcome::Done(results) = client.batch(&payment)? else { panic!("it was paid") };
    /// assert_eq!(results[3], BatchResult::Value(Some(b"70".to_vec())));
    ///
    /// let BatchOutcome::Conflict { position, found } = client.batch(&payment)? else { panic!("again") };
    /// assert_eq!((position, found.exists), (0, true));
    /// assert_eq!(client.get(b"bob")?, Some(b"30".to_vec()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where the batch is empty or too large, or a request is refused, such as an ADD to a value that
    /// is no number: nothing was changed then, and the message names the request, counted from 1. Any other [`Error`];
    /// its table says whether the batch was executed.
    ///
    /// [`Error`]: super::Error
    /// [`Error::Server`]: super::Error::Server
    pub fn batch(&mut self, batch: &Batch) -> Result<BatchOutcome> {
        let response = self.request_as(batch.request()?, batch.writes())?;
        let outcome = batch.outcome(&response);
        self.fields(Opcode::Batch, &response, outcome)
    }
}

impl Pipeline<'_> {
    /// Queues a BATCH; its response is for [`Batch::outcome`].
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// use gopherstore::client::{Batch, BatchOutcome, BatchResult, Client};
    ///
    /// let mut client = Client::connect(addr)?;
    /// let mut batch = Batch::new();
    /// batch.set(b"a", b"1").del(b"b");
    /// let mut pipeline = client.pipeline();
    /// pipeline.ping().batch(&batch);
    /// let responses = pipeline.run()?;
    /// let outcome = responses[1].as_ref().ok().and_then(|response| batch.outcome(response));
    /// let results = vec![BatchResult::Stored, BatchResult::Removed(false)];
    /// assert_eq!(outcome, Some(BatchOutcome::Done(results)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn batch(&mut self, batch: &Batch) -> &mut Self {
        match batch.request() {
            Ok(request) => self.request(&request),
            Err(error) => self.refuse(error),
        }
    }
}
