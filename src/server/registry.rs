//! The connections that are served: how many there may be, and the reserve beyond that.
//!
//! Followers, probes and operators must not be shut out by clients that take all of `max_connections`. So there are
//! [`RESERVE`] places more, for connections whose first request is FOLLOW or STATUS ([`super::pending`]). A connection
//! of the reserve may send FOLLOW, STATUS and PING. With any other request it takes an ordinary place where one is
//! free, and is refused where none is. Where the reserve is full, a new connection evicts the one whose last request is
//! the oldest, but never a follower's stream. So silent connections keep no other out.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::transport::Transport;

/// Connections beyond `max_connections`.
pub(super) const RESERVE: usize = 64;

/// A client's socket, and the state of its connection that other threads read.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) stream: Transport,
    /// Code of the [`Activity`]; written by the thread that serves the connection.
    activity: AtomicU8,
    /// Code of the [`Place`]; written under the registry's lock.
    place: AtomicU8,
    /// Number of the last request, counted among those of all connections of the reserve. Kept only in the reserve.
    last_request: AtomicU64,
}

/// Activity of a connection, in the detail that a stop and the reserve need.
///
/// It changes between the first two any number of times, and from either to one of the others, which are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Activity {
    /// Waits for a request, or answers requests that have arrived whole.
    BetweenRequests,
    /// A request has begun to arrive and is not whole.
    Receiving,
    /// Sends a follower's stream.
    Following,
    /// Sends a watcher's stream.
    Watching,
}

/// The place that a connection holds.
///
/// `Pending` → `Ordinary` | `Reserved` | dropped; `Reserved` → `Ordinary`; `Ordinary` | `Reserved` → `Cut`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Place {
    /// None: it is not admitted.
    Pending,
    /// One of `max_connections`.
    Ordinary,
    /// One of the reserve.
    Reserved,
    /// None any more: both sides of its socket were shut down, for another connection or by the stop.
    Cut,
}

impl Activity {
    /// Every activity, at the index of its code.
    const ALL: [Activity; 4] = [
        Activity::BetweenRequests,
        Activity::Receiving,
        Activity::Following,
        Activity::Watching,
    ];

    /// Whether the connection sends a stream of log entries in place of answers.
    pub(super) const fn is_stream(self) -> bool {
        match self {
            Activity::BetweenRequests | Activity::Receiving => false,
            Activity::Following | Activity::Watching => true,
        }
    }
}

impl Peer {
    pub(super) fn new(stream: TcpStream) -> Peer {
        Peer {
            stream: Transport::new(stream),
            activity: AtomicU8::new(Activity::BetweenRequests as u8),
            place: AtomicU8::new(Place::Pending as u8),
            last_request: AtomicU64::new(0),
        }
    }

    pub(super) fn activity(&self) -> Activity {
        let code = usize::from(self.activity.load(Ordering::SeqCst));
        Activity::ALL[code % Activity::ALL.len()]
    }

    /// To be called by the thread that serves the connection.
    pub(super) fn set_activity(&self, activity: Activity) {
        // Only this thread writes it, so it reads what it wrote; a store is paid for only where something changes.
        if self.activity.load(Ordering::Relaxed) != activity as u8 {
            self.activity.store(activity as u8, Ordering::SeqCst);
        }
    }

    /// Whether the connection holds a place of the reserve.
    pub(super) fn is_reserved(&self) -> bool {
        self.has(Place::Reserved)
    }

    /// Whether both sides of the socket were shut down, for another connection or by the stop.
    pub(super) fn is_cut(&self) -> bool {
        self.has(Place::Cut)
    }

    fn has(&self, place: Place) -> bool {
        self.place.load(Ordering::SeqCst) == place as u8
    }

    fn set_place(&self, place: Place) {
        self.place.store(place as u8, Ordering::SeqCst);
    }
}

/// Every client that is served, so that the stop reaches each socket.
#[derive(Debug)]
pub(super) struct Registry {
    clients: Mutex<Clients>,
    /// `max_connections`, or less where the system allows less.
    limit: u32,
    /// Requests of connections of the reserve so far.
    requests: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct Clients {
    by_id: HashMap<u64, Arc<Peer>>,
    /// Connections that hold a place of the reserve.
    reserved: usize,
}

impl Registry {
    pub(super) fn new(limit: u32) -> Registry {
        Registry {
            clients: Mutex::default(),
            limit,
            requests: AtomicU64::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock()
    }

    /// Adds a client where a place is free: an ordinary one, or one of the reserve for a client that `may_use_reserve`.
    /// Returns whether it was added.
    pub(super) fn admit(
        &self,
        clients: &mut Clients,
        id: u64,
        peer: &Arc<Peer>,
        may_use_reserve: bool,
    ) -> bool {
        if self.has_room(clients) {
            peer.set_place(Place::Ordinary);
        } else {
            if !may_use_reserve || (clients.reserved >= RESERVE && !clients.evict_idlest()) {
                return false;
            }
            peer.set_place(Place::Reserved);
            self.note_request(peer);
            clients.reserved += 1;
        }
        clients.by_id.insert(id, Arc::clone(peer));
        true
    }

    /// Removes a client.
    pub(super) fn release(&self, id: u64) {
        self.clients.lock().remove(id);
    }

    /// Notes a request of a connection of the reserve.
    pub(super) fn note_request(&self, peer: &Peer) {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        peer.last_request.store(number, Ordering::Relaxed);
    }

    /// Moves a connection of the reserve to an ordinary place, where one is free. Returns whether it was moved.
    pub(super) fn leave_reserve(&self, peer: &Peer) -> bool {
        let mut clients = self.clients.lock();
        // One that was cut has no place to give back.
        if !self.has_room(&clients) || !peer.is_reserved() {
            return false;
        }
        peer.set_place(Place::Ordinary);
        clients.reserved -= 1;
        true
    }

    fn has_room(&self, clients: &Clients) -> bool {
        let ordinary = clients.by_id.len() - clients.reserved;
        usize::try_from(self.limit).is_ok_and(|limit| ordinary < limit)
    }

    /// The ERROR for a client that there is no place for.
    pub(super) fn refusal(&self) -> String {
        format!("too many connections, limit {}", self.limit)
    }
}

impl Clients {
    pub(super) fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_id.values()
    }

    /// Cuts off the clients that `is_meant` selects: shuts down both sides of their sockets, so that their threads end
    /// at the next read or write. They stay in the registry until then. Returns how many there were.
    pub(super) fn cut(&mut self, is_meant: impl Fn(&Peer) -> bool) -> usize {
        let mut count = 0;
        for peer in self.by_id.values().filter(|peer| is_meant(peer)) {
            if peer.is_reserved() {
                self.reserved -= 1;
            }
            cut(peer);
            count += 1;
        }
        count
    }

    fn remove(&mut self, id: u64) {
        // One that was evicted is not here any more.
        if let Some(peer) = self.by_id.remove(&id)
            && peer.is_reserved()
        {
            self.reserved -= 1;
        }
    }

    /// Evicts the connection of the reserve whose last request is the oldest; says whether there was one.
    fn evict_idlest(&mut self) -> bool {
        let reserved = self.by_id.iter().filter(|(_, peer)| peer.is_reserved());
        let evictable = reserved.filter(|(_, peer)| peer.activity() != Activity::Following);
        let idlest = evictable.min_by_key(|(_, peer)| peer.last_request.load(Ordering::Relaxed));
        let Some(id) = idlest.map(|(&id, _)| id) else {
            return false;
        };
        if let Some(peer) = self.by_id.remove(&id) {
            self.reserved -= 1;
            cut(&peer);
        }
        true
    }
}

/// Ends a connection from another thread. To be called under the registry's lock.
fn cut(peer: &Peer) {
    peer.set_place(Place::Cut);
    peer.stream.shut_down(Shutdown::Both);
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
        pairs[0].1.set_activity(Activity::Following);
        registry.note_request(&pairs[1].1);
        let (_client, newest) = peer();
        assert!(admit(&registry, 1_000, &newest, true));
        let closed: Vec<usize> = (0..RESERVE).filter(|&at| pairs[at].1.is_cut()).collect();
        assert_eq!(closed, [2]);
        assert_eq!(registry.lock().reserved, RESERVE);
        // Its thread ends later, which frees no place again.
        registry.release(2);
        assert!(!registry.leave_reserve(&pairs[2].1));
        assert_eq!(registry.lock().reserved, RESERVE);
        for (_, peer) in &pairs {
            peer.set_activity(Activity::Following);
        }
        newest.set_activity(Activity::Following);
        assert!(!admit(&registry, 1_001, &peer().1, true));
        // A watcher has a stream as well, and must not keep others out.
        pairs[5].1.set_activity(Activity::Watching);
        assert!(admit(&registry, 1_002, &peer().1, true));
        assert!(pairs[5].1.is_cut());
    }

    #[test]
    fn cut_connections_free_their_place_of_the_reserve_once() {
        let registry = Registry::new(1);
        let pairs: Vec<_> = (0..3).map(|_| peer()).collect();
        for (id, (_, peer)) in (0..).zip(&pairs) {
            assert!(admit(&registry, id, peer, true));
        }
        pairs[2].1.set_activity(Activity::Following);
        let is_client = |peer: &Peer| !peer.activity().is_stream();
        assert_eq!(registry.lock().cut(is_client), 2);
        assert!(pairs[0].1.is_cut() && pairs[1].1.is_cut() && !pairs[2].1.is_cut());
        assert_eq!(registry.lock().reserved, 1);
        assert!(!registry.leave_reserve(&pairs[1].1));
        // They are waited for until their threads end.
        assert_eq!(registry.lock().peers().count(), 3);
        for id in 0..3 {
            registry.release(id);
        }
        assert_eq!(registry.lock().reserved, 0);
    }

    #[test]
    fn a_code_is_the_index_of_its_activity() {
        let (_client, peer) = peer();
        for activity in Activity::ALL {
            peer.set_activity(activity);
            assert_eq!(peer.activity(), activity);
        }
    }
}
