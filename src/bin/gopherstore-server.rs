//! The server: arguments, configuration, listen, serve until told to stop.
//!
//! Exit codes: 0 stopped in good order · 1 cannot listen or run · 2 wrong arguments or configuration · 3 stopped in
//! good order as the last node that held the cluster's data · 128 and the number of the second of two signals, which
//! ends it at once (130 is SIGINT, 143 SIGTERM) · 134 (SIGABRT) a bug of our own, whose message is on standard error.
//!
//! No thread of the node waits for a reader of standard error ([`logging`]), standard output, or the service
//! manager's socket: each has a thread of its own, and the end of the process waits for them for a second at most.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use std::{fs, thread};

use argh::{ArgsInfo, FromArgs};
use crossbeam_channel::{Receiver, Sender, after, bounded, never, select_biased, unbounded};
use gopherstore::arguments::{self, Exit, Program, USAGE};
use gopherstore::config::{Config, NodeConfig};
use gopherstore::logging::{self, Log};
use gopherstore::node::{Node, RoleState};
use gopherstore::replication::Ending;
use gopherstore::server::{BindError, Server, Stopper};
use gopherstore::service::{self, Manager, Notice};
use gopherstore::signals::is_ignored;
use log::{Level, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

const PROGRAM: Program = Program {
    name: "gopherstore-server",
};

/// Exit code of a node that was the last one to hold the cluster's data.
const LAST_HOLDER: u8 = 3;

/// The file that names the nodes, where no other is given.
const FILE_DEFAULT: &str = "cluster.toml";

/// Where a node listens that is started without arguments.
const ADDR_DEFAULT: &str = "127.0.0.1:8000";

/// Name of a node that no file names, and of its cluster.
const SINGLE: &str = "single";

/// Pause before a service manager that did not read is told again how the node stands.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// One node of a GopherStore cluster: an in-memory key-value store that speaks GBP over TCP.
/// Without arguments it is a single node on 127.0.0.1:8000, in no cluster.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    help_triggers("-h", "--help"),
    example = "{command_name} --config cluster.toml --node n1",
    note = "Prints one line on standard output when it is ready to serve, and logs to standard error. A log that is\n\
            not read stops nothing: lines are dropped, and their number is logged.\n\
            RUST_LOG sets what is logged: error, warn, info (the default), debug, or MODULE=LEVEL with commas\n\
            between. A value that is not understood is reported, and info is used.\n\
            SIGINT, SIGTERM, SIGQUIT or SIGHUP stops it in good order. A second signal ends it at once, unless it is\n\
            SIGHUP. SIGHUP stays ignored if it was ignored at the start, as by nohup. SIGUSR1 and SIGUSR2 have no\n\
            effect.",
    error_code(1, "It cannot listen, or cannot run."),
    error_code(2, "Wrong arguments or configuration; nothing was started."),
    error_code(
        3,
        "Stopped in good order, and no other node of the cluster held the data."
    )
)]
struct Arguments {
    /// the cluster's file; by default cluster.toml
    #[argh(option, arg_name = "file", from_str_fn(arguments::path))]
    config: Option<PathBuf>,
    /// which of the file's nodes this one is
    #[argh(option, arg_name = "name", from_str_fn(arguments::text))]
    node: Option<String>,
    /// a single node of no cluster on host:port, for which no file is read; port 0 has the system choose one
    #[argh(option, arg_name = "host:port", from_str_fn(arguments::text))]
    addr: Option<String>,
    /// only judge the file, and print a line for each node: name, address, listen=ADDRESS where it differs, role
    #[argh(switch)]
    check_config: bool,
    /// print the man page (man), or a shell's script for completions (complete-bash, complete-zsh, complete-fish)
    #[argh(option, from_str_fn(arguments::text), arg_name = "WHAT")]
    #[allow(dead_code)] // for the help text alone: `parse` answers it
    generate: Option<String>,
    /// print the version
    #[argh(switch, short = 'V')]
    #[allow(dead_code)] // for the help text alone: `parse` answers it
    version: bool,
}

fn main() -> ExitCode {
    let arguments: Arguments = match PROGRAM.parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(exit) => return exit.finish(PROGRAM.name, 1),
    };
    let plan = match Plan::of(&arguments) {
        Ok(plan) => plan,
        Err(exit) => return exit,
    };
    let start = || Log::start().map_err(|e| format!("cannot start the log: {}", no_thread(&e)));
    let log = match ignore_signals().and_then(|()| start()) {
        Ok(log) => log,
        Err(message) => return fail(1, &message),
    };
    let mut ends = Vec::new();
    let code = match serve(&plan, &mut ends) {
        Ok(Ending::Kept) => 0,
        Ok(Ending::Lost { .. }) => LAST_HOLDER,
        Err(message) => {
            log.say(&error_line(&message));
            1
        }
    };
    let until = Instant::now() + logging::END_PATIENCE;
    for end in ends {
        // Either way: its thread has ended, or it waits for a reader that does not read.
        let _ = end.recv_deadline(until);
    }
    log.end(until);
    ExitCode::from(code)
}

/// Which node to run.
struct Plan {
    config: Config,
    /// Its name; one of the configuration's nodes.
    node: String,
    /// The file that names it; none for a single node.
    file: Option<PathBuf>,
}

impl Plan {
    /// The arguments of a run; an exit code where they ask for something else.
    fn of(arguments: &Arguments) -> Result<Plan, ExitCode> {
        let names_file =
            arguments.config.is_some() || arguments.node.is_some() || arguments.check_config;
        match &arguments.addr {
            Some(_) if names_file => Err(usage(
                "--addr is for a single node, and goes with none of --config, --node and --check-config",
            )),
            None if names_file => Plan::of_file(arguments),
            addr => Plan::single(addr.as_deref().unwrap_or(ADDR_DEFAULT)),
        }
    }

    fn of_file(arguments: &Arguments) -> Result<Plan, ExitCode> {
        let file = arguments.config.clone();
        let file = file.unwrap_or_else(|| PathBuf::from(FILE_DEFAULT));
        let config = Config::load(&file).map_err(|error| fail(USAGE, &error.to_string()))?;
        let names: Vec<&str> = config.nodes.iter().map(|node| node.name.as_str()).collect();
        let names = format!("{} has {}", file.display(), names.join(", "));
        match arguments.node.clone() {
            Some(name) if config.node(&name).is_none() => {
                Err(usage(&format!("no node {name:?}: {names}")))
            }
            _ if arguments.check_config => Err(show(&config, &file)),
            None => Err(usage(&format!("--node NAME is needed: {names}"))),
            Some(node) => Ok(Plan {
                config,
                node,
                file: Some(file),
            }),
        }
    }

    fn single(addr: &str) -> Result<Plan, ExitCode> {
        let text = format!(
            "cluster = {SINGLE:?}\nleader = {SINGLE:?}\n[[node]]\nname = {SINGLE:?}\naddr = {}\n",
            toml::Value::from(addr)
        );
        let config = Config::parse(&text, "--addr");
        let config = config.map_err(|error| {
            let problem = error.problem().to_string();
            let prefix = format!("node {SINGLE:?}: addr: ");
            let problem = problem.strip_prefix(&prefix).unwrap_or(&problem);
            usage(&format!("--addr: {problem}"))
        })?;
        Ok(Plan {
            config,
            node: SINGLE.to_owned(),
            file: None,
        })
    }

    fn role(&self) -> &'static str {
        role_name(&self.config, &self.node)
    }

    /// The remedy for an address at which the node cannot listen.
    fn remedy(&self, error: &BindError) -> String {
        let remedy = match error.source.kind() {
            io::ErrorKind::AddrInUse => "stop what listens there",
            io::ErrorKind::PermissionDenied => "take a port above 1023",
            _ => "the address has to be one of this machine's",
        };
        match &self.file {
            Some(file) => {
                let (name, file) = (&self.node, file.display());
                let key = match self.config.node(name) {
                    Some(node) if node.listen != node.addr => "listen",
                    _ => "addr",
                };
                format!("{error}; {remedy}, or change {key} of node {name:?} in {file}")
            }
            None => format!("{error}; {remedy}, or give another address with --addr HOST:PORT"),
        }
    }
}

/// Runs the node until it is told to stop. Each of `ends` disconnects when a thread has ended that may wait for a
/// reader of what the process says.
fn serve(plan: &Plan, ends: &mut Vec<Receiver<()>>) -> Result<Ending, String> {
    let (config, name) = (&plan.config, &plan.node);
    let this = config.node(name).ok_or("no such node")?;
    let mut node = Node::of_cluster(config, this);
    let manager = Manager::from_env().unwrap_or_else(|error| {
        warn!("cannot use $NOTIFY_SOCKET, so the service manager is told nothing: {error}");
        None
    });
    let manager = manager.map(|manager| (manager, node.watch()));
    let server = Server::bind(&this.listen, node, config.limits.clone())
        .map_err(|error| plan.remedy(&error))?;
    let addrs = server.local_addrs().iter().map(ToString::to_string);
    let addr = addrs.collect::<Vec<String>>().join(" and ");
    let (stops, stopping) = unbounded();
    stop_on_signals(server.stopper(), stops)?;
    if let Some((manager, roles)) = manager {
        let is_to_lead = config.leader().name == *name;
        let body = move || report(&manager, is_to_lead, &roles, &stopping);
        ends.push(spawn("reporter", body)?);
    }
    announce(plan, &addr);
    let ready = format!("{}: {name} ready on {addr} ({})", PROGRAM.name, plan.role());
    ends.push(spawn("ready", move || say(&ready))?);
    let ending = server
        .run()
        .map_err(|error| format!("cannot run: {}", no_thread(&error)))?;
    info!("node {name} has stopped");
    Ok(ending)
}

/// Logs what this node is.
fn announce(plan: &Plan, addr: &str) {
    let (name, cluster, role) = (&plan.node, &plan.config.cluster, plan.role());
    if let Some(file) = &plan.file {
        for warning in plan.config.warnings() {
            warn!("{}: {warning}", file.display());
        }
        info!("node {name} of cluster {cluster}: {role}, on {addr}");
        return;
    }
    info!(
        "a single node on {addr}: no file was read, all limits are the defaults. It is in no cluster, so nobody has a \
         copy, and nothing is on disk: the data is gone when it stops"
    );
    if fs::exists(FILE_DEFAULT).unwrap_or(false) {
        warn!(
            "{FILE_DEFAULT} is here and was not read; to start a node of it: {} --node NAME",
            PROGRAM.name
        );
    }
}

fn no_signals(error: io::Error) -> String {
    format!("cannot handle signals: {error}")
}

/// Gives signals no effect that would end the process by mistake: a log at the limit of a file's size (`ulimit -f`) is
/// like one on a full disk, and tools that rotate logs send the other two.
fn ignore_signals() -> Result<(), String> {
    for signal in [SIGXFSZ, SIGUSR1, SIGUSR2] {
        flag::register(signal, Arc::default()).map_err(no_signals)?;
    }
    Ok(())
}

/// Stops the node at the first of the signals that ask for it, and ends the process at once at the second.
fn stop_on_signals(stopper: Stopper, stops: Sender<()>) -> Result<(), String> {
    let mut asked_by = vec![SIGINT, SIGTERM, SIGQUIT];
    // A process started by nohup is not meant to notice that its terminal has gone.
    if !is_ignored(SIGHUP) {
        asked_by.push(SIGHUP);
    }
    // From here on a signal is kept until the thread below asks for it.
    let mut signals = Signals::new(&asked_by).map_err(no_signals)?;
    // The order matters: the first signal finds `stopping` still unset and then sets it, so only a second one exits.
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in asked_by {
        // Not SIGHUP: a terminal that closes sends it twice, by its shell and by the kernel, and systemd-logind sends
        // it right behind SIGTERM. Neither asks for an end without a hand-over.
        if signal != SIGHUP {
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stopping))
                .map_err(no_signals)?;
        }
        flag::register(signal, Arc::clone(&stopping)).map_err(no_signals)?;
    }
    let body = move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        info!("{}: stopping", signal_name(signal).unwrap_or("signal"));
        // Before the node can have ended, so that the service manager is told of the stop.
        let _ = stops.send(());
        stopper.stop();
    };
    spawn("signals", body).map(drop)
}

/// Tells the service manager how the node stands, each time that this changes, until it stops. A manager that does not
/// read is told again later, since it may wait for the start without limit.
fn report(
    manager: &Manager,
    is_to_lead: bool,
    roles: &Receiver<RoleState>,
    stopping: &Receiver<()>,
) {
    let mut untold = None;
    let mut was_busy = false;
    loop {
        let again = match untold {
            Some(_) => after(TELL_AGAIN),
            None => never(),
        };
        // The stop comes first: it is sent before the node ends, and is the last word.
        select_biased! {
            recv(stopping) -> _ => {
                tell(manager, &[Notice::Stopping, Notice::Status("stopping")], was_busy);
                return;
            }
            recv(roles) -> role => match role {
                Ok(role) => untold = Some(role),
                Err(_) => return,
            },
            recv(again) -> _ => {}
        }
        if let Some(role) = &untold {
            was_busy = tell_role(manager, is_to_lead, role, was_busy);
            if !was_busy {
                untold = None;
            }
        }
    }
}

/// Tells the service manager how the node stands, and that it has started. True if the manager is too busy to read.
///
/// The initial leader has started when it takes writes, so units ordered after it can write, or when it follows another
/// leader. A follower has started when it listens: its data depends on its leader, which may be away, and that is no
/// failed start.
fn tell_role(manager: &Manager, is_to_lead: bool, role: &RoleState, was_busy: bool) -> bool {
    let status = role.to_string();
    // Saying that it is ready more than once does no harm.
    let is_ready = match role {
        RoleState::Leader { .. } | RoleState::Follower { .. } => true,
        RoleState::Loading { .. } | RoleState::Candidate { .. } | RoleState::Refusing { .. } => {
            !is_to_lead
        }
    };
    let ready = is_ready.then_some(Notice::Ready);
    let notices: Vec<Notice<'_>> = ready.into_iter().chain([Notice::Status(&status)]).collect();
    tell(manager, &notices, was_busy)
}

/// Tells the service manager, and returns whether it is too busy to read. That is logged when it begins.
fn tell(manager: &Manager, notices: &[Notice<'_>], was_busy: bool) -> bool {
    let Err(error) = manager.tell(notices) else {
        return false;
    };
    let is_busy = matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    );
    if !(is_busy && was_busy) {
        warn!("cannot tell the service manager {notices:?}: {error}");
    }
    is_busy
}

/// Prints a line for each node of a file that is good, and what is most likely a mistake in it.
fn show(config: &Config, file: &Path) -> ExitCode {
    for warning in config.warnings() {
        let file = file.display();
        let _ = writeln!(io::stderr(), "{}: warning: {file}: {warning}", PROGRAM.name);
    }
    let nodes = config.nodes.iter();
    let lines = nodes.map(|node| {
        let NodeConfig { name, addr, listen } = node;
        let role = role_name(config, name);
        if listen == addr {
            format!("{name} {addr} {role}\n")
        } else {
            format!("{name} {addr} listen={listen} {role}\n")
        }
    });
    Exit::Help(lines.collect()).finish(PROGRAM.name, 1)
}

fn role_name(config: &Config, name: &str) -> &'static str {
    if name == config.leader {
        "leader"
    } else {
        "follower"
    }
}

/// Starts a thread that runs until the process ends, or ends by itself; the channel disconnects when it does.
fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<Receiver<()>, String> {
    let (running, end) = bounded(0);
    let body = move || {
        body();
        drop::<Sender<()>>(running);
    };
    let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map_err(|error| format!("cannot start the thread {name:?}: {}", no_thread(&error)))?;
    Ok(end)
}

/// Why a thread cannot be started, and what to do.
fn no_thread(error: &io::Error) -> String {
    match error.kind() {
        // EAGAIN of clone(2).
        io::ErrorKind::WouldBlock => {
            format!("{error}; allow more processes and threads (ulimit -u, TasksMax, pids.max)")
        }
        _ => error.to_string(),
    }
}

/// Prints a line on standard output. If its reader has closed it, the line is not needed.
fn say(line: &str) {
    let mut out = io::stdout();
    drop(writeln!(out, "{line}").and_then(|()| out.flush()));
}

fn usage(message: &str) -> ExitCode {
    fail(USAGE, message)
}

/// Prints an error before there is a log.
fn fail(code: u8, message: &str) -> ExitCode {
    // An error that cannot be printed can be reported nowhere.
    let _ = io::stderr().write_all(error_line(message).as_bytes());
    ExitCode::from(code)
}

fn error_line(message: &str) -> String {
    if service::is_journal(io::stderr()) {
        // The journal knows whose line it is.
        service::prefixed(Level::Error, message)
    } else {
        format!("{}: {message}\n", PROGRAM.name)
    }
}
