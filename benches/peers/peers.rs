//! GopherStore beside redis-server, valkey-server and memcached on the same work: what `scripts/bench-peers.sh` runs.
//!
//! Every server of a cell is driven by the one generator in here, with the same keys, values, connections and requests
//! in flight, in turns: A, B, C, A, B, C. So what drifts on a shared machine drifts for all, and the ratios of each
//! round can be trusted where the figures cannot. `echo` is the limit of this shape of server: threads and system
//! calls, and no work. `docs/performance.md` has the method in full.
#![allow(clippy::unwrap_used, missing_docs)]

#[cfg(target_os = "linux")]
mod cells;
#[cfg(target_os = "linux")]
mod drive;
#[cfg(target_os = "linux")]
mod durable;
#[cfg(target_os = "linux")]
mod echo;
#[cfg(target_os = "linux")]
mod protocol;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod scan;
#[cfg(target_os = "linux")]
mod servers;

/// A result, or a line that reports the failure.
#[cfg(target_os = "linux")]
type Outcome<T> = Result<T, String>;

#[cfg(target_os = "linux")]
use linux::check_interrupted;

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("peers: needs Linux: it reads processor time and memory from /proc");
    std::process::exit(2);
}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io::{self, Write};
    use std::path::PathBuf;
    use std::process::ExitCode;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, LazyLock};
    use std::time::Duration;

    use argh::{ArgsInfo, FromArgs};
    use gopherstore::arguments::{self, Program, USAGE};
    use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    use crate::cells::{self, Cell, Fleet};
    use crate::report::{self, Readings};
    use crate::servers::{self, Kind, Programs};
    use crate::{Outcome, echo};

    const PROGRAM: Program = Program {
        name: "bench-peers.sh",
    };

    /// As shells have it after Ctrl-C.
    const INTERRUPTED: u8 = 130;

    static IS_INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

    /// Fails once a signal asks this to end. Dropping ends everything that was started.
    pub(crate) fn check_interrupted() -> Outcome<()> {
        if IS_INTERRUPTED.load(Ordering::Relaxed) {
            return Err("interrupted".to_owned());
        }
        Ok(())
    }

    /// Measures GopherStore beside redis-server, valkey-server and memcached, those that are installed, and prints the
    /// table of docs/tried.md.
    #[derive(ArgsInfo, FromArgs)]
    #[argh(
        help_triggers("-h", "--help"),
        example = "{command_name}",
        example = "{command_name} --cells get-4x128,set-replicated --rounds 9",
        example = "{command_name} --cells keys,values,connections,followers --json curves.jsonl",
        note = "Everything it starts listens on 127.0.0.1 and is stopped at the end, after Ctrl-C too.",
        error_code(1, "A server could not be started or measured."),
        error_code(2, "Wrong arguments; nothing was started."),
        error_code(130, "Interrupted.")
    )]
    struct Arguments {
        /// cells or groups of them, separated by commas, or all; by default quick, which takes some minutes
        #[argh(
            option,
            arg_name = "names",
            from_str_fn(arguments::text),
            default = "\"quick\".into()"
        )]
        cells: String,
        /// names of servers, separated by commas, to leave out all others
        #[argh(option, arg_name = "names", from_str_fn(arguments::text))]
        servers: Option<String>,
        /// readings of each server in each cell; by default 3
        #[argh(option, arg_name = "n", from_str_fn(arguments::parsed), default = "3")]
        rounds: usize,
        /// seconds of each reading, beside a fifth to warm up; by default 1
        #[argh(
            option,
            arg_name = "s",
            from_str_fn(arguments::parsed),
            default = "1.0"
        )]
        seconds: f64,
        /// a file for each reading as a line of JSON, for scripts/plot-performance.py
        #[argh(option, arg_name = "file", from_str_fn(arguments::path))]
        json: Option<PathBuf>,
        /// print the names of the cells by their groups
        #[argh(switch)]
        list: bool,
        /// a command for the shell, as long as which each reading of requests takes, with CELL, SERVER and the server's
        /// PID in its environment
        #[argh(option, arg_name = "command", from_str_fn(arguments::text))]
        beside: Option<String>,
        /// with few keys, connections and one short round, to see that everything works: the figures mean nothing
        #[argh(switch)]
        smoke: bool,
        /// the program gopherstore-server; scripts/bench-peers.sh passes it
        #[argh(option, arg_name = "file", from_str_fn(arguments::path))]
        server: Option<PathBuf>,
        #[argh(subcommand)]
        command: Option<Command>,
    }

    #[derive(ArgsInfo, FromArgs)]
    #[argh(subcommand)]
    enum Command {
        Echo(Echo),
    }

    /// Serves as the limit of this shape of server, until standard input ends.
    #[derive(ArgsInfo, FromArgs)]
    #[argh(subcommand, name = "echo", help_triggers("-h", "--help"))]
    struct Echo {
        /// bytes of the value that GETs are answered with; by default 64
        #[argh(option, arg_name = "n", from_str_fn(arguments::parsed), default = "64")]
        value_bytes: usize,
    }

    pub(crate) fn main() -> ExitCode {
        let arguments: Arguments = match PROGRAM.parse(std::env::args_os().skip(1)) {
            Ok(arguments) => arguments,
            Err(exit) => return exit.finish(PROGRAM.name, 1),
        };
        let _ = rlimit::increase_nofile_limit(u64::MAX);
        if let Some(Command::Echo(echo)) = arguments.command {
            return exit(echo::serve(echo.value_bytes));
        }
        if arguments.list {
            return exit(print(&list()));
        }
        let chosen = match choose(&arguments.cells) {
            Ok(chosen) => chosen,
            Err(error) => return fail(USAGE, &error),
        };
        if arguments.rounds == 0 || !(0.01..=3_600.0).contains(&arguments.seconds) {
            return fail(USAGE, "--rounds is 1 or more, and --seconds 0.01 to 3600");
        }
        let Some(server) = &arguments.server else {
            return fail(
                USAGE,
                "--server FILE is needed: scripts/bench-peers.sh passes it",
            );
        };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&IS_INTERRUPTED)) {
                return fail(1, &format!("cannot watch for signals: {error}"));
            }
        }
        let programs = match server.canonicalize() {
            Ok(gopherstore) => Programs { gopherstore },
            Err(error) => return fail(USAGE, &format!("{}: {error}", server.display())),
        };
        let result = measure(&arguments, &programs, &chosen).and_then(|text| print(&text));
        if check_interrupted().is_err() {
            return fail(INTERRUPTED, "interrupted; what it started is stopped");
        }
        exit(result)
    }

    fn exit(result: Outcome<()>) -> ExitCode {
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, &error),
        }
    }

    fn fail(code: u8, error: &str) -> ExitCode {
        eprintln!("{}: {error}", PROGRAM.name);
        ExitCode::from(code)
    }

    /// Prints to standard output; who has closed it wants no more of it.
    fn print(text: &str) -> Outcome<()> {
        match io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(format!("standard output: {error}"))
            }
            _ => Ok(()),
        }
    }

    fn list() -> String {
        let cells = cells::all();
        let line = |cell: &Cell| format!("{:<12} {:<20} {}\n", cell.group, cell.name, cell.text);
        cells.iter().map(line).collect()
    }

    /// The cells of these names, in the order of the list.
    fn choose(names: &str) -> Outcome<Vec<Cell>> {
        let all = cells::all();
        let is = |cell: &Cell, name: &str| name == "all" || cell.name == name || cell.group == name;
        for name in names.split(',') {
            if !all.iter().any(|cell| is(cell, name)) {
                return Err(format!(
                    "no cell or group {name:?}; --list shows what there is"
                ));
            }
        }
        let chosen = |cell: &Cell| names.split(',').any(|name| is(cell, name));
        Ok(all.into_iter().filter(chosen).collect())
    }

    /// The servers that there are, with their versions. Says what is missing, and how to get it.
    fn installed(programs: &Programs) -> Outcome<Vec<(Kind, String)>> {
        let mut found = Vec::new();
        for kind in Kind::ALL {
            match (programs.version(kind), kind) {
                (Some(version), _) => found.push((kind, version)),
                (None, Kind::GopherStore | Kind::InMemory) => {
                    let server = programs.gopherstore.display();
                    return Err(format!("{server} is no gopherstore-server"));
                }
                (None, Kind::Redis) => missing("redis-server", "apt-get install redis-server"),
                (None, Kind::Memcached) => missing("memcached", "apt-get install memcached"),
                // Debian does not have it in every release.
                (None, Kind::Valkey) => missing("valkey-server", "docs/performance.md has how"),
                (None, Kind::Echo) => {}
            }
        }
        Ok(found)
    }

    fn missing(program: &str, remedy: &str) {
        eprintln!(
            "{}: {program} is not installed, so it is left out ({remedy})",
            PROGRAM.name
        );
    }

    /// The progress of so many readings, which is drawn on a terminal alone.
    fn progress_of(total: usize) -> ProgressBar {
        let progress = ProgressBar::new(u64::try_from(total).unwrap_or(0))
            .with_finish(ProgressFinish::AndClear);
        let style = ProgressStyle::with_template("{pos}/{len} {msg} ({elapsed}, {eta} left)");
        if let Ok(style) = style {
            progress.set_style(style);
        }
        progress
    }

    /// Takes all readings and gives the text that is printed.
    fn measure(arguments: &Arguments, programs: &Programs, chosen: &[Cell]) -> Outcome<String> {
        let mut versions = installed(programs)?;
        if let Some(names) = &arguments.servers {
            versions.retain(|(kind, _)| names.split(',').any(|name| name == kind.name()));
            let is_there = |name: &str| versions.iter().any(|(kind, _)| kind.name() == name);
            if let Some(name) = names.split(',').find(|name| !is_there(name)) {
                return Err(format!("--servers: no {name:?} here"));
            }
        }
        let (mut rounds, mut time) = (arguments.rounds, Duration::from_secs_f64(arguments.seconds));
        let mut cells = chosen.to_vec();
        let uses_disk = cells.iter().any(|cell| cell.setup.disk.is_some());
        if uses_disk && !servers::temporary_files_are_on_disk() {
            eprintln!(
                "{}: the data directories are in memory: set TMPDIR to a folder on a disk",
                PROGRAM.name
            );
        }
        if arguments.smoke {
            cells = cells.into_iter().map(Cell::shortened).collect();
            (rounds, time) = (1, Duration::from_millis(50));
        }
        let mut json = match &arguments.json {
            Some(path) => {
                let file = File::create(path).map_err(|e| format!("{}: {e}", path.display()))?;
                Some(file)
            }
            None => None,
        };
        let kinds_of = |cell: &Cell| -> Vec<Kind> {
            let kinds = versions.iter().map(|(kind, _)| *kind);
            kinds.filter(|kind| cell.kinds.contains(kind)).collect()
        };
        let total: usize = cells.iter().map(|cell| kinds_of(cell).len() * rounds).sum();
        let progress = progress_of(total);
        let mut fleet = Fleet::new(programs, arguments.beside.as_deref());
        let mut all = Vec::new();
        for cell in cells {
            let kinds = kinds_of(&cell);
            let mut of: Vec<(Kind, Vec<_>)> =
                kinds.iter().map(|kind| (*kind, Vec::new())).collect();
            progress.set_message(format!("{}: loading", cell.name));
            fleet.ready(&cell, &kinds)?;
            for round in 0..rounds {
                for (kind, readings) in &mut of {
                    progress.set_message(format!("{}: {}", cell.name, kind.name()));
                    let seed = u64::try_from(round).unwrap_or(0) + 1;
                    let figures = fleet.read(&cell, *kind, time, seed)?;
                    if let Some(file) = &mut json {
                        let version = versions.iter().find(|(of, _)| of == kind);
                        let version = version.map_or("", |(_, version)| version);
                        let line = report::line(&cell, *kind, version, round, &figures);
                        writeln!(file, "{line}").map_err(|error| format!("--json: {error}"))?;
                    }
                    readings.push(figures);
                    progress.inc(1);
                }
            }
            all.push(Readings { cell, of });
        }
        let machine = report::machine();
        let mut method = format!("medians of {rounds} × {} s", time.as_secs_f64());
        if arguments.smoke {
            method = "a smoke test, whose figures mean nothing".to_owned();
        }
        let table = report::table(&all, &versions);
        Ok(format!(
            "{machine}; {method}, in turns; in parentheses the spread of the ratios.\n\n{table}"
        ))
    }
}
