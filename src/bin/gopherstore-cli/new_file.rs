//! A file that gets its name when it is complete and on the disk.

use std::{
    env,
    fs::{self, File, Metadata, OpenOptions, Permissions},
    hash::{BuildHasher, RandomState},
    io::{self, ErrorKind, Write},
    mem,
    os::fd::AsFd,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use parking_lot::Mutex;
use signal_hook::{consts::SIGXFSZ, flag};

use crate::{
    quote,
    report::{Failure, Outcome},
    stop,
};

/// Mode of a new file: only its owner may read all data.
const MODE_NEW: u32 = 0o600;

/// Most random names that are tried.
const NAMES_MAX: u32 = 16;

/// An unfinished file. Until [`finish`](NewFile::finish) it has a random name in the folder of its target. Dropping it
/// removes it, as does a signal that ends the program.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    target: PathBuf,
    replaces: bool,
    /// The random name; `None` when it has the target's. A signal that ends the program keeps the lock.
    part: Arc<Mutex<Option<PathBuf>>>,
}

impl NewFile {
    /// Creates the file in the folder of `target`, which does not exist, or which it `replaces`.
    pub(crate) fn create(target: PathBuf, replaces: bool) -> io::Result<NewFile> {
        let part = Arc::new(Mutex::new(None::<PathBuf>));
        stop::before_end({
            let part = Arc::clone(&part);
            move || {
                let part = part.lock();
                if let Some(path) = &*part {
                    let _ = fs::remove_file(path);
                }
                // The program ends, so no file is created.
                mem::forget(part);
            }
        })?;
        // At a limit of the process (ulimit -f) a write fails instead of ending the program, which then removes the
        // file.
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let mut named = part.lock();
        let mut tries = 0;
        let file = loop {
            // It does not contain the target's name, which may have the greatest length already.
            let name = format!(
                "gopherstore-dump.{:016x}.part",
                RandomState::new().hash_one(0)
            );
            let path = target.with_file_name(name);
            let mut options = OpenOptions::new();
            match options
                .write(true)
                .create_new(true)
                .mode(MODE_NEW)
                .open(&path)
            {
                Ok(file) => {
                    *named = Some(path);
                    break file;
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists && tries < NAMES_MAX => {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        };
        drop(named);
        Ok(NewFile {
            file,
            target,
            replaces,
            part,
        })
    }

    /// The file to write to.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// Writes the file to the disk and gives it the target's name. Fails with `AlreadyExists` if the target exists by
    /// now and is not to be replaced.
    pub(crate) fn finish(self) -> io::Result<()> {
        if self.replaces
            && let Ok(old) = fs::metadata(&self.target)
        {
            take_attributes(&self.file, &old)?;
        }
        self.file.sync_all()?;
        let mut part = self.part.lock();
        let Some(path) = &*part else {
            return Ok(());
        };
        if self.replaces {
            fs::rename(path, &self.target)?;
        } else {
            rename_to_new(path, &self.target)?;
        }
        *part = None;
        drop(part);
        if let Err(error) = sync_folder(&self.target) {
            let target = quote::one_line(&self.target.display().to_string());
            let _ = writeln!(
                io::stderr(),
                "gopherstore-cli: {target} is whole, but its folder could not be written to the disk: {error}; a loss \
                 of power may undo its name"
            );
        }
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = self.part.lock().take() {
            let _ = fs::remove_file(path);
        }
    }
}

/// Renames a file unless the new name is taken.
fn rename_to_new(path: &Path, target: &Path) -> io::Result<()> {
    match fs::hard_link(path, target) {
        Ok(()) => {
            // The file has its name; the other name does no harm.
            let _ = fs::remove_file(path);
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(error),
        // The file system has no hard links. A file that is created between the two calls is replaced.
        Err(_) if fs::symlink_metadata(target).is_err() => fs::rename(path, target),
        Err(_) => Err(ErrorKind::AlreadyExists.into()),
    }
}

/// Gives a file the owner, group and mode of the file that it replaces. If the system does not allow that owner or
/// group, the group and others get no rights.
fn take_attributes(file: &File, old: &Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    let is_same = (own.uid(), own.gid()) == (old.uid(), old.gid())
        || fchown(file, Some(old.uid()), Some(old.gid())).is_ok();
    let kept = if is_same { 0o777 } else { 0o700 };
    file.set_permissions(Permissions::from_mode(old.mode() & kept))
}

/// Writes a folder to the disk, so that a file's name survives a loss of power.
fn sync_folder(target: &Path) -> io::Result<()> {
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => env::current_dir()?,
    };
    File::open(folder)?.sync_all()
}

/// Target of a dump.
#[derive(Debug)]
pub(crate) enum Output {
    /// Standard output.
    Standard(File),
    /// A device or a named pipe, which is written directly.
    Special { file: File, name: String },
    /// A file.
    New { file: NewFile, name: String },
}

impl Output {
    /// Opens `path`, or standard output without one. An existing file is replaced only with `replaces`.
    pub(crate) fn open(path: Option<&Path>, replaces: bool) -> Result<Output, Failure> {
        let Some(path) = path else {
            // Without the buffer of the standard library, whose last bytes are written when errors are no longer
            // checked.
            let file = io::stdout().as_fd().try_clone_to_owned().map(File::from);
            return file
                .map(Output::Standard)
                .map_err(|error| unwritable("standard output", &error));
        };
        let name = path.display().to_string();
        let refused = |why: &str| {
            let message = format!("cannot write to {name}: {why}");
            Err(Failure::new(Outcome::LocalInput, message))
        };
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                return refused("it is a folder; name a file in it");
            }
            Ok(metadata) if !metadata.is_file() => {
                return match OpenOptions::new().write(true).open(path) {
                    Ok(file) => Ok(Output::Special { file, name }),
                    Err(error) => Err(unwritable(&name, &error)),
                };
            }
            Ok(_) if !replaces => return Err(exists(&name)),
            Ok(_) => {}
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(unwritable(&name, &error));
            }
            Err(_) if fs::symlink_metadata(path).is_ok() => {
                return refused("it is a symbolic link to nothing; name another file");
            }
            Err(_) if path.as_os_str().as_encoded_bytes().ends_with(b"/") => {
                return refused("there is no such folder; name a file");
            }
            Err(_) => {}
        }
        // A symbolic link is kept.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match NewFile::create(target, replaces) {
            Ok(file) => Ok(Output::New { file, name }),
            Err(error) => Err(unwritable(&name, &error)),
        }
    }

    /// The file to write to.
    pub(crate) const fn file(&self) -> &File {
        match self {
            Output::Standard(file) | Output::Special { file, .. } => file,
            Output::New { file, .. } => file.file(),
        }
    }

    /// Its name for messages.
    pub(crate) fn name(&self) -> &str {
        match self {
            Output::Standard(_) => "standard output",
            Output::Special { name, .. } | Output::New { name, .. } => name,
        }
    }

    /// Description of an unfinished file, for messages.
    pub(crate) fn unfinished(&self) -> String {
        match self {
            Output::Standard(_) | Output::Special { .. } => {
                format!("what {} was given is not a whole copy", self.name())
            }
            Output::New { file, name } if file.replaces => format!("{name} is as it was"),
            Output::New { .. } => "no file was made".to_owned(),
        }
    }

    /// Reports that everything is written.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        let Output::New { file, name } = self else {
            return Ok(());
        };
        file.finish().map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => exists(&name),
            _ => unwritable(&name, &error),
        })
    }
}

fn exists(name: &str) -> Failure {
    let message =
        format!("{name} exists, and is as it was; replace it with --force, or name another file");
    Failure::new(Outcome::LocalInput, message)
}

/// The failure of a write.
pub(crate) fn unwritable(name: &str, error: &io::Error) -> Failure {
    let next = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "make room there, or name another file"
        }
        _ => "name another file",
    };
    let message = format!("cannot write to {name}: {error}; {next}");
    Failure::new(Outcome::LocalInput, message)
}
