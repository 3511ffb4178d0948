//! The names of replication's frames and of STATUS that the cluster's tests use, all in one place.

/// Opcodes.
pub(crate) mod opcode {
    pub(crate) const STATUS: u8 = 0x40;
    pub(crate) const DISCARD: u8 = 0x41;
    pub(crate) const FOLLOW: u8 = 0x60;
    pub(crate) const ENTRIES: u8 = 0x61;
    pub(crate) const SNAPSHOT_BEGIN: u8 = 0x62;
    pub(crate) const SNAPSHOT_CHUNK: u8 = 0x63;
    pub(crate) const SNAPSHOT_END: u8 = 0x64;
}

/// Keys of STATUS.
pub(crate) mod key {
    pub(crate) const STATE: &str = "state";
    pub(crate) const EPOCH: &str = "epoch";
    pub(crate) const INDEX: &str = "index";
    pub(crate) const DIGEST: &str = "digest";
    pub(crate) const KEYS: &str = "keys";
    pub(crate) const FULL_COPIES: &str = "full_copies";
    pub(crate) const RESUMES: &str = "resumes";

    /// The state of a peer: [`UP`](super::peer::UP) or [`DOWN`](super::peer::DOWN).
    pub(crate) fn peer_state(name: &str) -> String {
        format!("peer.{name}.state")
    }

    /// On a source: what a follower does.
    pub(crate) fn follower_state(name: &str) -> String {
        format!("follower.{name}.state")
    }

    /// On a source: how far behind a follower is.
    pub(crate) fn follower_lag_ms(name: &str) -> String {
        format!("follower.{name}.lag_ms")
    }
}

/// The start of [`key::STATE`].
pub(crate) mod state {
    pub(crate) const SERVING: &str = "serving";
    pub(crate) const REFUSED: &str = "refused";
}

/// Values of [`key::peer_state`].
pub(crate) mod peer {
    pub(crate) const UP: &str = "up";
    pub(crate) const DOWN: &str = "down";
}
