use super::*;

/// A node that answered with these words, `key=value` each, beside those of a healthy one.
pub(in super::super) fn said(name: &str, words: &str) -> Asked {
    let mut text =
        format!("node: {name}\ncluster: demo\nstate: serving\nepoch: 3\nindex: 17\ndigest: 0a\n");
    for (key, value) in words.split(' ').filter_map(|word| word.split_once('=')) {
        text.push_str(&format!("{key}: {}\n", value.replace('_', " ")));
    }
    Asked {
        name: name.to_owned(),
        addr: format!("{name}:80"),
        response: Ok(NodeStatus::parse(&text)),
    }
}

pub(in super::super) fn silent(name: &str, silence: Silence) -> Asked {
    Asked {
        response: Err(silence),
        ..said(name, "")
    }
}

pub(in super::super) fn demo() -> Scope {
    Scope::Cluster(Some("demo".to_owned()))
}

pub(in super::super) fn limits(lag_entries: Option<u64>) -> Limits {
    Limits {
        lag_entries,
        leader_timeout_ms: None,
    }
}

/// A node as of [`said`], with this `disk_space`.
fn said_of_disk(name: &str, words: &str, space: &str) -> Asked {
    let mut node = said(name, words);
    if let Ok(status) = &mut node.response {
        status.disk_space = (!space.is_empty()).then(|| space.to_owned());
    }
    node
}

/// The faults, or that there are none, one a line.
fn words(nodes: &[Asked], max_lag: Option<u64>) -> String {
    let verdict = judge(nodes, &demo(), limits(max_lag));
    verdict.words(&demo()).join("\n")
}

const LEADER: &str = "role=leader";
const FOLLOWER: &str = "role=follower link=up";

#[test]
fn a_cluster_is_in_sync_or_its_faults_are_named() {
    for (second, expected) in [
        (FOLLOWER, "in sync: 2/2"),
        // Older nodes say neither link nor cluster.
        ("role=follower cluster=-", "in sync: 2/2"),
        ("role=follower link=up index=18 digest=0b", "in sync: 2/2"),
        (
            "role=follower link=up index=16 digest=0b",
            "in sync: 2/2, at most 1 entry behind",
        ),
        (
            "role=follower link=up index=5",
            "in sync: 2/2, at most 12 entries behind",
        ),
        (
            "role=follower link=up digest=0b",
            "n2 holds other data than n1 at index 17: their digests differ",
        ),
        (
            "role=follower link=up epoch=2 digest=0b",
            "n2 is in epoch 2, n1 in 3",
        ),
        (
            "role=follower state=loading reason=it_copies epoch=0",
            "n2 is loading: it copies",
        ),
        (
            "role=follower state=refused reason=why link=down epoch=9",
            "n2 refuses its leader: why",
        ),
        (
            "role=follower state=dozing",
            "n2 is in state dozing: it gives no reason",
        ),
        (
            "role=follower state=",
            "n2 does not report whether it serves",
        ),
        (
            "role=follower link=down leader=h:1 leader_heard_ms=1",
            "n2 does not follow its leader at h:1, last heard 1 ms ago",
        ),
        (
            "role=follower link=sideways leader=h:1",
            "n2 says that its link to h:1 is sideways",
        ),
        (
            "role=follower link=timeout leader=h:1 leader_heard_ms=900",
            "n2 has a leader timeout: its leader at h:1 was last heard 900 ms ago",
        ),
        (
            "role=follower link=timeout leader=h:1 leader_heard_ms=-",
            "n2 has a leader timeout: its leader at h:1 was not heard since its start",
        ),
        ("role=follower link=up stopping=no", "in sync: 2/2"),
        (
            "role=follower link=up stopping=waiting",
            "n2 is stopping: waiting",
        ),
        (
            "role=follower link=down leader=h:1 leader_heard_ms=5001",
            "n2 has a leader timeout: its leader at h:1 was last heard 5001 ms ago, limit 5000",
        ),
        (
            "role=follower link=up leader=h:1 leader_heard_ms=701 leader_timeout_ms=700",
            "n2 has a leader timeout: its leader at h:1 was last heard 701 ms ago, limit 700",
        ),
        ("role=follower link=up lag_ms=5000", "in sync: 2/2"),
        (
            "role=follower link=up lag_ms=5001",
            "n2 is 5001 ms behind its leader, limit 5000 (leader_timeout_ms)",
        ),
        (LEADER, "n1 and n2 lead at once"),
        (
            "role=leader state=loading reason=n1_leads",
            "n2 is loading: n1 leads\nn1 and n2 are both to lead",
        ),
        (
            "role=follower cluster=other",
            "n2 at n2:80 is a node of cluster other, not of demo",
        ),
        (
            "role=leader cluster=other epoch=9",
            "n2 at n2:80 is a node of cluster other, not of demo",
        ),
        ("role=follower node=n3", "n2 at n2:80 is n3, not n2"),
        (
            "role=leader cluster=- node=-",
            "n2 at n2:80 is a node on its own, not of this cluster",
        ),
    ] {
        let nodes = [said("n1", LEADER), said("n2", second)];
        assert_eq!(words(&nodes, None), expected, "{second}");
        let verdict = judge(&nodes, &demo(), limits(None));
        assert_eq!(
            verdict.is_healthy(),
            expected.starts_with("in sync"),
            "{second}"
        );
    }
}

#[test]
fn a_full_disk_is_a_fault_of_each_node() {
    for (leader, follower, expected) in [
        ("enough", "enough", "in sync: 2/2"),
        // Of nodes without a disk, and of older ones.
        ("", "", "in sync: 2/2"),
        (
            "full",
            "enough",
            "n1 has a full disk, and executes only writes that remove",
        ),
        (
            "used_up",
            "enough",
            "n1 has a full disk, and executes no write",
        ),
        (
            "enough",
            "full",
            "n2 has a full disk, and writes to the reserve of its log",
        ),
        (
            "full",
            "used_up",
            "n1 has a full disk, and executes only writes that remove\n\
             n2 has a full disk, and writes nothing there",
        ),
        ("enough", "odd", "n2 says that its disk_space is odd"),
    ] {
        let nodes = [
            said_of_disk("n1", LEADER, leader),
            said_of_disk("n2", FOLLOWER, follower),
        ];
        assert_eq!(words(&nodes, None), expected);
        let verdict = judge(&nodes, &demo(), limits(None));
        assert_eq!(verdict.is_healthy(), expected.starts_with("in sync"));
        assert_eq!(
            verdict.healthy,
            2 - verdict.faults.len(),
            "a fault of each node"
        );
        let alone = judge(&nodes[1..], &Scope::Node, limits(None));
        assert_eq!(alone.is_healthy(), !expected.contains("n2"));
    }
    // A full copy may have no space though the log has.
    let mut node = said_of_disk("n2", FOLLOWER, "enough");
    if let Ok(status) = &mut node.response {
        status.snapshot_error = Some("data: the disk is full".to_owned());
    }
    let faults = |node| judge(&[node], &Scope::Node, limits(None)).faults;
    assert_eq!(
        faults(node),
        ["n2 cannot write a snapshot: data: the disk is full"]
    );
    // It is named beside what it leads to.
    for (words, fault) in [
        (
            "role=follower state=loading reason=it_copies",
            "n2 is loading: it copies",
        ),
        (
            "role=follower link=down leader=h:1 leader_heard_ms=79614",
            "n2 does not follow its leader at h:1, last heard 79614 ms ago",
        ),
    ] {
        let node = said_of_disk("n2", words, "used_up");
        let full = "n2 has a full disk, and writes nothing there";
        assert_eq!(faults(node), [full, fault]);
    }
}

#[test]
fn the_leaders_lag_counts_first_and_so_does_the_files_limit() {
    let nodes = [
        said(
            "n1",
            "role=leader follower.n2.lag_ms=800 leader_timeout_ms=900",
        ),
        said("n2", "role=follower link=up lag_ms=7000"),
    ];
    let words = |leader_timeout_ms| {
        let limits = Limits {
            lag_entries: None,
            leader_timeout_ms,
        };
        judge(&nodes, &demo(), limits).words(&demo()).join("\n")
    };
    assert_eq!(words(None), "in sync: 2/2");
    assert_eq!(
        words(Some(700)),
        "n2 is 800 ms behind its leader, limit 700 (leader_timeout_ms)"
    );
    // Without a leader, and for one node, it is the follower's own.
    let own = "n2 is 7000 ms behind its leader, limit 5000 (leader_timeout_ms)";
    let alone = judge(&nodes[1..], &Scope::Node, Limits::default());
    assert_eq!(alone.words(&Scope::Node), [own]);
}

#[test]
fn contradictions_between_nodes_are_reported_once() {
    let nodes = [
        said(
            "n1",
            "role=leader peer.n2.state=up peer.n2.differs=leader,limits peer.n3.state=stranger \
                 peer.n3.addr=h:3 peer.n3.reason=a_node_of_cluster_x;_not_demo",
        ),
        said(
            "n2",
            "role=follower link=up peer.n1.state=up peer.n1.differs=leader,limits peer.n3.state=down \
                 peer.n3.since_ms=5001 peer.n3.reason=refused peer.n1.since_ms=9000",
        ),
        said(
            "n3",
            "role=follower link=up peer.n1.state=down peer.n1.since_ms=5000",
        ),
    ];
    assert_eq!(
        words(&nodes, None),
        "n1 finds a stranger at h:3, where n3 should be: a node of cluster x; not demo\n\
             n2 has not heard n3 for 5001 ms: refused\n\
             the cluster.toml of n1 and that of n2 differ in: leader, limits"
    );
    let nodes = [
        said(
            "n1",
            "role=leader settings.leader=1 settings.limits=1 settings.members=1",
        ),
        said(
            "n2",
            "role=follower link=up settings.leader=1 settings.limits=2 settings.later=1",
        ),
        said(
            "n3",
            "role=follower link=up settings.leader=2 settings.limits=2 settings.members=1",
        ),
    ];
    assert_eq!(
        words(&nodes, None),
        "the cluster.toml of n1 and that of n2 differ in: limits\n\
             the cluster.toml of n1 and that of n3 differ in: leader, limits"
    );
    // One that is not there is told as that alone.
    let nodes = [
        said(
            "n1",
            "role=leader peer.n3.state=down peer.n3.since_ms=99999",
        ),
        silent("n3", Silence::Unreachable("refused".to_owned())),
    ];
    assert_eq!(words(&nodes, None), "n3 is unreachable: refused");
}

#[test]
fn a_node_that_refuses_status_is_not_reported_as_another_program() {
    let error = Error::Server {
        message: "too many connections".to_owned(),
    };
    let nodes = [said("n1", LEADER), silent("n2", Silence::from(&error))];
    assert_eq!(
        words(&nodes, None),
        "n2 at n2:80 gives no status: too many connections"
    );
    let error = Error::Server {
        message: "unknown opcode 0x40".to_owned(),
    };
    assert!(matches!(Silence::from(&error), Silence::NoStatus(_)));
}

#[test]
fn max_lag_sets_the_entries_that_a_follower_may_lack() {
    let nodes = [
        said("n1", LEADER),
        said("n2", "role=follower link=up index=5"),
        said("n3", FOLLOWER),
    ];
    assert_eq!(
        words(&nodes, None),
        "in sync: 3/3, at most 12 entries behind"
    );
    assert_eq!(
        words(&nodes, Some(12)),
        "in sync: 3/3, at most 12 entries behind"
    );
    assert_eq!(
        words(&nodes, Some(11)),
        "n2 lacks 12 entries of n1, limit 11"
    );
    assert_eq!(judge(&nodes, &demo(), limits(Some(0))).healthy, 2);
}

#[test]
fn every_fault_is_reported() {
    let nodes = [
        silent(
            "n1",
            Silence::Unreachable("cannot connect to n1:80: refused".to_owned()),
        ),
        said("n2", "role=follower link=down leader=n1:80"),
        silent("n3", Silence::NoStatus("unknown opcode 0x40".to_owned())),
    ];
    assert_eq!(
        words(&nodes, None),
        "n1 is unreachable: cannot connect to n1:80: refused\nn2 does not follow its leader at n1:80, and has not \
             since its start\nn3 at n3:80 gives no status, so it is of another version or no GopherStore: unknown \
             opcode 0x40"
    );
    assert_eq!(judge(&nodes, &demo(), limits(None)).healthy, 0);
    let nodes = [said("n1", FOLLOWER), said("n2", FOLLOWER)];
    assert_eq!(words(&nodes, None), "no node leads");
}

#[test]
fn one_node_is_judged_on_its_own() {
    let judge = |words: &str, name: &str| {
        let node = Asked {
            name: name.to_owned(),
            ..said("n2", words)
        };
        judge(&[node], &Scope::Node, limits(Some(0)))
            .words(&Scope::Node)
            .join("\n")
    };
    assert_eq!(judge(FOLLOWER, "-"), "serving");
    assert_eq!(judge("", "-"), "serving", "a node that says little");
    assert_eq!(judge("cluster=other", "n1"), "serving", "under any name");
    assert_eq!(
        judge("state=loading reason=empty", "-"),
        "n2 is loading: empty"
    );
    assert_eq!(
        judge("node=- state=loading reason=empty", "-"),
        "n2:80 is loading: empty"
    );
    assert_eq!(
        judge("link=down leader=h:1 leader_heard_ms=- role=follower", "-"),
        "n2 does not follow its leader at h:1, and has not since its start"
    );
}

#[test]
fn a_cluster_of_one_is_in_sync_with_itself() {
    let node = Asked {
        name: "-".to_owned(),
        ..said("n1", "node=- cluster=- role=leader epoch=0 index=0")
    };
    let scope = Scope::Cluster(None);
    assert_eq!(
        judge(&[node], &scope, limits(Some(0))).words(&scope),
        ["in sync: 1/1"]
    );
    let named = said("n1", "node=- cluster=- role=leader epoch=0 index=0");
    assert_eq!(words(&[named], None), "in sync: 1/1");
}
