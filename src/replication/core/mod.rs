//! The decisions of replication as plain values: no sockets, threads, clocks or files. The caller passes the time in.
//!
//! | module               | answers                                                                          |
//! |----------------------|----------------------------------------------------------------------------------|
//! | [`rules`]            | does a follower resume, take a snapshot or keep its data; which peer is ahead    |
//! | [`machine`]          | what a node does about its role: `step(message, now)`, `tick(now)` return actions |
//! | [`watch`]            | what a peer's report implies: yield to it, leave the leader for it               |
//! | [`role_state`]       | the role of a node, and the state of its data set                                |
//! | [`role`]             | which leader a node follows, and when the initial leader leads again             |
//! | [`start`]            | what a node that is to lead does next                                            |
//! | [`pauses`]           | how long a node pauses between attempts to follow                                |
//! | [`shutdown`]         | when a node that stops can end                                                   |
//! | [`snapshot_permits`] | may another snapshot begin                                                       |
//! | [`progress`]         | how far a follower has applied the log, and how far it lags behind               |
//! | [`followers`]        | which followers a node has, and which stream each of them uses                   |
//! | [`liveness`]         | which peers are up, and whether the leader is silent                             |
//! | [`report`]           | what a peer's STATUS says, and whether a stopping node can rely on that peer     |

pub mod followers;
pub mod liveness;
pub mod machine;
pub mod pauses;
pub mod progress;
pub mod report;
pub mod role;
pub mod role_state;
pub mod rules;
pub mod shutdown;
pub mod snapshot_permits;
pub mod start;
pub mod watch;
