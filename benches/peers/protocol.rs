//! The servers' protocols: the same SETs and GETs in GBP, in RESP and in memcached's text protocol.

use gopherstore::wire::conditional::{Condition, Put, Want};
use gopherstore::wire::expiry::Expiry;
use gopherstore::wire::{Opcode, Request};

/// Bytes of every key.
pub(crate) const KEY_LEN: usize = 16;

/// Bytes of the longest head of an answer that is looked at.
const HEAD_LEN_MAX: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Gbp,
    Resp,
    Memcached,
}

/// The write of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteKind {
    /// SET.
    Set,
    /// A write that may have a condition, and has none: PUT. Other servers have SET for it.
    Put,
    /// SET of a key that expires in an hour.
    SetExpiring,
    /// Adds 1 to a number.
    Add,
}

/// Seconds until a key of [`WriteKind::SetExpiring`] expires.
const EXPIRY_SECONDS: u64 = 3_600;

/// Keys as text, `key:000000000042`, from a table rather than by division: the generator shares the processor.
pub(crate) struct Keys {
    digits: Vec<[u8; 4]>,
}

impl Keys {
    pub(crate) fn new() -> Keys {
        let digit = |number: u16| b'0' + u8::try_from(number % 10).unwrap_or(0);
        let four = |n: u16| [digit(n / 1_000), digit(n / 100), digit(n / 10), digit(n)];
        Keys {
            digits: (0..10_000).map(four).collect(),
        }
    }

    fn four(&self, number: u64) -> &[u8; 4] {
        &self.digits[usize::try_from(number % 10_000).unwrap_or(0)]
    }

    /// The key of a number below 10^12.
    pub(crate) fn key(&self, number: u64) -> [u8; KEY_LEN] {
        let mut key = *b"key:000000000000";
        key[4..8].copy_from_slice(self.four(number / 100_000_000));
        key[8..12].copy_from_slice(self.four(number / 10_000));
        key[12..16].copy_from_slice(self.four(number));
        key
    }
}

/// A request but for its key: what stands before and behind it.
struct Template {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Template {
    fn push(&self, key: &[u8; KEY_LEN], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.before);
        out.extend_from_slice(key);
        out.extend_from_slice(&self.after);
    }
}

/// The requests of a run, all with values of one length.
pub(crate) struct Requests {
    set: Template,
    get: Template,
}

impl Requests {
    pub(crate) fn new(protocol: Protocol, write: WriteKind, value_len: usize) -> Requests {
        // A number, to which may be added.
        let value = vec![b'1'; value_len];
        let text = |before: String, parts: &[&[u8]]| Template {
            before: before.into_bytes(),
            after: parts.concat(),
        };
        let end = b"\r\n".as_slice();
        let (set, get) = match protocol {
            Protocol::Gbp => {
                let template = |request: Request<'_>| {
                    let mut before = Vec::new();
                    request.encode(&mut before).unwrap();
                    let after = before.split_off(before.len() - request.value().len());
                    before.truncate(before.len() - KEY_LEN);
                    Template { before, after }
                };
                let key = [0; KEY_LEN].as_slice();
                let value = value.as_slice();
                let put = |expiry| {
                    let (condition, want) = (Condition::Always, Want::default());
                    let put = Put {
                        condition,
                        expiry,
                        want,
                        value,
                    };
                    put.encode()
                };
                let expiring = put(Expiry::Ttl(EXPIRY_SECONDS * 1_000));
                let plain = put(Expiry::None);
                let add = Opcode::Add.spec().value_of([0, 1, 0, 0]);
                let set = match write {
                    WriteKind::Set => Request::Set { key, value },
                    WriteKind::Put => Request::Put { key, value: &plain },
                    WriteKind::SetExpiring => Request::Put {
                        key,
                        value: &expiring,
                    },
                    WriteKind::Add => Request::Add { key, value: &add },
                };
                (template(set), template(Request::Get { key }))
            }
            Protocol::Resp => {
                let len = format!("\r\n${value_len}\r\n");
                let of = |count: u8, name: &str| {
                    format!("*{count}\r\n${}\r\n{name}\r\n${KEY_LEN}\r\n", name.len())
                };
                let expiry = format!("\r\n$2\r\nEX\r\n$4\r\n{EXPIRY_SECONDS}\r\n");
                let set = match write {
                    WriteKind::Set | WriteKind::Put => {
                        text(of(3, "SET"), &[len.as_bytes(), &value, end])
                    }
                    WriteKind::SetExpiring => {
                        let after = [len.as_bytes(), &value, expiry.as_bytes()];
                        text(of(5, "SET"), &after)
                    }
                    WriteKind::Add => text(of(2, "INCR"), &[end]),
                };
                (set, text(of(2, "GET"), &[end]))
            }
            Protocol::Memcached => {
                let expiry = match write {
                    WriteKind::SetExpiring => EXPIRY_SECONDS,
                    // It adds to keys that exist alone, so no cell has it add.
                    WriteKind::Set | WriteKind::Put | WriteKind::Add => 0,
                };
                let len = format!(" 0 {expiry} {value_len}\r\n");
                (
                    text("set ".into(), &[len.as_bytes(), &value, end]),
                    text("get ".into(), &[end]),
                )
            }
        };
        Requests { set, get }
    }

    pub(crate) fn push(&self, is_get: bool, key: &[u8; KEY_LEN], out: &mut Vec<u8>) {
        let template = if is_get { &self.get } else { &self.set };
        template.push(key, out);
    }
}

/// The head of an answer: how many bytes it has in all, and how many of them are a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) len: usize,
    /// None for an answer without one: OK to a SET, or no such key.
    pub(crate) value_len: Option<usize>,
}

/// Reads the head of the answer that `bytes` begin with; none where more of them are needed.
///
/// # Errors
///
/// An error that the server answered, or what is no answer at all, as text.
pub(crate) fn head(protocol: Protocol, bytes: &[u8]) -> Result<Option<Head>, String> {
    if protocol == Protocol::Gbp {
        let &[status, a, b, c, d, ..] = bytes else {
            return Ok(None);
        };
        let value_len = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        return match status {
            0 => Ok(Some(Head {
                len: 5 + value_len,
                value_len: (value_len > 0).then_some(value_len),
            })),
            3 => Ok(Some(Head {
                len: 5,
                value_len: None,
            })),
            _ => Err(format!("an answer of status {status}")),
        };
    }
    let start = &bytes[..bytes.len().min(HEAD_LEN_MAX)];
    let Some(at) = start.iter().position(|&byte| byte == b'\n') else {
        return if start.len() < HEAD_LEN_MAX {
            Ok(None)
        } else {
            Err(format!("{:?}", String::from_utf8_lossy(start)))
        };
    };
    let line = &start[..=at];
    let number = |digits: &[u8]| -> Option<usize> {
        let digits = str::from_utf8(digits).ok()?;
        digits.trim_end().parse().ok()
    };
    let other = || Err(String::from_utf8_lossy(line).trim_end().to_owned());
    let whole = |value_len: usize, behind: usize| {
        Ok(Some(Head {
            len: line.len() + value_len + behind,
            value_len: Some(value_len),
        }))
    };
    match (protocol, line) {
        (Protocol::Resp, b"+OK\r\n" | b"$-1\r\n")
        | (Protocol::Memcached, b"STORED\r\n" | b"END\r\n") => Ok(Some(Head {
            len: line.len(),
            value_len: None,
        })),
        (Protocol::Resp, [b':', digits @ ..]) if number(digits).is_some() => Ok(Some(Head {
            len: line.len(),
            value_len: None,
        })),
        (Protocol::Resp, [b'$', digits @ ..]) => match number(digits) {
            Some(value_len) => whole(value_len, 2),
            None => other(),
        },
        (Protocol::Memcached, line) if line.starts_with(b"VALUE ") => {
            match line.rsplit(|&byte| byte == b' ').next().and_then(number) {
                Some(value_len) => whole(value_len, b"\r\nEND\r\n".len()),
                None => other(),
            }
        }
        _ => other(),
    }
}
