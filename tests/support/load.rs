//! A writer that records acknowledgements, so that a test can check which writes were lost, and random numbers that can
//! be replayed.
//!
//! Each write has a sequence number, which its value carries along with its key; the rest of a value follows from them,
//! so a value that was changed on its way, or is another key's, is found.
//!
//! # What may be read
//!
//! The last acknowledged write of a key, or one whose outcome the writer never learned. Of the latter all count, since
//! a request that a slow node still had to read may be carried out after those that came later on another connection.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gopherstore::client::{self, Client, ClientOptions, Error, PipelineError, Response};

/// How long the writer waits for the node.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(5);

/// Numbers that follow from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// From `GOPHERSTORE_SEED`, or else from the clock. Prints the seed, which is seen where the test fails.
    pub(crate) fn from_env() -> Random {
        let seed = match std::env::var("GOPHERSTORE_SEED") {
            Ok(seed) => seed.parse().expect("GOPHERSTORE_SEED is a whole number"),
            Err(_) => {
                let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
                u64::from(now.subsec_nanos()) ^ (now.as_secs() << 20)
            }
        };
        println!("GOPHERSTORE_SEED={seed}");
        Random::new(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Evenly spread, nearly: the ranges of tests are small.
    pub(crate) fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    /// Below `count`.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(count).unwrap()).unwrap()
    }

    pub(crate) fn millis(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The operations of a [`Load`].
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Keys are `PREFIX:0000` and so on.
    pub(crate) prefix: &'static str,
    pub(crate) keys: usize,
    /// Bytes of a value; at least 40.
    pub(crate) value_len: RangeInclusive<usize>,
    /// Writes per second; none: as fast as the node answers.
    pub(crate) per_second: Option<u32>,
    /// Writes in one pipeline.
    pub(crate) batch: usize,
    /// How many of a hundred writes are a DEL.
    pub(crate) dels: u64,
    pub(crate) seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            prefix: "k",
            keys: 500,
            value_len: 40..=200,
            per_second: Some(5_000),
            batch: 10,
            dels: 5,
            seed: 1,
        }
    }
}

/// A thread that writes until it is dropped.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    keys: Vec<Vec<u8>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    is_paused: bool,
    is_idle: bool,
    is_ending: bool,
    records: Vec<Record>,
    counts: Counts,
    /// Time that each batch took, from the first byte to the last response.
    times: Vec<Duration>,
}

/// The known state of one key.
#[derive(Clone, Debug, Default)]
struct Record {
    /// In the order in which they were sent.
    acknowledged: Vec<Write>,
    /// With an unknown outcome.
    unknown: Vec<Write>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Write {
    sequence: u64,
    is_del: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) acknowledged: u64,
    /// Answered with a refusal, or never sent: not carried out.
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
}

/// Whether acknowledged writes may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Losses {
    Forbidden,
    Legal,
}

/// The result of a judgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) keys: usize,
    /// Acknowledged writes that are newer than what was found.
    pub(crate) lost_writes: usize,
}

impl Load {
    /// Writes to the node at `addr`, and follows no redirect.
    pub(crate) fn start(addr: SocketAddr, options: Options) -> Load {
        let key = |n: usize| format!("{}:{n:04}", options.prefix).into_bytes();
        let keys: Vec<_> = (0..options.keys).map(key).collect();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                is_paused: false,
                is_idle: false,
                is_ending: false,
                records: vec![Record::default(); keys.len()],
                counts: Counts::default(),
                times: Vec::new(),
            }),
            keys,
            options,
            changed: Condvar::new(),
        });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.write(addr)
        });
        Load {
            shared,
            thread: Some(thread),
        }
    }

    pub(crate) fn keys(&self) -> &[Vec<u8>] {
        &self.shared.keys
    }

    pub(crate) fn counts(&self) -> Counts {
        self.shared.state().counts
    }

    /// The times of the batches since it was last asked.
    pub(crate) fn take_times(&self) -> Vec<Duration> {
        std::mem::take(&mut self.shared.state().times)
    }

    /// Lets the batch at hand end, and writes no more until [`resume`](Self::resume).
    pub(crate) fn pause(&self) {
        let mut state = self.shared.state();
        state.is_paused = true;
        self.shared.changed.notify_all();
        while !state.is_idle {
            state = self.shared.changed.wait(state).unwrap();
        }
    }

    pub(crate) fn resume(&self) {
        let mut state = self.shared.state();
        (state.is_paused, state.is_idle) = (false, false);
        self.shared.changed.notify_all();
    }

    /// Waits for this number of further acknowledged writes.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, count: u64) {
        let before = self.counts().acknowledged;
        super::node::wait_for("more writes", || {
            (self.counts().acknowledged >= before + count).then_some(())
        });
    }

    /// Judges what was read for each of [`keys`](Self::keys), while the load is paused.
    #[track_caller]
    pub(crate) fn judge(&self, values: &[Option<Vec<u8>>], losses: Losses) -> Verdict {
        let records = self.shared.records();
        assert_eq!(values.len(), self.keys().len());
        let mut verdict = Verdict::default();
        for ((key, value), record) in self.keys().iter().zip(values).zip(&records) {
            let found = value.as_deref().map(|value| self.sequence(key, value));
            match record.lost(found) {
                Ok(lost) => verdict.lost_writes += lost,
                Err(fault) => panic!("{}: {fault}", key.escape_ascii()),
            }
            verdict.keys += 1;
        }
        assert!(
            losses == Losses::Legal || verdict.lost_writes == 0,
            "lost {} acknowledged writes",
            verdict.lost_writes
        );
        verdict
    }

    /// Takes what was read for all that is known from now on. For losses that were judged, when the process that may
    /// still have had unanswered requests is dead.
    pub(crate) fn adopt(&self, values: &[Option<Vec<u8>>]) {
        let found = |(key, value): (&Vec<u8>, &Option<Vec<u8>>)| {
            let write = value.as_deref().map(|value| Write {
                sequence: self.sequence(key, value),
                is_del: false,
            });
            Record {
                acknowledged: write.into_iter().collect(),
                unknown: Vec::new(),
            }
        };
        let records = self.keys().iter().zip(values).map(found).collect();
        self.shared.state().records = records;
    }

    /// Fails the test where a key's later value is older than its earlier one: a state that was seen is never undone.
    #[track_caller]
    pub(crate) fn judge_order(&self, earlier: &[Option<Vec<u8>>], later: &[Option<Vec<u8>>]) {
        let records = self.shared.records();
        let all = self.keys().iter().zip(earlier).zip(later).zip(&records);
        for (((key, earlier), later), record) in all {
            let Some(earlier) = earlier else {
                continue;
            };
            let earlier = self.sequence(key, earlier);
            let is_newer = match later {
                Some(later) => self.sequence(key, later) >= earlier,
                None => record
                    .writes()
                    .any(|write| write.is_del && write.sequence > earlier),
            };
            let key = key.escape_ascii();
            assert!(
                is_newer,
                "{key}: was at {earlier}, and is back at {later:?}"
            );
        }
    }

    /// The number of the write that this is the value of. Fails the test where it is none of ours.
    #[track_caller]
    fn sequence(&self, key: &[u8], value: &[u8]) -> u64 {
        let text = String::from_utf8_lossy(value);
        let sequence = text
            .split('#')
            .nth(1)
            .and_then(|sequence| sequence.parse().ok());
        let expected = sequence.map(|sequence| self.shared.value(key, sequence));
        assert!(
            expected.as_deref() == Some(value),
            "{} has a value that nobody wrote: {}",
            key.escape_ascii(),
            value.escape_ascii()
        );
        sequence.unwrap_or_default()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.state().is_ending = true;
        self.shared.changed.notify_all();
        let joined = self.thread.take().map(JoinHandle::join);
        assert!(
            !matches!(joined, Some(Err(_))) || thread::panicking(),
            "the writer failed, see above"
        );
    }
}

impl Record {
    fn writes(&self) -> impl Iterator<Item = &Write> {
        self.acknowledged.iter().chain(&self.unknown)
    }

    /// Number of acknowledged writes that are newer than the found value; a fault for a value that was never written.
    fn lost(&self, found: Option<u64>) -> Result<usize, String> {
        let matches = |write: &Write| match found {
            Some(sequence) => !write.is_del && write.sequence == sequence,
            None => write.is_del,
        };
        if self.unknown.iter().any(matches) {
            return Ok(0);
        }
        match self.acknowledged.iter().rposition(matches) {
            Some(at) => Ok(self.acknowledged.len() - at - 1),
            // Before the first write.
            None if found.is_none() => Ok(self.acknowledged.len()),
            None => Err(format!("write {found:?} was never attempted")),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The state known now. It is copied, so that the lock is free while a judgement may fail.
    #[track_caller]
    fn records(&self) -> Vec<Record> {
        let state = self.state();
        let records = state.is_idle.then(|| state.records.clone());
        drop(state);
        records.expect("a load that is paused before it is judged")
    }

    /// The value of the write with that number: `KEY#NUMBER#`, and bytes that follow from the number.
    fn value(&self, key: &[u8], sequence: u64) -> Vec<u8> {
        let lens = &self.options.value_len;
        let spread = u64::try_from(lens.end() - lens.start() + 1).unwrap();
        let len = lens.start() + usize::try_from(mix(sequence) % spread).unwrap();
        let mut value = [key, format!("#{sequence}#").as_bytes()].concat();
        let from = value.len();
        assert!(
            from <= *lens.start(),
            "values are too short for {from} bytes"
        );
        value.extend((from..len).map(|at| b'a' + ((sequence ^ at as u64) % 26).to_le_bytes()[0]));
        value
    }

    fn write(&self, addr: SocketAddr) {
        let options = ClientOptions {
            connect_timeout: TIMEOUT,
            timeout: TIMEOUT,
            follow_redirects: false,
            ..ClientOptions::default()
        };
        let mut client = Client::unconnected(&addr.to_string(), options);
        let mut random = Random::new(self.options.seed);
        let mut sequence = 0;
        let mut next_at = Instant::now();
        while self.may_go_on(&mut next_at) {
            let batch: Vec<(usize, Write)> = (0..self.options.batch)
                .map(|_| {
                    sequence += 1;
                    let is_del = random.within(1..=100) <= self.options.dels;
                    (random.index(self.keys.len()), Write { sequence, is_del })
                })
                .collect();
            let mut pipeline = client.pipeline();
            for (at, write) in &batch {
                let key = &self.keys[*at];
                if write.is_del {
                    pipeline.del(key);
                } else {
                    pipeline.set(key, &self.value(key, write.sequence));
                }
            }
            let begin = Instant::now();
            let result = pipeline.run();
            let took = begin.elapsed();
            let has_failed = self.note(&batch, result, took);
            if has_failed {
                let state = self.state();
                let _ = self.changed.wait_timeout(state, PAUSE).unwrap();
            }
        }
    }

    /// Waits for the next batch's time, and for the end of a pause. False at the end.
    fn may_go_on(&self, next_at: &mut Instant) -> bool {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            state.is_idle = state.is_paused;
            if state.is_ending {
                state.is_idle = true;
                self.changed.notify_all();
                return false;
            }
            if state.is_paused {
                self.changed.notify_all();
                state = self.changed.wait(state).unwrap();
                // Writes that were missed meanwhile are not made up for.
                *next_at = Instant::now();
                continue;
            }
            let Some(per_second) = self.options.per_second else {
                return true;
            };
            match next_at.checked_duration_since(now).filter(|w| !w.is_zero()) {
                Some(wait) => state = self.changed.wait_timeout(state, wait).unwrap().0,
                None => {
                    let batch = u32::try_from(self.options.batch).unwrap();
                    let time = Duration::from_secs(1) * batch / per_second;
                    *next_at = (*next_at).max(now - TIMEOUT) + time;
                    return true;
                }
            }
        }
    }

    /// Records the outcome of a batch, and says whether anything in it failed.
    fn note(
        &self,
        batch: &[(usize, Write)],
        result: Result<Vec<client::Result<Response>>, PipelineError>,
        took: Duration,
    ) -> bool {
        let (responses, fault) = match result {
            Ok(responses) => (responses, None),
            Err(error) => (error.responses, Some(error.error)),
        };
        let was_sent = fault.as_ref().is_none_or(Error::is_outcome_unknown);
        let mut state = self.state();
        let mut has_failed = fault.is_some();
        let mut responses = responses.into_iter();
        for (at, write) in batch {
            match responses.next() {
                Some(Ok(_)) => {
                    state.counts.acknowledged += 1;
                    state.records[*at].acknowledged.push(*write);
                }
                Some(Err(error)) => {
                    assert!(
                        matches!(error, Error::Loading { .. } | Error::NotLeader { .. }),
                        "{error}"
                    );
                    has_failed = true;
                    state.counts.refused += 1;
                }
                None if was_sent => {
                    state.counts.unknown += 1;
                    state.records[*at].unknown.push(*write);
                }
                None => state.counts.refused += 1,
            }
        }
        if !has_failed {
            state.times.push(took);
        }
        has_failed
    }
}
