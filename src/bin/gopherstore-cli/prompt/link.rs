//! A node of the prompt: its client, its identity, and reconnection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gopherstore::{
    Client,
    client::{Error, FrameHook},
};

use crate::{
    command::{Command, Response},
    context::{self, Context},
    quote,
    report::note,
};

/// Most characters of a name or a role in the prompt; those of nodes are shorter.
const WORD_LEN_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    /// The node's `host:port`.
    addr: String,
    /// The user's name for the node; empty where that is its address.
    called: String,
    /// Whether frames are dumped now.
    is_dumping: Arc<AtomicBool>,
    /// The node's identity, from its last STATUS.
    identity: Identity,
    /// Whether there ever was a connection.
    has_connected: bool,
    /// Time by which the node's process had started, from its last STATUS.
    started_by: Option<Instant>,
    /// Whether the node responded to the last request.
    is_reachable: bool,
    /// Whether the user was told that writes go to the leader.
    has_passed: bool,
}

/// Effect on the link of a write that is redirected to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writes {
    /// The link moves to the leader.
    MoveSession,
    /// The link stays at this node, which may not show the write at once.
    Pass,
}

/// Identity of a node, from its STATUS. Fields that the STATUS lacks are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: String,
    /// `leader` or `follower`, and the state if it is not serving.
    pub(super) role: String,
    uptime: Option<Duration>,
    /// The other nodes that it reports, with their addresses if it reports them.
    pub(super) peers: Vec<(String, Option<String>)>,
}

impl Identity {
    /// Parses the lines of a STATUS, and skips unknown ones.
    fn parse(text: &str) -> Identity {
        let mut identity = Identity::default();
        let (mut role, mut state) = (String::new(), String::new());
        for line in text.lines() {
            let Some((key, value)) = line.split_once(": ") else {
                continue;
            };
            match key {
                "node" if value != "-" => identity.name = word(value),
                "role" => role = word(value),
                "state" => state = word(value),
                "uptime_ms" => identity.uptime = value.parse().ok().map(Duration::from_millis),
                _ => {
                    if let Some((name, what)) = key
                        .strip_prefix("peer.")
                        .and_then(|rest| rest.rsplit_once('.'))
                    {
                        identity.add_peer(name, (what == "addr").then_some(value));
                    }
                }
            }
        }
        if !state.is_empty() && state != "serving" {
            role = format!("{role} {state}").trim_start().to_owned();
        }
        identity.role = role;
        identity
    }

    fn add_peer(&mut self, name: &str, addr: Option<&str>) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(is_name) {
            return;
        }
        let addr = addr.filter(|addr| context::is_address(addr));
        let addr = addr.map(str::to_owned);
        match self.peers.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = addr.or(known.take()),
            None => self.peers.push((name.to_owned(), addr)),
        }
    }
}

/// A word of the node, without characters that have an effect on the terminal.
fn word(value: &str) -> String {
    quote::one_line(value).chars().take(WORD_LEN_MAX).collect()
}

impl Link {
    /// A link to the node at `addr` that the user calls `called`. It connects with its first request.
    pub(super) fn new(context: &Context, addr: &str, called: &str) -> Link {
        let is_dumping = Arc::new(AtomicBool::new(false));
        let hook = FrameHook::new({
            let is_dumping = Arc::clone(&is_dumping);
            move |frame| {
                if is_dumping.load(Ordering::Relaxed) {
                    context::dump(frame);
                }
            }
        });
        Link {
            client: context.client_seen_by(addr, Some(hook)),
            addr: addr.to_owned(),
            called: called.to_owned(),
            is_dumping,
            identity: Identity::default(),
            has_connected: false,
            started_by: None,
            is_reachable: true,
            has_passed: false,
        }
    }

    pub(super) fn addr(&self) -> &str {
        &self.addr
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Asks the node for its STATUS, and connects if necessary. The frames are not dumped, since they are not the
    /// user's requests.
    pub(super) fn look(&mut self) -> Result<(), Error> {
        let status = self.client.status();
        self.is_reachable = self.client.is_connected();
        self.identity = match status {
            Ok(text) => Identity::parse(&text),
            // The node responds, but gives no STATUS.
            Err(_) if self.is_reachable => Identity::default(),
            Err(error) => return Err(error),
        };
        self.has_connected = true;
        let uptime = self.identity.uptime;
        self.started_by = uptime.and_then(|uptime| Instant::now().checked_sub(uptime));
        Ok(())
    }

    /// Connects if necessary, and reports a reconnection.
    pub(super) fn connect(&mut self) -> Result<(), Error> {
        if self.client.is_connected() {
            return Ok(());
        }
        let (was_reachable, had_connected) = (self.is_reachable, self.has_connected);
        let before = self.started_by;
        let asked = Instant::now();
        self.look()?;
        // The node read its clock after the request, and reports whole milliseconds.
        let started_after = self
            .identity
            .uptime
            .and_then(|uptime| asked.checked_sub(uptime.saturating_add(Duration::from_millis(1))));
        let has_restarted = before.is_some() && started_after > before;
        let node = self.shown();
        if has_restarted {
            note(&format!("reconnected to {node}, which has restarted since"));
        } else if had_connected {
            note(&format!("reconnected to {node}"));
        } else if !was_reachable {
            note(&format!("connected to {node}"));
        }
        Ok(())
    }

    /// Updates the identity of the node, whose role may have changed. A node that did not respond to the last request
    /// is not asked: that may take --timeout, and the next command asks it anyway.
    pub(super) fn refresh(&mut self) {
        if self.is_reachable {
            // The prompt shows a failure.
            let _ = if self.client.is_connected() {
                self.look()
            } else {
                self.connect()
            };
        }
    }

    /// Runs a command. A read is repeated once if the connection breaks. A write is never repeated, since it may have
    /// been executed.
    pub(super) fn run(
        &mut self,
        command: &Command,
        is_dumping: bool,
        writes: Writes,
    ) -> Result<Response, Error> {
        self.connect()?;
        match self.run_once(command, is_dumping, writes) {
            Err(Error::Connection { addr, source }) if !command.is_write() => {
                note(&format!(
                    "the connection to {addr} broke ({source}), so it is asked again"
                ));
                self.connect()?;
                self.run_once(command, is_dumping, writes)
            }
            response => response,
        }
    }

    fn run_once(
        &mut self,
        command: &Command,
        is_dumping: bool,
        writes: Writes,
    ) -> Result<Response, Error> {
        self.is_dumping.store(is_dumping, Ordering::Relaxed);
        let response = match writes {
            Writes::MoveSession => command.run_in_session(&mut self.client),
            Writes::Pass => command.run(&mut self.client),
        };
        self.is_dumping.store(false, Ordering::Relaxed);
        self.is_reachable = self.client.is_connected();
        match (&response, writes) {
            (Ok(_), Writes::MoveSession) if self.client.addr() != self.addr => {
                self.move_to_leader();
            }
            (Ok(_), Writes::Pass) if command.is_write() && !self.has_passed => {
                if let Some(leader) = self.client.redirected_to() {
                    self.has_passed = true;
                    note(&format!(
                        "{} passed the write to the leader at {leader}, and may not show it yet",
                        self.shown()
                    ));
                }
            }
            _ => {}
        }
        response
    }

    /// Notes that the client has moved to the leader, whose STATUS is not known yet.
    fn move_to_leader(&mut self) {
        self.client.addr().clone_into(&mut self.addr);
        self.called.clear();
        self.identity = Identity::default();
        self.started_by = None;
    }

    /// The node's name from its STATUS, or the user's name for it; empty without both.
    pub(super) fn name(&self) -> &str {
        match &*self.identity.name {
            "" => &self.called,
            name => name,
        }
    }

    /// The node's known name, role and address.
    pub(super) fn shown(&self) -> String {
        let role = if self.is_reachable {
            &self.identity.role
        } else {
            "unreachable"
        };
        let parts = [self.name(), role, self.addr()];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_name_role_and_state() {
        let text = "node: n1\nrole: leader\nstate: serving\nodd\nuptime_ms: 12\npeer.n2.state: up\n\
                    peer.n2.since_ms: 3\npeer.a.b.state: up\npeer.a.b.addr: 127.0.0.1:1\n\
                    peer.\x1b[m.state: up\npeer.n4.addr: nowhere\n";
        let expected = Identity {
            name: "n1".to_owned(),
            role: "leader".to_owned(),
            uptime: Some(Duration::from_millis(12)),
            peers: vec![
                ("n2".to_owned(), None),
                ("a.b".to_owned(), Some("127.0.0.1:1".to_owned())),
                ("n4".to_owned(), None),
            ],
        };
        assert_eq!(Identity::parse(text), expected);
        let text = "node: -\nrole: follower\nstate: loading\nuptime_ms: soon\n";
        let expected = Identity {
            role: "follower loading".to_owned(),
            ..Identity::default()
        };
        assert_eq!(Identity::parse(text), expected);
        assert_eq!(Identity::parse("node: \x1b[31m\n").name, "\\u{1b}[31m");
    }
}
