//! A disk in memory that loses what was not synced.
//!
//! A file has the bytes that a reader sees, and those that are durable. A crash leaves of each sector that was written
//! since the last sync the old bytes or the new ones, and of each name that was changed since the last sync of the
//! directory the old state or the new one, as a seed says. Every call can be made to fail. A sync that fails drops what
//! it was to write, as Linux does: it is still seen, and a later sync does not write it.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::files::{File, Files};

/// Bytes of a sector, which is written as a whole or not at all.
pub(crate) const SECTOR: usize = 512;

/// A disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The files that programs see, by name.
    names: BTreeMap<String, usize>,
    /// The files that a crash leaves, by name.
    durable_names: BTreeMap<String, usize>,
    contents: Vec<Content>,
    /// Calls that change something, so far.
    calls: u64,
    /// The call that fails, and how; it and all calls behind it where `fails_on`.
    failure: Option<(u64, ErrorKind)>,
    fails_on: bool,
    /// Bytes that all files may have.
    space: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that a sync which failed has dropped: they are seen, and no sync writes them before they are written
    /// again.
    dropped: BTreeSet<usize>,
    /// Bytes from the start of the file that have their space.
    allocated: u64,
}

impl Content {
    fn takes(&self) -> u64 {
        self.allocated.max(u64::try_from(self.seen.len()).unwrap())
    }
}

impl State {
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.failure {
            Some((at, kind)) if self.calls == at || (self.fails_on && self.calls > at) => {
                Err(io::Error::from(kind))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Bytes that the files take.
    fn used(&self) -> u64 {
        let files = self.names.values();
        files.map(|file| self.contents[*file].takes()).sum()
    }

    /// Has a file take space up to `len`.
    fn allocate(&mut self, file: usize, len: u64) -> io::Result<()> {
        let more = len.saturating_sub(self.contents[file].takes());
        if self
            .space
            .is_some_and(|space| more > 0 && self.used() + more > space)
        {
            return Err(io::Error::from(ErrorKind::StorageFull));
        }
        Ok(())
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        let found = self.names.get(name).copied();
        found.ok_or_else(|| io::Error::from(ErrorKind::NotFound))
    }
}

impl Disk {
    /// Calls that have changed something.
    pub(crate) fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    /// Has the call with this number fail, counted from 1, and with `fails_on` all calls behind it.
    pub(crate) fn fail(&self, call: u64, kind: ErrorKind, fails_on: bool) {
        let mut state = self.0.lock();
        state.failure = Some((call, kind));
        state.fails_on = fails_on;
    }

    /// Limits the bytes that all files take together; `None` for no limit.
    pub(crate) fn limit(&self, space: Option<u64>) {
        self.0.lock().space = space;
    }

    /// Bytes that the files take.
    pub(crate) fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// Cuts a file, also what is durable of it.
    pub(crate) fn truncate(&self, name: &str, len: usize) {
        let mut state = self.0.lock();
        let file = state.find(name).unwrap();
        let content = &mut state.contents[file];
        content.seen.truncate(len);
        content.durable.truncate(len);
    }

    /// Flips the bits of `mask` in a byte of a file, also of what is durable.
    pub(crate) fn flip(&self, name: &str, at: usize, mask: u8) {
        let mut state = self.0.lock();
        let file = state.find(name).unwrap();
        let content = &mut state.contents[file];
        for bytes in [&mut content.seen, &mut content.durable] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= mask;
            }
        }
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.0.lock();
        state.contents[state.find(name).unwrap()].seen.clone()
    }

    /// The disk after the process was killed: everything that was written is there.
    pub(crate) fn after_kill(&self) -> Disk {
        let state = self.0.lock();
        let copy = State {
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            contents: state.contents.clone(),
            space: state.space,
            ..State::default()
        };
        Disk(Arc::new(Mutex::new(copy)))
    }

    /// The disk after the power has failed: what was not synced is there or not, by sectors and names, as `seed` says.
    pub(crate) fn after_power_failure(&self, seed: u64) -> Disk {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let state = self.0.lock();
        // Now and then everything is kept, or nothing.
        let keeps = [0.0, 0.5, 0.9, 1.0][random.random_range(0..4)];
        let mut contents = state.contents.clone();
        for content in &mut contents {
            let mut left = content.durable.clone();
            let is_longer = content.seen.len() > left.len() && random.random_bool(keeps);
            if is_longer || content.seen.len() < left.len() && random.random_bool(keeps) {
                left.resize(content.seen.len(), 0);
            }
            for (at, sector) in left.chunks_mut(SECTOR).enumerate() {
                let seen = &content.seen[(at * SECTOR).min(content.seen.len())..];
                let len = sector.len().min(seen.len());
                if sector[..len] != seen[..len] && random.random_bool(keeps) {
                    sector[..len].copy_from_slice(&seen[..len]);
                }
            }
            *content = Content {
                seen: left.clone(),
                durable: left,
                ..Content::default()
            };
        }
        let mut names = state.durable_names.clone();
        let changed = state.names.iter().chain(&state.durable_names);
        let changed: Vec<&String> = changed.map(|(name, _)| name).collect();
        for name in changed {
            if state.names.get(name) != state.durable_names.get(name) && random.random_bool(keeps) {
                match state.names.get(name) {
                    Some(file) => drop(names.insert(name.clone(), *file)),
                    None => drop(names.remove(name)),
                }
            }
        }
        let copy = State {
            durable_names: names.clone(),
            names,
            contents,
            space: state.space,
            ..State::default()
        };
        Disk(Arc::new(Mutex::new(copy)))
    }
}

impl Files for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut state = self.0.lock();
        state.call()?;
        if state.names.contains_key(name) {
            return Err(io::Error::from(ErrorKind::AlreadyExists));
        }
        state.contents.push(Content::default());
        let file = state.contents.len() - 1;
        state.names.insert(name.to_owned(), file);
        Ok(Box::new(Open(self.clone(), file)))
    }

    fn open(&self, name: &str, _: bool) -> io::Result<Box<dyn File>> {
        let file = self.0.lock().find(name)?;
        Ok(Box::new(Open(self.clone(), file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.call()?;
        let file = state.find(from)?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.call()?;
        state.find(name)?;
        state.names.remove(name);
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        state.call()?;
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn path(&self) -> &Path {
        Path::new("disk")
    }
}

#[derive(Debug)]
struct Open(Disk, usize);

impl File for Open {
    fn length(&self) -> io::Result<u64> {
        let state = self.0.0.lock();
        Ok(u64::try_from(state.contents[self.1].seen.len()).unwrap())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.0.0.lock();
        let bytes = &state.contents[self.1].seen;
        let bytes = &bytes[usize::try_from(offset).unwrap().min(bytes.len())..];
        let len = bytes.len().min(buffer.len());
        buffer[..len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.0.lock();
        state.call()?;
        let start = usize::try_from(offset).unwrap();
        let end = start + bytes.len();
        state.allocate(self.1, u64::try_from(end).unwrap())?;
        let len = state.contents[self.1].seen.len();
        let seen = &mut state.contents[self.1].seen;
        seen.resize(len.max(end), 0);
        seen[start..end].copy_from_slice(bytes);
        let dropped = &mut state.contents[self.1].dropped;
        dropped.retain(|at| end <= at * SECTOR || (at + 1) * SECTOR <= start);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        let mut state = self.0.0.lock();
        state.call()?;
        state.allocate(self.1, len)?;
        let content = &mut state.contents[self.1];
        content.allocated = content.allocated.max(len);
        Ok(true)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.0.lock();
        let result = state.call();
        let content = &mut state.contents[self.1];
        content.durable.resize(content.seen.len(), 0);
        let sectors = content.durable.chunks_mut(SECTOR);
        for (at, (old, new)) in sectors.zip(content.seen.chunks(SECTOR)).enumerate() {
            if result.is_ok() && !content.dropped.contains(&at) {
                old.copy_from_slice(new);
            } else if old != new {
                content.dropped.insert(at);
            }
        }
        result
    }
}
