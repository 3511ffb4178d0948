//! Which ERRORs end a connection: each row of the table in GBP §8, through a real socket.

use std::io::Write;
use std::net::TcpStream;

use gopherstore::wire::{Request, Status};

use crate::node::{Node, Options};
use crate::{answer, closed, error, frames, pong};

/// Limits of most nodes here: `max_value_bytes` is small, so that frames above it are small as well.
const SHORT_VALUES: &str = "max_value_bytes = 100";

/// The clients of a row.
struct Clients {
    /// Each with the bytes that it sends, for which it gets an ERROR.
    refused: Vec<(TcpStream, Vec<u8>)>,
    /// One that takes the only place of its node.
    _served: Option<TcpStream>,
}

/// A row of the table: the beginning of its cause, `[limits]` of the node, and the clients.
type Row = (&'static str, &'static str, fn(&Node) -> Clients);

/// One client for each of these.
fn each(node: &Node, sent: &[&[u8]]) -> Clients {
    let clients = sent.iter().map(|bytes| (node.connect(), bytes.to_vec()));
    Clients {
        refused: clients.collect(),
        _served: None,
    }
}

/// The same, after another client has taken the only place.
fn each_beyond(node: &Node, sent: &[&[u8]]) -> Clients {
    let served = node.connect();
    (&served).write_all(&frames(&[Request::Ping])).unwrap();
    assert_eq!(answer(&served), pong());
    Clients {
        _served: Some(served),
        ..each(node, sent)
    }
}

/// The table's rows, in its order. Where they are not about new connections, a PING goes before the bytes.
const ROWS: [Row; 18] = [
    (
        "a connection beyond `max_connections` that does not begin",
        "max_connections = 1",
        |node| {
            each_beyond(
                node,
                &[b"", b"\x40", b"\x04\0\0\0\0\0\0", b"\x02\0\x01\0\0\0\0k"],
            )
        },
    ),
    (
        "on a connection beyond `max_connections`: a request other",
        "max_connections = 1",
        |node| {
            let clients = each_beyond(node, &[b"\x02\0\x01\0\0\0\0k"]);
            for (client, _) in &clients.refused {
                let mut client = client;
                client
                    .write_all(&frames(&[Request::Status, Request::Ping]))
                    .unwrap();
                assert_eq!(answer(client).0, Status::Ok);
                assert_eq!(answer(client), pong());
            }
            clients
        },
    ),
    ("text as the first byte of a connection", "", |node| {
        each(node, &[b"P", b"{", b"\n", b"\r", b"\t", b" ", b"~"])
    }),
    ("an unknown opcode |", SHORT_VALUES, |node| {
        each(
            node,
            &[
                b"\x7f\0\0\0\0\0\0",
                b"\0\0\x01\0\0\0\x64k",
                b"\x61\0\0\0\0\0\0",
            ],
        )
    }),
    (
        "an unknown opcode, with a `value_len`",
        SHORT_VALUES,
        |node| {
            each(
                node,
                &[b"\x7f\0\0\0\0\0\x65", b"\x7f\xff\xff\xff\xff\xff\xff"],
            )
        },
    ),
    (
        "a key with an operation that has none |",
        SHORT_VALUES,
        |node| {
            each(
                node,
                &[
                    b"\x04\0\x01\0\0\0\0k",
                    b"\x40\0\x01\0\0\0\x64k",
                    b"\x41\0\x01\0\0\0\0k",
                ],
            )
        },
    ),
    (
        "a key with an operation that has none, and",
        SHORT_VALUES,
        |node| each(node, &[b"\x04\0\x01\0\0\0\x65k"]),
    ),
    (
        "a value with an operation that has none |",
        SHORT_VALUES,
        |node| {
            each(
                node,
                &[
                    b"\x02\0\x01\0\0\0\x64k",
                    b"\x03\0\x01\0\0\0\x01k",
                    b"\x04\0\0\0\0\0\x01",
                ],
            )
        },
    ),
    (
        "a value with an operation that has none, and",
        SHORT_VALUES,
        |node| each(node, &[b"\x02\0\x01\0\0\0\x65k", b"\x40\0\0\0\0\0\x65"]),
    ),
    ("a SET with a `value_len` above", SHORT_VALUES, |node| {
        each(
            node,
            &[
                b"\x01\0\x01\0\0\0\x65k",
                b"\x05\0\x01\0\0\0\x6dk",
                b"\x06\0\x01\0\0\0\x72k",
            ],
        )
    }),
    ("a FOLLOW with a `value_len` above 1,050", "", |node| {
        each(
            node,
            &[
                b"\x60\0\x01\0\0\x04\x1bn",
                b"\x07\0\0\0\0\x10\x05",
                b"\x08\0\0\0\0\0\x1a",
                b"\x0b\0\0\0\0\0\x0a",
                b"\x0e\0\0\0\x01\0\x11",
                b"\x0f\0\0\0\x04\x02\x01",
                b"\x10\0\0\0\0\0\x1e",
                b"\x11\0\0\0\0\0\x1a",
                b"\x42\0\0\0\0\0\x0e",
                b"\x43\0\0\0\0\x02\x0e",
                b"\x67\0\0\0\0\0\x11",
            ],
        )
    }),
    (
        "one of these, and a `value_len` above `max_value_bytes` too",
        SHORT_VALUES,
        |node| {
            each(
                node,
                &[
                    b"\x08\0\x01\0\0\0\x65k",
                    b"\x0f\0\0\0\x04\x02\x01",
                    b"\x43\0\0\xff\xff\xff\xff",
                ],
            )
        },
    ),
    (
        "a request that is not whole `request_timeout_ms`",
        "request_timeout_ms = 200",
        |node| each(node, &[b"\x01", b"\x01\0\x01\0\0\0\x05kab"]),
    ),
    (
        "a refused frame whose rest has not come by then",
        "request_timeout_ms = 200",
        |node| each(node, &[b"\x7f\0\0\0\0\0\x05ab"]),
    ),
    (
        "wrong fields in a SETAT, PUT, TAKE, ADD, EXPIRE, SCAN, BATCH, SYNC, WATCH, FOLLOW, SUMS or LIST",
        "",
        |node| {
            let put = [&b"\x06\0\0\0\0\0\x0d\x05"[..], &[0; 12]].concat();
            let expire = [&b"\x0b\0\0\0\0\0\x09\x02"[..], &[0; 8]].concat();
            let other_process = [&b"\x42\0\0\0\0\0\x0d"[..], &[1; 8], &[0; 5]].concat();
            each(
                node,
                &[
                    b"\x05\0\0\0\0\0\0",
                    &put,
                    b"\x07\0\0\0\0\0\x04\x01\0\0\0",
                    b"\x08\0\0\0\0\0\0",
                    &expire,
                    b"\x0e\0\0\0\0\0\0",
                    &[&b"\x0e\0\0\0\0\0\x11\x02"[..], &[0; 16]].concat(),
                    &[&b"\x0e\0\0\0\0\0\x11\0\0\0\0\0"[..], &[1; 8], &[0; 4]].concat(),
                    b"\x60\0\0\0\0\0\0",
                    b"\x42\0\0\0\0\0\0",
                    b"\x43\0\0\0\0\0\x01x",
                    &other_process,
                ],
            )
        },
    ),
    ("a FOLLOW or WATCH that the node cannot serve", "", |node| {
        let follow = [&b"\x60\0\x02\0\0\0\x1an2"[..], &[2], &[0; 25]].concat();
        each(node, &[&follow])
    }),
    (
        "a DISCARD or a SNAPSHOT to a node that does not take it",
        "",
        |node| each(node, &[b"\x41\0\0\0\0\0\0", b"\x44\0\0\0\0\0\0"]),
    ),
    ("an EPOCH", "", |node| {
        let epoch = [&b"\x67\0\0\0\0\0\x10"[..], &[7; 16]].concat();
        each(node, &[b"\x67\0\0\0\0\0\0", &epoch])
    }),
];

/// The rows of the document: cause, and whether the connection goes on.
fn documented() -> Vec<(String, bool)> {
    let text = include_str!("../../docs/GBP.md");
    let (_, table) = text
        .split_once("**Which errors end the connection.**")
        .expect("the table");
    let rows = table.lines().skip_while(|line| !line.starts_with("|---"));
    let rows = rows.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let goes_on = match cells[2] {
            "goes on" => true,
            "closes" => false,
            other => panic!("{row}: {other:?}"),
        };
        (format!("{} |", cells[1]), goes_on)
    })
    .collect()
}

#[test]
fn an_error_ends_the_connection_exactly_where_the_document_says() {
    let documented = documented();
    assert_eq!(documented.len(), ROWS.len(), "{documented:?}");
    for ((cause, goes_on), (begins, limits, send)) in documented.iter().zip(ROWS) {
        assert!(cause.starts_with(begins), "{cause:?} is not {begins:?}");
        let node = Node::start_with(&Options {
            limits,
            ..Options::default()
        });
        let is_new = ["connections", "first byte"]
            .iter()
            .any(|words| begins.contains(words));
        let clients = send(&node);
        for (client, bytes) in &clients.refused {
            let mut client = client;
            if !is_new {
                client.write_all(&frames(&[Request::Ping])).unwrap();
                assert_eq!(answer(client), pong());
            }
            client.write_all(bytes).unwrap();
            let message = error(client);
            if !goes_on {
                closed(client);
                continue;
            }
            // The rest of a frame of which only the header and a key were sent.
            let rest = rest_of(bytes);
            client.write_all(&vec![b'x'; rest]).unwrap();
            client.write_all(&frames(&[Request::Ping])).unwrap();
            assert_eq!(answer(client), pong(), "{cause}: {bytes:?}: {message}");
        }
    }
}

/// How many bytes a frame lacks.
fn rest_of(bytes: &[u8]) -> usize {
    let key_len = u16::from_be_bytes([bytes[1], bytes[2]]);
    let value_len = u32::from_be_bytes([bytes[3], bytes[4], bytes[5], bytes[6]]);
    7 + usize::from(key_len) + usize::try_from(value_len).unwrap() - bytes.len()
}

#[test]
fn requests_behind_a_refusal_that_closes_are_not_executed() {
    let node = Node::start_with(&Options {
        limits: SHORT_VALUES,
        ..Options::default()
    });
    let set = |key: &'static [u8]| Request::Set { key, value: b"v" };
    let mut client = node.connect();
    let too_long = b"\x01\0\x01\0\0\0\x65k";
    let all = [
        &frames(&[set(b"before")]),
        &too_long[..],
        &[b'v'; 101],
        &frames(&[set(b"after")]),
    ];
    client.write_all(&all.concat()).unwrap();
    assert_eq!(answer(&client), (Status::Ok, Vec::new()));
    assert_eq!(error(&client), "value of 101 bytes, limit 100");
    closed(&client);
    let other = node.connect();
    let get = |key: &'static [u8]| {
        (&other)
            .write_all(&frames(&[Request::Get { key }]))
            .unwrap();
        answer(&other).0
    };
    assert_eq!(
        (get(b"before"), get(b"after")),
        (Status::Ok, Status::NotFound)
    );
}
