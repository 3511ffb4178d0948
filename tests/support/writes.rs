//! Writes that say by what they leave how many of them were carried out.

use std::collections::BTreeMap;

use gopherstore::client::{Client, Error};

use super::recorder::{Kind, Marker, Trace};

/// Keys of a client.
const KEYS: u64 = 20;

/// The writes of a client, one after the other, and the contents of its keys after them. The number of a write decides
/// its key and value. So the contents of the keys show how many writes they include, and whether one is missing.
#[derive(Clone, Debug)]
pub(crate) struct Writes {
    client: usize,
    /// Writes that were carried out.
    pub(crate) done: u64,
    contents: BTreeMap<String, Vec<u8>>,
}

impl Writes {
    pub(crate) const fn new(client: usize) -> Writes {
        Writes {
            client,
            done: 0,
            contents: BTreeMap::new(),
        }
    }

    fn key(&self, number: u64) -> String {
        format!("client:{}:{}", self.client, number % KEYS)
    }

    /// Key and new value of the next write; no value is a DEL.
    fn next(&self) -> (String, Option<Vec<u8>>) {
        let number = self.done + 1;
        let key = self.key(number);
        if number % 7 == 3 && self.contents.contains_key(&key) {
            return (key, None);
        }
        // Some need a segment of their own.
        let len = if number % 101 == 50 {
            20_000
        } else {
            number * 37 % 200
        };
        let mut value = number.to_string().into_bytes();
        value.resize(value.len() + usize::try_from(len).unwrap(), b'x');
        (key, Some(value))
    }

    fn advance(&mut self) {
        let (key, value) = self.next();
        match value {
            Some(value) => self.contents.insert(key, value),
            None => self.contents.remove(&key),
        };
        self.done += 1;
    }

    /// Makes the next write. Returns whether it was acknowledged.
    pub(crate) fn write(&mut self, client: &mut Client, marker: &Marker) -> bool {
        let (key, value) = self.next();
        marker.mark(Kind::Sent, self.client, self.done + 1);
        let is_done = match value {
            Some(value) => client.set(key.as_bytes(), &value).is_ok(),
            None => client.del(key.as_bytes()).is_ok(),
        };
        if is_done {
            marker.mark(Kind::Acknowledged, self.client, self.done + 1);
            self.advance();
        }
        is_done
    }

    /// The contents of the keys that a node has.
    pub(crate) fn read(&self, client: &mut Client) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        let mut found = BTreeMap::new();
        for number in 0..KEYS {
            let key = self.key(number);
            if let Some(value) = client.get(key.as_bytes())? {
                found.insert(key, value);
            }
        }
        Ok(found)
    }

    /// Finds out which writes lead to these contents: `acknowledged` at least, and `sent` at most.
    #[track_caller]
    pub(crate) fn find(
        &mut self,
        found: &BTreeMap<String, Vec<u8>>,
        (acknowledged, sent): (u64, u64),
    ) {
        while self.done < acknowledged || (&self.contents != found && self.done < sent) {
            self.advance();
        }
        if &self.contents != found {
            let shown = |contents: &BTreeMap<String, Vec<u8>>| {
                let lines = contents.iter().map(|(key, value)| {
                    let len = value.len().min(10);
                    format!("{key} = {}\n", value[..len].escape_ascii())
                });
                lines.collect::<String>()
            };
            panic!(
                "client {}: writes {acknowledged} to {sent} do not lead to\n{}but the last one to\n{}",
                self.client,
                shown(found),
                shown(&self.contents)
            );
        }
    }
}

/// The first and the last number of writes of each client that may be there after a power failure before this event:
/// those that were acknowledged before another one, and those that were sent.
pub(crate) fn expected(
    trace: &Trace,
    writes: &[Writes],
    until: usize,
    known: usize,
) -> Vec<(u64, u64)> {
    let of = |(client, writes): (usize, &Writes)| {
        let (least, most) = trace.progress(client, until, known);
        (least.unwrap_or(writes.done), most.unwrap_or(writes.done))
    };
    writes.iter().enumerate().map(of).collect()
}
