//! The vectors of `docs/GBP.md`, read from the document itself and checked both ways.

use gopherstore::wire::request::{self, Disposition, Limits, RequestError};
use gopherstore::wire::{Request, Response, Status, response};

/// One line of a `gbp` block.
#[derive(Debug, Clone)]
pub(crate) struct Vector {
    pub(crate) line: usize,
    pub(crate) from_client: bool,
    pub(crate) bytes: Vec<u8>,
    pub(crate) meaning: String,
}

impl Vector {
    pub(crate) fn is_refused(&self) -> bool {
        self.meaning.starts_with("refused")
    }
}

/// All vectors of the document, in order.
pub(crate) fn all() -> Vec<Vector> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/GBP.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut vectors = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            inside = line == "```gbp";
        } else if inside {
            vectors.push(parse(number + 1, line));
        }
    }
    assert!(vectors.len() > 40, "{} vectors in {path}", vectors.len());
    vectors
}

/// The vectors that are whole, acceptable requests.
pub(crate) fn requests() -> impl Iterator<Item = Vector> {
    all()
        .into_iter()
        .filter(|v| v.from_client && !v.is_refused())
}

/// The vectors that are answers of a node.
pub(crate) fn responses() -> impl Iterator<Item = Vector> {
    all()
        .into_iter()
        .filter(|v| !v.from_client && !v.is_refused())
}

fn parse(line: usize, text: &str) -> Vector {
    let (frame, meaning) = text
        .split_once('#')
        .unwrap_or_else(|| panic!("line {line}: no #"));
    let (side, hex) = frame.split_at(1);
    assert!(
        side == ">" || side == "<",
        "line {line}: begins with {side:?}"
    );
    let digits: Vec<u32> = hex
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| {
            c.to_digit(16)
                .unwrap_or_else(|| panic!("line {line}: {c:?} is no digit"))
        })
        .collect();
    assert!(digits.len().is_multiple_of(2), "line {line}: half a byte");
    Vector {
        line,
        from_client: side == ">",
        bytes: digits
            .chunks(2)
            .map(|d| u8::try_from(d[0] * 16 + d[1]).unwrap())
            .collect(),
        meaning: meaning.trim().to_owned(),
    }
}

fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

fn request_meaning(request: &Request) -> String {
    match request {
        Request::Set { key, value } => format!("SET {} {}", quoted(key), quoted(value)),
        Request::Get { key } => format!("GET {}", quoted(key)),
        Request::Del { key } => format!("DEL {}", quoted(key)),
        Request::Ping => "PING".to_owned(),
    }
}

fn refusal_meaning(error: &RequestError) -> String {
    match error.disposition() {
        Disposition::Skip(len) => format!("refused, skip {len}: {error}"),
        Disposition::Close => format!("refused, close: {error}"),
    }
}

/// What a node makes of the first bytes of a connection, as the document says it.
fn judge(bytes: &[u8]) -> String {
    if let Err(error) = request::reject_text(bytes[0]) {
        return refusal_meaning(&error);
    }
    match request::parse(bytes, &Limits::default()) {
        Ok(request::Parsed::Whole(frame)) => request_meaning(&frame.request()),
        Ok(request::Parsed::Incomplete { needed }) => format!("incomplete, {needed} needed"),
        Err(error) => refusal_meaning(&error),
    }
}

#[test]
fn every_request_means_what_the_document_says() {
    for vector in all().iter().filter(|v| v.from_client) {
        assert_eq!(judge(&vector.bytes), vector.meaning, "line {}", vector.line);
    }
}

#[test]
fn every_answer_means_what_the_document_says() {
    for vector in all().iter().filter(|v| !v.from_client) {
        let meaning = match response::parse(&vector.bytes) {
            Ok(response::Parsed::Whole(Response { status, value })) => {
                assert_eq!(vector.bytes.len(), 5 + value.len(), "line {}", vector.line);
                let name = Status::try_from(status).unwrap().name();
                match value {
                    b"" => name.to_owned(),
                    _ => format!("{name} {}", quoted(value)),
                }
            }
            Ok(response::Parsed::Incomplete { needed }) => format!("incomplete, {needed} needed"),
            Err(error) => format!("refused, close: {error}"),
        };
        assert_eq!(meaning, vector.meaning, "line {}", vector.line);
    }
}

#[test]
fn every_good_vector_is_written_just_as_it_is_read() {
    for vector in requests() {
        let Ok(request::Parsed::Whole(frame)) = request::parse(&vector.bytes, &Limits::default())
        else {
            panic!("line {}: not whole", vector.line)
        };
        let mut bytes = Vec::new();
        frame.request().encode(&mut bytes).unwrap();
        assert_eq!(bytes, vector.bytes, "line {}", vector.line);
        assert_eq!(frame.bytes(), vector.bytes, "line {}", vector.line);
    }
    for vector in responses() {
        let Ok(response::Parsed::Whole(response)) = response::parse(&vector.bytes) else {
            panic!("line {}: not whole", vector.line)
        };
        let mut bytes = Vec::new();
        response.encode(&mut bytes).unwrap();
        assert_eq!(bytes, vector.bytes, "line {}", vector.line);
    }
}

/// The two frames that the published protocol document shows, here a second time so that no edit of ours can lose them.
#[test]
fn the_published_examples_stand() {
    let lines: Vec<_> = all().into_iter().map(|v| (v.bytes, v.meaning)).collect();
    for (bytes, meaning) in [
        (
            &b"\x01\x00\x07\x00\x00\x00\x06user123active"[..],
            r#"SET "user123" "active""#,
        ),
        (
            &b"\x02\x00\x07\x00\x00\x00\x00user123"[..],
            r#"GET "user123""#,
        ),
    ] {
        assert!(
            lines.contains(&(bytes.to_vec(), meaning.to_owned())),
            "{meaning}"
        );
    }
}

#[test]
fn the_tables_of_opcodes_and_statuses_are_those_of_the_code() {
    let text = include_str!("../../docs/GBP.md");
    for opcode in request::Opcode::ALL {
        let cell = |used| if used { "yes" } else { "no" };
        let row = format!(
            "| 0x{:02X} | {} | {} | {} |",
            opcode.byte(),
            opcode.name(),
            cell(opcode.uses_key()),
            cell(opcode.uses_value())
        );
        assert!(has_row(text, &row), "no row {row}");
    }
    for status in Status::ALL {
        let row = format!("| 0x{:02X} | {} |", status.byte(), status.name());
        assert!(has_row(text, &row), "no row {row}");
    }
}

/// Whether a line of the document begins with `row`, whatever it is padded with.
fn has_row(text: &str, row: &str) -> bool {
    text.lines().any(|line| {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        line.starts_with(row)
    })
}
