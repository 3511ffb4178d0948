//! Both sides of a stream joined in memory: no sockets, no threads, and the time as the test says.

#![allow(clippy::unwrap_used, clippy::panic)]

mod data;
mod ends;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::FollowError;
use super::accept::{Accepted, NotAccepted, accept};
use super::acks_in::AckReader;
use super::acks_out::AckTurn;
use super::following::{FollowerStream, Goal, Need};
use super::link::StreamEnd;
use super::sending::{LeaderStream, Sending};
use super::watching::{AcceptedWatch, WatchStream, accept_watch};
use crate::config::Config;
use crate::engine::Answers;
use crate::history::EpochStart;
use crate::log::Log;
use crate::node::{Node, Reply, RoleState};
use crate::replication::core::shutdown::Lacking;
use crate::replication::peers::{Peers, Replica};
use crate::wire::replication::{Message, Start, Watch, WatchFrom};
use crate::wire::request::{Limits, Parsed, parse};
use crate::wire::{Buffer, Request, Run, Status};

const CONFIG: &str = "cluster = \"c\"\nleader = \"n1\"\n\
    [[node]]\nname = \"n1\"\naddr = \"127.0.0.1:1\"\n\
    [[node]]\nname = \"n2\"\naddr = \"127.0.0.1:2\"\n\
    [[node]]\nname = \"n3\"\naddr = \"127.0.0.1:3\"\n\
    [replication]\nheartbeat_interval_ms = 500\nleader_timeout_ms = 5000\nbacklog_bytes = 1048576\n";

/// The interval of heartbeats above.
const INTERVAL: Duration = Duration::from_millis(500);

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A time to begin at.
#[cfg(test)]
fn start() -> Instant {
    Instant::now()
}

/// A node and its table of peers.
struct Host {
    node: Node,
    peers: Arc<Peers>,
    began: Instant,
}

impl Host {
    fn new(name: &str) -> Host {
        let config = Config::parse(CONFIG, "cluster.toml").unwrap();
        let mut nodes = config.nodes.iter();
        let this = nodes.find(|node| node.name == name).unwrap();
        let mut node = Node::of_cluster(&config, this);
        let peers = Peers::attach(&mut node);
        let began = start();
        Host { node, peers, began }
    }

    /// The leader, in epoch 1.
    fn leader() -> Host {
        let host = Host::new("n1");
        host.open(1, 10);
        host
    }

    /// Opens an epoch.
    fn open(&self, epoch: u64, nonce: u64) {
        let start_index = self.node.head().index + 1;
        let start = EpochStart {
            epoch,
            nonce,
            start_index,
        };
        self.node.open_epoch(start).unwrap();
        self.log().drain(self.began);
    }

    fn replica(&self) -> Replica<'_> {
        Replica {
            node: &self.node,
            peers: &self.peers,
        }
    }

    fn log(&self) -> &Log {
        self.node.engine().log().unwrap()
    }

    fn index(&self) -> u64 {
        self.node.head().index
    }

    /// Executes a request, and has the log keep its record.
    fn run(&self, request: &Request<'_>) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes).unwrap();
        let run = Run::of(&bytes, &Limits::default());
        let mut answers = Answers::new();
        let outcome = self.node.execute_run(&run, None, &mut answers).unwrap();
        assert_eq!(outcome.count, 1);
        let status = Status::try_from(answers.bytes()[0]).unwrap();
        assert!(
            matches!(status, Status::Ok | Status::NotFound),
            "{status:?}"
        );
        self.log().drain(self.began);
    }

    fn set(&self, key: &str, value: &[u8]) {
        let key = key.as_bytes();
        self.run(&Request::Set { key, value });
    }

    fn del(&self, key: &str) {
        let key = key.as_bytes();
        self.run(&Request::Del { key });
    }

    /// A stream of this node from `peer`.
    fn follows(&self, peer: &'static str) -> FollowerStream<'_> {
        let member = self.node.member().unwrap();
        FollowerStream::new(self.replica(), member, peer, Goal::Follow)
    }

    /// Both nodes hold the same data set, at the same position.
    #[track_caller]
    fn equals(&self, other: &Host) {
        assert_eq!(self.node.head(), other.node.head());
        assert_eq!(self.node.history(), other.node.history());
        assert_eq!(self.node.engine().len(), other.node.engine().len());
        assert_eq!(self.log().kept_head(), other.log().kept_head());
    }
}

/// Both sides of a stream, and what is on its way between them.
struct Joined<'a> {
    leader: LeaderStream<'a>,
    acks: AckReader<'a>,
    follower: FollowerStream<'a>,
    log: &'a Log,
    to_follower: Buffer,
    to_leader: Buffer,
    start: Start,
    now: Instant,
}

/// The side that has ended a stream, and why.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Leader(StreamEnd),
    Follower(FollowError),
}

/// Judges a request, as a session does.
fn judge<'a>(
    host: &'a Host,
    request: &[u8],
    now: Instant,
) -> Result<Box<Accepted<'a>>, NotAccepted> {
    let Ok(Parsed::Whole(frame)) = parse(request, &Limits::default()) else {
        panic!("a whole request");
    };
    let Request::Follow { key, value } = frame.request() else {
        panic!("FOLLOW");
    };
    accept(host.replica(), "host:1", key, value, now)
}

/// The frame of an answer.
fn response(reply: &Reply) -> Vec<u8> {
    let mut bytes = reply.header().encode().to_vec();
    bytes.extend_from_slice(reply.value());
    bytes
}

impl<'a> Joined<'a> {
    /// The follower asks the leader for the stream at `now`, and has its answer.
    fn join(leader: &'a Host, follower: &'a Host, now: Instant) -> Result<Joined<'a>, FollowError> {
        Joined::with(leader, follower, follower.follows("n1"), now)
    }

    fn with(
        leader: &'a Host,
        host: &'a Host,
        mut follower: FollowerStream<'a>,
        now: Instant,
    ) -> Result<Joined<'a>, FollowError> {
        let request = follower.request(now)?;
        let mut to_follower = Buffer::new();
        let accepted = match judge(leader, &request, now) {
            Ok(accepted) => accepted,
            Err(NotAccepted::Refused(reply)) => {
                to_follower.extend(&response(&reply));
                return Err(follower.receive(&mut to_follower, now).unwrap_err());
            }
            Err(NotAccepted::SecondNode { name, older }) => panic!("{name}: {older}"),
        };
        to_follower.extend(&response(&Reply::Answer(accepted.answer.clone())));
        let start = accepted.start;
        let stream = LeaderStream::new(*accepted, now);
        follower.receive(&mut to_follower, now)?;
        Ok(Joined {
            acks: stream.ack_reader(now),
            leader: stream,
            follower,
            log: host.log(),
            to_follower,
            to_leader: Buffer::new(),
            start,
            now,
        })
    }

    /// Sends what is next, and has it received. Returns the time to wait until where there is nothing.
    fn step(&mut self) -> Result<Option<Instant>, Ended> {
        let mut out = Vec::new();
        let sending = self.leader.next(self.now, &mut out);
        match sending.map_err(Ended::Leader)? {
            Sending::Frames { large } => {
                self.to_follower.extend(&out);
                if let Some(entry) = large {
                    self.to_follower.extend(entry.frame());
                }
                let result = self.follower.receive(&mut self.to_follower, self.now);
                self.log.drain(self.now);
                result.map_err(Ended::Follower)?;
            }
            Sending::Gather(time) => self.now += time,
            Sending::Wait { until, .. } | Sending::AwaitAck { until, .. } => {
                return Ok(Some(until));
            }
            Sending::End => return Err(Ended::Leader(StreamEnd::NodeStops)),
        }
        self.acknowledge()?;
        Ok(None)
    }

    /// Sends the acknowledgement that is due, if one is.
    fn acknowledge(&mut self) -> Result<(), Ended> {
        if let AckTurn::Send(ack) = self.follower.acks().next(self.now) {
            self.send_ack(&ack)?;
        }
        Ok(())
    }

    fn send_ack(&mut self, ack: &Message<'_>) -> Result<(), Ended> {
        let mut bytes = Vec::new();
        ack.encode(&mut bytes).unwrap();
        self.to_leader.extend(&bytes);
        let received = self.acks.receive(&mut self.to_leader, self.now);
        received.map(drop).map_err(Ended::Leader)
    }

    /// Goes on until there is nothing to send, and the follower has acknowledged everything. Returns until when.
    fn settle(&mut self) -> Result<Instant, Ended> {
        loop {
            if let Some(until) = self.step()? {
                self.now += ms(2);
                self.acknowledge()?;
                return Ok(until);
            }
        }
    }

    /// Goes on until after the next heartbeat.
    fn beat(&mut self) -> Result<Instant, Ended> {
        self.now = self.settle()?.max(self.now);
        self.settle()
    }

    /// Expects the stream to have an end.
    fn end(mut self) -> Ended {
        for _ in 0..10_000 {
            if let Err(ended) = self.beat() {
                return ended;
            }
        }
        panic!("it goes on");
    }
}

/// A leader with some data, and a follower that has taken all of it.
fn pair() -> (Host, Host) {
    let (leader, follower) = (Host::leader(), Host::new("n2"));
    leader.set("a", b"1");
    leader.set("b", b"2");
    leader.del("a");
    let mut stream = Joined::join(&leader, &follower, leader.began).unwrap();
    assert_eq!(stream.start, Start::Snapshot);
    stream.settle().unwrap();
    drop(stream);
    leader.equals(&follower);
    (leader, follower)
}

const fn all(from: WatchFrom) -> Watch<'static> {
    Watch {
        prefix: b"",
        wants_values: true,
        from,
    }
}

/// Judges a WATCH, as a session does.
fn judge_watch<'a>(host: &'a Host, watch: &Watch<'_>) -> Result<Box<AcceptedWatch<'a>>, Reply> {
    accept_watch(&host.node, "watcher:1", watch.prefix, &watch.value())
}

/// The stream of a watcher.
fn watch<'a>(host: &'a Host, watch: &Watch<'_>) -> WatchStream<'a> {
    let accepted = judge_watch(host, watch).unwrap();
    WatchStream::new(*accepted, host.began)
}
