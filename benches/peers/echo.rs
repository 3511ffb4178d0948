//! The limit of this shape of server: a thread for each connection that parses GBP and answers from a constant. No map,
//! no lock.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use gopherstore::wire::Opcode;
use gopherstore::wire::request::{HEADER_LEN, RequestHeader};

use crate::Outcome;

/// Bytes of input that it begins with.
const BUFFER_BYTES: usize = 64 << 10;

/// Prints its address and serves until its standard input ends, so that it does not outlive who started it.
pub(crate) fn serve(value_len: usize) -> Outcome<()> {
    let failed = |error: std::io::Error| format!("echo: {error}");
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(failed)?;
    println!("echo: ready on {}", listener.local_addr().map_err(failed)?);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let value = vec![b'v'; value_len];
            // A failed start closes the connection, which the measuring program reports.
            let _ = thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(move || answer(stream, &value));
        }
    });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map_err(failed)?;
    Ok(())
}

fn answer(mut stream: TcpStream, value: &[u8]) {
    let _ = stream.set_nodelay(true);
    let mut found = vec![0];
    found.extend_from_slice(&u32::try_from(value.len()).unwrap_or(0).to_be_bytes());
    found.extend_from_slice(value);
    let (mut buffer, mut have, mut out) = (vec![0; BUFFER_BYTES], 0, Vec::new());
    loop {
        have += match stream.read(&mut buffer[have..]) {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let mut at = 0;
        while let Some((&bytes, _)) = buffer[at..have].split_first_chunk::<HEADER_LEN>() {
            let header = RequestHeader::decode(bytes);
            let len = header.frame_len();
            if at + len > have {
                if len > buffer.len() {
                    buffer.resize(len * 2, 0);
                }
                break;
            }
            if header.opcode == Opcode::Get.byte() {
                out.extend_from_slice(&found);
            } else {
                out.extend_from_slice(&[0; 5]);
            }
            at += len;
        }
        buffer.copy_within(at..have, 0);
        have -= at;
        if stream.write_all(&out).is_err() {
            return;
        }
        out.clear();
    }
}
