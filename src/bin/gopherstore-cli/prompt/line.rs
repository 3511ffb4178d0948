//! Lines of the prompt: parsing, hints and completion. Pure.

use crate::{
    command::{Command, OFFERS, OPTIONS, Offer},
    keys,
    lines::{self, Line},
    quote,
};

/// A parsed line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Nothing,
    Help,
    Exit,
    /// Turn the dump of frames on or off.
    Hex(bool),
    /// Turn the output of raw values on or off.
    Raw(bool),
    Run(Job),
}

/// A command with its prefixes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) command: Command,
    /// Name or address of another node that runs it.
    pub(super) node: Option<String>,
    /// Print the raw value.
    pub(super) is_raw: bool,
}

/// The words that only the prompt has, with their effects. They begin with a colon, so that no command has the same
/// name.
pub(super) const DIRECTIVES: [(&str, &str); 6] = [
    (
        ":on NODE COMMAND",
        "run COMMAND on another node, NAME or HOST:PORT",
    ),
    (":raw COMMAND", "print the value byte by byte, unescaped"),
    (":raw on|off", "do so from now on, or no more"),
    (":hex on|off", "dump every frame, sent (>) and received (<)"),
    (":help", "print this"),
    (":quit", "leave, as Ctrl-D does; Ctrl-C abandons a line"),
];

pub(super) fn parse(line: &[u8]) -> Result<Entry, String> {
    let mut words = lines::words(line)?;
    let (mut node, mut is_raw) = (None, false);
    loop {
        let first = lower(words.first());
        let is_alone = words.len() == 1;
        let has_prefix = node.is_some() || is_raw;
        match &*first {
            ":on" => {
                if words.len() < 3 {
                    return Err(
                        ":on takes a node and a command; write :on NODE COMMAND, such as :on n2 get k".to_owned(),
                    );
                }
                let rest = words.split_off(2);
                let name = words.pop().unwrap_or_default();
                words = rest;
                node = Some(String::from_utf8_lossy(&name).into_owned());
            }
            ":raw" => match switch(&words) {
                Some(is_on) if !has_prefix => return Ok(Entry::Raw(is_on)),
                _ if words.len() < 2 => {
                    return Err(
                        ":raw takes a command, or on or off; write :raw COMMAND, such as :raw get k"
                            .to_owned(),
                    );
                }
                _ => {
                    is_raw = true;
                    words.remove(0);
                }
            },
            ":hex" if !has_prefix => {
                return match switch(&words) {
                    Some(is_on) => Ok(Entry::Hex(is_on)),
                    None => Err(":hex takes on or off; write :hex on or :hex off".to_owned()),
                };
            }
            ":help" if is_alone && !has_prefix => return Ok(Entry::Help),
            ":quit" | ":exit" if is_alone && !has_prefix => return Ok(Entry::Exit),
            name if name.starts_with(':') => {
                return Err(format!(
                    "no such line with {}; :help shows those that there are",
                    quote::shown(name.as_bytes())
                ));
            }
            _ => break,
        }
    }
    match lines::parse(words)? {
        Line::Command(command) => Ok(Entry::Run(Job {
            command,
            node,
            is_raw,
        })),
        _ if node.is_some() || is_raw => {
            Err("only a command can follow, such as get k; :help lists them".to_owned())
        }
        Line::Nothing => Ok(Entry::Nothing),
        Line::Help => Ok(Entry::Help),
        Line::Exit => Ok(Entry::Exit),
    }
}

/// The second of two words, if it is `on` or `off`.
fn switch(words: &[Vec<u8>]) -> Option<bool> {
    match words {
        [_, word] if word.eq_ignore_ascii_case(b"on") => Some(true),
        [_, word] if word.eq_ignore_ascii_case(b"off") => Some(false),
        _ => None,
    }
}

fn lower(word: Option<&Vec<u8>>) -> String {
    word.map(|word| String::from_utf8_lossy(word).to_ascii_lowercase())
        .unwrap_or_default()
}

/// The names of the missing operands of `line`, as a hint behind it.
pub(super) fn hint(line: &str) -> Option<String> {
    let words = lines::words(line.as_bytes()).ok()?;
    let operands = operands_after(&words)?;
    let is_between = line.ends_with([' ', '\t']);
    (!words.is_empty() && !operands.is_empty()).then(|| {
        let space = if is_between { "" } else { " " };
        format!("{space}{}", operands.join(" "))
    })
}

/// Names of the operands after these words; `None` if they are no command.
fn operands_after(words: &[Vec<u8>]) -> Option<Vec<&'static str>> {
    let (_, rest) = words.split_first()?;
    let after_node = |words: &[Vec<u8>]| match words {
        [] => Some(vec!["COMMAND"]),
        words => operands_after(words),
    };
    match &*lower(words.first()) {
        ":on" => match rest {
            [] => Some(vec!["NODE", "COMMAND"]),
            [_, rest @ ..] => after_node(rest),
        },
        ":raw" if rest.is_empty() => Some(vec!["COMMAND|on|off"]),
        ":raw" if switch(words).is_some() => Some(Vec::new()),
        ":raw" => operands_after(rest),
        ":hex" if rest.is_empty() => Some(vec!["on|off"]),
        name => {
            let offer = OFFERS.iter().find(|offer| offer.name() == name)?;
            let mut operands = offer.operands().peekable();
            // Skips the given operands; there may be any number of options.
            for _ in 0..given(offer, rest) {
                operands.next_if(|operand| *operand != OPTIONS)?;
            }
            Some(operands.collect())
        }
    }
}

/// The number of operands among the words of a command, without its options and their values.
fn given(offer: &Offer, words: &[Vec<u8>]) -> usize {
    if !offer.takes_options() {
        return words.len();
    }
    let options = keys::options(offer.name());
    let (mut count, mut words) = (0, words.iter());
    while let Some(word) = words.next() {
        match options.iter().find(|(name, _)| name.as_bytes() == word) {
            Some((_, true)) => drop(words.next()),
            Some((_, false)) => {}
            None => count += 1,
        }
    }
    count
}

/// The options that may follow the words of a command.
fn options_after(words: &[Vec<u8>]) -> Vec<String> {
    let name = lower(words.first());
    let offer = OFFERS.iter().find(|offer| offer.name() == name);
    if !offer.is_some_and(Offer::takes_options) {
        return Vec::new();
    }
    let options = keys::options(&name);
    let is_value = words.last().is_some_and(|last| {
        let mut options = options.iter();
        options.any(|(name, takes_value)| *takes_value && name.as_bytes() == last)
    });
    let is_given = |name: &str| words.iter().any(|word| word == name.as_bytes());
    let rest = options
        .into_iter()
        .filter(|(name, _)| !is_value && !is_given(name));
    rest.map(|(name, _)| name).collect()
}

/// Completions of the last word of `line`: its start, and the possible words, each with a space behind it if more must
/// follow.
pub(super) fn completions(line: &str, nodes: &[String]) -> (usize, Vec<String>) {
    let start = line.rfind([' ', '\t']).map_or(0, |at| at + 1);
    let (before, begun) = line.split_at(start);
    let Ok(before) = lines::words(before.as_bytes()) else {
        return (start, Vec::new()); // within quotes
    };
    // Operands can be any words, so that options are offered only once one is begun.
    let is_free = |word: &String| begun.is_empty() && word.starts_with('-');
    let found = candidates(&before, nodes)
        .into_iter()
        .filter(|word| !is_free(word))
        .filter(|word| {
            let head = word.as_bytes().get(..begun.len());
            head.is_some_and(|head| head.eq_ignore_ascii_case(begun.as_bytes()))
        })
        .map(|mut word| {
            let mut words = before.clone();
            words.push(word.clone().into_bytes());
            if operands_after(&words).is_some_and(|operands| !operands.is_empty()) {
                word.push(' ');
            }
            word
        });
    (start, found.collect())
}

fn candidates(before: &[Vec<u8>], nodes: &[String]) -> Vec<String> {
    let commands = || {
        let names = OFFERS.iter().map(|offer| offer.name());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let also = |mut words: Vec<String>, more: &[&str]| {
        words.extend(more.iter().map(|&word| word.to_owned()));
        words
    };
    let Some((_, rest)) = before.split_first() else {
        return also(
            commands(),
            &["help", "exit", ":on", ":raw", ":hex", ":help", ":quit"],
        );
    };
    match (&*lower(before.first()), rest) {
        (":on", []) => nodes.to_vec(),
        (":on", [_]) => also(commands(), &[":raw"]),
        (":on", [_, rest @ ..]) => candidates(rest, nodes),
        (":raw", []) => also(commands(), &["on", "off", ":on"]),
        (":raw", rest) => candidates(rest, nodes),
        (":hex", []) => also(Vec::new(), &["on", "off"]),
        _ => options_after(before),
    }
}

/// The help for a terminal of this width in columns.
pub(super) fn help(columns: usize) -> String {
    let mut text = String::new();
    let entries = || {
        let offers = OFFERS.iter().map(|offer| (offer.synopsis, offer.meaning));
        offers.chain(DIRECTIVES)
    };
    let indent = entries()
        .map(|(synopsis, _)| synopsis.len() + 2)
        .max()
        .unwrap_or(0);
    for (synopsis, meaning) in entries() {
        if columns >= 72 {
            text.push_str(&format!("{synopsis:<indent$}{meaning}\n"));
        } else {
            text.push_str(&format!("{synopsis}\n"));
            wrap(&mut text, meaning, "  ", columns);
        }
    }
    text.push('\n');
    wrap(&mut text, lines::QUOTING, "", columns);
    wrap(&mut text, LONG_VALUES, "", columns);
    text
}

const LONG_VALUES: &str = "\
A long value is cut to a line: :raw get KEY prints all of it, gopherstore-cli get KEY > FILE in a shell keeps it. \
A read whose connection broke is asked once more; a write is never sent twice. \
A line that begins with a space is not kept in the history.";

/// Appends the words of `paragraph`, broken into lines.
fn wrap(text: &mut String, paragraph: &str, indent: &str, columns: usize) {
    // Longer lines are hard to read.
    let columns = columns.clamp(20, 100);
    let mut line = String::new();
    for word in paragraph.split_whitespace() {
        if !line.is_empty() && indent.len() + line.len() + 1 + word.len() >= columns {
            text.push_str(&format!("{indent}{line}\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    text.push_str(&format!("{indent}{line}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use gopherstore::wire::Opcode;

    fn get(node: Option<&str>, is_raw: bool) -> Result<Entry, String> {
        Ok(Entry::Run(Job {
            command: Command::new(Opcode::Get, b"k v".to_vec(), Vec::new()),
            node: node.map(str::to_owned),
            is_raw,
        }))
    }

    #[test]
    fn lines_are_told_apart() {
        for (line, expected) in [
            ("", Ok(Entry::Nothing)),
            ("# :quit", Ok(Entry::Nothing)),
            ("help", Ok(Entry::Help)),
            (":HELP", Ok(Entry::Help)),
            (":quit", Ok(Entry::Exit)),
            ("exit", Ok(Entry::Exit)),
            (":hex on", Ok(Entry::Hex(true))),
            (":hex OFF", Ok(Entry::Hex(false))),
            (":raw on", Ok(Entry::Raw(true))),
            (":raw off", Ok(Entry::Raw(false))),
            ("get 'k v'", get(None, false)),
            (":raw get 'k v'", get(None, true)),
            (":on n2 get 'k v'", get(Some("n2"), false)),
            (":on [::1]:1 :raw get 'k v'", get(Some("[::1]:1"), true)),
            (":raw :on n2 get 'k v'", get(Some("n2"), true)),
        ] {
            assert_eq!(parse(line.as_bytes()), expected, "{line}");
        }
        let set = Job {
            command: Command::new(Opcode::Set, b":on".to_vec(), b":raw".to_vec()),
            node: Some("n2".to_owned()),
            is_raw: false,
        };
        assert_eq!(parse(b":on n2 set :on :raw"), Ok(Entry::Run(set)));
    }

    #[test]
    fn errors_of_wrong_lines_say_what_to_write() {
        for (line, expected) in [
            (":on", "write :on NODE COMMAND"),
            (":on n2", "write :on NODE COMMAND"),
            (":raw", "write :raw COMMAND"),
            (":hex", "write :hex on"),
            (":hex yes", "write :hex on"),
            (":on n2 :hex on", "no such line"),
            (":on n2 help", "only a command"),
            (":raw exit", "only a command"),
            (":what", "no such line with :what; :help"),
            (":on n2 get", "write get KEY"),
            ("get \"k", "no closing \""),
        ] {
            let message = parse(line.as_bytes()).err().unwrap_or_default();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }

    #[test]
    fn hints_name_the_missing_operands() {
        for (line, expected) in [
            ("set", Some(" KEY VALUE")),
            ("SET ", Some("KEY VALUE")),
            ("set k", Some(" VALUE")),
            ("set \"k 1\" ", Some("VALUE")),
            ("set k v", None),
            ("set k v ", None),
            ("set k v w", None),
            ("se", None),
            ("", None),
            ("   ", None),
            ("get \"k", None),
            ("ping", None),
            ("# set", None),
            ("put k", Some(" VALUE [OPTIONS]")),
            ("put --if-equals old k ", Some("VALUE [OPTIONS]")),
            ("put k v --ttl 30s ", Some("[OPTIONS]")),
            ("incr k 1", Some(" [OPTIONS]")),
            ("expire k ", Some("TIME")),
            ("take", Some(" KEY [OPTIONS]")),
            (":on", Some(" NODE COMMAND")),
            (":on n2", Some(" COMMAND")),
            (":on n2 set ", Some("KEY VALUE")),
            (":raw", Some(" COMMAND|on|off")),
            (":raw get", Some(" KEY")),
            (":raw on", None),
            (":hex ", Some("on|off")),
            (":hex on", None),
        ] {
            assert_eq!(hint(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn words_complete_to_the_words_that_may_follow() {
        let nodes = ["n1".to_owned(), "n2".to_owned(), "other".to_owned()];
        for (line, start, expected) in [
            ("se", 0, vec!["set "]),
            ("PI", 0, vec!["ping"]),
            ("s", 0, vec!["set ", "sync ", "scan ", "status"]),
            (":", 0, vec![":on ", ":raw ", ":hex ", ":help", ":quit"]),
            (":on ", 4, vec!["n1 ", "n2 ", "other "]),
            (":on o", 4, vec!["other "]),
            (":on n2 g", 7, vec!["get "]),
            (":on n2 :", 7, vec![":raw "]),
            (":raw o", 5, vec!["on", "off"]),
            (":raw :on n", 9, vec!["n1 ", "n2 "]),
            (":hex o", 5, vec!["on", "off"]),
            ("get k", 4, vec![]),
            ("get --", 4, vec![]),
            ("put k v ", 8, vec![]),
            ("put k v --if-a", 8, vec!["--if-absent "]),
            ("put --if-absent k v --if-a", 20, vec![]),
            ("put k v --ttl --if-a", 14, vec![]),
            (":on n2 take k --n", 14, vec!["--no-value "]),
            ("set \"a ", 7, vec![]),
            ("\u{e4}", 0, vec![]),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(completions(line, &nodes), (start, expected), "{line}");
        }
    }

    #[test]
    fn the_help_names_everything_and_fits_narrow_terminals() {
        for columns in [40, 72, 80, 200] {
            let text = help(columns);
            let offers = OFFERS.iter().map(|offer| offer.synopsis);
            for synopsis in offers.chain(DIRECTIVES.map(|(synopsis, _)| synopsis)) {
                assert!(text.contains(synopsis), "{text}");
            }
            let width = text.lines().map(str::len).max();
            assert!(width < Some(columns), "{text}");
        }
    }
}
