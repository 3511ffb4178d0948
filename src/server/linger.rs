//! Sockets whose last answer is sent while their client may still be sending.
//!
//! Closing a socket with unread input resets the connection, and the reset can overtake the answer. So such a socket
//! first has its writing side shut down, which tells the client that this was all, and is then read until the client
//! has closed, for a bounded time. One thread does that for all of them, so that a refused client costs neither a
//! thread nor one of the `max_connections`.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Sockets held at the most; beyond it the oldest is closed, whatever its client still sends.
const SOCKETS_MAX: usize = 1_024;

/// How long a socket is held while its client goes on sending.
const HOLD: Duration = Duration::from_secs(30);

/// How long a socket is held while its client says nothing.
const SILENCE: Duration = Duration::from_secs(2);

/// How long the sockets that are left are held once the server stops.
const HOLD_AT_STOP: Duration = Duration::from_millis(200);

/// Between two looks at the sockets: while bytes come, and while none do.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

struct Held {
    stream: Arc<TcpStream>,
    until: Instant,
    heard: Instant,
}

/// Drains the sockets that come through `incoming`, until its senders are gone.
pub(super) fn run(incoming: &Receiver<Arc<TcpStream>>) {
    let mut held: VecDeque<Held> = VecDeque::new();
    let mut scratch = vec![0; 64 << 10];
    let mut pause = PAUSE.1;
    let mut stop_at = None;
    while stop_at.is_none_or(|at| Instant::now() < at && !held.is_empty()) {
        let received = match (stop_at, held.is_empty()) {
            (Some(_), _) => {
                std::thread::sleep(pause);
                Err(RecvTimeoutError::Timeout)
            }
            (None, true) => incoming.recv().map_err(|_| RecvTimeoutError::Disconnected),
            (None, false) => incoming.recv_timeout(pause),
        };
        let now = Instant::now();
        match received {
            Ok(stream) => {
                // Where either fails the client is gone, which the first read will show.
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.set_nonblocking(true);
                if held.len() == SOCKETS_MAX {
                    held.pop_front();
                }
                held.push_back(Held {
                    stream,
                    until: now + HOLD,
                    heard: now,
                });
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => stop_at = Some(now + HOLD_AT_STOP),
        }
        let mut came = false;
        held.retain_mut(|held| {
            let (gone, bytes) = drain(&held.stream, &mut scratch);
            if bytes {
                held.heard = now;
                came = true;
            }
            !gone && now < held.until && now < held.heard + SILENCE
        });
        pause = if came { PAUSE.0 } else { PAUSE.1 };
    }
}

/// Reads what is there, up to a few buffers so that one client cannot keep the others waiting. Returns whether the
/// client is gone, and whether anything came.
fn drain(mut stream: &TcpStream, scratch: &mut [u8]) -> (bool, bool) {
    let mut came = false;
    for _ in 0..16 {
        match stream.read(scratch) {
            Ok(0) => return (true, came),
            Ok(_) => came = true,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (error.kind() != ErrorKind::WouldBlock, came),
        }
    }
    (false, came)
}
