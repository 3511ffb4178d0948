//! The data directory that a node is given: which one it refuses, and that it does so before it says that it is ready.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::durable::{Durable, command, log};
use crate::node::wait_for;
use crate::tools;

/// The end of a node that ends at its start: its exit code, standard output, and log.
fn end_of(mut command: Command, dir: &Path) -> (Option<i32>, String, String) {
    let _ = fs::remove_file(dir.join("err"));
    let mut child = command
        .stderr(fs::File::create(dir.join("err")).unwrap())
        .spawn()
        .unwrap();
    let status = wait_for("the end of the node", || {
        let status = child.try_wait().unwrap();
        let is_ready = log(dir).contains("leading from index");
        if is_ready {
            let _ = child.kill();
        }
        status
    });
    let out = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
    (status.code(), out, log(dir))
}

/// The node is refused its directory `data` before it is ready, and says why in one line.
fn refused(dir: &Path, why: &str) {
    let (code, out, said) = end_of(command(dir, "always"), dir);
    assert_eq!((code, &*out), (Some(1), ""), "{said}");
    assert!(said.contains(why), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// Makes a pipe.
fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// A directory with the data of a node that has stopped.
fn stopped() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let node = Durable::start(dir.path(), "always");
    node.client().set(b"k", b"v").unwrap();
    assert!(node.stop().success());
    dir
}

/// Opening a pipe waits for its other end, which is never there.
#[test]
fn a_pipe_in_the_place_of_a_file_is_an_error_and_no_wait() {
    for name in [
        "lock",
        "identity",
        "log-00000001-0000000000000001",
        "log-00000001-0000000000000002",
        "snapshot-00000001-0000000000000001",
    ] {
        let dir = stopped();
        let path = dir.path().join("data").join(name);
        let _ = fs::remove_file(&path);
        pipe(&path);
        refused(dir.path(), "it is no regular file");
    }
    let dir = tempfile::tempdir().unwrap();
    pipe(&dir.path().join("data"));
    refused(dir.path(), "Not a directory");
}

/// The segment is sparse. It has more bytes than the machine has memory.
#[test]
fn a_segment_that_is_too_long_is_an_error_that_names_it() {
    let dir = stopped();
    let segment = "data/log-00000001-0000000000000002";
    let file = fs::File::create_new(dir.path().join(segment)).unwrap();
    file.set_len(300 << 30).unwrap();
    let (code, out, said) = end_of(command(dir.path(), "always"), dir.path());
    assert_eq!((code, &*out), (Some(1), ""), "{said}");
    let why = format!("{segment}, offset 0: the header of the segment is damaged");
    assert!(said.contains(&why), "{said}");
}

#[test]
fn a_damaged_identity_is_not_taken_for_another_nodes() {
    let dir = stopped();
    let identity = dir.path().join("data/identity");
    let file = fs::File::options().write(true).open(&identity).unwrap();
    // The last newline is missing, then zeros follow.
    for len in [71, 10 << 30] {
        file.set_len(len).unwrap();
        refused(
            dir.path(),
            "data/identity, offset 71: the file is damaged; restore that file",
        );
        assert!(!log(dir.path()).contains('\0'));
    }
}

#[test]
fn a_directory_that_the_node_cannot_write_to_is_refused_before_it_is_ready() {
    let dir = stopped();
    let data = dir.path().join("data");
    let server = dir.path().join("server");
    fs::copy(env!("CARGO_BIN_EXE_gopherstore-server"), &server).unwrap();
    let mut command = if rustix::process::geteuid().is_root() {
        // Root may write anywhere.
        if !tools::are_there(&["setpriv"]) {
            return;
        }
        let user = 3_000_000 + std::process::id();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for path in fs::read_dir(&data).unwrap() {
            std::os::unix::fs::chown(path.unwrap().path(), Some(user), None).unwrap();
        }
        std::os::unix::fs::chown(&data, Some(user), None).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args([&format!("--reuid={user}"), "--clear-groups"])
            .arg(&server);
        command
    } else {
        Command::new(&server)
    };
    command
        .args(["--addr", "127.0.0.1:0", "--data-dir", "data"])
        .current_dir(dir.path())
        .stdout(Stdio::piped());
    fs::set_permissions(&data, fs::Permissions::from_mode(0o500)).unwrap();
    let (code, out, said) = end_of(command, dir.path());
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    if said.contains("setpriv: ") {
        tools::skip("a process of another user needs root");
        return;
    }
    assert_eq!((code, &*out), (Some(1), ""), "{said}");
    assert_eq!(
        said,
        "gopherstore-server: data: cannot write to the data directory: Permission denied (os error 13); the user of \
         this process needs to own the directory, its mode 700, and its files\n"
    );
    assert!(!said.contains("recovered"), "{said}");
}

#[test]
fn a_directory_with_the_files_of_others_is_refused_and_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // Some file systems have this one in their root.
    fs::create_dir_all(data.join("lost+found")).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(data.join("letter.txt"), "").unwrap();
    refused(
        dir.path(),
        "it has the file \"letter.txt\", which no node has written; name an empty directory, or one that does not \
         exist",
    );
    assert_eq!(fs::read_dir(&data).unwrap().count(), 2);
    fs::remove_file(data.join("letter.txt")).unwrap();
    let node = Durable::start(dir.path(), "always");
    assert!(node.stop().success());
    // It has an owner now.
    fs::write(data.join("letter.txt"), "").unwrap();
    let node = Durable::start(dir.path(), "always");
    assert!(node.stop().success());
    assert!(!log(dir.path()).contains("WARN"), "{}", log(dir.path()));
}

#[test]
fn a_directory_that_other_users_can_use_is_a_warning() {
    let dir = stopped();
    let warning = "other users can use this data directory (mode 750): chmod 700 ";
    assert!(!log(dir.path()).contains("WARN"), "{}", log(dir.path()));
    fs::set_permissions(dir.path().join("data"), fs::Permissions::from_mode(0o750)).unwrap();
    let node = Durable::start(dir.path(), "always");
    assert!(node.stop().success());
    assert!(log(dir.path()).contains(warning), "{}", log(dir.path()));
}

#[test]
fn a_directory_without_a_parent_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let with = |data: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gopherstore-server"));
        command
            .args(["--addr", "127.0.0.1:0", "--data-dir", data])
            .current_dir(dir.path())
            .stdout(Stdio::piped());
        end_of(command, dir.path())
    };
    let (code, out, said) = with("a/b/c");
    assert_eq!((code, &*out), (Some(1), ""), "{said}");
    assert_eq!(
        said,
        "gopherstore-server: a/b/c: cannot open the data directory: the directory a/b does not exist; create it first\n"
    );
    let (code, out, said) = with("");
    assert_eq!((code, &*out), (Some(2), ""), "{said}");
    assert!(
        said.contains("--data-dir") && said.contains("an empty path"),
        "{said}"
    );
}

/// The system does not let the node start the threads without which it never leads.
#[test]
fn a_single_node_is_ready_only_once_it_serves() {
    if !tools::are_there(&["prlimit", "setpriv"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = dir.path().join("server");
    fs::copy(env!("CARGO_BIN_EXE_gopherstore-server"), &server).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // A user of this test alone, since all processes of a user count.
    let user = format!("--reuid={}", 4_000_000 + std::process::id());
    let mut ended_late = 0;
    for limit in 4..40 {
        let mut command = Command::new("prlimit");
        command
            .arg(format!("--nproc={limit}"))
            .args(["setpriv", &user, "--clear-groups"])
            .arg(&server)
            .args(["--addr", "127.0.0.1:0", "--data-dir", "data"])
            .current_dir(dir.path())
            .stdout(Stdio::piped());
        let (code, out, said) = end_of(command, dir.path());
        if said.contains("setpriv: ") {
            tools::skip("a process of another user needs root");
            return;
        }
        if said.contains("leading from index") {
            break;
        }
        assert_eq!((code, &*out), (Some(1), ""), "{limit}: {said}");
        ended_late += usize::from(said.contains("a single node on "));
    }
    assert!(ended_late > 3, "{ended_late}");
}
