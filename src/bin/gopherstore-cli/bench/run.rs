//! The measurement: a thread for each connection, with one clock.

use std::{
    io,
    num::NonZeroU64,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use gopherstore::{
    Client,
    client::{Error, Pipeline, Response, Timed},
};

use crate::{
    report::{Failure, Outcome},
    stop::Stop,
};

use super::{
    Measured, Plan, Progress,
    results::{per_second, shown_rate, span},
    schedule::{Action, End, Schedule},
    target::Target,
    workload::{Kind, Operations, Stream},
};

/// Interval of the progress display.
const TICK: Duration = Duration::from_millis(200);
/// Longest sleep of a connection before it checks for a stop.
const NAP_MAX: Duration = Duration::from_millis(50);
/// Open files in addition to the connections.
const FILES_SPARE: u64 = 64;
/// Delay from the start of the first thread to that of the run: a fixed time, and a time for each thread, so that no
/// thread is late.
const START_BASE: Duration = Duration::from_millis(2);
const START_EACH: Duration = Duration::from_micros(100);

/// State shared by all connections.
struct Shared<'a> {
    plan: &'a Plan,
    stop: &'a Stop,
    /// The bytes from which values are taken.
    pool: &'a [u8],
    /// Measured operations with a response.
    done: AtomicU64,
    /// Start of the warm-up.
    start: Instant,
}

/// Runs all connections to their end. Returns their measurements and the first failure.
pub(super) fn measure(
    target: &Target<'_>,
    stop: &Stop,
    progress: &Progress,
) -> Result<(Measured, Option<Failure>), Failure> {
    let plan = target.plan;
    // If the system allows fewer, connecting fails with its message.
    let _ = rlimit::increase_nofile_limit(2 * plan.connections + FILES_SPARE);
    let mut clients = Vec::new();
    for at in 0..plan.connections {
        if stop.is_set() {
            break;
        }
        progress.show("connecting", at, plan.connections);
        clients.push((at, target.connect()?));
    }
    let each = u32::try_from(clients.len()).unwrap_or(u32::MAX);
    let shared = Shared {
        plan,
        stop,
        pool: &plan.workload.pool(),
        done: AtomicU64::new(0),
        start: Instant::now() + START_BASE + START_EACH.saturating_mul(each),
    };
    let mut total = nothing()?;
    let mut failure = None;
    thread::scope(|scope| {
        let (sender, reports) = mpsc::channel();
        for (number, (reads, writes)) in clients {
            let (shared, sender) = (&shared, sender.clone());
            let work = move || {
                let report = Connection::run(shared, number, reads, writes);
                if report.as_ref().map_or(true, |(_, error)| error.is_some()) {
                    shared.stop.fail();
                }
                // The receiver waits until every thread has sent.
                let _ = sender.send(report);
            };
            let name = format!("bench-{number}");
            if let Err(error) = thread::Builder::new().name(name).spawn_scoped(scope, work) {
                shared.stop.fail();
                failure = Some(no_thread(&error));
                break;
            }
        }
        drop(sender);
        loop {
            match reports.recv_timeout(TICK) {
                Ok(Ok((measured, error))) => {
                    total.add(&measured);
                    if let Some(error) = error {
                        failure.get_or_insert_with(|| target.failure(&error));
                    }
                }
                Ok(Err(error)) => {
                    failure.get_or_insert(error);
                }
                Err(RecvTimeoutError::Timeout) => shared.show(progress),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    Ok((total, failure))
}

fn no_thread(error: &io::Error) -> Failure {
    let message = format!("cannot start a thread: {error}; ask for fewer --connections");
    Failure::new(Outcome::LocalInput, message)
}

/// Empty measurements before a run.
pub(super) fn nothing() -> Result<Measured, Failure> {
    Measured::new().map_err(|error| {
        let message = format!("no room to measure: {error}; ask for fewer --connections");
        Failure::new(Outcome::LocalInput, message)
    })
}

impl Shared<'_> {
    fn show(&self, progress: &Progress) {
        let elapsed = self.start.elapsed();
        let Some(elapsed) = elapsed.checked_sub(self.plan.warm_up) else {
            let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            progress.show("warming up", millis(elapsed), millis(self.plan.warm_up));
            return;
        };
        let done = self.done.load(Ordering::Relaxed);
        let rate = self.plan.rate.map(NonZeroU64::get);
        let per_second = per_second(done, span(done, rate, elapsed));
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (at, len) = match self.plan.end {
            End::Count(count) => (done, count),
            End::Duration(end) => (millis(elapsed), millis(end)),
        };
        progress.show(&format!("{}/s", shown_rate(per_second)), at, len);
    }
}

/// A batch of requests to one node.
struct Lane<'a> {
    pipeline: Pipeline<'a>,
    /// Operations in the pipeline: kind and due time of each.
    operations: Vec<(Kind, Option<Instant>)>,
    responses: Vec<Timed>,
}

impl<'a> Lane<'a> {
    fn new(client: &'a mut Client) -> Lane<'a> {
        Lane {
            pipeline: client.pipeline(),
            operations: Vec::new(),
            responses: Vec::new(),
        }
    }

    /// Sends the batch, waits for all responses and records them.
    fn run(&mut self, mut measured: Option<&mut Measured>) -> Result<(), Error> {
        if self.operations.is_empty() {
            return Ok(());
        }
        let sent = Instant::now();
        let result = self.pipeline.run_timed(&mut self.responses);
        let mut refused = None;
        let mut operations = self.operations.drain(..);
        for ((response, at), (kind, due)) in self.responses.drain(..).zip(&mut operations) {
            match (response, &mut measured) {
                (Ok(response), Some(measured)) => {
                    let latency = at.saturating_duration_since(due.unwrap_or(sent));
                    measured.record(kind, latency, response != Response::NotFound);
                }
                (Ok(_), None) => {}
                (Err(error), measured) => {
                    if let Some(measured) = measured {
                        measured.record_error(kind);
                    }
                    refused.get_or_insert(error);
                }
            }
        }
        // The operations without a response.
        if let Some(measured) = measured {
            operations.for_each(|(kind, _)| measured.record_error(kind));
        }
        match (result, refused) {
            (Err(error), _) | (Ok(()), Some(error)) => Err(error),
            (Ok(()), None) => Ok(()),
        }
    }
}

/// One connection, or two if the named node is not the leader.
struct Connection<'a> {
    shared: &'a Shared<'a>,
    number: u64,
    home: Lane<'a>,
    leader: Option<Lane<'a>>,
}

impl Connection<'_> {
    fn run(
        shared: &Shared<'_>,
        number: u64,
        mut reads: Client,
        mut writes: Option<Client>,
    ) -> Result<(Measured, Option<Error>), Failure> {
        let plan = shared.plan;
        let mut measured = nothing()?;
        let mut connection = Connection {
            shared,
            number,
            home: Lane::new(&mut reads),
            leader: writes.as_mut().map(Lane::new),
        };
        if !plan.warm_up.is_zero() {
            let stream = Stream::WarmUp { connection: number };
            let end = End::Duration(plan.warm_up);
            let mut operations = plan.workload.operations(stream);
            if let Err(error) = connection.phase(&mut operations, end, shared.start, None) {
                return Ok((measured, Some(error)));
            }
        }
        let start = shared.start + plan.warm_up;
        let mut operations = plan
            .workload
            .operations(Stream::Measured { connection: number });
        let result = connection.phase(&mut operations, plan.end, start, Some(&mut measured));
        measured.elapsed = start.elapsed();
        Ok((measured, result.err()))
    }

    /// Sends operations from `start` to the end, or until the run is stopped.
    fn phase(
        &mut self,
        operations: &mut Operations,
        end: End,
        start: Instant,
        mut measured: Option<&mut Measured>,
    ) -> Result<(), Error> {
        let plan = self.shared.plan;
        let mut schedule = Schedule::new(self.number, plan.connections, plan.rate, end);
        let mut key = Vec::new();
        while !self.shared.stop.is_set() {
            let now = Instant::now();
            let action = match now.checked_duration_since(start) {
                Some(elapsed) => schedule.next(elapsed, plan.depth),
                None => Action::Wait(Duration::ZERO),
            };
            match action {
                Action::Over => break,
                Action::Wait(until) => {
                    let left = (start + until).saturating_duration_since(now);
                    thread::sleep(left.min(NAP_MAX));
                }
                Action::Send(count) => {
                    for ahead in 0..count {
                        let operation = operations.draw();
                        plan.prefix.key(operation.key, &mut key);
                        let lane = match (operation.kind, &mut self.leader) {
                            (Kind::Set, Some(leader)) => leader,
                            _ => &mut self.home,
                        };
                        match operation.kind {
                            Kind::Get => lane.pipeline.get(&key),
                            Kind::Set => {
                                let value = &self.shared.pool[operation.value];
                                lane.pipeline.set(&key, value)
                            }
                        };
                        let due = schedule.due(ahead).map(|due| start + due);
                        lane.operations.push((operation.kind, due));
                    }
                    schedule.advance(count);
                    if let Some(leader) = &mut self.leader {
                        leader.run(measured.as_deref_mut())?;
                    }
                    self.home.run(measured.as_deref_mut())?;
                    if measured.is_some() {
                        self.shared.done.fetch_add(count, Ordering::Relaxed);
                    }
                }
            }
        }
        if let Some(measured) = measured {
            measured.unsent = schedule.unsent(start.elapsed());
        }
        Ok(())
    }
}
