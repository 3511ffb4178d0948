//! The server: arguments, configuration, listen, serve until told to stop.
//!
//! Exit codes: 0 stopped in good order · 1 cannot listen or run · 2 wrong arguments or configuration · 3 stopped in
//! good order as the last node that held the cluster's data · 130 and 143 ended at once by a second SIGINT or SIGTERM ·
//! 134 (SIGABRT) a bug of our own, whose message is on standard error.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use argh::{ArgsInfo, FromArgs};
use gopherstore::arguments::{self, Program, USAGE};
use gopherstore::config::{Config, NodeConfig};
use gopherstore::node::{Node, Phase};
use gopherstore::replication::Ending;
use gopherstore::server::Server;
use gopherstore::service::{self, Manager, Notice};
use log::{Level, error, info, warn};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

const PROGRAM: Program = Program {
    name: "gopherstore-server",
};

/// Exit code of a node that was the last one to hold the cluster's data.
const LAST_HOLDER: u8 = 3;

/// One node of a GopherStore cluster: an in-memory key-value store that speaks GBP over TCP.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    help_triggers("-h", "--help"),
    example = "{command_name} --config cluster.toml --node n1",
    note = "Prints one line on standard output when it is ready to serve, and logs to standard error.\n\
            RUST_LOG sets what is logged: error, warn, info (the default), debug.\n\
            SIGINT or SIGTERM stops it in good order, a second one at once.",
    error_code(1, "It cannot listen, or cannot run."),
    error_code(2, "Wrong arguments or configuration; nothing was started."),
    error_code(
        3,
        "Stopped in good order, and no other node of the cluster held the data."
    )
)]
struct Arguments {
    /// the cluster's file; by default cluster.toml
    #[argh(
        option,
        arg_name = "file",
        from_str_fn(arguments::path),
        default = "PathBuf::from(\"cluster.toml\")"
    )]
    config: PathBuf,
    /// which of the file's nodes this one is
    #[argh(option, arg_name = "name", from_str_fn(arguments::text))]
    node: Option<String>,
    /// only judge the file, and print a line for each node: name, address, role
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
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return fail(USAGE, &error.to_string()),
    };
    let names = || {
        let names: Vec<&str> = config.nodes.iter().map(|node| node.name.as_str()).collect();
        format!("{} has {}", arguments.config.display(), names.join(", "))
    };
    let is_known = |name| config.node(name).is_some();
    if arguments.check_config && arguments.node.as_deref().is_none_or(is_known) {
        return check_config(&config, &arguments.config.to_string_lossy());
    }
    let Some(name) = arguments.node.as_deref() else {
        return usage(&format!("--node NAME is needed: {}", names()));
    };
    let Some(node) = config.node(name) else {
        return usage(&format!("no node {name:?}: {}", names()));
    };
    let is_journal = service::is_journal(io::stderr());
    let mut logger =
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"));
    if is_journal {
        logger.format(|out, record| {
            let line = service::prefixed(record.level(), &record.args().to_string());
            out.write_all(line.as_bytes())
        });
    }
    logger.init();
    // A thread that panics has found a bug of ours. Half a node is worse than none.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if is_journal {
            let _ = io::stderr().write_all(b"<2>");
        }
        print(panic);
        std::process::abort();
    }));
    match serve(&config, node, &arguments.config.to_string_lossy()) {
        Ok(Ending::Kept) => ExitCode::SUCCESS,
        Ok(Ending::Lost { .. }) => ExitCode::from(LAST_HOLDER),
        Err(error) => fail(1, &error.to_string()),
    }
}

fn serve(config: &Config, this: &NodeConfig, file: &str) -> Result<Ending, Box<dyn Error>> {
    for warning in config.warnings() {
        warn!("{file}: {warning}");
    }
    let mut node = Node::of_cluster(config, this);
    let manager = Manager::from_env().unwrap_or_else(|error| {
        warn!("cannot use $NOTIFY_SOCKET, so the service manager is told nothing: {error}");
        None
    });
    let manager = manager.map(Arc::new);
    let phases = manager.is_some().then(|| node.watch());
    let server = Server::bind(&this.listen, node, config.limits.clone()).map_err(|error| {
        let remedy = match error.source.kind() {
            io::ErrorKind::AddrInUse => "stop what listens there",
            io::ErrorKind::PermissionDenied => "take a port above 1023",
            _ => "the address has to be one of this machine's",
        };
        let name = &this.name;
        let key = if this.listen == this.addr {
            "addr"
        } else {
            "listen"
        };
        format!("{error}; {remedy}, or change {key} of node {name:?} in {file}")
    })?;
    let addrs: Vec<String> = server
        .local_addrs()
        .iter()
        .map(ToString::to_string)
        .collect();
    let addr = addrs.join(" and ");

    // From here on a signal is kept until the thread below asks for it.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    // The order matters: the first signal finds `stopping` still unset and then sets it, so only a second one exits.
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stopping))?;
        flag::register(signal, Arc::clone(&stopping))?;
    }
    let no_more_signals = signals.handle();
    let stopper = server.stopper();
    let waiter = thread::Builder::new().name("signals".to_owned()).spawn({
        let manager = manager.clone();
        move || {
            for signal in &mut signals {
                info!("{}: stopping", signal_name(signal).unwrap_or("signal"));
                stopper.stop();
                if let Some(manager) = &manager {
                    tell(manager, &[Notice::Stopping, Notice::Status("stopping")]);
                }
            }
        }
    })?;

    let (name, role) = (&this.name, role_name(config, this));
    info!(
        "node {name} of cluster {}: {role}, on {addr}",
        config.cluster
    );
    say(&format!(
        "{}: {name} ready on {addr} ({role})",
        PROGRAM.name
    ));
    let reporter = match (manager, phases) {
        (Some(manager), Some(phases)) => {
            let is_leader = config.leader().name == this.name;
            let report = move || {
                for phase in phases {
                    // What the manager was told of the stop is the last word.
                    if !stopping.load(Ordering::SeqCst) {
                        report(&manager, is_leader, &phase);
                    }
                }
            };
            let reporter = thread::Builder::new().name("reporter".to_owned());
            Some(reporter.spawn(report)?)
        }
        _ => None,
    };
    let served = server.run();
    no_more_signals.close();
    if reporter.is_some_and(|reporter| reporter.join().is_err()) {
        error!("the thread that tells the service manager has died");
    }
    if waiter.join().is_err() {
        error!("the thread that waits for signals has died");
    }
    let ending = served.map_err(|error| format!("cannot run: {error}"))?;
    info!("node {name} has stopped");
    Ok(ending)
}

/// Tells the service manager how the node stands, and that it has started.
///
/// A leader has started when it takes writes, so what is ordered after it can write. A follower has when it listens:
/// when it has data to serve hangs on its leader, which may be away, and that is no failed start.
fn report(manager: &Manager, is_leader: bool, phase: &Phase) {
    let role = if is_leader { "leader" } else { "follower" };
    let status = match phase {
        Phase::Serving => format!("{role}, serving"),
        Phase::Loading(why) => format!("{role}, loading: {why}"),
        Phase::Refusing(why) => format!("{role}, refused: {why}"),
    };
    // Saying that it is ready more than once does no harm.
    let is_ready = !is_leader || *phase == Phase::Serving;
    let ready = is_ready.then_some(Notice::Ready);
    let notices: Vec<Notice<'_>> = ready.into_iter().chain([Notice::Status(&status)]).collect();
    tell(manager, &notices);
}

fn tell(manager: &Manager, notices: &[Notice<'_>]) {
    if let Err(error) = manager.tell(notices) {
        warn!("cannot tell the service manager {notices:?}: {error}");
    }
}

fn check_config(config: &Config, file: &str) -> ExitCode {
    for warning in config.warnings() {
        let _ = writeln!(io::stderr(), "{}: warning: {file}: {warning}", PROGRAM.name);
    }
    for node in &config.nodes {
        let NodeConfig { name, addr, listen } = node;
        let role = role_name(config, node);
        say(&if listen == addr {
            format!("{name} {addr} {role}")
        } else {
            format!("{name} {addr} listen={listen} {role}")
        });
    }
    ExitCode::SUCCESS
}

fn role_name(config: &Config, node: &NodeConfig) -> &'static str {
    if node.name == config.leader {
        "leader"
    } else {
        "follower"
    }
}

/// Prints a line on standard output. Whoever closed it does not want to read it.
fn say(line: &str) {
    let mut out = io::stdout();
    drop(writeln!(out, "{line}").and_then(|()| out.flush()));
}

fn usage(message: &str) -> ExitCode {
    fail(USAGE, message)
}

fn fail(code: u8, message: &str) -> ExitCode {
    let line = if service::is_journal(io::stderr()) {
        // The journal knows whose line it is.
        service::prefixed(Level::Error, message)
    } else {
        format!("{}: {message}\n", PROGRAM.name)
    };
    // There is nobody else to tell.
    let _ = io::stderr().write_all(line.as_bytes());
    ExitCode::from(code)
}
