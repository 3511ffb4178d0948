//! Whether two nodes hold the same, and which keys differ, without moving what they hold.
//!
//! 1. Both digests, where both nodes keep one. Equal digests are equal data.
//! 2. The sums of all buckets of both nodes (GBP §4, SUMS). Equal sums are equal buckets.
//! 3. The keys and hashes of the entries in the buckets that differ (LIST), a bounded number of keys at a time.
//! 4. The keys that differ are looked at again, since nodes are written to meanwhile, until they are equal or have
//!    stayed as they are.

use std::{
    collections::HashMap,
    io::{self, IsTerminal, Write},
    thread,
    time::{Duration, Instant},
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::wire::Opcode;
use gopherstore::{
    Client, arguments,
    client::{Error, NodeState, NodeStatus, Response, Result as ClientResult},
    wire::comparison::{BITS_MAX, Buckets, List, ListAnswer, Place, Sums},
};
use serde_json::json;

use crate::{
    context::{self, Context},
    mistake, quote,
    report::{self, Failure, Outcome, UNKNOWN_OPCODE},
    write_out,
};

/// Keys that a bucket has on average, where there are few enough of them: 16 bytes of sum for as many keys.
const KEYS_PER_BUCKET: u64 = 16;
/// Keys of one node that are listed at a time, about: what this program has in memory.
const LISTED_MAX: u64 = 500_000;
/// Requests in one pipeline.
const PIPELINE_COUNT: usize = 10_000;
/// Pause between two looks at the same keys.
const PAUSE: Duration = Duration::from_millis(25);
/// How often a key must be found as it was, and different, where one node follows the other and neither stands still. A
/// flag that is written with two values in turn looks so by chance, once in four times; so often, once in 16 million.
const STEADY_LOOKS: u32 = 12;

/// Compare two nodes: do they hold the same, and if not, which keys differ.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "diff", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} n1 n2 --config cluster.toml\n\
        {command_name} 127.0.0.1:8000 127.0.0.1:8001 -w json --max 100",
    note = "Prints a line for each key that differs: it is only on one node, or has another value.\n\
        On a terminal a last line says it in words. Digests are compared first, then sums of\n\
        hashes, and only hashes of what differs are asked for; no value is moved.\n\
        Nodes may be written to meanwhile: a key is shown when it stayed different after the\n\
        node that lags has caught up, for which --timeout is waited at most. The nodes may be\n\
        of different clusters.\n\
        For options such as --config see gopherstore-cli --help.",
    error_code(0, "the nodes hold the same"),
    error_code(1, "they differ"),
    error_code(6, "timeout, or not known since keys kept changing")
)]
pub(crate) struct Diff {
    /// a node: its name, with --config, or HOST:PORT
    #[argh(positional, from_str_fn(arguments::text))]
    n1: String,
    /// the other one
    #[argh(positional, from_str_fn(arguments::text))]
    n2: String,
    /// lines (as they are by default) or json: an object for each key, and one for the result, a line each
    #[argh(
        option,
        short = 'w',
        from_str_fn(form),
        arg_name = "FORM",
        default = "Form::Lines"
    )]
    write_out: Form,
    /// stop after so many keys that differ
    #[argh(option, from_str_fn(count), arg_name = "N", default = "u64::MAX")]
    max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Lines,
    Json,
}

fn form(encoded: &str) -> Result<Form, String> {
    arguments::one_of(encoded, &[("lines", Form::Lines), ("json", Form::Json)])
}

fn count(encoded: &str) -> Result<u64, String> {
    arguments::whole(encoded, 1, u64::MAX)
}

/// One of the two nodes.
struct Node {
    /// As it was typed.
    name: String,
    client: Client,
}

/// State of a node, as far as a comparison needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Standing {
    /// 0 in a cluster of one node, which keeps no index and no digest.
    epoch: u64,
    index: u64,
    digest: String,
    keys: u64,
    cluster: String,
    /// It is a follower that holds what its leader does not know.
    refuses: bool,
    /// Why it serves no reads.
    loading: Option<String>,
}

/// A node's entry of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    hash: u128,
    value_len: u32,
}

/// A key that differs, with what the two nodes hold under it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Difference {
    key: Vec<u8>,
    seen: [Option<Seen>; 2],
    /// How often it has been found just so since.
    steady: u32,
}

/// Result of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    only_on: [u64; 2],
    differ: u64,
    /// Keys that were different at every look, and each time in another way.
    changing: u64,
    /// By how many entries the first or the second node lags, and did not catch up.
    behind: Option<(usize, u64)>,
    /// There may be more differences than were looked for.
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
    let standings = both(&mut nodes, Node::serving)?;
    let mut tally = Tally::default();
    if !are_equal(&standings) {
        compare(command, context, &mut nodes, &standings, &mut tally)?;
    }
    conclude(command, &nodes, &standings, &tally, context)
}

/// Whether the digests already say that both hold the same. A node that shows none says nothing.
fn are_equal([a, b]: &[Standing; 2]) -> bool {
    a.epoch > 0 && b.epoch > 0 && !a.digest.is_empty() && a.digest == b.digest
}

/// Whether one may be a copy of the other that is on its way: they are in the same epoch, as far as they say.
fn are_related([a, b]: &[Standing; 2]) -> bool {
    let is_same = a.epoch == b.epoch && a.cluster == b.cluster;
    a.epoch > 0 && is_same && !a.refuses && !b.refuses
}

/// Whether both were at one index before and after a look, so that what it found different is.
fn stood_still(before: &[Standing; 2], after: &[Standing; 2]) -> bool {
    let indexes =
        [before, after].map(|nodes| nodes.each_ref().map(|node| (node.epoch, node.index)));
    let [[first, second], after] = indexes;
    are_related(before) && first == second && after == [first, second]
}

/// Finds what differs, and prints it.
fn compare(
    command: &Diff,
    context: &Context,
    nodes: &mut [Node; 2],
    standings: &[Standing; 2],
    tally: &mut Tally,
) -> Result<(), Failure> {
    let keys = standings[0].keys.max(standings[1].keys);
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
        if !stood_still(&before, &after) {
            found = settle(nodes, found, after, context.timeout, tally)?;
        }
        if !print(command, nodes, &found, tally)? {
            tally.stopped = true;
            return Ok(());
        }
    }
    Ok(())
}

/// How many bits of a bucket's number are worth their sums, for so many keys.
fn bits_for(keys: u64) -> u8 {
    let bits = (keys / KEYS_PER_BUCKET).checked_ilog2().unwrap_or(0);
    u8::try_from(bits).unwrap_or(BITS_MAX).min(BITS_MAX)
}

/// The keys that are not the same in both lists, in the order of their bytes.
fn differences([mut a, mut b]: [HashMap<Vec<u8>, Seen>; 2]) -> Vec<Difference> {
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

/// Looks again at keys that were different, and gives those that stay so. `now` is how the nodes stood after the first
/// look.
///
/// Where one node follows the other, each further look comes after the one that lags has reached what the other had at
/// the look before: so what is still the same difference was not on its way. A look at which both stand still at one
/// index is the last.
fn settle(
    nodes: &mut [Node; 2],
    mut open: Vec<Difference>,
    mut now: [Standing; 2],
    timeout: Duration,
    tally: &mut Tally,
) -> Result<Vec<Difference>, Failure> {
    let deadline = Instant::now() + timeout;
    let needed = if are_related(&now) { STEADY_LOOKS } else { 1 };
    let mut settled = Vec::new();
    let mut looks = 0;
    let mut behind = None;
    while !open.is_empty() && (looks < needed || Instant::now() < deadline) {
        let goal = now[0].index.max(now[1].index);
        thread::sleep(PAUSE);
        now = both(nodes, Node::serving)?;
        while are_related(&now) && lag(&now, goal).is_some() && Instant::now() < deadline {
            thread::sleep(PAUSE);
            now = both(nodes, Node::serving)?;
        }
        behind = lag(&now, goal).filter(|_| are_related(&now));
        let keys: Vec<&[u8]> = open.iter().map(|found| &*found.key).collect();
        let [a, b] = both(nodes, |node| node.look(&keys))?;
        let seen = a.into_iter().zip(b);
        for (mut found, seen) in std::mem::take(&mut open).into_iter().zip(seen) {
            found.look(seen.into());
            match found.seen {
                [a, b] if a == b => {}
                _ if found.steady >= needed => settled.push(found),
                _ => open.push(found),
            }
        }
        looks += 1;
        let before = std::mem::replace(&mut now, both(nodes, Node::serving)?);
        if stood_still(&before, &now) {
            settled.append(&mut open);
        }
    }
    tally.behind = behind.or(tally.behind);
    tally.changing += u64::try_from(open.len()).unwrap_or(u64::MAX);
    settled.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(settled)
}

/// Which node has not reached `goal` yet, and how many entries it lacks.
fn lag(standings: &[Standing; 2], goal: u64) -> Option<(usize, u64)> {
    let lags = standings.iter().map(|node| goal.saturating_sub(node.index));
    lags.enumerate().find(|(_, lag)| *lag > 0)
}

impl Difference {
    const fn new(key: Vec<u8>, seen: [Option<Seen>; 2]) -> Difference {
        Difference {
            key,
            seen,
            steady: 0,
        }
    }

    /// Takes note of what was found at another look.
    fn look(&mut self, seen: [Option<Seen>; 2]) {
        self.steady = if seen == self.seen {
            self.steady + 1
        } else {
            0
        };
        self.seen = seen;
    }
}

/// Does the same with both nodes at the same time.
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

impl Node {
    /// The node that was typed: a name of the cluster.toml, or an address.
    fn named(name: &str, context: &Context) -> Result<Node, Failure> {
        if context.addr.is_some() || context.node.is_some() {
            return Err(mistake(
                "--addr or --node with diff, which is given its two nodes; leave it out",
            ));
        }
        let addr = match &context.config {
            _ if context::is_address(name) => name.to_owned(),
            Some(file) => context::configured(file, name)?,
            None => {
                return Err(mistake(&format!(
                    "{name:?} is no address; write HOST:PORT, or name the cluster.toml with --config"
                )));
            }
        };
        Ok(Node {
            name: name.to_owned(),
            client: context.client_of(&addr),
        })
    }

    /// How the node stands; a failure where it serves no reads.
    fn serving(&mut self) -> Result<Standing, Failure> {
        let text = self.client.status();
        let standing = Standing::parse(&text.map_err(|error| self.failure(&error))?);
        match standing.loading {
            Some(message) => Err(self.failure(&Error::Loading { message })),
            None => Ok(standing),
        }
    }

    /// The sums of all buckets.
    fn sums(&mut self, bits: u8) -> Result<Vec<u128>, Failure> {
        let mut total = vec![0_u128; 1 << bits];
        let mut place = Place::default();
        loop {
            let request = Sums { place, bits };
            let response = self.client.sums(&request);
            let response = response.map_err(|error| self.failure(&error))?;
            for (total, sum) in total.iter_mut().zip(response.sums) {
                *total = total.wrapping_add(sum);
            }
            if response.next.is_end(response.partitions) {
                return Ok(total);
            }
            place = response.next;
        }
    }

    /// Reads the node's entries in some buckets.
    fn list(&mut self, buckets: &Buckets) -> Result<HashMap<Vec<u8>, Seen>, Failure> {
        let mut listed = HashMap::new();
        let mut place = Place::default();
        loop {
            let request = List::Some {
                place,
                buckets: buckets.clone(),
            };
            let response = self.client.list(&request);
            let response = response.map_err(|error| self.failure(&error))?;
            for item in response.items {
                let (hash, value_len) = (item.hash, item.value_len);
                listed.insert(item.key, Seen { hash, value_len });
            }
            if response.next.is_end(response.partitions) {
                return Ok(listed);
            }
            place = response.next;
        }
    }

    /// Reads the node's entries of some keys.
    fn look(&mut self, keys: &[&[u8]]) -> Result<Vec<Option<Seen>>, Failure> {
        let mut seen = Vec::with_capacity(keys.len());
        for keys in keys.chunks(PIPELINE_COUNT) {
            let mut pipeline = self.client.pipeline();
            for key in keys {
                pipeline.list(key);
            }
            let responses = pipeline.run();
            let responses: ClientResult<Vec<Response>> = responses
                .map_err(Error::from)
                .and_then(|responses| responses.into_iter().collect());
            for (key, response) in keys
                .iter()
                .zip(responses.map_err(|error| self.failure(&error))?)
            {
                let item = match response {
                    Response::Value(bytes) => ListAnswer::decode(&bytes)
                        .map_err(|error| self.broken(&error.to_string()))?
                        .items
                        .pop(),
                    Response::Done | Response::NotFound | Response::Pong => {
                        return Err(self.broken("a LIST is answered without a list"));
                    }
                };
                if item.as_ref().is_some_and(|item| item.key != *key) {
                    return Err(self.broken("a LIST of one key is answered with another"));
                }
                seen.push(item.map(|item| Seen {
                    hash: item.hash,
                    value_len: item.value_len,
                }));
            }
        }
        Ok(seen)
    }

    fn broken(&self, what: &str) -> Failure {
        let name = &self.name;
        let message = format!("{name} does not keep to the protocol: {what}; see --hex");
        Failure::new(Outcome::Protocol, message)
    }

    /// The failure of a request to this node, as text for the user.
    fn failure(&self, error: &Error) -> Failure {
        let outcome = report::failure(error, Opcode::Status, None).outcome;
        // The two nodes are named by operands, and not by --addr.
        let next = match error {
            Error::Server { message } if message.starts_with(UNKNOWN_OPCODE) => {
                "the node is of another version, which cannot be compared key by key; upgrade it, or compare the \
                 digests that status shows"
            }
            Error::Loading { .. } => "compare once it serves; status shows how it is",
            Error::Connect { .. } => "is the node running?",
            Error::Timeout { .. } => "allow more with --timeout",
            Error::Protocol { .. } => "is it a GopherStore node? --hex shows what it sends",
            _ => "try again",
        };
        let said = error.to_string();
        if said.contains(self.client.addr()) && self.name == self.client.addr() {
            return Failure::new(outcome, format!("{said}; {next}"));
        }
        Failure::new(outcome, format!("{}: {said}; {next}", self.name))
    }
}

impl Standing {
    /// Reads a STATUS; what is not there, is 0.
    fn parse(text: &str) -> Standing {
        let status = NodeStatus::parse(text);
        let is_loading = status.state == Some(NodeState::Loading);
        Standing {
            epoch: status.epoch.unwrap_or(0),
            index: status.index.unwrap_or(0),
            digest: status.digest.unwrap_or_default(),
            keys: status.keys.unwrap_or(0),
            cluster: status.cluster.unwrap_or_default(),
            refuses: status.state == Some(NodeState::Refused),
            loading: is_loading.then(|| status.reason.unwrap_or_default()),
        }
    }
}

/// Prints what differs; false where that is enough.
fn print(
    command: &Diff,
    nodes: &[Node; 2],
    found: &[Difference],
    tally: &mut Tally,
) -> Result<bool, Failure> {
    let mut text = String::new();
    let mut is_all = true;
    for found in found {
        if tally.found() >= command.max {
            is_all = false;
            break;
        }
        match found.seen {
            [Some(_), Some(_)] => tally.differ += 1,
            [Some(_), None] => tally.only_on[0] += 1,
            [None, _] => tally.only_on[1] += 1,
        }
        match command.write_out {
            Form::Lines => text.push_str(&line(nodes, found)),
            Form::Json => text.push_str(&object(nodes, found).to_string()),
        }
        text.push('\n');
    }
    Ok(write_out(text.as_bytes())? && is_all)
}

fn line([a, b]: &[Node; 2], found: &Difference) -> String {
    let key = quote::quoted(&found.key);
    let (a, b) = (&a.name, &b.name);
    match found
        .seen
        .map(|seen| seen.map(|seen| bytes(seen.value_len)))
    {
        [Some(len), None] => format!("only on {a}: {key}, {len}"),
        [None, Some(len)] => format!("only on {b}: {key}, {len}"),
        [len, other] => format!(
            "differs: {key}, {} on {a}, {} on {b}",
            len.unwrap_or_default(),
            other.unwrap_or_default()
        ),
    }
}

fn bytes(len: u32) -> String {
    match len {
        1 => "1 byte".to_owned(),
        len => format!("{len} bytes"),
    }
}

fn object([a, b]: &[Node; 2], found: &Difference) -> serde_json::Value {
    let [len, other] = found.seen.map(|seen| seen.map(|seen| seen.value_len));
    let hex: String = found.key.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "key": str::from_utf8(&found.key).ok(),
        "key_hex": hex,
        "value_bytes": { &*a.name: len, &*b.name: other },
    })
}

/// Says what came of it, and gives the exit code.
fn conclude(
    command: &Diff,
    nodes: &[Node; 2],
    standings: &[Standing; 2],
    tally: &Tally,
    context: &Context,
) -> Result<Outcome, Failure> {
    let (result, outcome) = match tally {
        tally if tally.found() > 0 => ("different", Outcome::NotFound),
        Tally { changing: 1.., .. } => ("unknown", Outcome::Timeout),
        _ => ("same", Outcome::Done),
    };
    let [a, b] = nodes.each_ref().map(|node| &*node.name);
    let timeout = humantime::format_duration(context.timeout);
    match command.write_out {
        Form::Json => {
            let behind = tally
                .behind
                .map(|(node, entries)| json!({ "node": nodes[node].name, "entries": entries }));
            let object = json!({
                "result": result,
                "only_on": { a: tally.only_on[0], b: tally.only_on[1] },
                "differ": tally.differ,
                "changing": tally.changing,
                "behind": behind,
                "stopped": tally.stopped,
            });
            write_out(format!("{object}\n").as_bytes())?;
        }
        Form::Lines if io::stdout().is_terminal() => {
            let text = in_words(nodes, standings, tally);
            write_out(format!("{text}\n").as_bytes())?;
        }
        Form::Lines => {}
    }
    let mut notes = Vec::new();
    if let Some((node, entries)) = tally.behind.filter(|_| tally.found() > 0) {
        let name = &nodes[node].name;
        notes.push(format!(
            "{name} lacks {entries} entries and did not catch up within {timeout}, so what differs may be on its way; \
             try again, or allow more with --timeout"
        ));
    }
    if tally.changing > 0 {
        notes.push(format!(
            "{} changed at every look within {timeout}, so it is not known whether they differ; try again, or allow \
             more with --timeout",
            keys(tally.changing)
        ));
    }
    for note in notes {
        // If even that fails, there is nowhere to report it.
        let _ = writeln!(io::stderr(), "gopherstore-cli: {}", quote::one_line(&note));
    }
    Ok(outcome)
}

fn keys(count: u64) -> String {
    match count {
        1 => "1 key".to_owned(),
        count => format!("{count} keys"),
    }
}

fn in_words(nodes: &[Node; 2], standings: &[Standing; 2], tally: &Tally) -> String {
    let [a, b] = nodes.each_ref().map(|node| quote::one_line(&node.name));
    if tally.found() == 0 {
        return if tally.changing > 0 {
            format!("not known: {} kept changing", keys(tally.changing))
        } else if are_equal(standings) {
            format!(
                "same: {}, digest {}",
                keys(standings[0].keys),
                standings[0].digest
            )
        } else {
            format!("same: {}", keys(standings[0].keys))
        };
    }
    let at_least = if tally.stopped { "at least " } else { "" };
    let [only_a, only_b] = tally.only_on;
    format!(
        "different: {at_least}{} only on {a}, {only_b} only on {b}, {} with other values",
        keys(only_a),
        tally.differ
    )
}

#[cfg(test)]
mod tests {
    use gopherstore::client::ClientOptions;

    use super::*;

    const fn seen(hash: u128) -> Option<Seen> {
        Some(Seen { hash, value_len: 1 })
    }

    fn list(items: &[(&str, u128)]) -> HashMap<Vec<u8>, Seen> {
        let items = items.iter();
        items
            .filter_map(|(key, hash)| Some((key.as_bytes().to_vec(), seen(*hash)?)))
            .collect()
    }

    #[test]
    fn lists_differ_in_keys_and_in_hashes() {
        let a = list(&[("same", 1), ("here", 2), ("other", 3)]);
        let b = list(&[("same", 1), ("there", 2), ("other", 4)]);
        let found: Vec<_> = differences([a, b])
            .into_iter()
            .map(|found| (String::from_utf8_lossy(&found.key).into_owned(), found.seen))
            .collect();
        let expected = [
            ("here".to_owned(), [seen(2), None]),
            ("other".to_owned(), [seen(3), seen(4)]),
            ("there".to_owned(), [None, seen(2)]),
        ];
        assert_eq!(found, expected);
        assert_eq!(differences([list(&[("a", 1)]), list(&[("a", 1)])]), []);
    }

    #[test]
    fn a_difference_is_steady_only_while_both_sides_stay_what_they_were() {
        let mut found = Difference::new(b"k".to_vec(), [seen(1), None]);
        found.look([seen(1), None]);
        found.look([seen(1), None]);
        assert_eq!(found.steady, 2);
        found.look([seen(2), None]);
        assert_eq!((found.steady, found.seen), (0, [seen(2), None]));
    }

    #[test]
    fn buckets_grow_with_the_keys_up_to_a_limit() {
        let bits = [0, 15, 32, 1_000, 100_000, 10_000_000, u64::MAX].map(bits_for);
        assert_eq!(bits, [0, 0, 1, 5, 12, 12, 12]);
    }

    #[test]
    fn a_status_tells_what_a_comparison_needs() {
        let text =
            "node: n1\nstate: serving\nreason: -\nepoch: 3\nindex: 9\ndigest: 0f\nkeys: 7\nodd\n";
        let standing = Standing {
            epoch: 3,
            index: 9,
            digest: "0f".to_owned(),
            keys: 7,
            ..Standing::default()
        };
        assert_eq!(Standing::parse(text), standing);
        let loading = Standing::parse("state: loading\nreason: it copies\n").loading;
        assert_eq!(loading.as_deref(), Some("it copies"));
        // A cluster of one node keeps no digest, so zeros are not the same data.
        let alone = Standing::default();
        assert!(!are_equal(&[alone.clone(), alone]));
        assert!(are_equal(&[standing.clone(), standing.clone()]));
        // Neither of what was never one data set can catch up with the other.
        let refusing = Standing::parse(&text.replace("serving", "refused"));
        let foreign = Standing::parse(&format!("{text}cluster: other\n"));
        assert!(are_related(&[standing.clone(), standing.clone()]));
        for other in [refusing, foreign] {
            assert!(!are_related(&[standing.clone(), other]));
        }
    }

    #[test]
    fn the_last_line_says_in_words_what_came_of_it() {
        let nodes = ["n1", "n2"].map(|name| Node {
            name: name.to_owned(),
            client: Client::unconnected(name, ClientOptions::default()),
        });
        let known = Standing {
            epoch: 1,
            digest: "0f".to_owned(),
            keys: 7,
            ..Standing::default()
        };
        let alone = Standing {
            epoch: 0,
            keys: 1,
            ..known.clone()
        };
        let words =
            |node: &Standing, tally| in_words(&nodes, &[node.clone(), node.clone()], &tally);
        let nothing = Tally::default();
        assert_eq!(words(&known, nothing.clone()), "same: 7 keys, digest 0f");
        assert_eq!(words(&alone, nothing.clone()), "same: 1 key");
        let changing = Tally {
            changing: 2,
            ..nothing.clone()
        };
        assert_eq!(words(&known, changing), "not known: 2 keys kept changing");
        let mut found = Tally {
            only_on: [1, 2],
            differ: 3,
            ..nothing
        };
        let text = "different: 1 key only on n1, 2 only on n2, 3 with other values";
        assert_eq!(words(&known, found.clone()), text);
        found.stopped = true;
        let text = "different: at least 1 key only on n1, 2 only on n2, 3 with other values";
        assert_eq!(words(&known, found), text);
    }

    #[test]
    fn the_node_that_lags_is_the_one_below_the_goal() {
        let at = |index| Standing {
            index,
            ..Standing::default()
        };
        assert_eq!(lag(&[at(7), at(7)], 7), None);
        assert_eq!(lag(&[at(9), at(4)], 7), Some((1, 3)));
        assert_eq!(lag(&[at(6), at(9)], 7), Some((0, 1)));
    }
}
