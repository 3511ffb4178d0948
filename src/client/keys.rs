//! Operations on a key with options: PUT, TAKE, ADD, EXPIRE and TTL.

use std::time::Duration;

use crate::wire::conditional::{Add, Condition, Found, Put, Take, Want, sum_of};
use crate::wire::expiry::{Expiry, SetAt, ttl_of};
use crate::wire::{Opcode, Request, Token};

use super::error::{Error, ProtocolError, Result};
use super::{Client, Response};

/// Options of [`Client::put`]. By default the value is stored whatever the key has, and does not expire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions<'a> {
    /// The condition that the key must meet.
    pub condition: Condition<'a>,
    /// When the key expires.
    pub expiry: Expiry,
    /// Whether the outcome has the value that the key had.
    pub want_value: bool,
    /// Whether the outcome has the token of the write. A node without a log has no tokens, and refuses.
    pub want_token: bool,
}

/// Options of [`Client::take`]. By default the key is removed whatever it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakeOptions<'a> {
    /// The condition that the key must meet; not [`Condition::Absent`].
    pub condition: Condition<'a>,
    /// Whether the outcome has the value that the key had.
    pub want_value: bool,
    /// Whether the outcome has the token of the write. A node without a log has no tokens, and refuses.
    pub want_token: bool,
}

/// Options of [`Client::add_with`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddOptions {
    /// Value of a key that does not exist, before the number is added.
    pub start: i64,
    /// Time after which a key expires that is created. One that exists keeps its deadline.
    pub ttl: Option<Duration>,
    /// Whether the outcome has the token of the write. A node without a log has no tokens, and refuses.
    pub want_token: bool,
}

/// A write that was executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Whether the key existed before. `None` where the options want nothing: the node does not say then.
    pub existed: Option<bool>,
    /// The value that the key had, where it existed and the value was wanted.
    pub value: Option<Vec<u8>>,
    /// The position of the write, where it was wanted. Of two writes of one cluster, the later one has the greater
    /// token.
    pub token: Option<Token>,
}

/// A condition that is not met. Nothing was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conflict {
    /// Whether the key exists.
    pub exists: bool,
    /// The value that the key has, where it exists and the value was wanted.
    pub value: Option<Vec<u8>>,
}

/// Outcome of a [`Client::put`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The value is stored.
    Stored(Written),
    /// The condition is not met.
    Conflict(Conflict),
}

/// Outcome of a [`Client::take`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakeOutcome {
    /// The key is removed.
    Taken(Written),
    /// There is no such key, and the condition was [`Condition::Always`].
    NotFound,
    /// The condition is not met.
    Conflict(Conflict),
}

/// Outcome of a [`Client::add_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// The new value.
    pub sum: i64,
    /// The position of the write, where it was wanted.
    pub token: Option<Token>,
}

/// The time that a key has left, from [`Client::ttl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeLeft {
    /// There is no such key.
    NotFound,
    /// The key does not expire.
    Unlimited,
    /// The key expires after this time, in whole milliseconds.
    Limited(Duration),
}

impl PutOutcome {
    /// Whether the value is stored.
    #[must_use]
    pub const fn is_stored(&self) -> bool {
        matches!(self, PutOutcome::Stored(_))
    }
}

impl TakeOutcome {
    /// Whether the key is removed.
    #[must_use]
    pub const fn is_taken(&self) -> bool {
        matches!(self, TakeOutcome::Taken(_))
    }
}

impl PutOptions<'_> {
    /// Returns the parts that the response has.
    pub(super) const fn want(&self) -> Want {
        Want {
            value: self.want_value,
            token: self.want_token,
        }
    }

    /// The operands of a PUT of `value`.
    pub(super) const fn with<'a>(&'a self, value: &'a [u8]) -> Put<'a> {
        Put {
            condition: self.condition,
            expiry: self.expiry,
            want: self.want(),
            value,
        }
    }
}

impl TakeOptions<'_> {
    /// Returns the parts that the response has.
    pub(super) const fn want(&self) -> Want {
        Want {
            value: self.want_value,
            token: self.want_token,
        }
    }

    /// The operands of a TAKE.
    pub(super) const fn take(&self) -> Take<'_> {
        Take {
            condition: self.condition,
            want: self.want(),
        }
    }
}

impl AddOptions {
    /// The operands of an ADD of `delta`.
    pub(super) fn with(&self, delta: i64) -> Add {
        Add {
            want_token: self.want_token,
            delta,
            start: self.start,
            expiry: self.ttl.map_or(Expiry::None, Expiry::after),
        }
    }
}

/// The operands of an EXPIRE.
pub(super) fn expire_value(expiry: Expiry) -> Vec<u8> {
    let (expiry, time) = expiry.operands();
    Opcode::Expire.spec().value_of([u64::from(expiry), time])
}

/// Returns the state of the key of a PUT or TAKE.
pub(super) fn conflict_of(found: Found<'_>) -> Conflict {
    Conflict {
        exists: found.existed,
        value: found.value.map(<[u8]>::to_vec),
    }
}

/// Decodes the response to a PUT; `None` where it is no such response.
pub(super) fn put_outcome(response: &Response, want: Want) -> Option<PutOutcome> {
    outcome_of(response, want).map(|outcome| match outcome {
        Ok(written) => PutOutcome::Stored(written),
        Err(conflict) => PutOutcome::Conflict(conflict),
    })
}

/// Decodes the response to a TAKE; `None` where it is no such response.
pub(super) fn take_outcome(response: &Response, want: Want) -> Option<TakeOutcome> {
    if *response == Response::NotFound {
        return Some(TakeOutcome::NotFound);
    }
    outcome_of(response, want).map(|outcome| match outcome {
        Ok(written) => TakeOutcome::Taken(written),
        Err(conflict) => TakeOutcome::Conflict(conflict),
    })
}

/// Decodes the response to an ADD; `None` where it is no such response.
pub(super) fn added_of(response: &Response, want_token: bool) -> Option<Added> {
    match response {
        Response::Value(value) => sum_of(value)
            .filter(|(token, _)| token.is_some() == want_token)
            .map(|(token, sum)| Added { sum, token }),
        Response::Done | Response::NotFound | Response::Conflict(_) | Response::Pong => None,
    }
}

/// Decodes the response to a TTL; `None` where it is no such response.
pub(super) fn time_left_of(response: &Response) -> Option<TimeLeft> {
    match response {
        Response::Value(value) => ttl_of(value).map(|left| match left {
            Some(ms) => TimeLeft::Limited(Duration::from_millis(ms)),
            None => TimeLeft::Unlimited,
        }),
        Response::NotFound => Some(TimeLeft::NotFound),
        Response::Done | Response::Conflict(_) | Response::Pong => None,
    }
}

/// Decodes the response to a PUT or TAKE with this `want`; `None` where it is no such response.
fn outcome_of(response: &Response, want: Want) -> Option<std::result::Result<Written, Conflict>> {
    let value = match response {
        Response::Done => b"",
        Response::Value(value) => value.as_slice(),
        Response::Conflict(value) => {
            return Some(Err(conflict_of(Found::of_conflict(value, want)?)));
        }
        Response::NotFound | Response::Pong => return None,
    };
    let found = Found::of_ok(value, want)?;
    Some(Ok(Written {
        existed: (!want.is_nothing()).then_some(found.existed),
        value: found.value.map(<[u8]>::to_vec),
        token: found.token,
    }))
}

impl Client {
    /// Stores `value` under `key` where a condition is met.
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// use std::time::Duration;
    /// use gopherstore::client::{Client, Condition, Conflict, Expiry, PutOptions, PutOutcome};
    ///
    /// let mut client = Client::connect(addr)?;
    /// let lock = PutOptions {
    ///     condition: Condition::Absent,
    ///     expiry: Expiry::after(Duration::from_secs(30)),
    ///     ..PutOptions::default()
    /// };
    /// assert!(client.put(b"lock", b"me", &lock)?.is_stored());
    /// let outcome = client.put(b"lock", b"you", &PutOptions { want_value: true, ..lock })?;
    /// let holder = Conflict { exists: true, value: Some(b"me".to_vec()) };
    /// assert_eq!(outcome, PutOutcome::Conflict(holder));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where an option is out of range, such as a time of 0; any other [`Error`]; its table says
    /// whether the write was executed.
    pub fn put(
        &mut self,
        key: &[u8],
        value: &[u8],
        options: &PutOptions<'_>,
    ) -> Result<PutOutcome> {
        let response = self.request(Request::Put {
            key,
            value: &options.with(value).encode(),
        })?;
        let outcome = put_outcome(&response, options.want());
        self.fields(Opcode::Put, &response, outcome)
    }

    /// Removes `key` where a condition is met, and returns what it had.
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// use gopherstore::client::{Client, Condition, TakeOptions, TakeOutcome};
    ///
    /// let mut client = Client::connect(addr)?;
    /// client.set(b"lock", b"me")?;
    /// let mine = TakeOptions { condition: Condition::Equal(b"me"), ..TakeOptions::default() };
    /// assert!(client.take(b"lock", &mine)?.is_taken());
    ///
    /// client.set(b"job", b"resize 7")?;
    /// let value = TakeOptions { want_value: true, ..TakeOptions::default() };
    /// let TakeOutcome::Taken(job) = client.take(b"job", &value)? else { panic!("no job") };
    /// assert_eq!(job.value.as_deref(), Some(&b"resize 7"[..]));
    /// assert_eq!(client.take(b"job", &value)?, TakeOutcome::NotFound);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where an option is out of range; any other [`Error`]; its table says whether the write was
    /// executed.
    pub fn take(&mut self, key: &[u8], options: &TakeOptions<'_>) -> Result<TakeOutcome> {
        let response = self.request(Request::Take {
            key,
            value: &options.take().encode(),
        })?;
        let outcome = take_outcome(&response, options.want());
        self.fields(Opcode::Take, &response, outcome)
    }

    /// Adds `delta` to the decimal value of `key` and returns the sum. A key that does not exist counts as `start`.
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let node = Node::alone();
    /// # let server = Server::bind("127.0.0.1:0", node, LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// let mut client = gopherstore::Client::connect(addr)?;
    /// assert_eq!(client.add(b"visits", 1, 0)?, 1);
    /// assert_eq!(client.add(b"visits", 41, 0)?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where the value is no decimal number of 64 bits, or the sum is none; any other [`Error`]; its
    /// table says whether the write was executed.
    pub fn add(&mut self, key: &[u8], delta: i64, start: i64) -> Result<i64> {
        let options = AddOptions {
            start,
            ..AddOptions::default()
        };
        self.add_with(key, delta, &options).map(|added| added.sum)
    }

    /// The same with options: a rate limiter in one request.
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// use std::time::Duration;
    /// use gopherstore::client::{AddOptions, Client, TimeLeft};
    ///
    /// let mut client = Client::connect(addr)?;
    /// let per_minute = AddOptions { ttl: Some(Duration::from_secs(60)), ..AddOptions::default() };
    /// assert_eq!(client.add_with(b"rate:10.0.0.1", 1, &per_minute)?.sum, 1);
    /// assert!(matches!(client.ttl(b"rate:10.0.0.1")?, TimeLeft::Limited(_)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub fn add_with(&mut self, key: &[u8], delta: i64, options: &AddOptions) -> Result<Added> {
        let response = self.request(Request::Add {
            key,
            value: &options.with(delta).encode(),
        })?;
        let outcome = added_of(&response, options.want_token);
        self.fields(Opcode::Add, &response, outcome)
    }

    /// Stores a value that expires at `deadline`, in milliseconds since 1970 UTC, and replaces an earlier value. A
    /// deadline in the past is accepted, and the key expires at once. [`put`](Self::put) has more options.
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where the deadline is 0; any other [`Error`]; its table says whether the write was executed.
    pub fn set_at(&mut self, key: &[u8], value: &[u8], deadline: u64) -> Result<()> {
        let value = &SetAt { deadline, value }.encode();
        self.request(Request::SetAt { key, value }).map(drop)
    }

    /// Sets, changes or removes the time at which `key` expires; not [`Expiry::Keep`]. Returns whether the key exists.
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// use std::time::Duration;
    /// use gopherstore::client::{Client, Expiry, TimeLeft};
    ///
    /// let mut client = Client::connect(addr)?;
    /// client.set(b"session", b"alice")?;
    /// assert!(client.expire(b"session", Expiry::after(Duration::from_secs(60)))?);
    /// let TimeLeft::Limited(left) = client.ttl(b"session")? else { panic!("it expires") };
    /// assert!(left <= Duration::from_secs(60));
    ///
    /// assert!(client.expire(b"session", Expiry::None)?);
    /// assert_eq!(client.ttl(b"session")?, TimeLeft::Unlimited);
    /// assert!(!client.expire(b"nobody", Expiry::None)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Server`] where the time is 0 or too long; any other [`Error`]; its table says whether the write was
    /// executed.
    pub fn expire(&mut self, key: &[u8], expiry: Expiry) -> Result<bool> {
        let value = &expire_value(expiry);
        Ok(self.request(Request::Expire { key, value })? == Response::Done)
    }

    /// The time that `key` has left.
    ///
    /// # Errors
    ///
    /// Any [`Error`].
    pub fn ttl(&mut self, key: &[u8]) -> Result<TimeLeft> {
        let response = self.request(Request::Ttl { key })?;
        let left = time_left_of(&response);
        self.fields(Opcode::Ttl, &response, left)
    }

    /// The fields of a response; without them, the error for it. The connection that it came on cannot be used then.
    pub(super) fn fields<T>(
        &mut self,
        opcode: Opcode,
        response: &Response,
        fields: Option<T>,
    ) -> Result<T> {
        if let Some(fields) = fields {
            return Ok(fields);
        }
        let value = match response {
            Response::Value(value) | Response::Conflict(value) => value.as_slice(),
            Response::Done | Response::NotFound | Response::Pong => b"",
        };
        let value = value[..value.len().min(super::response::SAMPLE_LEN)].to_vec();
        let addr = self.redirected_to().unwrap_or(self.addr()).to_owned();
        (self.home, self.leader) = (None, None);
        let source = ProtocolError::Fields { opcode, value };
        Err(Error::Protocol { addr, source })
    }
}
