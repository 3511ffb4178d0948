//! A node in a thread, as small as the examples in this crate's documentation need it.

use std::{
    collections::HashMap,
    fmt::Debug,
    io::{self, Read, Write},
    net::TcpListener,
    thread,
};

use crate::wire::{
    Buffer, Request, Response, Status,
    request::{Limits, Parsed, parse},
};

/// Runs an example with the address of a node that serves it, one connection at a time.
pub fn with_node<E: Debug>(example: impl FnOnce(&str) -> Result<(), E>) {
    let result = TcpListener::bind("127.0.0.1:0").and_then(|listener| {
        let addr = listener.local_addr()?.to_string();
        // Ends with the example's process.
        thread::spawn(move || serve(&listener));
        Ok(addr)
    });
    let outcome = result.map(|addr| example(&addr));
    assert!(matches!(outcome, Ok(Ok(()))), "{outcome:?}");
}

fn serve(listener: &TcpListener) -> io::Result<()> {
    let mut map = HashMap::new();
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut buffer = Buffer::new();
        loop {
            let mut out = Vec::new();
            while let Ok(Parsed::Whole(frame)) = parse(buffer.bytes(), &Limits::default()) {
                let (status, value) = match frame.request() {
                    Request::Set { key, value } => {
                        map.insert(key.to_vec(), value.to_vec());
                        (Status::Ok, Vec::new())
                    }
                    Request::Get { key } => match map.get(key) {
                        Some(value) => (Status::Ok, value.clone()),
                        None => (Status::NotFound, Vec::new()),
                    },
                    Request::Del { key } => match map.remove(key) {
                        Some(_) => (Status::Ok, Vec::new()),
                        None => (Status::NotFound, Vec::new()),
                    },
                    Request::Ping => (Status::Ok, b"PONG".to_vec()),
                    Request::Status | Request::Discard | Request::Follow { .. } => {
                        (Status::Error, b"a map has no such operation".to_vec())
                    }
                };
                let len = frame.bytes().len();
                let response = Response {
                    status: status.byte(),
                    value: &value,
                };
                response.encode(&mut out).map_err(io::Error::other)?;
                buffer.consume(len);
            }
            stream.write_all(&out)?;
            match stream.read(buffer.space(7))? {
                0 => break,
                count => buffer.filled(count),
            }
        }
    }
}
