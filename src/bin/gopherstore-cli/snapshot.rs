//! `snapshot`: has a node write a snapshot to its disk, and waits for its end.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use gopherstore::Client;
use gopherstore::client::NodeStatus;
use gopherstore::wire::Opcode;

use crate::{
    context::Context,
    report::{self, DISK_FULL, Failure, Outcome},
    write_out,
};

/// Pause between two looks at the node.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Have a node with a disk write a snapshot of its data now.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "snapshot", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} --addr 127.0.0.1:8000",
    note = "The next start of the node reads the snapshot, and only the log behind it; the log before it is\n\
        removed. The command waits until the snapshot is on the disk, however long that takes; --timeout is\n\
        for each response. Without the command the node goes on. A snapshot that is under way counts. One\n\
        that cannot be written ends the command with an error and the reason: exit code 10 where the disk is\n\
        full, and otherwise 3. A node begins snapshots by itself too.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Snapshot {}

pub(crate) fn run(context: &Context) -> Result<Outcome, Failure> {
    context.name_one("snapshot")?;
    let mut client = context.client()?;
    let failed = |error| report::failure(&error, Opcode::Snapshot, context.node.as_deref());
    let before = status(&mut client).map_err(failed)?;
    client.snapshot().map_err(failed)?;
    // A node of an earlier version does not say how snapshots end.
    while before.snapshots.is_some() {
        let now = status(&mut client).map_err(|error| {
            let Failure { outcome, message } = failed(error);
            let message = format!("it is unknown whether the snapshot was written: {message}");
            Failure::new(outcome, message)
        })?;
        if is_over(&before, &now)? {
            break;
        }
        thread::sleep(LOOK_INTERVAL);
    }
    if io::stdout().is_terminal() && !context.quiet {
        write_out(b"OK\n")?;
    }
    Ok(Outcome::Done)
}

fn status(client: &mut Client) -> Result<NodeStatus, gopherstore::client::Error> {
    client.status().map(|text| NodeStatus::parse(&text))
}

/// Whether a snapshot was written between two statuses of a node.
fn is_over(before: &NodeStatus, now: &NodeStatus) -> Result<bool, Failure> {
    if now.uptime_ms < before.uptime_ms {
        let message = "the node has restarted before the snapshot was written; order another one";
        return Err(Failure::new(Outcome::ServerError, message));
    }
    if now.snapshots > before.snapshots {
        return Ok(true);
    }
    if now.failed_snapshots == before.failed_snapshots {
        return Ok(false);
    }
    let why = now.snapshot_error.as_deref().unwrap_or("unknown");
    let (outcome, next) = if why.contains(DISK_FULL) {
        (Outcome::Full, "make room on it")
    } else {
        (Outcome::ServerError, "read the log of the node")
    };
    let message = format!(
        "the snapshot was not written: {why}; {next}; no data is lost, and the node tries it again"
    );
    Err(Failure::new(outcome, message))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_snapshot_is_told_from_two_statuses() {
        let status = |uptime, written, failed, why| {
            let text = format!(
                "uptime_ms: {uptime}\nsnapshots: {written}\nfailed_snapshots: {failed}\nsnapshot_error: {why}\n"
            );
            NodeStatus::parse(&text)
        };
        let before = status(10, 2, 3, "/d: an earlier one");
        let judge =
            |now| is_over(&before, &now).map_err(|failure| (failure.outcome, failure.message));
        assert_eq!(judge(status(11, 2, 3, "/d: an earlier one")), Ok(false));
        assert_eq!(judge(status(11, 3, 3, "-")), Ok(true));
        assert_eq!(judge(status(11, 3, 4, "/d: the next one")), Ok(true));
        for (now, expected, part) in [
            (
                status(11, 2, 4, "/d: the disk is full: No space"),
                Outcome::Full,
                "/d: the disk is full: No space",
            ),
            (
                status(11, 2, 4, "/d: cannot write"),
                Outcome::ServerError,
                "/d: cannot write",
            ),
            (status(9, 0, 0, "-"), Outcome::ServerError, "restarted"),
        ] {
            let (outcome, message) = judge(now).unwrap_err();
            assert_eq!(outcome, expected, "{message}");
            assert!(message.contains(part), "{message}");
        }
    }
}
