//! The files of a data directory, behind a trait: the log and snapshots are written and recovered by the same code on a
//! real directory and on the simulator's disk.
//!
//! A name or a byte is durable only once it was synced: the bytes of a file by [`File::sync`], and its name, the
//! absence of its old name, or its removal by [`Files::sync_directory`].

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, OFlags, fallocate, fstatvfs};
use rustix::io::Errno;

/// A directory of files. Names have no folders.
pub trait Files: fmt::Debug + Send + Sync {
    /// The names of all files, in no order.
    ///
    /// # Errors
    ///
    /// Those of the system, as of every function here.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Creates a file, which does not exist, to read and to write.
    ///
    /// # Errors
    ///
    /// Where it exists, among others.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;

    /// Opens a file to read and, with `writes`, to write.
    ///
    /// # Errors
    ///
    /// Where it does not exist, among others.
    fn open(&self, name: &str, writes: bool) -> io::Result<Box<dyn File>>;

    /// Gives a file another name. A file that has it is replaced.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names of all files durable.
    ///
    /// # Errors
    ///
    /// Those of the system. Afterwards it is unknown which names are durable.
    fn sync_directory(&self) -> io::Result<()>;

    /// The directory, for messages.
    fn path(&self) -> &Path;
}

/// An open file.
pub trait File: fmt::Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn length(&self) -> io::Result<u64>;

    /// Reads at an offset, up to the buffer's length or the file's end. Returns the number of bytes.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes all bytes at an offset. Behind the end of the file, it grows.
    ///
    /// # Errors
    ///
    /// Those of the system. A part of the bytes may be written then.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Asks the system to set space aside for the bytes up to `len`, so that writing them cannot fail for want of
    /// space. The length of the file stays. Returns false where the file system cannot do that.
    ///
    /// # Errors
    ///
    /// Those of the system, among them that there is too little space. A part of it may be set aside then, until the
    /// file is removed.
    fn allocate(&self, len: u64) -> io::Result<bool>;

    /// Makes the bytes and the length of the file durable (`fdatasync`).
    ///
    /// # Errors
    ///
    /// Those of the system. Afterwards it is unknown which bytes are durable, and a second call that succeeds says
    /// nothing of them.
    fn sync(&self) -> io::Result<()>;
}

/// Appends `len` bytes of a file from `offset` on to `bytes`; fewer where the file ends before.
///
/// # Errors
///
/// Those of the system, and where it has no memory for them.
pub(super) fn read_more(
    file: &dyn File,
    offset: u64,
    len: u64,
    bytes: &mut Vec<u8>,
) -> io::Result<()> {
    let (from, len) = (bytes.len(), usize::try_from(len).unwrap_or(usize::MAX));
    bytes.try_reserve_exact(len)?;
    bytes.resize(from + len, 0);
    let read = file.read_at(offset, &mut bytes[from..])?;
    bytes.truncate(from + read);
    Ok(())
}

/// A directory of the file system.
///
/// Once a sync of it has failed, nothing is written to its files any more: the system reports that to one of the
/// threads that use the directory, and it is unknown which names of all of them are durable.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    handle: fs::File,
    has_failed: Arc<AtomicBool>,
}

impl Directory {
    /// Opens a directory. Creates it where it does not exist, for its owner alone (mode 0700), and makes its name
    /// durable, also where it is there and empty: the process that created it may have ended before.
    ///
    /// # Errors
    ///
    /// Where its parent does not exist, where it is no directory, or where the system refuses it.
    pub fn open(path: &Path) -> io::Result<Directory> {
        let is_new = match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let parent = path.parent().unwrap_or(path).display();
                let text = format!("the directory {parent} does not exist; create it first");
                return Err(io::Error::new(ErrorKind::NotFound, text));
            }
            Err(error) => return Err(error),
        };
        let directory = Directory::existing(path)?;
        if is_new || directory.list()?.is_empty() {
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                Some(_) | None => Path::new("."),
            };
            let synced = fs::File::open(parent).and_then(|parent| parent.sync_all());
            let error = synced.err().map(|error| (error.kind(), error));
            match error {
                // Another one made it, in a place that is not this user's or that has nothing to sync.
                Some((ErrorKind::PermissionDenied | ErrorKind::InvalidInput, _)) if !is_new => {}
                Some((_, error)) => return Err(error),
                None => {}
            }
        }
        Ok(directory)
    }

    /// Opens a directory that exists.
    ///
    /// # Errors
    ///
    /// Where it does not exist, where it is no directory, or where the system refuses it.
    pub fn existing(path: &Path) -> io::Result<Directory> {
        // Without the flag, opening a pipe waits for a writer.
        let flags = OFlags::DIRECTORY.bits().cast_signed();
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)?;
        Ok(Directory {
            path: path.to_owned(),
            handle,
            has_failed: Arc::default(),
        })
    }

    fn opened(&self, file: fs::File) -> Box<dyn File> {
        let has_failed = Arc::clone(&self.has_failed);
        Box::new(RealFile(file, has_failed))
    }
}

impl Files for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that is no UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(self.path.join(name))?;
        Ok(self.opened(file))
    }

    fn open(&self, name: &str, writes: bool) -> io::Result<Box<dyn File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(writes);
        let file = open_regular(&mut options, &self.path.join(name))?;
        Ok(self.opened(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        let synced = self.handle.sync_all();
        if synced.is_err() {
            self.has_failed.store(true, Ordering::SeqCst);
        }
        synced
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens a regular file to read, and to write if the options say so. Never waits.
///
/// # Errors
///
/// Where it is no regular file, such as a pipe or a directory, or where the system refuses it.
pub(crate) fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<fs::File> {
    // Without the flag, opening a pipe waits for its other end.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = options.custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        let text = "it is no regular file, so no node has written it; remove it";
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    Ok(file)
}

/// A file, and whether a sync of its directory has failed.
#[derive(Debug)]
struct RealFile(fs::File, Arc<AtomicBool>);

impl RealFile {
    /// Looked at behind a call, so that what is acknowledged was written before a sync of the directory failed.
    fn check(&self) -> io::Result<()> {
        if self.1.load(Ordering::SeqCst) {
            return Err(io::Error::other("a sync of the directory has failed"));
        }
        Ok(())
    }
}

impl File for RealFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            let at = offset + u64::try_from(read).unwrap_or(u64::MAX);
            match self.0.read_at(&mut buffer[read..], at) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)?;
        self.check()
    }

    fn allocate(&self, len: u64) -> io::Result<bool> {
        // The free space is compared first: a call that fails uses all of it for a moment.
        let has = self.0.metadata()?.blocks().saturating_mul(512);
        // Some file systems do not say.
        if let Ok(disk) = fstatvfs(&self.0)
            && disk.f_blocks > 0
            && disk.f_bavail.saturating_mul(disk.f_frsize) < len.saturating_sub(has)
        {
            return Err(Errno::NOSPC.into());
        }
        loop {
            match fallocate(&self.0, FallocateFlags::KEEP_SIZE, 0, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()?;
        self.check()
    }
}
