//! The status of nodes as a table, as JSON, or in lines.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use gopherstore::client::{NodeRole, NodeStatus};
use indicatif::BinaryBytes;
use serde_json::{Map, Value, json};

use super::health::{self, Asked, Scope, Silence, Verdict};
use crate::quote;

/// Digits of a digest that a table shows: enough to see that two differ.
const DIGEST_SHOWN: usize = 8;

/// Spaces between two columns.
const GAP: usize = 2;

/// A table that is too wide for a terminal is cut into so many, one below the other; beyond that each node is a list.
const PARTS_MAX: usize = 2;

/// Headings, and whether what stands below is a figure.
const COLUMNS: [(&str, bool); 12] = [
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
];

type Row = [String; COLUMNS.len()];

/// A table of the nodes. One that is wider than `width` is cut, and where that is not enough, each node becomes a list;
/// no line of a table is ever cut.
pub(super) fn table(nodes: &[Asked], scope: &Scope, width: Option<usize>) -> String {
    let rows: Vec<Row> = nodes.iter().map(|node| row(node, nodes, scope)).collect();
    let width = width.unwrap_or(usize::MAX);
    match parts(&rows, width) {
        Some(parts) => {
            let tables: Vec<String> = parts.iter().map(|part| table_of(&rows, part)).collect();
            tables.join("\n")
        }
        None => {
            let lists: Vec<String> = rows.iter().map(list).collect();
            lists.join("\n")
        }
    }
}

/// Which columns stand in which table, so that each is as wide as `width` at most; `None` where that takes too many.
/// Each begins with the node's name.
fn parts(rows: &[Row], width: usize) -> Option<Vec<Vec<usize>>> {
    let widths = COLUMNS.iter().enumerate().map(|(at, (heading, _))| {
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

/// A node's row, one line for each cell.
fn list(row: &Row) -> String {
    let width = COLUMNS.iter().map(|(heading, _)| heading.len()).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for ((heading, _), cell) in COLUMNS.iter().zip(row) {
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
    ];
    for (cell, found) in cells.iter_mut().skip(2).zip(found) {
        if let Some(found) = found {
            *cell = found;
        }
    }
    cells
}

/// The name to show: the node's own where it was asked for by its address alone.
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

/// How far a follower is behind its leader, in entries and in milliseconds: by what the leader says, or where there is
/// none, by what the follower does.
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

/// Milliseconds as one reads them.
fn time(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} min", ms / 60_000),
    }
}

/// Everything on one line of JSON.
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

/// The keys of STATUS that every node of the JSON has, null where it does not say them. Source: docs/GBP.md, section 4.
const KEYS: [(&str, Kind); 26] = [
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
    ("connections", Kind::Number),
    ("uptime_ms", Kind::Number),
    ("version", Kind::Text),
    // Hexadecimal, and some of them look like figures.
    ("process", Kind::Text),
    ("heartbeat_interval_ms", Kind::Number),
    ("leader_timeout_ms", Kind::Number),
    ("max_value_bytes", Kind::Number),
    ("full_copies", Kind::Number),
    ("resumes", Kind::Number),
    ("backlog_bytes", Kind::Number),
    ("backlog_first_index", Kind::Number),
    ("leader", Kind::Text),
    ("link", Kind::Text),
    ("leader_heard_ms", Kind::Number),
    ("lag_entries", Kind::Number),
    ("lag_ms", Kind::Number),
];

/// The same of each of its peers.
const PEER_KEYS: [(&str, Kind); 5] = [
    ("addr", Kind::Text),
    ("state", Kind::Text),
    ("since_ms", Kind::Number),
    ("reason", Kind::Text),
    ("differs", Kind::Text),
];

/// The same of each of its followers.
const FOLLOWER_KEYS: [(&str, Kind); 3] = [
    ("index", Kind::Number),
    ("lag_entries", Kind::Number),
    ("lag_ms", Kind::Number),
];

/// A node, with every line that it says, those of later versions too.
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
                    // A digest, which may look like a figure.
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
                    // Not what a node of a later version may say by one of our own names.
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

/// Names of a node in JSON that are none of STATUS.
const RESERVED: [&str; 5] = ["addr", "error", "settings", "peers", "followers"];

fn family_keys(prefix: &str) -> &'static [(&'static str, Kind)] {
    match prefix {
        "peer." => &PEER_KEYS,
        _ => &FOLLOWER_KEYS,
    }
}

/// Adds the keys that are not there.
fn complete(object: &mut Map<String, Value>, keys: &[(&str, Kind)]) {
    for (key, _) in keys {
        object.entry(*key).or_insert(Value::Null);
    }
}

/// A value of STATUS. One of a key that is not known is a number where it looks like one that JSON keeps exactly.
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

/// The lines of every node's STATUS, each with the node's name in front; `error` where there is none.
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
mod tests {
    use super::super::health::tests::{demo, limits, said, silent};
    use super::*;

    fn cluster() -> Vec<Asked> {
        vec![
            said(
                "n1",
                "role=leader keys=1200 bytes=1300000 follower.n2.lag_ms=3 digest=0123456789abcdef",
            ),
            said(
                "n2",
                "role=follower link=up leader=h:1 index=5 keys=1199 bytes=17 digest=ab",
            ),
            silent("n3", Silence::Unreachable("cannot connect".to_owned())),
        ]
    }

    const HEADINGS: &str = "node address role state epoch index lag link heard keys bytes digest";

    fn widest(text: &str) -> usize {
        text.lines()
            .map(|line| line.chars().count())
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn a_wide_terminal_has_one_table() {
        let text = table(&cluster(), &demo(), Some(200));
        let expected = "\
node  address  role      state        epoch  index        lag  link  heard  keys     bytes  digest
n1    n1:80    leader    serving          3     17          -  -         -  1200  1.24 MiB  01234567
n2    n2:80    follower  serving          3      5  12 (3 ms)  up        -  1199      17 B  ab
n3    n3:80    -         unreachable      -      -          -  -         -     -         -  -
";
        assert_eq!(text, expected);
        assert_eq!(
            table(&cluster(), &demo(), None),
            text,
            "no terminal, no limit"
        );
        assert_eq!(table(&cluster(), &demo(), Some(widest(&text))), text);
    }

    #[test]
    fn a_table_of_80_columns_goes_on_below() {
        let text = table(&cluster(), &demo(), Some(80));
        let expected = "\
node  address  role      state        epoch  index        lag  link  heard  keys
n1    n1:80    leader    serving          3     17          -  -         -  1200
n2    n2:80    follower  serving          3      5  12 (3 ms)  up        -  1199
n3    n3:80    -         unreachable      -      -          -  -         -     -

node     bytes  digest
n1    1.24 MiB  01234567
n2        17 B  ab
n3           -  -
";
        assert_eq!(text, expected);
    }

    #[test]
    fn where_no_table_fits_each_node_is_a_list() {
        for width in [0, 1, 10, 40] {
            let text = table(&cluster(), &demo(), Some(width));
            let lists: Vec<&str> = text.split("\n\n").collect();
            assert_eq!(lists.len(), 3, "{width}: {text}");
            for list in lists {
                let words = list.lines().filter_map(|line| line.split(' ').next());
                assert_eq!(words.collect::<Vec<_>>().join(" "), HEADINGS);
            }
            assert!(widest(&text) <= 40, "{text}");
            assert!(text.contains("state    unreachable\n"), "{text}");
        }
    }

    #[test]
    fn no_table_is_wider_than_the_terminal() {
        for width in 0..130 {
            let text = table(&cluster(), &demo(), Some(width));
            let is_table = text.starts_with("node  address");
            assert!(!is_table || widest(&text) <= width, "{width}:\n{text}");
        }
    }

    #[test]
    fn what_a_node_says_gives_the_terminal_no_orders() {
        let mut nodes = cluster();
        nodes[1] = said("n2", "role=\x1b[31m state=\x07 digest=\x1b[2J");
        nodes[2].addr = "\x1b]0;x".to_owned();
        let texts = vec!["node: \x1b[31m".to_owned(), String::new(), String::new()];
        let verdict = health::judge(&nodes, &demo(), limits(None));
        for text in [
            table(&nodes, &demo(), None),
            table(&nodes, &demo(), Some(40)),
            json(&nodes, &demo(), &verdict),
            lines(&nodes, &texts),
        ] {
            assert!(
                text.chars().all(|c| c == '\n' || !c.is_control()),
                "{text:?}"
            );
        }
    }

    #[test]
    fn json_has_every_node_and_null_for_what_is_not_known() {
        let mut nodes = cluster();
        nodes.push(said("n4", "cluster=other role=leader"));
        let verdict = health::judge(&nodes, &demo(), limits(Some(0)));
        let text = json(&nodes, &demo(), &verdict);
        assert_eq!(text.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!(value["healthy"], false);
        assert_eq!(value["cluster"], "demo");
        assert_eq!(value["faults"].as_array().map(Vec::len), Some(3));
        let [leader, follower, away, other] = [0, 1, 2, 3].map(|at| &value["nodes"][at]);
        assert_eq!(leader["digest"], "0123456789abcdef");
        assert_eq!(
            (&leader["lag_ms"], &leader["link"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(
            (&follower["lag_entries"], &follower["lag_ms"]),
            (&json!(12), &json!(3))
        );
        assert_eq!(follower["leader_heard_ms"], Value::Null);
        assert_eq!(
            (&away["node"], &away["error"]),
            (&json!("n3"), &json!("cannot connect"))
        );
        assert_eq!(
            other["error"],
            "n4 at n4:80 is a node of cluster other, not of demo"
        );
    }

    #[test]
    fn json_has_all_that_a_status_says_under_stable_names() {
        let document = include_str!("../../../../docs/GBP.md");
        let (_, section) = document.split_once("\n**STATUS**").unwrap_or_default();
        let (section, _) = section.split_once("\n**DISCARD**").unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let keys: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
        assert!(keys.len() > 20, "{keys:?}");
        let words: Vec<String> = keys
            .iter()
            .filter(|key| !["node", "role", "state", "lag_entries", "lag_ms"].contains(key))
            .map(|key| format!("{key}=7"))
            .collect();
        let said_all = said("n1", &format!("role=leader {}", words.join(" ")));
        let nodes = [
            said_all,
            silent("n2", Silence::Refused("no room".to_owned())),
        ];
        let verdict = health::judge(&nodes, &demo(), limits(None));
        let value: Value =
            serde_json::from_str(&json(&nodes, &demo(), &verdict)).unwrap_or_default();
        for key in keys {
            let node = &value["nodes"][0];
            let found = match key.split('.').collect::<Vec<_>>().as_slice() {
                ["peer", name, field] => node["peers"][name].get(field),
                ["follower", name, field] => node["followers"][name].get(field),
                ["settings", group] => node["settings"].get(group),
                _ => node.get(key),
            };
            assert!(found.is_some(), "{key} is missing: {node}");
            let is_family = key.contains('.');
            assert!(is_family || value["nodes"][1].get(key).is_some(), "{key}");
        }
        assert_eq!(value["nodes"][1]["error"], "no room");
        assert_eq!(value["nodes"][1]["peers"], json!({}));
    }

    #[test]
    fn json_passes_on_what_it_does_not_know() {
        let nodes = [said(
            "n1",
            "role=leader later=7 named=007 large=18446744073709551615 none=- addr=x error=x peers=x settings=x \
             settings.leader=1234567890123456 \
             peer.a.b.state=up peer.a.b.colour=red follower.n2.lag_ms=3 follower.n2.queued=9 peer.odd=1 \
             process=18446744073709551615 digest=00000000000000000000000000000007 keys=few",
        )];
        let verdict = health::judge(&nodes, &demo(), limits(None));
        let value: Value =
            serde_json::from_str(&json(&nodes, &demo(), &verdict)).unwrap_or_default();
        let node = &value["nodes"][0];
        for (key, expected) in [
            ("later", json!(7)),
            ("named", json!("007")),
            ("large", json!("18446744073709551615")),
            ("none", Value::Null),
            ("addr", json!("n1:80")),
            ("error", Value::Null),
            ("peer.odd", json!(1)),
            ("settings", json!({ "leader": "1234567890123456" })),
            ("process", json!("18446744073709551615")),
            ("digest", json!("00000000000000000000000000000007")),
            ("keys", Value::Null),
            ("max_value_bytes", Value::Null),
        ] {
            assert_eq!(node[key], expected, "{key}");
        }
        let mut peer = json!({ "addr": null, "state": "up", "since_ms": null, "reason": null });
        peer["differs"] = Value::Null;
        peer["colour"] = json!("red");
        assert_eq!(node["peers"], json!({ "a.b": peer }));
        let follower = json!({ "index": null, "lag_entries": null, "lag_ms": 3, "queued": 9 });
        assert_eq!(node["followers"], json!({ "n2": follower }));
    }

    #[test]
    fn lines_name_their_node_and_say_who_said_nothing() {
        let nodes = cluster();
        let texts = ["node: n1\nepoch: 3\n", "node: n2\n", ""].map(str::to_owned);
        let expected = "n1 node: n1\nn1 epoch: 3\nn2 node: n2\nn3 error: cannot connect\n";
        assert_eq!(lines(&nodes, &texts), expected);
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        for (ms, expected) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (59_999, "59.9 s"),
            (60_000, "1 min"),
        ] {
            assert_eq!(time(ms), expected);
        }
    }
}
