//! `bench`: measures rate and latency of GETs and SETs, as a client sees them.

mod results;
mod run;
mod schedule;
mod target;
mod workload;

use std::{
    hash::{BuildHasher, RandomState},
    num::NonZeroU64,
    time::Duration,
};

use argh::{ArgsInfo, FromArgs};
use gopherstore::arguments::{self, whole};
use indicatif::ProgressBar;

use crate::{
    context::Context,
    report::{Failure, Outcome},
    stop::Stop,
    write_out,
};

use results::{Conditions, Form, Measured};
use schedule::End;
use target::Target;
use workload::{Prefix, Sizes, Workload};

const CONNECTIONS_DEFAULT: u64 = 8;
const CONNECTIONS_MAX: u64 = 10_000;
const DEPTH_MAX: u64 = 100_000;
const KEYS_DEFAULT: u32 = 10_000;
const GET_PERCENT_DEFAULT: u8 = 90;
const DURATION_DEFAULT: Duration = Duration::from_secs(10);
const RATE_MAX: u64 = 1_000_000_000;
/// Most bytes of values that all connections together have in flight, so that a mistyped option does not use up the
/// memory.
const IN_FLIGHT_MAX: u64 = 1 << 30;

/// Measure rate and latency of GETs and SETs.
#[derive(ArgsInfo, FromArgs)]
#[argh(
    subcommand,
    name = "bench",
    help_triggers("-h", "--help"),
    example = "gopherstore-cli bench --connections 16 --depth 8 --duration 30s\n\
        gopherstore-cli bench --rate 20000 --zipf --get 50 --value-size 16..1024 --duration 30s\n\
        gopherstore-cli bench --count 100000 --seed 7 -w json",
    note = "The latency of an operation is the time from the write call for its batch until the last byte\n\
        of its response is read. A connection sends --depth requests at once, and the next ones after\n\
        all responses. At most 16 KiB of requests are unanswered, or one longer request. Percentiles\n\
        are exact to 3 digits. Latencies in json and csv are in microseconds.\n\
        \n\
        Without --rate a connection sends nothing while it waits, so a pause of the node shows in few\n\
        operations. With --rate each operation has a due time, and its latency counts from that time.\n\
        Late operations are sent together, up to --depth. The figures then include the time that the\n\
        system takes to wake a sleeping thread, often 50 to 200 us. 'unsent' counts operations that\n\
        were due but not sent before the end.\n\
        \n\
        With the same seed and options, each connection sends the same operations in the same order;\n\
        the order between connections varies. Zipf keys have the exponent 0.99, and bench:0000000000\n\
        is the most frequent key. 'missed' counts GETs of keys without a value.\n\
        \n\
        If there are GETs, every key gets a value before the measurement. GETs go to the named node;\n\
        SETs, preparation and cleanup go to the leader. If these are two nodes, each connection is two\n\
        connections, and a batch sends its SETs first.\n\
        \n\
        All keys begin with --prefix. If a key has a value already, the command does nothing, unless\n\
        with --overwrite. At the end it removes all keys, unless with --keep, also after Ctrl-C,\n\
        SIGTERM, SIGHUP and SIGQUIT; a second signal ends it at once. The key bench:running marks a\n\
        run, so that the next run detects keys of a killed one; --overwrite removes them. Runs at the\n\
        same time need different prefixes.\n\
        \n\
        The first error, such as a lost connection or a loading node, ends the run. The results up to\n\
        then are printed, and the exit code is that of the error. It is 6 if the time was too short to\n\
        measure anything. With --rate, 'per s' is never above the rate.\n\
        For options such as --addr see gopherstore-cli --help."
)]
pub(crate) struct Bench {
    /// number of connections, each with its own thread; by default 8
    #[argh(
        option,
        from_str_fn(connections),
        arg_name = "N",
        default = "CONNECTIONS_DEFAULT"
    )]
    connections: u64,
    /// requests in flight on each connection; by default 1
    #[argh(option, from_str_fn(depth), arg_name = "N", default = "1")]
    depth: u64,
    /// bytes of a value, or a range such as 16..1024; by default 64
    #[argh(
        option,
        from_str_fn(arguments::parsed),
        arg_name = "BYTES",
        default = "Sizes { min: 64, max: 64 }"
    )]
    value_size: Sizes,
    /// number of keys; by default 10000
    #[argh(option, from_str_fn(keys), arg_name = "N", default = "KEYS_DEFAULT")]
    keys: u32,
    /// draw keys from a Zipf distribution: few keys often, most keys rarely
    #[argh(switch)]
    zipf: bool,
    /// percentage of GETs; the others are SETs; by default 90
    #[argh(
        option,
        from_str_fn(percent),
        arg_name = "PERCENT",
        default = "GET_PERCENT_DEFAULT"
    )]
    get: u8,
    /// time of the measurement; by default 10s
    #[argh(option, from_str_fn(crate::timeout), arg_name = "TIME")]
    duration: Option<Duration>,
    /// number of operations, instead of a time
    #[argh(option, from_str_fn(count), arg_name = "N")]
    count: Option<u64>,
    /// operations a second of all connections together; by default each sends after its responses
    #[argh(option, from_str_fn(rate), arg_name = "N")]
    rate: Option<NonZeroU64>,
    /// time to run before the measurement begins
    #[argh(
        option,
        from_str_fn(crate::timeout),
        arg_name = "TIME",
        default = "Duration::ZERO"
    )]
    warm_up: Duration,
    /// repeat the operations of the run that printed this seed; by default random
    #[argh(option, from_str_fn(seed), arg_name = "N")]
    seed: Option<u64>,
    /// prefix of all keys; by default bench:
    #[argh(option, from_str_fn(arguments::parsed), arg_name = "TEXT")]
    prefix: Option<Prefix>,
    /// overwrite and remove keys that already have values
    #[argh(switch)]
    overwrite: bool,
    /// do not remove the keys at the end
    #[argh(switch)]
    keep: bool,
    /// form of the results: table, json or csv; by default table
    #[argh(
        option,
        short = 'w',
        from_str_fn(form),
        arg_name = "FORM",
        default = "Form::Table"
    )]
    write_out: Form,
}

fn form(encoded: &str) -> Result<Form, String> {
    let forms = [
        ("table", Form::Table),
        ("json", Form::Json),
        ("csv", Form::Csv),
    ];
    arguments::one_of(encoded, &forms)
}

fn seed(encoded: &str) -> Result<u64, String> {
    whole(encoded, 0, u64::MAX)
}

fn connections(encoded: &str) -> Result<u64, String> {
    whole(encoded, 1, CONNECTIONS_MAX)
}

fn depth(encoded: &str) -> Result<u64, String> {
    whole(encoded, 1, DEPTH_MAX)
}

fn keys(encoded: &str) -> Result<u32, String> {
    whole(encoded, 1, u32::MAX)
}

fn percent(encoded: &str) -> Result<u8, String> {
    whole(encoded, 0, 100)
}

fn count(encoded: &str) -> Result<u64, String> {
    whole(encoded, 1, u64::MAX / 2)
}

fn rate(encoded: &str) -> Result<NonZeroU64, String> {
    let rate = whole(encoded, 1, RATE_MAX)?;
    NonZeroU64::new(rate).ok_or_else(|| "nothing is never done".to_owned())
}

/// Parameters of a run.
#[derive(Clone, Debug)]
struct Plan {
    workload: Workload,
    prefix: Prefix,
    connections: u64,
    depth: u64,
    rate: Option<NonZeroU64>,
    warm_up: Duration,
    end: End,
    overwrite: bool,
    keep: bool,
}

impl Plan {
    fn of(command: &Bench) -> Result<Plan, Failure> {
        let end = match (command.count, command.duration) {
            (Some(_), Some(_)) => {
                let message = "--count together with --duration; leave one of them out";
                return Err(crate::mistake(message));
            }
            (Some(count), None) => End::Count(count),
            (None, duration) => End::Duration(duration.unwrap_or(DURATION_DEFAULT)),
        };
        let in_flight = command.connections * command.depth * u64::from(command.value_size.max);
        if in_flight > IN_FLIGHT_MAX {
            return Err(crate::mistake(&format!(
                "{in_flight} bytes of values in flight, limit {IN_FLIGHT_MAX}; ask for fewer --connections, less \
                 --depth or a smaller --value-size"
            )));
        }
        // Short, so that it can be typed; some readers of JSON change numbers above 2^53.
        let drawn = || RandomState::new().hash_one(0) >> 32;
        // The default is one.
        let prefix = match &command.prefix {
            Some(prefix) => prefix.clone(),
            None => "bench:"
                .parse()
                .map_err(|error: String| crate::mistake(&error))?,
        };
        Ok(Plan {
            workload: Workload {
                keys: command.keys,
                sizes: command.value_size,
                get_percent: command.get,
                is_zipf: command.zipf,
                seed: command.seed.unwrap_or_else(drawn),
            },
            prefix,
            connections: command.connections,
            depth: command.depth,
            rate: command.rate,
            warm_up: command.warm_up,
            end,
            overwrite: command.overwrite,
            keep: command.keep,
        })
    }
}

/// Progress display on a terminal.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn new(context: &Context) -> Progress {
        let bar = context.progress(Some(0), "{msg} [{wide_bar}] {percent:>3}%");
        Progress { bar }
    }

    /// Shows that `done` of `len` steps are done.
    fn show(&self, what: &str, done: u64, len: u64) {
        self.bar.set_length(len);
        self.bar.set_message(what.to_owned());
        self.bar.set_position(done.min(len));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Runs the command: prepares, measures, prints, cleans up.
pub(crate) fn run(command: &Bench, context: &Context) -> Result<Outcome, Failure> {
    let plan = Plan::of(command)?;
    let target = Target::find(&plan, context)?;
    // Up to here there is nothing to clean up, and a signal ends the program at once.
    let stop = Stop::on_signals()?;
    let outcome = run_at(target, command.write_out, &stop, context);
    stop.end(outcome)
}

fn run_at(
    mut target: Target<'_>,
    form: Form,
    stop: &Stop,
    context: &Context,
) -> Result<(), Failure> {
    let progress = Progress::new(context);
    let Some(claim) = target.claim(stop, &progress)? else {
        drop(progress);
        return print(form, &target, &run::nothing()?, stop);
    };
    let measured = target
        .load(stop, &progress)
        .and_then(|()| run::measure(&target, stop, &progress));
    drop(progress);
    let (printed, failure) = match measured {
        Ok((measured, None)) if measured.is_empty() && !stop.is_set() => {
            let failure = Failure::new(
                Outcome::Timeout,
                "ended before anything was measured; give it more time with --duration",
            );
            (print(form, &target, &measured, stop), Some(failure))
        }
        Ok((measured, failure)) => (print(form, &target, &measured, stop), failure),
        Err(failure) => (Ok(()), Some(failure)),
    };
    let progress = Progress::new(context);
    let removed = if target.plan.keep {
        Ok(())
    } else {
        target.remove(claim, &progress)
    };
    drop(progress);
    match (failure, removed) {
        (Some(failure), Err(left)) => Err(Failure::new(
            failure.outcome,
            format!("{}; {}", failure.message, left.message),
        )),
        (Some(failure), Ok(())) | (None, Err(failure)) => Err(failure),
        (None, Ok(())) => printed,
    }
}

fn print(form: Form, target: &Target<'_>, measured: &Measured, stop: &Stop) -> Result<(), Failure> {
    let text = results::shown(form, &target.conditions(), measured, stop.is_set());
    write_out(text.as_bytes()).map(|_| ())
}
