//! The cells that are measured, and how a reading of each is taken.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::drive::{Load, Measured, Until, connect, count, drive};
use crate::protocol::{KEY_LEN, WriteKind};
use crate::servers::{
    Disk, Kind, Programs, Server, Setup, Snapshots, Sync, Written, memory_kib, processor_time,
};
use crate::{Outcome, check_interrupted};
use crate::{durable, scan};

/// SETs a second beside which GETs are measured: as many as every server does with a sync of each.
const BESIDE_RATE: u64 = 50_000;

/// Scans beside which a client is kept waiting.
const SCANS: usize = 3;

/// Bytes of `+OK` and the end of its line.
const ANSWER_LEN: u64 = 5;

/// A figure that a reading holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figure(pub(crate) &'static str);

pub(crate) const REQUESTS: Figure = Figure("requests/s");
pub(crate) const PROCESSOR: Figure = Figure("processor µs/request");
pub(crate) const P99: Figure = Figure("p99 µs");
const OF_SET: Figure = Figure("requests ÷ SETs in turn");
pub(crate) const RESIDENT: Figure = Figure("resident MiB");
const TO_FILES: Figure = Figure("bytes written to files ÷ those of keys and values");
const TO_DISK: Figure = Figure("bytes written by the disk ÷ those of keys and values");
const COPIES: Figure = Figure("snapshots taken meanwhile");
const BEHIND: Figure = Figure("ms until followers are level");
pub(crate) const ENTRY: Figure = Figure("bytes/entry");
const PEAK: Figure = Figure("peak ÷ end");
const LOADED: Figure = Figure("loaded entries/s");
const SCANNED: Figure = Figure("scanned keys/s");
const COPIED: Figure = Figure("copied entries/s");
const LONGEST: Figure = Figure("longest stall ms");
const P9999: Figure = Figure("p99.99 µs");
const P99_IDLE: Figure = Figure("p99 µs among idle ones");
const IDLE_RATIO: Figure = Figure("among idle ones ÷ without");
const IDLE_MEMORY: Figure = Figure("KiB/idle connection");

/// The figure beside which GopherStore's is seen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Against {
    /// None: it is judged by itself.
    Itself,
    Server(Kind),
    /// Redis or Valkey, to which the ratio is worse.
    BetterPeer,
    /// GopherStore's own in another cell, where that is measured too.
    Cell(&'static str),
}

/// The goal of GopherStore's median: a figure, or its ratio to another one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    pub(crate) figure: Figure,
    pub(crate) against: Against,
    /// Or at most.
    pub(crate) at_least: bool,
    pub(crate) bound: f64,
}

#[derive(Clone, Copy, Debug)]
enum Work {
    /// Connections, requests in flight on each, and how many of a hundred are GETs.
    Requests(usize, usize, u64),
    /// Each key once: what an entry takes.
    Memory,
    /// Each key once, while another client asks for a few others: how long it is kept waiting.
    Stall,
    /// A scan of all keys, alone, and then while another client asks for a few of them: how long it is kept waiting.
    Scan,
    /// A new follower, while one client writes.
    Copy,
    /// Connections that say nothing, and those that go on.
    Idle(usize, usize),
    /// GETs beside so many SETs of other keys a second.
    Beside(u64),
    /// A start with all data on the disk.
    Restart,
}

/// One line of the measurement: the same work for several servers.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) name: String,
    /// By which it is chosen together with others.
    pub(crate) group: &'static str,
    /// Of a cell that is a point of a curve: its place.
    pub(crate) x: Option<u64>,
    pub(crate) text: String,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) goals: Vec<Goal>,
    work: Work,
    pub(crate) setup: Setup,
    /// Requests a second; none for as many as are answered.
    rate: Option<u64>,
    is_shortened: bool,
}

impl Cell {
    fn new(name: &str, work: Work, keys: u64, value_len: usize) -> Cell {
        let values = if value_len >= 1024 {
            format!("{} KiB", value_len >> 10)
        } else {
            format!("{value_len} B")
        };
        let keys_text = match keys {
            n if n >= 1_000_000 => format!("{} M", n / 1_000_000),
            n => format!("{} k", n / 1_000),
        };
        let what = match work {
            Work::Requests(connections, depth, get_percent) => {
                let operation = match get_percent {
                    0 => "SET".to_owned(),
                    100 => "GET".to_owned(),
                    percent => format!("{percent} % GET"),
                };
                format!("{connections} × depth {depth}, {operation}")
            }
            Work::Memory => "memory".to_owned(),
            Work::Stall => "stall while entries are inserted".to_owned(),
            Work::Scan => "scan of all keys".to_owned(),
            Work::Copy => "snapshot to a new follower".to_owned(),
            Work::Idle(idle, active) => format!("{active} × depth 1, 90 % GET, {idle} idle"),
            Work::Beside(rate) => {
                format!("4 × depth 1, GET, beside {} k SETs a second", rate / 1_000)
            }
            Work::Restart => "restart".to_owned(),
        };
        let is_able = |kind: &Kind| match work {
            Work::Copy | Work::Scan | Work::Beside(_) | Work::Restart => kind.replicates(),
            Work::Memory | Work::Idle(..) => kind.stores(),
            Work::Requests(..) | Work::Stall => true,
        };
        let kinds = Kind::ALL.into_iter().filter(is_able);
        let kinds = kinds.filter(|kind| *kind != Kind::InMemory).collect();
        Cell {
            name: name.to_owned(),
            group: "quick",
            x: None,
            text: format!("{what}; {keys_text} × (16 B + {values})"),
            kinds,
            goals: Vec::new(),
            work,
            rate: None,
            is_shortened: false,
            setup: Setup {
                keys,
                value_len,
                write: WriteKind::Set,
                followers: 0,
                later: usize::from(matches!(work, Work::Copy)),
                disk: None,
            },
        }
    }

    fn of_group(mut self, group: &'static str) -> Cell {
        self.group = group;
        self
    }

    fn at(mut self, x: u64) -> Cell {
        self.x = Some(x);
        self
    }

    fn followed(mut self, followers: usize) -> Cell {
        self.setup.followers = followers;
        self.kinds.retain(|kind| kind.replicates());
        self.text += &format!(", {followers} followers");
        self
    }

    /// With another write than a SET.
    fn writing(mut self, write: WriteKind) -> Cell {
        let name = match write {
            WriteKind::Set => "SET",
            WriteKind::Put => "PUT (others: SET)",
            WriteKind::SetExpiring => "SET with an expiry",
            WriteKind::Add => "add 1 to a number",
        };
        self.text = self.text.replacen("SET", name, 1);
        self.setup.write = write;
        let is_able = |kind: &Kind| write != WriteKind::Add || *kind != Kind::Memcached;
        self.kinds.retain(|kind| kind.stores() && is_able(kind));
        self
    }

    /// With the data on the disk.
    fn durable(mut self, sync: Sync, snapshots: Snapshots) -> Cell {
        self.group = "durable";
        self.setup.disk = Some(Disk { sync, snapshots });
        self.kinds.retain(|kind| kind.replicates());
        self.text += match sync {
            Sync::Always => ", synced at once",
            Sync::Interval => ", synced each second",
        };
        self
    }

    /// Beside GopherStore without a data directory.
    fn beside_memory(mut self) -> Cell {
        self.kinds.insert(1, Kind::InMemory);
        self
    }

    /// At so many requests a second.
    fn paced(mut self, rate: u64) -> Cell {
        self.rate = Some(rate);
        self.text += &format!(", {} k requests a second", rate / 1_000);
        self
    }

    fn goal(mut self, figure: Figure, against: Against, at_least: bool, bound: f64) -> Cell {
        self.goals.push(Goal {
            figure,
            against,
            at_least,
            bound,
        });
        self
    }

    fn ahead(self, against: Kind, bound: f64) -> Cell {
        self.goal(REQUESTS, Against::Server(against), true, bound)
    }

    /// Whether each reading has a server of its own, and so an empty one, or one with an empty directory.
    fn has_own_servers(&self) -> bool {
        match self.work {
            Work::Requests(..) => self.setup.disk.is_some(),
            Work::Memory | Work::Stall | Work::Idle(..) | Work::Beside(_) => true,
            Work::Copy | Work::Scan | Work::Restart => false,
        }
    }

    /// As it is where one only wants to see that everything works.
    pub(crate) fn shortened(mut self) -> Cell {
        self.setup.keys = self.setup.keys.min(2_000);
        self.is_shortened = true;
        self.text += ", shortened";
        self.goals.clear();
        if let Work::Idle(..) = self.work {
            self.work = Work::Idle(100, 10);
        }
        self
    }
}

/// Keys of a data set that the caches of the processor hold a part of, and of one that is larger than they are.
const SMALL: u64 = 100_000;
const LARGE: u64 = 2_000_000;

/// A cell of requests.
fn requests(
    name: &str,
    connections: usize,
    depth: usize,
    get_percent: u64,
    keys: u64,
    value_len: usize,
) -> Cell {
    let work = Work::Requests(connections, depth, get_percent);
    let against = Against::Server(Kind::Redis);
    Cell::new(name, work, keys, value_len).goal(PROCESSOR, against, false, 1.0)
}

/// A cell of connections with many requests at a time.
fn deep(name: &str, connections: usize, depth: usize, get_percent: u64, bound: f64) -> Cell {
    requests(name, connections, depth, get_percent, SMALL, 64)
        .ahead(Kind::Redis, bound)
        .ahead(Kind::Echo, 0.55)
}

/// All cells.
pub(crate) fn all() -> Vec<Cell> {
    use Against::{Itself, Server};
    use Kind::{Echo, Memcached, Redis};
    let shallow = |name: &str, connections, get_percent| {
        requests(name, connections, 1, get_percent, SMALL, 64)
            .ahead(Redis, 1.0)
            .ahead(Memcached, 1.0)
            .goal(P99, Server(Redis), false, 1.0)
    };
    let middle = |name: &str, get_percent| {
        requests(name, 50, 16, get_percent, SMALL, 64)
            .ahead(Redis, 1.5)
            .ahead(Echo, 0.9)
    };
    let missing = |name: &str, connections, depth, get_percent| {
        let mut cell = requests(name, connections, depth, get_percent, LARGE, 64).ahead(Redis, 4.0);
        cell.kinds.retain(|kind| kind.stores());
        cell
    };
    let long = |name: &str, get_percent| {
        requests(name, 8, 1, get_percent, 1_000, 64 << 10)
            .ahead(Redis, 1.2)
            .ahead(Memcached, 1.2)
    };
    let mut cells = vec![
        deep("get-4x128", 4, 128, 100, 5.0),
        deep("set-4x128", 4, 128, 0, 4.5),
        deep("mix-8x64", 8, 64, 90, 5.0),
        middle("get-50x16", 100),
        middle("set-50x16", 0),
        shallow("get-50x1", 50, 100),
        shallow("mix-200x1", 200, 90),
        requests("get-1x1", 1, 1, 100, SMALL, 64).ahead(Echo, 0.98),
        missing("get-4x128-2m", 4, 128, 100),
        missing("set-4x128-2m", 4, 128, 0),
        missing("mix-8x64-2m", 8, 64, 90),
        Cell::new("copy", Work::Copy, LARGE, 64)
            .goal(COPIED, Server(Redis), true, 3.0)
            .goal(LONGEST, Itself, false, 5.0),
        long("get-8x1-64k", 100),
        long("set-8x1-64k", 0),
        requests("set-replicated", 4, 128, 0, SMALL, 64)
            .followed(2)
            .ahead(Redis, 4.0),
        Cell::new("idle", Work::Idle(10_000, 100), SMALL, 64)
            .goal(IDLE_RATIO, Itself, false, 2.0)
            .goal(IDLE_MEMORY, Itself, false, 16.0),
        Cell::new("memory-2m", Work::Memory, LARGE, 64)
            .goal(ENTRY, Itself, false, 0.8 * 148.0)
            .goal(ENTRY, Server(Memcached), false, 1.0)
            .goal(PEAK, Itself, false, 1.25),
        Cell::new("stall-1m", Work::Stall, 1_000_000, 64).goal(LONGEST, Itself, false, 10.0),
    ];
    cells.extend(operations_and_big());
    cells.extend(durable_cells());
    cells.extend(sweeps());
    cells
}

/// The cells of other operations than GET and SET, and those of large data sets.
fn operations_and_big() -> Vec<Cell> {
    use Against::{Itself, Server};
    use Kind::{Memcached, Redis};
    vec![
        deep("put-4x128", 4, 128, 0, 1.0)
            .writing(WriteKind::Put)
            .of_group("operations")
            .goal(OF_SET, Itself, true, 0.9),
        deep("setex-4x128", 4, 128, 0, 1.0)
            .writing(WriteKind::SetExpiring)
            .of_group("operations"),
        requests("incr-4x128", 4, 128, 0, SMALL, 8)
            .ahead(Redis, 1.0)
            .writing(WriteKind::Add)
            .of_group("operations")
            .goal(OF_SET, Itself, true, 0.85),
        Cell::new("scan-2m", Work::Scan, LARGE, 64)
            .of_group("operations")
            .goal(SCANNED, Server(Redis), true, 3.0)
            .goal(LONGEST, Itself, false, 5.0),
        Cell::new("memory-10m", Work::Memory, 10_000_000, 32)
            .of_group("big")
            .goal(ENTRY, Server(Memcached), false, 1.0)
            .goal(PEAK, Itself, false, 1.25),
        Cell::new("stall-10m", Work::Stall, 10_000_000, 64)
            .of_group("big")
            .goal(LONGEST, Itself, false, 10.0),
    ]
}

/// The cells of which each differs from the others of its group in one number.
fn sweeps() -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut sweep = |group: &'static str, xs: &[u64], cell: &dyn Fn(&str, u64) -> Cell| {
        for &x in xs {
            let name = format!("{group}-{x}");
            cells.push(cell(&name, x).of_group(group).at(x));
        }
    };
    let number = |x: u64| usize::try_from(x).unwrap_or(usize::MAX);
    let mixed = Work::Requests(8, 64, 90);
    let keys = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
    sweep("keys", &keys, &|name, x| Cell::new(name, mixed, x, 64));
    let values = [16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10];
    sweep("values", &values, &|name, x| {
        Cell::new(name, mixed, 2_000, number(x))
    });
    let connections = [1, 4, 16, 64, 256, 1024];
    sweep("connections", &connections, &|name, x| {
        Cell::new(name, Work::Requests(number(x), 1, 90), SMALL, 64)
    });
    sweep("followers", &[0, 1, 2, 3], &|name, x| {
        Cell::new(name, Work::Requests(4, 128, 0), SMALL, 64).followed(number(x))
    });
    cells
}

/// The cells with the data on the disk.
fn durable_cells() -> Vec<Cell> {
    use Against::{BetterPeer, Server};
    use Sync::{Always, Interval};
    let sets = |name: &str, connections, depth, sync| {
        let work = Work::Requests(connections, depth, 0);
        Cell::new(name, work, 100_000, 64).durable(sync, Snapshots::Usual)
    };
    let beside = |name: &str, sync| {
        Cell::new(name, Work::Beside(BESIDE_RATE), 100_000, 64)
            .durable(sync, Snapshots::Usual)
            .beside_memory()
            .goal(P99, Server(Kind::InMemory), false, 1.5)
    };
    let restart = |name: &str, keys, snapshots| {
        let mut cell = Cell::new(name, Work::Restart, keys, 64).durable(Sync::Interval, snapshots);
        cell.text += match snapshots {
            Snapshots::Never => ", from the log alone",
            Snapshots::Usual | Snapshots::OnceLoaded => ", from a snapshot",
        };
        cell
    };
    let (small, large) = (2_000_000, 10_000_000);
    let (log, snapshot) = (Snapshots::Never, Snapshots::OnceLoaded);
    vec![
        sets("always-set-1x1", 1, 1, Always).goal(REQUESTS, BetterPeer, true, 1.0),
        sets("always-set-50x1", 50, 1, Always).goal(REQUESTS, BetterPeer, true, 1.5),
        sets("always-set-4x128", 4, 128, Always).goal(REQUESTS, BetterPeer, true, 2.5),
        sets("interval-set-4x128", 4, 128, Interval)
            .beside_memory()
            .goal(REQUESTS, Server(Kind::InMemory), true, 0.6)
            .goal(REQUESTS, BetterPeer, true, 3.0),
        sets("interval-set-1m", 4, 128, Interval)
            .paced(1_000_000)
            .beside_memory()
            .goal(REQUESTS, Server(Kind::InMemory), true, 0.99),
        beside("always-get", Always),
        beside("interval-get", Interval),
        Cell::new("memory-2m-disk", Work::Memory, small, 64)
            .durable(Interval, Snapshots::Usual)
            .beside_memory(),
        restart("restart-snapshot", small, snapshot).goal(
            durable::RESTART,
            BetterPeer,
            false,
            0.25,
        ),
        restart("restart-log", small, log).goal(durable::RESTART, BetterPeer, false, 0.5),
        restart("restart-snapshot-10m", large, snapshot)
            .of_group("durable-big")
            .goal(
                durable::RESTART,
                Against::Cell("restart-snapshot"),
                false,
                6.0,
            ),
        restart("restart-log-10m", large, log)
            .of_group("durable-big")
            .goal(durable::RESTART, Against::Cell("restart-log"), false, 6.0),
    ]
}

/// The result of one run of a cell against one server.
pub(crate) type Figures = Vec<(Figure, f64)>;

/// Servers that stay up from one cell to the next, for as long as these want the same of them.
pub(crate) struct Fleet<'a> {
    programs: &'a Programs,
    /// A command that is run beside each reading of requests.
    beside: Option<&'a str>,
    servers: Vec<Server>,
    wanted: Option<Setup>,
}

impl<'a> Fleet<'a> {
    pub(crate) fn new(programs: &'a Programs, beside: Option<&'a str>) -> Fleet<'a> {
        Fleet {
            programs,
            beside,
            servers: Vec::new(),
            wanted: None,
        }
    }

    /// The cell's server of this kind, with the cell's data.
    fn server(&mut self, cell: &Cell, kind: Kind) -> Outcome<&mut Server> {
        let wanted = Some(cell.setup);
        if self.wanted != wanted {
            self.servers.clear();
            self.wanted = wanted;
        }
        let found = self.servers.iter().position(|server| server.kind == kind);
        let at = match found {
            Some(at) => at,
            None => {
                let mut server = Server::start(self.programs, kind, cell.setup)?;
                if kind.stores() {
                    load(cell, &server)?;
                    server.wait_followed()?;
                }
                if let Work::Restart = cell.work {
                    server.stop_with_data()?;
                }
                self.servers.push(server);
                self.servers.len() - 1
            }
        };
        Ok(&mut self.servers[at])
    }

    /// Readies all servers of a cell, so that nothing is loaded between its runs.
    pub(crate) fn ready(&mut self, cell: &Cell, kinds: &[Kind]) -> Outcome<()> {
        for &kind in kinds {
            if cell.has_own_servers() {
                self.servers.clear();
            } else {
                self.server(cell, kind)?;
            }
        }
        Ok(())
    }

    /// Takes one reading.
    pub(crate) fn read(
        &mut self,
        cell: &Cell,
        kind: Kind,
        time: Duration,
        seed: u64,
    ) -> Outcome<Figures> {
        let programs = self.programs;
        let own = || Server::start(programs, kind, cell.setup);
        let loaded = || {
            let server = own()?;
            load(cell, &server)?;
            if !cell.is_shortened {
                server.sync_disk()?;
            }
            Ok::<_, String>(server)
        };
        let figures = match cell.work {
            Work::Requests(connections, depth, get_percent) => {
                let beside = self.beside;
                let work = (connections, depth, get_percent);
                if cell.has_own_servers() {
                    let mut server = loaded()?;
                    read_requests(cell, &mut server, time, seed, work, beside)
                } else {
                    let server = self.server(cell, kind)?;
                    read_requests(cell, server, time, seed, work, beside)
                }
            }
            Work::Copy => read_copy(cell, self.server(cell, kind)?),
            Work::Scan => read_scan(cell, self.server(cell, kind)?),
            Work::Memory => read_memory(cell, &own()?),
            Work::Stall => read_stall(cell, &own()?),
            Work::Idle(idle, active) => read_idle(cell, &own()?, time, (idle, active)),
            Work::Beside(rate) => durable::read_beside(cell, &loaded()?, time, seed, rate),
            Work::Restart => durable::read_restart(self.server(cell, kind)?),
        };
        figures.map_err(|error| format!("{}, {}: {error}", cell.name, kind.name()))
    }
}

pub(crate) fn load_of<'a>(cell: &Cell, server: &Server, until: Until<'a>) -> Load<'a> {
    Load {
        protocol: server.protocol(),
        addr: server.leader.addr,
        pid: server.leader.pid(),
        connections: 1,
        depth: 1,
        get_percent: 0,
        keys: cell.setup.keys,
        first_key: 0,
        rate: cell.rate,
        value_len: cell.setup.value_len,
        write: cell.setup.write,
        until,
        seed: 1,
    }
}

/// Sets every key once.
fn load(cell: &Cell, server: &Server) -> Outcome<Measured> {
    drive(&Load {
        // Some hundred KiB at a time.
        depth: ((256 << 10) / (cell.setup.value_len + 64)).clamp(1, 200),
        rate: None,
        ..load_of(cell, server, Until::EachKeySet)
    })
}

fn read_requests(
    cell: &Cell,
    server: &mut Server,
    time: Duration,
    seed: u64,
    (connections, depth, get_percent): (usize, usize, u64),
    beside: Option<&str>,
) -> Outcome<Figures> {
    let is_followed = cell.setup.followers > 0;
    let copies = if is_followed {
        server.full_copies()?
    } else {
        0
    };
    let load = Load {
        connections,
        depth,
        get_percent,
        seed,
        ..load_of(cell, server, Until::Time(time))
    };
    let measured = match beside {
        None => drive(&load)?,
        Some(command) => {
            let look = || server.look(command, &cell.name);
            let client = |over: &AtomicBool| {
                let until = Until::Told(over);
                drive(&Load { until, ..load })
            };
            while_driven(client, look)?.0
        }
    };
    let mut figures = vec![
        (REQUESTS, measured.per_second()),
        (PROCESSOR, measured.processor_us()),
        (P99, measured.latency_us(0.99)),
        (RESIDENT, count(memory_kib(server.leader.pid()).0) / 1024.0),
    ];
    if cell.setup.disk.is_some() && server.kind != Kind::InMemory {
        let Written { to_files, to_disk } = measured.written;
        // Redis and Valkey answer by the same calls that write to files.
        let answers = match server.kind {
            Kind::Redis | Kind::Valkey => measured.requests * ANSWER_LEN,
            Kind::GopherStore | Kind::InMemory | Kind::Memcached | Kind::Echo => 0,
        };
        let bytes = u64::try_from(KEY_LEN + cell.setup.value_len).unwrap_or(u64::MAX);
        let bytes = count(measured.requests) * count(bytes);
        figures.push((TO_FILES, count(to_files.saturating_sub(answers)) / bytes));
        figures.push((TO_DISK, count(to_disk) / bytes));
    }
    match cell.setup.write {
        WriteKind::Put | WriteKind::Add => {
            let write = WriteKind::Set;
            let sets = drive(&Load { write, ..load })?;
            figures.push((OF_SET, measured.per_second() / sets.per_second()));
        }
        // A SET takes the deadlines away.
        WriteKind::Set | WriteKind::SetExpiring => {}
    }
    if is_followed {
        let start = Instant::now();
        server.wait_followed()?;
        figures.push((BEHIND, start.elapsed().as_secs_f64() * 1e3));
        figures.push((COPIES, count(server.full_copies()? - copies)));
    }
    Ok(figures)
}

fn read_memory(cell: &Cell, server: &Server) -> Outcome<Figures> {
    let pid = server.leader.pid();
    let (before, _) = memory_kib(pid);
    let measured = load(cell, server)?;
    let (end, peak) = memory_kib(pid);
    let entry = count(end.saturating_sub(before)) * 1024.0 / count(cell.setup.keys);
    Ok(vec![
        (ENTRY, entry),
        (PEAK, count(peak) / count(end)),
        (LOADED, measured.per_second()),
    ])
}

/// Runs `work` while a client with one request in flight goes on; what the client saw, and what `work` gave.
pub(crate) fn while_driven<T>(
    client: impl FnOnce(&AtomicBool) -> Outcome<Measured> + Send,
    work: impl FnOnce() -> Outcome<T>,
) -> Outcome<(Measured, T)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = scope.spawn(|| client(&over));
        let result = work();
        over.store(true, Ordering::Relaxed);
        let seen = client.join().map_err(|_| "the client has panicked")??;
        Ok((seen, result?))
    })
}

fn read_stall(cell: &Cell, server: &Server) -> Outcome<Figures> {
    let client = |over: &AtomicBool| {
        drive(&Load {
            get_percent: 50,
            keys: 1_000,
            ..load_of(cell, server, Until::Told(over))
        })
    };
    let (seen, inserted) = while_driven(client, || load(cell, server))?;
    Ok(vec![
        (LONGEST, seen.longest_ms()),
        (P9999, seen.latency_us(0.9999)),
        (LOADED, inserted.per_second()),
    ])
}

fn read_scan(cell: &Cell, server: &Server) -> Outcome<Figures> {
    let scan = || {
        let count = scan::scan(server.protocol(), server.leader.addr)?;
        if count == cell.setup.keys {
            Ok(())
        } else {
            Err(format!("{count} keys of {}", cell.setup.keys))
        }
    };
    let start = Instant::now();
    scan()?;
    let took = start.elapsed();
    let client = |over: &AtomicBool| {
        drive(&Load {
            get_percent: 90,
            keys: cell.setup.keys.min(1_000),
            ..load_of(cell, server, Until::Told(over))
        })
    };
    let (seen, ()) = while_driven(client, || {
        // Long enough that the client sends some thousand requests.
        (0..SCANS).try_for_each(|_| scan())
    })?;
    Ok(vec![
        (SCANNED, count(cell.setup.keys) / took.as_secs_f64()),
        (LONGEST, seen.longest_ms()),
        (P9999, seen.latency_us(0.9999)),
    ])
}

fn read_copy(cell: &Cell, server: &Server) -> Outcome<Figures> {
    let client = |over: &AtomicBool| drive(&load_of(cell, server, Until::Told(over)));
    let copy = || server.copy_to_new_follower(cell.setup.keys);
    let (seen, took) = while_driven(client, copy)?;
    Ok(vec![
        (COPIED, count(cell.setup.keys) / took.as_secs_f64()),
        (LONGEST, seen.longest_ms()),
        (P9999, seen.latency_us(0.9999)),
    ])
}

fn read_idle(
    cell: &Cell,
    server: &Server,
    time: Duration,
    (idle, active): (usize, usize),
) -> Outcome<Figures> {
    load(cell, server)?;
    let active = Load {
        connections: active,
        get_percent: 90,
        ..load_of(cell, server, Until::Time(time))
    };
    let without = drive(&active)?;
    settle(server)?;
    let (before, _) = memory_kib(server.leader.pid());
    let opened: Outcome<Vec<TcpStream>> = (0..idle).map(|_| connect(server.leader.addr)).collect();
    let opened = opened?;
    settle(server)?;
    let (after, _) = memory_kib(server.leader.pid());
    let among = drive(&active)?;
    drop(opened);
    let idle = count(u64::try_from(idle).unwrap_or(u64::MAX));
    Ok(vec![
        (P99, without.latency_us(0.99)),
        (P99_IDLE, among.latency_us(0.99)),
        (
            IDLE_RATIO,
            among.latency_us(0.99) / without.latency_us(0.99),
        ),
        (IDLE_MEMORY, count(after.saturating_sub(before)) / idle),
    ])
}

/// Waits until a server has done what it was busy with: it then uses no processor time for a while.
fn settle(server: &Server) -> Outcome<()> {
    let used = || processor_time(server.leader.pid());
    let (deadline, mut last) = (Instant::now() + Duration::from_secs(5), used());
    while Instant::now() < deadline {
        thread::sleep(Duration::from_millis(200));
        check_interrupted()?;
        if used() == last {
            break;
        }
        last = used();
    }
    Ok(())
}
