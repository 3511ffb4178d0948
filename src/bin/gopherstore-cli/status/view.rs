//! The status of nodes as a table, as JSON, or in lines.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use gopherstore::client::{NodeRole, NodeStatus};
use indicatif::BinaryBytes;
use serde_json::{Map, Value, json};

use super::health::{self, Asked, Scope, Silence, Verdict};
use crate::quote;

/// Digits of a digest in a table.
const DIGEST_SHOWN: usize = 8;

/// Spaces between two columns.
const GAP: usize = 2;

/// Most tables, one below the other, into which a table that is too wide is split. With more, each node is printed as a
/// list.
const PARTS_MAX: usize = 2;

/// Headings, and whether the column holds numbers.
const COLUMNS: [(&str, bool); 14] = [
    ("node", false),
    ("address", false),
    ("role", false),
    ("state", false),
    ("epoch", true),
    ("index", true),
    ("lag", true),
    ("link", false),
    ("heard", true),
    ("keys", true),
    ("bytes", true),
    ("digest", false),
    ("disk", false),
    ("durable", true),
];

/// The first of the columns that are there only where a node has a disk.
const DISK_AT: usize = 12;

type Row = [String; COLUMNS.len()];

/// A table of the nodes. A table wider than `width` is split, or each node becomes a list. No line is cut.
pub(super) fn table(nodes: &[Asked], scope: &Scope, width: Option<usize>) -> String {
    let rows: Vec<Row> = nodes.iter().map(|node| row(node, nodes, scope)).collect();
    let width = width.unwrap_or(usize::MAX);
    let has_disk = |node: &Asked| matches!(&node.response, Ok(it) if it.has_disk == Some(true));
    let columns = if nodes.iter().any(has_disk) {
        COLUMNS.len()
    } else {
        DISK_AT
    };
    match parts(&rows, columns, width) {
        Some(parts) => {
            let tables: Vec<String> = parts.iter().map(|part| table_of(&rows, part)).collect();
            tables.join("\n")
        }
        None => {
            let lists: Vec<String> = rows.iter().map(|row| list(row, columns)).collect();
            lists.join("\n")
        }
    }
}

/// The columns of each table, of the first ones of this number, so that no table is wider than `width`; `None` if that
/// takes too many tables. Each table begins with the node's name.
fn parts(rows: &[Row], columns: usize, width: usize) -> Option<Vec<Vec<usize>>> {
    let shown = COLUMNS.iter().take(columns).enumerate();
    let widths = shown.map(|(at, (heading, _))| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([heading.len()]).max().unwrap_or(0)
    });
    let widths: Vec<usize> = widths.collect();
    let mut parts = vec![vec![0]];
    let mut used = widths[0];
    for (at, cell) in widths.iter().enumerate().skip(1) {
        if used + GAP + cell > width {
            parts.push(vec![0]);
            used = widths[0];
        }
        used += GAP + cell;
        if used > width {
            return None;
        }
        parts.last_mut()?.push(at);
    }
    (parts.len() <= PARTS_MAX).then_some(parts)
}

fn table_of(rows: &[Row], columns: &[usize]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(columns.iter().map(|&at| COLUMNS[at].0));
    for row in rows {
        table.add_row(columns.iter().map(|&at| &row[at]));
    }
    let gap = u16::try_from(GAP).unwrap_or(1);
    for (column, &at) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, gap));
        if COLUMNS[at].1 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// The first cells of a node, of this number.
fn list(row: &Row, columns: usize) -> String {
    let width = COLUMNS.iter().map(|(heading, _)| heading.len()).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for ((heading, _), cell) in COLUMNS.iter().zip(row).take(columns) {
        let _ = writeln!(text, "{heading:width$}  {cell}");
    }
    text
}

fn row(node: &Asked, nodes: &[Asked], scope: &Scope) -> Row {
    let mut cells: Row = std::array::from_fn(|_| "-".to_owned());
    cells[0] = quote::one_line(name(node));
    cells[1] = quote::one_line(&node.addr);
    let status = match &node.response {
        Ok(status) => status,
        Err(silence) => {
            cells[3] = said_nothing(silence).to_owned();
            return cells;
        }
    };
    if health::stranger(node, status, scope, nodes.len()).is_some() {
        cells[3] = "not of it".to_owned();
        return cells;
    }
    let figure = |number: Option<u64>| number.map(|number| number.to_string());
    let lag = lag(node, status, nodes, scope);
    let found = [
        status
            .role
            .as_ref()
            .map(|role| quote::one_line(role.as_str())),
        status
            .state
            .as_ref()
            .map(|state| quote::one_line(state.as_str())),
        figure(status.epoch),
        figure(status.index),
        match lag {
            (Some(entries), Some(ms)) => Some(format!("{entries} ({ms} ms)")),
            (entries, _) => figure(entries),
        },
        status
            .is_link_up
            .map(|is_up| if is_up { "up" } else { "down" }.to_owned()),
        status.leader_heard_ms.map(time),
        figure(status.keys),
        status.bytes.map(|bytes| BinaryBytes(bytes).to_string()),
        status
            .digest
            .as_ref()
            .map(|digest| quote::one_line(digest).chars().take(DIGEST_SHOWN).collect()),
        match status.has_disk {
            Some(true) => status.sync.as_ref().map(|sync| quote::one_line(sync)),
            Some(false) => Some("none".to_owned()),
            None => None,
        },
        figure(status.durable_index),
    ];
    for (cell, found) in cells.iter_mut().skip(2).zip(found) {
        if let Some(found) = found {
            *cell = found;
        }
    }
    cells
}

/// The name to show: the node's own if it was asked by its address.
fn name(node: &Asked) -> &str {
    match &node.response {
        Ok(NodeStatus {
            node: Some(own), ..
        }) if node.name == "-" => own,
        _ => &node.name,
    }
}

const fn said_nothing(silence: &Silence) -> &'static str {
    match silence {
        Silence::Unreachable(_) => "unreachable",
        Silence::Refused(_) => "error",
        Silence::NoStatus(_) => "no status",
    }
}

/// The lag of a follower in entries and in milliseconds, from the leader's status, or without a leader from its own.
fn lag(
    node: &Asked,
    status: &NodeStatus,
    nodes: &[Asked],
    scope: &Scope,
) -> (Option<u64>, Option<u64>) {
    if status.role == Some(NodeRole::Leader) {
        return (None, None);
    }
    let leader = health::leader(nodes, scope).and_then(|leader| leader.response.as_ref().ok());
    (
        health::lag_entries(leader, status).or(status.lag_entries),
        health::lag_ms(leader, &node.name, status),
    )
}

/// Milliseconds with a unit for people.
fn time(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} min", ms / 60_000),
    }
}

/// One line of JSON with everything.
pub(super) fn json(nodes: &[Asked], scope: &Scope, verdict: &Verdict) -> String {
    let list: Vec<Value> = nodes
        .iter()
        .map(|node| json_of(node, nodes, scope))
        .collect();
    let cluster = match scope {
        Scope::Node => None,
        Scope::Cluster(name) => name.clone(),
    };
    let value = json!({
        "cluster": cluster,
        "healthy": verdict.is_healthy(),
        "verdict": verdict.words(scope).join("\n"),
        "faults": verdict.faults,
        "nodes": list,
    });
    format!("{value}\n")
}

/// Kind of a STATUS key's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
}

/// The keys of STATUS that every node of the JSON has, null if it does not report them. Source: docs/GBP.md, section 4.
const KEYS: [(&str, Kind); 49] = [
    ("cluster", Kind::Text),
    ("role", Kind::Text),
    ("state", Kind::Text),
    ("reason", Kind::Text),
    ("stopping", Kind::Text),
    ("epoch", Kind::Number),
    ("index", Kind::Number),
    ("digest", Kind::Text),
    ("keys", Kind::Number),
    ("bytes", Kind::Number),
    ("expiring", Kind::Number),
    ("expired", Kind::Number),
    ("memory_bytes", Kind::Number),
    ("max_memory_bytes", Kind::Number),
    ("when_full", Kind::Text),
    ("evicted", Kind::Number),
    ("refused_writes", Kind::Number),
    ("connections", Kind::Number),
    ("uptime_ms", Kind::Number),
    ("version", Kind::Text),
    // Hexadecimal; some look like numbers.
    ("process", Kind::Text),
    ("heartbeat_interval_ms", Kind::Number),
    ("leader_timeout_ms", Kind::Number),
    ("max_value_bytes", Kind::Number),
    ("full_copies", Kind::Number),
    ("resumes", Kind::Number),
    ("backlog_bytes", Kind::Number),
    ("backlog_first_index", Kind::Number),
    ("disk", Kind::Text),
    ("sync", Kind::Text),
    ("written_index", Kind::Number),
    ("durable_index", Kind::Number),
    ("disk_space", Kind::Text),
    ("synced_ms", Kind::Number),
    ("log_bytes", Kind::Number),
    ("snapshot_bytes", Kind::Number),
    ("snapshot_index", Kind::Number),
    ("snapshot_age_ms", Kind::Number),
    ("snapshots", Kind::Number),
    ("failed_snapshots", Kind::Number),
    ("snapshot_error", Kind::Text),
    ("recovery_ms", Kind::Number),
    ("recovered_records", Kind::Number),
    ("cut_bytes", Kind::Number),
    ("leader", Kind::Text),
    ("link", Kind::Text),
    ("leader_heard_ms", Kind::Number),
    ("lag_entries", Kind::Number),
    ("lag_ms", Kind::Number),
];

/// The same for each of its peers.
const PEER_KEYS: [(&str, Kind); 5] = [
    ("addr", Kind::Text),
    ("state", Kind::Text),
    ("since_ms", Kind::Number),
    ("reason", Kind::Text),
    ("differs", Kind::Text),
];

/// The same for each of its followers.
const FOLLOWER_KEYS: [(&str, Kind); 3] = [
    ("index", Kind::Number),
    ("lag_entries", Kind::Number),
    ("lag_ms", Kind::Number),
];

/// A node with every line of its status, also those of later versions.
fn json_of(node: &Asked, nodes: &[Asked], scope: &Scope) -> Value {
    let mut object = Map::new();
    object.insert("node".to_owned(), json!(name(node)));
    object.insert("addr".to_owned(), json!(node.addr));
    let mut families = [("peer.", Map::new()), ("follower.", Map::new())];
    let mut settings = Map::new();
    let error = match &node.response {
        Err(silence) => Some(silence.why().to_owned()),
        Ok(status) => {
            let (lag_entries, lag_ms) = lag(node, status, nodes, scope);
            object.insert("lag_entries".to_owned(), json!(lag_entries));
            object.insert("lag_ms".to_owned(), json!(lag_ms));
            for (key, value) in &status.lines {
                if let Some(group) = key.strip_prefix("settings.") {
                    // A digest, which may look like a number.
                    let digest = status.settings.get(group);
                    settings.insert(group.to_owned(), json!(digest));
                    continue;
                }
                let family = families.iter_mut().find_map(|(prefix, names)| {
                    let (name, field) = key.strip_prefix(*prefix)?.rsplit_once('.')?;
                    let fields = names.entry(name).or_insert_with(|| json!({}));
                    Some((fields.as_object_mut()?, field, family_keys(prefix)))
                });
                match family {
                    Some((fields, field, keys)) => {
                        fields.insert(field.to_owned(), json_value(keys, field, value));
                    }
                    // A later version may have a line with one of these names.
                    None if !object.contains_key(key) && !RESERVED.contains(&&**key) => {
                        object.insert(key.clone(), json_value(&KEYS, key, value));
                    }
                    None => {}
                }
            }
            health::stranger(node, status, scope, nodes.len())
        }
    };
    object.insert("error".to_owned(), json!(error));
    object.insert("settings".to_owned(), Value::Object(settings));
    complete(&mut object, &KEYS);
    for (name, (prefix, mut members)) in ["peers", "followers"].into_iter().zip(families) {
        for member in members.values_mut().filter_map(Value::as_object_mut) {
            complete(member, family_keys(prefix));
        }
        object.insert(name.to_owned(), Value::Object(members));
    }
    Value::Object(object)
}

/// Names of a node in JSON that are no keys of STATUS.
const RESERVED: [&str; 5] = ["addr", "error", "settings", "peers", "followers"];

fn family_keys(prefix: &str) -> &'static [(&'static str, Kind)] {
    match prefix {
        "peer." => &PEER_KEYS,
        _ => &FOLLOWER_KEYS,
    }
}

/// Adds the missing keys as null.
fn complete(object: &mut Map<String, Value>, keys: &[(&str, Kind)]) {
    for (key, _) in keys {
        object.entry(*key).or_insert(Value::Null);
    }
}

/// A value of STATUS. The value of an unknown key is a number if it looks like one that JSON keeps exactly.
fn json_value(keys: &[(&str, Kind)], key: &str, value: &str) -> Value {
    const EXACT_MAX: u64 = 1 << 53;
    let number = value.parse::<u64>().ok();
    match keys.iter().find(|(known, _)| *known == key) {
        _ if value.is_empty() || value == "-" => Value::Null,
        Some((_, Kind::Text)) => json!(value),
        Some((_, Kind::Number)) => json!(number),
        None => match number.filter(|&number| number <= EXACT_MAX && number.to_string() == value) {
            Some(number) => json!(number),
            None => json!(value),
        },
    }
}

/// The lines of every node's STATUS, each after the node's name; `error` without a status.
pub(super) fn lines(nodes: &[Asked], texts: &[String]) -> String {
    let mut all = String::new();
    for (node, text) in nodes.iter().zip(texts) {
        let name = quote::one_line(name(node));
        if let Err(silence) = &node.response {
            let _ = writeln!(all, "{name} error: {}", quote::one_line(silence.why()));
        }
        for line in text.lines() {
            let _ = writeln!(all, "{name} {}", quote::one_line(line));
        }
    }
    all
}

#[cfg(test)]
mod tests;
