//! The network: connections between hosts, as two pipes of bytes each.
//!
//! | part             | as in TCP                                                                                  |
//! |------------------|--------------------------------------------------------------------------------------------|
//! | a pipe           | keeps the order of bytes, splits them anywhere, and holds a bounded number of them         |
//! | a link           | one way between two hosts: delay, jitter, bandwidth; cut, it delivers nothing until healed |
//! | a process's end  | closes its connections, or resets them                                                     |
//! | a machine's end  | tells nobody: its connections are half-open, and what is sent to it is lost                |
//! | a closed end     | resets the connection when bytes arrive for it                                             |
//! | no listener      | refuses the connection; a silent machine, or a cut link, lets it wait                      |

mod delivery;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use super::events::{MS, Micros, Timeline};
use super::random::Random;

/// Time after which a connection is tried again on a link that is cut, or bytes after it was.
const RETRANSMISSION: Micros = 200 * MS;

/// Most bytes that arrive at a time.
const SEGMENT_BYTES_MAX: usize = 4_096;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct End {
    connection: usize,
    /// 0 for the end that asked for the connection.
    side: usize,
}

impl End {
    pub(super) const fn other(self) -> End {
        End {
            connection: self.connection,
            side: 1 - self.side,
        }
    }
}

/// Something that happens in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NetworkEvent {
    /// The request for a connection arrives.
    Asked(usize),
    /// The answer to it arrives.
    Answered(usize),
    /// The next bytes that this end has sent arrive at the other.
    Arrived(End),
    /// This end learns that the other has read.
    Read(End),
    /// A reset arrives at this end.
    Reset(End),
}

/// Something that a host notices at an end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Another host has connected.
    Accepted,
    /// The connection is there.
    Connected,
    /// No process listens.
    Refused,
    /// Bytes have arrived, or the other side has ended its stream.
    Readable,
    /// There is room for more bytes, after there was too little.
    Writable,
    /// The connection is lost.
    Reset,
}

/// One way between two hosts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) delay: Micros,
    /// Added to the delay at random.
    pub(super) jitter: Micros,
    /// Bytes in a millisecond.
    pub(super) bandwidth: u64,
    /// Times of a thousand that bytes which were sent together arrive in pieces.
    pub(super) splits: u64,
    pub(super) is_cut: bool,
    /// When everything that was sent has left.
    free_at: Micros,
}

impl Link {
    /// A fast link without faults.
    pub(super) const fn fast() -> Link {
        Link {
            delay: 100,
            jitter: 50,
            bandwidth: 100_000,
            splits: 0,
            is_cut: false,
            free_at: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// A process listens.
    Listens,
    /// The machine refuses connections.
    Refuses,
    /// The machine is off.
    Silent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    /// The host has closed it, or has lost it.
    Closed,
}

#[derive(Debug)]
struct Connection {
    hosts: [usize; 2],
    states: [State; 2],
    /// The pipe from each side.
    pipes: [Pipe; 2],
}

/// The bytes on their way from one side to the other.
#[derive(Debug, Default)]
struct Pipe {
    /// The messages that were sent and have not arrived.
    sent: VecDeque<Segment>,
    /// How many of them are on their way. The others wait for the link.
    under_way: usize,
    last_arrival: Micros,
    arrived: Vec<u8>,
    /// How many of them are read.
    read: usize,
    has_ended: bool,
    /// How many more of them the reading side may see; `None` for all.
    seen_max: Option<usize>,
    /// Bytes that were sent and are not read, as the sending side knows.
    unread: usize,
    /// The sending side has found too little room.
    wants_room: bool,
}

#[derive(Debug)]
struct Segment {
    bytes: Vec<u8>,
    ends: bool,
}

impl Pipe {
    /// Bytes that the reading side may read.
    fn visible(&self) -> usize {
        let arrived = self.arrived.len() - self.read;
        self.seen_max.map_or(arrived, |max| max.min(arrived))
    }
}

/// All connections.
#[derive(Debug)]
pub(super) struct Network {
    random: Random,
    hosts: Vec<Host>,
    /// `links[from][to]`
    links: Vec<Vec<Link>>,
    connections: Vec<Option<Box<Connection>>>,
    /// Bytes that a pipe holds at most.
    capacity: usize,
}

impl Network {
    /// A network of hosts none of which listens. A pipe holds `capacity` bytes.
    pub(super) fn new(hosts: usize, link: Link, capacity: usize, random: Random) -> Network {
        Network {
            random,
            hosts: vec![Host::Refuses; hosts],
            links: vec![vec![link; hosts]; hosts],
            connections: Vec::new(),
            capacity,
        }
    }

    /// The link from one host to another.
    pub(super) fn link(&mut self, from: usize, to: usize) -> &mut Link {
        &mut self.links[from][to]
    }

    /// The host of an end of a connection that is not over.
    pub(super) fn host_of(&self, end: End) -> usize {
        let connection = self.connections[end.connection].as_ref();
        connection.map_or(usize::MAX, |connection| connection.hosts[end.side])
    }

    /// The host of the other end.
    pub(super) fn host_of_other(&self, end: End) -> Option<usize> {
        let connection = self.connections[end.connection].as_ref()?;
        Some(connection.hosts[1 - end.side])
    }

    /// A process begins to listen, or ends to.
    pub(super) fn listen(&mut self, host: usize, listens: bool) {
        self.hosts[host] = if listens {
            Host::Listens
        } else {
            Host::Refuses
        };
    }

    /// A machine goes off, with all its connections.
    pub(super) fn turn_off(&mut self, host: usize) {
        self.hosts[host] = Host::Silent;
        for at in 0..self.connections.len() {
            for side in 0..2 {
                if let Some(connection) = &mut self.connections[at]
                    && connection.hosts[side] == host
                {
                    connection.states[side] = State::Closed;
                    let pipe = &mut connection.pipes[side];
                    pipe.sent.truncate(pipe.under_way);
                }
            }
            self.forget_if_over(at);
        }
    }

    /// A machine goes on, and a process listens.
    pub(super) fn turn_on<E: From<NetworkEvent>>(
        &mut self,
        host: usize,
        timeline: &mut Timeline<E>,
    ) {
        self.hosts[host] = Host::Listens;
        for from in 0..self.hosts.len() {
            self.resend(from, host, timeline);
        }
    }

    /// Cuts the link from one host to another, or heals it.
    pub(super) fn cut<E: From<NetworkEvent>>(
        &mut self,
        from: usize,
        to: usize,
        is_cut: bool,
        timeline: &mut Timeline<E>,
    ) {
        self.links[from][to].is_cut = is_cut;
        if !is_cut {
            self.resend(from, to, timeline);
        }
    }

    /// Asks a host for a connection.
    pub(super) fn connect<E: From<NetworkEvent>>(
        &mut self,
        from: usize,
        to: usize,
        timeline: &mut Timeline<E>,
    ) -> End {
        let connection = self.connections.len();
        self.connections.push(Some(Box::new(Connection {
            hosts: [from, to],
            states: [State::Connecting; 2],
            pipes: Default::default(),
        })));
        let asked = NetworkEvent::Asked(connection);
        timeline.at(self.arrival(from, to, 0, timeline.now()), asked.into());
        let side = 0;
        End { connection, side }
    }

    /// Sends the beginning of `bytes`; returns how many. With fewer than all of them, [`Signal::Writable`] comes when
    /// there is room. An end that is lost takes none.
    pub(super) fn write<E: From<NetworkEvent>>(
        &mut self,
        end: End,
        bytes: &[u8],
        timeline: &mut Timeline<E>,
    ) -> usize {
        let capacity = self.capacity;
        let Some(connection) = &mut self.connections[end.connection] else {
            return 0;
        };
        if connection.states[end.side] != State::Open {
            return 0;
        }
        let pipe = &mut connection.pipes[end.side];
        let count = bytes.len().min(capacity.saturating_sub(pipe.unread));
        pipe.wants_room |= count < bytes.len();
        pipe.unread += count;
        let (from, to) = (connection.hosts[end.side], connection.hosts[1 - end.side]);
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            let splits = rest.len() > 1 && self.random.happens(self.links[from][to].splits);
            let len = if splits {
                1 + self.random.place(rest.len())
            } else {
                rest.len()
            };
            let (first, behind) = rest.split_at(len.min(rest.len()).min(SEGMENT_BYTES_MAX));
            rest = behind;
            let bytes = first.to_vec();
            self.send(end, Segment { bytes, ends: false }, timeline);
        }
        count
    }

    /// Reads bytes that have arrived to the end of `out`, at most `max` of them; returns how many.
    pub(super) fn read<E: From<NetworkEvent>>(
        &mut self,
        end: End,
        max: usize,
        out: &mut Vec<u8>,
        timeline: &mut Timeline<E>,
    ) -> usize {
        let Some(connection) = &mut self.connections[end.connection] else {
            return 0;
        };
        let pipe = &mut connection.pipes[1 - end.side];
        let count = max.min(pipe.visible());
        pipe.seen_max = pipe.seen_max.map(|max| max - count);
        out.extend_from_slice(&pipe.arrived[pipe.read..pipe.read + count]);
        pipe.read += count;
        if pipe.read == pipe.arrived.len() {
            pipe.arrived.clear();
            pipe.read = 0;
        }
        pipe.unread -= count;
        let has_room = pipe.wants_room && pipe.unread <= self.capacity / 2;
        let (from, to) = (connection.hosts[end.side], connection.hosts[1 - end.side]);
        if has_room && !self.links[from][to].is_cut {
            pipe.wants_room = false;
            let delay = self.links[from][to].delay;
            timeline.after(delay, NetworkEvent::Read(end.other()).into());
        }
        count
    }

    /// Bytes that have arrived and are not read.
    pub(super) fn readable(&self, end: End) -> usize {
        let connection = self.connections[end.connection].as_ref();
        connection.map_or(0, |connection| connection.pipes[1 - end.side].visible())
    }

    /// Has an end see no more than so many further bytes; `None` for all that arrive.
    pub(super) fn limit(&mut self, end: End, seen_max: Option<usize>) {
        if let Some(connection) = &mut self.connections[end.connection] {
            connection.pipes[1 - end.side].seen_max = seen_max;
        }
    }

    /// The bytes that have arrived and are not read, whether the end may see them or not.
    pub(super) fn arrived_at(&self, end: End) -> &[u8] {
        let connection = self.connections[end.connection].as_ref();
        connection.map_or(&[], |connection| {
            let pipe = &connection.pipes[1 - end.side];
            &pipe.arrived[pipe.read..]
        })
    }

    /// Whether everything that will ever arrive is read.
    pub(super) fn is_at_end(&self, end: End) -> bool {
        let connection = self.connections[end.connection].as_ref();
        connection.is_none_or(|connection| {
            connection.pipes[1 - end.side].has_ended && self.arrived_at(end).is_empty()
        })
    }

    /// Closes an end: what was sent arrives, and then the end of the stream.
    pub(super) fn close<E: From<NetworkEvent>>(&mut self, end: End, timeline: &mut Timeline<E>) {
        if self.end(end) {
            let (bytes, ends) = (Vec::new(), true);
            self.send(end, Segment { bytes, ends }, timeline);
            self.forget_if_over(end.connection);
        }
    }

    /// Resets an end: the other side learns it, where the link is not cut.
    pub(super) fn reset<E: From<NetworkEvent>>(&mut self, end: End, timeline: &mut Timeline<E>) {
        if self.end(end) {
            self.send_reset(end.other(), timeline);
            self.forget_if_over(end.connection);
        }
    }

    /// Loses a connection: each side that is told so learns it. The other one's is half-open.
    pub(super) fn lose<E: From<NetworkEvent>>(
        &mut self,
        end: End,
        tells: [bool; 2],
        timeline: &mut Timeline<E>,
    ) {
        for side in [0, 1] {
            if tells[side] {
                let (connection, reset) = (end.connection, NetworkEvent::Reset);
                timeline.after(1, reset(End { connection, side }).into());
            }
        }
    }

    /// The ends of open connections of a host with others of `nodes` nodes, or with clients.
    pub(super) fn ends_at(&self, host: usize, with_clients: bool, nodes: usize) -> Vec<End> {
        let mut ends = Vec::new();
        for (at, connection) in self.connections.iter().enumerate() {
            let Some(connection) = connection else {
                continue;
            };
            for side in [0, 1] {
                if connection.hosts[side] == host
                    && connection.states[side] == State::Open
                    // A reset would tell a side that connects that no process listens.
                    && connection.states[1 - side] != State::Connecting
                    && (connection.hosts[1 - side] >= nodes) == with_clients
                {
                    ends.push(End {
                        connection: at,
                        side,
                    });
                }
            }
        }
        ends
    }

    /// Carries out an event, and returns what a host notices of it: its number, the end, and the signal.
    pub(super) fn step<E: From<NetworkEvent>>(
        &mut self,
        event: NetworkEvent,
        timeline: &mut Timeline<E>,
    ) -> Option<(usize, End, Signal)> {
        let (end, signal) = match event {
            NetworkEvent::Asked(connection) => self.asked(connection, timeline)?,
            NetworkEvent::Answered(connection) => self.answered(connection)?,
            NetworkEvent::Arrived(end) => self.arrived(end, timeline)?,
            NetworkEvent::Read(end) => (end, Signal::Writable),
            NetworkEvent::Reset(end) => {
                let was_open = self.state(end)? == State::Open;
                self.end(end).then_some(())?;
                let signal = if was_open {
                    Signal::Reset
                } else {
                    Signal::Refused
                };
                (end, signal)
            }
        };
        let connection = self.connections[end.connection].as_ref()?;
        let host = connection.hosts[end.side];
        let is_over = connection.states[end.side] == State::Closed;
        let tells = matches!(signal, Signal::Reset | Signal::Refused);
        if is_over {
            self.forget_if_over(end.connection);
        }
        (is_over == tells).then_some((host, end, signal))
    }

    fn state(&self, end: End) -> Option<State> {
        let connection = self.connections[end.connection].as_ref()?;
        Some(connection.states[end.side])
    }

    /// Ends one side; false where it has ended before.
    fn end(&mut self, end: End) -> bool {
        let Some(connection) = &mut self.connections[end.connection] else {
            return false;
        };
        std::mem::replace(&mut connection.states[end.side], State::Closed) != State::Closed
    }
}
