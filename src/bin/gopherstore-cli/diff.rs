//! `diff`: compares two nodes and lists the keys that differ, without transferring values.
//!
//! 1. Compares the digests, if both nodes have one. Equal digests mean equal data.
//! 2. Compares the sums of all buckets (GBP §4, SUMS). Equal sums mean equal buckets.
//! 3. Compares keys and hashes in the buckets that differ (LIST), a bounded number of keys at a time.
//! 4. Reads the keys that differ again, since clients may write meanwhile, until they are equal or stay different.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    arguments,
    wire::comparison::{BITS_MAX, Buckets},
};

use crate::{
    ListForm,
    context::Context,
    list_form, mistake,
    report::{Failure, Outcome},
};

mod node;
mod output;

use node::{Entry, Node, NodeSummary};

/// Average number of keys in a bucket, unless the number of buckets is at its limit. A bucket costs 16 bytes of sum.
const KEYS_PER_BUCKET: u64 = 16;
/// Approximate number of keys of each node that are in memory at a time.
const LISTED_MAX: u64 = 500_000;
/// Pause between two reads of the same keys.
const PAUSE: Duration = Duration::from_millis(25);
/// Number of reads in a row with the same difference after which a key counts as different, while one node follows the
/// other and clients write. A key that alternates between two values gives the same difference by chance in one of four
/// reads, and in one of 16 million runs of 12 reads.
const STEADY_READS: u32 = 12;

/// Compare the data of two nodes, and list the keys that differ.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "diff", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} n1 n2 --config cluster.toml\n\
        {command_name} 127.0.0.1:8000 127.0.0.1:8001 -w json --max 100",
    note = "Prints a line for each key that is on one node only or has another value or another deadline.\n\
        On a terminal the last line is a summary. The command compares digests first, then sums of hashes, and then\n\
        hashes of the keys that differ. It transfers no value.\n\
        Clients may write meanwhile: a key is shown if it stays different after the node that lags\n\
        has caught up, for which the command waits at most --timeout. The nodes may be of different\n\
        clusters.\n\
        For options such as --config see gopherstore-cli --help.",
    error_code(0, "the nodes hold the same"),
    error_code(1, "they differ"),
    error_code(6, "timeout, or unknown because keys kept changing")
)]
pub(crate) struct Diff {
    /// a node: HOST:PORT, or with --config its name
    #[argh(positional, from_str_fn(arguments::text))]
    n1: String,
    /// the other node
    #[argh(positional, from_str_fn(arguments::text))]
    n2: String,
    /// lines (default) or json: on a line each an object for each key, and one for the result
    #[argh(
        option,
        short = 'w',
        from_str_fn(list_form),
        arg_name = "FORM",
        default = "ListForm::Lines"
    )]
    write_out: ListForm,
    /// stop after this number of differing keys
    #[argh(option, from_str_fn(count), arg_name = "N", default = "u64::MAX")]
    max: u64,
}

fn count(encoded: &str) -> Result<u64, String> {
    arguments::whole(encoded, 1, u64::MAX)
}

/// A key that differs, and the entries of both nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Difference {
    key: Vec<u8>,
    seen: [Option<Entry>; 2],
    /// Number of later reads in a row with the same entries.
    steady: u32,
}

/// Result of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    only_on: [u64; 2],
    differ: u64,
    /// Keys that were different at every read, each time in another way.
    changing: u64,
    /// Which node lags and did not catch up, and the entries that it lacks.
    behind: Option<(usize, u64)>,
    /// Whether the comparison ended early, so that there may be more differences.
    stopped: bool,
}

impl Tally {
    const fn found(&self) -> u64 {
        self.only_on[0] + self.only_on[1] + self.differ
    }
}

pub(crate) fn run(command: &Diff, context: &Context) -> Result<Outcome, Failure> {
    let mut nodes = [
        Node::named(&command.n1, context)?,
        Node::named(&command.n2, context)?,
    ];
    if nodes[0].client.addr() == nodes[1].client.addr() {
        return Err(mistake(&format!(
            "{} and {} are the same node; name two",
            command.n1, command.n2
        )));
    }
    let summaries = both(&mut nodes, Node::serving)?;
    let mut tally = Tally::default();
    if !are_equal(&summaries) {
        compare(command, context, &mut nodes, &summaries, &mut tally)?;
    }
    output::conclude(command, &nodes, &summaries, &tally, context)
}

/// Whether both digests are known and equal.
fn are_equal([a, b]: &[NodeSummary; 2]) -> bool {
    a.epoch > 0 && b.epoch > 0 && !a.digest.is_empty() && a.digest == b.digest
}

/// Whether one node may follow the other: both report the same cluster and epoch, and neither refuses its leader.
fn are_related([a, b]: &[NodeSummary; 2]) -> bool {
    let is_same = a.epoch == b.epoch && a.cluster == b.cluster;
    a.epoch > 0 && is_same && !a.refuses && !b.refuses
}

/// Whether both nodes were at one index before and after a read. Then the differences that it found are real.
fn is_unchanged(before: &[NodeSummary; 2], after: &[NodeSummary; 2]) -> bool {
    let indexes =
        [before, after].map(|nodes| nodes.each_ref().map(|node| (node.epoch, node.index)));
    let [[first, second], after] = indexes;
    are_related(before) && first == second && after == [first, second]
}

/// Finds the differences and prints them.
fn compare(
    command: &Diff,
    context: &Context,
    nodes: &mut [Node; 2],
    summaries: &[NodeSummary; 2],
    tally: &mut Tally,
) -> Result<(), Failure> {
    let keys = summaries[0].keys.max(summaries[1].keys);
    let bits = bits_for(keys);
    let [a, b] = both(nodes, |node| node.sums(bits))?;
    let pairs = a.iter().zip(&b).enumerate();
    let unequal: Vec<usize> = pairs
        .filter(|(_, (a, b))| a != b)
        .map(|(bucket, _)| bucket)
        .collect();
    let keys_per_bucket = (keys >> bits).max(1);
    let at_once = usize::try_from(LISTED_MAX / keys_per_bucket).unwrap_or(usize::MAX);
    for group in unequal.chunks(at_once.max(1)) {
        if tally.found() >= command.max {
            tally.stopped = true;
            return Ok(());
        }
        let mut buckets = Buckets::none(bits);
        for bucket in group {
            buckets.insert(*bucket);
        }
        let before = both(nodes, Node::serving)?;
        let lists = both(nodes, |node| node.list(&buckets))?;
        let after = both(nodes, Node::serving)?;
        let mut found = differences(lists);
        if !is_unchanged(&before, &after) {
            found = settle(nodes, found, after, context.timeout, tally)?;
        }
        if !output::print(command, nodes, &found, tally)? {
            tally.stopped = true;
            return Ok(());
        }
    }
    Ok(())
}

/// Number of bits of bucket numbers for this number of keys.
fn bits_for(keys: u64) -> u8 {
    let bits = (keys / KEYS_PER_BUCKET).checked_ilog2().unwrap_or(0);
    u8::try_from(bits).unwrap_or(BITS_MAX).min(BITS_MAX)
}

/// The keys whose entries differ in the two lists, sorted.
fn differences([mut a, mut b]: [HashMap<Vec<u8>, Entry>; 2]) -> Vec<Difference> {
    a.retain(|key, seen| b.get(key) != Some(seen) || b.remove(key).is_none());
    let mut found: Vec<Difference> = Vec::with_capacity(a.len());
    for (key, seen) in a {
        let other = b.remove(&key);
        found.push(Difference::new(key, [Some(seen), other]));
    }
    let rest = b.into_iter();
    found.extend(rest.map(|(key, seen)| Difference::new(key, [None, Some(seen)])));
    found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    found
}

/// Reads keys again that were different, and returns those that stay different. `now` has the summaries after the first
/// read.
///
/// If one node follows the other, it first catches up with the index that the other had at the read before. So an entry
/// that is still missing was not in transit. A read during which neither index changes is the last.
fn settle(
    nodes: &mut [Node; 2],
    mut open: Vec<Difference>,
    mut now: [NodeSummary; 2],
    timeout: Duration,
    tally: &mut Tally,
) -> Result<Vec<Difference>, Failure> {
    let deadline = Instant::now() + timeout;
    let needed = if are_related(&now) { STEADY_READS } else { 1 };
    let mut settled = Vec::new();
    let mut reads = 0;
    let mut behind = None;
    while !open.is_empty() && (reads < needed || Instant::now() < deadline) {
        let goal = now[0].index.max(now[1].index);
        thread::sleep(PAUSE);
        now = both(nodes, Node::serving)?;
        while are_related(&now) && lag(&now, goal).is_some() && Instant::now() < deadline {
            thread::sleep(PAUSE);
            now = both(nodes, Node::serving)?;
        }
        behind = lag(&now, goal).filter(|_| are_related(&now));
        let keys: Vec<&[u8]> = open.iter().map(|found| &*found.key).collect();
        let [a, b] = both(nodes, |node| node.entries_of(&keys))?;
        let seen = a.into_iter().zip(b);
        for (mut found, seen) in std::mem::take(&mut open).into_iter().zip(seen) {
            found.note(seen.into());
            match found.seen {
                [a, b] if a == b => {}
                _ if found.steady >= needed => settled.push(found),
                _ => open.push(found),
            }
        }
        reads += 1;
        let before = std::mem::replace(&mut now, both(nodes, Node::serving)?);
        if is_unchanged(&before, &now) {
            settled.append(&mut open);
        }
    }
    tally.behind = behind.or(tally.behind);
    tally.changing += u64::try_from(open.len()).unwrap_or(u64::MAX);
    settled.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(settled)
}

/// The first node that has not reached `goal`, and the entries that it lacks.
fn lag(summaries: &[NodeSummary; 2], goal: u64) -> Option<(usize, u64)> {
    let lags = summaries.iter().map(|node| goal.saturating_sub(node.index));
    lags.enumerate().find(|(_, lag)| *lag > 0)
}

impl Difference {
    const fn new(key: Vec<u8>, seen: [Option<Entry>; 2]) -> Difference {
        Difference {
            key,
            seen,
            steady: 0,
        }
    }

    /// Notes the entries of another read.
    fn note(&mut self, seen: [Option<Entry>; 2]) {
        self.steady = if seen == self.seen {
            self.steady + 1
        } else {
            0
        };
        self.seen = seen;
    }
}

/// Runs `work` for both nodes at the same time.
fn both<T: Send>(
    nodes: &mut [Node; 2],
    work: impl Fn(&mut Node) -> Result<T, Failure> + Sync,
) -> Result<[T; 2], Failure> {
    let [a, b] = nodes;
    thread::scope(|scope| {
        let other = thread::Builder::new().spawn_scoped(scope, || work(b));
        let other = other.map_err(|error| {
            let message = format!("cannot start a thread: {error}; try again");
            Failure::new(Outcome::LocalInput, message)
        })?;
        let first = work(a);
        let second = match other.join() {
            Ok(second) => second,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok([first?, second?])
    })
}

#[cfg(test)]
mod tests;
