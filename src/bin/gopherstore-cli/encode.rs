//! `encode`: prints a request as hexadecimal digits or as a shell command.

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    arguments::{self, Bytes},
    hexdump::printf,
    wire::{
        CommandSpec, Field, Form as FieldForm, Opcode,
        command::Limit,
        request::{HEADER_LEN, RequestHeader},
    },
};

use crate::{
    batch,
    command::{self, Command, OFFERS, Offer},
    context::Context,
    quote,
    report::{Failure, Outcome},
};

/// Print a request as hexadecimal digits or as a shell command.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "encode", help_triggers("-h", "--help"))]
#[argh(
    example = "gopherstore-cli encode set user123 active\n\
        gopherstore-cli encode 'set k \"two words\\x00\"' --as nc\n\
        gopherstore-cli encode get user123 --as python --addr 127.0.0.1:8001",
    note = "WORDS are a command for lines, as help lists them, or another operation of docs/GBP.md\n\
        with its key and its fields, such as list KEY. Several words are taken literally, and - as the value\n\
        of set reads standard input, as batch does without a file. A single word is a whole line, with\n\
        quotes and escapes; options of the command are written there, such as 'put k v --if-absent'.\n\
        hex is for xxd -r -p and decode. printf prints the bytes of the frame. nc sends them to the node of\n\
        --addr and shows the response with xxd; python does the same with python3 alone. The output is for\n\
        sh, bash and zsh. encode itself sends nothing."
)]
pub(crate) struct Encode {
    /// form of the output: hex (default), printf, nc or python
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

/// Longest argument that Linux passes to a program, in bytes with the final zero. Other systems allow more.
const ARGUMENT_LEN_MAX: usize = 128 << 10;

pub(crate) fn run(command: Encode, context: &Context) -> Result<Outcome, Failure> {
    let Encode { form, words } = command;
    // Before standard input is read.
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
        (Form::Hex | Form::Nc | Form::Python, _) => hex(&frame),
    };
    crate::write_out(format!("{line}\n").as_bytes()).map(|_| Outcome::Done)
}

/// The command that the words form.
fn parse(words: Vec<Bytes>) -> Result<Command, Failure> {
    if is_input_of_batch(&words) {
        return batch::command(&batch::standard_input()?)
            .map_err(|message| crate::mistake(&message));
    }
    let command = match &words[..] {
        [] => {
            return Err(crate::mistake(
                "no command to encode; write one behind encode, such as get KEY",
            ));
        }
        [line] => quote::words(line)
            .map_err(|error| error.to_string())
            .and_then(command),
        [.., value] => {
            let reads_input = value == b"-";
            let command = command(words).map_err(|message| crate::mistake(&message))?;
            if reads_input && command.opcode().spec().rest_max == Limit::Node {
                let (opcode, key) = (command.opcode(), command.key().to_vec());
                return Ok(Command::new(opcode, key, command::standard_input()?));
            }
            Ok(command)
        }
    };
    command.map_err(|message| crate::mistake(&message))
}

/// Whether the words are a batch whose commands are on standard input.
fn is_input_of_batch(words: &[Bytes]) -> bool {
    let is_batch = |name: &Bytes| name.eq_ignore_ascii_case(b"batch");
    match words {
        [name] => is_batch(name),
        [name, file] => is_batch(name) && file == b"-",
        _ => false,
    }
}

/// A command of a line, or any other operation of the protocol's table, with its fields one by one.
fn command(words: Vec<Bytes>) -> Result<Command, String> {
    let name = words.first().map_or(&b""[..], Vec::as_slice);
    let count = words.len().saturating_sub(1);
    // A line has no place for all the fields of a SCAN.
    let offered = |offer: &Offer| {
        name.eq_ignore_ascii_case(offer.name().as_bytes())
            && (offer.takes(count) || !name.eq_ignore_ascii_case(b"scan"))
    };
    let has_name = |opcode: &Opcode| name.eq_ignore_ascii_case(opcode.name().as_bytes());
    match Opcode::ALL.into_iter().find(has_name) {
        Some(opcode) if !OFFERS.iter().any(offered) => with_fields(opcode.spec(), &words[1..]),
        Some(_) | None => Command::from_words(words),
    }
}

/// The operation with these words: its key, its operands, and the rest of its value. Where it has operands, the rest,
/// or all of the value, may be left out.
fn with_fields(spec: &CommandSpec, words: &[Bytes]) -> Result<Command, String> {
    let (key, words) = match words.split_first() {
        Some((key, words)) if spec.has_key => (key.clone(), words),
        Some(_) | None if !spec.has_key => (Vec::new(), words),
        Some(_) | None => return Err(command::wrong_count(0, &synopsis(spec))),
    };
    let (operands, rest) = words
        .split_at_checked(spec.operands.len())
        .unwrap_or((words, &[]));
    let has_rest = spec.rest_max != Limit::Bytes(0);
    let is_complete = operands.is_empty() || operands.len() == spec.operands.len();
    if !is_complete || rest.len() > usize::from(has_rest) {
        let count = usize::from(spec.has_key) + words.len();
        return Err(command::wrong_count(count, &synopsis(spec)));
    }
    let mut value = Vec::new();
    for (field, word) in spec.operands.iter().zip(operands) {
        value.extend(number(field, word)?);
    }
    value.extend(rest.concat());
    let judged = spec.check(&key, &value);
    judged.map_err(|error| format!("{}; write {}", error.reason, synopsis(spec)))?;
    Ok(Command::new(spec.opcode, key, value))
}

/// The operation with the names of its fields.
fn synopsis(spec: &CommandSpec) -> String {
    let mut words = vec![spec.name.to_ascii_lowercase()];
    words.extend(spec.has_key.then(|| "KEY".to_owned()));
    let fields = spec.operands.iter();
    words.extend(fields.map(|field| field.name.to_ascii_uppercase()));
    if spec.rest_max != Limit::Bytes(0) {
        words.push(format!("[{}]", spec.rest.to_ascii_uppercase()));
    }
    words.join(" ")
}

/// The bytes of a field, from a decimal number, or a hexadecimal one after 0x.
fn number(field: &Field, word: &[u8]) -> Result<Vec<u8>, String> {
    let text = String::from_utf8_lossy(word);
    let number = match text.strip_prefix("0x") {
        Some(digits) => i128::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let end = 1_i128.checked_shl(u32::try_from(8 * field.size).unwrap_or(u32::MAX));
    let end = end.unwrap_or(i128::MAX);
    let range = match field.form {
        FieldForm::Signed => -(end / 2)..end / 2,
        FieldForm::Number
        | FieldForm::Hex
        | FieldForm::Flags(_)
        | FieldForm::Choice(_)
        | FieldForm::Length(_) => 0..end,
    };
    let bytes = number.ok().filter(|number| range.contains(number));
    let bytes = bytes.map(i128::to_be_bytes);
    let bytes = bytes.and_then(|bytes| Some(bytes.get(bytes.len() - field.size..)?.to_vec()));
    bytes.ok_or_else(|| {
        format!(
            "{} is no {} from {} to {}",
            quote::shown(word),
            field.name,
            range.start,
            range.end - 1
        )
    })
}

fn frame(command: &Command) -> Result<Vec<u8>, Failure> {
    let mut frame = Vec::new();
    match command.request().encode(&mut frame) {
        Ok(()) => Ok(frame),
        Err(error) => Err(Failure::new(
            Outcome::Usage,
            format!("{error}; no frame carries it, so shorten it"),
        )),
    }
}

/// Host and port, without characters that have a meaning in a shell or in Python.
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

/// The digits of a frame, with spaces between the fields.
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
    fn hosts_must_be_plain_names() {
        let pair = |host: &str| Some((host.to_owned(), "8000".to_owned()));
        assert_eq!(place("127.0.0.1:8000").ok(), pair("127.0.0.1"));
        assert_eq!(place("[::1]:8000").ok(), pair("::1"));
        assert_eq!(place("n1.example:8000").ok(), pair("n1.example"));
        for bad in ["$(id):8000", "a b:8000", "a'b:8000", "-e:8000", "[]:8000"] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
