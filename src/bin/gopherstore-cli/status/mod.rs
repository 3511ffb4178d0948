//! `status`: how a node is, or all nodes of a cluster, and whether that is well.

mod health;
mod view;

use std::{
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
};

use crate::{
    command::{self, Command},
    context::Context,
    quote,
    report::{self, Failure, Outcome},
};
use health::{Asked, Scope, Silence, Verdict};

/// Between two looks of --watch.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Between two looks of --wait.
const WAIT_INTERVAL: Duration = Duration::from_millis(100);

/// What one node may take where it is asked again and again; one that is away must not hold up the others' rows.
const ROUND_LIMIT: Duration = Duration::from_secs(1);

/// Print how a node is, or how all nodes of a cluster are, and whether that is well.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "status", help_triggers("-h", "--help"))]
#[argh(
    example = "gopherstore-cli status --addr 127.0.0.1:8001\n\
        gopherstore-cli status --cluster\n\
        gopherstore-cli status --config cluster.toml --watch\n\
        gopherstore-cli status --config cluster.toml --wait --max-lag 0 --timeout 10s",
    note = "Of one node it prints what the node says, a line for each fact; docs/GBP.md explains them.\n\
        With --config and no --node, with --cluster or with --max-lag it is about the whole cluster:\n\
        a table on a terminal, lines into a pipe, and a last line that says what is wrong, or\n\
        'in sync: 3/3'. Lags are in entries, and in milliseconds as the leader sees them.\n\
        Healthy is: all nodes answer and serve, one leads, they are in one epoch, every follower's\n\
        stream comes in and lacks --max-lag entries at most, and equal indexes have equal digests.\n\
        Exit code 0 is healthy, 3 is not; with --wait 6 is not within --timeout.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Status {
    /// all nodes of the cluster that the node is in, as it lists them
    #[argh(switch)]
    cluster: bool,
    /// form: table, json (a line for each look), or lines
    #[argh(
        option,
        short = 'w',
        long = "write-out",
        from_str_fn(form),
        arg_name = "FORM"
    )]
    form: Option<Form>,
    /// look again every second, until Ctrl-C
    #[argh(switch)]
    watch: bool,
    /// look again until it is healthy, for --timeout at most
    #[argh(switch)]
    wait: bool,
    /// entries that a follower may lack and be healthy; by default any number
    #[argh(option, from_str_fn(arguments::parsed), arg_name = "ENTRIES")]
    max_lag: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Table,
    Json,
    Lines,
}

fn form(encoded: &str) -> Result<Form, String> {
    match &*arguments::text(encoded)? {
        "table" => Ok(Form::Table),
        "json" => Ok(Form::Json),
        "lines" => Ok(Form::Lines),
        _ => Err("there are table, json and lines".to_owned()),
    }
}

/// Where the list of nodes comes from.
enum Source {
    /// Just the node that the context names.
    Node(String),
    /// What that node says.
    Peers(String),
    /// The file.
    Config(Config),
}

/// One look at the nodes.
struct Look {
    scope: Scope,
    nodes: Vec<Asked>,
    /// What each node said, word for word; empty where it said nothing.
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
            Source::Config(config.map_err(|error| Failure::new(Outcome::Usage, error.to_string()))?)
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

struct Run<'a> {
    source: Source,
    max_lag: Option<u64>,
    form: Option<Form>,
    context: &'a Context,
}

impl Run<'_> {
    fn once(&self) -> Result<Outcome, Failure> {
        let look = self.look(self.context.timeout)?;
        let (text, words) = self.shown(&look);
        if !crate::write_out(text.as_bytes())? {
            return Ok(Outcome::Done);
        }
        if look.verdict.is_healthy() {
            return Ok(Outcome::Done);
        }
        match words {
            Said::InText => Ok(Outcome::ServerError),
            Said::Not => Err(Failure::new(
                Outcome::ServerError,
                look.verdict.words(&look.scope),
            )),
        }
    }

    fn wait(&self) -> Result<Outcome, Failure> {
        let limit = self.context.timeout;
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let result = self.look(left.clamp(Duration::from_millis(1), ROUND_LIMIT));
            if let Ok(look) = &result
                && look.verdict.is_healthy()
            {
                crate::write_out(self.shown(look).0.as_bytes())?;
                return Ok(Outcome::Done);
            }
            let pause = WAIT_INTERVAL.min(deadline.saturating_duration_since(Instant::now()));
            if !pause.is_zero() {
                thread::sleep(pause);
                continue;
            }
            let words = match result {
                Ok(look) => {
                    crate::write_out(self.shown(&look).0.as_bytes())?;
                    look.verdict.words(&look.scope)
                }
                // A wrong command line does not become right by waiting.
                Err(failure) if failure.outcome == Outcome::Usage => return Err(failure),
                Err(failure) => failure.message,
            };
            return Err(Failure::new(
                Outcome::Timeout,
                format!(
                    "not healthy within {limit:?}: {words}; mend it, or allow more with --timeout"
                ),
            ));
        }
    }

    /// Ends with a signal, or when nobody reads any more.
    fn watch(&self) -> Result<Outcome, Failure> {
        let in_place = io::stdout().is_terminal() && is_clever() && self.form != Some(Form::Json);
        let mut is_first = true;
        loop {
            let began = Instant::now();
            let text = match self.look(self.context.timeout.min(ROUND_LIMIT)) {
                Ok(look) => match self.shown(&look) {
                    (text, Said::Not) if !look.verdict.is_healthy() => {
                        format!(
                            "{text}{}\n",
                            quote::one_line(&look.verdict.words(&look.scope))
                        )
                    }
                    (text, _) => text,
                },
                Err(failure) if failure.outcome == Outcome::Usage => return Err(failure),
                Err(failure) => format!("{}\n", quote::one_line(&failure.message)),
            };
            let text = if in_place {
                // Each line is written over the one that stands there, so that nothing flickers.
                let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
                format!(
                    "{}{lines}\x1b[J",
                    if is_first { "\x1b[2J\x1b[H" } else { "\x1b[H" }
                )
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

    /// Asks all nodes at once, each for `limit` at most.
    fn look(&self, limit: Duration) -> Result<Look, Failure> {
        let (scope, asked) = match &self.source {
            Source::Node(addr) => {
                let name = self.context.node.clone().unwrap_or_else(|| "-".to_owned());
                let (text, status) = self
                    .ask(addr, limit)
                    .map_err(|error| self.failure(&error))?;
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
                let (text, status) = self
                    .ask(addr, limit)
                    .map_err(|error| self.failure(&error))?;
                let name = status.node.clone().unwrap_or_else(|| "-".to_owned());
                let peers = peers(addr, &status)?;
                let scope = Scope::Cluster(status.cluster.clone());
                let mut asked = self.ask_all(peers, limit);
                asked.push((name, addr.clone(), Ok((text, status))));
                asked.sort_by(|one, other| one.0.cmp(&other.0));
                (scope, asked)
            }
        };
        let (mut nodes, mut texts) = (Vec::new(), Vec::new());
        for (name, addr, answer) in asked {
            let (text, answer) = match answer {
                Ok((text, status)) => (text, Ok(status)),
                Err(error) => (String::new(), Err(Silence::from(&error))),
            };
            texts.push(text);
            nodes.push(Asked { name, addr, answer });
        }
        let verdict = health::judge(&nodes, &scope, self.max_lag);
        Ok(Look {
            scope,
            nodes,
            texts,
            verdict,
        })
    }

    fn ask_all(&self, nodes: Vec<(String, String)>, limit: Duration) -> Vec<Answered> {
        thread::scope(|scope| {
            let asking: Vec<_> = nodes
                .into_iter()
                .map(|(name, addr)| {
                    scope.spawn(move || {
                        let answer = self.ask(&addr, limit);
                        (name, addr, answer)
                    })
                })
                .collect();
            // A thread that panics is a bug of ours, and has said so.
            asking
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .collect()
        })
    }

    fn ask(&self, addr: &str, limit: Duration) -> Result<(String, NodeStatus), Error> {
        let context = Context {
            addr: None,
            config: None,
            node: None,
            timeout: limit,
            follow_redirects: self.context.follow_redirects,
            hex: self.context.hex,
        };
        let text = context.client_of(addr).status()?;
        let status = NodeStatus::parse(&text);
        Ok((text, status))
    }

    fn failure(&self, error: &Error) -> Failure {
        report::failure(error, &Command::Status, self.context.node.as_deref())
    }

    /// The look as it is printed, and whether the verdict is part of it.
    fn shown(&self, look: &Look) -> (String, Said) {
        let is_terminal = io::stdout().is_terminal();
        let form = self.form.unwrap_or(match look.scope {
            Scope::Cluster(_) if is_terminal => Form::Table,
            _ => Form::Lines,
        });
        let mut text = match (form, &look.scope) {
            (Form::Json, _) => {
                return (
                    view::json(&look.nodes, &look.scope, &look.verdict),
                    Said::InText,
                );
            }
            (Form::Lines, Scope::Node) => {
                // With --write-out exactly what came, as into a pipe.
                let is_aligned = is_terminal && self.form.is_none();
                let texts = look
                    .texts
                    .iter()
                    .map(|text| command::shown_status(text, is_aligned));
                return (texts.collect(), Said::Not);
            }
            (Form::Lines, Scope::Cluster(_)) => view::lines(&look.nodes, &look.texts),
            (Form::Table, _) => view::table(&look.nodes, &look.scope, width()),
        };
        let words = quote::one_line(&look.verdict.words(&look.scope));
        let (begin, end) = match AutoStream::choice(&io::stdout()) {
            ColorChoice::Never => ("", ""),
            _ if look.verdict.is_healthy() => ("\x1b[32m", "\x1b[0m"),
            _ => ("\x1b[31m", "\x1b[0m"),
        };
        if form == Form::Table {
            text.push('\n');
        }
        text.push_str(&format!("{begin}{words}{end}\n"));
        (text, Said::InText)
    }
}

/// Whether what is printed holds the verdict.
enum Said {
    InText,
    Not,
}

/// A node's name, its address, and what it said.
type Answered = (String, String, Result<(String, NodeStatus), Error>);

/// Names and addresses of a node's peers, as it says them.
fn peers(addr: &str, status: &NodeStatus) -> Result<Vec<(String, String)>, Failure> {
    let peers = status.peers.iter();
    let named = peers.map(|(name, peer)| Some((name.clone(), peer.addr.clone()?)));
    named.collect::<Option<_>>().ok_or_else(|| {
        Failure::new(
            Outcome::ServerError,
            format!(
                "the node at {addr} is of a version that does not tell its peers' addresses; give the cluster.toml with \
                 --config"
            ),
        )
    })
}

/// Columns of the terminal, where standard output is one.
fn width() -> Option<usize> {
    let (terminal_size::Width(width), _) = terminal_size::terminal_size_of(io::stdout())?;
    Some(usize::from(width))
}

/// Whether the terminal understands orders such as 'go to the first line'.
fn is_clever() -> bool {
    std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}
