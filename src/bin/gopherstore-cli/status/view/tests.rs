use super::super::health::tests::{demo, limits, said, silent};
use super::*;

fn cluster() -> Vec<Asked> {
    vec![
        said(
            "n1",
            "role=leader keys=1200 bytes=1300000 follower.n2.lag_ms=3 digest=0123456789abcdef",
        ),
        said(
            "n2",
            "role=follower link=up leader=h:1 index=5 keys=1199 bytes=17 digest=ab",
        ),
        silent("n3", Silence::Unreachable("cannot connect".to_owned())),
    ]
}

const HEADINGS: &str = "node address role state epoch index lag link heard keys bytes digest";

fn widest(text: &str) -> usize {
    text.lines()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or(0)
}

#[test]
fn a_wide_terminal_has_one_table() {
    let text = table(&cluster(), &demo(), Some(200));
    let expected = "\
node  address  role      state        epoch  index        lag  link  heard  keys     bytes  digest
n1    n1:80    leader    serving          3     17          -  -         -  1200  1.24 MiB  01234567
n2    n2:80    follower  serving          3      5  12 (3 ms)  up        -  1199      17 B  ab
n3    n3:80    -         unreachable      -      -          -  -         -     -         -  -
";
    assert_eq!(text, expected);
    assert_eq!(
        table(&cluster(), &demo(), None),
        text,
        "no terminal, no limit"
    );
    assert_eq!(table(&cluster(), &demo(), Some(widest(&text))), text);
}

#[test]
fn a_table_of_80_columns_goes_on_below() {
    let text = table(&cluster(), &demo(), Some(80));
    let expected = "\
node  address  role      state        epoch  index        lag  link  heard  keys
n1    n1:80    leader    serving          3     17          -  -         -  1200
n2    n2:80    follower  serving          3      5  12 (3 ms)  up        -  1199
n3    n3:80    -         unreachable      -      -          -  -         -     -

node     bytes  digest
n1    1.24 MiB  01234567
n2        17 B  ab
n3           -  -
";
    assert_eq!(text, expected);
}

#[test]
fn a_cluster_in_which_some_node_has_a_disk_has_two_more_columns() {
    let mut nodes = cluster();
    nodes[1] = said("n2", "role=follower disk=none");
    let text = table(&nodes, &demo(), None);
    assert!(
        !text.contains("disk") && !text.contains("durable"),
        "{text}"
    );
    nodes[0] = said("n1", "role=leader disk=used sync=interval durable_index=15");
    let text = table(&nodes, &demo(), None);
    let ends: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().rev().take(2).collect())
        .collect();
    assert_eq!(ends[0], ["durable", "disk"]);
    assert_eq!(ends[1], ["15", "interval"]);
    assert_eq!(ends[2], ["-", "none"]);
    assert_eq!(ends[3], ["-", "-"], "it has not said");
    let list = table(&nodes, &demo(), Some(10));
    assert!(
        list.contains("\ndisk     interval\ndurable  15\n"),
        "{list}"
    );
}

#[test]
fn where_no_table_fits_each_node_is_a_list() {
    for width in [0, 1, 10, 40] {
        let text = table(&cluster(), &demo(), Some(width));
        let lists: Vec<&str> = text.split("\n\n").collect();
        assert_eq!(lists.len(), 3, "{width}: {text}");
        for list in lists {
            let words = list.lines().filter_map(|line| line.split(' ').next());
            assert_eq!(words.collect::<Vec<_>>().join(" "), HEADINGS);
        }
        assert!(widest(&text) <= 40, "{text}");
        assert!(text.contains("state    unreachable\n"), "{text}");
    }
}

#[test]
fn no_table_is_wider_than_the_terminal() {
    for width in 0..130 {
        let text = table(&cluster(), &demo(), Some(width));
        let is_table = text.starts_with("node  address");
        assert!(!is_table || widest(&text) <= width, "{width}:\n{text}");
    }
}

#[test]
fn texts_of_a_node_have_no_effect_on_the_terminal() {
    let mut nodes = cluster();
    nodes[1] = said("n2", "role=\x1b[31m state=\x07 digest=\x1b[2J");
    nodes[2].addr = "\x1b]0;x".to_owned();
    let texts = vec!["node: \x1b[31m".to_owned(), String::new(), String::new()];
    let verdict = health::judge(&nodes, &demo(), limits(None));
    for text in [
        table(&nodes, &demo(), None),
        table(&nodes, &demo(), Some(40)),
        json(&nodes, &demo(), &verdict),
        lines(&nodes, &texts),
    ] {
        assert!(
            text.chars().all(|c| c == '\n' || !c.is_control()),
            "{text:?}"
        );
    }
}

#[test]
fn json_has_every_node_and_null_for_what_is_not_known() {
    let mut nodes = cluster();
    nodes.push(said("n4", "cluster=other role=leader"));
    let verdict = health::judge(&nodes, &demo(), limits(Some(0)));
    let text = json(&nodes, &demo(), &verdict);
    assert_eq!(text.matches('\n').count(), 1);
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    assert_eq!(value["healthy"], false);
    assert_eq!(value["cluster"], "demo");
    assert_eq!(value["faults"].as_array().map(Vec::len), Some(3));
    let [leader, follower, away, other] = [0, 1, 2, 3].map(|at| &value["nodes"][at]);
    assert_eq!(leader["digest"], "0123456789abcdef");
    assert_eq!(
        (&leader["lag_ms"], &leader["link"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(
        (&follower["lag_entries"], &follower["lag_ms"]),
        (&json!(12), &json!(3))
    );
    assert_eq!(follower["leader_heard_ms"], Value::Null);
    assert_eq!(
        (&away["node"], &away["error"]),
        (&json!("n3"), &json!("cannot connect"))
    );
    assert_eq!(
        other["error"],
        "n4 at n4:80 is a node of cluster other, not of demo"
    );
}

#[test]
fn json_has_all_that_a_status_says_under_stable_names() {
    let document = include_str!("../../../../../docs/GBP.md");
    let (_, section) = document.split_once("\n**STATUS**").unwrap_or_default();
    let (section, _) = section.split_once("\n**DISCARD**").unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let keys: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    assert!(keys.len() > 20, "{keys:?}");
    let words: Vec<String> = keys
        .iter()
        .filter(|key| !["node", "role", "state", "lag_entries", "lag_ms"].contains(key))
        .map(|key| format!("{key}=7"))
        .collect();
    let said_all = said("n1", &format!("role=leader {}", words.join(" ")));
    let nodes = [
        said_all,
        silent("n2", Silence::Refused("no room".to_owned())),
    ];
    let verdict = health::judge(&nodes, &demo(), limits(None));
    let value: Value = serde_json::from_str(&json(&nodes, &demo(), &verdict)).unwrap_or_default();
    for key in keys {
        let node = &value["nodes"][0];
        let found = match key.split('.').collect::<Vec<_>>().as_slice() {
            ["peer", name, field] => node["peers"][name].get(field),
            ["follower", name, field] => node["followers"][name].get(field),
            ["settings", group] => node["settings"].get(group),
            _ => node.get(key),
        };
        assert!(found.is_some(), "{key} is missing: {node}");
        let is_family = key.contains('.');
        assert!(is_family || value["nodes"][1].get(key).is_some(), "{key}");
    }
    assert_eq!(value["nodes"][1]["error"], "no room");
    assert_eq!(value["nodes"][1]["peers"], json!({}));
}

#[test]
fn json_passes_on_what_it_does_not_know() {
    let nodes = [said(
        "n1",
        "role=leader later=7 named=007 large=18446744073709551615 none=- addr=x error=x peers=x settings=x \
             settings.leader=1234567890123456 \
             peer.a.b.state=up peer.a.b.colour=red follower.n2.lag_ms=3 follower.n2.queued=9 peer.odd=1 \
             process=18446744073709551615 digest=00000000000000000000000000000007 keys=few",
    )];
    let verdict = health::judge(&nodes, &demo(), limits(None));
    let value: Value = serde_json::from_str(&json(&nodes, &demo(), &verdict)).unwrap_or_default();
    let node = &value["nodes"][0];
    for (key, expected) in [
        ("later", json!(7)),
        ("named", json!("007")),
        ("large", json!("18446744073709551615")),
        ("none", Value::Null),
        ("addr", json!("n1:80")),
        ("error", Value::Null),
        ("peer.odd", json!(1)),
        ("settings", json!({ "leader": "1234567890123456" })),
        ("process", json!("18446744073709551615")),
        ("digest", json!("00000000000000000000000000000007")),
        ("keys", Value::Null),
        ("max_value_bytes", Value::Null),
    ] {
        assert_eq!(node[key], expected, "{key}");
    }
    let mut peer = json!({ "addr": null, "state": "up", "since_ms": null, "reason": null });
    peer["differs"] = Value::Null;
    peer["colour"] = json!("red");
    assert_eq!(node["peers"], json!({ "a.b": peer }));
    let follower = json!({ "index": null, "lag_entries": null, "lag_ms": 3, "queued": 9 });
    assert_eq!(node["followers"], json!({ "n2": follower }));
}

#[test]
fn lines_name_their_node_and_those_without_a_status() {
    let nodes = cluster();
    let texts = ["node: n1\nepoch: 3\n", "node: n2\n", ""].map(str::to_owned);
    let expected = "n1 node: n1\nn1 epoch: 3\nn2 node: n2\nn3 error: cannot connect\n";
    assert_eq!(lines(&nodes, &texts), expected);
}

#[test]
fn times_have_the_unit_that_suits_them() {
    for (ms, expected) in [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1.0 s"),
        (59_999, "59.9 s"),
        (60_000, "1 min"),
    ] {
        assert_eq!(time(ms), expected);
    }
}
