//! Notifications of a service manager and its journal: `sd_notify` without libsystemd, and lines with a priority.
//!
//! This is own code: the maintained crates either link libsystemd or do not support abstract sockets, at which
//! containers listen.
//!
//! # Source
//!
//! sd_notify(3), sd-daemon(3), and `$JOURNAL_STREAM` in systemd.exec(5).

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use log::Level;

const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// Longest time to send to a manager that does not read. The message is lost then.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// A notification of a service manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// The service has started.
    Ready,
    /// Its status, in one line for people.
    Status(&'a str),
    /// It has begun to end.
    Stopping,
}

/// The service manager that started this process.
#[derive(Debug)]
pub struct Manager {
    addr: SocketAddr,
    socket: UnixDatagram,
}

impl Manager {
    /// The manager of `$NOTIFY_SOCKET`; `None` if that is not set.
    ///
    /// # Errors
    ///
    /// When that is no address of a socket, or no socket can be made.
    pub fn from_env() -> io::Result<Option<Manager>> {
        match env::var_os(NOTIFY_SOCKET) {
            Some(name) if !name.is_empty() => Manager::at(&name).map(Some),
            _ => Ok(None),
        }
    }

    /// A name that begins with `@` is an abstract socket's.
    fn at(name: &OsStr) -> io::Result<Manager> {
        let addr = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(Path::new(name))?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Manager { addr, socket })
    }

    /// Sends it these notifications in one datagram.
    ///
    /// # Errors
    ///
    /// When it does not listen, or does not read for a second (`WouldBlock`).
    pub fn tell(&self, notices: &[Notice<'_>]) -> io::Result<()> {
        let datagram = datagram(notices);
        loop {
            match self.socket.send_to_addr(datagram.as_bytes(), &self.addr) {
                // On a socket with a timeout, every signal interrupts the call (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }
}

fn datagram(notices: &[Notice<'_>]) -> String {
    let lines = notices.iter().map(|notice| match notice {
        Notice::Ready => "READY=1\n".to_owned(),
        Notice::Status(text) => format!("STATUS={}\n", text.replace(['\n', '\r'], " ")),
        Notice::Stopping => "STOPPING=1\n".to_owned(),
    });
    lines.collect()
}

/// Whether the journal reads this stream: it then has the time, the program and the process of each line by itself, and
/// takes a priority from [`prefixed`].
#[must_use]
pub fn is_journal(stream: impl AsFd) -> bool {
    let Some((device, inode)) = env::var(JOURNAL_STREAM)
        .ok()
        .and_then(|names| numbers(&names))
    else {
        return false;
    };
    // Children inherit the variable, and may have other streams.
    let file = stream.as_fd().try_clone_to_owned().map(File::from);
    file.and_then(|file| file.metadata())
        .is_ok_and(|file| (file.dev(), file.ino()) == (device, inode))
}

fn numbers(names: &str) -> Option<(u64, u64)> {
    let (device, inode) = names.split_once(':')?;
    Some((device.parse().ok()?, inode.parse().ok()?))
}

/// A message as the journal reads it: the priority before each of its lines (sd-daemon(3)), and a line feed at its end.
#[must_use]
pub fn prefixed(level: Level, message: &str) -> String {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let lines = message.lines().map(|line| format!("<{priority}>{line}\n"));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_has_a_line_for_each_notice() {
        let notices = [
            Notice::Ready,
            Notice::Status("two\nlines"),
            Notice::Stopping,
        ];
        assert_eq!(
            datagram(&notices),
            "READY=1\nSTATUS=two lines\nSTOPPING=1\n"
        );
    }

    #[test]
    fn each_line_of_a_message_has_its_priority() {
        assert_eq!(prefixed(Level::Error, "a\nb\n"), "<3>a\n<3>b\n");
        assert_eq!(prefixed(Level::Info, "a"), "<6>a\n");
    }

    #[test]
    fn sockets_have_paths_or_abstract_names() {
        assert!(Manager::at(OsStr::new("@gopherstore")).is_ok());
        assert!(Manager::at(OsStr::new("/run/notify")).is_ok());
        assert!(Manager::at(OsStr::new("vsock:2:1234")).is_err());
        assert!(Manager::at(OsStr::new(&format!("/{}", "x".repeat(200)))).is_err());
    }
}
