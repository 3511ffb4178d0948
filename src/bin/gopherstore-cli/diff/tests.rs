use gopherstore::{Client, client::ClientOptions};

use super::output::in_words;
use super::*;

const fn seen(hash: u128) -> Option<Entry> {
    Some(Entry { hash, value_len: 1 })
}

fn list(items: &[(&str, u128)]) -> HashMap<Vec<u8>, Entry> {
    let items = items.iter();
    items
        .filter_map(|(key, hash)| Some((key.as_bytes().to_vec(), seen(*hash)?)))
        .collect()
}

#[test]
fn lists_differ_in_keys_and_in_hashes() {
    let a = list(&[("same", 1), ("here", 2), ("other", 3)]);
    let b = list(&[("same", 1), ("there", 2), ("other", 4)]);
    let found: Vec<_> = differences([a, b])
        .into_iter()
        .map(|found| (String::from_utf8_lossy(&found.key).into_owned(), found.seen))
        .collect();
    let expected = [
        ("here".to_owned(), [seen(2), None]),
        ("other".to_owned(), [seen(3), seen(4)]),
        ("there".to_owned(), [None, seen(2)]),
    ];
    assert_eq!(found, expected);
    assert_eq!(differences([list(&[("a", 1)]), list(&[("a", 1)])]), []);
}

#[test]
fn a_difference_is_steady_only_while_both_entries_stay_the_same() {
    let mut found = Difference::new(b"k".to_vec(), [seen(1), None]);
    found.note([seen(1), None]);
    found.note([seen(1), None]);
    assert_eq!(found.steady, 2);
    found.note([seen(2), None]);
    assert_eq!((found.steady, found.seen), (0, [seen(2), None]));
}

#[test]
fn buckets_grow_with_the_keys_up_to_a_limit() {
    let bits = [0, 15, 32, 1_000, 100_000, 10_000_000, u64::MAX].map(bits_for);
    assert_eq!(bits, [0, 0, 1, 5, 12, 12, 12]);
}

#[test]
fn a_status_has_the_values_for_a_comparison() {
    let text =
        "node: n1\nstate: serving\nreason: -\nepoch: 3\nindex: 9\ndigest: 0f\nkeys: 7\nodd\n";
    let summary = NodeSummary {
        epoch: 3,
        index: 9,
        digest: "0f".to_owned(),
        keys: 7,
        ..NodeSummary::default()
    };
    assert_eq!(NodeSummary::parse(text), summary);
    let loading = NodeSummary::parse("state: loading\nreason: it copies\n").loading;
    assert_eq!(loading.as_deref(), Some("it copies"));
    // A cluster of one node keeps no digest, so zeros are not the same data.
    let alone = NodeSummary::default();
    assert!(!are_equal(&[alone.clone(), alone]));
    assert!(are_equal(&[summary.clone(), summary.clone()]));
    // Neither of what was never one data set can catch up with the other.
    let refusing = NodeSummary::parse(&text.replace("serving", "refused"));
    let foreign = NodeSummary::parse(&format!("{text}cluster: other\n"));
    assert!(are_related(&[summary.clone(), summary.clone()]));
    for other in [refusing, foreign] {
        assert!(!are_related(&[summary.clone(), other]));
    }
}

#[test]
fn the_last_line_is_a_summary() {
    let nodes = ["n1", "n2"].map(|name| Node {
        name: name.to_owned(),
        client: Client::unconnected(name, ClientOptions::default()),
    });
    let known = NodeSummary {
        epoch: 1,
        digest: "0f".to_owned(),
        keys: 7,
        ..NodeSummary::default()
    };
    let alone = NodeSummary {
        epoch: 0,
        keys: 1,
        ..known.clone()
    };
    let words = |node: &NodeSummary, tally| in_words(&nodes, &[node.clone(), node.clone()], &tally);
    let nothing = Tally::default();
    assert_eq!(words(&known, nothing.clone()), "same: 7 keys, digest 0f");
    assert_eq!(words(&alone, nothing.clone()), "same: 1 key");
    let changing = Tally {
        changing: 2,
        ..nothing.clone()
    };
    assert_eq!(words(&known, changing), "unknown: 2 keys kept changing");
    let mut found = Tally {
        only_on: [1, 2],
        differ: 3,
        ..nothing
    };
    let text = "different: 1 key only on n1, 2 only on n2, 3 with other values";
    assert_eq!(words(&known, found.clone()), text);
    found.stopped = true;
    let text = "different: at least 1 key only on n1, 2 only on n2, 3 with other values";
    assert_eq!(words(&known, found), text);
}

#[test]
fn the_node_that_lags_is_the_one_below_the_goal() {
    let at = |index| NodeSummary {
        index,
        ..NodeSummary::default()
    };
    assert_eq!(lag(&[at(7), at(7)], 7), None);
    assert_eq!(lag(&[at(9), at(4)], 7), Some((1, 3)));
    assert_eq!(lag(&[at(6), at(9)], 7), Some((0, 1)));
}
