//! What a node knows of its leader, its followers and its peers.

use super::*;

impl Node {
    /// Something has come by the stream from the leader, be it the first of it.
    pub fn leader_heard(&self, now: Instant) {
        let mut link = self.leader_link.lock();
        link.is_up = true;
        link.heard = Some(now);
    }

    /// Judges how long a follower has heard nothing of its leader, by the stream or by the answers to probes. Reports
    /// the leader timeout, and its end, once each.
    pub fn check_leader(&self, now: Instant) -> Option<LeaderChange> {
        let Role::Follower { .. } = self.role else {
            return None;
        };
        let leader = self.member.as_ref().map(|member| member.leader.as_str())?;
        let probed = {
            let liveness = self.liveness.lock();
            let peer = liveness.peers().iter().find(|peer| peer.name == leader);
            peer.and_then(|peer| peer.heard())
        };
        let mut link = self.leader_link.lock();
        let heard = link.heard.max(probed);
        match heard {
            Some(heard) if link.watch.last_heard() < Some(heard) => link.watch.heard(heard),
            Some(_) | None => link.watch.check(now),
        }
    }

    /// The leader said, in a heartbeat or in its STATUS, that its last index is `last_index`.
    pub fn leader_told(&self, last_index: u64, now: Instant) {
        let head = self.head().index;
        self.behind.lock().heard(last_index, head, now);
    }

    /// The stream from the leader has ended.
    pub fn leader_lost(&self) {
        let head = self.head().index;
        self.leader_link.lock().is_up = false;
        self.behind.lock().lost(head);
    }

    /// Notes why this follower does not follow its leader; nothing where it does.
    pub fn set_not_following(&self, why: Option<&str>) {
        *self.not_following.lock() = why.map(Arc::from);
    }

    /// How many entries this follower lacks of its leader's, where that is known, and for how long it has lacked any.
    pub(super) fn lag_behind_leader(&self, now: Instant) -> (Option<u64>, Duration) {
        let is_loading = matches!(self.phase(), Phase::Loading(_));
        // While it loads it holds nothing that counts.
        let head = if is_loading { 0 } else { self.head().index };
        let follows = self.leader_link.lock().is_up && !is_loading;
        let silence_max = self.silence_max();
        let mut behind = self.behind.lock();
        let age = behind.age(head, follows, silence_max, now);
        (behind.entries(head), age)
    }

    /// Takes a follower in, whose connection from `addr` becomes a stream; gives the stream's number. A stream of the
    /// same name that has been silent for three heartbeats is its stream no longer.
    ///
    /// # Errors
    ///
    /// The address of the older stream of the same name, where that is alive.
    pub fn follower_came(
        &self,
        name: &str,
        progress: Progress,
        addr: String,
        now: Instant,
    ) -> Result<u64, String> {
        let silence_max = self.silence_max();
        let mut followers = self.followers.lock();
        followers.come(name, progress, addr, silence_max, now)
    }

    /// The address of the stream that has this name, where one is alive and does not end within `time`: a follower that
    /// comes back may do so before the end of its last connection is noticed.
    #[must_use]
    pub fn stream_of(&self, name: &str, time: Duration) -> Option<String> {
        let (silence_max, deadline) = (self.silence_max(), Instant::now() + time);
        let mut followers = self.followers.lock();
        loop {
            let older = followers.stream_of(name, silence_max, Instant::now())?;
            let older = older.to_owned();
            let wait = self.progressed.wait_until(&mut followers, deadline);
            if wait.timed_out() {
                return Some(older);
            }
        }
    }

    /// Notes that a node at `host` was refused a name whose stream is another node's. Says whether it is the first time
    /// since that stream began.
    pub fn refuse_follower(&self, name: &str, host: &str) -> bool {
        self.followers.lock().refuse(name, host)
    }

    /// A follower's stream has ended. A leader remembers it: its figures stay in STATUS.
    pub fn follower_left(&self, name: &str, stream: u64) {
        let keeps = self.role == Role::Leader;
        let mut followers = self.followers.lock();
        followers.leave(name, stream, keeps, Instant::now());
        self.progressed.notify_all();
    }

    /// Looks at or changes a follower's progress; `None` where it has left, or has another stream by now.
    pub fn with_follower<T>(
        &self,
        name: &str,
        stream: u64,
        f: impl FnOnce(&mut Progress) -> T,
    ) -> Option<T> {
        let mut followers = self.followers.lock();
        let result = followers.progress_mut(name, stream).map(f);
        self.progressed.notify_all();
        result
    }

    /// Waits until the follower has applied `index`, has left, or the time is over. Says whether it has applied it.
    #[must_use]
    pub fn wait_for_follower(
        &self,
        name: &str,
        stream: u64,
        index: u64,
        deadline: Instant,
    ) -> bool {
        let mut followers = self.followers.lock();
        loop {
            let Some(progress) = followers.progress_mut(name, stream) else {
                return false;
            };
            if progress.applied_index() >= index {
                return true;
            }
            let wait = self.progressed.wait_until(&mut followers, deadline);
            if wait.timed_out() {
                return false;
            }
        }
    }

    /// Silence after which a follower counts as gone.
    pub(super) fn silence_max(&self) -> Duration {
        self.member.as_ref().map_or(Duration::MAX, |member| {
            member.replication.heartbeat_interval * SILENT_HEARTBEATS
        })
    }

    /// How far each peer is with a log that ends at `index`.
    #[must_use]
    pub fn peers_at(&self, index: u64) -> Vec<PeerAt> {
        let peers: Vec<_> = self.liveness.lock().peers().to_vec();
        let followers = self.followers.lock();
        let peers = peers.into_iter().map(|peer| {
            let follower = followers.attached(&peer.name);
            let lacks = match follower.map(Progress::applied_index) {
                Some(applied) if applied >= index => None,
                Some(applied) => Some(Lacking::At(applied)),
                None => Some(Lacking::Absent),
            };
            PeerAt {
                name: peer.name,
                is_up: peer.is_up,
                lacks,
            }
        });
        peers.collect()
    }

    /// Waits until some follower's progress has changed, or the time is over.
    pub fn wait_for_progress(&self, time: Duration) {
        let mut followers = self.followers.lock();
        self.progressed.wait_for(&mut followers, time);
    }
}
