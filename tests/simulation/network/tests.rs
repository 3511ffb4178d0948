//! Tests of the network.

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
