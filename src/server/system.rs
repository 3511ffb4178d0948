//! Three calls to the system and its libraries that no safe interface offers.

#![allow(unsafe_code)]

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Bytes that were written to the socket and that the peer's system has not acknowledged.
///
/// Closing a socket whose peer still sends resets the connection and discards them: a slow reader of 3,000 answers
/// received 20 of them from a server that closed without this check.
///
/// # Errors
///
/// When the socket is no longer connected.
pub(super) fn unacknowledged_bytes(stream: &TcpStream) -> io::Result<usize> {
    // After a reset the count stays as it was, though nothing is acknowledged any more.
    stream.peer_addr()?;
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as `stream` lives, and this request writes one `int` to where it is told.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Has all threads allocate from one heap of the allocator, where the memory of the data set is to keep a limit.
///
/// By itself glibc has several. Memory that one thread frees is then not used by another, and with random lengths of
/// values the process took 1.2 to 1.7 times what the data set did; with one heap it is 1.01 to 1.04 times
/// (`cargo bench --bench memory`). It costs no time that was measured on 2 cores: each thread has a cache of free
/// blocks before the heap.
pub(super) fn use_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no memory of ours, and may be called by any thread at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns the allocator's free memory to the operating system.
///
/// By itself glibc returns little: after a load, 10,000 idle connections held five times the memory of before, and 1.1
/// times after this call.
pub(super) fn trim_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no memory of ours, locks what it walks, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
