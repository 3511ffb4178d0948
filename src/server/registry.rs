//! Who is connected: how many may be, and the reserve beyond that.
//!
//! Followers, probes and operators must not be shut out by clients that take all of `max_connections`. So there are
//! [`RESERVE`] places more, for connections whose first request is FOLLOW or STATUS ([`super::door`]). In the reserve
//! a connection may ask FOLLOW, STATUS and PING; with any other request it becomes one of the ordinary connections
//! where there is room by then, and is refused where not. Where the reserve is full, the connection of it that has
//! been idle for longest is closed for the new one, but never a follower's stream: so nobody who asks is shut out by
//! those who hold a place and are silent.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::transport::Transport;

/// Connections beyond `max_connections`.
pub(super) const RESERVE: usize = 64;

/// A client's socket, and what others than its thread have to know of it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) stream: Transport,
    /// Whether a request has begun to arrive and is not whole. The stop leaves such a client its time.
    pub(super) in_frame: AtomicBool,
    /// Whether the client came behind the stop of a leader, which refuses its writes.
    pub(super) is_late: AtomicBool,
    /// Whether the client has become a follower or an observer, which the stop sends what it lacks before it goes.
    pub(super) follows: AtomicBool,
    /// Whether it is an observer, which the reserve may close.
    pub(super) observes: AtomicBool,
    /// Whether the stop has given up waiting for it.
    pub(super) is_cut: AtomicBool,
    /// Whether it holds a place of the reserve. Changed under the registry's lock.
    is_reserved: AtomicBool,
    /// Of a connection in the reserve: the number of its last request among all that came there.
    asked: AtomicU64,
}

impl Peer {
    pub(super) fn new(stream: TcpStream) -> Peer {
        Peer {
            stream: Transport::new(stream),
            in_frame: AtomicBool::new(false),
            is_late: AtomicBool::new(false),
            follows: AtomicBool::new(false),
            observes: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
            is_reserved: AtomicBool::new(false),
            asked: AtomicU64::new(0),
        }
    }

    /// Whether it holds a place of the reserve.
    pub(super) fn is_reserved(&self) -> bool {
        self.is_reserved.load(Ordering::SeqCst)
    }
}

/// Every client that is served, so that the stop reaches each socket.
#[derive(Debug)]
pub(super) struct Registry {
    clients: Mutex<Clients>,
    /// `max_connections`.
    limit: u32,
    /// Requests that came in the reserve.
    asked: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct Clients {
    by_id: HashMap<u64, Arc<Peer>>,
    /// How many of them hold places of the reserve.
    reserved: usize,
}

impl Registry {
    pub(super) fn new(limit: u32) -> Registry {
        Registry {
            clients: Mutex::default(),
            limit,
            asked: AtomicU64::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock()
    }

    /// Counts a client in, where there is room: an ordinary place, or for one that `may_use_reserve` one of those.
    pub(super) fn admit(
        &self,
        clients: &mut Clients,
        id: u64,
        peer: &Arc<Peer>,
        may_use_reserve: bool,
    ) -> bool {
        if !self.has_room(clients) {
            if !may_use_reserve || (clients.reserved >= RESERVE && !clients.close_idlest()) {
                return false;
            }
            peer.is_reserved.store(true, Ordering::SeqCst);
            self.note_request(peer);
            clients.reserved += 1;
        }
        clients.by_id.insert(id, Arc::clone(peer));
        true
    }

    /// Counts a client out.
    pub(super) fn release(&self, id: u64) {
        self.clients.lock().remove(id);
    }

    /// A request has come in the reserve.
    pub(super) fn note_request(&self, peer: &Peer) {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        peer.asked.store(number, Ordering::Relaxed);
    }

    /// Gives a connection of the reserve an ordinary place, where there is one by now.
    pub(super) fn leave_reserve(&self, peer: &Peer) -> bool {
        let mut clients = self.clients.lock();
        // One that was closed for another has no place to give back.
        if !self.has_room(&clients) || peer.is_cut.load(Ordering::SeqCst) {
            return false;
        }
        peer.is_reserved.store(false, Ordering::SeqCst);
        clients.reserved -= 1;
        true
    }

    fn has_room(&self, clients: &Clients) -> bool {
        let ordinary = clients.by_id.len() - clients.reserved;
        usize::try_from(self.limit).is_ok_and(|limit| ordinary < limit)
    }

    /// The ERROR to a client that there is no room for.
    pub(super) fn refusal(&self) -> String {
        format!("too many connections, limit {}", self.limit)
    }
}

impl Clients {
    pub(super) fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_id.values()
    }

    fn remove(&mut self, id: u64) {
        // One that was closed for another is not in here any more.
        if let Some(peer) = self.by_id.remove(&id)
            && peer.is_reserved()
        {
            self.reserved -= 1;
        }
    }

    /// Closes the connection of the reserve whose last request is the oldest; says whether there was one.
    fn close_idlest(&mut self) -> bool {
        let reserved = self.by_id.iter().filter(|(_, peer)| peer.is_reserved());
        let closable = reserved.filter(|(_, peer)| {
            !peer.follows.load(Ordering::SeqCst) || peer.observes.load(Ordering::SeqCst)
        });
        let idlest = closable.min_by_key(|(_, peer)| peer.asked.load(Ordering::Relaxed));
        let Some((&id, peer)) = idlest else {
            return false;
        };
        peer.is_cut.store(true, Ordering::SeqCst);
        // Its thread finds out at its next read or write.
        peer.stream.shut_down(Shutdown::Both);
        self.remove(id);
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A client's socket and the server's.
    fn peer() -> (TcpStream, Arc<Peer>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, Arc::new(Peer::new(listener.accept().unwrap().0)))
    }

    fn admit(registry: &Registry, id: u64, peer: &Arc<Peer>, may_use_reserve: bool) -> bool {
        registry.admit(&mut registry.lock(), id, peer, may_use_reserve)
    }

    #[test]
    fn the_reserve_is_for_those_who_may_use_it_and_begins_where_there_is_no_room() {
        let registry = Registry::new(2);
        let (_client, peer) = peer();
        assert!(admit(&registry, 0, &peer, false));
        let first = Arc::new(Peer::new(peer.stream.tcp().try_clone().unwrap()));
        assert!(admit(&registry, 1, &first, true));
        assert!(!first.is_reserved());
        assert!(!admit(&registry, 2, &peer, false));
        let reserved = Arc::new(Peer::new(peer.stream.tcp().try_clone().unwrap()));
        assert!(admit(&registry, 3, &reserved, true));
        assert!(reserved.is_reserved());
        // It counts as ordinary only where there is room.
        assert!(!registry.leave_reserve(&reserved));
        registry.release(0);
        assert!(registry.leave_reserve(&reserved));
        assert!(!admit(&registry, 4, &peer, false));
        registry.release(3);
        assert!(admit(&registry, 5, &peer, false));
        assert_eq!(registry.lock().reserved, 0);
    }

    #[test]
    fn a_full_reserve_closes_the_idlest_that_does_not_follow() {
        let registry = Registry::new(0);
        let pairs: Vec<_> = (0..RESERVE).map(|_| peer()).collect();
        for (id, (_, peer)) in (0..).zip(&pairs) {
            assert!(admit(&registry, id, peer, true));
        }
        pairs[0].1.follows.store(true, Ordering::SeqCst);
        registry.note_request(&pairs[1].1);
        let (_client, newest) = peer();
        assert!(admit(&registry, 1_000, &newest, true));
        let closed: Vec<usize> = (0..RESERVE)
            .filter(|&at| pairs[at].1.is_cut.load(Ordering::SeqCst))
            .collect();
        assert_eq!(closed, [2]);
        assert_eq!(registry.lock().reserved, RESERVE);
        // Its thread leaves later, which frees nobody's place.
        registry.release(2);
        assert!(!registry.leave_reserve(&pairs[2].1));
        assert_eq!(registry.lock().reserved, RESERVE);
        for (_, peer) in &pairs {
            peer.follows.store(true, Ordering::SeqCst);
        }
        newest.follows.store(true, Ordering::SeqCst);
        assert!(!admit(&registry, 1_001, &peer().1, true));
        // An observer has a stream as well, and must not keep others out.
        pairs[5].1.observes.store(true, Ordering::SeqCst);
        assert!(admit(&registry, 1_002, &peer().1, true));
        assert!(pairs[5].1.is_cut.load(Ordering::SeqCst));
    }
}
