//! `decode`: prints recorded bytes as annotated frames, and the files of a data directory.

use std::{
    borrow::Cow,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    arguments::{self, Bytes},
    hexdump::{self, Contents, Flow, Form},
    storage::annotate::{FileKind, Parts},
    wire::{
        annotate,
        transcript::{Fault, Frame, Kind, Side, Transcript},
    },
};

use crate::report::{Failure, Outcome};

/// Print bytes as annotated frames: raw bytes, a dump, a capture, a printf line, or a file of a data directory.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "decode", help_triggers("-h", "--help"))]
#[argh(
    example = "gopherstore-cli decode 01 0007 00000006 75736572313233 616374697665\n\
        gopherstore-cli decode '\\x04\\0\\0\\0\\0\\0\\0'\n\
        printf '\\004\\0\\0\\0\\0\\0\\0' | nc -N 127.0.0.1 8000 | gopherstore-cli decode --as response\n\
        tcpdump -r capture.pcap -x 'tcp port 8000' | gopherstore-cli decode\n\
        gopherstore-cli decode data/log-00000001-0000000000000001",
    note = "Without TEXT the command reads standard input. One TEXT in none of the forms may name a file instead.\n\
        Of either it reads 256 MiB at most. It recognizes raw bytes, the output of xxd, hexdump -C and\n\
        tcpdump -x (-X, -xx, -XX), hexadecimal digits, and a printf string or command. By their first bytes\n\
        or their names it recognizes the files of a data directory (docs/FORMAT.md): segments of the log,\n\
        snapshots and identity. Without --as it prints their fields and the frames in them.\n\
        It joins the packets of each direction of each connection.\n\
        With auto it chooses the side for which all frames parse. If that is not exactly one side, it chooses\n\
        the most likely one; --as overrides it. It asks no node, so options such as --addr have no effect.\n\
        At the first wrong byte, or at an end inside a frame, it reports the place and the reason, and exits\n\
        with code 7. Text in none of these forms is exit code 2, without output."
)]
pub(crate) struct Decode {
    /// sender of the bytes: request (a client), response (a node), stream (both, after FOLLOW) or auto (default)
    #[argh(
        option,
        long = "as",
        from_str_fn(side),
        arg_name = "SIDE",
        default = "None"
    )]
    side: Option<Side>,
    /// the bytes, in one of the forms below; by default standard input
    #[argh(positional, from_str_fn(arguments::bytes))]
    text: Vec<Bytes>,
}

fn side(encoded: &str) -> Result<Option<Side>, String> {
    if encoded == "answer" {
        return Ok(Some(Side::Responses)); // an earlier name of it
    }
    let sides = [
        ("request", Some(Side::Requests)),
        ("response", Some(Side::Responses)),
        ("stream", Some(Side::Stream)),
        ("auto", None),
    ];
    arguments::one_of(encoded, &sides)
}

/// Most bytes of the input. If there are more, only the frames before this limit are decoded.
const INPUT_LEN_MAX: usize = 256 << 20;

/// Size of the output buffer.
const BATCH_LEN: usize = 64 << 10;

/// The bytes to decode.
struct Input {
    bytes: Vec<u8>,
    /// The source, for messages.
    name: String,
    /// The kind that the name of the file tells.
    named: Option<FileKind>,
    /// The source has more bytes.
    is_cut: bool,
}

impl Input {
    /// The text of the arguments, the file that they name, or standard input.
    fn of(text: &[Bytes]) -> Result<Input, Failure> {
        if text.is_empty() {
            return Input::read(io::stdin().lock(), "standard input".to_owned());
        }
        if let [name] = text
            && hexdump::read(name).is_err()
        {
            let path = Path::new(OsStr::from_bytes(name));
            let shown = path.display().to_string();
            if path.is_dir() {
                let message = format!("{shown} is a directory; check reads a data directory");
                return Err(Failure::new(Outcome::LocalInput, message));
            }
            if path.exists() || name.contains(&b'/') {
                let file = File::open(path);
                let file = file.map_err(|error| {
                    Failure::new(Outcome::LocalInput, format!("cannot read {shown}: {error}"))
                })?;
                let name = path.file_name().and_then(OsStr::to_str);
                let named = name.and_then(FileKind::of_name);
                return Ok(Input {
                    named,
                    ..Input::read(file, shown)?
                });
            }
        }
        Ok(Input {
            bytes: text.join(&b' '),
            name: String::new(),
            named: None,
            is_cut: false,
        })
    }

    fn read(source: impl Read, name: String) -> Result<Input, Failure> {
        let mut bytes = Vec::new();
        let len_max = u64::try_from(INPUT_LEN_MAX).unwrap_or(u64::MAX);
        if let Err(error) = source.take(len_max + 1).read_to_end(&mut bytes) {
            let message = format!("cannot read {name}: {error}; redirect a file into it");
            return Err(Failure::new(Outcome::LocalInput, message));
        }
        let is_cut = bytes.len() > INPUT_LEN_MAX;
        bytes.truncate(INPUT_LEN_MAX);
        Ok(Input {
            bytes,
            name,
            named: None,
            is_cut,
        })
    }

    /// The kind of the data directory's file that these bytes of it are, if they are one. Its name counts too, since
    /// its first bytes may be damaged.
    fn kind(&self, bytes: &[u8]) -> Option<FileKind> {
        FileKind::of(bytes).or(self.named)
    }

    /// It is longer than the limit.
    fn too_long(&self) -> Failure {
        Failure::new(
            Outcome::LocalInput,
            format!(
                "{} is longer than {} MiB, and nothing beyond that is decoded; give a part of it, such as tail -c \
                 +OFFSET makes",
                self.name,
                INPUT_LEN_MAX >> 20
            ),
        )
    }

    fn contents(&self, side: Option<Side>) -> Result<Contents<'_>, Failure> {
        // An identity is text.
        if side.is_none() && self.kind(&self.bytes).is_some() {
            return Ok(Contents {
                form: Form::Raw,
                flows: vec![Flow {
                    name: None,
                    bytes: Cow::Borrowed(&self.bytes),
                    missing: 0,
                }],
            });
        }
        if self.is_cut && !hexdump::is_raw(&self.bytes) {
            return Err(self.too_long());
        }
        hexdump::read(&self.bytes).map_err(|error| {
            Failure::new(
                Outcome::Usage,
                format!(
                    "{error}; decode takes raw bytes, an xxd or tcpdump -x dump, hexadecimal digits, a printf string, \
                     or the name of a file"
                ),
            )
        })
    }
}

pub(crate) fn run(command: &Decode) -> Result<Outcome, Failure> {
    let input = Input::of(&command.text)?;
    let contents = input.contents(command.side)?;
    if contents.flows.iter().all(|flow| flow.bytes.is_empty()) {
        let message = match contents.form {
            Form::Packets => "the packets carry no bytes; capture a connection while it is used",
            Form::Raw | Form::Digits | Form::Xxd | Form::Canonical | Form::Printf => {
                "no bytes to decode; give some behind decode, or on standard input"
            }
        };
        return Err(Failure::new(Outcome::Usage, message));
    }
    let mut failure: Option<Failure> = None;
    let mut more = 0_u32;
    let mut out = Out::default();
    for flow in &contents.flows {
        let result = print(flow, command.side, &input, &mut out);
        match result {
            Ok(()) => {}
            // Flows are independent: a fault in one does not stop the others.
            Err(Stop::Fault(fault)) if failure.is_none() => failure = Some(fault),
            Err(Stop::Fault(_)) => more = more.saturating_add(1),
            Err(Stop::Closed) => return Ok(Outcome::Done),
            Err(Stop::Failure(failure)) => return Err(failure),
        }
    }
    if let Some(failure) = &mut failure
        && more > 0
    {
        failure
            .message
            .push_str(&format!(" (and {more} more flows are wrong or cut)"));
    }
    match out.flush() {
        Err(Stop::Failure(failure)) => Err(failure),
        _ => failure.map_or(Ok(Outcome::Done), Err),
    }
}

/// Reason why the output of a flow ends.
enum Stop {
    /// A wrong byte.
    Fault(Failure),
    /// Standard output has no reader.
    Closed,
    /// Standard output cannot be written.
    Failure(Failure),
}

/// Buffered standard output.
#[derive(Default)]
struct Out(String);

impl Out {
    fn print(&mut self, text: &str) -> Result<(), Stop> {
        self.0.push_str(text);
        if self.0.len() >= BATCH_LEN {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let is_open = crate::write_out(self.0.as_bytes()).map_err(Stop::Failure)?;
        self.0.clear();
        if is_open { Ok(()) } else { Err(Stop::Closed) }
    }
}

/// Prints the frames of a flow.
fn print(flow: &Flow, side: Option<Side>, input: &Input, out: &mut Out) -> Result<(), Stop> {
    let (bytes, is_cut) = (&*flow.bytes, input.is_cut);
    if side.is_none()
        && flow.name.is_none()
        && let Some(kind) = input.kind(bytes)
    {
        return print_file(kind, flow, input, out);
    }
    let guessed = side.is_none();
    let side = side.unwrap_or_else(|| Side::guess(bytes));
    if let Some(name) = &flow.name {
        out.print(&format!("{name}, {} bytes\n", bytes.len()))?;
    }
    for frame in Transcript::new(side, bytes) {
        match frame {
            Ok(frame) => {
                let Frame {
                    number,
                    at,
                    kind,
                    bytes,
                } = frame;
                let name = frame.name();
                let len = bytes.len();
                let rows = annotate::frame(kind, bytes, at);
                out.print(&format!(
                    "frame {number}: {} {name}, {len} bytes\n{rows}",
                    noun(kind)
                ))?;
            }
            Err(fault) if is_cut && fault.needed.is_some() => break,
            Err(fault) => {
                let rows = annotate::frame(fault.kind, &bytes[fault.frame_at..], fault.frame_at);
                out.print(&format!(
                    "frame {}: no whole {}\n{rows}",
                    fault.number,
                    noun(fault.kind)
                ))?;
                return Err(failed(flow, out, &explained(&fault, flow.missing, guessed)));
            }
        }
    }
    if is_cut {
        return out.flush().and(Err(Stop::Failure(input.too_long())));
    }
    if flow.missing > 0 {
        let message = format!("behind offset {:#x}: {}", bytes.len(), lost(flow.missing));
        return Err(failed(flow, out, &message));
    }
    Ok(())
}

/// Prints a file of a data directory.
fn print_file(kind: FileKind, flow: &Flow, input: &Input, out: &mut Out) -> Result<(), Stop> {
    for part in Parts::new(kind, &flow.bytes) {
        out.print(&part.text)?;
        match part.damage {
            Some(damage) if damage.is_cut && input.is_cut => break,
            Some(damage) => {
                let name = if input.name.is_empty() {
                    kind.name()
                } else {
                    &input.name
                };
                return Err(failed(flow, out, &format!("{name}, {damage}")));
            }
            None => {}
        }
    }
    if input.is_cut {
        return out.flush().and(Err(Stop::Failure(input.too_long())));
    }
    Ok(())
}

/// The failure of a flow, after everything before it is printed.
fn failed(flow: &Flow, out: &mut Out, message: &str) -> Stop {
    if let Err(stop) = out.flush() {
        return stop;
    }
    let place = flow.name.as_ref().map(|name| format!("{name}: "));
    let message = format!("{}{message}", place.unwrap_or_default());
    Stop::Fault(Failure::new(Outcome::Protocol, message))
}

fn explained(fault: &Fault, missing: u64, guessed: bool) -> String {
    let next = match fault.needed {
        Some(_) if missing > 0 => lost(missing),
        Some(_) => "give the bytes to the frame's end".to_owned(),
        None if guessed => {
            "if another side sent it, say which with --as request, response or stream".to_owned()
        }
        None => "the bytes before it are right".to_owned(),
    };
    format!("{fault}; {next}")
}

fn lost(missing: u64) -> String {
    format!(
        "{missing} bytes that were sent are not in the capture; capture them all, with tcpdump -s 0"
    )
}

const fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Request => "request",
        Kind::Response | Kind::FollowResponse => "response",
        Kind::Stream => "stream",
    }
}
