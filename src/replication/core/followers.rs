//! Registry of a node's followers. Each name has at most one stream.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::progress::{Progress, lag_since};
use super::role::LeadOrder;

/// Hosts of refused nodes that are remembered for one name. Beyond this limit the oldest one is forgotten.
const REFUSED_MAX: usize = 16;

/// The followers of a node: those that have a stream, and those that have left and are kept for STATUS.
#[derive(Clone, Debug, Default)]
pub struct Followers {
    table: BTreeMap<String, Follower>,
    /// Number of streams so far.
    streams: u64,
}

/// One follower.
#[derive(Clone, Debug)]
pub struct Follower {
    progress: Progress,
    stream: Option<Stream>,
    /// Start of the stream, or the end of the last one.
    since: Instant,
}

#[derive(Clone, Debug)]
struct Stream {
    /// Number among all streams of the node.
    number: u64,
    /// The follower's address.
    addr: String,
    /// Hosts of other nodes that were refused under the same name.
    refused: Vec<String>,
    /// The order to lead, once it is given.
    order: Option<LeadOrder>,
}

/// State of a follower, as far as the node that it follows knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowerState {
    /// It applies entries as the log gains them.
    Following,
    /// It receives a snapshot, and holds no data until that is complete.
    Copying,
    /// It has no stream.
    Away,
}

impl FollowerState {
    /// The word in STATUS.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            FollowerState::Following => "following",
            FollowerState::Copying => "copying",
            FollowerState::Away => "away",
        }
    }
}

impl Followers {
    /// Registers a follower at `addr`, and returns the number of its stream. A stream of the same name that has been
    /// silent for longer than `silence_max` is replaced.
    ///
    /// # Errors
    ///
    /// The address of the older stream, where that one is not silent.
    pub fn come(
        &mut self,
        name: &str,
        progress: Progress,
        addr: String,
        silence_max: Duration,
        now: Instant,
    ) -> Result<u64, String> {
        if let Some(older) = self.stream_of(name, silence_max, now) {
            return Err(older.to_owned());
        }
        self.streams += 1;
        let number = self.streams;
        let follower = Follower {
            progress,
            stream: Some(Stream {
                number,
                addr,
                refused: Vec::new(),
                order: None,
            }),
            since: now,
        };
        self.table.insert(name.to_owned(), follower);
        Ok(number)
    }

    /// The address of the stream that has this name, where it has not been silent for longer than `silence_max`.
    #[must_use]
    pub fn stream_of(&self, name: &str, silence_max: Duration, now: Instant) -> Option<&str> {
        let follower = self.table.get(name)?;
        let stream = follower.stream.as_ref()?;
        (follower.progress.silence(now) <= silence_max).then_some(stream.addr.as_str())
    }

    /// Notes that a node at `host` was refused, since its name has the stream of another node. Returns whether that is
    /// the first time since that stream began.
    pub fn refuse(&mut self, name: &str, host: &str) -> bool {
        let follower = self.table.get_mut(name);
        let Some(stream) = follower.and_then(|follower| follower.stream.as_mut()) else {
            return true;
        };
        if stream.refused.iter().any(|refused| refused == host) {
            return false;
        }
        if stream.refused.len() == REFUSED_MAX {
            stream.refused.remove(0);
        }
        stream.refused.push(host.to_owned());
        true
    }

    /// A stream has ended. Where `keeps`, the follower stays in the registry, in state [`FollowerState::Away`].
    pub fn leave(&mut self, name: &str, stream: u64, keeps: bool, now: Instant) {
        let Some(follower) = self.table.get_mut(name) else {
            return;
        };
        if follower
            .stream
            .as_ref()
            .is_none_or(|own| own.number != stream)
        {
            return;
        }
        follower.stream = None;
        follower.since = now;
        if !keeps {
            self.table.remove(name);
        }
    }

    /// Orders a follower to lead. Returns whether it has a stream, which carries the order.
    pub fn order_to_lead(&mut self, name: &str, order: LeadOrder) -> bool {
        let follower = self.table.get_mut(name);
        let stream = follower.and_then(|follower| follower.stream.as_mut());
        stream.is_some_and(|stream| {
            stream.order = Some(order);
            true
        })
    }

    /// The order to lead that a stream carries.
    #[must_use]
    pub fn order_of(&self, name: &str, stream: u64) -> Option<LeadOrder> {
        let own = self.table.get(name)?.stream.as_ref()?;
        own.order.filter(|_| own.number == stream)
    }

    /// The progress of a stream; `None` where it has ended, or another one has replaced it.
    pub fn progress_mut(&mut self, name: &str, stream: u64) -> Option<&mut Progress> {
        let follower = self.table.get_mut(name)?;
        let own = follower.stream.as_ref()?;
        #[cfg(test)]
        if crate::planted::is(crate::planted::Fault::OldAckCounts) {
            return Some(&mut follower.progress);
        }
        (own.number == stream).then_some(&mut follower.progress)
    }

    /// The number of a follower's stream.
    #[cfg(test)]
    pub(crate) fn stream_number(&self, name: &str) -> Option<u64> {
        let stream = self.table.get(name)?.stream.as_ref()?;
        Some(stream.number)
    }

    /// The progress of a follower that has a stream.
    #[must_use]
    pub fn attached(&self, name: &str) -> Option<&Progress> {
        let follower = self.table.get(name)?;
        follower.stream.is_some().then_some(&follower.progress)
    }

    /// All followers, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Follower)> {
        self.table
            .iter()
            .map(|(name, follower)| (name.as_str(), follower))
    }
}

impl Follower {
    /// Its progress by its last acknowledgement.
    #[must_use]
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Its state.
    #[must_use]
    pub const fn state(&self) -> FollowerState {
        match &self.stream {
            None => FollowerState::Away,
            Some(_) if self.progress.is_copying() => FollowerState::Copying,
            Some(_) => FollowerState::Following,
        }
    }

    /// Entries that it lacks of a log that ends at `last_index`. `None` where it has acknowledged all of them and does
    /// not follow any more: it may have restarted, and hold nothing.
    #[must_use]
    pub fn lag_entries(&self, last_index: u64) -> Option<u64> {
        let lacks = self.progress.lag_entries(last_index);
        (lacks > 0 || self.state() == FollowerState::Following).then_some(lacks)
    }

    /// The age of the oldest entry that it lacks of a log that ends at `last_index`. `appended_at` returns when an
    /// entry was appended, and `None` for one that was appended just now. The age is 0 only where it follows and lacks
    /// none. Of a follower that lacks none and does not follow any more it is the time since its stream ended.
    pub fn lag(
        &self,
        last_index: u64,
        appended_at: impl FnOnce(u64) -> Option<Instant>,
        now: Instant,
    ) -> Duration {
        let applied = self.progress.applied_index();
        if applied < last_index {
            lag_since(appended_at(applied + 1).unwrap_or(now), now)
        } else if self.state() == FollowerState::Following {
            Duration::ZERO
        } else {
            lag_since(self.since, now)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_millis(1_500);

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn come(
        followers: &mut Followers,
        applied: u64,
        addr: &str,
        now: Instant,
    ) -> Result<u64, String> {
        let progress = Progress::new(applied, now);
        followers.come("n2", progress, addr.to_owned(), SILENCE, now)
    }

    #[test]
    fn the_older_stream_of_a_name_stays_while_it_is_alive() {
        let start = Instant::now();
        let mut followers = Followers::default();
        let first = come(&mut followers, 1, "a:1", start).unwrap();
        assert_eq!(
            come(&mut followers, 5, "b:1", at(start, 1_500)),
            Err("a:1".to_owned())
        );
        assert_eq!(
            followers.attached("n2").map(Progress::applied_index),
            Some(1)
        );
        // A half-open one is silent.
        let second = come(&mut followers, 5, "b:2", at(start, 1_501)).unwrap();
        assert!(followers.progress_mut("n2", first).is_none());
        followers.leave("n2", first, true, at(start, 1_502));
        let progress = followers.progress_mut("n2", second).unwrap();
        assert_eq!(progress.applied_index(), 5);
        followers.leave("n2", second, true, at(start, 1_503));
        assert!(come(&mut followers, 7, "a:2", at(start, 1_504)).is_ok());
    }

    #[test]
    fn a_refused_node_is_new_once_for_each_host_and_stream() {
        let start = Instant::now();
        let mut followers = Followers::default();
        let first = come(&mut followers, 1, "a:1", start).unwrap();
        let news: Vec<bool> = ["b", "b", "c", "b"]
            .iter()
            .map(|host| followers.refuse("n2", host))
            .collect();
        assert_eq!(news, [true, false, true, false]);
        for host in 0..100 {
            followers.refuse("n2", &host.to_string());
        }
        let stream = followers.table["n2"].stream.as_ref().unwrap();
        assert_eq!(stream.refused.len(), REFUSED_MAX);
        followers.leave("n2", first, true, start);
        come(&mut followers, 1, "a:2", start).unwrap();
        assert!(followers.refuse("n2", "99"), "another stream");
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_entry_that_a_follower_lacks() {
        let start = Instant::now();
        let mut followers = Followers::default();
        let stream = come(&mut followers, 10, "a:1", start).unwrap();
        let lag = |followers: &Followers, last_index, ms| {
            let (_, follower) = followers.iter().next().unwrap();
            let lacks = follower.lag_entries(last_index);
            let applied = follower.progress().applied_index();
            let is_level = applied >= last_index;
            let follows = follower.state() == FollowerState::Following;
            assert_eq!(lacks == Some(0), is_level && follows);
            // Entry 11 at 110 ms and so on; 20 is on its way to the log.
            let appended = |index: u64| (index < 20).then(|| at(start, 10 * index));
            let lag = follower.lag(last_index, appended, at(start, ms));
            (follower.state().name(), lag.as_millis())
        };
        assert_eq!(lag(&followers, 10, 900), ("following", 0));
        assert_eq!(lag(&followers, 15, 900), ("following", 790));
        progress_to(&mut followers, stream, 14, at(start, 200));
        assert_eq!(
            lag(&followers, 15, 900),
            ("following", 750),
            "15 is lacking"
        );
        progress_to(&mut followers, stream, 19, at(start, 300));
        assert_eq!(lag(&followers, 20, 900), ("following", 1), "just now");
        followers.leave("n2", stream, true, at(start, 400));
        assert_eq!(lag(&followers, 19, 900), ("away", 500), "never 0 then");
        assert_eq!(lag(&followers, 19, 400), ("away", 1), "never 0 then");
        let progress = Progress::copying(at(start, 500));
        followers
            .come("n2", progress, "a:2".to_owned(), SILENCE, at(start, 500))
            .unwrap();
        assert_eq!(lag(&followers, 19, 900), ("copying", 890), "it lacks all");
        assert_eq!(lag(&followers, 0, 900), ("copying", 400), "never 0 then");
    }

    fn progress_to(followers: &mut Followers, stream: u64, index: u64, now: Instant) {
        let progress = followers.progress_mut("n2", stream).unwrap();
        progress.acknowledged(index, now);
    }

    #[test]
    fn a_follower_that_has_left_is_in_the_table_where_it_is_kept() {
        let start = Instant::now();
        let mut followers = Followers::default();
        for keeps in [true, false] {
            let stream = come(&mut followers, 10, "a:1", start).unwrap();
            followers.leave("n2", stream, keeps, start);
            assert_eq!(followers.iter().count(), usize::from(keeps));
            assert!(followers.attached("n2").is_none());
        }
    }
}
