//! `race`: measures the time until a write that the leader has acknowledged is visible on a follower.

use std::{
    fmt::Write as _,
    hash::{BuildHasher, RandomState},
    thread,
    time::{Duration, Instant},
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    Client, arguments,
    client::{Error, NodeRole, NodeStatus},
    config::Config,
    wire::Opcode,
};
use hdrhistogram::{CreationError, Histogram};
use serde_json::{Map, Value, json};

use crate::{
    context::{Context, is_address},
    quote,
    report::{self, Failure, Outcome},
    status,
    stop::Stop,
};

/// Prefix of the keys that are written.
const PREFIX: &str = "gopherstore-race:";

const COUNT_DEFAULT: u64 = 1_000;
const INTERVAL_DEFAULT: Duration = Duration::from_millis(10);

/// Interval of checks for Ctrl-C during a pause.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Greatest time in nanoseconds (longer ones count as this), and its significant digits.
const NANOSECONDS_MAX: u64 = 3_600_000_000_000;
const DIGITS: u8 = 3;

/// Percentiles in the output.
const QUANTILES: [(&str, f64); 6] = [
    ("min", 0.0),
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("max", 1.0),
];

/// Measure how stale a follower is: write on the leader, and poll the follower until it shows the write.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "race", help_triggers("-h", "--help"))]
#[argh(
    example = "gopherstore-cli race --on n2 --config cluster.toml\n\
        gopherstore-cli race --on 127.0.0.1:8001 --duration 10s --interval 1ms -w json",
    note = "Each time is from the leader's response to a write until the follower's first response that\n\
        shows the write, so it includes one read; 'read' is the median time of a read. A read that\n\
        shows the earlier value is stale. The command writes one key, which begins with\n\
        gopherstore-race: and is removed at the end, also after Ctrl-C, SIGTERM, SIGHUP or SIGQUIT.\n\
        --timeout limits the wait for a write to be visible.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Race {
    /// the follower: HOST:PORT, or the name of a node that --config or the node at --addr lists
    #[argh(option, from_str_fn(arguments::text), arg_name = "NODE")]
    on: String,
    /// number of writes; by default 1000, or as many as fit into --duration
    #[argh(option, from_str_fn(count), arg_name = "N")]
    count: Option<u64>,
    /// pause between two writes; 0s for none; by default 10ms
    #[argh(
        option,
        from_str_fn(interval),
        arg_name = "TIME",
        default = "INTERVAL_DEFAULT"
    )]
    interval: Duration,
    /// end after this time, such as 10s
    #[argh(option, from_str_fn(crate::timeout), arg_name = "TIME")]
    duration: Option<Duration>,
    /// form: table or json; by default table
    #[argh(
        option,
        short = 'w',
        long = "write-out",
        from_str_fn(form),
        arg_name = "FORM",
        default = "Form::Table"
    )]
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Table,
    Json,
}

fn form(encoded: &str) -> Result<Form, String> {
    arguments::one_of(encoded, &[("table", Form::Table), ("json", Form::Json)])
}

fn count(encoded: &str) -> Result<u64, String> {
    arguments::whole(encoded, 1, u64::MAX)
}

fn interval(encoded: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(&arguments::text(encoded)?);
    parsed.map_err(|error| format!("{error}; write a time such as 10ms"))
}

/// One of the two nodes.
struct Node {
    addr: String,
    client: Client,
}

/// Measurements; times are in nanoseconds.
struct Measured {
    windows: Histogram<u64>,
    reads: Histogram<u64>,
    stale_reads: u64,
    stale_writes: u64,
}

impl Measured {
    fn new() -> Result<Measured, CreationError> {
        let histogram = || Histogram::new_with_bounds(1, NANOSECONDS_MAX, DIGITS);
        Ok(Measured {
            windows: histogram()?,
            reads: histogram()?,
            stale_reads: 0,
            stale_writes: 0,
        })
    }
}

pub(crate) fn run(command: Race, context: &Context) -> Result<Outcome, Failure> {
    let mut follower = node(context, follower_addr(&command.on, context)?);
    let named = (!is_address(&command.on)).then_some(command.on.as_str());
    let status = follower.client.status();
    let status = status.map_err(|error| report::failure(&error, Opcode::Status, named))?;
    let status = NodeStatus::parse(&status);
    let mut leader = node(context, leader_addr(&follower.addr, &status, context)?);
    leader.client.ping().map_err(|error| failure(&error))?;

    // Up to here there is nothing to clean up, and a signal ends the program at once.
    let stop = Stop::on_signals()?;
    let outcome = race(
        &command,
        context,
        &mut leader,
        &mut follower,
        status.node.as_deref(),
        &stop,
    );
    stop.end(outcome)
}

/// Measures, cleans up and prints.
fn race(
    command: &Race,
    context: &Context,
    leader: &mut Node,
    follower: &mut Node,
    name: Option<&str>,
    stop: &Stop,
) -> Result<(), Failure> {
    let key = format!("{PREFIX}{:016x}", RandomState::new().hash_one(()));
    let mut racing = Racing {
        key: key.as_bytes(),
        timeout: context.timeout,
        leader,
        follower,
        stop,
        measured: Measured::new().map_err(|error| {
            Failure::new(
                Outcome::LocalInput,
                format!("cannot measure: {error}; try again"),
            )
        })?,
    };
    let result = racing.run(command, context);
    let measured = racing.measured;
    // In any case. NOT_FOUND is a success.
    let removed = leader.client.del(key.as_bytes());
    let is_empty = measured.windows.is_empty();
    let printed = match command.form {
        // There are no figures, and the reason is printed.
        Form::Table if is_empty => Ok(()),
        form => {
            let (leader, follower) = (&leader.addr, &follower.addr);
            let text = match form {
                Form::Table => table(&measured, leader, follower, name),
                Form::Json => {
                    let is_partial = result.is_err() || stop.is_set();
                    json(&measured, leader, follower, name, is_partial)
                }
            };
            crate::write_out(text.as_bytes()).map(|_| ())
        }
    };
    match (result, removed) {
        (result, Ok(_)) => result?,
        (result, Err(error)) => {
            let removed = failure(&error);
            let first = result.err().map(|failure| failure.message + "; ");
            return Err(Failure::new(
                removed.outcome,
                format!(
                    "{}the key {key} may be left on the leader: {}",
                    first.unwrap_or_default(),
                    removed.message
                ),
            ));
        }
    }
    if is_empty && !stop.is_set() {
        return Err(Failure::new(
            Outcome::Timeout,
            "ended before anything was measured; give it more time",
        ));
    }
    printed
}

fn node(context: &Context, addr: String) -> Node {
    let client = context.client_of(&addr);
    Node { addr, client }
}

/// The address of the node that --on names.
fn follower_addr(on: &str, context: &Context) -> Result<String, Failure> {
    if is_address(on) {
        return Ok(on.to_owned());
    }
    if context.config.is_some() && context.addr.is_none() {
        let context = Context {
            addr: None,
            config: context.config.clone(),
            node: Some(on.to_owned()),
            ..Context::default()
        };
        return context.addr();
    }
    let asked = context.addr()?;
    let status = context
        .client_of(&asked)
        .status()
        .map_err(|error| failure(&error))?;
    let status = NodeStatus::parse(&status);
    if status.node.as_deref() == Some(on) {
        return Ok(asked);
    }
    let peer = status.peers.get(on).and_then(|peer| peer.addr.clone());
    peer.ok_or_else(|| {
        let known: Vec<&str> = status.peers.keys().map(String::as_str).collect();
        Failure::new(
            Outcome::Usage,
            format!(
                "the node at {asked} knows no address of {on:?}, but of {}; write HOST:PORT, or give --config",
                if known.is_empty() { "no other node".to_owned() } else { known.join(", ") }
            ),
        )
    })
}

/// The address of the follower's leader. Fails if the node does not follow a leader: the race would not end.
fn leader_addr(addr: &str, status: &NodeStatus, context: &Context) -> Result<String, Failure> {
    if status.role == Some(NodeRole::Leader) {
        return Err(Failure::new(
            Outcome::Usage,
            format!(
                "the node at {addr} leads, and what it takes it shows at once; name a follower with --on"
            ),
        ));
    }
    if let Some(fault) = status::fault_of(addr, status) {
        return Err(Failure::new(
            Outcome::ServerError,
            format!("{fault}; correct that first, see status --cluster"),
        ));
    }
    let Some(file) = &context.config else {
        return status.leader.clone().ok_or_else(|| {
            Failure::new(
                Outcome::NotLeader,
                format!("the node at {addr} names no leader; give the cluster.toml with --config"),
            )
        });
    };
    let config =
        Config::load(file).map_err(|error| Failure::new(Outcome::Usage, error.to_string()))?;
    // The file's addresses are valid where the client runs; the nodes may use other addresses for one another.
    let named = config
        .nodes
        .iter()
        .find(|node| status.leader.as_ref() == Some(&node.addr));
    Ok(named.unwrap_or_else(|| config.leader()).addr.clone())
}

fn failure(error: &Error) -> Failure {
    report::failure(error, Opcode::Status, None)
}

/// A running measurement.
struct Racing<'a> {
    key: &'a [u8],
    /// Time limit for a write to be visible.
    timeout: Duration,
    leader: &'a mut Node,
    follower: &'a mut Node,
    stop: &'a Stop,
    measured: Measured,
}

impl Racing<'_> {
    /// Makes the writes that the command line asks for, unless a signal comes.
    fn run(&mut self, command: &Race, context: &Context) -> Result<(), Failure> {
        let count = match (command.count, command.duration) {
            (Some(count), _) => Some(count),
            (None, None) => Some(COUNT_DEFAULT),
            (None, Some(_)) => None,
        };
        let template = match count {
            Some(_) => "writes [{wide_bar}] {pos} of {len}",
            None => "writes {pos}",
        };
        let progress = context.progress(count, template);
        let began = Instant::now();
        let duration = command.duration.unwrap_or(Duration::MAX);
        // Computed from the start, so that pauses do not add up their errors.
        let mut next = Duration::ZERO;
        for number in 1..=count.unwrap_or(u64::MAX) {
            if !self.sleep(began, next.min(duration)) || (number > 1 && began.elapsed() >= duration)
            {
                break;
            }
            next = began.elapsed().saturating_add(command.interval);
            self.write_and_watch(number)?;
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(())
    }

    /// Sleeps until `after` has passed since `began`. Returns false after Ctrl-C.
    fn sleep(&self, began: Instant, until: Duration) -> bool {
        while !self.stop.is_set() {
            match until.saturating_sub(began.elapsed()) {
                Duration::ZERO => return true,
                left => thread::sleep(left.min(PAUSE_MAX)),
            }
        }
        false
    }

    /// Makes one write, and reads until a response shows it.
    fn write_and_watch(&mut self, number: u64) -> Result<(), Failure> {
        let value = number.to_string().into_bytes();
        let (leader, follower) = (&mut self.leader.client, &mut self.follower.client);
        leader
            .set(self.key, &value)
            .map_err(|error| failure(&error))?;
        let written = Instant::now();
        let mut asked = written;
        let mut is_stale = false;
        loop {
            let found = follower.get(self.key).map_err(|error| failure(&error))?;
            let answered = Instant::now();
            self.measured
                .reads
                .saturating_record(nanoseconds(answered - asked));
            if found.as_ref() == Some(&value) {
                let window = nanoseconds(answered - written);
                self.measured.windows.saturating_record(window);
                return Ok(());
            }
            self.measured.stale_reads += 1;
            self.measured.stale_writes += u64::from(!is_stale);
            is_stale = true;
            if self.stop.is_set() {
                return Ok(());
            }
            if answered - written > self.timeout {
                return Err(Failure::new(
                    Outcome::Timeout,
                    format!(
                        "write {number} is not seen on {} after {:?}; see status --cluster, or allow more with \
                         --timeout",
                        self.follower.addr, self.timeout
                    ),
                ));
            }
            asked = answered;
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn table(measured: &Measured, leader: &str, follower: &str, name: Option<&str>) -> String {
    let mut text = String::new();
    let writes = measured.windows.len();
    let follower = match name {
        Some(name) => format!("{name} at {follower}"),
        None => follower.to_owned(),
    };
    let title = format!("from {leader}'s response to a write until {follower} shows it");
    let _ = writeln!(text, "{}", quote::one_line(&title));
    let mut line = |name: &str, ns: Option<u64>| {
        let Some(ns) = ns else { return };
        // From nanoseconds, to three decimals.
        let _ = writeln!(
            text,
            "{name:<6} {:>8}.{:03} ms",
            ns / 1_000_000,
            ns / 1_000 % 1_000
        );
    };
    for (name, quantile) in QUANTILES {
        line(name, at(&measured.windows, quantile));
    }
    line("read", at(&measured.reads, 0.5));
    let _ = writeln!(
        text,
        "writes {writes}, of them {} not seen by the first read",
        measured.stale_writes
    );
    let _ = writeln!(
        text,
        "reads  {}, of them {} stale",
        measured.reads.len(),
        measured.stale_reads
    );
    text
}

/// The least and the greatest recorded time; `None` without any.
fn at(histogram: &Histogram<u64>, quantile: f64) -> Option<u64> {
    if histogram.is_empty() {
        None
    } else if quantile == 0.0 {
        Some(histogram.min())
    } else {
        Some(histogram.value_at_quantile(quantile).min(histogram.max()))
    }
}

fn json(
    measured: &Measured,
    leader: &str,
    follower: &str,
    name: Option<&str>,
    is_partial: bool,
) -> String {
    let mut times = Map::new();
    for (name, quantile) in QUANTILES {
        let name = format!("{}_us", name.replace('.', "_"));
        times.insert(name, microseconds(at(&measured.windows, quantile)));
    }
    let mut value = json!({
        "leader": leader,
        "follower": follower,
        "node": name,
        "is_partial": is_partial,
        "writes": measured.windows.len(),
        "stale_writes": measured.stale_writes,
        "reads": measured.reads.len(),
        "stale_reads": measured.stale_reads,
        "read_us": microseconds(at(&measured.reads, 0.5)),
    });
    if let Some(object) = value.as_object_mut() {
        object.append(&mut times);
    }
    format!("{value}\n")
}

fn microseconds(ns: Option<u64>) -> Value {
    json!(ns.map(|ns| ns / 1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(windows: &[u64]) -> Measured {
        let mut measured = Measured::new().unwrap_or_else(|error| unreachable!("{error}"));
        measured.stale_reads = 3;
        measured.stale_writes = 1;
        for window in windows {
            measured.windows.saturating_record(*window);
            measured.reads.saturating_record(50_000);
        }
        measured
    }

    #[test]
    fn the_distribution_is_a_line_for_each_figure() {
        let windows: Vec<u64> = (1..=1_000).map(|ms| ms * 1_000_000).collect();
        let text = table(&measured(&windows), "h:1", "h:2", Some("n2"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "from h:1's response to a write until n2 at h:2 shows it"
        );
        let words = lines[1..8]
            .iter()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        for (words, (name, ms)) in words.zip([
            ("min", 1.0),
            ("p50", 500.0),
            ("p90", 900.0),
            ("p99", 990.0),
            ("p99.9", 999.0),
            ("max", 1_000.0),
            ("read", 0.05),
        ]) {
            assert_eq!((words[0], words[2]), (name, "ms"), "{text}");
            let shown: f64 = words[1].parse().unwrap_or(f64::NAN);
            assert!(
                (shown - ms).abs() <= ms * 0.002,
                "{name}: {shown}, expected {ms}"
            );
        }
        assert_eq!(
            lines[8],
            "writes 1000, of them 1 not seen by the first read"
        );
        assert_eq!(lines[9], "reads  1000, of them 3 stale");
    }

    #[test]
    fn json_has_the_same_figures_in_microseconds() {
        let text = json(&measured(&[2_000_000]), "h:1", "h:2", None, false);
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        for name in ["min_us", "p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"] {
            let us = value[name].as_u64().unwrap_or(0);
            assert!((1_998..=2_002).contains(&us), "{name}: {text}");
        }
        assert_eq!(
            (&value["writes"], &value["stale_reads"]),
            (&json!(1), &json!(3))
        );
        assert_eq!(value["node"], Value::Null);
        let text = json(&measured(&[]), "h:1", "h:2", None, true);
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!(
            (&value["writes"], &value["is_partial"]),
            (&json!(0), &json!(true))
        );
        for name in ["min_us", "p99_9_us", "max_us", "read_us"] {
            assert_eq!(value.get(name), Some(&Value::Null), "{text}");
        }
    }
}
