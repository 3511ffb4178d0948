//! The man page of a program: its help, and that of all its commands, on one page.

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality};
use roff::{Roff, bold, italic, roman};

use super::NAME_IN_EXAMPLES;

/// The page in ROFF (`man` macros). It has no date, so that the same program always makes the same page.
pub(super) fn page(program: &str, info: &CommandInfoWithArgs) -> String {
    let mut page = Roff::new();
    let source = format!("GopherStore {}", env!("CARGO_PKG_VERSION"));
    let title = program.to_uppercase();
    page.control("TH", [&*title, "1", " ", &source, "User Commands"]);
    page.control("SH", ["NAME"]);
    page.text([roman(format!("{program} - {}", phrase(info.description)))]);
    page.control("SH", ["SYNOPSIS"]);
    synopsis(&mut page, program, info);
    page.control("SH", ["DESCRIPTION"]);
    paragraphs(&mut page, info.description);
    for note in info.notes {
        page.control("PP", []);
        paragraphs(&mut page, note);
    }
    page.control("SH", ["OPTIONS"]);
    operands(&mut page, info);
    page.control("TP", []);
    page.text([bold("-h"), roman(", "), bold("--help")]);
    meaning(
        &mut page,
        "print the help, after a command that of the command",
    );
    if !info.commands.is_empty() {
        page.control("SH", ["COMMANDS"]);
    }
    for command in &info.commands {
        page.control("SS", [command.name]);
        let name = format!("{program} {}", command.name);
        synopsis(&mut page, &name, &command.command);
        page.control("PP", []);
        paragraphs(&mut page, command.command.description);
        operands(&mut page, &command.command);
        for note in command.command.notes {
            page.control("PP", []);
            paragraphs(&mut page, note);
        }
        exit_codes(&mut page, &command.command);
        if !command.command.examples.is_empty() {
            page.control("PP", []);
            examples(&mut page, &name, &command.command);
        }
    }
    if !info.error_codes.is_empty() {
        page.control("SH", ["EXIT STATUS"]);
        exit_codes(&mut page, info);
    }
    if !info.examples.is_empty() {
        page.control("SH", ["EXAMPLES"]);
        examples(&mut page, program, info);
    }
    // The crate writes a backslash as two, which only some formatters read as one.
    page.render().replace("\\\\", "\\e")
}

/// A description for the line of NAME: no capital, no full stop, one line.
fn phrase(description: &str) -> String {
    let line: Vec<&str> = description.split_whitespace().collect();
    let line = line.join(" ");
    let line = line.trim_end_matches('.');
    let mut letters = line.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// Text that the formatter fills. An empty line begins a paragraph.
fn paragraphs(page: &mut Roff, text: &str) {
    for (at, paragraph) in text.trim().split("\n\n").enumerate() {
        if at > 0 {
            page.control("PP", []);
        }
        let lines = paragraph.lines().map(str::trim);
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        page.text([roman(lines.join("\n"))]);
    }
}

fn synopsis(page: &mut Roff, name: &str, info: &CommandInfoWithArgs) {
    let mut words = vec![bold(name)];
    if info.flags.iter().any(|flag| !flag.hidden) {
        words.extend([roman(" ["), italic("options"), roman("]")]);
    }
    for positional in info.positionals.iter().filter(|it| !it.hidden) {
        let (open, close) = brackets(&positional.optionality);
        words.extend([
            roman(format!(" {open}")),
            italic(positional.name),
            roman(close),
        ]);
    }
    if !info.commands.is_empty() {
        words.extend([roman(" ["), italic("command"), roman("]")]);
    }
    page.text(words);
}

fn brackets(optionality: &Optionality) -> (&'static str, &'static str) {
    match optionality {
        Optionality::Required => ("", ""),
        Optionality::Optional => ("[", "]"),
        Optionality::Repeating | Optionality::Greedy => ("[", "...]"),
    }
}

/// Positionals and options with their descriptions.
fn operands(page: &mut Roff, info: &CommandInfoWithArgs) {
    for positional in info.positionals.iter().filter(|it| !it.hidden) {
        page.control("TP", []);
        page.text([italic(positional.name)]);
        meaning(page, positional.description);
    }
    // Every command has --help; the page has it once.
    let is_shown = |flag: &&FlagInfo<'static>| !flag.hidden && flag.long != "--help";
    for flag in info.flags.iter().filter(is_shown) {
        page.control("TP", []);
        page.text(option(flag));
        meaning(page, flag.description);
    }
}

/// The text after a name; without it the next name would take its place.
fn meaning(page: &mut Roff, text: &str) {
    let text = if text.trim().is_empty() { "-" } else { text };
    page.text([roman(text)]);
}

fn option(flag: &FlagInfo<'static>) -> Vec<roff::Inline> {
    let mut words = Vec::new();
    if let Some(short) = flag.short {
        words.extend([bold(format!("-{short}")), roman(", ")]);
    }
    words.push(bold(flag.long));
    if let FlagInfoKind::Option { arg_name } = flag.kind {
        words.extend([roman(" "), italic(arg_name)]);
    }
    words
}

fn exit_codes(page: &mut Roff, info: &CommandInfoWithArgs) {
    for error in info.error_codes {
        page.control("TP", []);
        page.text([bold(error.code.to_string())]);
        meaning(page, error.description);
    }
}

/// Examples, line by line as they are typed.
fn examples(page: &mut Roff, name: &str, info: &CommandInfoWithArgs) {
    for example in info.examples {
        page.control("nf", []);
        page.text([roman(example.replace(NAME_IN_EXAMPLES, name))]);
        page.control("fi", []);
    }
}
