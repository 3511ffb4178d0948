//! Records, digests and log room of requests, prepared before any partition is locked.

use arrayvec::ArrayVec;

use super::Engine;
use super::command::{self, Command};
use super::digest::Digest;
use super::entry::Entry;
use super::execute::{Held, NotDone};
use crate::log::backlog::Records;
use crate::log::{Reservation, Sequencer};
use crate::wire::run::RUN_MAX;
use crate::wire::{RequestFrame, Run};

/// Records, digests and log room of a run.
pub(super) struct Prepared<'e> {
    sequencer: &'e Sequencer,
    records: Records,
    reservation: Reservation<'e>,
    /// Effects are computed under the locks. `records` begins empty then, and takes them one by one.
    pub(super) is_computed: bool,
}

/// The digest of the entry that a request makes, if the request is its own effect.
#[inline]
pub(super) fn digest(frame: &RequestFrame<'_>) -> Digest {
    match command::of(frame.opcode()) {
        Command::Set => Digest::of_frame(frame.bytes()),
        Command::Get | Command::Del | Command::Ttl | Command::Computed(_) | Command::None => {
            Digest::EMPTY
        }
    }
}

impl<'e> Prepared<'e> {
    /// For records of at most `len` bytes.
    fn new(
        sequencer: &'e Sequencer,
        (records, len): (Records, usize),
        held: &mut Held<'e>,
    ) -> Result<Prepared<'e>, NotDone> {
        Ok(Prepared {
            sequencer,
            is_computed: records.bytes().len() != len,
            records,
            reservation: held.reserve(sequencer, Records::cost(len))?,
        })
    }

    /// For the writes of a run.
    #[inline]
    pub(super) fn of_run(
        engine: &'e Engine,
        run: &Run<'_>,
        held: &mut Held<'e>,
    ) -> Result<Option<Prepared<'e>>, NotDone> {
        let Some(sequencer) = engine.sequencer.as_ref().filter(|_| run.writes() != 0) else {
            return Ok(None);
        };
        engine.check_space(sequencer, || {
            run.frames()
                .all(|frame| command::only_removes(frame.opcode()))
        })?;
        let records = records_of(
            run.has_computed(),
            || run.copy_of(run.writes()),
            || run.frames().map(|frame| effect_len_max(&frame)).sum(),
        );
        Prepared::new(sequencer, records, held).map(Some)
    }

    /// The digests of the entries that the requests of a run make, as [`digest`] has them.
    pub(super) fn digests(run: &Run<'_>) -> ArrayVec<Digest, RUN_MAX> {
        run.frames().map(|frame| digest(&frame)).collect()
    }

    /// For one write.
    #[inline(always)]
    pub(super) fn of_one(
        engine: &'e Engine,
        frame: &RequestFrame<'_>,
        held: &mut Held<'e>,
    ) -> Result<Option<Prepared<'e>>, NotDone> {
        match &engine.sequencer {
            None => Ok(None),
            Some(sequencer) => {
                engine.check_space(sequencer, || command::only_removes(frame.opcode()))?;
                Prepared::of_logged(sequencer, frame, held).map(Some)
            }
        }
    }

    fn of_logged(
        sequencer: &'e Sequencer,
        frame: &RequestFrame<'_>,
        held: &mut Held<'e>,
    ) -> Result<Prepared<'e>, NotDone> {
        let is_computed = matches!(command::of(frame.opcode()), Command::Computed(_));
        let records = records_of(
            is_computed,
            || frame.bytes().to_vec(),
            || effect_len_max(frame),
        );
        Prepared::new(sequencer, records, held)
    }

    /// For a SET whose entry is already made.
    #[inline]
    pub(super) fn of_entry(
        engine: &'e Engine,
        entry: &Entry,
        held: &mut Held<'e>,
    ) -> Result<Option<Prepared<'e>>, NotDone> {
        let Some(sequencer) = &engine.sequencer else {
            return Ok(None);
        };
        engine.check_space(sequencer, || false)?;
        let records = (Records::Entry(entry.clone()), entry.frame().len());
        Prepared::new(sequencer, records, held).map(Some)
    }

    /// The records, where they are computed: the effects of writes are added behind them.
    pub(super) fn effects(&mut self) -> &mut Vec<u8> {
        match &mut self.records {
            Records::Frames(frames) => frames,
            Records::Entry(_) => unreachable!("an entry is its own effect"),
        }
    }

    /// Has an entry as the one record.
    pub(super) fn set_entry(&mut self, entry: Entry) {
        self.records = Records::Entry(entry);
    }

    /// Appends the records of the requests whose bits are set in `made`. Returns the last index.
    pub(super) fn append(self, epoch: u64, run: &Run<'_>, made: u16, change: Digest) -> u64 {
        let records = if self.is_computed || made == run.writes() {
            self.records
        } else {
            Records::Frames(run.copy_of(made))
        };
        self.sequencer
            .append(epoch, records, made.count_ones(), change, self.reservation)
    }

    /// The room, where nothing is appended.
    pub(super) fn into_reservation(self) -> Reservation<'e> {
        self.reservation
    }

    /// Appends the one record.
    pub(super) fn append_one(self, epoch: u64, change: Digest) -> u64 {
        self.sequencer
            .append(epoch, self.records, 1, change, self.reservation)
    }
}

/// Records for the log, and their length in bytes at most: the requests, or memory for effects that are computed.
fn records_of(
    is_computed: bool,
    requests: impl FnOnce() -> Vec<u8>,
    effects_len_max: impl FnOnce() -> usize,
) -> (Records, usize) {
    if is_computed {
        let len = effects_len_max();
        (Records::Frames(Vec::with_capacity(len)), len)
    } else {
        let frames = requests();
        let len = frames.len();
        (Records::Frames(frames), len)
    }
}

/// Longest frame in bytes of the effect of a request; 0 of one that only reads.
fn effect_len_max(frame: &RequestFrame<'_>) -> usize {
    let spec = frame.opcode().spec();
    if spec.writes {
        frame.bytes().len() + spec.effect_extra.unwrap_or(0)
    } else {
        0
    }
}
