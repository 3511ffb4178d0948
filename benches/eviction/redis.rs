//! A redis-server as a cache.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{CAPACITY, Score, VALUE_LEN, key};

/// Keys that are asked for in one write.
const BATCH: usize = 16;

/// How long a server has for its start.
const START: Duration = Duration::from_secs(20);

/// Drives a server through `trace`, evenly spread over `time`. Returns the entries at the end, too; `None` where no
/// server is installed.
pub(crate) fn run(trace: &[u32], time: Duration) -> Option<(Score, u64)> {
    let mut server = Server::start()?;
    // As much as this many entries take.
    let keys: Vec<u32> = (0..u32::try_from(CAPACITY).unwrap()).collect();
    keys.chunks(BATCH).for_each(|keys| server.store(keys));
    let bytes = server.memory_bytes();
    server.ask(&["FLUSHALL"]);
    server.ask(&["CONFIG", "SET", "maxmemory", &bytes.to_string()]);
    server.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let mut score = Score::default();
    let begin = Instant::now();
    let batches = trace.len().div_ceil(BATCH);
    for (at, batch) in trace.chunks(BATCH).enumerate() {
        let due = time.mul_f64(at as f64 / batches as f64);
        thread::sleep(due.saturating_sub(begin.elapsed()));
        let found = server.are_there(batch);
        // A key that comes twice in a batch is stored after its first access.
        let mut missed = HashSet::new();
        for (offset, (&key, is_there)) in batch.iter().zip(found).enumerate() {
            let is_hit = is_there || !missed.insert(key);
            score.count(at * BATCH + offset, is_hit);
        }
        let missed: Vec<u32> = batch
            .iter()
            .copied()
            .filter(|key| missed.remove(key))
            .collect();
        server.store(&missed);
    }
    let held = server.ask(&["DBSIZE"]);
    Some((score, held.trim_start_matches(':').parse().unwrap()))
}

struct Server {
    process: Child,
    stream: BufReader<UnixStream>,
    /// Holds the socket.
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start() -> Option<Server> {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("socket");
        let settings = [
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
        ];
        let mut process = Command::new("redis-server")
            .args(settings)
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let until = Instant::now() + START;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => {
                    let _ = process.kill();
                    panic!("redis-server does not listen: {error}");
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        };
        let stream = BufReader::new(stream);
        let _folder = folder;
        Some(Server {
            process,
            stream,
            _folder,
        })
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// One line of an answer.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        assert!(
            line.ends_with("\r\n") && !line.starts_with('-'),
            "redis answers {line:?}"
        );
        line.truncate(line.len() - 2);
        line
    }

    /// Reads a bulk string; `None` where there is none.
    fn bulk(&mut self) -> Option<Vec<u8>> {
        let line = self.line();
        let len: usize = line.strip_prefix('$').unwrap().parse().ok()?;
        let mut bytes = vec![0; len + 2];
        self.stream.read_exact(&mut bytes).unwrap();
        Some(bytes)
    }

    /// Sends one command whose answer is a line.
    fn ask(&mut self, words: &[&str]) -> String {
        self.send(&command(words));
        self.line()
    }

    fn memory_bytes(&mut self) -> u64 {
        self.send(&command(&["INFO", "memory"]));
        let text = String::from_utf8(self.bulk().unwrap()).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("used_memory:"));
        line.unwrap().parse().unwrap()
    }

    fn are_there(&mut self, keys: &[u32]) -> Vec<bool> {
        let gets = keys
            .iter()
            .flat_map(|&number| command(&["GET", &key(number)]));
        let gets: Vec<u8> = gets.collect();
        self.send(&gets);
        keys.iter().map(|_| self.bulk().is_some()).collect()
    }

    fn store(&mut self, keys: &[u32]) {
        let value = "v".repeat(VALUE_LEN);
        let sets = keys
            .iter()
            .flat_map(|&number| command(&["SET", &key(number), &value]));
        let sets: Vec<u8> = sets.collect();
        self.send(&sets);
        for _ in keys {
            assert_eq!(self.line(), "+OK");
        }
    }
}

fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}
