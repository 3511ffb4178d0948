//! The tables of docs/GBP.md and of scripts/gbp.lua beside those of the code.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::RangeInclusive;

use gopherstore::wire::command::Limit;
use gopherstore::wire::replication::{MessageValue, Sender, StreamOpcode};
use gopherstore::wire::request::Limits;
use gopherstore::wire::{Field, Form, Opcode, Status, StatusValue};

const DOCUMENT: &str = include_str!("../../docs/GBP.md");
const SCRIPT: &str = include_str!("../../scripts/gbp.lua");

/// The rows of all tables of the document, each cell without its padding.
fn rows() -> Vec<Vec<String>> {
    let lines = DOCUMENT.lines().filter_map(|line| {
        let line = line.strip_prefix('|')?.strip_suffix('|')?;
        let cells = line.split('|').map(|cell| cell.trim().to_owned());
        Some(cells.collect())
    });
    lines.collect()
}

/// The rows of the table whose header has these cells.
#[track_caller]
fn table(header: &[&str]) -> Vec<Vec<String>> {
    let all = rows();
    let at = all.iter().position(|row| row == header);
    let at = at.unwrap_or_else(|| panic!("no table {header:?}"));
    let rows = all[at + 2..].iter();
    rows.take_while(|row| row.len() == header.len() && !row[0].starts_with("--"))
        .cloned()
        .collect()
}

/// The number of a cell such as `0x01`; `None` for a range.
fn byte(cell: &str) -> Option<u8> {
    u8::from_str_radix(cell.strip_prefix("0x")?, 16).ok()
}

/// The numbers of a cell such as `0x01` or `0x05 – 0x3F`.
fn bytes_of(cell: &str) -> RangeInclusive<u8> {
    let (first, last) = cell.split_once(" – ").unwrap_or((cell, cell));
    byte(first).unwrap()..=byte(last).unwrap()
}

/// `1234` as `1,234`.
fn grouped(number: u32) -> String {
    if number < 1_000 {
        return number.to_string();
    }
    format!("{},{:03}", grouped(number / 1_000), number % 1_000)
}

#[test]
fn the_document_has_the_opcodes_of_the_code_and_no_others() {
    let table = table(&["opcode", "", "key", "value", "use"]);
    let cell = |used| if used { "yes" } else { "no" }.to_owned();
    let expected: Vec<_> = Opcode::ALL
        .map(|opcode| {
            let spec = opcode.spec();
            let (key, value) = (cell(spec.has_key), cell(spec.uses_value()));
            (opcode.byte(), spec.name.to_owned(), key, value)
        })
        .to_vec();
    let named = table.iter().filter(|row| !row[1].is_empty());
    let found: Vec<_> = named
        .map(|row| {
            let byte = byte(&row[0]).unwrap();
            (byte, row[1].clone(), row[2].clone(), row[3].clone())
        })
        .collect();
    assert_eq!(found, expected);

    // Every byte has a meaning, and one.
    let mut covered = Vec::new();
    for row in &table {
        covered.extend(bytes_of(&row[0]));
    }
    assert_eq!(covered, (0..=u8::MAX).collect::<Vec<_>>());
    let stream = table.iter().filter(|row| row[4].contains("of that stream"));
    let stream: Vec<_> = stream.flat_map(|row| bytes_of(&row[0])).collect();
    assert_eq!(stream, StreamOpcode::ALL.map(StreamOpcode::byte));
}

#[test]
fn the_document_has_the_operands_of_every_operation() {
    let all = rows();
    for opcode in Opcode::ALL {
        let spec = opcode.spec();
        let mut expected = Vec::new();
        let mut at = 0;
        for field in spec.operands {
            let cells = [
                at.to_string(),
                field.size.to_string(),
                format!("`{}`", field.name),
            ];
            expected.push(cells);
            at += field.size;
        }
        let has = |rows: &[Vec<String>]| {
            let mut rows = rows.iter().zip(&expected);
            rows.all(|(row, cells)| row.len() == 4 && row.starts_with(cells))
        };
        let mut places = all.windows(expected.len().max(1));
        let place = places
            .position(has)
            .unwrap_or_else(|| panic!("no fields of {}", spec.name));
        if !expected.is_empty() && spec.rest_max != Limit::Bytes(0) {
            let row = &all[place + expected.len()];
            let cells = [row[0].clone(), row[2].clone()];
            let next = match spec.operands.last().map(|field| field.form) {
                Some(Form::Length(of)) => of,
                Some(_) | None => spec.rest,
            };
            assert_eq!(
                cells,
                [at.to_string(), format!("`{next}`")],
                "{}",
                spec.name
            );
        }
    }
}

#[test]
fn the_document_has_the_limits_on_values() {
    let all = rows();
    let row = all.iter().find(|row| row[0].contains(" above 1,050"));
    let limits = Limits { value_len_max: 7 };
    for opcode in Opcode::ALL {
        let spec = opcode.spec();
        if spec.uses_value() && spec.rest_max != Limit::Node {
            let max = grouped(spec.value_len_max(&limits));
            let parts = row.unwrap()[0].split(", ");
            let mut parts = parts.filter(|part| part.contains(spec.name));
            assert!(
                parts.any(|part| part.ends_with(&format!(" above {max}"))),
                "{}",
                spec.name
            );
        }
    }
}

#[test]
fn the_document_has_the_statuses_of_the_code_and_no_others() {
    let table = table(&["status", "", "value"]);
    let found: Vec<_> = table
        .iter()
        .map(|row| {
            let value = match &*row[2] {
                "empty" => StatusValue::Empty,
                text if text.starts_with("a message in UTF-8") => StatusValue::Message,
                text if text.starts_with("the leader's address") => StatusValue::Address,
                text if text.starts_with("the state of the key") => StatusValue::State,
                text if text.starts_with("an index of 8 bytes") => StatusValue::Index,
                text => {
                    assert!(text.starts_with("the result"), "{text}");
                    StatusValue::Result
                }
            };
            (byte(&row[0]).unwrap(), row[1].clone(), value)
        })
        .collect();
    let expected = Status::ALL.map(|status| {
        let spec = status.spec();
        (status.byte(), spec.name.to_owned(), spec.value)
    });
    assert_eq!(found, expected);
}

#[test]
fn the_document_has_the_statuses_of_every_operation() {
    let table = table(&["operation", "statuses"]);
    let expected = Opcode::ALL.map(|opcode| {
        let spec = opcode.spec();
        let statuses: Vec<&str> = spec.statuses.iter().map(|status| status.name()).collect();
        vec![spec.name.to_owned(), statuses.join(", ")]
    });
    assert_eq!(table, expected);
}

#[test]
fn the_document_has_the_messages_of_the_stream() {
    let messages = table(&["opcode", "", "from", "key", "value"]);
    assert_eq!(messages.len(), StreamOpcode::ALL.len());
    let fields = table(&["opcode", "offset", "size", "field", "meaning"]);
    for (row, opcode) in messages.iter().zip(StreamOpcode::ALL) {
        let spec = opcode.spec();
        let from = match spec.sender {
            Sender::Leader => "leader",
            Sender::Follower => "follower",
        };
        let cells = [
            format!("0x{:02X}", opcode.byte()),
            spec.name.to_owned(),
            from.to_owned(),
            spec.key_len.to_string(),
        ];
        assert!(row.starts_with(&cells), "{row:?}");
        let value = match spec.value {
            MessageValue::Empty => "none",
            MessageValue::Frames => "`count` records",
            MessageValue::History => "history",
            MessageValue::Changes => "`count` changes",
        };
        assert!(row[4].contains(value), "{row:?}");
        // The fields of its own stand between the epoch that all have and the checksums.
        let own = &spec.fields[1..spec.fields.len() - 2];
        let first = fields.iter().position(|row| row[0] == spec.name).unwrap();
        let mut at = spec.fields[0].size;
        for (row, field) in fields[first..].iter().zip(own) {
            let cells = [
                at.to_string(),
                field.size.to_string(),
                format!("`{}`", field.name),
            ];
            assert_eq!(row[1..4], cells, "{}", spec.name);
            at += field.size;
        }
        let next = fields.get(first + own.len());
        assert!(next.is_none_or(|row| !row[0].is_empty()), "{}", spec.name);
    }
}

/// The lines of a table of the script, from behind its name to its end.
fn script_table(name: &str) -> &'static str {
    let begin = format!("\nlocal {name} = {{\n");
    let (_, rest) = SCRIPT.split_once(&begin).unwrap();
    rest.split_once("\n}").unwrap().0
}

#[test]
fn the_script_has_the_names_of_the_code() {
    let names = |name: &str| -> BTreeMap<u8, String> {
        let rows = script_table(name).lines().map(str::trim);
        rows.map(|row| {
            let (byte, name) = row.split_once("] = \"").unwrap();
            let byte = u8::from_str_radix(byte.strip_prefix("[0x").unwrap(), 16).unwrap();
            (byte, name.strip_suffix("\",").unwrap().to_owned())
        })
        .collect()
    };
    let pairs = |pairs: &[(u8, &str)]| -> BTreeMap<u8, String> {
        let pairs = pairs.iter().copied();
        pairs.map(|(byte, name)| (byte, name.to_owned())).collect()
    };
    let opcodes = Opcode::ALL.map(|opcode| (opcode.byte(), opcode.name()));
    assert_eq!(names("OPCODES"), pairs(&opcodes));
    let statuses = Status::ALL.map(|status| (status.byte(), status.name()));
    assert_eq!(names("STATUSES"), pairs(&statuses));
    let stream = StreamOpcode::ALL.map(|opcode| (opcode.byte(), opcode.name()));
    assert_eq!(names("STREAM_OPCODES"), pairs(&stream));
}

#[test]
fn the_script_has_the_fields_of_the_code() {
    let operands = Opcode::ALL.map(|opcode| (opcode.byte(), opcode.spec().operands));
    let with_operands = operands
        .into_iter()
        .filter(|(_, fields)| !fields.is_empty());
    assert_eq!(script_fields("OPERANDS"), layouts(with_operands));
    let stream = StreamOpcode::ALL.map(|opcode| (opcode.byte(), opcode.fields()));
    assert_eq!(script_fields("LAYOUTS"), layouts(stream));
}

/// A table of fields of the script. A comma behind a list's last item is a matter of taste.
fn script_fields(name: &str) -> String {
    let text: String = script_table(name).split_whitespace().collect();
    text.replace(",}", "}")
}

/// The same of these fields.
fn layouts(layouts: impl IntoIterator<Item = (u8, &'static [Field])>) -> String {
    let mut text = String::new();
    for (byte, fields) in layouts {
        write!(text, "[0x{byte:02x}]={{").unwrap();
        for field in fields {
            write!(text, "{{\"{}\",{}}},", field.name, field.size).unwrap();
        }
        text.push_str("},");
    }
    text.replace(",}", "}")
}
