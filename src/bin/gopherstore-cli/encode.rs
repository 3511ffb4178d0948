//! `encode`: a request as a line to paste.

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    arguments::{self, Bytes},
    hexdump::printf,
    wire::{
        Request,
        request::{HEADER_LEN, RequestHeader},
    },
};

use crate::{
    command::{self, Command},
    context::Context,
    quote,
    report::{Failure, Outcome},
};

/// Print a request as a line to paste: digits, or a command for a shell.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "encode", help_triggers("-h", "--help"))]
#[argh(
    example = "gopherstore-cli encode set user123 active\n\
        gopherstore-cli encode 'set k \"two words\\x00\"' --as nc\n\
        gopherstore-cli encode get user123 --as python --addr 127.0.0.1:8001",
    note = "WORDS are a command: set, get, del, ping or status. Several words are taken as they are, and as the\n\
        value of set, - reads standard input; a single one is a line, with quotes and escapes as line by line.\n\
        hex is for xxd -r -p and for decode; printf prints the frame's bytes; nc sends them to the node that\n\
        --addr names and shows the answer with xxd, python does it with python3 alone. They are for sh, bash\n\
        and zsh. Nothing is sent before the line is pasted."
)]
pub(crate) struct Encode {
    /// form of the line: hex, the default, printf, nc or python
    #[argh(
        option,
        long = "as",
        from_str_fn(form),
        arg_name = "FORM",
        default = "Form::Hex"
    )]
    form: Form,
    /// the command, such as set KEY VALUE
    #[argh(positional, from_str_fn(arguments::bytes))]
    words: Vec<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Hex,
    Printf,
    Nc,
    Python,
}

fn form(encoded: &str) -> Result<Form, String> {
    let forms = [
        ("hex", Form::Hex),
        ("printf", Form::Printf),
        ("nc", Form::Nc),
        ("python", Form::Python),
    ];
    arguments::one_of(encoded, &forms)
}

/// Bytes of the longest argument that Linux passes to a program, its end included; the others allow more.
const ARGUMENT_LEN_MAX: usize = 128 << 10;

pub(crate) fn run(command: Encode, context: &Context) -> Result<Outcome, Failure> {
    let Encode { form, words } = command;
    // Before standard input is waited for.
    let place = match form {
        Form::Hex | Form::Printf => None,
        Form::Nc | Form::Python => Some(place(&context.addr()?)?),
    };
    let request = parse(words)?;
    let frame = frame(&request)?;
    let line = match (form, place) {
        (Form::Nc, Some((host, port))) => {
            let text = printf::escaped(&frame);
            format!("printf '{text}' | nc -N {host} {port} | xxd")
        }
        (Form::Python, Some((host, port))) => python(&frame, &host, &port)?,
        (Form::Printf, _) => format!("printf '{}'", printf::escaped(&frame)),
        _ => hex(&frame),
    };
    crate::write_out(format!("{line}\n").as_bytes()).map(|_| Outcome::Done)
}

/// The command that the words make.
fn parse(words: Vec<Bytes>) -> Result<Command, Failure> {
    let mut words = match &words[..] {
        [] => {
            return Err(crate::mistake(
                "no command to encode; write one behind encode, such as get KEY",
            ));
        }
        [line] => {
            let words = quote::words(line).map_err(|error| crate::mistake(&error.to_string()))?;
            return Command::from_words(words).map_err(|message| crate::mistake(&message));
        }
        _ => words,
    };
    if let [_, _, value] = &mut words[..]
        && value == b"-"
    {
        let command = Command::from_words(words).map_err(|message| crate::mistake(&message))?;
        return match command {
            Command::Set { key, .. } => Ok(Command::Set {
                key,
                value: command::standard_input()?,
            }),
            other => Ok(other),
        };
    }
    Command::from_words(words).map_err(|message| crate::mistake(&message))
}

fn frame(command: &Command) -> Result<Vec<u8>, Failure> {
    let request = match command {
        Command::Set { key, value } => Request::Set { key, value },
        Command::Get { key } => Request::Get { key },
        Command::Del { key } => Request::Del { key },
        Command::Ping => Request::Ping,
        Command::Status => Request::Status,
        Command::Resync => Request::Discard,
    };
    let mut frame = Vec::new();
    match request.encode(&mut frame) {
        Ok(()) => Ok(frame),
        Err(error) => Err(Failure::new(
            Outcome::Usage,
            format!("{error}; no frame carries it, so shorten it"),
        )),
    }
}

/// Host and port, with nothing in them that a shell or Python could take for more than a name.
fn place(addr: &str) -> Result<(String, String), Failure> {
    let (host, port) = addr.rsplit_once(':').unwrap_or((addr, ""));
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let is_plain = !host.starts_with('-')
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".:_-%".contains(&byte));
    if is_plain && !host.is_empty() {
        Ok((host.to_owned(), port.to_owned()))
    } else {
        Err(crate::mistake(&format!(
            "{host:?} is no name of a host that can be pasted into a shell; give another with --addr"
        )))
    }
}

/// The digits of a frame, a space between its fields.
fn hex(frame: &[u8]) -> String {
    let key_len = frame
        .first_chunk::<HEADER_LEN>()
        .map_or(0, |header| RequestHeader::decode(*header).key_len);
    let mut text = String::with_capacity(frame.len() * 2 + 4);
    let ends = [1, 3, HEADER_LEN, HEADER_LEN + usize::from(key_len)];
    for (at, byte) in frame.iter().enumerate() {
        if ends.contains(&at) {
            text.push(' ');
        }
        for digit in [byte >> 4, byte & 0xF] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    text
}

fn python(frame: &[u8], host: &str, port: &str) -> Result<String, Failure> {
    let program = format!(
        "import socket; s = socket.create_connection((\"{host}\", {port}), 5); s.sendall(bytes.fromhex(\"{}\")); \
         s.shutdown(socket.SHUT_WR); print(s.makefile(\"rb\").read())",
        hex(frame)
    );
    if program.len() >= ARGUMENT_LEN_MAX {
        let message = format!(
            "a frame of {} bytes makes a longer argument than a program may be given ({ARGUMENT_LEN_MAX} bytes); use \
             --as nc",
            frame.len()
        );
        return Err(Failure::new(Outcome::Usage, message));
    }
    Ok(format!("python3 -c '{program}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame_of(line: &str) -> Vec<u8> {
        let Ok(frame) = parse(vec![line.as_bytes().to_vec()]).and_then(|command| frame(&command))
        else {
            return Vec::new();
        };
        frame
    }

    #[test]
    fn digits_stand_in_the_groups_of_the_document() {
        let golden = "01 0007 00000006 75736572313233 616374697665";
        assert_eq!(hex(&frame_of("set user123 active")), golden);
        assert_eq!(hex(&frame_of("ping")), "04 0000 00000000");
        assert_eq!(hex(&frame_of("set '' x")), "01 0000 00000001 78");
        assert_eq!(hex(&frame_of("status")), "40 0000 00000000");
    }

    #[test]
    fn hosts_are_names_or_nothing_is_printed() {
        let pair = |host: &str| Some((host.to_owned(), "8000".to_owned()));
        assert_eq!(place("127.0.0.1:8000").ok(), pair("127.0.0.1"));
        assert_eq!(place("[::1]:8000").ok(), pair("::1"));
        assert_eq!(place("n1.example:8000").ok(), pair("n1.example"));
        for bad in ["$(id):8000", "a b:8000", "a'b:8000", "-e:8000", "[]:8000"] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
