//! The proxy itself, between a plain socket and a listener in this process.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::node::{PATIENCE, wait_for};
use crate::support::proxy::{Counts, Cut, Proxy, Way};
use crate::support::quick::assert_quick_once;

/// A listener, a proxy in front of it, and connections through it as pairs of both ends.
struct Fixture {
    listener: TcpListener,
    proxy: Proxy,
}

impl Fixture {
    fn new() -> Fixture {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap());
        Fixture { listener, proxy }
    }

    fn dial(&self) -> TcpStream {
        patient(TcpStream::connect(self.proxy.addr()).unwrap())
    }

    fn accept(&self) -> TcpStream {
        patient(self.listener.accept().unwrap().0)
    }

    fn pair(&self) -> (TcpStream, TcpStream) {
        let client = self.dial();
        (client, self.accept())
    }
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn send(mut stream: &TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}

fn receive(mut stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// The bytes that arrive until the end or the reset.
fn rest(mut stream: &TcpStream) -> (Vec<u8>, io::Result<usize>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes);
    (bytes, end)
}

/// Nothing is there to be read, and the stream has not ended either.
fn is_silent(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let found = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    matches!(found, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Different at every place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n * 31 + n / 251).to_le_bytes()[0])
        .collect()
}

fn frame(opcode: u8, key: &[u8], value: &[u8]) -> Vec<u8> {
    let key_len = u16::try_from(key.len()).unwrap().to_be_bytes();
    let value_len = u32::try_from(value.len()).unwrap().to_be_bytes();
    [&[opcode][..], &key_len, &value_len, key, value].concat()
}

fn response(status: u8, value: &[u8]) -> Vec<u8> {
    let value_len = u32::try_from(value.len()).unwrap().to_be_bytes();
    [&[status][..], &value_len, value].concat()
}

#[test]
fn bytes_pass_both_ways_and_each_end_by_itself() {
    let fixture = Fixture::new();
    let (client, node) = fixture.pair();
    let (up, down) = (pattern(3 << 20), pattern((2 << 20) + 7));
    std::thread::scope(|scope| {
        for (stream, bytes) in [(&client, &up), (&node, &down)] {
            scope.spawn(move || {
                send(stream, bytes);
                stream.shutdown(Shutdown::Write).unwrap();
            });
        }
        let reader = scope.spawn(|| rest(&client).0);
        assert!(rest(&node).0 == up, "other bytes upwards");
        assert!(reader.join().unwrap() == down, "other bytes downwards");
    });
    let expected = Counts {
        accepted: 1,
        watched: 1,
        up: 3 << 20,
        down: (2 << 20) + 7,
        ..Counts::default()
    };
    wait_for("the connection's end", || {
        (fixture.proxy.counts() == expected).then_some(())
    });
}

#[test]
fn a_reset_is_passed_on() {
    let fixture = Fixture::new();
    let (client, node) = fixture.pair();
    send(&client, b"unread");
    wait_for("the bytes", || (!is_silent(&node)).then_some(()));
    // The system resets a connection that is closed with unread input.
    drop(node);
    assert_eq!(
        rest(&client).1.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
}

#[test]
fn held_bytes_are_delivered_later_and_the_other_direction_continues() {
    for (held, free) in [(Way::Up, Way::Down), (Way::Down, Way::Up)] {
        let fixture = Fixture::new();
        let (client, node) = fixture.pair();
        let ends = |way| match way {
            Way::Up => (&client, &node),
            Way::Down => (&node, &client),
        };
        send(ends(held).0, b"before");
        assert_eq!(receive(ends(held).1, 6), b"before");
        fixture.proxy.hold(held);
        send(ends(held).0, b"held");
        ends(held).0.shutdown(Shutdown::Write).unwrap();
        for _ in 0..100 {
            send(ends(free).0, b"free");
            assert_eq!(receive(ends(free).1, 4), b"free");
        }
        assert!(is_silent(ends(held).1));
        assert_eq!(fixture.proxy.counts().open, 1);
        fixture.proxy.release(held);
        assert_eq!(rest(ends(held).1).0, b"held");
    }
}

#[test]
fn a_held_link_fills_the_senders_buffers_and_loses_nothing() {
    let fixture = Fixture::new();
    let (client, node) = fixture.pair();
    fixture.proxy.hold_both();
    let bytes = pattern(32 << 20);
    client.set_nonblocking(true).unwrap();
    let mut taken = 0;
    // Full for good: twice, with time for whatever moves bytes on.
    let mut refusals = 0;
    wait_for("full buffers", || {
        match (&client).write(&bytes[taken..]) {
            Ok(count) => (taken, refusals) = (taken + count, 0),
            Err(_) => refusals += 1,
        }
        (refusals > 50).then_some(())
    });
    assert!(taken < bytes.len(), "a held link took everything");
    assert!(is_silent(&node));
    fixture.proxy.pass();
    client.set_nonblocking(false).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| send(&client, &bytes[taken..]));
        assert!(receive(&node, bytes.len()) == bytes, "other bytes");
    });
}

#[test]
fn a_connection_made_while_it_is_held_comes_through_later() {
    let fixture = Fixture::new();
    fixture.proxy.hold_both();
    let client = fixture.dial();
    send(&client, b"hello");
    wait_for("the connection", || {
        (fixture.proxy.counts().accepted == 1).then_some(())
    });
    fixture.listener.set_nonblocking(true).unwrap();
    assert!(fixture.listener.accept().is_err());
    fixture.listener.set_nonblocking(false).unwrap();
    fixture.proxy.pass();
    assert_eq!(receive(&fixture.accept(), 5), b"hello");
}

#[test]
fn a_cut_ends_every_connection_and_the_next_one_is_served() {
    for how in [Cut::End, Cut::Reset] {
        let fixture = Fixture::new();
        let pairs = [fixture.pair(), fixture.pair()];
        for (client, node) in &pairs {
            send(client, b"up");
            send(node, b"down");
            assert_eq!(receive(node, 2), b"up");
            assert_eq!(receive(client, 4), b"down");
        }
        fixture.proxy.cut(how);
        assert_eq!(fixture.proxy.counts().open, 0);
        for stream in pairs.iter().flat_map(|(client, node)| [client, node]) {
            let (bytes, end) = rest(stream);
            assert_eq!(bytes, b"");
            match how {
                Cut::End => assert_eq!(end.unwrap(), 0),
                Cut::Reset => assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset),
            }
        }
        let (client, node) = fixture.pair();
        send(&client, b"again");
        assert_eq!(receive(&node, 5), b"again");
    }
}

/// Also what a held connection is for: it is cut while nothing is delivered.
#[test]
fn a_held_connection_can_be_cut() {
    let fixture = Fixture::new();
    let (client, node) = fixture.pair();
    fixture.proxy.hold_both();
    send(&client, b"lost");
    let waiting = fixture.dial();
    wait_for("the other", || {
        (fixture.proxy.counts().accepted == 2).then_some(())
    });
    fixture.proxy.cut(Cut::Reset);
    for stream in [&client, &node, &waiting] {
        assert_eq!(
            rest(stream).1.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
    }
}

#[test]
fn a_cut_after_so_many_bytes_is_exact() {
    let fixture = Fixture::new();
    let bytes = pattern(200_000);
    for len in [0, 1, 6, 7, 65_536, 150_001] {
        for way in [Way::Up, Way::Down] {
            let (client, node) = fixture.pair();
            let (source, sink) = match way {
                Way::Up => (&client, &node),
                Way::Down => (&node, &client),
            };
            send(source, b"before");
            receive(sink, 6);
            let before = fixture.proxy.counts().cuts;
            fixture
                .proxy
                .cut_after(way, u64::try_from(len).unwrap(), Cut::End);
            // Fails where the cut is quicker.
            let mut writer = source;
            let _ = writer.write_all(&bytes);
            let (got, _) = rest(sink);
            assert!(
                got == bytes[..len],
                "{} bytes after {len} {way:?}",
                got.len()
            );
            wait_for("the count", || {
                (fixture.proxy.counts().cuts == before + 1).then_some(())
            });
        }
    }
}

#[test]
fn only_watched_connections_count_towards_a_cut() {
    let fixture = Fixture::new();
    fixture.proxy.watch(0x60);
    fixture.proxy.cut_after(Way::Up, 10, Cut::End);
    let (probe, probed) = fixture.pair();
    for _ in 0..10 {
        send(&probe, &frame(0x04, b"", b""));
        receive(&probed, 7);
    }
    let (follower, leader) = fixture.pair();
    send(&follower, &frame(0x60, b"name", b""));
    assert_eq!(rest(&leader).0, frame(0x60, b"name", b"")[..10]);
    assert_eq!(rest(&probed).0, b"");
    let counts = fixture.proxy.counts();
    assert_eq!((counts.accepted, counts.watched, counts.cuts), (2, 1, 1));
}

#[test]
fn a_proxy_that_refuses_is_as_one_where_nothing_listens() {
    let fixture = Fixture::new();
    let (client, node) = fixture.pair();
    let refused = || TcpStream::connect(fixture.proxy.addr()).unwrap_err().kind();
    for _ in 0..3 {
        fixture.proxy.refuse(true);
        assert_eq!(refused(), io::ErrorKind::ConnectionRefused);
        // Those that are there go on.
        send(&client, b"x");
        receive(&node, 1);
        fixture.proxy.set_target_gone(true);
        fixture.proxy.pass();
        assert_eq!(refused(), io::ErrorKind::ConnectionRefused);
        fixture.proxy.set_target_gone(false);
        let (client, node) = fixture.pair();
        send(&client, b"x");
        receive(&node, 1);
    }
}

#[test]
fn delayed_bytes_come_later_in_order_and_without_a_queue() {
    let fixture = Fixture::new();
    let (client, node) = fixture.pair();
    let delay = Duration::from_millis(100);
    fixture.proxy.delay(Way::Up, delay);
    let start = Instant::now();
    let pieces: Vec<[u8; 4]> = (0_u32..200).map(u32::to_be_bytes).collect();
    for piece in &pieces {
        send(&client, piece);
    }
    assert_eq!(receive(&node, 800), pieces.concat());
    let took = start.elapsed();
    assert!(took >= delay, "{took:?}");
    // One delay, and not one for each piece, which would be 20 s.
    assert!(took < delay * 20, "{took:?}");
    assert_quick_once(delay, || {
        send(&node, b"at once");
        let start = Instant::now();
        receive(&client, 7);
        start.elapsed()
    });
}

#[test]
fn a_throttled_way_takes_its_time() {
    let fixture = Fixture::new();
    let (client, node) = fixture.pair();
    fixture.proxy.throttle(Way::Down, Some(100_000));
    let bytes = pattern(50_000);
    let start = Instant::now();
    send(&node, &bytes);
    assert!(receive(&client, bytes.len()) == bytes, "other bytes");
    let took = start.elapsed();
    assert!(took > Duration::from_millis(400), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    fixture.proxy.throttle(Way::Down, None);
    assert_quick_once(Duration::from_millis(400), || {
        let start = Instant::now();
        send(&node, &bytes);
        receive(&client, bytes.len());
        start.elapsed()
    });
}

/// The leader's side speaks in responses, and after the one to FOLLOW in requests. The bytes look like the frame that
/// is looked for everywhere else too, and are cut in many ways on their way.
#[test]
fn one_bit_of_the_frame_that_was_meant_is_flipped() {
    let decoy = [0x61_u8; 40];
    let follow = [frame(0x04, b"", b""), frame(0x60, &decoy, b"")].concat();
    let head = [response(0, &decoy), response(0, &decoy)].concat();
    let short = frame(0x61, b"", b"1234");
    let long = frame(0x61, &decoy, &decoy);
    let stream = [
        frame(0x65, &decoy, &decoy),
        short,
        long.clone(),
        long.clone(),
    ]
    .concat();
    let begin = head.len() + stream.len() - 2 * long.len();
    let original = [head, stream].concat();
    for piece_len in [1, 5, 13, 1_000] {
        for offset in [11, 12, 46, 86] {
            let fixture = Fixture::new();
            let (follower, leader) = fixture.pair();
            fixture.proxy.flip(Way::Down, 0x61, offset, 0x10);
            send(&follower, &follow);
            receive(&leader, follow.len());
            for piece in original.chunks(piece_len) {
                send(&leader, piece);
            }
            let mut expected = original.clone();
            expected[begin + offset] ^= 0x10;
            let got = receive(&follower, original.len());
            assert!(
                got == expected,
                "offset {offset}, pieces of {piece_len}: {got:x?}"
            );
            assert_eq!(fixture.proxy.counts().flips, 1);
        }
    }
    // The header too, the opcode among it, and upwards.
    let fixture = Fixture::new();
    let (follower, leader) = fixture.pair();
    for offset in 0..11 {
        fixture.proxy.flip(Way::Up, 0x66, offset, 1);
        let ack = frame(0x66, b"1234", b"");
        send(
            &follower,
            &[frame(0x65, &decoy, b""), ack.clone(), ack.clone()].concat(),
        );
        receive(&leader, 47);
        let mut flipped = ack.clone();
        flipped[offset] ^= 1;
        assert_eq!(
            receive(&leader, 22),
            [flipped, ack].concat(),
            "offset {offset}"
        );
    }
}

#[test]
fn a_follow_that_was_refused_begins_no_stream() {
    let fixture = Fixture::new();
    let (follower, leader) = fixture.pair();
    fixture.proxy.flip(Way::Down, 0x61, 7, 1);
    send(&follower, &frame(0x60, b"n2", b""));
    receive(&leader, 9);
    // A response whose status happens to be that opcode.
    let refused = [response(1, b"no"), response(0x61, b"12345678")].concat();
    send(&leader, &refused);
    assert_eq!(receive(&follower, refused.len()), refused);
    assert_eq!(fixture.proxy.counts().flips, 0);
}

#[test]
fn a_target_that_is_not_there_resets_what_was_accepted() {
    let fixture = Fixture::new();
    let Fixture { listener, proxy } = fixture;
    drop(listener);
    let client = patient(TcpStream::connect(proxy.addr()).unwrap());
    assert_eq!(
        rest(&client).1.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
}

#[test]
fn a_dropped_proxy_ends_its_connections_and_threads_whatever_they_do() {
    let fixture = Fixture::new();
    let (client, node) = fixture.pair();
    let (stuck, _unread) = fixture.pair();
    stuck.set_nonblocking(true).unwrap();
    let bytes = vec![0; 16 << 20];
    let _ = (&stuck).write(&bytes);
    fixture.proxy.hold(Way::Down);
    let waiting = fixture.dial();
    let Fixture { listener, proxy } = fixture;
    let addr = proxy.addr();
    let start = Instant::now();
    drop(proxy);
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    for stream in [&client, &node, &waiting] {
        assert!(rest(stream).1.is_err());
    }
    assert!(TcpStream::connect(addr).is_err());
    drop(listener);
}

#[test]
fn not_a_byte_passes_after_a_hold_has_begun() {
    let fixture = Fixture::new();
    let (client, node) = fixture.pair();
    let bytes = pattern(64 << 10);
    std::thread::scope(|scope| {
        scope.spawn(|| while (&node).write_all(&bytes).is_ok() {});
        scope.spawn(|| {
            let mut buffer = vec![0; 256 << 10];
            while matches!((&client).read(&mut buffer), Ok(count) if count > 0) {}
        });
        for round in 0..100 {
            let before = fixture.proxy.counts().down;
            wait_for("some bytes", || {
                (fixture.proxy.counts().down > before).then_some(())
            });
            fixture.proxy.hold(Way::Down);
            let held = fixture.proxy.counts().down;
            for _ in 0..20 {
                std::thread::yield_now();
                assert_eq!(fixture.proxy.counts().down, held, "round {round}");
            }
            fixture.proxy.release(Way::Down);
        }
        fixture.proxy.cut(Cut::Reset);
    });
}

/// A write that a full sink does not take is broken off by a hold, and what it had been allowed to is not forgotten.
#[test]
fn a_cut_is_exact_where_a_hold_comes_between() {
    let fixture = Fixture::new();
    let (client, node) = fixture.pair();
    let bytes = pattern(32 << 20);
    std::thread::scope(|scope| {
        // Fails when the cut comes.
        scope.spawn(|| (&node).write_all(&bytes));
        let full = || {
            let (mut last, mut looks) = (0, 0);
            wait_for("a full sink", || {
                let down = fixture.proxy.counts().down;
                looks = if down == last && down > 0 {
                    looks + 1
                } else {
                    0
                };
                last = down;
                (looks > 50).then_some(last)
            })
        };
        full();
        // The bytes that the cut allows are counted in the write that is broken off here …
        fixture.proxy.hold(Way::Down);
        let len = fixture.proxy.counts().down + 30_000;
        fixture.proxy.cut_after(Way::Down, 30_000, Cut::End);
        for _ in 0..3 {
            fixture.proxy.release(Way::Down);
            full();
            // … and in this one again.
            fixture.proxy.hold(Way::Down);
        }
        assert_eq!(fixture.proxy.counts().cuts, 0);
        fixture.proxy.release(Way::Down);
        let (got, _) = rest(&client);
        assert_eq!(u64::try_from(got.len()).unwrap(), len);
        assert!(got == bytes[..got.len()], "other bytes");
    });
}
