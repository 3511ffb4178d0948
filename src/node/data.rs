//! How a node carries out SET, GET and DEL, for clients and on behalf of its leader.

use super::*;

impl Node {
    /// Carries out a SET, and returns the entry that it replaced.
    ///
    /// # Errors
    ///
    /// The answer to the client, where this node takes no writes.
    pub fn set(&self, entry: Entry) -> Result<Option<Entry>, Reply> {
        match self.refuses_writes() {
            Some(reply) => Err(reply),
            None => Ok(self.put(entry)),
        }
    }

    /// Carries out the requests of `run` in their order. The answers to the first ones are added to `out`, frame by
    /// frame, and how many these are is returned, with the answer to the next one where its value is long; what comes
    /// after that is not carried out.
    pub fn carry_out(&self, run: &Run<'_>, out: &mut Vec<u8>) -> (usize, Option<Reply>) {
        if run.len() > 1
            && let Ok(carried_out) = self.carry_out_together(run, out)
        {
            return carried_out;
        }
        for (at, frame) in run.frames().enumerate() {
            let reply = match frame.request() {
                Request::Get { key } => self.read_to(key, out),
                _ => Some(self.write(&frame)),
            };
            match reply {
                None => {}
                Some(reply) if reply.value().len() > COPIED_BYTES => return (at, Some(reply)),
                Some(reply) => answer(out, reply.status(), reply.value()),
            }
        }
        (run.len(), None)
    }

    /// As [`carry_out`](Self::carry_out), where all of it can be done together and nothing is refused. Apart from it,
    /// since what this needs of the stack a connection that asks for one thing at a time is not to pay for.
    #[inline(never)]
    fn carry_out_together(
        &self,
        run: &Run<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Reply>), Contended> {
        let (writes, before) = (run.writes() != 0, out.len());
        let allows = if writes {
            &self.takes_writes
        } else {
            &self.serves_reads
        };
        if !allows.load(Ordering::Acquire) {
            return Err(Contended);
        }
        let (mut count, mut next) = (0, None);
        self.make(run, |frame, old| {
            let (status, value) = match (frame.request(), old) {
                (Request::Get { .. }, Some(entry)) if entry.value().len() > COPIED_BYTES => {
                    next = Some(entry.clone());
                    return false;
                }
                (Request::Get { .. }, Some(entry)) => (Status::Ok, entry.value()),
                (Request::Set { .. }, _) | (_, Some(_)) => (Status::Ok, &[][..]),
                (_, None) => (Status::NotFound, &[][..]),
            };
            answer(out, status, value);
            count += 1;
            true
        })?;
        // Asked again, since the store may have been given up meanwhile; but not by a leader that takes writes, which
        // keeps what it has for good.
        if !writes && !self.serves_reads.load(Ordering::Acquire) {
            out.truncate(before);
            return Err(Contended);
        }
        Ok((count, next.map(Reply::Value)))
    }

    pub(super) fn write(&self, frame: &RequestFrame<'_>) -> Reply {
        match self.refuses_writes() {
            Some(reply) => reply,
            None if self.make_one(frame) => Reply::Done,
            None => Reply::NotFound,
        }
    }

    /// Adds the answer to a GET to `out`, or returns it where its value is long or nothing is read here.
    fn read_to(&self, key: &[u8], out: &mut Vec<u8>) -> Option<Reply> {
        let serves = || self.serves_reads.load(Ordering::Acquire);
        if !serves() {
            return Some(self.refuses_reads());
        }
        let before = out.len();
        let long = self.store.look(key, |entry| match entry {
            Some(entry) if entry.value().len() > COPIED_BYTES => Some(entry.clone()),
            Some(entry) => {
                answer(out, Status::Ok, entry.value());
                None
            }
            None => {
                answer(out, Status::NotFound, b"");
                None
            }
        });
        // Asked again, since the store may have been given up meanwhile.
        if !serves() {
            out.truncate(before);
            return Some(self.refuses_reads());
        }
        long.map(Reply::Value)
    }

    pub(super) fn read(&self, key: &[u8]) -> Reply {
        let serves = || self.serves_reads.load(Ordering::Acquire);
        if !serves() {
            return self.refuses_reads();
        }
        match self.store.get(key) {
            Some(entry) => Reply::Value(entry),
            // Asked again, since the store may have been given up between the first look and this one.
            None if !serves() => self.refuses_reads(),
            None => Reply::NotFound,
        }
    }

    /// Makes writes of the log, on a follower, where they come from the leader and in its order.
    ///
    /// # Errors
    ///
    /// [`Diverged`], where a DEL finds nothing; the others are made all the same.
    pub fn apply_run(&self, run: &Run<'_>) -> Result<(), Diverged> {
        let mut missing = None;
        let mut check = |frame: &RequestFrame<'_>, is_made: bool| {
            if !is_made && missing.is_none() {
                missing = Some(frame.request().key().to_vec());
            }
        };
        let together = |frame: &RequestFrame<'_>, old: Option<&Entry>| {
            check(frame, is_made(frame, old));
            true
        };
        if run.len() == 1 || self.make(run, together).is_err() {
            run.frames()
                .for_each(|frame| check(&frame, self.make_one(&frame)));
        }
        missing.map_or(Ok(()), |key| Err(Diverged { key }))
    }

    /// Carries out a run in the store, and logs what it changes there. `each` is as in [`Store::carry_out`].
    fn make(
        &self,
        run: &Run<'_>,
        mut each: impl FnMut(&RequestFrame<'_>, Option<&Entry>) -> bool,
    ) -> Result<(), Contended> {
        let journal = self.log.as_ref().filter(|_| run.writes() != 0);
        let Some(journal) = journal else {
            let each =
                |(): &mut (), _, frame: &RequestFrame<'_>, old: Option<&Entry>| each(frame, old);
            return self.store.carry_out(run, &mut (), each, |()| {}).map(drop);
        };
        // All that can be done is done before anything is locked.
        let digests: ArrayVec<Digest, RUN_MAX> = run.frames().map(digest).collect();
        let log = run.copy_of(run.writes());
        let cost = Frames::cost(log.len());
        journal.reserve(cost);
        let mut state = (0_u16, Digest::EMPTY, cost);
        let replaced = self.store.carry_out(
            run,
            &mut state,
            |(made, change, _), at, frame, old| {
                if is_made(frame, old) {
                    *made |= 1 << at;
                    let old = old.map(Digest::of).unwrap_or_default();
                    *change = change.changed(old, digests[at]);
                }
                each(frame, old)
            },
            |(made, change, unused)| {
                if *made == 0 {
                    return;
                }
                let all = *made == run.writes();
                let log = if all { log } else { run.copy_of(*made) };
                *unused -= Frames::cost(log.len());
                journal.append(Frames::Run(log), made.count_ones(), *change);
            },
        );
        let (_, _, unused) = state;
        if unused > 0 {
            journal.release(unused);
        }
        replaced.map(drop)
    }

    /// Makes one write, and says whether it did anything.
    fn make_one(&self, frame: &RequestFrame<'_>) -> bool {
        let is_del = matches!(frame.request(), Request::Del { .. });
        if !is_del && frame.bytes().len() > RUN_FRAME_BYTES_MAX {
            // Copied before anything is locked, and the same copy goes to the log.
            self.put(Entry::copy_of(frame));
            return true;
        }
        let mut made = false;
        let Some(journal) = &self.log else {
            self.store.write(frame, |_| made = true);
            return made;
        };
        let new = digest(*frame);
        let log = frame.bytes().to_vec();
        let cost = Frames::cost(log.len());
        journal.reserve(cost);
        self.store.write(frame, |old| {
            made = true;
            let old = old.map(Digest::of).unwrap_or_default();
            journal.append(Frames::Run(log), 1, Digest::EMPTY.changed(old, new));
        });
        if !made {
            journal.release(cost);
        }
        made
    }

    /// Makes one SET, and returns the entry that it replaced.
    fn put(&self, entry: Entry) -> Option<Entry> {
        let Some(journal) = &self.log else {
            return self.store.set(entry);
        };
        let new = Digest::of(&entry);
        journal.reserve(Frames::cost(entry.frame().len()));
        self.store.set_with(entry, |entry, old| {
            let old = old.map(Digest::of).unwrap_or_default();
            let change = Digest::EMPTY.changed(old, new);
            journal.append(Frames::Entry(entry.clone()), 1, change);
        })
    }
}

/// Whether a request changes the data, where its key has this entry: a SET does, and a DEL of what is there.
fn is_made(frame: &RequestFrame<'_>, old: Option<&Entry>) -> bool {
    match frame.request() {
        Request::Set { .. } => true,
        Request::Del { .. } => old.is_some(),
        _ => false,
    }
}

/// What a write makes of the digest, beside what it replaces.
pub(crate) fn digest(frame: RequestFrame<'_>) -> Digest {
    match frame.request() {
        Request::Set { .. } => Digest::of_frame(frame.bytes()),
        _ => Digest::EMPTY,
    }
}
