//! Command lines of both binaries, read with `argh`.
//!
//! `argh` alone takes `-5` for an option and `help` for a request for help in any place. It refuses `--addr=X`, an
//! option after the subcommand, and any argument that is not UTF-8, and exits with 1 on a mistake. So
//! [`Program::parse`] takes the options from the structure, and rewrites a command line to a form that `argh` reads
//! correctly:
//!
//! 1. the program's own options and switches first, whatever their place, `--name=value` split in two;
//! 2. then the command, and its options and switches;
//! 3. every value, of an option or on its own, encoded as `=` and hexadecimal digits, so that none looks like an
//!    option or a command, and any byte passes. [`bytes`], [`text`], [`path`], [`parsed`], [`one_of`] and [`whole`]
//!    decode them; each field of the `argh` structure that is not a switch names one as its `from_str_fn`.
//!
//! An option is a known name. `-` and a digit is a value (`set k -5`), and so is `-` alone. Anything else that begins
//! with `-` is a mistake and is reported as one, unless it comes after `--`.
//!
//! The man page and the shells' completions are made from the same structure: `--generate man`,
//! `--generate complete-bash` and so on. The completions run the program with `--complete WORD...`, which is not meant
//! to be typed.
//!
//! ```
//! use std::path::PathBuf;
//!
//! use gopherstore::arguments::{self, Exit, Program};
//!
//! const PROGRAM: Program = Program {
//!     name: "greet",
//! };
//!
//! /// Says hello.
//! #[derive(argh::ArgsInfo, argh::FromArgs)]
//! #[argh(help_triggers("-h", "--help"))]
//! struct Arguments {
//!     /// where names are
//!     #[argh(option, from_str_fn(arguments::path))]
//!     config: PathBuf,
//!     /// shout
//!     #[argh(switch)]
//!     loud: bool,
//!     /// print the version
//!     #[argh(switch, short = 'V')]
//!     #[allow(dead_code)]
//!     version: bool, // for the help text alone: `parse` answers it
//! }
//!
//! let arguments: Arguments = PROGRAM.parse(["--config=names", "--loud"].map(Into::into))?;
//! assert_eq!(arguments.config, PathBuf::from("names"));
//! assert!(arguments.loud);
//!
//! // In `main`: `Err(exit) => return exit.finish(PROGRAM.name, 1)`.
//! let exit = PROGRAM.parse::<Arguments>(["--colour".into()]).err();
//! assert!(matches!(exit, Some(Exit::Usage(message)) if message.contains("unknown option --colour")));
//! # Ok::<(), Exit>(())
//! ```

mod complete;
mod manual;

use std::{
    ffi::{OsStr, OsString},
    fmt,
    io::{self, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
};

use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfoKind};

/// Exit code of a usage error.
pub const USAGE: u8 = 2;

/// An argument that need not be text. Under this name `argh` takes it for one value; it reads `Vec` as 'any number of'.
pub type Bytes = Vec<u8>;

/// The option that prints a man page or completions, and its values.
const GENERATE: &str = "--generate";
const GENERATED: &str = "man|complete-bash|complete-zsh|complete-fish";

/// The text in examples that `argh` replaces by the names of the program and the command.
const NAME_IN_EXAMPLES: &str = "{command_name}";

/// The start of an encoded value.
const MARK: char = '=';

/// A program with a command line that an `argh` structure describes. Every program has `--help`, `-h`, `--version` and
/// `-V`, whatever the structure says. `--generate` works in programs that have an option of this name.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// As it is started.
    pub name: &'static str,
}

/// The options and commands of a structure, as `argh` reports them.
struct Vocabulary {
    info: CommandInfoWithArgs,
    own: Flags,
    commands: Vec<(String, Flags)>,
}

/// Names of options, with their dashes, and whether each takes a value.
type Flags = Vec<(String, bool)>;

impl Vocabulary {
    fn of<T: ArgsInfo>() -> Vocabulary {
        let flags = |info: &CommandInfoWithArgs| {
            let flags = info.flags.iter();
            flags
                .flat_map(|flag| {
                    let takes_value = matches!(flag.kind, FlagInfoKind::Option { .. });
                    let short = flag.short.map(|letter| format!("-{letter}"));
                    let names = short.into_iter().chain([flag.long.to_owned()]);
                    names.map(move |name| (name, takes_value))
                })
                .collect()
        };
        let info = T::get_args_info();
        let commands = info.commands.iter();
        Vocabulary {
            own: flags(&info),
            commands: commands
                .map(|command| (command.name.to_owned(), flags(&command.command)))
                .collect(),
            info,
        }
    }

    fn commands(&self) -> impl Iterator<Item = &str> {
        self.commands.iter().map(|(name, _)| name.as_str())
    }

    fn find_command(&self, name: &OsStr) -> Option<&(String, Flags)> {
        let mut commands = self.commands.iter();
        commands.find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name.as_bytes()))
    }

    /// The option of this name, the program's own or a command's. `command` is asked first: two may mean different
    /// things by one name.
    fn find(&self, command: Option<&OsStr>, name: &[u8]) -> Option<(&str, bool)> {
        let in_command = command.and_then(|command| self.find_command(command));
        let flags = std::iter::once(&self.own)
            .chain(in_command.map(|(_, flags)| flags))
            .chain(self.commands.iter().map(|(_, flags)| flags));
        let mut known = flags.flatten();
        known
            .find(|(known, _)| known.as_bytes() == name)
            .map(|(name, takes_value)| (name.as_str(), *takes_value))
    }
}

/// The reason why there is nothing to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `--help`: a text for standard output, and success.
    Help(String),
    /// `--version`: the same.
    Version(String),
    /// A mistake in one line, which says what to do next: for standard error, and exit code [`USAGE`].
    Usage(String),
}

impl Exit {
    /// Prints the text and returns the exit code for `main`: `unwritten` if the text cannot be written, such as a man
    /// page to a full disk.
    #[must_use]
    pub fn finish(&self, program: &str, unwritten: u8) -> ExitCode {
        match self {
            // Without candidates nothing is printed, not even an empty line.
            Exit::Help(text) | Exit::Version(text) if text.is_empty() => ExitCode::SUCCESS,
            Exit::Help(text) | Exit::Version(text) => {
                let text = format!("{}\n", text.trim_end());
                let mut out = io::stdout().lock();
                match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                    // The reader has closed the output, so this is no failure.
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                        drop(writeln!(
                            io::stderr(),
                            "{program}: cannot write to standard output: {error}; make room there and try again"
                        ));
                        ExitCode::from(unwritten)
                    }
                    _ => ExitCode::SUCCESS,
                }
            }
            Exit::Usage(message) => {
                drop(writeln!(io::stderr(), "{program}: {message}"));
                ExitCode::from(USAGE)
            }
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Help(text) | Exit::Version(text) | Exit::Usage(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Exit {}

impl Program {
    /// Reads a command line, given without the program's own name.
    ///
    /// # Errors
    ///
    /// When there is nothing to run: help or the version was asked for, or there is a mistake.
    pub fn parse<T: argh::FromArgs + ArgsInfo>(
        &self,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<T, Exit> {
        let mut arguments = arguments.into_iter().peekable();
        if arguments.next_if(|first| first == "--complete").is_some() {
            let words: Vec<OsString> = arguments.collect();
            let info = T::get_args_info();
            return Err(Exit::Help(complete::candidates(&info, &words)));
        }
        let arguments = self.normalise(&Vocabulary::of::<T>(), arguments)?;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        T::from_args(&[self.name], &arguments).map_err(|exit| match exit.status {
            Ok(()) => Exit::Help(exit.output),
            Err(()) => self.mistake(&one_line(&exit.output)),
        })
    }

    /// A usage error that points to the help; also for what only the program itself can judge.
    #[must_use]
    pub fn mistake(&self, what: &str) -> Exit {
        Exit::Usage(format!("{what}; see {} --help", self.name))
    }

    /// The texts that `--generate` can make.
    fn generate(&self, info: &CommandInfoWithArgs, what: &OsStr) -> Exit {
        let text = match what.to_str() {
            Some("man") => Some(manual::page(self.name, info)),
            Some(what) => what
                .strip_prefix("complete-")
                .and_then(|shell| complete::script(shell, self.name)),
            None => None,
        };
        text.map_or_else(
            || {
                let what = show(what.as_bytes());
                self.mistake(&format!(
                    "nothing to generate by the name of {what}; there are {}",
                    GENERATED.replace('|', ", ")
                ))
            },
            Exit::Help,
        )
    }

    /// Steps 1 to 3 of the module's text.
    fn normalise(
        &self,
        vocabulary: &Vocabulary,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Vec<String>, Exit> {
        let mut options: Vec<(&str, Option<String>)> = Vec::new();
        let mut command: Option<OsString> = None;
        let mut positionals = Vec::new();
        let (mut help, mut version, mut options_ended) = (false, false, false);
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let bytes = argument.as_bytes();
            if options_ended || !looks_like_option(bytes) {
                match command {
                    None if !vocabulary.commands.is_empty() => command = Some(argument),
                    _ => positionals.push(argument),
                }
                continue;
            }
            let (name, value) = match bytes.iter().position(|&byte| byte == b'=') {
                Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]))),
                None => (bytes, None),
            };
            let switch = |has_value: Option<_>| match has_value {
                Some(_) => Err(self.mistake(&format!("{} takes no value", show(name)))),
                None => Ok(true),
            };
            match name {
                b"--" if value.is_none() => options_ended = true,
                b"-h" | b"--help" => help = switch(value)?,
                b"-V" | b"--version" => version = switch(value)?,
                _ => match vocabulary.find(command.as_deref(), name) {
                    Some((known, false)) => {
                        switch(value)?;
                        options.push((known, None));
                    }
                    Some((known, true)) => {
                        let value = match value {
                            Some(value) => value.to_owned(),
                            None => arguments
                                .next()
                                .filter(|value| !is_option(vocabulary, value))
                                .ok_or_else(|| self.mistake(&format!("no value after {known}")))?,
                        };
                        if known == GENERATE {
                            return Err(self.generate(&vocabulary.info, &value));
                        }
                        options.push((known, Some(encode(value.as_bytes()))));
                    }
                    None => {
                        return Err(self.mistake(&format!(
                            "unknown option {}; if it is meant as a value, put -- before it",
                            show(name)
                        )));
                    }
                },
            }
        }
        // `help` and `help COMMAND`; after a command it is a word like any other.
        let asks = |argument: &OsString| argument.as_bytes().eq_ignore_ascii_case(b"help");
        if command.as_ref().is_some_and(asks) {
            help = true;
            command = positionals.drain(..).next();
        } else if vocabulary.commands.is_empty() && positionals.first().is_some_and(asks) {
            help = true;
        }
        let command = match command {
            None => None,
            Some(name) => Some(vocabulary.find_command(&name).ok_or_else(|| {
                let known: Vec<&str> = vocabulary.commands().collect();
                self.mistake(&format!(
                    "unknown command {}; there are {}",
                    show(name.as_bytes()),
                    known.join(", ")
                ))
            })?),
        };
        if help {
            // Without other arguments, which may be incomplete.
            let command = command.map(|(name, _)| name.clone());
            return Ok(command.into_iter().chain(["--help".to_owned()]).collect());
        }
        if version {
            return Err(Exit::Version(format!(
                "{} {}",
                self.name,
                env!("CARGO_PKG_VERSION")
            )));
        }
        let has = |flags: &Flags, name: &str| flags.iter().any(|(known, _)| known == name);
        let (own, others): (Vec<_>, Vec<_>) = options
            .into_iter()
            .partition(|(name, _)| has(&vocabulary.own, name));
        let misplaced =
            |(name, _): &&(&str, _)| !command.is_some_and(|(_, flags)| has(flags, name));
        if let Some((name, _)) = others.iter().find(misplaced) {
            let commands = vocabulary.commands.iter();
            let homes = commands.filter(|(_, flags)| has(flags, name));
            let homes: Vec<&str> = homes.map(|(command, _)| command.as_str()).collect();
            return Err(self.mistake(&format!("{name} goes with {} alone", homes.join(" or "))));
        }
        let positionals = positionals.iter().map(|value| encode(value.as_bytes()));
        Ok(flat(own)
            .chain(command.map(|(name, _)| name.clone()))
            .chain(flat(others))
            .chain(positionals)
            .collect())
    }
}

/// Options as `argh` reads them.
fn flat(options: Vec<(&str, Option<String>)>) -> impl Iterator<Item = String> {
    let words = |(name, value): (&str, _)| std::iter::once(name.to_owned()).chain(value);
    options.into_iter().flat_map(words)
}

/// Whether `argument` names an option. It is then hardly meant as the value of the option before it.
fn is_option(vocabulary: &Vocabulary, argument: &OsStr) -> bool {
    let own = ["-h", "--help", "-V", "--version", "--"];
    own.iter()
        .any(|name| name.as_bytes() == argument.as_bytes())
        || vocabulary.find(None, argument.as_bytes()).is_some()
}

/// Whether an argument begins like an option: with a dash, and neither alone nor followed by a digit.
fn looks_like_option(bytes: &[u8]) -> bool {
    match bytes {
        [b'-'] => false,
        [b'-', b'.', digit, ..] | [b'-', digit, ..] => !digit.is_ascii_digit(),
        _ => false,
    }
}

/// An argument as a message shows it: on one line, whatever its bytes.
fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::from(MARK);
    for byte in bytes {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

fn decode(encoded: &str) -> Option<Vec<u8>> {
    let digits = encoded.strip_prefix(MARK)?;
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

/// A message of `argh` in the form of this project's errors: one line, lower case, no full stop, values as typed.
fn one_line(output: &str) -> String {
    let words: Vec<String> = output
        .split_whitespace()
        .map(|word| {
            let bare = word.trim_matches(['\'', ':', '"']);
            match decode(bare) {
                Some(bytes) => word.replacen(bare, &show(&bytes), 1),
                None => word.to_owned(),
            }
        })
        .collect();
    let line = words.join(" ");
    let line = line.trim_end_matches('.');
    for (theirs, ours) in [
        ("Required positional arguments not provided:", "missing"),
        ("Required options not provided:", "missing"),
        ("Unrecognized argument:", "one argument too many:"),
    ] {
        if let Some(rest) = line.strip_prefix(theirs) {
            return format!("{ours}{rest}");
        }
    }
    let mut letters = line.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// The bytes of an argument, whatever they are.
///
/// # Errors
///
/// Never, for arguments from [`Program::parse`].
pub fn bytes(encoded: &str) -> Result<Bytes, String> {
    decode(encoded).ok_or_else(|| "not as Program::parse encodes a value".to_owned())
}

/// An argument that must be text.
///
/// # Errors
///
/// When it is not UTF-8.
pub fn text(encoded: &str) -> Result<String, String> {
    String::from_utf8(bytes(encoded)?).map_err(|_| "not UTF-8".to_owned())
}

/// An argument that names a file.
///
/// # Errors
///
/// As [`bytes`].
pub fn path(encoded: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(OsString::from_vec(bytes(encoded)?)))
}

/// An argument that is read as a `T`.
///
/// # Errors
///
/// When it is not UTF-8, or not a `T`.
pub fn parsed<T: FromStr<Err: fmt::Display>>(encoded: &str) -> Result<T, String> {
    text(encoded)?
        .parse()
        .map_err(|error: T::Err| error.to_string())
}

/// Decodes one of some words, and returns its meaning.
///
/// # Errors
///
/// When it is none of them: which there are. For `argh`, which puts the option's name before it.
pub fn one_of<T: Copy>(encoded: &str, words: &[(&str, T)]) -> Result<T, String> {
    let text = text(encoded)?;
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, meant)| *meant).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        match known.split_last() {
            Some((last, others)) if !others.is_empty() => {
                format!("there are {} and {last}", others.join(", "))
            }
            _ => format!("there is {}", known.concat()),
        }
    })
}

/// Decodes a whole number from `min` to `max`.
///
/// # Errors
///
/// When it is none, or not of these: which they are. For `argh`, which puts the option's name before it.
pub fn whole<T>(encoded: &str, min: T, max: T) -> Result<T, String>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    match text(encoded)?.parse() {
        Ok(number) if (&min..=&max).contains(&&number) => Ok(number),
        _ => Err(format!("write a whole number from {min} to {max}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Program = Program { name: "prog" };

    #[test]
    fn a_value_that_is_not_one_of_those_allowed_is_told_which_are() {
        let words = [("table", 1), ("json", 2), ("csv", 3)];
        assert_eq!(one_of(&encode(b"json"), &words), Ok(2));
        let message = one_of(&encode(b"xml"), &words);
        assert_eq!(message, Err("there are table, json and csv".to_owned()));
        assert_eq!(whole(&encode(b"7"), 1, 9_u64), Ok(7));
        for wrong in ["0", "10", "-1", "x", "", "99999999999999999999999"] {
            let message = whole(&encode(wrong.as_bytes()), 1, 9_u64);
            let expected = "write a whole number from 1 to 9".to_owned();
            assert_eq!(message, Err(expected), "{wrong}");
        }
    }

    /// A program.
    #[derive(argh::ArgsInfo, argh::FromArgs, Debug, PartialEq)]
    #[argh(help_triggers("-h", "--help"))]
    struct Arguments {
        /// an address
        #[argh(option, from_str_fn(text))]
        addr: Option<String>,
        /// a number
        #[argh(option, short = 'c', from_str_fn(parsed))]
        count: Option<u8>,
        /// a switch
        #[argh(switch)]
        hex: bool,
        #[argh(subcommand)]
        command: Option<Command>,
    }

    #[derive(argh::ArgsInfo, argh::FromArgs, Debug, PartialEq)]
    #[argh(subcommand)]
    enum Command {
        Set(Set),
        Get(Get),
    }

    /// Stores.
    #[derive(argh::ArgsInfo, argh::FromArgs, Debug, PartialEq)]
    #[argh(subcommand, name = "set", help_triggers("-h", "--help"))]
    struct Set {
        #[argh(positional, from_str_fn(bytes))]
        key: Bytes,
        #[argh(positional, from_str_fn(bytes))]
        value: Bytes,
    }

    /// Reads.
    #[derive(argh::ArgsInfo, argh::FromArgs, Debug, PartialEq)]
    #[argh(subcommand, name = "get", help_triggers("-h", "--help"))]
    struct Get {
        #[argh(positional, from_str_fn(bytes))]
        key: Bytes,
        /// print it raw
        #[argh(switch)]
        raw: bool,
    }

    fn parse(arguments: &[&str]) -> Result<Arguments, Exit> {
        PROGRAM.parse(arguments.iter().map(OsString::from))
    }

    fn set(value: &str) -> Option<Command> {
        Some(Command::Set(Set {
            key: b"k".to_vec(),
            value: value.as_bytes().to_vec(),
        }))
    }

    fn command(arguments: &[&str]) -> Result<Option<Command>, Exit> {
        parse(arguments).map(|arguments| arguments.command)
    }

    fn mistake(arguments: &[&str]) -> String {
        match parse(arguments) {
            Err(Exit::Usage(message)) => message,
            other => format!("no usage error: {other:?}"),
        }
    }

    #[test]
    fn values_that_look_like_options_or_commands_are_values() {
        for value in [
            "-5", "-.5", "-", "", "help", "get", "=41", "-1x", "a b", "'",
        ] {
            assert_eq!(command(&["set", "k", value]), Ok(set(value)), "{value}");
        }
        for value in ["--weird", "-x", "--", "--hex", "--help", "-h", "-V"] {
            let arguments = ["set", "k", "--", value];
            assert_eq!(command(&arguments), Ok(set(value)), "{value}");
        }
        let help = Command::Get(Get {
            key: b"help".to_vec(),
            raw: false,
        });
        assert_eq!(command(&["get", "help"]), Ok(Some(help)));
        assert_eq!(command(&["--", "set", "k", "-x"]), Ok(set("-x")));
        assert_eq!(command(&["SET", "k", "v"]), Ok(set("v")));
    }

    #[test]
    fn options_may_stand_anywhere_and_be_joined() {
        let expected = Arguments {
            addr: Some("h:1".to_owned()),
            count: Some(7),
            hex: true,
            command: set("v"),
        };
        for line in [
            "--addr h:1 --count 7 --hex set k v",
            "--addr=h:1 --count=7 --hex set k v",
            "set k v --addr=h:1 --hex --count 7",
            "set --hex k --addr h:1 v --count=7",
            "-c 7 set k v --addr h:1 --hex",
            "set k v --addr h:1 --hex -c=7",
        ] {
            let arguments: Vec<&str> = line.split(' ').collect();
            assert_eq!(parse(&arguments).as_ref(), Ok(&expected), "{line}");
        }
        for line in ["get k --raw", "--raw get k", "get --raw k --hex"] {
            let arguments: Vec<&str> = line.split(' ').collect();
            let key = b"k".to_vec();
            let raw = Command::Get(Get { key, raw: true });
            assert_eq!(command(&arguments), Ok(Some(raw)), "{line}");
        }
        let addr = |line: &[&str]| parse(line).map(|arguments| arguments.addr);
        assert_eq!(addr(&["--addr=a=b"]), Ok(Some("a=b".to_owned())));
        assert_eq!(addr(&["--addr="]), Ok(Some(String::new())));
        assert_eq!(addr(&["--addr", "-x"]), Ok(Some("-x".to_owned())));
    }

    #[test]
    fn bytes_that_are_not_utf_8_pass_where_bytes_belong() {
        let raw = || OsString::from_vec(b"\xff\n'".to_vec());
        let arguments: Result<Arguments, Exit> = PROGRAM.parse(["get".into(), raw()]);
        let get = Command::Get(Get {
            key: b"\xff\n'".to_vec(),
            raw: false,
        });
        assert_eq!(arguments.map(|arguments| arguments.command), Ok(Some(get)));
        let text: Result<Arguments, Exit> = PROGRAM.parse(["--addr".into(), raw()]);
        let Err(Exit::Usage(message)) = text else {
            unreachable!("an address of such bytes")
        };
        assert_eq!(
            message,
            r"error parsing option '--addr' with value '\xff\n\'': not UTF-8; see prog --help"
        );
        assert_eq!(path("=ff"), Ok(PathBuf::from(OsStr::from_bytes(b"\xff"))));
    }

    #[test]
    fn a_mistake_is_one_line_that_says_what_to_do() {
        for (line, expected) in [
            (
                "set k --weird=1",
                "unknown option --weird; if it is meant as a value, put -- before it",
            ),
            (
                "-x",
                "unknown option -x; if it is meant as a value, put -- before it",
            ),
            ("--hex=yes", "--hex takes no value"),
            ("--help=yes", "--help takes no value"),
            ("--addr", "no value after --addr"),
            ("--addr --hex", "no value after --addr"),
            ("set k v --raw", "--raw goes with get alone"),
            ("--raw", "--raw goes with get alone"),
            ("set k v -c", "no value after -c"),
            ("put k v", "unknown command put; there are set, get"),
            ("help put", "unknown command put; there are set, get"),
            ("set", "missing key value"),
            ("set k", "missing value"),
            ("get k more", "one argument too many: more"),
            (
                "--count 300",
                "error parsing option '--count' with value '300': number too large to fit in target type",
            ),
            (
                "--count 1 --count 2",
                "error parsing option '--count' with value '2': duplicate values provided",
            ),
        ] {
            let arguments: Vec<&str> = line.split(' ').collect();
            assert_eq!(
                mistake(&arguments),
                format!("{expected}; see prog --help"),
                "{line}"
            );
        }
        assert!(mistake(&["a\nb"]).starts_with(r"unknown command a\nb;"));
    }

    #[test]
    fn help_and_version_win_over_everything_else() {
        for line in ["-h", "--help", "help", "--count x -h", "--addr=h:1 --help"] {
            let arguments: Vec<&str> = line.split(' ').collect();
            match parse(&arguments) {
                Err(Exit::Help(text)) => assert!(text.starts_with("Usage: prog [--addr"), "{text}"),
                other => unreachable!("{line}: {other:?}"),
            }
        }
        for line in [
            "set -h",
            "-h set",
            "help set",
            "set k --help",
            "set a b c -h",
        ] {
            let arguments: Vec<&str> = line.split(' ').collect();
            match parse(&arguments) {
                Err(Exit::Help(text)) => {
                    assert!(text.starts_with("Usage: prog set [--] <key>"), "{text}")
                }
                other => unreachable!("{line}: {other:?}"),
            }
        }
        let version = format!("prog {}", env!("CARGO_PKG_VERSION"));
        for line in ["-V", "--version", "set -V", "--hex --version"] {
            let arguments: Vec<&str> = line.split(' ').collect();
            assert_eq!(parse(&arguments), Err(Exit::Version(version.clone())));
        }
    }

    #[test]
    fn without_a_command_there_is_none() {
        assert_eq!(command(&[]), Ok(None));
        assert_eq!(command(&["--hex"]), Ok(None));
    }
}
