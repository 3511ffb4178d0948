//! `scan`: prints the keys of a node, or its entries.

use argh::{ArgsInfo, FromArgs};
use gopherstore::Client;
use gopherstore::arguments::{self, Bytes};
use gopherstore::client::{Error, ScanItem, ScanOptions};
use gopherstore::wire::Opcode;
use serde_json::{Map, Value, json};

use crate::{
    ListForm,
    context::Context,
    list_form, mistake, quote,
    report::{self, Failure, Outcome},
    tail::insert_bytes,
    write_out,
};

/// Bytes of output that are gathered before they are written.
const GATHERED_BYTES: usize = 32 << 10;

/// Print the keys of a node, or those that begin with PREFIX, in no order.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "scan", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} user\n\
        {command_name} --values --addr 127.0.0.1:8001\n\
        {command_name} user --count\n\
        {command_name} -0 user | xargs -0 -n 1 gopherstore-cli get\n\
        {command_name} user -w json | head -n 1",
    note = "A line is a key, or with --values a key and its value, each in double quotes where it is empty or could\n\
        be read otherwise, as line by line. -0 writes every key, and every value, as it is, with a zero byte\n\
        behind it. Into a json object goes key, or key_hex where the key is not UTF-8, so for the value, and\n\
        deadline where the key expires, in ms since 1970.\n\
        Each key that exists throughout the scan is printed exactly once, whatever clients write meanwhile.\n\
        If the connection is lost, the command connects again and goes on. After a restart of the node it\n\
        cannot, and fails.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Scan {
    /// first bytes of the keys; without it all keys
    #[argh(positional, from_str_fn(arguments::bytes))]
    prefix: Option<Bytes>,
    /// print the values too
    #[argh(switch)]
    values: bool,
    /// print only the number of keys
    #[argh(switch)]
    count: bool,
    /// end every key, and every value, with a zero byte, and quote nothing; of keys that have zero bytes use -w json
    #[argh(switch, short = '0')]
    null: bool,
    /// lines (default) or json: an object on a line for each key
    #[argh(
        option,
        short = 'w',
        from_str_fn(list_form),
        arg_name = "FORM",
        default = "ListForm::Lines"
    )]
    write_out: ListForm,
}

pub(crate) fn run(command: Scan, context: &Context) -> Result<Outcome, Failure> {
    let is_json = command.write_out == ListForm::Json;
    if command.count && (command.values || command.null) {
        return Err(mistake(
            "--count with --values or --null; it prints a number alone, so leave the others out",
        ));
    }
    if command.null && is_json {
        return Err(mistake("--null with -w json; leave one of them out"));
    }
    let mut client = context.client()?;
    let options = ScanOptions {
        prefix: command.prefix.clone().unwrap_or_default(),
        values: command.values,
        ..ScanOptions::default()
    };
    let failed = |error| failure(&error, context);
    if command.count {
        let count = count(&mut client, options).map_err(failed)?;
        let text = if is_json {
            json!({ "count": count }).to_string()
        } else {
            count.to_string()
        };
        return write_out(format!("{text}\n").as_bytes()).map(|_| Outcome::Done);
    }
    let mut out = Vec::new();
    for item in client.scan(options) {
        let item = match item {
            Ok(item) => item,
            Err(error) => {
                write_out(&out)?;
                return Err(failure(&error, context));
            }
        };
        if command.null {
            push_raw(&mut out, &item);
        } else if is_json {
            out.extend_from_slice(object(&item).to_string().as_bytes());
            out.push(b'\n');
        } else {
            out.extend_from_slice(line(&item).as_bytes());
            out.push(b'\n');
        }
        if out.len() >= GATHERED_BYTES {
            if !write_out(&out)? {
                return Ok(Outcome::Done);
            }
            out.clear();
        }
    }
    write_out(&out).map(|_| Outcome::Done)
}

/// The number of keys that a scan returns.
pub(crate) fn count(client: &mut Client, options: ScanOptions) -> Result<u64, Error> {
    let mut count = 0;
    for item in client.scan(options) {
        item?;
        count += 1;
    }
    Ok(count)
}

/// The failure of a scan.
pub(crate) fn failure(error: &Error, context: &Context) -> Failure {
    report::failure(error, Opcode::Scan, context.node.as_deref())
}

/// All keys with a prefix as lines.
pub(crate) fn lines(client: &mut Client, prefix: &[u8]) -> Result<String, Error> {
    let options = ScanOptions {
        prefix: prefix.to_vec(),
        ..ScanOptions::default()
    };
    let items: Result<Vec<String>, Error> = client
        .scan(options)
        .map(|item| item.map(|item| line(&item)))
        .collect();
    Ok(items?.join("\n"))
}

fn line(item: &ScanItem) -> String {
    let key = quote::word(&item.key);
    match &item.value {
        Some(value) => format!("{key} {}", quote::word(value)),
        None => key,
    }
}

fn push_raw(out: &mut Vec<u8>, item: &ScanItem) {
    for bytes in std::iter::once(&item.key).chain(&item.value) {
        out.extend_from_slice(bytes);
        out.push(0);
    }
}

fn object(item: &ScanItem) -> Value {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", &item.key);
    if let Some(value) = &item.value {
        insert_bytes(&mut object, "value", value);
    }
    if let Some(deadline) = item.deadline {
        object.insert("deadline".to_owned(), json!(deadline));
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_two_words_zero_bytes_or_an_object() {
        let item = |key: &[u8], value: Option<&[u8]>, deadline| ScanItem {
            key: key.to_vec(),
            value: value.map(<[u8]>::to_vec),
            deadline,
        };
        for (item, text, json) in [
            (item(b"k", None, None), "k", r#"{"key":"k"}"#),
            (
                item(b"a b", Some(b""), Some(7)),
                r#""a b" """#,
                r#"{"deadline":7,"key":"a b","value":""}"#,
            ),
            (
                item(b"'k", Some(b"\xff"), None),
                r#""'k" "\xff""#,
                r#"{"key":"'k","value_hex":"ff"}"#,
            ),
        ] {
            assert_eq!(line(&item), text);
            let mut words = vec![item.key.clone()];
            words.extend(item.value.clone());
            assert_eq!(quote::words(line(&item).as_bytes()), Ok(words));
            let expected: Value = serde_json::from_str(json).unwrap_or_default();
            assert_eq!(object(&item), expected);
        }
        let mut out = Vec::new();
        push_raw(&mut out, &item(b"k", Some(b"v\n"), None));
        push_raw(&mut out, &item(b"", None, None));
        assert_eq!(out, b"k\0v\n\0\0");
    }
}
