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

    fn asked<E: From<NetworkEvent>>(
        &mut self,
        at: usize,
        timeline: &mut Timeline<E>,
    ) -> Option<(End, Signal)> {
        let connection = self.connections[at].as_mut()?;
        let [from, to] = connection.hosts;
        if connection.states[0] != State::Connecting {
            return None;
        }
        let is_lost = self.links[from][to].is_cut || self.links[to][from].is_cut;
        if is_lost || self.hosts[to] == Host::Silent {
            timeline.after(RETRANSMISSION, NetworkEvent::Asked(at).into());
            return None;
        }
        let end = End {
            connection: at,
            side: 1,
        };
        if self.hosts[to] == Host::Refuses {
            connection.states[1] = State::Closed;
            self.send_reset(end.other(), timeline);
            return None;
        }
        connection.states[1] = State::Open;
        let answered = NetworkEvent::Answered(at);
        timeline.at(self.arrival(to, from, 0, timeline.now()), answered.into());
        Some((end, Signal::Accepted))
    }

    fn answered(&mut self, at: usize) -> Option<(End, Signal)> {
        let connection = self.connections[at].as_mut()?;
        let end = End {
            connection: at,
            side: 0,
        };
        if connection.states[0] == State::Connecting {
            connection.states[0] = State::Open;
        }
        Some((end, Signal::Connected))
    }

    fn arrived<E: From<NetworkEvent>>(
        &mut self,
        end: End,
        timeline: &mut Timeline<E>,
    ) -> Option<(End, Signal)> {
        let connection = self.connections[end.connection].as_mut()?;
        let to = connection.hosts[1 - end.side];
        let state = connection.states[1 - end.side];
        let pipe = &mut connection.pipes[end.side];
        pipe.under_way = pipe.under_way.checked_sub(1)?;
        if self.hosts[to] == Host::Silent {
            // The machine may come back before the sender gives up.
            pipe.under_way = 0;
            return None;
        }
        let segment = pipe.sent.pop_front()?;
        if state != State::Open {
            if segment.bytes.is_empty() {
                self.forget_if_over(end.connection);
            } else {
                self.send_reset(end, timeline);
            }
            return None;
        }
        pipe.arrived.extend_from_slice(&segment.bytes);
        pipe.has_ended |= segment.ends;
        Some((end.other(), Signal::Readable))
    }

    /// Sends a segment, or has it wait where the link is cut.
    fn send<E: From<NetworkEvent>>(
        &mut self,
        end: End,
        segment: Segment,
        timeline: &mut Timeline<E>,
    ) {
        let Some(connection) = &mut self.connections[end.connection] else {
            return;
        };
        let (from, to) = (connection.hosts[end.side], connection.hosts[1 - end.side]);
        let len = segment.bytes.len();
        let pipe = &mut connection.pipes[end.side];
        let is_stalled = self.links[from][to].is_cut || pipe.under_way < pipe.sent.len();
        pipe.sent.push_back(segment);
        if is_stalled {
            return;
        }
        let arrival = self.arrival(from, to, len, timeline.now());
        if let Some(connection) = &mut self.connections[end.connection] {
            let pipe = &mut connection.pipes[end.side];
            pipe.under_way += 1;
            pipe.last_arrival = pipe.last_arrival.max(arrival);
            timeline.at(pipe.last_arrival, NetworkEvent::Arrived(end).into());
        }
    }

    /// Sends again what has waited for a link.
    fn resend<E: From<NetworkEvent>>(
        &mut self,
        from: usize,
        to: usize,
        timeline: &mut Timeline<E>,
    ) {
        if self.links[from][to].is_cut {
            return;
        }
        for at in 0..self.connections.len() {
            for side in [0, 1] {
                let Some(connection) = &mut self.connections[at] else {
                    continue;
                };
                if connection.hosts[side] != from || connection.hosts[1 - side] != to {
                    continue;
                }
                let end = End {
                    connection: at,
                    side,
                };
                let wait = self.random.below(RETRANSMISSION);
                // The reading side's news of what it has read go this way, too.
                let back = &mut connection.pipes[1 - side];
                if back.wants_room && back.unread <= self.capacity / 2 {
                    back.wants_room = false;
                    timeline.after(wait, NetworkEvent::Read(end.other()).into());
                }
                let waiting = std::mem::take(&mut connection.pipes[side].sent);
                let pipe = &mut connection.pipes[side];
                let mut waiting = waiting.into_iter();
                pipe.sent.extend(waiting.by_ref().take(pipe.under_way));
                pipe.last_arrival = pipe.last_arrival.max(timeline.now() + wait);
                for segment in waiting {
                    self.send(end, segment, timeline);
                }
            }
        }
    }

    /// A reset is on its way to this end, where the link is not cut.
    fn send_reset<E: From<NetworkEvent>>(&mut self, to: End, timeline: &mut Timeline<E>) {
        let Some(connection) = &self.connections[to.connection] else {
            return;
        };
        let (from_host, to_host) = (connection.hosts[1 - to.side], connection.hosts[to.side]);
        let last = connection.pipes[1 - to.side].last_arrival;
        if !self.links[from_host][to_host].is_cut {
            let arrival = self.arrival(from_host, to_host, 0, timeline.now());
            timeline.at(arrival.max(last), NetworkEvent::Reset(to).into());
        }
    }

    /// When bytes that are sent now arrive.
    fn arrival(&mut self, from: usize, to: usize, len: usize, now: Micros) -> Micros {
        let link = &mut self.links[from][to];
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        link.free_at = link.free_at.max(now) + len * MS / link.bandwidth;
        link.free_at + link.delay + self.random.below(link.jitter + 1)
    }

    /// Frees the memory of a connection that has ended on both sides, and on which nothing is under way.
    fn forget_if_over(&mut self, at: usize) {
        let is_over = |connection: &Connection| {
            connection.states == [State::Closed; 2]
                && connection.pipes.iter().all(|pipe| pipe.under_way == 0)
        };
        if self.connections[at].as_deref().is_some_and(is_over) {
            self.connections[at] = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPLITTING: Link = Link {
        splits: 700,
        ..Link::fast()
    };

    /// Two hosts, the second of which listens, and a connection.
    struct Pair {
        network: Network,
        timeline: Timeline<NetworkEvent>,
        ends: [End; 2],
    }

    impl Pair {
        fn new(link: Link, capacity: usize) -> Pair {
            let mut network = Network::new(2, link, capacity, Random::new(1));
            let mut timeline = Timeline::new();
            network.listen(1, true);
            let end = network.connect(0, 1, &mut timeline);
            let ends = [end, end.other()];
            let mut pair = Pair {
                network,
                timeline,
                ends,
            };
            let signals = pair.run();
            assert_eq!(signals, [(1, Signal::Accepted), (0, Signal::Connected)]);
            pair
        }

        /// Carries out what is to come within a second; returns who noticed what.
        fn run(&mut self) -> Vec<(usize, Signal)> {
            let (mut signals, end) = (Vec::new(), self.timeline.now() + 1_000 * MS);
            while self.timeline.next_at().is_some_and(|at| at <= end) {
                let event = self.timeline.next().unwrap();
                let noticed = self.network.step(event, &mut self.timeline);
                signals.extend(noticed.map(|(host, _, signal)| (host, signal)));
            }
            signals
        }

        fn write(&mut self, side: usize, bytes: &[u8]) -> usize {
            self.network
                .write(self.ends[side], bytes, &mut self.timeline)
        }

        fn read(&mut self, side: usize, max: usize) -> Vec<u8> {
            let mut out = Vec::new();
            self.network
                .read(self.ends[side], max, &mut out, &mut self.timeline);
            out
        }
    }

    #[test]
    fn bytes_arrive_in_their_order_and_in_pieces() {
        let mut pair = Pair::new(SPLITTING, 1_000);
        let sent: Vec<u8> = (0..200).collect();
        assert_eq!(pair.write(0, &sent), 200);
        let signals = pair.run();
        assert!(
            signals.len() > 2
                && signals
                    .iter()
                    .all(|signal| *signal == (1, Signal::Readable))
        );
        let first = pair.read(1, 30);
        assert_eq!([first, pair.read(1, 999)].concat(), sent);
        pair.network.close(pair.ends[0], &mut pair.timeline);
        assert_eq!(pair.run(), [(1, Signal::Readable)]);
        assert!(pair.network.is_at_end(pair.ends[1]));
    }

    #[test]
    fn a_pipe_that_is_full_takes_more_once_half_of_it_is_read() {
        let mut pair = Pair::new(Link::fast(), 100);
        assert_eq!(pair.write(0, &[7; 150]), 100);
        pair.run();
        assert_eq!(pair.read(1, 40).len(), 40);
        assert_eq!(pair.run(), []);
        assert_eq!(pair.read(1, 20).len(), 20);
        assert_eq!(pair.run(), [(0, Signal::Writable)]);
        assert_eq!(pair.write(0, &[7; 150]), 60);
    }

    #[test]
    fn a_link_that_is_cut_one_way_delivers_when_it_is_healed() {
        let mut pair = Pair::new(Link::fast(), 100);
        pair.network.cut(0, 1, true, &mut pair.timeline);
        pair.write(0, b"there");
        pair.write(1, b"back");
        assert_eq!(pair.run(), [(0, Signal::Readable)]);
        // A reset is lost, and so the other side's connection is half-open until it sends.
        pair.network.reset(pair.ends[0], &mut pair.timeline);
        assert_eq!(pair.run(), []);
        pair.network.cut(0, 1, false, &mut pair.timeline);
        assert_eq!(pair.run(), [(1, Signal::Readable)]);
        assert_eq!(pair.read(1, 99), b"there");
        pair.write(1, b"more");
        assert_eq!(pair.run(), [(1, Signal::Reset)]);
    }

    #[test]
    fn a_process_that_is_not_there_refuses_and_a_machine_that_is_off_is_silent() {
        let mut pair = Pair::new(Link::fast(), 100);
        pair.network.listen(1, false);
        pair.network.connect(0, 1, &mut pair.timeline);
        assert_eq!(pair.run(), [(0, Signal::Refused)]);
        pair.network.turn_off(1);
        pair.network.connect(0, 1, &mut pair.timeline);
        pair.write(0, b"lost");
        assert_eq!(pair.run(), []);
        pair.network.turn_on(1, &mut pair.timeline);
        let mut signals = pair.run();
        signals.sort_by_key(|(host, _)| *host);
        let expected = [
            (0, Signal::Connected),
            (0, Signal::Reset),
            (1, Signal::Accepted),
        ];
        assert_eq!(signals.len(), 3);
        assert!(
            expected.iter().all(|signal| signals.contains(signal)),
            "{signals:?}"
        );
    }
}
