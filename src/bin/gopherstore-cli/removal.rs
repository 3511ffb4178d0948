//! `del --prefix` and `flush`: remove many keys, after a question.

use std::io::{self, BufRead, IsTerminal, Write};

use argh::{ArgsInfo, FromArgs};
use gopherstore::Client;
use gopherstore::arguments::Bytes;
use gopherstore::client::{Error, Response, ScanOptions};
use gopherstore::wire::Opcode;

use crate::{
    context::Context,
    quote,
    report::{self, Failure, Outcome},
    scan, write_out,
};

/// Keys that are removed in one pipeline.
const PIPELINE_COUNT: usize = 1_000;

/// Remove all keys of the cluster, after a question.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "flush", help_triggers("-h", "--help"))]
#[argh(
    example = "{command_name} --yes",
    note = "The command counts the keys and asks on the terminal. Without a terminal it needs --yes.\n\
        It removes one key after another, through the leader, so clients are served meanwhile, and may\n\
        see some keys and miss others. Keys that clients store meanwhile may stay.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Flush {
    /// do not ask
    #[argh(switch)]
    yes: bool,
}

pub(crate) fn flush(command: &Flush, context: &Context) -> Result<Outcome, Failure> {
    run(None, command.yes, context)
}

/// Removes the keys that begin with a prefix.
pub(crate) fn with_prefix(
    prefix: Bytes,
    is_confirmed: bool,
    context: &Context,
) -> Result<Outcome, Failure> {
    run(Some(prefix), is_confirmed, context)
}

/// Removes all keys, or those that begin with a prefix.
fn run(prefix: Option<Bytes>, is_confirmed: bool, context: &Context) -> Result<Outcome, Failure> {
    let is_terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    if !is_confirmed && !is_terminal {
        return Err(crate::mistake(
            "this removes keys for good, and there is no terminal to ask on; confirm it with --yes",
        ));
    }
    let what = match &prefix {
        Some(prefix) => format!("that begin with {}", quote::quoted(prefix)),
        None => "of this cluster, all that there are".to_owned(),
    };
    let options = ScanOptions {
        prefix: prefix.clone().unwrap_or_default(),
        ..ScanOptions::default()
    };
    let mut client = context.client()?;
    let count = scan::count(&mut client, options.clone());
    let count = count.map_err(|error| scan::failure(&error, context))?;
    if count == 0 && prefix.is_some() {
        let message = format!("not found: there are no keys {what}");
        return Err(Failure::new(Outcome::NotFound, message));
    }
    if !is_confirmed && count > 0 && !is_yes(&format!("remove {} {what}? [y/N] ", keys(count)))? {
        return Err(Failure::new(Outcome::Usage, "nothing was removed"));
    }
    let mut removal = Removal {
        client: context.client()?,
        count: 0,
    };
    let result = removal.all(&mut client, options);
    let removed = keys(removal.count);
    result.map_err(|(error, opcode)| {
        let failure = report::failure(&error, opcode, context.node.as_deref());
        let message = format!("{removed} removed before: {}", failure.message);
        Failure::new(failure.outcome, message)
    })?;
    if io::stdout().is_terminal() {
        write_out(format!("{removed} removed\n").as_bytes())?;
    }
    Ok(Outcome::Done)
}

/// Asks on the terminal.
fn is_yes(question: &str) -> Result<bool, Failure> {
    let mut line = String::new();
    let _ = io::stderr().write_all(question.as_bytes());
    let read = io::stdin().lock().read_line(&mut line);
    read.map_err(|error| crate::lines::unreadable(&error))?;
    let line = line.trim();
    Ok(line.eq_ignore_ascii_case("y") || line.eq_ignore_ascii_case("yes"))
}

fn keys(count: u64) -> String {
    match count {
        1 => "1 key".to_owned(),
        count => format!("{count} keys"),
    }
}

/// The removal of the keys that a scan returns.
struct Removal {
    /// Sends the DELs, which a follower redirects, while another client scans.
    client: Client,
    /// Keys that were removed.
    count: u64,
}

impl Removal {
    /// Removes every key that a scan returns. An error comes with the operation that failed.
    fn all(&mut self, scanner: &mut Client, options: ScanOptions) -> Result<(), (Error, Opcode)> {
        let mut gathered = Vec::new();
        for item in scanner.scan(options) {
            gathered.push(item.map_err(|error| (error, Opcode::Scan))?.key);
            if gathered.len() == PIPELINE_COUNT {
                self.some(&gathered)?;
                gathered.clear();
            }
        }
        self.some(&gathered)
    }

    /// Removes these keys in one pipeline. Keys that are gone by then do not count.
    fn some(&mut self, keys: &[Vec<u8>]) -> Result<(), (Error, Opcode)> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut pipeline = self.client.pipeline();
        for key in keys {
            pipeline.del(key);
        }
        let (responses, fault) = match pipeline.run() {
            Ok(responses) => (responses, None),
            Err(fault) => (fault.responses, Some(fault.error)),
        };
        for response in responses.into_iter().chain(fault.map(Err)) {
            match response {
                Ok(response) => self.count += u64::from(response == Response::Done),
                Err(error) => return Err((error, Opcode::Del)),
            }
        }
        Ok(())
    }
}
