//! The built server, talked to byte by byte.
//!
//! `GOPHERSTORE_LONG=1` fails the power, the calls and the processes of nodes with a data directory as often as the
//! long run asks for; `GOPHERSTORE_LONG=10%` a tenth of that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod addresses;
mod bad_input;
mod clients;
#[path = "../support/cluster.rs"]
#[allow(dead_code)] // the rest is for other tests
mod cluster;
mod directories;
mod disk_status;
mod dispositions;
mod durability;
#[path = "../support/durable.rs"]
mod durable;
mod full_disk;
mod last_snapshot;
mod limits;
#[path = "../support/load.rs"]
#[allow(dead_code)] // the rest is for other tests
mod load;
mod memory;
#[path = "../support/names.rs"]
#[allow(dead_code)] // the rest is for other tests
mod names;
#[path = "../support/node.rs"]
mod node;
mod outputs;
mod power;
mod process;
#[path = "../support/proxy.rs"]
#[allow(dead_code)] // the rest is for other tests
mod proxy;
#[path = "../support/quick.rs"]
mod quick;
#[path = "../support/recorder.rs"]
#[allow(dead_code)] // the rest is for other tests
mod recorder;
mod requests;
mod sharing;
mod signals;
#[path = "../support/silent.rs"]
#[allow(unreachable_pub)]
mod silent;
mod steps;
mod stops;
mod threads;
#[path = "../support/tools.rs"]
#[allow(dead_code)] // the rest is for other tests
mod tools;
#[path = "../protocol/vectors.rs"]
mod vectors;
#[path = "../support/writes.rs"]
mod writes;

use std::io::{Read, Write};
use std::net::TcpStream;

use gopherstore::wire::{Request, Status};

/// Requests as bytes, one after another.
fn frames(requests: &[Request<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        request.encode(&mut bytes).unwrap();
    }
    bytes
}

/// Stores `value` under the key `k`.
fn set_k(mut stream: &TcpStream, value: &[u8]) {
    let request = Request::Set { key: b"k", value };
    stream.write_all(&frames(&[request])).unwrap();
    assert_eq!(answer(stream), done());
}

/// Reads one answer.
fn answer(mut stream: &TcpStream) -> (Status, Vec<u8>) {
    let mut header = [0; 5];
    stream.read_exact(&mut header).unwrap();
    let len = u32::from_be_bytes(header[1..].try_into().unwrap());
    let mut value = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut value).unwrap();
    (Status::try_from(header[0]).unwrap(), value)
}

/// Reads one answer, an ERROR, and gives its message.
fn error(stream: &TcpStream) -> String {
    let (status, value) = answer(stream);
    let message = String::from_utf8(value).unwrap();
    assert_eq!(status, Status::Error, "{message}");
    message
}

/// The node has closed in good order: an end of stream, and no reset.
fn closed(mut stream: &TcpStream) {
    let mut rest = Vec::new();
    assert_eq!(stream.read_to_end(&mut rest).unwrap(), 0, "{rest:?}");
}

fn pong() -> (Status, Vec<u8>) {
    (Status::Ok, b"PONG".to_vec())
}

fn done() -> (Status, Vec<u8>) {
    (Status::Ok, Vec::new())
}
