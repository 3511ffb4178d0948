//! STATUS: the promises of GBP.md, and the client's commands about it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::cluster::{Cluster, Options};
use crate::support::names::{key, state};
use crate::support::node::PATIENCE;
use crate::support::proxy::Cut;

const QUICK: &str = "heartbeat_interval_ms = 100\nleader_timeout_ms = 1000";
const WITHIN: Duration = Duration::from_secs(15);

fn cluster() -> Cluster {
    let options = Options {
        replication: QUICK.to_owned(),
        proxies: true,
        ..Options::default()
    };
    let cluster = Cluster::start_with(3, &options);
    cluster.wait_converged(WITHIN);
    cluster
}

fn gs(cluster: &Cluster, node: usize, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gopherstore-cli"))
        .args(["--addr", &cluster.addr(node).to_string()])
        .args(arguments)
        .output()
        .expect("the built client")
}

/// The keys of GBP.md's tables of STATUS, and which nodes have them.
fn documented() -> BTreeMap<String, &'static str> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/GBP.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, text) = text.split_once("\n**STATUS**").expect("its section");
    let (text, _) = text.split_once("\n**DISCARD**").expect("its end");
    // A line above each table says whose keys these are.
    let mut of = "";
    let mut keys = BTreeMap::new();
    for line in text.lines() {
        of = match line {
            "Every node has these lines:" | "Every node has, for each other node:" => "any",
            "A follower also has:" => "follower",
            "A node with a disk also has:" => "disk",
            "A node that sends its log to followers has, for each of them:" => "source",
            _ => of,
        };
        if let Some(row) = line.strip_prefix("| `") {
            let (key, _) = row.split_once('`').expect("the key's end");
            assert_eq!(keys.insert(key.to_owned(), of), None, "twice: {key}");
        }
    }
    keys
}

#[test]
fn the_keys_of_a_status_are_those_of_the_document() {
    let cluster = cluster();
    let table = documented();
    assert!(table.len() > 20, "{table:?}");
    for node in 0..cluster.len() {
        // A leader that has just begun to serve may not have both of its followers back yet.
        let lags = (1..cluster.len()).map(|at| key::follower_lag_ms(cluster.name(at)));
        let lags: Vec<String> = lags.filter(|_| node == 0).collect();
        cluster.wait_for_status(node, WITHIN, "its followers", |status| {
            lags.iter().all(|key| status.get(key).is_some())
        });
        let text = cluster.client(node).status().unwrap();
        assert!(text.ends_with('\n'), "{text:?}");
        let mut keys = BTreeSet::new();
        let mut said = BTreeSet::new();
        for line in text.lines() {
            let (key, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?}"));
            assert!(!value.is_empty(), "{line:?}");
            assert!(keys.insert(key), "twice: {line:?}");
            let words = key.split('.');
            let is_name = |word: &&str| (0..cluster.len()).any(|at| cluster.name(at) == *word);
            let words = words.map(|word| if is_name(&word) { "NAME" } else { word });
            said.insert(words.collect::<Vec<_>>().join("."));
            assert_ne!(key, format!("peer.{}.state", cluster.name(node)));
        }
        let own = if node == 0 { "source" } else { "follower" };
        let expected = table.iter().filter(|(_, of)| **of == "any" || **of == own);
        let expected: BTreeSet<String> = expected.map(|(key, _)| key.clone()).collect();
        assert_eq!(said, expected, "{}", cluster.name(node));
    }
    // The test of a node with a disk is in tests/server/disk_status.rs.
    let own = BTreeSet::from(["any", "disk", "source", "follower"]);
    assert_eq!(table.into_values().collect::<BTreeSet<_>>(), own);
}

#[test]
fn the_cli_prints_the_message_of_the_node() {
    let cluster = cluster();
    cluster.client(0).set(b"k", b"value").unwrap();
    cluster.wait_converged(WITHIN);
    let run = gs(&cluster, 1, &["status"]);
    let text = String::from_utf8(run.stdout).unwrap();
    assert_eq!(run.status.code(), Some(0), "{text}");
    for line in [
        "node: n2",
        "role: follower",
        "state: serving",
        "keys: 1",
        "bytes: 6",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

/// Entries that the leader lacks are discarded only by the order.
#[test]
fn a_refusing_follower_discards_only_by_order() {
    let mut cluster = cluster();
    let (behind, ahead) = (1, 2);
    let keys = [b"both".to_vec(), b"one".to_vec()];
    cluster.client(0).set(&keys[0], b"v").unwrap();
    cluster.wait_converged(WITHIN);
    let link = cluster.link(behind, 0);
    link.refuse(true);
    link.cut(Cut::End);
    cluster.client(0).set(&keys[1], b"v").unwrap();
    let index = cluster.number(0, key::INDEX);
    cluster.wait_for_status(ahead, WITHIN, "the entry", |status| {
        status.number(key::INDEX) == Some(index)
    });
    for link in cluster.links_of(ahead) {
        link.refuse(true);
        link.cut(Cut::Reset);
    }
    cluster.kill(0);
    cluster.link(behind, 0).pass();
    cluster.restart(0);
    cluster.wait_for_status(0, WITHIN, "what the other has", |status| {
        status.is_state(state::SERVING)
    });
    let serving = gs(&cluster, behind, &["resync", "--discard"]);
    assert_eq!(serving.status.code(), Some(3), "{serving:?}");
    let streams = || {
        let log = cluster.folder_log(0);
        (
            cluster.number(0, key::FULL_COPIES),
            log.matches("n3 follows").count(),
        )
    };
    let before = streams();
    for link in cluster.links_of(ahead) {
        link.pass();
    }
    cluster.wait_for_status(ahead, WITHIN, "a refusal", |status| {
        status.is_state(state::REFUSED) && status.get("reason").is_some_and(|why| why != "-")
    });
    // The leader knows that as well, and begins nothing.
    assert_eq!(streams(), before);
    let half = gs(&cluster, ahead, &["resync"]);
    assert_eq!(half.status.code(), Some(2), "{half:?}");
    let status = cluster.status(ahead).unwrap();
    assert!(status.is_state(state::REFUSED), "{status}");
    let kept = cluster.read_all(ahead, &keys).unwrap();
    assert!(kept.iter().all(Option::is_some), "{kept:?}");
    let whole = gs(&cluster, ahead, &["resync", "--discard"]);
    assert_eq!(whole.status.code(), Some(0), "{whole:?}");
    cluster.wait_for_status(ahead, PATIENCE, "a copy", |status| {
        status.is_state(state::SERVING)
    });
    cluster.wait_converged(WITHIN);
    let values = cluster.equal_contents(&keys);
    assert_eq!(values, [Some(b"v".to_vec()), None]);
}
