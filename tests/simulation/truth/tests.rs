//! Tests of the truth.

use super::*;
use crate::wire::Request;

fn history(epochs: &[(u64, u64, u64)]) -> History {
    let starts = epochs
        .iter()
        .map(|&(epoch, nonce, start_index)| EpochStart {
            epoch,
            nonce,
            start_index,
        });
    History::new(starts.collect()).unwrap()
}

fn answer(
    truth: &mut Truth,
    process: usize,
    model: &mut Model,
    request: Request<'_>,
    (status, value): (Status, &str),
) -> Result<(), Violation> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes).unwrap();
    let frame = frames(&bytes).next().unwrap();
    let mut written = Written::default();
    if frame.opcode() != Opcode::Get {
        written.frames.extend_from_slice(&bytes);
    }
    let mut by = Executing {
        process,
        model,
        written: &mut written,
        now: 1,
        limit: Limit::None,
    };
    let number = Some(truth.executed.len());
    truth.executed(&mut by, number, &frame, (status, value.as_bytes()))?;
    truth.settled(&mut by)
}

fn set<'a>(value: &'a str) -> Request<'a> {
    Request::Set {
        key: b"k",
        value: value.as_bytes(),
    }
}

#[test]
fn it_knows_the_data_set_of_each_position_and_who_wrote_it() {
    let mut truth = Truth::default();
    let first = history(&[(1, 7, 1)]);
    truth.open(0, &first).unwrap();
    let mut model = Model::default();
    truth
        .advance(&mut model, Truth::place_of(&first, 1))
        .unwrap();
    let get = Request::Get { key: b"k" };
    answer(&mut truth, 0, &mut model, set("a"), (Status::Ok, "")).unwrap();
    answer(&mut truth, 0, &mut model, set("b"), (Status::Ok, "")).unwrap();
    answer(&mut truth, 0, &mut model, get, (Status::Ok, "b")).unwrap();
    let stale = answer(&mut truth, 0, &mut model, get, (Status::Ok, "a"));
    assert!(stale.unwrap_err().contains("and is OK b at"));
    let other = answer(&mut truth, 1, &mut model, set("c"), (Status::Ok, ""));
    assert!(other.unwrap_err().contains("by process 1, and not by 0"));
    // A second epoch begins behind the first write.
    let second = history(&[(1, 7, 1), (2, 8, 3)]);
    truth.open(1, &second).unwrap();
    assert!(
        truth
            .open(2, &second)
            .unwrap_err()
            .contains("was by process 1 before")
    );
    truth.check_history(&second).unwrap();
    let wrong = truth.check_history(&history(&[(1, 7, 1), (2, 8, 2)]));
    assert!(wrong.unwrap_err().contains("at 2, not at 3"));
    let mut other = Model::default();
    truth
        .advance(&mut other, Truth::place_of(&second, 3))
        .unwrap();
    assert_eq!(
        other.item(b"k").map(|item| &item.value[..]),
        Some(&b"a"[..])
    );
    let del = Request::Del { key: b"k" };
    answer(&mut truth, 1, &mut other, del, (Status::Ok, "")).unwrap();
    answer(&mut truth, 1, &mut other, get, (Status::NotFound, "")).unwrap();
    let (left, right) = (model.place.unwrap(), other.place.unwrap());
    assert_eq!(truth.only_at(left, &[right]), [1]);
    assert_eq!(truth.only_at(right, &[left]), [2]);
    assert!(truth.check_digest(right, Digest::EMPTY).is_ok());
    assert!(truth.check_digest(left, Digest::EMPTY).is_err());
}
