//! Where a node listens, and what it says of addresses that others cannot reach.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use gopherstore::wire::Request;

use crate::node::Process;
use crate::{answer, frames, pong, tools};

fn check(dir: &Path, text: &str) -> Output {
    let file = dir.join("cluster.toml");
    std::fs::write(&file, text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_gopherstore-server"))
        .args(["--check-config", "--config", "cluster.toml"])
        .current_dir(dir)
        .output()
        .unwrap()
}

/// Exit code, standard output and standard error.
fn outcome(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_list_of_nodes_has_their_addresses_directories_and_roles() {
    let dir = tempfile::tempdir().unwrap();
    let text = "cluster = \"c\"\nleader = \"n1\"\n\
                [[node]]\nname = \"n1\"\naddr = \"127.0.0.1:8000\"\nlisten = \"0.0.0.0:8000\"\n\
                [[node]]\nname = \"n2\"\naddr = \"127.0.0.2:8000\"\n\
                [storage]\ndata_dir = \"the data\"\n";
    let expected = "n1 127.0.0.1:8000 listen=0.0.0.0:8000 data_dir=\"the data/n1\" leader\n\
                    n2 127.0.0.2:8000 data_dir=\"the data/n2\" follower\n";
    let (code, out, err) = outcome(&check(dir.path(), text));
    assert_eq!((code, out.as_str()), (Some(0), expected), "{err}");
}

#[test]
fn a_name_is_listened_at_by_all_of_its_addresses_that_the_machine_has() {
    if !tools::are_there(&["unshare"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // 192.0.2.1 is of TEST-NET-1, which no machine has.
    let hosts = "127.0.0.1 several\n127.0.0.2 several\n::1 several\n192.0.2.1 several\n";
    std::fs::write(dir.path().join("hosts"), hosts).unwrap();
    let config =
        "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"several:0\"\n";
    std::fs::write(dir.path().join("cluster.toml"), config).unwrap();
    // In a mount namespace, so that no one else sees these hosts.
    let mount = "mount --bind hosts /etc/hosts";
    let prefix = ["unshare", "-rm", "sh", "-c"];
    let is_possible = Command::new(prefix[0])
        .args(&prefix[1..])
        .arg(format!("{mount} && getent ahosts several"))
        .current_dir(dir.path())
        .output();
    if !is_possible.is_ok_and(|output| output.status.success()) {
        tools::skip("a mount namespace of its own needs root or user namespaces");
        return;
    }
    let script = format!("{mount} && exec \"$0\" \"$@\"");
    let mut node = Process::spawn_by(
        dir.path(),
        "n1",
        &[
            &prefix[..],
            &[&script, env!("CARGO_BIN_EXE_gopherstore-server")],
        ]
        .concat(),
    );
    assert!(node.wait_until_ready(), "{}", node.log());
    let port = node.addr.port();
    let ips: [IpAddr; 3] = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 0, 0, 2).into(),
        Ipv6Addr::LOCALHOST.into(),
    ];
    let mut count = 0;
    for ip in ips {
        // A machine without IPv6 does not have the last one.
        if TcpListener::bind((ip, 0)).is_err() {
            continue;
        }
        let mut stream = TcpStream::connect((ip, port)).unwrap();
        stream.write_all(&frames(&[Request::Ping])).unwrap();
        assert_eq!(answer(&stream), pong());
        count += 1;
    }
    assert!(count >= 2);
    node.signal("TERM");
    assert_eq!(node.wait().code(), Some(0));
    let log = node.log();
    let listening = log.lines().filter(|line| line.contains("not listening on"));
    assert_eq!(listening.count(), 4 - count, "{log}");
}

#[test]
fn an_address_that_nobody_can_reach_is_refused_and_listened_at_is_what_listen_says() {
    let dir = tempfile::tempdir().unwrap();
    let wildcards = "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"0.0.0.0:8000\"\n\
                     [[node]]\nname = \"n2\"\naddr = \"0.0.0.0:8001\"\n";
    let (code, out, err) = outcome(&check(dir.path(), wildcards));
    assert_eq!((code, &*out), (Some(2), ""), "{err}");
    assert!(
        err.contains("cluster.toml:5: node \"n1\": addr: ") && err.contains("listen = "),
        "{err}"
    );
    let several = wildcards
        .replacen("0.0.0.0:8000\"", "db1:8000\"\nlisten = \"0.0.0.0:8000\"", 1)
        .replacen("0.0.0.0:8001", "127.0.0.1:8001", 1);
    let (code, out, err) = outcome(&check(dir.path(), &several));
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(
        out,
        "n1 db1:8000 listen=0.0.0.0:8000 leader\nn2 127.0.0.1:8001 follower\n"
    );
    assert_eq!(
        err,
        "gopherstore-server: warning: cluster.toml: node \"n2\": addr: only its own machine reaches it at \
         127.0.0.1:8001, and \"n1\" at db1:8000 may be on another one\n"
    );
    // The advertised address need not be one of this machine.
    let alone = "cluster = \"c\"\nleader = \"n1\"\n[[node]]\nname = \"n1\"\naddr = \"192.0.2.1:8000\"\n\
                 listen = \"127.0.0.1:0\"\n";
    std::fs::write(dir.path().join("cluster.toml"), alone).unwrap();
    let mut node = Process::spawn(dir.path(), "n1", None);
    assert!(node.wait_until_ready(), "{}", node.log());
    let mut stream = node.connect();
    stream.write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&stream), pong());
}
