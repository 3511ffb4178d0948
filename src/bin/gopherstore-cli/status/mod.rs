//! `status`: the status of a node or of all nodes of a cluster, and their faults.

mod health;
mod view;

use std::{
    fmt,
    io::{self, IsTerminal},
    thread,
    time::{Duration, Instant},
};

use anstream::{AutoStream, ColorChoice};
use argh::{ArgsInfo, FromArgs};
use gopherstore::{
    arguments,
    client::{Error, NodeStatus},
    config::Config,
    wire::Opcode,
};

use crate::{
    command,
    context::{self, Context},
    quote,
    report::{self, Failure, Outcome},
};
use health::{Asked, Limits, Scope, Silence, Verdict};

/// Interval of --watch.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Interval of --wait.
const WAIT_INTERVAL: Duration = Duration::from_millis(100);

/// Limit for one node's response in a repeated status, so that a node that is away does not delay the rows of the
/// others.
const ROUND_LIMIT: Duration = Duration::from_secs(1);

/// Print the status of a node or of all nodes of a cluster, and their faults.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "status", help_triggers("-h", "--help"))]
#[argh(
    example = "gopherstore-cli status --addr 127.0.0.1:8001\n\
        gopherstore-cli status --cluster\n\
        gopherstore-cli status --config cluster.toml --watch\n\
        gopherstore-cli status --config cluster.toml --wait --max-lag 0 --timeout 10s",
    note = "For one node it prints the lines of its status; docs/operating.md explains them.\n\
        With --cluster, with --max-lag, or with --config and no --node it covers the whole cluster:\n\
        a table on a terminal, lines into a pipe, and then a line for each fault, or 'in sync: 3/3'.\n\
        A lag is in entries, and in milliseconds as the leader measures it.\n\
        A cluster is healthy if all nodes respond and serve; one node leads; all nodes are in one\n\
        epoch; each follower receives its stream and lags by at most --max-lag entries and\n\
        leader_timeout_ms; equal indexes have equal digests; the nodes can reach one another and have\n\
        equal settings; no disk is full; and each node could write its last snapshot.\n\
        json has the faults as a list, and every line of each node's status by its key, as a number\n\
        or a string, with null for '-'. 'peers' and 'followers' are objects.\n\
        The exit code is 0 if healthy, 3 if not, and 6 if not within --timeout with --wait.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Status {
    /// cover all nodes of the cluster, which the node lists
    #[argh(switch)]
    cluster: bool,
    /// form: table, json (an object on one line) or lines
    #[argh(
        option,
        short = 'w',
        long = "write-out",
        from_str_fn(form),
        arg_name = "FORM"
    )]
    form: Option<Form>,
    /// repeat every second, until Ctrl-C
    #[argh(switch)]
    watch: bool,
    /// repeat until healthy, for at most --timeout
    #[argh(switch)]
    wait: bool,
    /// entries that a healthy follower may lack; by default any number
    #[argh(option, from_str_fn(entries), arg_name = "ENTRIES")]
    max_lag: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Table,
    Json,
    Lines,
}

fn form(encoded: &str) -> Result<Form, String> {
    let forms = [
        ("table", Form::Table),
        ("json", Form::Json),
        ("lines", Form::Lines),
    ];
    arguments::one_of(encoded, &forms)
}

fn entries(encoded: &str) -> Result<u64, String> {
    arguments::whole(encoded, 0, u64::MAX)
}

/// Source of the list of nodes.
enum Source {
    /// Only the node that the context names.
    Node(String),
    /// The status of this one node.
    Peers(String),
    /// The file.
    Config(Box<Config>),
}

/// Reason why no node can be asked.
enum Blind {
    /// The node gives no status.
    Client(Error),
    /// The status lacks the addresses of the other nodes.
    Other(Failure),
}

/// The statuses of the nodes at one time.
struct Look {
    scope: Scope,
    nodes: Vec<Asked>,
    /// The text of each node's STATUS; empty if it gave none.
    texts: Vec<String>,
    verdict: Verdict,
}

pub(crate) fn run(command: Status, context: &Context) -> Result<Outcome, Failure> {
    if command.watch && command.wait {
        return Err(crate::mistake(
            "--watch together with --wait; one looks for ever, the other until all is well, so leave one out",
        ));
    }
    let is_cluster = command.cluster || command.max_lag.is_some();
    let source = match (&context.addr, &context.config, &context.node) {
        (None, Some(file), None) => {
            let config = Config::load(file);
            let config = config.map_err(|error| Failure::new(Outcome::Usage, error.to_string()));
            Source::Config(Box::new(config?))
        }
        _ if is_cluster => Source::Peers(context.addr()?),
        _ => Source::Node(context.addr()?),
    };
    let status = Run {
        source,
        max_lag: command.max_lag,
        form: command.form,
        context,
    };
    if command.watch {
        status.watch()
    } else if command.wait {
        status.wait()
    } else {
        status.once()
    }
}

/// The fault of the node at `addr` alone, but for its disk, as text.
pub(crate) fn fault_of(addr: &str, status: &NodeStatus) -> Option<String> {
    let timeout_ms = Limits::default().timeout_ms(status);
    health::own_fault(status.node.as_deref().unwrap_or(addr), status, timeout_ms)
}

struct Run<'a> {
    source: Source,
    max_lag: Option<u64>,
    form: Option<Form>,
    context: &'a Context,
}

impl Run<'_> {
    fn once(&self) -> Result<Outcome, Failure> {
        let look = self
            .look(self.context.timeout)
            .map_err(|blind| match blind {
                Blind::Client(error) => {
                    report::failure(&error, Opcode::Status, self.context.node.as_deref())
                }
                Blind::Other(failure) => failure,
            })?;
        let (text, said) = self.shown(&look);
        if !crate::write_out(text.as_bytes())? || look.verdict.is_healthy() {
            return Ok(Outcome::Done);
        }
        if matches!(said, Said::Not) {
            look.print_faults();
        }
        Ok(Outcome::ServerError)
    }

    fn wait(&self) -> Result<Outcome, Failure> {
        let limit = self.context.timeout;
        let began = Instant::now();
        let mut told = None;
        loop {
            let left = limit.saturating_sub(began.elapsed());
            let result = self.look(left.clamp(WAIT_INTERVAL, ROUND_LIMIT));
            if let Ok(look) = &result
                && look.verdict.is_healthy()
            {
                crate::write_out(self.shown(look).0.as_bytes())?;
                return Ok(Outcome::Done);
            }
            // The last round may be too short for a healthy node to respond, so the faults of an earlier round are
            // shown.
            let is_fair = left >= ROUND_LIMIT / 2;
            let last = match told {
                Some(told) if !is_fair => told,
                _ => result,
            };
            let left = limit.saturating_sub(began.elapsed());
            if !left.is_zero() {
                told = Some(last);
                thread::sleep(left.min(WAIT_INTERVAL));
                continue;
            }
            let words = match last {
                Ok(look) => {
                    let (text, said) = self.shown(&look);
                    crate::write_out(text.as_bytes())?;
                    match (look.verdict.faults.as_slice(), said) {
                        ([fault], _) => fault.clone(),
                        (faults, Said::InText) => format!("{} faults, as above", faults.len()),
                        (faults, Said::Not) => {
                            look.print_faults();
                            format!("{} faults, as above", faults.len())
                        }
                    }
                }
                Err(blind) => blind.to_string(),
            };
            return Err(Failure::new(
                Outcome::Timeout,
                format!(
                    "not healthy within {limit:?}: {words}; correct it, or allow more with --timeout"
                ),
            ));
        }
    }

    /// Ends with a signal, or when the output has no reader.
    fn watch(&self) -> Result<Outcome, Failure> {
        let mut is_first = true;
        loop {
            let began = Instant::now();
            let text = match self.look(self.context.timeout.min(ROUND_LIMIT)) {
                Ok(look) => match self.shown(&look) {
                    (text, Said::Not) if !look.verdict.is_healthy() => {
                        text + &look.words().join("\n") + "\n"
                    }
                    (text, _) => text,
                },
                Err(blind) => format!("{}\n", quote::one_line(&blind.to_string())),
            };
            let text = if self.is_drawn_in_place(&text) {
                // Each line overwrites the old one, so that nothing flickers.
                let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
                let begin = if is_first { "\x1b[2J\x1b[H" } else { "\x1b[H" };
                format!("{begin}{lines}\x1b[J")
            } else if is_first || self.form == Some(Form::Json) {
                text
            } else {
                format!("\n{text}")
            };
            is_first = false;
            if !crate::write_out(text.as_bytes())? {
                return Ok(Outcome::Done);
            }
            thread::sleep(WATCH_INTERVAL.saturating_sub(began.elapsed()));
        }
    }

    /// Whether a round overwrites the one before it: on a terminal that can do that and is large enough.
    fn is_drawn_in_place(&self, text: &str) -> bool {
        let Some((width, height)) = terminal() else {
            return false;
        };
        let rows = text
            .lines()
            .map(|line| line.chars().count().max(1).div_ceil(width.max(1)));
        self.form != Some(Form::Json)
            && !context::is_dumb_terminal()
            && rows.sum::<usize>() < height
    }

    /// Asks all nodes at once, for `limit` at most. If one node has to list the others, they have the rest of that
    /// time.
    fn look(&self, limit: Duration) -> Result<Look, Blind> {
        let began = Instant::now();
        let (scope, asked) = match &self.source {
            Source::Node(addr) => {
                let name = self.context.node.clone().unwrap_or_else(|| "-".to_owned());
                let (text, status) = self.ask(addr, limit).map_err(Blind::Client)?;
                (Scope::Node, vec![(name, addr.clone(), Ok((text, status)))])
            }
            Source::Config(config) => {
                let nodes = config
                    .nodes
                    .iter()
                    .map(|node| (node.name.clone(), node.addr.clone()));
                let scope = Scope::Cluster(Some(config.cluster.clone()));
                (scope, self.ask_all(nodes.collect(), limit))
            }
            Source::Peers(addr) => {
                let (text, status) = self.ask(addr, limit).map_err(Blind::Client)?;
                let name = status.node.clone().unwrap_or_else(|| "-".to_owned());
                let peers = peers(addr, &status).map_err(Blind::Other)?;
                let scope = Scope::Cluster(status.cluster.clone());
                let mut asked = self.ask_all(peers, limit.saturating_sub(began.elapsed()));
                asked.push((name, addr.clone(), Ok((text, status))));
                asked.sort_by(|one, other| one.0.cmp(&other.0));
                (scope, asked)
            }
        };
        let (mut nodes, mut texts) = (Vec::new(), Vec::new());
        for (name, addr, response) in asked {
            let (text, response) = match response {
                Ok((text, status)) => (text, Ok(status)),
                Err(error) => (String::new(), Err(Silence::from(&error))),
            };
            texts.push(text);
            nodes.push(Asked {
                name,
                addr,
                response,
            });
        }
        let limits = Limits {
            lag_entries: self.max_lag,
            leader_timeout_ms: match &self.source {
                Source::Config(config) => Some(milliseconds(config.replication.leader_timeout)),
                Source::Node(_) | Source::Peers(_) => None,
            },
        };
        let verdict = health::judge(&nodes, &scope, limits);
        Ok(Look {
            scope,
            nodes,
            texts,
            verdict,
        })
    }

    /// Asks all nodes at once, or one after another if no thread can be started.
    fn ask_all(&self, nodes: Vec<(String, String)>, limit: Duration) -> Vec<Responseed> {
        let ask = |(name, addr): (String, String)| {
            let response = self.ask(&addr, limit);
            (name, addr, response)
        };
        let ask = &ask;
        thread::scope(|scope| {
            let asking: Vec<_> = nodes
                .into_iter()
                .map(|node| {
                    let asked = node.clone();
                    let thread = thread::Builder::new().spawn_scoped(scope, move || ask(asked));
                    thread.map_err(|_| node)
                })
                .collect();
            asking
                .into_iter()
                .filter_map(|asking| match asking {
                    // A panic is a bug, whose message is printed already.
                    Ok(thread) => thread.join().ok(),
                    Err(node) => Some(ask(node)),
                })
                .collect()
        })
    }

    fn ask(&self, addr: &str, limit: Duration) -> Result<(String, NodeStatus), Error> {
        // Messages show it, so a short one is in whole milliseconds.
        let short = u64::try_from(limit.as_millis()).map(Duration::from_millis);
        let context = Context {
            timeout: short.unwrap_or(limit).max(Duration::from_millis(1)),
            follow_redirects: self.context.follow_redirects,
            hex: self.context.hex,
            ..Context::default()
        };
        let text = context.client_of(addr).status()?;
        let status = NodeStatus::parse(&text);
        Ok((text, status))
    }

    /// The text to print, and whether it holds the verdict.
    fn shown(&self, look: &Look) -> (String, Said) {
        let is_terminal = io::stdout().is_terminal();
        let form = self.form.unwrap_or(match look.scope {
            Scope::Cluster(_) if is_terminal => Form::Table,
            Scope::Cluster(_) | Scope::Node => Form::Lines,
        });
        let mut text = match (form, &look.scope) {
            (Form::Json, _) => {
                return (
                    view::json(&look.nodes, &look.scope, &look.verdict),
                    Said::InText,
                );
            }
            (Form::Lines, Scope::Node) => {
                let texts = look.texts.iter();
                let texts = texts.map(|text| command::shown_status(text, is_terminal));
                return (texts.collect(), Said::Not);
            }
            (Form::Lines, Scope::Cluster(_)) => view::lines(&look.nodes, &look.texts),
            (Form::Table, _) => {
                let width = terminal().map(|(width, _)| width);
                view::table(&look.nodes, &look.scope, width)
            }
        };
        let (begin, end) = match AutoStream::choice(&io::stdout()) {
            ColorChoice::Never => ("", ""),
            _ if look.verdict.is_healthy() => ("\x1b[32m", "\x1b[0m"),
            _ => ("\x1b[31m", "\x1b[0m"),
        };
        if form == Form::Table {
            text.push('\n');
        }
        for words in look.words() {
            text.push_str(&format!("{begin}{words}{end}\n"));
        }
        (text, Said::InText)
    }
}

impl Look {
    /// The verdict, one phrase on each line.
    fn words(&self) -> Vec<String> {
        let words = self.verdict.words(&self.scope).into_iter();
        words.map(|words| quote::one_line(&words)).collect()
    }

    /// Prints the faults on standard error.
    fn print_faults(&self) {
        for fault in &self.verdict.faults {
            Failure::new(Outcome::ServerError, fault.as_str()).print(None);
        }
    }
}

/// Whether the printed text holds the verdict.
enum Said {
    InText,
    Not,
}

/// A node's name, its address, and its status.
type Responseed = (String, String, Result<(String, NodeStatus), Error>);

/// Names and addresses of a node's peers, from its status.
fn peers(addr: &str, status: &NodeStatus) -> Result<Vec<(String, String)>, Failure> {
    let peers = status.peers.iter();
    let named = peers.map(|(name, peer)| Some((name.clone(), peer.addr.clone()?)));
    named.collect::<Option<_>>().ok_or_else(|| {
        Failure::new(
            Outcome::ServerError,
            format!(
                "the node at {addr} is of a version that does not tell its peers' addresses; give the cluster.toml \
                 with --config"
            ),
        )
    })
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Columns and rows of the terminal, if standard output is one.
fn terminal() -> Option<(usize, usize)> {
    let (terminal_size::Width(width), terminal_size::Height(height)) =
        terminal_size::terminal_size_of(io::stdout())?;
    Some((usize::from(width), usize::from(height)))
}

impl fmt::Display for Blind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blind::Client(error) => error.fmt(f),
            Blind::Other(failure) => f.write_str(&failure.message),
        }
    }
}
