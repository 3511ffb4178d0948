//! A scan: the keys of a node, or its entries, one after another.

use std::vec;

use crate::wire::scan::{Scan as Request, ScanAnswer, ScanError};
use crate::wire::{self, comparison::ComparisonError, comparison::Place};

use super::error::{Error, ProtocolError, Result};
use super::{Client, Response};

/// Options of a [`Scan`].
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// First bytes of the keys that are wanted. Default empty: all keys.
    pub prefix: Vec<u8>,
    /// Whether values and deadlines are read too. Default false.
    pub values: bool,
    /// Most items that the node sends in one response. Default 0: the node's choice.
    pub max: u32,
}

/// A key that a [`Scan`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanItem {
    /// The key.
    pub key: Vec<u8>,
    /// Its value; `None` where [`ScanOptions::values`] is false.
    pub value: Option<Vec<u8>>,
    /// When it expires, in milliseconds since 1970 UTC; `None` where it does not, or where `values` is false.
    pub deadline: Option<u64>,
}

/// A scan of a node's keys; made by [`Client::scan`].
///
/// It asks the node for further keys as it goes on. Where the connection is lost, it connects again and goes on where
/// it was, once for each response. A node that was restarted meanwhile refuses that ([`Error::Server`]): its places are
/// others, so the scan has to begin again.
///
/// After an error the next call asks the node again from the same place, except where the node refused the request or
/// violated the protocol: the scan is then at its end.
#[derive(Debug)]
pub struct Scan<'c> {
    client: &'c mut Client,
    /// The request for what follows `items`.
    request: Request,
    items: vec::IntoIter<ScanItem>,
    is_over: bool,
}

impl Client {
    /// The keys of the client's own node that begin with a prefix, or their entries, in no order. Each key that exists
    /// throughout the scan comes exactly once, whatever is written meanwhile (GBP §4, SCAN).
    ///
    /// ```
    /// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
    /// # let server = Server::bind("127.0.0.1:0", Node::alone(), LimitsConfig::default())?;
    /// # let addr = &server.local_addr().to_string();
    /// # std::thread::spawn(|| server.run());
    /// use gopherstore::client::{Client, ScanOptions};
    ///
    /// let mut client = Client::connect(addr)?;
    /// client.set(b"user:1", b"ann")?;
    /// client.set(b"user:2", b"bob")?;
    /// client.set(b"other", b"-")?;
    /// let options = ScanOptions {
    ///     prefix: b"user:".to_vec(),
    ///     values: true,
    ///     ..ScanOptions::default()
    /// };
    /// let mut users = Vec::new();
    /// for item in client.scan(options) {
    ///     let item = item?;
    ///     users.push((item.key, item.value.unwrap_or_default()));
    /// }
    /// users.sort();
    /// let expected = [("user:1", "ann"), ("user:2", "bob")];
    /// assert_eq!(users, expected.map(|(key, value)| (key.into(), value.into())));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn scan(&mut self, options: ScanOptions) -> Scan<'_> {
        Scan {
            client: self,
            request: Request {
                prefix: options.prefix,
                with_values: options.values,
                max: options.max,
                place: Place::default(),
            },
            items: Vec::new().into_iter(),
            is_over: false,
        }
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<ScanItem>;

    fn next(&mut self) -> Option<Result<ScanItem>> {
        loop {
            if let Some(item) = self.items.next() {
                return Some(Ok(item));
            }
            if self.is_over {
                return None;
            }
            if let Err(error) = self.fetch() {
                return Some(Err(error));
            }
        }
    }
}

impl Scan<'_> {
    /// Asks the node for the next items.
    fn fetch(&mut self) -> Result<()> {
        let value = self.request.value();
        let (key, value) = (&self.request.prefix[..], &value[..]);
        let request = wire::Request::Scan { key, value };
        let response = match self.client.request(request) {
            // It connects again.
            Err(Error::Connection { .. }) => self.client.request(request),
            response => response,
        };
        let taken = match response {
            Ok(Response::Value(bytes)) => self.take(&bytes),
            Ok(_) => self.take(&[]),
            Err(error) => {
                self.is_over = matches!(error, Error::Server { .. } | Error::TooLong(_));
                return Err(error);
            }
        };
        taken.map_err(|source| {
            self.is_over = true;
            self.client.home = None;
            Error::Protocol {
                addr: self.client.addr.clone(),
                source: ProtocolError::Scan(source),
            }
        })
    }

    /// Takes the items of a response, and notes the place where the next request continues.
    fn take(&mut self, bytes: &[u8]) -> std::result::Result<(), ScanError> {
        let answer = ScanAnswer::decode(bytes)?;
        if answer.with_values != self.request.with_values {
            let want = u8::from(answer.with_values);
            return Err(ScanError::OtherWant { want });
        }
        if !answer.next.is_after(&self.request.place) {
            return Err(ComparisonError::Standstill.into());
        }
        let items = answer.items().map(|item| ScanItem {
            key: item.key.to_vec(),
            value: item.value.map(<[u8]>::to_vec),
            deadline: item.deadline,
        });
        self.items = items.collect::<Vec<_>>().into_iter();
        self.is_over = answer.next.is_end(answer.partitions);
        self.request.place = answer.next;
        Ok(())
    }
}
