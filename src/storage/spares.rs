//! Files that become the next segments. The disk has space for all bytes of such a file before it is one, so that
//! writing to a segment does not run into a full disk.

use std::io::{self, ErrorKind};

use super::error::StorageError;
use super::files::{File, Files};
use super::writer::Salts;

/// Files that are kept ready, and those that were segments and are kept to be used again.
const SPARES_MAX: usize = 2;

/// Bytes of zeros that are written at a time, where the file system cannot set space aside.
const FILL_BYTES: u64 = 4 << 20;

/// First letters of their names.
const PREFIX: &str = "spare-";

/// The spare files of a directory.
pub(super) struct Spares<'f> {
    files: &'f dyn Files,
    salts: Salts,
    segment_bytes: u64,
    /// Files with all of their space.
    ready: Vec<Spare>,
    /// Names of files without their space.
    unready: Vec<String>,
    /// The file whose space is being set aside.
    making: Option<Spare>,
}

/// A file that is to be a segment.
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) file: Box<dyn File>,
    /// Its length.
    pub(super) len: u64,
    /// Bytes that have their space.
    pub(super) space: u64,
    /// Its space, or its name, is not durable yet.
    is_new: bool,
    /// The file system cannot set space aside.
    is_filled: bool,
}

impl<'f> Spares<'f> {
    /// Returns an empty list. Removes the spare files of an earlier process: a crash during a rename may have left such
    /// a name to a file that is also a segment.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub(super) fn new(
        files: &'f dyn Files,
        salts: Salts,
        segment_bytes: u64,
    ) -> Result<Spares<'f>, StorageError> {
        let names = files.list();
        let names = names.map_err(|error| StorageError::system(files, "", "read", error))?;
        for name in names.iter().filter(|name| name.starts_with(PREFIX)) {
            let removed = files.remove(name);
            removed.map_err(|error| StorageError::system(files, name, "remove", error))?;
        }
        Ok(Spares {
            files,
            salts,
            segment_bytes,
            ready: Vec::new(),
            unready: Vec::new(),
            making: None,
        })
    }

    /// Returns whether a file with its space is ready.
    pub(super) const fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Returns whether a file is being prepared.
    pub(super) const fn is_making(&self) -> bool {
        self.making.is_some()
    }

    /// Takes a step of the preparation of a file. Returns whether one is ready.
    ///
    /// # Errors
    ///
    /// [`is_full`](StorageError::is_full) where the disk has no space for it. Its file is removed then.
    pub(super) fn prepare(&mut self) -> Result<bool, StorageError> {
        if self.is_ready() {
            return Ok(true);
        }
        let mut spare = match self.making.take() {
            Some(spare) => spare,
            None => self.begin()?,
        };
        match spare.grow(self.segment_bytes) {
            Ok(false) => {
                self.making = Some(spare);
                return Ok(false);
            }
            Ok(true) => {}
            Err(error) => {
                if self.files.remove(&spare.name).is_err() {
                    self.unready.push(spare.name.clone());
                }
                return Err(self.refused(&spare.name, "write", error));
            }
        }
        let failed = |error| StorageError::system(self.files, &spare.name, "sync", error);
        if spare.is_new {
            spare.file.sync().map_err(failed)?;
            self.files.sync_directory().map_err(failed)?;
        }
        self.ready.push(spare);
        Ok(true)
    }

    /// Opens a file without its space, or creates one.
    fn begin(&mut self) -> Result<Spare, StorageError> {
        let files = self.files;
        if let Some(name) = self.unready.pop() {
            let file = files.open(&name, true);
            let file = file.map_err(|error| StorageError::system(files, &name, "open", error))?;
            let len = file.length();
            let len = len.map_err(|error| StorageError::system(files, &name, "read", error))?;
            return Ok(Spare::new(name, file, len, false));
        }
        let name = format!("{PREFIX}{:016x}", (self.salts)());
        match files.create(&name) {
            Ok(file) => Ok(Spare::new(name, file, 0, true)),
            Err(error) => Err(self.refused(&name, "create", error)),
        }
    }

    /// Takes a file that has space for at least `needed` bytes.
    ///
    /// # Errors
    ///
    /// Those of [`prepare`](Self::prepare).
    pub(super) fn take(&mut self, needed: u64) -> Result<Spare, StorageError> {
        while !self.prepare()? {}
        let Some(mut spare) = self.ready.pop() else {
            unreachable!("one is ready")
        };
        loop {
            match spare.grow(needed) {
                Ok(true) => return Ok(spare),
                Ok(false) => {}
                Err(error) => {
                    let refused = self.refused(&spare.name, "write", error);
                    self.ready.push(spare);
                    return Err(refused);
                }
            }
        }
    }

    /// Keeps the file of a segment that is no longer needed, to use it again. Returns the name that it is to get;
    /// `None` where enough files are kept.
    pub(super) fn name_of_old(&self, segment: &str) -> Option<String> {
        let count = self.ready.len() + self.unready.len() + usize::from(self.is_making());
        (count < SPARES_MAX).then(|| segment.replacen("log-", PREFIX, 1))
    }

    /// Notes that a file that is kept has this name now.
    pub(super) fn add(&mut self, name: String) {
        self.unready.push(name);
    }

    /// The error where the system has refused a file its space.
    fn refused(&self, name: &str, operation: &'static str, error: io::Error) -> StorageError {
        if is_no_space(&error) {
            StorageError::full(self.files, error)
        } else {
            StorageError::system(self.files, name, operation, error)
        }
    }
}

/// Whether the system has no space for a file.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

impl Spare {
    fn new(name: String, file: Box<dyn File>, len: u64, is_new: bool) -> Spare {
        Spare {
            name,
            file,
            len,
            space: 0,
            is_new,
            is_filled: false,
        }
    }

    /// Takes a step towards space for this many bytes. Returns whether it is there.
    fn grow(&mut self, bytes: u64) -> io::Result<bool> {
        if bytes <= self.space {
            return Ok(true);
        }
        if !self.is_filled {
            if self.file.allocate(bytes)? {
                self.space = bytes;
                return Ok(true);
            }
            // The bytes that it has have their space.
            self.is_filled = true;
            self.space = self.len;
        }
        let to = bytes.min(self.len + FILL_BYTES).max(self.len);
        self.is_new |= to > self.len;
        fill(&*self.file, self.len, to)?;
        self.len = to;
        self.space = to;
        Ok(bytes <= to)
    }
}

/// Writes zeros.
pub(super) fn fill(file: &dyn File, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).map_or(ZEROS.len(), |len| len.min(ZEROS.len()));
        file.write_at(at, &ZEROS[..len])?;
        at += u64::try_from(len).unwrap_or(u64::MAX);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use crate::storage::error::Problem;
    use crate::storage::files::Files as _;
    use crate::storage::simulated::Disk;
    use crate::storage::tests::{SEGMENT, append, open, read};

    /// Writes groups until the disk has no space for the next segment. Returns how many.
    fn fill(writer: &mut crate::storage::writer::LogWriter<'_>) -> u64 {
        let before = writer.written_to();
        loop {
            let at = writer.written_to();
            match append(writer, 1, &[7; 500]) {
                Ok(()) => {}
                Err(error) => {
                    assert!(matches!(error.problem, Problem::Full(_)), "{error}");
                    assert_eq!(writer.written_to(), at, "nothing was changed");
                    return at - before;
                }
            }
        }
    }

    #[test]
    fn a_full_disk_is_found_before_the_segment_is_full_and_the_log_goes_on_with_room() {
        for seed in [0, 1] {
            let disk = Disk::default();
            let (mut writer, _) = open(&disk, seed).unwrap();
            append(&mut writer, 1, &[7; 500]).unwrap();
            // Nothing but the segment that is written fits.
            disk.limit(Some(SEGMENT + 100));
            let names = disk.list().unwrap();
            let error = writer.prepare().unwrap_err();
            assert!(
                error.is_full() && error.to_string().contains("the disk is full"),
                "{error}"
            );
            assert_eq!(
                disk.list().unwrap(),
                names,
                "the unfinished file is removed"
            );
            let (left, segment) = writer.reserve();
            assert!(left > segment / 2, "{left} of {segment}");
            let groups = fill(&mut writer);
            assert!(groups > 3, "{groups}");
            writer.sync().unwrap();
            assert_eq!(writer.durable_to(), groups + 1);
            // Still full.
            assert!(writer.prepare().unwrap_err().is_full());
            assert_eq!(fill(&mut writer), 0);
            disk.limit(Some(10 * SEGMENT));
            assert!(writer.prepare().unwrap() && writer.is_prepared());
            for _ in 0..20 {
                append(&mut writer, 1, &[8; 500]).unwrap();
            }
            writer.sync().unwrap();
            let (_, groups_read) = read(&disk.after_power_failure(seed)).unwrap();
            assert_eq!(groups_read.len() as u64, groups + 21);
        }
    }

    #[test]
    fn a_segment_that_is_removed_is_the_space_for_the_next_one() {
        let disk = Disk::default();
        disk.limit(Some(3 * SEGMENT));
        let (mut writer, _) = open(&disk, 1).unwrap();
        let written = fill(&mut writer);
        writer.sync().unwrap();
        assert!(writer.prepare().unwrap_err().is_full());
        writer.forget(written - 1).unwrap();
        assert!(writer.prepare().unwrap());
        append(&mut writer, 1, &[8; 500]).unwrap();
        assert!(disk.used() <= 3 * SEGMENT);
    }

    /// A disk that is full when a process starts.
    #[test]
    fn a_log_whose_end_is_torn_waits_for_space_for_its_next_segment() {
        let disk = Disk::default();
        let (mut writer, _) = open(&disk, 1).unwrap();
        for _ in 0..3 {
            append(&mut writer, 1, &[7; 500]).unwrap();
        }
        drop(writer);
        let [name] = &disk.list().unwrap()[..] else {
            panic!("more than one file")
        };
        let left = disk.after_kill();
        left.truncate(name, 512 + 2 * 592 + 200);
        left.limit(Some(SEGMENT + 100));
        let (mut writer, groups) = open(&left, 2).unwrap();
        assert_eq!((groups.len(), writer.reserve().0), (2, 0));
        assert_eq!(fill(&mut writer), 0);
        left.limit(None);
        append(&mut writer, 1, b"goes on").unwrap();
        writer.sync().unwrap();
        let (log, groups) = read(&left.after_power_failure(3)).unwrap();
        assert_eq!((groups.len(), log.unwrap().segments.len()), (3, 2));
    }
}
