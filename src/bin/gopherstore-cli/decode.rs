//! `decode`: prints recorded bytes as annotated frames.

use std::io::{self, Read};

use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    arguments::{self, Bytes},
    hexdump::{self, Flow, Form},
    wire::{
        annotate,
        transcript::{Fault, Frame, Kind, Side, Transcript},
    },
};

use crate::report::{Failure, Outcome};

/// Print bytes as annotated frames: raw bytes, a dump, a capture, or a printf line.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "decode", help_triggers("-h", "--help"))]
#[argh(
    example = "gopherstore-cli decode 01 0007 00000006 75736572313233 616374697665\n\
        gopherstore-cli decode '\\x04\\0\\0\\0\\0\\0\\0'\n\
        printf '\\004\\0\\0\\0\\0\\0\\0' | nc -N 127.0.0.1 8000 | gopherstore-cli decode --as response\n\
        tcpdump -r capture.pcap -x 'tcp port 8000' | gopherstore-cli decode",
    note = "Without TEXT the command reads standard input, at most 256 MiB. It recognizes raw bytes, the output of\n\
        xxd, hexdump -C and tcpdump -x (-X, -xx, -XX), hexadecimal digits, and a printf string or command.\n\
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

/// Most bytes of standard input. If there are more, only the frames before this limit are decoded.
const INPUT_LEN_MAX: usize = 256 << 20;

/// Size of the output buffer.
const BATCH_LEN: usize = 64 << 10;

pub(crate) fn run(command: &Decode) -> Result<Outcome, Failure> {
    let input = if command.text.is_empty() {
        standard_input()?
    } else {
        command.text.join(&b' ')
    };
    let is_cut = input.len() > INPUT_LEN_MAX;
    let input = &input[..input.len().min(INPUT_LEN_MAX)];
    let usage = |message: String| Failure::new(Outcome::Usage, message);
    if is_cut && !hexdump::is_raw(input) {
        return Err(too_long());
    }
    let contents = hexdump::read(input).map_err(|error| {
        usage(format!(
            "{error}; decode takes raw bytes, an xxd or tcpdump -x dump, hexadecimal digits, or a printf string"
        ))
    })?;
    if contents.flows.iter().all(|flow| flow.bytes.is_empty()) {
        let message = match contents.form {
            Form::Packets => "the packets carry no bytes; capture a connection while it is used",
            _ => "no bytes to decode; give some behind decode, or on standard input",
        };
        return Err(usage(message.to_owned()));
    }
    let mut failure: Option<Failure> = None;
    let mut more = 0_u32;
    let mut out = Out::default();
    for flow in &contents.flows {
        let result = print(flow, command.side, is_cut, &mut out);
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

/// Reads standard input, up to one byte more than the limit.
fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut input = Vec::new();
    let len_max = u64::try_from(INPUT_LEN_MAX).unwrap_or(u64::MAX);
    match io::stdin().lock().take(len_max + 1).read_to_end(&mut input) {
        Ok(_) => Ok(input),
        Err(error) => Err(Failure::new(
            Outcome::LocalInput,
            format!("cannot read standard input: {error}; redirect a file into it"),
        )),
    }
}

/// Standard input is longer than the limit.
fn too_long() -> Failure {
    Failure::new(
        Outcome::LocalInput,
        format!(
            "standard input is longer than {} MiB, and nothing beyond that is decoded; give a part of it, such as \
             tail -c +OFFSET makes",
            INPUT_LEN_MAX >> 20
        ),
    )
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

/// Prints the frames of a flow. `is_cut` says that it has more bytes than were read.
fn print(flow: &Flow, side: Option<Side>, is_cut: bool, out: &mut Out) -> Result<(), Stop> {
    let bytes = &*flow.bytes;
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
        return out.flush().and(Err(Stop::Failure(too_long())));
    }
    if flow.missing > 0 {
        let message = format!("behind offset {:#x}: {}", bytes.len(), lost(flow.missing));
        return Err(failed(flow, out, &message));
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
