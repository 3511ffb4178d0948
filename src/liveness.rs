//! Which peers live, by when they were last heard. Plain data, time passed in.

use std::time::{Duration, Instant};

/// What is known of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name in `cluster.toml`.
    pub name: String,
    /// Whether it lives, as far as is known; a peer is down until it is heard.
    pub is_up: bool,
    /// Since when it has been up or down.
    pub since: Instant,
    heard: Option<Instant>,
}

/// A peer that has come up or gone down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// What it is now.
    pub is_up: bool,
    /// How long it was the other.
    pub after: Duration,
}

/// The table of a node's peers.
#[derive(Clone, Debug)]
pub struct Liveness {
    peers: Vec<Peer>,
    /// Silence after which a peer counts as down.
    timeout: Duration,
}

impl Liveness {
    /// Peers of which none has been heard yet.
    #[must_use]
    pub fn new(
        names: impl IntoIterator<Item = String>,
        timeout: Duration,
        now: Instant,
    ) -> Liveness {
        let peers = names.into_iter().map(|name| Peer {
            name,
            is_up: false,
            since: now,
            heard: None,
        });
        Liveness {
            peers: peers.collect(),
            timeout,
        }
    }

    /// A peer was heard.
    pub fn observe(&mut self, name: &str, now: Instant) -> Option<Change> {
        let peer = self.peers.iter_mut().find(|peer| peer.name == name)?;
        peer.heard = Some(now);
        (!peer.is_up).then(|| peer.turn(true, now))
    }

    /// A peer has said that it is not there: its machine refuses the connection.
    pub fn refused(&mut self, name: &str, now: Instant) -> Option<Change> {
        let peer = self.peers.iter_mut().find(|peer| peer.name == name)?;
        peer.is_up.then(|| peer.turn(false, now))
    }

    /// Peers that have gone down since the last look, by their silence.
    pub fn check(&mut self, now: Instant) -> Vec<Change> {
        let timeout = self.timeout;
        let silent = |peer: &&mut Peer| {
            peer.is_up
                && peer
                    .heard
                    .is_none_or(|heard| now.saturating_duration_since(heard) >= timeout)
        };
        let peers = self.peers.iter_mut().filter(silent);
        peers.map(|peer| peer.turn(false, now)).collect()
    }

    /// All peers, in the order of `cluster.toml`.
    #[must_use]
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }
}

impl Peer {
    fn turn(&mut self, is_up: bool, now: Instant) -> Change {
        let after = now.saturating_duration_since(self.since);
        self.is_up = is_up;
        self.since = now;
        Change {
            name: self.name.clone(),
            is_up,
            after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn change(name: &str, is_up: bool, ms: u64) -> Change {
        Change {
            name: name.to_owned(),
            is_up,
            after: Duration::from_millis(ms),
        }
    }

    #[test]
    fn a_peer_is_up_while_it_is_heard_and_down_after_silence() {
        let start = Instant::now();
        let mut table = Liveness::new(["n2", "n3"].map(str::to_owned), TIMEOUT, start);
        assert_eq!(table.check(at(start, 60_000)), []);
        assert_eq!(
            table.observe("n2", at(start, 100)),
            Some(change("n2", true, 100))
        );
        assert_eq!(table.observe("n2", at(start, 200)), None);
        assert_eq!(table.check(at(start, 5_199)), []);
        assert_eq!(table.check(at(start, 5_200)), [change("n2", false, 5_100)]);
        assert_eq!(table.check(at(start, 9_000)), []);
        assert_eq!(
            table.observe("n2", at(start, 9_200)),
            Some(change("n2", true, 4_000))
        );
        let states: Vec<_> = table.peers().iter().map(|peer| peer.is_up).collect();
        assert_eq!(states, [true, false]);
    }

    #[test]
    fn a_refused_connection_is_an_answer() {
        let start = Instant::now();
        let mut table = Liveness::new(["n2".to_owned()], TIMEOUT, start);
        assert_eq!(table.refused("n2", start), None);
        table.observe("n2", at(start, 10));
        assert_eq!(
            table.refused("n2", at(start, 20)),
            Some(change("n2", false, 10))
        );
        assert_eq!(table.observe("stranger", at(start, 30)), None);
    }
}
