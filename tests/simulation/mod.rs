//! The simulator: whole nodes of the shipped code in one thread, with a network and a clock of their own.
//!
//! Everything that happens follows from a seed: which connections are lost, when a node crashes, what clients send. A
//! run that fails is repeated with its trace, and prints it with its seed. `GOPHERSTORE_SEED=n` repeats one seed with
//! the whole trace; `GOPHERSTORE_SEEDS=n` says how many are run.
//!
//! | file          | what it does                                                             |
//! |---------------|--------------------------------------------------------------------------|
//! | `random.rs`   | random numbers                                                           |
//! | `events.rs`   | the clock, and what happens when                                         |
//! | `network.rs`  | connections: delay, bandwidth, loss, cut links                           |
//! | `network/delivery.rs`| when what is sent arrives                                         |
//! | `load.rs`     | clients                                                                  |
//! | `operations.rs`| the requests that they send                                             |
//! | `shared.rs`   | everything in a run beside its processes                                 |
//! | `process.rs`  | a process of a node: what the transport's threads do, as events          |
//! | `process/executing.rs`| its clients' requests, and the entries that it removes by itself |
//! | `process/replicating.rs`| its questions, the driver of its role, and its stream          |
//! | `serving.rs`  | a connection that it has accepted; the leader side of a stream           |
//! | `following.rs`| its stream from the node that it follows                                 |
//! | `asking.rs`   | its questions to its peers                                               |
//! | `stopping.rs` | its stop in good order                                                   |
//! | `checks.rs`   | what is checked of it after each event                                   |
//! | `clocks.rs`   | what is checked of its clock                                             |
//! | `machines.rs` | the disks of the machines, their faults, and what a recovery has to find |
//! | `storing.rs`  | the shipped steps of a process on its disk                               |
//! | `disk.rs`     | the turns of the threads that write it, and what is checked of them      |
//! | `faults.rs`   | which faults a run has                                                   |
//! | `world.rs`    | a run, from its begin to its end                                         |
//! | `world/causing.rs`| what the faults do                                                   |
//! | `world/agreement.rs`| the end of a run: the nodes agree, and have what clients were told |
//! | `seeds.rs`    | many runs                                                                |
//! | `session.rs`  | a client's connection at a node                                          |
//! | `truth.rs`    | every record that was ever written, and what each position is            |
//! | `reference.rs`| what each operation answers and changes; of `../support`                 |
//! | `trace.rs`    | what happened, for people                                                |
//!
//! `../scenarios` plays scripts with the same nodes, in a calm network.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod asking;
mod bare;
mod checks;
mod clocks;
mod disk;
mod events;
mod faults;
mod following;
mod load;
mod machines;
mod network;
mod operations;
mod planted;
mod process;
mod random;
mod seeds;
mod serving;
mod session;
mod shared;
mod stopping;
mod storing;
mod trace;
mod truth;
mod world;

#[path = "../support/reference.rs"]
mod reference;
#[path = "../scenarios/mod.rs"]
mod scenarios;

use crate::wire;

use load::ClientEvent;
use network::{End, NetworkEvent, Signal};
use process::Wake;
use world::Later;

/// Something that happens in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Network(NetworkEvent),
    Client(ClientEvent),
    /// A host notices something at an end of a connection.
    Signal(usize, End, Signal),
    /// A process has waited for something.
    Process(usize, Wake),
    Later(Later),
}

impl From<NetworkEvent> for Event {
    fn from(event: NetworkEvent) -> Event {
        Event::Network(event)
    }
}

impl From<ClientEvent> for Event {
    fn from(event: ClientEvent) -> Event {
        Event::Client(event)
    }
}
