use super::*;

const PROGRAM: Program = Program { name: "prog" };

#[test]
fn the_error_of_a_wrong_value_lists_the_allowed_ones() {
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
fn a_mistake_is_one_line_with_advice() {
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
