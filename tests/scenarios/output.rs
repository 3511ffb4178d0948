//! Log lines and STATUS of nodes, as a script has them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::super::process::Process;
use crate::engine::{Engine, PartitionCopy};
use crate::wire::replication::{self, Frames, Message};
use crate::wire::{Opcode, RequestFrame};

thread_local! {
    /// The log lines of the thread's script since they were last taken; `None` in a thread that plays none.
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// The logger of this test program. It keeps the lines of scripts, and drops all others.
struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info && LINES.with_borrow(Option::is_some)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = match record.level() {
            Level::Error => format!("ERROR {}", record.args()),
            Level::Warn => format!("WARN {}", record.args()),
            Level::Info | Level::Debug | Level::Trace => record.args().to_string(),
        };
        LINES.with_borrow_mut(|lines| lines.get_or_insert_default().push(text));
    }

    fn flush(&self) {}
}

/// Keeps the log lines of this thread from now on.
pub(super) fn keep_log_lines() {
    // Another script may have installed it.
    let _ = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Info);
    LINES.set(Some(Vec::new()));
}

/// The log lines since the last call.
pub(super) fn take_log_lines() -> Vec<String> {
    LINES.replace(Some(Vec::new())).unwrap_or_default()
}

/// Whether a log line says that a peer is up or down.
pub(super) fn is_about_peer(line: &str) -> bool {
    line.contains(" is up, after ") || line.contains(" is down, after ")
}

/// A message of a stream that came from a leader, in one line.
pub(super) fn message(bytes: &[u8]) -> String {
    let Ok(replication::Parsed::Whole { message, .. }) = replication::parse(bytes) else {
        unreachable!("it is whole");
    };
    let records = |frames: Frames<'_>| {
        let records: Vec<String> = frames.iter().map(|frame| record(&frame)).collect();
        records.join(" ")
    };
    let rest = match message {
        Message::Entries {
            first_index,
            frames,
            ..
        } => format!("from index {first_index}: [{}]", records(frames)),
        Message::SnapshotChunk {
            sequence, frames, ..
        } => format!("{sequence}: [{}]", records(frames)),
        Message::SnapshotBegin { keys, .. } => format!("of about {keys} keys"),
        Message::SnapshotEnd { index, .. } => format!("at index {index}"),
        Message::Heartbeat { last_index, .. } => format!("last index {last_index}"),
        Message::Lead { last_index, .. } => format!("after index {last_index}"),
        Message::Ack { .. } | Message::Event { .. } => {
            unreachable!("no follower is sent one")
        }
    };
    format!("{} {rest}", message.opcode().name())
}

/// The keys and values of an engine, in the order of the keys. A long value is shortened.
fn contents(engine: &Engine) -> String {
    let mut pairs = BTreeMap::new();
    let mut copy = PartitionCopy::default();
    for partition in 0..engine.partitions() {
        engine.copy_partition(partition, &mut copy);
        pairs.extend(
            copy.frames()
                .map(|frame| (frame.key().to_vec(), record(&frame))),
        );
    }
    let pairs: Vec<String> = pairs.into_values().collect();
    pairs.join(" ")
}

/// A record, as the commands of a script have it.
fn record(frame: &RequestFrame<'_>) -> String {
    let key = String::from_utf8_lossy(frame.key());
    match frame.opcode() {
        Opcode::Set => format!("{key}={}", short(frame.value())),
        Opcode::Del => format!("del {key}"),
        other => other.name().to_owned(),
    }
}

/// A value without the spaces that make it long.
pub(super) fn short(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end().to_owned()
}

/// Returns a node's STATUS, and the keys and values that it holds.
pub(super) fn status(process: &Process<'_>, now: std::time::Instant) -> String {
    let node = process.node();
    let text = node.status(now);
    let lines: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(": "))
        .collect();
    let get = |key: &str| lines.get(key).copied().unwrap_or("-");
    let mut out = format!(
        "{} {} {} {}:{} {:.8} [{}]",
        get("node"),
        get("role"),
        get("state"),
        get("epoch"),
        get("index"),
        get("digest"),
        contents(node.engine())
    );
    if lines.contains_key("leader") {
        let lag = get("lag_entries");
        let _ = write!(out, " leader {} {}, lag {lag}", get("leader"), get("link"));
    }
    if get("reason") != "-" {
        let _ = write!(out, ": {}", get("reason"));
    }
    out.push('\n');
    let followers = lines.iter().filter_map(|(key, state)| {
        let name = key.strip_prefix("follower.")?.strip_suffix(".state")?;
        Some((name, state))
    });
    for (name, state) in followers {
        let get = |key: &str| get(&format!("follower.{name}.{key}"));
        let (index, lag, ms) = (get("index"), get("lag_entries"), get("lag_ms"));
        let _ = write!(out, "  {name} {state}, index {index}, lag {lag}");
        // The lag of one that is away counts from a clock that no script has.
        if *state != "away" {
            let _ = write!(out, ", {ms} ms");
        }
        out.push('\n');
    }
    out
}
