//! Readings of servers whose data is on the disk: a restart, and GETs beside SETs.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::Outcome;
use crate::cells::{Cell, Figure, Figures, P99, REQUESTS, RESIDENT, load_of, while_driven};
use crate::drive::{Load, Until, count, drive};
use crate::servers::{Server, memory_kib};

pub(crate) const RESTART: Figure = Figure("ms from the start to the first right answer");
const FILES: Figure = Figure("MiB of files");
const WRITES: Figure = Figure("SETs/s beside");

/// The generator's connections of each kind.
const CONNECTIONS: usize = 4;

/// Starts a server that has all data in its files, and stops it.
pub(crate) fn read_restart(server: &mut Server) -> Outcome<Figures> {
    let files = server.files()?.into_iter().map(|(_, bytes)| bytes).sum();
    let took = server.restart()?;
    let (resident, _) = memory_kib(server.leader.pid());
    server.kill();
    Ok(vec![
        (RESTART, took.as_secs_f64() * 1e3),
        (FILES, count(files) / count(1 << 20)),
        (RESIDENT, count(resident) / 1024.0),
    ])
}

/// GETs of one half of the keys beside SETs of the other half, which come at a rate.
pub(crate) fn read_beside(
    cell: &Cell,
    server: &Server,
    time: Duration,
    seed: u64,
    rate: u64,
) -> Outcome<Figures> {
    let keys = cell.setup.keys / 2;
    let writer = |over: &AtomicBool| {
        drive(&Load {
            connections: CONNECTIONS,
            depth: 128,
            keys,
            first_key: keys,
            rate: Some(rate),
            seed,
            ..load_of(cell, server, Until::Told(over))
        })
    };
    let reader = || {
        drive(&Load {
            connections: CONNECTIONS,
            get_percent: 100,
            keys,
            seed,
            ..load_of(cell, server, Until::Time(time))
        })
    };
    let (written, read) = while_driven(writer, reader)?;
    Ok(vec![
        (P99, read.latency_us(0.99)),
        (REQUESTS, read.per_second()),
        (WRITES, written.per_second()),
    ])
}
