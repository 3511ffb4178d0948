//! The registry of a node's followers, and waits for its changes.

use std::time::{Duration, Instant};

use gopherstore::node::Node;
use gopherstore::replication::Peers;
use gopherstore::replication::core::progress::Progress;

/// Two nodes of one name: the older one stays, and its end lets the newer one in at once.
#[test]
fn the_older_stream_of_a_name_stays_until_it_ends() {
    let peers = Peers::attach(&mut Node::alone());
    let come = |index, addr: &str| {
        let now = Instant::now();
        peers.follower_came("n2", Progress::new(index, now), addr.to_owned(), now)
    };
    let old = come(1, "a:1").unwrap();
    assert_eq!(come(5, "b:1"), Err("a:1".to_owned()));
    let wait = Duration::from_millis(10);
    assert!(!peers.wait_for_end_of("n2", wait));
    let older = peers.stream_of("n2", Instant::now());
    assert_eq!(older, Some("a:1".to_owned()));
    let within = Duration::from_secs(20);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| peers.wait_for_end_of("n2", within));
        peers.follower_left("n2", old, true);
        assert!(waits.join().unwrap());
    });
    assert_eq!(peers.stream_of("n2", Instant::now()), None);
    let new = come(5, "b:2").unwrap();
    assert!(
        peers.with_follower("n2", old, |_| ()).is_none(),
        "an old stream's figures"
    );
    peers.follower_left("n2", old, true);
    assert_eq!(
        peers.with_follower("n2", new, |progress| progress.applied_index()),
        Some(5)
    );
    peers.follower_left("n2", new, true);
    assert!(peers.with_follower("n2", new, |_| ()).is_none());
}

/// If a follower's stream ends before it has acknowledged everything, its state is unknown.
#[test]
fn a_follower_that_leaves_has_not_applied_what_it_has_not_acknowledged() {
    let peers = Peers::attach(&mut Node::alone());
    let now = Instant::now();
    let progress = Progress::new(1, now);
    let stream = peers
        .follower_came("n2", progress, "a:1".to_owned(), now)
        .unwrap();
    let deadline = now + Duration::from_secs(20);
    assert!(peers.wait_for_follower("n2", stream, 1, deadline));
    assert!(!peers.wait_for_follower("n2", stream, 2, now));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| peers.wait_for_follower("n2", stream, 2, deadline));
        peers.follower_left("n2", stream, true);
        assert!(!waits.join().unwrap());
    });
}
