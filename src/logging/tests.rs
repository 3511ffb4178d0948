#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::*;

/// A pipe that takes one write at a time, and only when its reader asks for one.
struct Pipe(SyncSender<Vec<u8>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The reader is gone only once its test is over.
        let _ = self.0.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start() -> (Arc<Queue>, Receiver<Vec<u8>>) {
    let queue = Arc::new(Queue::default());
    let (sender, pipe) = sync_channel(0);
    let writer = Writer::new(Arc::clone(&queue), Pipe(sender), true);
    thread::spawn(move || writer.run());
    (queue, pipe)
}

fn next(pipe: &Receiver<Vec<u8>>) -> String {
    let bytes = pipe.recv_timeout(Duration::from_secs(30)).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn lines_of_a_log_that_nobody_reads_are_dropped_and_counted_where_they_are_missing() {
    let (queue, pipe) = start();
    // The writer takes this one, and stands in its write.
    queue.offer(b"first\n");
    while !queue.state.lock().lines.is_empty() {
        thread::yield_now();
    }
    let long = format!("{}\n", "x".repeat(QUEUE_BYTES_MAX - 7));
    queue.offer(long.as_bytes());
    queue.offer(b"second\n");
    for _ in 0..3 {
        queue.offer(b"\n");
    }
    // The end does not wait for it either.
    let begun = Instant::now();
    queue.wait_until_written(begun + Duration::from_millis(20));
    assert!(queue.state.lock().is_writing);

    assert_eq!(next(&pipe), "first\n");
    assert_eq!(next(&pipe), long);
    assert_eq!(
        next(&pipe),
        "<4>4 lines dropped: the log could not be written as fast as it grew, or not at all\n"
    );
    queue.offer(b"after\n");
    assert_eq!(next(&pipe), "after\n");
    queue.wait_until_written(Instant::now() + Duration::from_secs(30));
    let state = queue.state.lock();
    assert!(state.lines.is_empty() && state.dropped == 0);
}

/// A disk that is full after some bytes, until it has room again.
struct Disk {
    room: usize,
    written: Vec<u8>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.room);
        if len == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.written.extend_from_slice(&bytes[..len]);
        self.room -= len;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_that_a_full_disk_does_not_take_are_counted_and_the_next_ones_are_whole() {
    let disk = Disk {
        room: 7,
        written: Vec::new(),
    };
    let mut writer = Writer::new(Arc::default(), disk, true);
    writer.write(b"abcd\nefgh\nij\n");
    assert_eq!(writer.lost, 2);
    writer.write(b"kl\n");
    assert_eq!(writer.lost, 3);
    writer.out.room = 1_000;
    writer.write(b"mn\n");
    let written = String::from_utf8(writer.out.written).unwrap();
    assert_eq!(
        written,
        "abcd\nef\n<4>3 lines dropped: the log could not be written as fast as it grew, or not at all\nmn\n"
    );
}

#[test]
fn one_write_has_whole_lines_and_no_more_than_a_pipe_takes_as_a_whole() {
    let line = |len: usize| format!("{}\n", "x".repeat(len - 1));
    let lines = line(4_000) + &line(96) + &line(1) + &line(5_000) + &line(7);
    let mut rest = lines.as_bytes();
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let len = piece_len(rest);
        pieces.push(len);
        rest = &rest[len..];
    }
    assert_eq!(pieces, [4_096, 1, 5_000, 7]);
}

/// Set for the process in which the test below panics.
const CHILD: &str = "GOPHERSTORE_TEST_PANICS";

#[test]
fn a_panic_is_logged_and_ends_the_process_although_the_log_is_unread() {
    if env::var_os(CHILD).is_some() {
        let log = Log::start().unwrap();
        log::info!("a line before");
        let bug = thread::Builder::new().name("buggy".to_owned());
        let _ = bug.spawn(|| panic!("a bug")).unwrap().join();
        unreachable!("{log:?} has lost a panic");
    }
    for is_read in [true, false] {
        let (stderr, reader) = UnixStream::pair().unwrap();
        stderr.set_nonblocking(true).unwrap();
        while !is_read && (&stderr).write(b"\n").is_ok() {}
        stderr.set_nonblocking(false).unwrap();
        let name =
            "logging::tests::a_panic_is_logged_and_ends_the_process_although_the_log_is_unread";
        let status = process::Command::new(env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .env_remove(RUST_LOG)
            .stdout(process::Stdio::null())
            .stderr(OwnedFd::from(stderr))
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(6), "{status}");
        if is_read {
            let said = io::read_to_string(reader).unwrap();
            let (before, panic) = said.split_once("thread 'buggy' panicked at ").unwrap();
            assert!(before.contains("a line before"), "{said}");
            assert!(panic.contains("\na bug\n"), "{said}");
        }
    }
}

#[test]
fn a_filter_that_would_log_nothing_is_not_used() {
    for (filter, scope) in [
        ("", Scope::Empty),
        (" , ", Scope::Empty),
        ("debug", Scope::All),
        ("OFF", Scope::All),
        (" warn ,gopherstore::node=debug", Scope::All),
        ("gopherstore", Scope::All),
        ("gopherstore=trace", Scope::All),
        ("hyper=debug,info", Scope::All),
        ("info/node", Scope::All),
        ("gopherstore::server", Scope::Modules),
        ("hyper=off,gopherstore_server=info", Scope::Modules),
    ] {
        assert_eq!(judge_filter(filter), Ok(scope), "{filter}");
    }
    for (filter, fault) in [
        ("nonsense", "\"nonsense\" is neither a level nor a module"),
        ("info,debgu", "\"debgu\" is neither a level nor a module"),
        ("gopherstore=loud", "\"loud\" is no level"),
        ("gopherstore=info=debug", "\"info=debug\" is no level"),
        ("nonsense=debug", "\"nonsense\" is no module"),
        ("info/a/b", "more than one '/'"),
    ] {
        let said = judge_filter(filter).unwrap_err();
        assert!(said.contains(fault), "{filter}: {said}");
        let choice = Choice::of_filter(Some(filter.into()));
        assert_eq!(choice.value, FILTER_DEFAULT);
        let remark = choice.remark.unwrap();
        assert!(
            remark.starts_with(&format!("RUST_LOG={filter}: ")),
            "{remark}"
        );
    }
}
