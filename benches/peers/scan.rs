//! A scan of all keys, in GBP and in RESP: one request after another, as a client has to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use gopherstore::wire::scan::{Scan, ScanAnswer};

use crate::Outcome;
use crate::drive::connect;
use crate::protocol::Protocol;

/// COUNT of a SCAN in RESP.
const RESP_COUNT: usize = 1_000;

/// Reads all keys, and returns how many came.
pub(crate) fn scan(protocol: Protocol, addr: SocketAddr) -> Outcome<u64> {
    let mut stream = connect(addr)?;
    match protocol {
        Protocol::Gbp => scan_gbp(&mut stream),
        Protocol::Resp => scan_resp(&mut stream),
        Protocol::Memcached => Err("memcached has no scan".to_owned()),
    }
}

fn send(stream: &mut TcpStream, bytes: &[u8]) -> Outcome<()> {
    stream
        .write_all(bytes)
        .map_err(|error| format!("cannot write: {error}"))
}

fn scan_gbp(stream: &mut TcpStream) -> Outcome<u64> {
    let (mut request, mut count) = (Scan::default(), 0);
    let (mut frame, mut value) = (Vec::new(), Vec::new());
    loop {
        frame.clear();
        request.encode(&mut frame).map_err(|e| e.to_string())?;
        send(stream, &frame)?;
        let mut header = [0; 5];
        let failed = |error| format!("cannot read: {error}");
        stream.read_exact(&mut header).map_err(failed)?;
        let [status, a, b, c, d] = header;
        let len = u32::from_be_bytes([a, b, c, d]);
        value.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        stream.read_exact(&mut value).map_err(failed)?;
        if status != 0 {
            return Err(format!("an answer of status {status}"));
        }
        let answer = ScanAnswer::decode(&value).map_err(|error| error.to_string())?;
        for item in answer.items() {
            count += u64::from(!item.key.is_empty());
        }
        if answer.next.is_end(answer.partitions) {
            return Ok(count);
        }
        request.place = answer.next;
    }
}

/// Bytes of an answer in RESP, read as they come.
struct Reader<'s> {
    stream: &'s mut TcpStream,
    buffer: Vec<u8>,
    at: usize,
}

impl Reader<'_> {
    fn more(&mut self) -> Outcome<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let filled = self.buffer.len();
        self.buffer.resize(filled + (64 << 10), 0);
        let count = self.stream.read(&mut self.buffer[filled..]);
        let count = count.map_err(|error| format!("cannot read: {error}"))?;
        self.buffer.truncate(filled + count);
        if count == 0 {
            return Err("the server closed a connection".to_owned());
        }
        Ok(())
    }

    /// The number in a line that begins with `kind`.
    fn number(&mut self, kind: u8) -> Outcome<usize> {
        loop {
            let rest = &self.buffer[self.at..];
            if let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                let line = &rest[..end];
                let digits = line
                    .strip_prefix(&[kind])
                    .and_then(|digits| str::from_utf8(digits).ok());
                let number = digits.and_then(|digits| digits.trim_end().parse().ok());
                let number = number.ok_or_else(|| String::from_utf8_lossy(line).into_owned())?;
                self.at += end + 1;
                return Ok(number);
            }
            self.more()?;
        }
    }

    /// The bytes of a string.
    fn string(&mut self) -> Outcome<&[u8]> {
        let len = self.number(b'$')?;
        while self.buffer.len() - self.at < len + 2 {
            self.more()?;
        }
        let start = self.at;
        self.at += len + 2;
        Ok(&self.buffer[start..start + len])
    }
}

fn scan_resp(stream: &mut TcpStream) -> Outcome<u64> {
    let (mut cursor, mut count) = ("0".to_owned(), 0);
    let mut reader = Reader {
        stream,
        buffer: Vec::new(),
        at: 0,
    };
    loop {
        let request = format!(
            "*4\r\n$4\r\nSCAN\r\n${}\r\n{cursor}\r\n$5\r\nCOUNT\r\n$4\r\n{RESP_COUNT}\r\n",
            cursor.len()
        );
        send(reader.stream, request.as_bytes())?;
        reader.number(b'*')?;
        cursor = String::from_utf8_lossy(reader.string()?).into_owned();
        for _ in 0..reader.number(b'*')? {
            count += u64::from(!reader.string()?.is_empty());
        }
        if cursor == "0" {
            return Ok(count);
        }
    }
}
