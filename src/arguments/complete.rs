//! Completions of a command line, and the scripts of the shells that request them.
//!
//! A script knows no commands and options. At each TAB it runs the program with `--complete` and the typed words
//! ([`candidates`]). So all shells offer the same, and a new version of the program needs no new script.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality, SubCommandInfo};

use super::{GENERATE, GENERATED, looks_like_option};
use crate::config::Config;

/// Default file for the names of nodes.
const CONFIG_DEFAULT: &str = "cluster.toml";

/// The line that asks the shell for names of files.
const FILES: &str = ":files\n";

/// The kind of a value, from its name in the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind<'a> {
    File,
    Node,
    /// `table|json|csv`
    Choice(&'a str),
    Any,
}

impl Kind<'_> {
    /// `name` is the value's name in the help, or the option's own name.
    fn of(name: &str) -> Kind<'_> {
        let bare = name.trim_start_matches('-').to_ascii_lowercase();
        match &*bare {
            _ if name.contains('|') => Kind::Choice(name),
            // The text of decode may name a file.
            "file" | "path" | "folder" | "dir" | "config" | "text" => Kind::File,
            "node" | "nodes" => Kind::Node,
            _ => Kind::Any,
        }
    }

    fn of_flag(flag: &FlagInfo<'static>) -> Kind<'static> {
        match flag.kind {
            _ if flag.long == GENERATE => Kind::Choice(GENERATED),
            FlagInfoKind::Option { arg_name } if Kind::of(arg_name) != Kind::Any => {
                Kind::of(arg_name)
            }
            _ => Kind::of(flag.long),
        }
    }
}

/// The state of a command line after its words are read.
struct Line<'a> {
    program: &'a CommandInfoWithArgs,
    command: Option<&'a SubCommandInfo>,
    /// `help` is in place of the command.
    asks_for_help: bool,
    positionals_count: usize,
    options_ended: bool,
    /// The option whose value comes next.
    open: Option<&'a FlagInfo<'static>>,
    config: Option<PathBuf>,
}

impl<'a> Line<'a> {
    fn read(program: &'a CommandInfoWithArgs, words: &[OsString]) -> Line<'a> {
        let mut line = Line {
            program,
            command: None,
            asks_for_help: false,
            positionals_count: 0,
            options_ended: false,
            open: None,
            config: None,
        };
        for word in words {
            line.add(word);
        }
        line
    }

    fn add(&mut self, word: &OsStr) {
        if let Some(flag) = self.open.take() {
            self.set(flag, word);
        } else if !self.options_ended && looks_like_option(word.as_bytes()) {
            if word == "--" {
                self.options_ended = true;
                return;
            }
            let (name, value) = split(word);
            let flag = self.flag(name);
            match (flag, value) {
                (Some(flag), Some(value)) => self.set(flag, value),
                (Some(flag), None) if takes_value(flag) => self.open = Some(flag),
                _ => {}
            }
        } else if self.command.is_none() && !self.program.commands.is_empty() {
            let is_named = |command: &&SubCommandInfo| {
                let name = command.name.as_bytes();
                name.eq_ignore_ascii_case(word.as_bytes())
            };
            self.asks_for_help |= word.eq_ignore_ascii_case("help");
            self.command = self.program.commands.iter().find(is_named);
        } else {
            self.positionals_count += 1;
        }
    }

    fn set(&mut self, flag: &FlagInfo<'static>, value: &OsStr) {
        if flag.long == "--config" {
            self.config = Some(PathBuf::from(value));
        }
    }

    /// Every option that may follow, those of the command first.
    fn flags(&self) -> impl Iterator<Item = &'a FlagInfo<'static>> + use<'a> {
        let own = self.command.map(|command| command.command.flags);
        own.into_iter().chain([self.program.flags]).flatten()
    }

    fn flag(&self, name: &[u8]) -> Option<&'a FlagInfo<'static>> {
        // A command's option may come before the command, which is not known yet.
        let all = self.program.commands.iter();
        let all = all.flat_map(|command| command.command.flags);
        let is_named = |flag: &&FlagInfo<'static>| {
            let short = flag.short.map(|short| format!("-{short}"));
            flag.long.as_bytes() == name || short.is_some_and(|short| short.as_bytes() == name)
        };
        self.flags().chain(all).find(is_named)
    }

    /// The kind of the next positional.
    fn positional(&self) -> Option<Kind<'a>> {
        let all = match self.command {
            Some(command) => command.command.positionals,
            None => self.program.positionals,
        };
        let next = all.get(self.positionals_count).or_else(|| {
            let many = [Optionality::Repeating, Optionality::Greedy];
            all.last().filter(|last| many.contains(&last.optionality))
        });
        next.map(|positional| Kind::of(positional.name))
    }

    fn node_names(&self) -> Vec<String> {
        let file = self.config.clone();
        let file = file.unwrap_or_else(|| PathBuf::from(CONFIG_DEFAULT));
        // Faults of the file are not reported while a command line is typed.
        let nodes = Config::load(&file).map(|config| config.nodes);
        let nodes = nodes.unwrap_or_default().into_iter();
        nodes.map(|node| node.name).collect()
    }
}

fn takes_value(flag: &FlagInfo<'static>) -> bool {
    matches!(flag.kind, FlagInfoKind::Option { .. })
}

/// `--name=value`, or the name alone.
fn split(word: &OsStr) -> (&[u8], Option<&OsStr>) {
    let bytes = word.as_bytes();
    match bytes.iter().position(|&byte| byte == b'=') {
        Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]))),
        None => (bytes, None),
    }
}

/// The candidates for the last of `words`, which follow the program's name: a line for each, with a tab before its
/// meaning where that is known; or [`FILES`].
pub(super) fn candidates(program: &CommandInfoWithArgs, words: &[OsString]) -> String {
    let (typed, before) = match words.split_last() {
        Some((last, before)) => (last.as_os_str(), before),
        None => (OsStr::new(""), words),
    };
    let line = Line::read(program, before);
    let mut found: Vec<(String, String)> = Vec::new();
    let mut values = |kind: Kind<'_>, prefix: &str| {
        let words: Vec<String> = match kind {
            Kind::File => return true,
            Kind::Node => line.node_names(),
            Kind::Choice(names) => names.split('|').map(str::to_owned).collect(),
            Kind::Any => Vec::new(),
        };
        let words = words.into_iter().map(|word| format!("{prefix}{word}"));
        found.extend(words.map(|word| (word, String::new())));
        false
    };
    let is_option = !line.options_ended && typed.as_bytes().starts_with(b"-");
    let is_files = if let Some(flag) = line.open {
        values(Kind::of_flag(flag), "")
    } else if let (true, (name, Some(_))) = (is_option, split(typed)) {
        let flag = line.flag(name).filter(|flag| takes_value(flag));
        let prefix = format!("{}=", String::from_utf8_lossy(name));
        flag.is_some_and(|flag| values(Kind::of_flag(flag), &prefix))
    } else if is_option {
        for flag in line.flags().filter(|flag| !flag.hidden) {
            found.push((flag.long.to_owned(), flag.description.to_owned()));
        }
        if found.iter().all(|(name, _)| name != "--help") {
            found.push(("--help".to_owned(), "display usage information".to_owned()));
        }
        false
    } else if line.command.is_none() && !program.commands.is_empty() {
        for command in &program.commands {
            let meaning = command.command.description.to_owned();
            found.push((command.name.to_owned(), meaning));
        }
        if !line.asks_for_help {
            found.push(("help".to_owned(), "Explain a command.".to_owned()));
        }
        false
    } else if line.asks_for_help {
        false
    } else {
        line.positional().is_some_and(|kind| values(kind, ""))
    };
    if is_files {
        return FILES.to_owned();
    }
    let mut lines = String::new();
    for (word, meaning) in &found {
        if !word.as_bytes().starts_with(typed.as_bytes()) {
            continue;
        }
        lines.push_str(word);
        if let Some(first) = meaning.lines().next() {
            lines.push('\t');
            lines.push_str(first);
        }
        lines.push('\n');
    }
    lines
}

/// The script for bash, to be sourced.
const BASH: &str = r#"# Completions of PROGRAM for bash. Put this into ~/.bashrc:
#   source <(PROGRAM --generate complete-bash)
_FUNCTION() {
    # Not COMP_WORDS, which bash breaks at '=' and ':' too.
    local line=${COMP_LINE:0:COMP_POINT} word
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    local typed=${words[-1]}
    # The words before the one that bash replaces.
    local kept=${typed%"${typed##*[=:]}"}
    COMPREPLY=()
    while IFS= read -r word; do
        if [[ $word == :files ]]; then
            compopt -o default 2>/dev/null
            return
        fi
        word=${word%%$'\t'*}
        COMPREPLY+=("${word#"$kept"}")
    done < <("${words[0]/#\~/${HOME-}}" --complete "${words[@]:1}" 2>/dev/null)
}
complete -F _FUNCTION PROGRAM
"#;

/// The script for zsh, to be sourced, or put into a folder of `$fpath`.
const ZSH: &str = r#"#compdef PROGRAM
# Completions of PROGRAM for zsh. Put this into ~/.zshrc, after compinit:
#   source <(PROGRAM --generate complete-zsh)
_FUNCTION() {
    local line word
    local -a found
    # ${(Q)...} takes quotes away, "${(@)...}" keeps the empty word that is just begun.
    for line in "${(@f)$("${(Q)words[1]}" --complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
        [[ -n $line ]] || continue
        if [[ $line == :files ]]; then
            compset -P '*='
            _files
            return
        fi
        word=${line%%$'\t'*}
        word=${word//:/\\:}
        if [[ $line == *$'\t'* ]]; then
            word+=":${line#*$'\t'}"
        fi
        found+=("$word")
    done
    _describe 'PROGRAM' found
}
if [[ $funcstack[1] == _FUNCTION || $funcstack[1] == _PROGRAM ]]; then
    _FUNCTION "$@"
else
    compdef _FUNCTION PROGRAM
fi
"#;

/// The script for fish, to be sourced, or put into `~/.config/fish/completions`.
const FISH: &str = r#"# Completions of PROGRAM for fish:
#   PROGRAM --generate complete-fish > ~/.config/fish/completions/PROGRAM.fish
function __FUNCTION
    set -l words (commandline -opc)
    set -l typed (commandline -ct)
    set -l found ($words[1] --complete $words[2..-1] "$typed" 2>/dev/null)
    if test "$found" = :files
        set -l name (string match -r -- '^--[^=]*=' "$typed")
        printf '%s\n' "$name"(__fish_complete_path (string replace -r -- '^--[^=]*=' '' "$typed"))
    else
        printf '%s\n' $found
    end
end
complete -c PROGRAM -f -a '(__FUNCTION)'
"#;

/// The script of a shell for a program of this name.
pub(super) fn script(shell: &str, program: &str) -> Option<String> {
    let template = match shell {
        "bash" => BASH,
        "zsh" => ZSH,
        "fish" => FISH,
        _ => return None,
    };
    let function = program.replace('-', "_");
    Some(
        template
            .replace("FUNCTION", &function)
            .replace("PROGRAM", program),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use argh::ArgsInfo;

    /// A program.
    #[derive(ArgsInfo, argh::FromArgs)]
    #[argh(help_triggers("-h", "--help"))]
    #[allow(dead_code)]
    struct Arguments {
        /// the file
        #[argh(option)]
        config: Option<String>,
        /// a node
        #[argh(option)]
        node: Option<String>,
        /// for machines
        #[argh(switch, hidden_help)]
        secret: bool,
        #[argh(subcommand)]
        command: Command,
    }

    #[derive(ArgsInfo, argh::FromArgs)]
    #[argh(subcommand)]
    #[allow(dead_code)]
    enum Command {
        Set(Set),
        Send(Send),
    }

    /// Stores.
    #[derive(ArgsInfo, argh::FromArgs)]
    #[argh(subcommand, name = "set", help_triggers("-h", "--help"))]
    #[allow(dead_code)]
    struct Set {
        /// how to print
        #[argh(option, short = 'w', arg_name = "table|json")]
        write: Option<String>,
        #[argh(positional)]
        key: String,
    }

    /// Sends.
    #[derive(ArgsInfo, argh::FromArgs)]
    #[argh(subcommand, name = "send", help_triggers("-h", "--help"))]
    #[allow(dead_code)]
    struct Send {
        #[argh(positional)]
        node: String,
        #[argh(positional)]
        file: Vec<String>,
    }

    /// The words that are offered, without what they mean.
    fn offered(words: &[&str]) -> Vec<String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let lines = candidates(&Arguments::get_args_info(), &words);
        let words = lines.lines().filter_map(|line| line.split('\t').next());
        words.map(str::to_owned).collect()
    }

    #[test]
    fn commands_are_offered_where_one_stands_and_once() {
        assert_eq!(offered(&[]), ["set", "send", "help"]);
        assert_eq!(offered(&["se"]), ["set", "send"]);
        assert_eq!(offered(&["--config", "x", "sen"]), ["send"]);
        assert_eq!(offered(&["help", "se"]), ["set", "send"]);
        assert!(offered(&["set", "se"]).is_empty());
        assert!(offered(&["help", "set", ""]).is_empty());
        let told = candidates(&Arguments::get_args_info(), &["set".into()]);
        assert_eq!(told, "set\tStores.\n");
    }

    #[test]
    fn options_are_the_commands_and_the_programs() {
        assert_eq!(offered(&["--"]), ["--help", "--config", "--node"]);
        assert_eq!(offered(&["set", "--w"]), ["--write"]);
        assert_eq!(offered(&["set", "k", "--no"]), ["--node"]);
        assert!(offered(&["set", "--", "--w"]).is_empty());
    }

    #[test]
    fn values_are_files_nodes_or_choices() {
        assert_eq!(offered(&["--config", ""]), [":files"]);
        assert_eq!(offered(&["--config=clu"]), [":files"]);
        assert_eq!(offered(&["set", "-w", ""]), ["table", "json"]);
        assert_eq!(offered(&["set", "--write", "j"]), ["json"]);
        assert_eq!(offered(&["set", "--write=j"]), ["--write=json"]);
        assert_eq!(offered(&["send", "n1", "a", "b", "c"]), [":files"]);
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster.toml");
        let nodes = ["n1", "n2", "n3"];
        assert_eq!(offered(&["--config", config, "--node", ""]), nodes);
        assert_eq!(offered(&["--config", config, "send", "n2"]), ["n2"]);
        assert!(offered(&["--config", "/nowhere", "--node", ""]).is_empty());
    }
}
