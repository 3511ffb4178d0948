//! Many active clients are served by the thread of one of them.

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::net::{Shutdown, TcpStream};

use gopherstore::wire::{Request, Status};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::node::{Node, wait_for};
use crate::{answer, closed, done, frames, pong};

/// For how long each connection's thread has run so far, in nanoseconds, in the order of their names.
fn times(node: &Node) -> Vec<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap();
    let mut clients: Vec<(String, u64)> = tasks
        .map(|task| task.unwrap().path())
        .map(|task| ["comm", "schedstat"].map(|file| std::fs::read_to_string(task.join(file))))
        .map(|files| files.map(Result::unwrap))
        .filter(|[name, _]| name.starts_with("client"))
        .map(|[name, times]| (name, times.split(' ').next().unwrap().parse().unwrap()))
        .collect();
    clients.sort_unstable();
    clients.into_iter().map(|(_, time)| time).collect()
}

#[test]
fn while_many_ask_the_threads_of_most_sleep() {
    const ROUNDS: u64 = 200;
    let node = Node::start();
    // There are half as many pollers as cores.
    let count = 4 * std::thread::available_parallelism().unwrap().get();
    let mut clients: Vec<TcpStream> = (0..count).map(|_| node.connect()).collect();
    let ping = frames(&[Request::Ping]);
    let mut ask = |rounds| {
        for _ in 0..rounds {
            for client in &mut clients {
                client.write_all(&ping).unwrap();
            }
            for client in &clients {
                assert_eq!(answer(client), pong());
            }
        }
    };
    // Now each has its thread.
    ask(1);
    // On a loaded machine a round may take so long that clients count as idle.
    wait_for("rounds in which they share", || {
        let before = times(&node);
        ask(ROUNDS);
        let after = times(&node);
        assert_eq!(before.len(), count);
        let mut ran: Vec<u64> = (after.iter().zip(before)).map(|(a, b)| a - b).collect();
        ran.sort_unstable();
        // If each served its own client, the lower half would have nearly half of the time.
        (ran[..count / 2].iter().sum::<u64>() < ran.iter().sum::<u64>() / 10).then_some(())
    });
}

/// Status and value.
type Answer = (Status, Vec<u8>);

/// One action of a client, written at once.
enum Deed {
    /// Requests, and what each has for an answer.
    Asks(Vec<u8>, Vec<Answer>),
    /// The same, and it shuts down its writing side.
    AsksAndLeaves(Vec<u8>, Vec<Answer>),
    /// The beginning of requests that its next deed ends.
    Begins(Vec<u8>, Vec<u8>, Vec<Answer>),
}

/// One of many clients, with a key of its own.
struct Client {
    stream: TcpStream,
    key: String,
    value: Option<Vec<u8>>,
    /// The rest of what it has begun, and what has to come then.
    begun: Option<(Vec<u8>, Vec<Answer>)>,
}

impl Client {
    /// Requests and their answers.
    fn requests(&mut self, random: &mut ChaCha8Rng) -> (Vec<u8>, Vec<Answer>) {
        let mut bytes = Vec::new();
        let mut answers = Vec::new();
        let count = [1, 1, 1, 1, 2, 16, 17, 300][random.random_range(0..8)];
        for _ in 0..count {
            let key = self.key.as_bytes();
            let request;
            let value: Vec<u8>;
            match random.random_range(0..if count < 20 { 12 } else { 9 }) {
                0..4 => {
                    request = Request::Get { key };
                    answers.push(match &self.value {
                        Some(value) => (Status::Ok, value.clone()),
                        None => (Status::NotFound, Vec::new()),
                    });
                }
                4..7 => {
                    let byte = random.random();
                    value = vec![byte; random.random_range(0..100)];
                    request = Request::Set { key, value: &value };
                    self.value = Some(value.clone());
                    answers.push(done());
                }
                7 => {
                    request = Request::Del { key };
                    let was = self.value.take();
                    let status = was.map_or(Status::NotFound, |_| Status::Ok);
                    answers.push((status, Vec::new()));
                }
                8 => {
                    request = Request::Ping;
                    answers.push(pong());
                }
                9 => {
                    // Of a length that PING does not use: refused, and the connection goes on.
                    bytes.extend_from_slice(&[4, 0, 1, 0, 0, 0, 0, b'k']);
                    answers.push((Status::Error, Vec::new()));
                    continue;
                }
                // Answers and requests that no connection has room for beforehand.
                _ => {
                    let len = [5_000, 20_000, 50_000, 70_000][random.random_range(0..4)];
                    value = vec![random.random(); len];
                    request = Request::Set { key, value: &value };
                    self.value = Some(value.clone());
                    answers.push(done());
                }
            }
            request.encode(&mut bytes).unwrap();
        }
        (bytes, answers)
    }

    fn deed(&mut self, random: &mut ChaCha8Rng) -> Deed {
        if let Some((rest, answers)) = self.begun.take() {
            return Deed::Asks(rest, answers);
        }
        let (bytes, answers) = self.requests(random);
        match random.random_range(0..40) {
            0 => Deed::AsksAndLeaves(bytes, answers),
            1..4 => {
                let at = random.random_range(0..bytes.len());
                Deed::Begins(bytes[..at].to_vec(), bytes[at..].to_vec(), answers)
            }
            _ => Deed::Asks(bytes, answers),
        }
    }
}

/// Clients of every kind, beside busy ones, get the same answers as alone.
#[test]
fn each_client_gets_its_answers_whoever_serves_it() {
    let seed = std::env::var("GOPHERSTORE_SEED").map_or_else(
        |_| RandomState::new().hash_one(0),
        |seed| seed.parse().unwrap(),
    );
    println!("GOPHERSTORE_SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut node = Node::start();
    let mut clients: Vec<Client> = (0..12)
        .map(|number| Client {
            stream: node.connect(),
            key: format!("client {number}"),
            value: None,
            begun: None,
        })
        .collect();
    for round in 0..600 {
        // Now and then all but a few are quiet for a while, and their threads wait for them alone.
        let active = if round % 100 < 80 { clients.len() } else { 4 };
        let mut expected = Vec::new();
        for client in &mut clients[..active] {
            let (bytes, answers, leaves) = match client.deed(&mut random) {
                Deed::Asks(bytes, answers) => (bytes, answers, false),
                Deed::AsksAndLeaves(bytes, answers) => (bytes, answers, true),
                Deed::Begins(bytes, rest, answers) => {
                    client.begun = Some((rest, answers));
                    (bytes, Vec::new(), false)
                }
            };
            client.stream.write_all(&bytes).unwrap();
            if leaves {
                client.stream.shutdown(Shutdown::Write).unwrap();
            }
            expected.push((answers, leaves));
        }
        for (client, (answers, leaves)) in clients.iter_mut().zip(expected) {
            for (number, expected) in answers.into_iter().enumerate() {
                let got = answer(&client.stream);
                let is_same = got == expected || got.0 == Status::Error && expected.0 == got.0;
                assert!(is_same, "round {round}, {}, {number}", client.key);
            }
            if leaves {
                closed(&client.stream);
                client.stream = node.connect();
            }
        }
    }
    for client in &mut clients {
        let (rest, answers) = client.begun.take().unwrap_or_default();
        client.stream.write_all(&rest).unwrap();
        for expected in answers {
            assert_eq!(answer(&client.stream).0, expected.0);
        }
    }
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0));
    assert!(!node.log().contains("cutting off"), "{}", node.log());
}
