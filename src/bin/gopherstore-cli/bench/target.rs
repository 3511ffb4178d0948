//! The measured nodes and the keys of the run. No other keys are written, and none remains.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use gopherstore::{
    Client,
    client::{Error, Pipeline, Response},
    wire::Opcode,
};

use crate::{
    context::Context,
    quote,
    report::{self, Failure, Outcome},
    stop::Stop,
};

use super::{Conditions, Plan, Progress, workload::Stream};

/// Keys in one pipeline of preparation or cleanup.
const BATCH_COUNT: u32 = 1_000;
/// Most bytes of values in such a pipeline, unless it has only one.
const BATCH_BYTES: u32 = 1 << 20;
/// Interval of checks whether a follower has the keys.
const POLL: Duration = Duration::from_millis(10);

/// The nodes of a run.
pub(super) struct Target<'a> {
    pub(super) plan: &'a Plan,
    context: &'a Context,
    /// The named node.
    addr: String,
    leader: String,
    /// A client of the leader, for preparation and cleanup.
    client: Client,
}

/// The keys of this run.
#[derive(Debug)]
#[must_use]
pub(super) struct Claim {
    /// Their number, with those that an earlier run left.
    keys: u32,
}

impl<'a> Target<'a> {
    /// Asks the node for the leader.
    pub(super) fn find(plan: &'a Plan, context: &'a Context) -> Result<Target<'a>, Failure> {
        let addr = context.addr()?;
        let mut client = context.client_of(&addr);
        let status = client
            .status()
            .map_err(|error| report::failure(&error, Opcode::Status, context.node.as_deref()))?;
        let mut leader = addr.clone();
        if field(&status, "role") == Some("follower") {
            // An address has a colon; an unknown one is a word without.
            let named = field(&status, "leader").filter(|addr| addr.contains(':'));
            match named {
                Some(named) if context.follow_redirects => leader = named.to_owned(),
                named => {
                    let error = Error::NotLeader {
                        leader: named.map(str::to_owned),
                    };
                    return Err(report::failure(&error, Opcode::Status, None));
                }
            }
            client = context.client_of(&leader);
        }
        Ok(Target {
            plan,
            context,
            addr,
            leader,
            client,
        })
    }

    /// A connection to the named node, and one to the leader if that is another node.
    pub(super) fn connect(&self) -> Result<(Client, Option<Client>), Failure> {
        let open = |addr: &str| {
            let mut client = self.context.client_of(addr);
            client.ping().map_err(|error| match &error {
                Error::Connect { source, .. } if source.raw_os_error() == Some(libc::EMFILE) => {
                    Failure::new(
                        Outcome::NoConnection,
                        format!("{error}; ask for fewer --connections, or raise ulimit -n"),
                    )
                }
                error => self.failure(error),
            })?;
            Ok(client)
        };
        let writes = (self.addr != self.leader).then(|| open(&self.leader));
        Ok((open(&self.addr)?, writes.transpose()?))
    }

    /// The text of an error.
    pub(super) fn failure(&self, error: &Error) -> Failure {
        report::failure(error, Opcode::Status, self.context.node.as_deref())
    }

    pub(super) fn conditions(&self) -> Conditions {
        let plan = self.plan;
        Conditions {
            addr: self.addr.clone(),
            leader: self.leader.clone(),
            seed: plan.workload.seed,
            connections: plan.connections,
            depth: plan.depth,
            value_bytes: plan.workload.sizes.to_string(),
            keys: plan.workload.keys,
            distribution: if plan.workload.is_zipf {
                "zipf"
            } else {
                "uniform"
            },
            get_percent: plan.workload.get_percent,
            rate: plan.rate.map(std::num::NonZeroU64::get),
        }
    }

    /// Checks that no key has a value already, and sets the marker. `None` if a signal came first.
    pub(super) fn claim(
        &mut self,
        stop: &Stop,
        progress: &Progress,
    ) -> Result<Option<Claim>, Failure> {
        let plan = self.plan;
        let marker = plan.prefix.marker();
        let found = self.client.get(marker.as_bytes());
        let mut keys = plan.workload.keys;
        if let Some(value) = found.map_err(|error| self.failure(&error))? {
            let left = str::from_utf8(&value).ok().and_then(|text| {
                let count = text.strip_suffix(" keys")?;
                count.parse::<u32>().ok()
            });
            if !plan.overwrite {
                return Err(taken(&format!(
                    "{marker} says {}, so a run of bench goes on there or has left its keys",
                    quote::quoted(&value)
                )));
            }
            keys = keys.max(left.unwrap_or(0));
        }
        if !plan.overwrite {
            let mut taken_key = None;
            self.sweep(
                0..keys,
                |pipeline, key, _| {
                    pipeline.get(key);
                },
                |key, response| {
                    if response != Response::NotFound {
                        taken_key.get_or_insert(key);
                    }
                    taken_key.is_none()
                },
                |done, len| progress.show("looking for keys", done, len),
                stop,
            )?;
            if let Some(number) = taken_key {
                let mut key = Vec::new();
                plan.prefix.key(number, &mut key);
                return Err(taken(&format!("{} has a value", quote::quoted(&key))));
            }
        }
        if stop.is_set() {
            return Ok(None);
        }
        let set = self
            .client
            .set(marker.as_bytes(), format!("{keys} keys").as_bytes());
        if let Err(error) = set {
            // The marker may have been set, and would stop the next run.
            let _ = self.client.del(marker.as_bytes());
            return Err(self.failure(&error));
        }
        Ok(Some(Claim { keys }))
    }

    /// Gives every key a value if the run has GETs, and waits until the named node has them.
    pub(super) fn load(&mut self, stop: &Stop, progress: &Progress) -> Result<(), Failure> {
        let workload = self.plan.workload;
        if workload.get_percent == 0 {
            return Ok(());
        }
        let pool = workload.pool();
        let mut operations = workload.operations(Stream::Load);
        self.sweep(
            0..workload.keys,
            |pipeline, key, _| {
                pipeline.set(key, &pool[operations.value()]);
            },
            |_, _| true,
            |done, len| progress.show("loading", done, len),
            stop,
        )?;
        if self.addr == self.leader {
            return Ok(());
        }
        // Entries arrive in order, so the last key comes after all others.
        let mut last = Vec::new();
        self.plan.prefix.key(workload.keys - 1, &mut last);
        let mut follower = self.context.client_of(&self.addr);
        let begin = Instant::now();
        while !stop.is_set() {
            let found = follower.get(&last).map_err(|error| self.failure(&error))?;
            if found.is_some() {
                break;
            }
            if begin.elapsed() > self.context.timeout {
                return Err(Failure::new(
                    Outcome::Timeout,
                    format!(
                        "{} has not got the keys from its leader {} within {:?}; see its status, or allow more with \
                         --timeout",
                        self.addr, self.leader, self.context.timeout
                    ),
                ));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Removes the keys, and then the marker.
    pub(super) fn remove(&mut self, claim: Claim, progress: &Progress) -> Result<(), Failure> {
        let marker = self.plan.prefix.marker();
        let removed = self
            .sweep(
                0..claim.keys,
                |pipeline, key, _| {
                    pipeline.del(key);
                },
                |_, _| true,
                |done, len| progress.show("removing", done, len),
                &Stop::default(),
            )
            .and_then(|()| {
                let removed = self.client.del(marker.as_bytes());
                removed.map_err(|error| self.failure(&error)).map(drop)
            });
        removed.map_err(|failure| {
            Failure::new(
                failure.outcome,
                format!(
                    "its keys could not be removed ({}); bench with --overwrite does it later",
                    failure.message
                ),
            )
        })
    }

    /// Sends a request for each key of a range, in pipelines, until all have responses, `judge` returns false, or the
    /// run is stopped.
    fn sweep(
        &mut self,
        keys: Range<u32>,
        mut ask: impl FnMut(&mut Pipeline<'_>, &[u8], u32),
        mut judge: impl FnMut(u32, Response) -> bool,
        show: impl Fn(u64, u64),
        stop: &Stop,
    ) -> Result<(), Failure> {
        let plan = self.plan;
        let fitting = BATCH_BYTES / plan.workload.sizes.max.max(1);
        let batch_count = fitting.clamp(1, BATCH_COUNT);
        let mut key = Vec::new();
        let mut next = keys.start;
        let mut goes_on = true;
        while next < keys.end && goes_on && !stop.is_set() {
            show(next.into(), keys.end.into());
            let end = next.saturating_add(batch_count).min(keys.end);
            let mut pipeline = self.client.pipeline();
            for number in next..end {
                plan.prefix.key(number, &mut key);
                ask(&mut pipeline, &key, number);
            }
            let responses = pipeline.run();
            let responses = responses.map_err(|error| self.failure(&error.error))?;
            for (number, response) in (next..end).zip(responses) {
                let response = response.map_err(|error| self.failure(&error))?;
                goes_on &= judge(number, response);
            }
            next = end;
        }
        Ok(())
    }
}

fn taken(why: &str) -> Failure {
    Failure::new(
        Outcome::Usage,
        format!(
            "{why}; nothing was changed: name other keys with --prefix, or have these overwritten and removed with \
             --overwrite"
        ),
    )
}

/// A value of a node's status.
fn field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    let mut pairs = status.lines().filter_map(|line| line.split_once(": "));
    pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
}
