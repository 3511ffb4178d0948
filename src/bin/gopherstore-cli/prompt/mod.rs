//! The prompt: commands one after another from a keyboard.
//!
//! It shows the connected node and its role. Mistakes and failures are printed and do not end the session. After a lost
//! connection the next line connects again.

mod editor;
mod line;
mod link;
mod value;

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
};

use gopherstore::{client::Error, config::Config, wire::Opcode};

use crate::{
    command::Response,
    context::{self, Context},
    lines, quote,
    report::{self, Failure, Outcome, note},
};

use editor::{Input, Reader};
use line::{Entry, Job};
use link::{Link, Writes};

/// Executes lines until Ctrl-D or `:quit`. The outcome is then `Done`, since failures were printed.
pub(crate) fn run(context: &Context) -> Result<Outcome, Failure> {
    let mut session = Session::new(context)?;
    let mut reader = Reader::new();
    if let Err(error) = session.home.look() {
        session.failure(&error, Opcode::Status, None).print(None);
    }
    loop {
        reader.set_nodes(session.node_names());
        let input = match reader.read(&session.prompt(), &session.short_prompt())? {
            Input::Line(input) => input,
            Input::Abandoned => continue,
            Input::End => return Ok(Outcome::Done),
        };
        let input = input.trim_ascii();
        if input.is_empty() {
            // An empty line checks whether the node is back.
            if let Err(error) = session.home.connect() {
                session.failure(&error, Opcode::Status, None).print(None);
            }
        }
        // Pasted text may have several lines.
        let mut lines = input.split(|&byte| byte == b'\n');
        while let Some(line) = lines.next() {
            let outcome = match session.step(line, reader.columns()) {
                Ok(true) => continue,
                Ok(false) => return Ok(Outcome::Done),
                Err(failure) => {
                    failure.print(None);
                    failure.outcome
                }
            };
            // The output is closed.
            if outcome == Outcome::LocalInput {
                return Ok(outcome);
            }
            if outcome.is_connection_failure() && lines.next().is_some() {
                note("the lines that were pasted behind it are dropped");
                break;
            }
        }
        session.home.refresh();
    }
}

/// The message after a switch was changed.
fn switched(what: &str, is_on: bool) -> Vec<u8> {
    let when = if is_on { "from now on" } else { "no more" };
    format!("{what} {when}\n").into_bytes()
}

struct Session<'a> {
    context: &'a Context,
    home: Link,
    /// Nodes that `:on` was used with, by their address.
    others: BTreeMap<String, Link>,
    /// Names and addresses from --config.
    configured: Vec<(String, String)>,
    is_dumping: bool,
    is_raw: bool,
}

impl<'a> Session<'a> {
    fn new(context: &'a Context) -> Result<Session<'a>, Failure> {
        let addr = context.addr()?;
        let configured = match &context.config {
            Some(file) => Config::load(file)
                .map_err(|error| Failure::new(Outcome::Usage, error.to_string()))?
                .nodes
                .into_iter()
                .map(|node| (node.name, node.addr))
                .collect(),
            None => Vec::new(),
        };
        Ok(Session {
            context,
            home: Link::new(context, &addr, context.node.as_deref().unwrap_or_default()),
            others: BTreeMap::new(),
            configured,
            is_dumping: context.hex,
            is_raw: false,
        })
    }

    /// `n1 leader 127.0.0.1:8000> `
    fn prompt(&self) -> String {
        format!("{}> ", self.home.shown())
    }

    /// The prompt of a narrow terminal.
    fn short_prompt(&self) -> String {
        format!("{}> ", self.home.name())
    }

    fn node_names(&self) -> Vec<String> {
        let identity = self.home.identity();
        let configured = self.configured.iter().map(|(name, _)| name);
        let told = identity.peers.iter().map(|(name, _)| name);
        let mut names: Vec<String> = configured.chain(told).cloned().collect();
        let own = self.home.name();
        if !own.is_empty() {
            names.push(own.to_owned());
        }
        names.sort();
        names.dedup();
        names
    }

    /// Executes a line. Returns false if it ends the session or the output has no reader.
    fn step(&mut self, line: &[u8], columns: usize) -> Result<bool, Failure> {
        let usage = |message| Failure::new(Outcome::Usage, message);
        let text = match line::parse(line).map_err(usage)? {
            Entry::Nothing => return Ok(true),
            Entry::Exit => return Ok(false),
            Entry::Help => line::help(columns).into_bytes(),
            Entry::Hex(is_on) => {
                self.is_dumping = is_on;
                switched("frames are dumped", is_on)
            }
            Entry::Raw(is_on) => {
                self.is_raw = is_on;
                switched("values are printed byte by byte", is_on)
            }
            Entry::Run(job) => self.execute(&job, columns)?,
        };
        Ok(lines::print(&text)?.is_some())
    }

    /// Runs a command, and returns the text to print.
    fn execute(&mut self, job: &Job, columns: usize) -> Result<Vec<u8>, Failure> {
        let is_dumping = self.is_dumping;
        let response = match &job.node {
            None => self.home.run(&job.command, is_dumping, Writes::MoveSession),
            // The user names the node.
            Some(node) => {
                let link = self.link(node)?;
                link.run(&job.command, is_dumping, Writes::Pass)
            }
        };
        let mut text = match response
            .map_err(|error| self.failure(&error, job.command.opcode(), job.node.as_deref()))?
        {
            Response::Value(value) if job.is_raw || self.is_raw => value,
            Response::Value(value) if io::stdout().is_terminal() => {
                value::shown(job.command.key(), &value, columns).into_bytes()
            }
            response => lines::shown(response).0.into_bytes(),
        };
        text.push(b'\n');
        Ok(text)
    }

    /// The link to the node of that name or address.
    fn link(&mut self, node: &str) -> Result<&mut Link, Failure> {
        let addr = self.addr_of(node)?;
        if addr == self.home.addr() {
            return Ok(&mut self.home);
        }
        let context = self.context;
        let link = self.others.entry(addr);
        let called = if context::is_address(node) { "" } else { node };
        Ok(link.or_insert_with_key(|addr| Link::new(context, addr, called)))
    }

    fn addr_of(&self, node: &str) -> Result<String, Failure> {
        if context::is_address(node) {
            return Ok(node.to_owned());
        }
        let identity = self.home.identity();
        let configured = self.configured.iter().find(|(name, _)| name == node);
        if let Some((_, addr)) = configured {
            return Ok(addr.clone());
        }
        if self.home.name() == node {
            return Ok(self.home.addr().to_owned());
        }
        let shown = quote::shown(node.as_bytes());
        let message = match identity.peers.iter().find(|(name, _)| name == node) {
            Some((_, Some(addr))) => return Ok(addr.clone()),
            Some((_, None)) => format!(
                "the address of {shown} is not known here; write HOST:PORT, or start with --config and --node"
            ),
            None => format!(
                "no node {shown} is known; there are {}, or write HOST:PORT",
                self.node_names().join(", ")
            ),
        };
        Err(Failure::new(Outcome::Usage, message))
    }

    /// `node` is the node after `:on`, if there was one.
    fn failure(&self, error: &Error, opcode: Opcode, node: Option<&str>) -> Failure {
        let name = node.or(self.context.node.as_deref());
        let name = name.filter(|name| !context::is_address(name));
        let mut failure = report::failure(error, opcode, name);
        if error.is_outcome_unknown() && opcode.spec().writes {
            failure.message.push_str("; it was not sent again");
        }
        failure
    }
}
