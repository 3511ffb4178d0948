//! The server: reads arguments and configuration, listens, and serves until a signal.
//!
//! Exit codes: 0 stopped in good order · 1 cannot listen or run · 2 wrong arguments or configuration · 3 stopped in
//! good order as the last node that held the cluster's data · 128 and the number of the second of two signals, which
//! ends it at once (130 is SIGINT, 143 SIGTERM) · 134 (SIGABRT) a bug, whose message is on standard error.
//!
//! No thread of the node blocks on standard error ([`logging`]), standard output or the service manager's socket. Each
//! of them has its own thread, and the end of the process waits for these threads for at most a second.

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
use gopherstore::config::{Config, NodeConfig, StorageConfig, SyncPolicy};
use gopherstore::logging::{self, Log};
use gopherstore::node::{DataDirectory, Node, RoleState};
use gopherstore::replication::Ending;
use gopherstore::server::disk::Disk;
use gopherstore::server::{BindError, Server, Stopper};
use gopherstore::service::{self, Manager, Notice};
use gopherstore::signals::is_ignored;
use gopherstore::storage::files::Directory;
use gopherstore::storage::identity::Identity;
use log::{Level, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

const PROGRAM: Program = Program {
    name: "gopherstore-server",
};

/// Exit code of the last node that held the cluster's data.
const LAST_HOLDER: u8 = 3;

/// Default configuration file.
const FILE_DEFAULT: &str = "cluster.toml";

/// Address of a node that is started without arguments.
const ADDR_DEFAULT: &str = "127.0.0.1:8000";

/// Name of a node without a file, and of its cluster.
const SINGLE: &str = "single";

/// Pause before a message to a service manager that did not read is sent again.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// One node of a GopherStore cluster: an in-memory key-value store that speaks GBP over TCP.
/// Without arguments it is a single node on 127.0.0.1:8000, in no cluster.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    help_triggers("-h", "--help"),
    example = "{command_name} --config cluster.toml --node n1",
    note = "The server prints one line on standard output when it is ready: a single node when it serves, and a node\n\
            of a cluster when it listens. It logs to standard error. If nobody reads the log, it drops lines and\n\
            logs their number.\n\
            RUST_LOG sets the log level: error, warn, info (default) or debug, or MODULE=LEVEL, separated by\n\
            commas. If it cannot be parsed, the log reports that, and info applies.\n\
            SIGINT, SIGTERM, SIGQUIT and SIGHUP stop the server in good order. A second signal other than SIGHUP\n\
            ends it at once. SIGHUP stays ignored if it was ignored at the start (nohup). SIGUSR1 and SIGUSR2\n\
            have no effect.",
    error_code(1, "It cannot listen, cannot use its data directory, or cannot run."),
    error_code(2, "Wrong arguments or configuration; nothing was started."),
    error_code(
        3,
        "Stopped in good order; the data was in memory alone, and no other node of the cluster held it."
    )
)]
struct Arguments {
    /// the cluster's file; by default cluster.toml
    #[argh(option, arg_name = "file", from_str_fn(arguments::path))]
    config: Option<PathBuf>,
    /// the name of this node in the file
    #[argh(option, arg_name = "name", from_str_fn(arguments::text))]
    node: Option<String>,
    /// run a single node on host:port, without a cluster and a file; with port 0 the system chooses one
    #[argh(option, arg_name = "host:port", from_str_fn(arguments::text))]
    addr: Option<String>,
    /// keep the node's data in this directory, which is created if its parent is there; it replaces storage.data_dir of
    /// the file
    #[argh(option, arg_name = "dir", from_str_fn(arguments::path))]
    data_dir: Option<PathBuf>,
    /// when a write is on the disk of a node with a data directory: always before its response (the default), once an
    /// interval of a second, or never, which leaves it to the system; it replaces storage.sync of the file
    #[argh(option, arg_name = "when", from_str_fn(sync_policy))]
    sync: Option<SyncPolicy>,
    /// only check the file, and print a line for each node: name, address, listen=ADDRESS if it differs, data_dir=DIR
    /// if it has one, role. It looks at no address and at no directory
    #[argh(switch)]
    check_config: bool,
    /// print the man page (man) or a completion script (complete-bash, complete-zsh, complete-fish)
    #[argh(option, from_str_fn(arguments::text), arg_name = "WHAT")]
    #[allow(dead_code)] // only for the help text: `parse` handles it
    generate: Option<String>,
    /// print the version
    #[argh(switch, short = 'V')]
    #[allow(dead_code)] // only for the help text: `parse` handles it
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
        // On a timeout, the thread is still blocked on its output; the process ends without it.
        let _ = end.recv_deadline(until);
    }
    log.end(until);
    ExitCode::from(code)
}

/// The node to run.
struct Plan {
    config: Config,
    /// Its name in the configuration.
    node: String,
    /// Path of the configuration file; `None` for a single node.
    file: Option<PathBuf>,
    /// The data directory, if there is one, and its settings.
    data_dir: Option<(PathBuf, StorageConfig)>,
}

/// The policy of this name.
fn sync_policy(encoded: &str) -> Result<SyncPolicy, String> {
    arguments::one_of(encoded, &SyncPolicy::ALL)
}

impl Plan {
    /// Interprets the arguments. Returns an exit code if no node is to run.
    fn of(arguments: &Arguments) -> Result<Plan, ExitCode> {
        let names_file =
            arguments.config.is_some() || arguments.node.is_some() || arguments.check_config;
        match &arguments.addr {
            Some(_) if names_file => Err(usage(
                "--addr is for a single node, and goes with none of --config, --node and --check-config",
            )),
            None if names_file => Plan::of_file(arguments),
            addr => {
                let mut plan = Plan::single(addr.as_deref().unwrap_or(ADDR_DEFAULT))?;
                plan.set_data_dir(arguments)?;
                Ok(plan)
            }
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
            _ if arguments.check_config => Err(check(arguments, &config, &file)),
            None => Err(usage(&format!("--node NAME is needed: {names}"))),
            Some(node) => {
                let mut plan = Plan {
                    config,
                    node,
                    file: Some(file),
                    data_dir: None,
                };
                plan.set_data_dir(arguments)?;
                Ok(plan)
            }
        }
    }

    /// Determines the data directory from the file and the arguments.
    fn set_data_dir(&mut self, arguments: &Arguments) -> Result<(), ExitCode> {
        let mut storage = self.config.storage.clone();
        let of_file = data_dir_of(&self.config, self.file.as_deref(), &self.node);
        if arguments.data_dir.is_some() {
            storage.data_dir = None;
        }
        let data_dir = arguments.data_dir.clone().or(of_file);
        if let Some(sync) = arguments.sync {
            if data_dir.is_none() {
                return Err(usage(
                    "--sync without a data directory: add --data-dir DIR, or leave it out",
                ));
            }
            storage.sync = sync;
        }
        self.data_dir = data_dir.map(|dir| (dir, storage));
        Ok(())
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
            data_dir: None,
        })
    }

    fn role(&self) -> &'static str {
        role_name(&self.config, &self.node)
    }

    /// Advice for an address on which the node cannot listen.
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

/// Runs the node until it stops. Adds to `ends` a channel for each thread that may block on an output; the channel
/// disconnects when the thread ends.
fn serve(plan: &Plan, ends: &mut Vec<Receiver<()>>) -> Result<Ending, String> {
    let (config, name) = (&plan.config, &plan.node);
    let this = config.node(name).ok_or("no such node")?;
    let (mut node, disk) = match &plan.data_dir {
        None => (Node::of_cluster(config, this), None),
        Some((path, storage)) => {
            let (node, disk) = recovered(config, this, path, storage)?;
            (node, Some(disk))
        }
    };
    let manager = Manager::from_env().unwrap_or_else(|error| {
        warn!("cannot use $NOTIFY_SOCKET, so the service manager is not notified: {error}");
        None
    });
    let manager = manager.map(|manager| (manager, node.watch()));
    let roles = node.watch();
    let mut server = Server::bind(&this.listen, node, config.limits.clone())
        .map_err(|error| plan.remedy(&error))?;
    if let Some(disk) = disk {
        server = server.writing_to(disk);
    }
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
    let serves_alone = config.nodes.len() == 1;
    let body = move || {
        // A node with peers is ready when it listens: it may need another node, which may be started later.
        if !serves_alone || roles.iter().any(|role| role.serves()) {
            say(&ready);
        }
    };
    ends.push(spawn("ready", body)?);
    let ending = server
        .run()
        .map_err(|error| format!("cannot run: {}", no_thread(&error)))?;
    info!("node {name} has stopped");
    Ok(ending)
}

/// The node with the data of its directory.
fn recovered(
    config: &Config,
    this: &NodeConfig,
    path: &Path,
    storage: &StorageConfig,
) -> Result<(Node, Arc<Disk>), String> {
    let own = Identity {
        cluster: config.cluster.clone(),
        node: this.name.clone(),
    };
    if let (Some(_), Some(parent)) = (&storage.data_dir, path.parent())
        && !parent.as_os_str().is_empty()
    {
        // The directory of all nodes of the file.
        Directory::open(parent)
            .map_err(|error| format!("cannot create {}: {error}", parent.display()))?;
    }
    let mut node = Node::with_disk(config, this);
    let disk = Disk::open(path, &own, storage.clone()).map_err(|error| error.to_string())?;
    node.acknowledge_at(disk.acknowledges_at());
    disk.recover(&node).map_err(|error| error.to_string())?;
    let disk = Arc::new(disk);
    node.keep_in(Arc::clone(&disk) as Arc<dyn DataDirectory>);
    Ok((node, disk))
}

/// Logs the node's name, version, role and limits.
fn announce(plan: &Plan, addr: &str) {
    let (name, cluster, role) = (&plan.node, &plan.config.cluster, plan.role());
    let directory = plan.data_dir.as_ref();
    let directory = directory.map(|(path, _)| format!("Its data is in {}", path.display()));
    if let Some(file) = &plan.file {
        for warning in plan.config.warnings() {
            warn!("{}: {warning}", file.display());
        }
        let data = directory.map_or_else(String::new, |text| format!(". {text}"));
        info!("node {name} of cluster {cluster}: {role}, on {addr}{data}");
        return;
    }
    let data = match directory {
        Some(text) => text,
        None => "It is in no cluster, so nobody has a copy, and nothing is on disk: the data is gone when it stops"
            .to_owned(),
    };
    info!("a single node on {addr}: no file was read, all limits are the defaults. {data}");
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

/// Ignores signals that would end the process without reason: SIGXFSZ comes when the log reaches the limit of a file's
/// size (`ulimit -f`), and tools that rotate logs send SIGUSR1 and SIGUSR2.
fn ignore_signals() -> Result<(), String> {
    for signal in [SIGXFSZ, SIGUSR1, SIGUSR2] {
        flag::register(signal, Arc::default()).map_err(no_signals)?;
    }
    Ok(())
}

/// Stops the node at the first signal, and ends the process at the second.
fn stop_on_signals(stopper: Stopper, stops: Sender<()>) -> Result<(), String> {
    let mut asked_by = vec![SIGINT, SIGTERM, SIGQUIT];
    // nohup starts a process with SIGHUP ignored, and it stays so.
    if !is_ignored(SIGHUP) {
        asked_by.push(SIGHUP);
    }
    // From here on signals are kept until the thread below reads them.
    let mut signals = Signals::new(&asked_by).map_err(no_signals)?;
    // The order matters: the first signal finds `stopping` still unset and then sets it, so only a second one exits.
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in asked_by {
        // A second SIGHUP does not end the process: a terminal that closes sends two, by its shell and by the kernel,
        // and systemd-logind sends one after SIGTERM.
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
        // Before the node can have ended, so that the service manager learns of the stop.
        let _ = stops.send(());
        stopper.stop();
    };
    spawn("signals", body).map(drop)
}

/// Sends the service manager the state of the node at each change, until the node stops. If the manager does not read,
/// the message is sent again later, since the manager may wait for the start without limit.
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
        // A stop comes first: it is the last message.
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

/// Sends the service manager the state of the node, and whether it has started. Returns true if the manager does not
/// read.
///
/// The initial leader has started when it takes writes, so units ordered after it can write, or when it follows another
/// leader. A follower has started when it listens: its data depends on its leader, which may be away, and that is no
/// failed start.
fn tell_role(manager: &Manager, is_to_lead: bool, role: &RoleState, was_busy: bool) -> bool {
    let status = role.to_string();
    // READY may be sent more than once.
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

/// Sends the service manager a message, and returns whether it does not read. The first such failure is logged.
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

/// Shows a valid file. It says nothing of a directory.
fn check(arguments: &Arguments, config: &Config, file: &Path) -> ExitCode {
    if arguments.data_dir.is_some() || arguments.sync.is_some() {
        return usage(
            "--check-config checks the file alone, and goes with neither --data-dir nor --sync; gopherstore-cli check \
             DIR reads a data directory",
        );
    }
    show(config, file)
}

/// Prints a line for each node of a valid file, and warnings about likely mistakes.
fn show(config: &Config, file: &Path) -> ExitCode {
    for warning in config.warnings() {
        let file = file.display();
        let _ = writeln!(io::stderr(), "{}: warning: {file}: {warning}", PROGRAM.name);
    }
    let nodes = config.nodes.iter();
    let lines = nodes.map(|node| {
        let NodeConfig { name, addr, listen } = node;
        let role = role_name(config, name);
        let mut line = format!("{name} {addr} ");
        if listen != addr {
            line += &format!("listen={listen} ");
        }
        if let Some(dir) = data_dir_of(config, Some(file), name) {
            line += &format!("data_dir={dir:?} ");
        }
        line + role + "\n"
    });
    Exit::Help(lines.collect()).finish(PROGRAM.name, 1)
}

/// The directory that a file gives a node.
fn data_dir_of(config: &Config, file: Option<&Path>, node: &str) -> Option<PathBuf> {
    let folder = file.and_then(Path::parent).unwrap_or(Path::new(""));
    let dir = config.storage.data_dir.as_ref()?;
    Some(folder.join(dir).join(node))
}

fn role_name(config: &Config, name: &str) -> &'static str {
    if name == config.leader {
        "leader"
    } else {
        "follower"
    }
}

/// Starts a thread. The channel disconnects when the thread ends.
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

/// The reason why a thread cannot be started, with advice.
fn no_thread(error: &io::Error) -> String {
    match error.kind() {
        // EAGAIN of clone(2).
        io::ErrorKind::WouldBlock => {
            format!("{error}; allow more processes and threads (ulimit -u, TasksMax, pids.max)")
        }
        _ => error.to_string(),
    }
}

/// Prints a line on standard output. A closed output is no error.
fn say(line: &str) {
    let mut out = io::stdout();
    drop(writeln!(out, "{line}").and_then(|()| out.flush()));
}

fn usage(message: &str) -> ExitCode {
    fail(USAGE, message)
}

/// Prints an error before the log is started.
fn fail(code: u8, message: &str) -> ExitCode {
    // There is no other place to report it.
    let _ = io::stderr().write_all(error_line(message).as_bytes());
    ExitCode::from(code)
}

fn error_line(message: &str) -> String {
    if service::is_journal(io::stderr()) {
        // The journal adds the name of the program.
        service::prefixed(Level::Error, message)
    } else {
        format!("{}: {message}\n", PROGRAM.name)
    }
}
