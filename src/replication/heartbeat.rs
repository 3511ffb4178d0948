//! Which peers live: a thread that asks each, and one that looks at the table.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use log::{info, warn};

use super::{Stop, connect};
use crate::config::NodeConfig;
use crate::liveness::Change;
use crate::node::{Member, Node};
use crate::wire::Request;

/// PING's answer.
const PONG: &[u8; 9] = b"\x00\x00\x00\x00\x04PONG";

/// Looks at the table of peers at every interval.
pub(super) fn run(node: &Node, member: &Member, stop: &Stop) {
    while !stop.wait(member.replication.heartbeat_interval) {
        let changes = node.liveness().lock().check(Instant::now());
        changes.into_iter().for_each(report);
    }
}

/// Asks one peer at every interval whether it is there.
pub(super) fn probe(node: &Node, member: &Member, peer: &NodeConfig, stop: &Stop) {
    let mut connection = None;
    loop {
        let change = match ask(&mut connection, member, peer, stop) {
            Ok(()) => node.liveness().lock().observe(&peer.name, Instant::now()),
            Err(error) => {
                connection = None;
                let is_gone = error.kind() == ErrorKind::ConnectionRefused;
                is_gone
                    .then(|| node.liveness().lock().refused(&peer.name, Instant::now()))
                    .flatten()
            }
        };
        change.into_iter().for_each(report);
        if stop.wait(member.replication.heartbeat_interval) {
            return;
        }
    }
}

fn ask(
    connection: &mut Option<TcpStream>,
    member: &Member,
    peer: &NodeConfig,
    stop: &Stop,
) -> io::Result<()> {
    let interval = member.replication.heartbeat_interval;
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = connect(&peer.addr, Instant::now() + interval, stop)?;
            // Short, so that the stop of this node does not wait for a silent peer.
            stream.set_read_timeout(Some(interval))?;
            stream.set_write_timeout(Some(interval))?;
            connection.insert(stream)
        }
    };
    let mut ping = Vec::new();
    Request::Ping.encode(&mut ping).map_err(io::Error::other)?;
    stream.write_all(&ping)?;
    let mut answer = [0; PONG.len()];
    stream.read_exact(&mut answer)?;
    if answer != *PONG {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(())
}

pub(super) fn report(change: Change) {
    let (name, after) = (change.name, change.after.as_millis());
    if change.is_up {
        info!("{name} is up, after {after} ms");
    } else {
        warn!("{name} is down, after {after} ms");
    }
}
