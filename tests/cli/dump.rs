//! `dump` and `load` against clusters of real nodes.

use std::{fs, io::Write, path::Path, time::Duration};

use gopherstore::client::TimeLeft;

use crate::{
    finish,
    nodes::{
        cluster::Cluster,
        names::key,
        node::{Node, Options},
        proxy::{Cut, Proxy, Way},
    },
    program, run_at, set,
    support::{Peer, next_frame, response, unused_addr},
    tail::cluster,
    text,
};

const WITHIN: Duration = Duration::from_secs(30);

/// So long that the connection is cut in the midst of it.
const MANY: u32 = 30_000;

fn fill(cluster: &Cluster, count: u32) {
    let keys: Vec<_> = (0..count).map(|at| format!("key:{at}")).collect();
    cluster.write_all(keys.iter().map(|key| (key.as_bytes(), key.as_bytes())));
    let mut client = cluster.client(0);
    client.set(b"", b"empty key").unwrap();
    client.set(b"large", &vec![b'L'; 3_000_000]).unwrap();
    client.set(b"\xff\x00", b"").unwrap();
    cluster.wait_converged(WITHIN);
}

fn digest(cluster: &Cluster, node: usize) -> String {
    cluster
        .status(node)
        .unwrap()
        .get(key::DIGEST)
        .unwrap()
        .to_owned()
}

#[test]
fn a_dump_of_any_node_loads_into_another_cluster_unchanged() {
    let from = cluster(2, "");
    fill(&from, 2_000);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.gbp");
    let addr = from.addr(1).to_string();
    run_at(&addr, &["dump", text(&file)], b"").expect(0, "", "");
    let written = fs::read(&file).unwrap();
    let piped = run_at(&from.addr(0).to_string(), &["dump"], b"");
    assert_eq!((piped.code, &*piped.err), (0, ""));
    assert_eq!(piped.out.len(), written.len());
    assert_eq!(&written[written.len() - 55..][..3], b"\x64\x00\x30");
    // Where no key stands twice, the end mark's digest is the data set's.
    let told: String = written[written.len() - 32..][..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(told, digest(&from, 0));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else");

    let to = cluster(2, "");
    to.client(0).set(b"key:7", b"older").unwrap();
    // The follower sends the writer on to its leader.
    let follower = to.addr(1).to_string();
    run_at(&follower, &["load", text(&file)], b"").expect(0, "", "");
    to.wait_converged(WITHIN);
    assert_eq!(digest(&to, 0), digest(&from, 0));
    // Once more, from a pipe; then from nearly its end on.
    run_at(&follower, &["load", "-"], &piped.out).expect(0, "", "");
    let end = (written.len() - 55).to_string();
    run_at(&follower, &["load", text(&file), "--from", &end], b"").expect(0, "", "");
    to.wait_converged(WITHIN);
    assert_eq!(digest(&to, 1), digest(&from, 0));
    let refused = run_at(&follower, &["load", text(&file), "--no-redirect"], b"");
    refused.expect_failure(
        4,
        &[
            "is not the leader",
            "0 entries are written",
            // To the same node, that is.
            &format!(
                "go on with: gopherstore-cli --addr {follower} load {} --from 0\n",
                text(&file)
            ),
        ],
    );
}

#[test]
fn a_file_that_is_cut_off_or_damaged_changes_nothing() {
    let cluster = cluster(2, "");
    fill(&cluster, 100);
    let whole = run_at(&cluster.addr(0).to_string(), &["dump"], b"").out;
    let alone = Node::start();
    let addr = alone.addr.to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cut.gbp");
    let end = whole.len() - 55;
    let load = |bytes: &[u8], arguments: &[&str]| {
        fs::write(&file, bytes).unwrap();
        let mut all = vec!["load", text(&file)];
        all.extend(arguments);
        run_at(&addr, &all, b"")
    };
    load(&whole[..end - 1], &[])
        .expect_failure(8, &["is cut off: the entry at byte", "nothing was written"]);
    load(&whole[..end], &[])
        .expect_failure(8, &[&format!("ends at byte {end} without an end mark")]);
    load(&whole[..end + 54], &[]).expect_failure(8, &["is cut off"]);
    load(b"", &[]).expect_failure(8, &["ends at byte 0 without an end mark"]);
    let mut damaged = whole.clone();
    damaged[end - 1] ^= 1;
    load(&damaged, &[]).expect_failure(
        8,
        &[
            "is damaged: its end mark tells of 103 entries",
            "nothing was written",
        ],
    );
    damaged[0] = 0x02;
    load(&damaged, &[]).expect_failure(8, &["is damaged at byte 0: "]);
    load(&[&whole[..], b"\n"].concat(), &[]).expect_failure(8, &["goes on behind its end mark"]);
    load(&whole, &["--from", "3"])
        .expect_failure(2, &["--from 3: no entry", "the next one begins at"]);
    load(&whole, &["--from", "99999999"]).expect_failure(2, &["is shorter"]);
    let status = run_at(&addr, &["status"], b"").out;
    assert!(String::from_utf8(status).unwrap().contains("\nkeys: 0\n"));
    // Of a pipe it shows only at the end, and then it is said what was written.
    let piped = run_at(&addr, &["load", "-"], &whole[..end]);
    piped.expect_failure(
        8,
        &[
            "standard input ends at byte",
            "before that, 103 entries are written",
        ],
    );
    let own = [set(b"a", b"1"), set(b"b", b"2")].concat();
    load(&own, &[]).expect_failure(8, &["--no-end-mark"]);
    load(&own, &["--no-end-mark"]).expect(0, "", "");
    run_at(&addr, &["get", "b"], b"").expect(0, "2", "");
    run_at(&addr, &["load", "/nowhere/at.all"], b"")
        .expect_failure(8, &["/nowhere/at.all cannot be read"]);
}

#[test]
fn an_entry_that_is_not_taken_ends_it_there_and_it_goes_on_behind() {
    let node = Node::start_with(&Options {
        limits: "max_value_bytes = 10",
        ..Options::default()
    });
    let addr = node.addr.to_string();
    let frames = [
        set(b"a", b"1"),
        set(b"b", b"too long by far"),
        set(b"c", b"3"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("own.gbp");
    fs::write(&file, frames.concat()).unwrap();
    let load = |from: usize| {
        let from = from.to_string();
        run_at(
            &addr,
            &["load", "--no-end-mark", text(&file), "--from", &from],
            b"",
        )
    };
    let at = frames[0].len();
    let behind = at + frames[1].len();
    // To begin with the same entry again would end there again.
    load(0).expect_failure(
        3,
        &[
            &format!("the entry at byte {at} is refused: value of 15 bytes, limit 10"),
            "1 entry is written before it",
            &format!("go on without it with: gopherstore-cli --addr {addr} load "),
            &format!(" --no-end-mark --from {behind}\n"),
        ],
    );
    run_at(&addr, &["get", "a"], b"").expect(0, "1", "");
    load(behind).expect(0, "", "");
    run_at(&addr, &["get", "c"], b"").expect(0, "3", "");
}

#[test]
fn a_load_that_loses_its_connection_names_the_byte_to_continue_from() {
    let node = Node::start();
    let proxy = Proxy::start(node.addr);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("many.gbp");
    let frames: Vec<_> = (0..MANY)
        .map(|at| set(&at.to_be_bytes(), &[b'v'; 100]))
        .collect();
    fs::write(&file, frames.concat()).unwrap();
    let arguments = ["load", "--no-end-mark", text(&file)];
    let mut from = 0;
    for cut in [0, 500_000, 1_000_001] {
        proxy.cut_after(Way::Up, cut, Cut::Reset);
        let start = from.to_string();
        let mut all = arguments.to_vec();
        all.extend(["--from", &start]);
        let run = run_at(&proxy.addr().to_string(), &all, b"");
        run.expect_failure(5, &["go on with: gopherstore-cli --addr", " load "]);
        let told = run.err.trim_end().rsplit(' ').next().unwrap();
        let told: usize = told.parse().unwrap();
        assert!(told >= from && told.is_multiple_of(111), "{told}");
        from = told;
        if let Some(last) = (from / 111).checked_sub(1) {
            let mut client = gopherstore::Client::connect(&node.addr.to_string()).unwrap();
            let mut pipeline = client.pipeline();
            for at in 0..=last {
                pipeline.get(&u32::try_from(at).unwrap().to_be_bytes());
            }
            for (at, value) in pipeline.run().unwrap().into_iter().enumerate() {
                let value = value.unwrap();
                assert!(
                    value != gopherstore::client::Response::NotFound,
                    "{at} of {last}"
                );
            }
        }
    }
    proxy.pass();
    let start = from.to_string();
    let mut all = arguments.to_vec();
    all.extend(["--from", &start]);
    run_at(&proxy.addr().to_string(), &all, b"").expect(0, "", "");
    let status = run_at(&node.addr.to_string(), &["status"], b"").out;
    assert!(
        String::from_utf8(status)
            .unwrap()
            .contains(&format!("\nkeys: {MANY}\n"))
    );
}

/// A response that announces a snapshot.
fn accepted() -> Vec<u8> {
    let history = "0001 0000000000000001 1111111111111111 0000000000000001";
    let bytes = |text: &str| -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        (0..digits.len() / 2)
            .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
            .collect()
    };
    response(0, &bytes(&format!("01 0000000000000000 {history}")))
}

#[test]
fn an_incomplete_dump_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy.gbp");
    fs::write(&file, b"older").unwrap();
    let accepted = accepted();
    let half = Peer::start(move |_, mut stream| {
        if next_frame(&mut stream).is_some() {
            let _ = stream.write_all(&accepted);
        }
    });
    let run = run_at(&half.addr, &["dump", text(&file), "--force"], b"");
    run.expect_failure(5, &["lost", "copy.gbp is as it was"]);
    assert_eq!(fs::read(&file).unwrap(), b"older");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else");

    let addr = unused_addr();
    run_at(&addr, &["dump", text(&file), "--force"], b"").expect_failure(5, &["cannot connect"]);
    let cluster = cluster(2, "");
    let addr = cluster.addr(1).to_string();
    let nowhere = dir.path().join("no/such/folder");
    run_at(&addr, &["dump", text(&nowhere)], b"")
        .expect_failure(8, &["cannot write", "no/such/folder"]);
    run_at(&addr, &["dump", "/dev/full"], b"")
        .expect_failure(8, &["cannot write to /dev/full", "room"]);
    assert!(Path::new("/dev/full").exists());
    run_at(&addr, &["dump", "/dev/null"], b"").expect(0, "", "");
    assert_eq!(finish(program().args(["dump", "--help"]), b"").code, 0);
    assert_eq!(finish(program().args(["load", "--help"]), b"").code, 0);
}

/// It has no log and no stream, so it is scanned.
#[test]
fn a_node_on_its_own_is_dumped_as_well() {
    let (alone, empty) = (Node::start(), Node::start());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("alone.gbp");
    let mut client = gopherstore::Client::connect(&alone.addr.to_string()).unwrap();
    let mut pipeline = client.pipeline();
    for n in 0..5_000_u32 {
        pipeline.set(&n.to_be_bytes(), &n.to_le_bytes().repeat(10));
    }
    pipeline.set(b"long", &[7; 3 << 20]).set(b"", b"");
    assert!(pipeline.run().unwrap().iter().all(Result::is_ok));
    client.set_at(b"session", b"alice", FAR).unwrap();
    client.set_at(b"past", b"v", 1).unwrap();
    let run = run_at(&alone.addr.to_string(), &["dump", text(&file)], b"");
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.err.contains("keeps no log"), "{run:?}");
    run_at(&empty.addr.to_string(), &["load", text(&file)], b"").expect(0, "", "");
    let mut client = gopherstore::Client::connect(&empty.addr.to_string()).unwrap();
    for n in 0..5_000_u32 {
        let value = client.get(&n.to_be_bytes()).unwrap();
        assert_eq!(value, Some(n.to_le_bytes().repeat(10)));
    }
    assert_eq!(client.get(b"long").unwrap(), Some(vec![7; 3 << 20]));
    assert_eq!(client.get(b"").unwrap(), Some(Vec::new()));
    assert_eq!(client.get(b"session").unwrap(), Some(b"alice".to_vec()));
    assert!(matches!(
        client.ttl(b"session").unwrap(),
        TimeLeft::Limited(_)
    ));
    assert!(client.status().unwrap().contains("keys: 5003\n"));
}

/// A deadline far ahead.
const FAR: u64 = 4_102_444_800_000;

#[test]
fn deadlines_go_with_their_keys_from_one_cluster_to_another() {
    let (from, to) = (Cluster::start(2), Cluster::start(2));
    for cluster in [&from, &to] {
        cluster.wait_converged(std::time::Duration::from_secs(15));
    }
    let [from_addr, to_addr] = [&from, &to].map(|cluster| cluster.addr(0).to_string());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("expiring.gbp");
    let mut client = gopherstore::Client::connect(&from_addr).unwrap();
    for n in 0..100_u8 {
        let (key, value) = ([n], [n; 300]);
        client
            .set_at(&key, &value[..usize::from(n) * 3], FAR + u64::from(n))
            .unwrap();
    }
    client.set(b"kept", b"v").unwrap();
    run_at(&from_addr, &["dump", text(&file)], b"").expect(0, "", "");
    run_at(&to_addr, &["load", text(&file)], b"").expect(0, "", "");
    let digests = [&from, &to].map(|cluster| digest(cluster, 0));
    assert_eq!(digests[0], digests[1], "values and deadlines");
}
