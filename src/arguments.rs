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

    /// Whether a command has an option of this name, such as `-0`, which is a value of other commands.
    fn has(&self, command: &OsStr, name: &[u8]) -> bool {
        let flags = self.find_command(command).map(|(_, flags)| flags);
        let mut known = flags.into_iter().flatten();
        known.any(|(known, _)| known.as_bytes() == name)
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

    /// First pass: tells options, the command and positional arguments apart.
    fn scan<'v>(
        &self,
        vocabulary: &'v Vocabulary,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Scanned<'v>, Exit> {
        let mut scanned = Scanned::default();
        let mut options_ended = false;
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let bytes = argument.as_bytes();
            let is_of_command = || {
                let command = scanned.command.as_deref();
                command.is_some_and(|command| vocabulary.has(command, bytes))
            };
            if options_ended || !(looks_like_option(bytes) || is_of_command()) {
                match scanned.command {
                    None if !vocabulary.commands.is_empty() => scanned.command = Some(argument),
                    _ => scanned.positionals.push(argument),
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
                b"-h" | b"--help" => scanned.help = switch(value)?,
                b"-V" | b"--version" => scanned.version = switch(value)?,
                _ => match vocabulary.find(scanned.command.as_deref(), name) {
                    Some((known, false)) => {
                        switch(value)?;
                        scanned.options.push((known, None));
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
                        scanned
                            .options
                            .push((known, Some(encode(value.as_bytes()))));
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
        Ok(scanned)
    }

    /// Steps 1 to 3 of the module's text.
    fn normalise(
        &self,
        vocabulary: &Vocabulary,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Vec<String>, Exit> {
        let Scanned {
            options,
            mut command,
            mut positionals,
            mut help,
            version,
        } = self.scan(vocabulary, arguments)?;
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

/// Arguments after the first pass.
#[derive(Default)]
struct Scanned<'v> {
    /// Known options by their full names, with their encoded values.
    options: Vec<(&'v str, Option<String>)>,
    command: Option<OsString>,
    positionals: Vec<OsString>,
    help: bool,
    version: bool,
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

/// An argument that names a file or a directory.
///
/// # Errors
///
/// When it is empty.
pub fn path(encoded: &str) -> Result<PathBuf, String> {
    let bytes = bytes(encoded)?;
    if bytes.is_empty() {
        return Err("an empty path".to_owned());
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
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
mod tests;
