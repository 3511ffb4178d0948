//! The output of a comparison: lines or JSON.

use std::io::{self, IsTerminal, Write};

use serde_json::json;

use crate::{
    ListForm,
    context::Context,
    quote,
    report::{Failure, Outcome},
    write_out,
};

use super::node::{Node, NodeSummary};
use super::{Diff, Difference, Tally, are_equal};

/// Prints differences. Returns false once `--max` are printed, or if the output has no reader.
pub(super) fn print(
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
            ListForm::Lines => text.push_str(&line(nodes, found)),
            ListForm::Json => text.push_str(&object(nodes, found).to_string()),
        }
        text.push('\n');
    }
    Ok(write_out(text.as_bytes())? && is_all)
}

pub(super) fn line([a, b]: &[Node; 2], found: &Difference) -> String {
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

pub(super) fn object([a, b]: &[Node; 2], found: &Difference) -> serde_json::Value {
    let [len, other] = found.seen.map(|seen| seen.map(|seen| seen.value_len));
    let hex: String = found.key.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "key": str::from_utf8(&found.key).ok(),
        "key_hex": hex,
        "value_bytes": { &*a.name: len, &*b.name: other },
    })
}

/// Prints the result, and returns the exit code.
pub(super) fn conclude(
    command: &Diff,
    nodes: &[Node; 2],
    summaries: &[NodeSummary; 2],
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
        ListForm::Json => {
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
        ListForm::Lines if io::stdout().is_terminal() => {
            let text = in_words(nodes, summaries, tally);
            write_out(format!("{text}\n").as_bytes())?;
        }
        ListForm::Lines => {}
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
            "{} changed at every look within {timeout}, so it is unknown whether they differ; try again, or allow \
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

pub(super) fn in_words(nodes: &[Node; 2], summaries: &[NodeSummary; 2], tally: &Tally) -> String {
    let [a, b] = nodes.each_ref().map(|node| quote::one_line(&node.name));
    if tally.found() == 0 {
        return if tally.changing > 0 {
            format!("unknown: {} kept changing", keys(tally.changing))
        } else if are_equal(summaries) {
            format!(
                "same: {}, digest {}",
                keys(summaries[0].keys),
                summaries[0].digest
            )
        } else {
            format!("same: {}", keys(summaries[0].keys))
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
