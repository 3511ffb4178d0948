//! The generator: one thread, any number of connections, the same requests for every server.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::epoll;
use rustix::fs::Timespec;

use crate::protocol::{self, Head, Keys, Protocol, Requests, head};
use crate::servers::Written;
use crate::{Outcome, check_interrupted, servers};

/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;

/// How long a server may leave every connection without an answer.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// When a run is over.
#[derive(Clone, Copy)]
pub(crate) enum Until<'a> {
    /// After this time, counted once it has warmed up.
    Time(Duration),
    /// When another thread says so.
    Told(&'a AtomicBool),
    /// When each key has been set once, in their order.
    EachKeySet,
}

/// The requests to a server.
#[derive(Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) protocol: Protocol,
    pub(crate) addr: SocketAddr,
    /// Its process, for the processor time that it uses.
    pub(crate) pid: u32,
    pub(crate) connections: usize,
    /// Requests in flight on each connection: as many are sent together, and the next once all are answered.
    pub(crate) depth: usize,
    /// Of a hundred requests, how many are GETs.
    pub(crate) get_percent: u64,
    /// Keys, of which each request takes one at random.
    pub(crate) keys: u64,
    /// The number of the first of them.
    pub(crate) first_key: u64,
    /// Requests a second, of all connections together; none for as many as are answered.
    pub(crate) rate: Option<u64>,
    pub(crate) value_len: usize,
    pub(crate) write: protocol::WriteKind,
    pub(crate) until: Until<'a>,
    pub(crate) seed: u64,
}

/// The result of a run.
pub(crate) struct Measured {
    pub(crate) requests: u64,
    pub(crate) time: Duration,
    /// The server's processor time.
    pub(crate) processor: Duration,
    pub(crate) written: Written,
    /// Nanoseconds from the sending of requests until the last of their answers, for those that go together. At a rate,
    /// from the time at which they were to be sent.
    pub(crate) latency: Histogram<u64>,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        count(self.requests) / self.time.as_secs_f64()
    }

    /// Microseconds.
    pub(crate) fn latency_us(&self, quantile: f64) -> f64 {
        count(self.latency.value_at_quantile(quantile)) / 1e3
    }

    /// Milliseconds.
    pub(crate) fn longest_ms(&self) -> f64 {
        count(self.latency.max()) / 1e6
    }

    /// Microseconds for each request.
    pub(crate) fn processor_us(&self) -> f64 {
        self.processor.as_secs_f64() * 1e6 / count(self.requests)
    }
}

/// As precise as a float is.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn count(number: u64) -> f64 {
    number as f64
}

/// Which keys come next, and what is done with them.
struct Choice {
    state: u64,
    next_key: u64,
}

impl Choice {
    /// xorshift64*: a few cycles a number.
    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

struct Connection {
    stream: TcpStream,
    out: Vec<u8>,
    sent: usize,
    /// Bytes of the answer that is coming in which are still to come.
    missing: usize,
    /// The start of an answer, too short to tell its length.
    start: Vec<u8>,
    /// Answers that are still to come.
    left: usize,
    since: Instant,
    waits_to_write: bool,
}

impl Connection {
    /// Takes what has come and returns how many answers ended with it.
    fn take(&mut self, load: &Load<'_>, bytes: &[u8]) -> Outcome<u64> {
        let (mut joined, mut bytes) = (Vec::new(), bytes);
        if !self.start.is_empty() {
            joined.append(&mut self.start);
            joined.extend_from_slice(bytes);
            bytes = &joined;
        }
        let mut answers = 0;
        loop {
            if self.missing > 0 {
                let taken = self.missing.min(bytes.len());
                bytes = &bytes[taken..];
                self.missing -= taken;
                if self.missing > 0 {
                    return Ok(answers);
                }
                answers += 1;
            }
            if bytes.is_empty() {
                return Ok(answers);
            }
            let Some(Head { len, value_len }) = head(load.protocol, bytes)? else {
                self.start = bytes.to_vec();
                return Ok(answers);
            };
            let is_number = load.write == protocol::WriteKind::Add;
            // Every key is there, and all values are of one length.
            if is_number {
                // A sum has as many digits as it has.
            } else if value_len.is_some_and(|len| len != load.value_len)
                || (load.get_percent == 100 && value_len.is_none() && load.value_len > 0)
            {
                return Err(format!(
                    "an answer with a value of {value_len:?} bytes, not {}",
                    load.value_len
                ));
            }
            self.missing = len;
        }
    }

    /// Sends what the socket takes, and has epoll tell when it takes more.
    fn flush(&mut self, epoll: &impl std::os::fd::AsFd, number: u64) -> Outcome<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("cannot write: {error}")),
            }
        }
        let waits = self.sent < self.out.len();
        if waits != self.waits_to_write {
            self.waits_to_write = waits;
            let flags = if waits {
                epoll::EventFlags::IN | epoll::EventFlags::OUT
            } else {
                epoll::EventFlags::IN
            };
            epoll::modify(
                epoll,
                &self.stream,
                epoll::EventData::new_u64(number),
                flags,
            )
            .map_err(|error| format!("epoll: {error}"))?;
        }
        Ok(())
    }
}

/// Puts as many requests as go together into `out`; how many these are, none at the end.
fn fill(
    load: &Load<'_>,
    keys: &Keys,
    requests: &Requests,
    choice: &mut Choice,
    out: &mut Vec<u8>,
) -> usize {
    out.clear();
    for number in 0..load.depth {
        if let Until::EachKeySet = load.until {
            if choice.next_key == load.keys {
                return number;
            }
            requests.push(false, &keys.key(choice.next_key), out);
            choice.next_key += 1;
        } else {
            let is_get = choice.random() % 100 < load.get_percent;
            let key = keys.key(load.first_key + choice.random() % load.keys);
            requests.push(is_get, &key, out);
        }
    }
    load.depth
}

/// Opens a connection that does not wait for others' bytes.
pub(crate) fn connect(addr: SocketAddr) -> Outcome<TcpStream> {
    let stream = TcpStream::connect(addr).map_err(|error| format!("cannot connect: {error}"))?;
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    Ok(stream)
}

/// When the next requests are to be sent, at a rate.
struct Pace {
    due: Instant,
    interval: Duration,
}

impl Pace {
    fn of(load: &Load<'_>) -> Option<Pace> {
        let rate = load.rate?;
        let depth = u64::try_from(load.depth).unwrap_or(u64::MAX);
        Some(Pace {
            due: Instant::now(),
            interval: Duration::from_secs_f64(count(depth) / count(rate)),
        })
    }
}

/// A load on a server: its connections, and the requests that they are to send.
struct Driver<'l> {
    load: &'l Load<'l>,
    epoll: OwnedFd,
    keys: Keys,
    requests: Requests,
    choice: Choice,
    connections: Vec<Connection>,
    pace: Option<Pace>,
    /// At a rate: the connections that have nothing in flight.
    free: Vec<u64>,
    /// Connections that are not at their end.
    busy: usize,
    /// Requests that were answered.
    done: u64,
    latency: Histogram<u64>,
}

impl<'l> Driver<'l> {
    /// Opens the connections.
    fn new(load: &'l Load<'l>) -> Outcome<Driver<'l>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| failed("epoll", &e))?;
        let mut connections = Vec::new();
        for number in 0..u64::try_from(load.connections).unwrap_or(u64::MAX) {
            let stream = connect(load.addr)?;
            stream
                .set_nonblocking(true)
                .map_err(|e| failed("socket", &e))?;
            let (data, flags) = (epoll::EventData::new_u64(number), epoll::EventFlags::IN);
            epoll::add(&epoll, &stream, data, flags).map_err(|e| failed("epoll", &e))?;
            connections.push(Connection {
                stream,
                out: Vec::new(),
                sent: 0,
                missing: 0,
                start: Vec::new(),
                left: 0,
                since: Instant::now(),
                waits_to_write: false,
            });
        }
        let latency = Histogram::new_with_bounds(1, 600_000_000_000, 3);
        Ok(Driver {
            load,
            epoll,
            keys: Keys::new(),
            requests: Requests::new(load.protocol, load.write, load.value_len),
            choice: Choice {
                state: load.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
                next_key: 0,
            },
            connections,
            pace: Pace::of(load),
            free: Vec::new(),
            busy: 0,
            done: 0,
            latency: latency.map_err(|e| e.to_string())?,
        })
    }

    /// Sends the first requests of each connection. At a rate, all connections are free.
    fn begin(&mut self) -> Outcome<()> {
        for number in 0..u64::try_from(self.connections.len()).unwrap_or(u64::MAX) {
            if self.pace.is_some() {
                self.free.push(number);
                self.busy += 1;
                continue;
            }
            self.busy += 1;
            self.send_next(number, Instant::now())?;
        }
        Ok(())
    }

    /// Fills a connection with its next requests, which count from `since`, and sends them.
    fn send_next(&mut self, number: u64, since: Instant) -> Outcome<()> {
        let connection = &mut self.connections[usize::try_from(number).unwrap_or(0)];
        let out = &mut connection.out;
        connection.left = fill(self.load, &self.keys, &self.requests, &mut self.choice, out);
        (connection.sent, connection.since) = (0, since);
        self.busy -= usize::from(connection.left == 0);
        connection.flush(&self.epoll, number)
    }

    /// At a rate, sends the requests that are due. Returns how long to wait for answers.
    fn send_due(&mut self) -> Outcome<Duration> {
        let mut wait = Duration::from_millis(100);
        while !self.free.is_empty()
            && let Some(pace) = &mut self.pace
        {
            if pace.due > Instant::now() {
                wait = wait.min(pace.due.saturating_duration_since(Instant::now()));
                break;
            }
            let since = pace.due;
            pace.due += pace.interval;
            let number = self.free.pop().unwrap_or_default();
            self.send_next(number, since)?;
        }
        Ok(wait)
    }

    /// Waits for answers.
    fn wait(&self, time: Duration, events: &mut Vec<epoll::Event>) -> Outcome<()> {
        events.clear();
        let time = Timespec {
            tv_sec: 0,
            tv_nsec: time.subsec_nanos().into(),
        };
        let spare = rustix::buffer::spare_capacity(events);
        match epoll::wait(&self.epoll, spare, Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => check_interrupted(),
            Err(error) => Err(failed("epoll", &error)),
        }
    }

    /// Reads the answers of a connection, and sends its next requests once all are there.
    fn receive(&mut self, number: u64, buffer: &mut [u8]) -> Outcome<()> {
        let connection = &mut self.connections[usize::try_from(number).unwrap_or(0)];
        loop {
            let count = match connection.stream.read(buffer) {
                Ok(0) => return Err("the server closed a connection".to_owned()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(failed("cannot read", &error)),
            };
            let answers = connection.take(self.load, &buffer[..count])?;
            self.done += answers;
            connection.left = connection
                .left
                .checked_sub(usize::try_from(answers).unwrap_or(usize::MAX))
                .ok_or("more answers than requests")?;
            if count < buffer.len() {
                break;
            }
        }
        let has_sent = connection.sent == connection.out.len();
        if connection.left > 0 || !has_sent || self.free.contains(&number) {
            return connection.flush(&self.epoll, number);
        }
        let nanos = u64::try_from(connection.since.elapsed().as_nanos()).unwrap_or(0);
        self.latency.saturating_record(nanos);
        if self.pace.is_some() {
            self.free.push(number);
            return Ok(());
        }
        self.send_next(number, Instant::now())
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> String {
    format!("{what}: {error}")
}

/// Drives a server.
pub(crate) fn drive(load: &Load<'_>) -> Outcome<Measured> {
    let mut driver = Driver::new(load)?;
    // A fifth of the time to warm up; only then it counts.
    let mut warm_until = match load.until {
        Until::Time(time) => Some(Instant::now() + time / 5),
        Until::Told(_) | Until::EachKeySet => None,
    };
    let mut start = Instant::now();
    let mut processor = servers::processor_time(load.pid);
    let mut written = Written::by(load.pid);
    driver.begin()?;
    let mut buffer = vec![0; READ_BYTES];
    let mut events = Vec::with_capacity(1024);
    let mut heard = Instant::now();
    while driver.busy > 0 {
        let time = driver.send_due()?;
        driver.wait(time, &mut events)?;
        let now = Instant::now();
        if warm_until.is_some_and(|until| now >= until) {
            warm_until = None;
            driver.latency.reset();
            (driver.done, start) = (0, now);
            processor = servers::processor_time(load.pid);
            written = Written::by(load.pid);
        }
        match load.until {
            Until::Time(time) if warm_until.is_none() && now >= start + time => break,
            Until::Told(over) if over.load(Ordering::Relaxed) => break,
            Until::Time(_) | Until::Told(_) | Until::EachKeySet => {}
        }
        if !events.is_empty() {
            heard = now;
        } else if now - heard > SILENCE_MAX {
            return Err(format!("no answer in {} s", SILENCE_MAX.as_secs()));
        }
        for event in &events {
            driver.receive(event.data.u64(), &mut buffer)?;
        }
    }
    Ok(Measured {
        requests: driver.done,
        time: start.elapsed(),
        processor: servers::processor_time(load.pid).saturating_sub(processor),
        written: Written::by(load.pid).since(written),
        latency: driver.latency,
    })
}
