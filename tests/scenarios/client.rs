//! Requests of a client.

use super::super::events::MS;
use super::output::short;
use super::world::World;
use crate::wire::response::{self, Parsed};
use crate::wire::{Request, Status};

/// Longest time that a client waits for a response. A command that takes less leaves no lag that a script shows.
const RESPONSE_MAX: u64 = 200 * MS;

/// Bytes of a value that ends with `+`: a few such records fill a log.
const LONG: usize = 40_000;

impl World<'_> {
    /// Writes and reads as a client of a node. A write that is done puts out nothing.
    pub(super) fn set(&mut self, at: usize, key: &str, value: &str) {
        let len = if value.ends_with('+') { LONG } else { 0 };
        let value = format!("{value:len$}");
        let (key, value) = (key.as_bytes(), value.as_bytes());
        self.request(at, &Request::Set { key, value });
    }

    /// Has a node execute a request, and puts out the response.
    pub(super) fn request(&mut self, at: usize, request: &Request<'_>) {
        let response = self.response(at, request);
        let is_write = !matches!(request, Request::Get { .. });
        if !(is_write && response.as_deref() == Some("OK")) {
            let text = response.unwrap_or_else(|| "no response".to_owned());
            self.say(&text);
        }
        // Each record is sent in a message of its own.
        self.run_for(MS);
    }

    fn response(&mut self, at: usize, request: &Request<'_>) -> Option<String> {
        self.nodes[at].as_ref()?;
        let (host, shared) = (self.nodes.len(), &mut self.shared);
        let end = shared.network.connect(host, at, &mut shared.timeline);
        self.run_for(MS);
        let mut bytes = Vec::new();
        request.encode(&mut bytes).unwrap();
        let mut received = Vec::new();
        let mut sent = 0;
        for _ in 0..RESPONSE_MAX / MS {
            let (network, timeline) = (&mut self.shared.network, &mut self.shared.timeline);
            sent += network.write(end, &bytes[sent..], timeline);
            network.read(end, usize::MAX, &mut received, timeline);
            if let Ok(Parsed::Whole(response)) = response::parse(&received) {
                let status = Status::try_from(response.status).unwrap().name();
                let text = format!("{status} {}", short(response.value));
                network.close(end, timeline);
                return Some(text.trim_end().to_owned());
            }
            self.run_for(MS);
        }
        let (network, timeline) = (&mut self.shared.network, &mut self.shared.timeline);
        network.close(end, timeline);
        None
    }
}
