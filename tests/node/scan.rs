//! Scans beside writers: the contract, under rounds of changes that follow from a seed and come between any two locks.
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::rc::Rc;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use gopherstore::engine::scan::{Bounds, NotScanned};
use gopherstore::engine::store::Store;
use gopherstore::engine::{Admission, Answers, Engine};
use gopherstore::time::MachineTime;
use gopherstore::wire::comparison::{ComparisonError, Place};
use gopherstore::wire::expiry::SetAt;
use gopherstore::wire::request::Limits;
use gopherstore::wire::scan::{Scan, ScanAnswer, ScanError};
use gopherstore::wire::{Request, Run};

type Between = Box<dyn FnMut()>;

thread_local! {
    static BETWEEN: RefCell<Option<Between>> = const { RefCell::new(None) };
}

/// Called by a scan after each of its locks.
fn between_locks() {
    let between = BETWEEN.take();
    if let Some(mut between) = between {
        between();
        BETWEEN.set(Some(between));
    }
}

fn execute(engine: &Engine, request: &Request<'_>) {
    let mut frame = Vec::new();
    request.encode(&mut frame).unwrap();
    let run = Run::of(&frame, &Limits::default());
    let outcome = engine.execute(&run, None, &mut Answers::new()).unwrap();
    assert_eq!(outcome.count, 1);
}

fn set(engine: &Engine, key: &[u8], value: &[u8]) {
    execute(engine, &Request::Set { key, value });
}

fn remove(engine: &Engine, key: &[u8]) {
    execute(engine, &Request::Del { key });
}

fn engine(partitions: usize, seed: u64) -> Engine {
    let engine = Engine::with_store(Store::seeded(partitions, seed), None, MachineTime::clock());
    let (reads, writes) = (true, true);
    engine.admit(Admission { reads, writes });
    engine
}

/// Changes a store at random. Keys that begin with `s` stay in it, with new values.
struct Writer {
    engine: Rc<Engine>,
    random: ChaCha8Rng,
    stable: Vec<Vec<u8>>,
    /// Number of the last key that made a table grow.
    next: u32,
    /// Most changes at one time.
    most: u32,
    /// Changes that are left. A scan that ends is no proof that it ends beside any writer.
    left: u32,
}

impl Writer {
    fn value(&mut self) -> Vec<u8> {
        let len = match self.random.random_range(0..10) {
            0 => self.random.random_range(0..2_000),
            _ => self.random.random_range(0..40),
        };
        vec![b'v'; len]
    }

    /// A key that is no stable one. Some share their first bytes with these.
    fn other_key(&mut self) -> Vec<u8> {
        let number = self.random.random_range(0..300);
        match number % 3 {
            0 => format!("s{number}!").into_bytes(),
            1 => format!("t{number}").into_bytes(),
            _ => [&vec![b's'; 300][..], number.to_string().as_bytes()].concat(),
        }
    }

    fn change(&mut self) {
        let value = self.value();
        match self.random.random_range(0..20) {
            0 => {
                // A table grows.
                for _ in 0..self.random.random_range(0..400) {
                    self.next += 1;
                    let key = format!("u{}", self.next);
                    set(&self.engine, key.as_bytes(), b"x");
                }
            }
            1 => {
                // A table shrinks.
                for number in 0..=self.next {
                    remove(&self.engine, format!("u{number}").as_bytes());
                }
                self.next = 0;
            }
            2 | 3 => {
                // A table is rehashed in place, where removed entries have left marks.
                for number in 0..200 {
                    let key = format!("w{number}");
                    set(&self.engine, key.as_bytes(), b"");
                    remove(&self.engine, key.as_bytes());
                }
            }
            4..10 => {
                let at = self.random.random_range(0..self.stable.len());
                let key = self.stable[at].clone();
                set(&self.engine, &key, &value);
            }
            10..15 => {
                let key = self.other_key();
                set(&self.engine, &key, &value);
            }
            _ => {
                let key = self.other_key();
                remove(&self.engine, &key);
            }
        }
    }

    fn some_changes(&mut self) {
        let count = self.random.random_range(0..self.most);
        for _ in 0..count.min(self.left) {
            self.left -= 1;
            self.change();
        }
    }
}

/// Keys that exist throughout, short and long.
fn stable_keys(random: &mut ChaCha8Rng) -> Vec<Vec<u8>> {
    let count = random.random_range(1..400);
    let key = |number: u32| match number % 50 {
        0 => [&vec![b's'; 400][..], number.to_string().as_bytes()].concat(),
        _ => format!("s{number}").into_bytes(),
    };
    (0..count).map(key).collect()
}

/// Scans to the end, with `between` called between any two locks and requests. Returns how often each key came.
fn scan(
    engine: &Engine,
    request: &Scan,
    bounds: Bounds,
    mut between: impl FnMut(),
) -> BTreeMap<Vec<u8>, usize> {
    let mut seen = BTreeMap::new();
    let mut request = request.clone();
    loop {
        let (answer, _) = engine.scan(&request, bounds).unwrap();
        let answer = ScanAnswer::decode(&answer).unwrap();
        assert_eq!(answer.with_values, request.with_values);
        let (mut count, mut bytes) = (0, 0);
        for item in answer.items() {
            assert!(item.key.starts_with(&request.prefix));
            assert_eq!(item.value.is_some(), request.with_values);
            *seen.entry(item.key.to_vec()).or_default() += 1;
            count += 1;
            bytes += item.key.len() + item.value.map_or(0, <[u8]>::len);
        }
        assert!(request.max == 0 || count <= request.max);
        assert!(count == 1 || bytes <= 2 * bounds.bytes, "{bytes}");
        if answer.next.is_end(answer.partitions) {
            return seen;
        }
        assert!(answer.next.is_after(&request.place));
        request.place = answer.next;
        between();
    }
}

fn scan_beside_a_writer(seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let engine = Rc::new(engine(1 << random.random_range(0..4), seed));
    let stable = stable_keys(&mut random);
    for key in &stable {
        set(&engine, key, b"first");
    }
    let bounds = Bounds {
        items: random.random_range(1..200),
        bytes: random.random_range(1..20_000),
        visited: random.random_range(1..1_000),
        buckets_per_lock: random.random_range(1..100),
        between_locks,
    };
    let request = Scan {
        prefix: [&b""[..], b"s", b"s1", b"sss"][random.random_range(0..4)].to_vec(),
        with_values: random.random_bool(0.5),
        max: [0, random.random_range(1..50)][random.random_range(0..2)],
        place: Place::default(),
    };
    let most = random.random_range(2..20);
    let writer = Rc::new(RefCell::new(Writer {
        engine: Rc::clone(&engine),
        random,
        stable: stable.clone(),
        next: 0,
        most,
        left: 200,
    }));
    writer.borrow_mut().some_changes();
    let in_locks = Rc::clone(&writer);
    BETWEEN.set(Some(Box::new(move || in_locks.borrow_mut().some_changes())));
    let seen = scan(&engine, &request, bounds, || {
        writer.borrow_mut().some_changes()
    });
    BETWEEN.take();
    let wanted: BTreeSet<_> = stable
        .iter()
        .filter(|key| key.starts_with(&request.prefix))
        .collect();
    for key in wanted {
        let times = seen.get(key).copied().unwrap_or(0);
        let key = String::from_utf8_lossy(key);
        assert_eq!(
            times, 1,
            "key {key} of a scan with seed {seed}: {bounds:?} {request:?}"
        );
    }
}

/// `SCAN_SEED=N` runs one seed again, `SCAN_SEEDS=N` the first N.
#[test]
fn a_key_that_exists_throughout_is_returned_exactly_once() {
    let number = |name| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    if let Some(seed) = number("SCAN_SEED") {
        return scan_beside_a_writer(seed);
    }
    (0..number("SCAN_SEEDS").unwrap_or(60)).for_each(scan_beside_a_writer);
}

#[test]
fn a_scan_without_writers_returns_all_keys_and_values_whatever_its_bounds() {
    let engine = engine(8, 7);
    let mut expected = BTreeMap::new();
    for number in 0..2_000_u32 {
        let key = format!("key{number}").into_bytes();
        let value = vec![b'x'; usize::try_from(number).unwrap()];
        set(&engine, &key, &value);
        expected.insert(key, 1);
    }
    for (max, bytes, visited) in [
        (0, 1 << 20, 1 << 17),
        (1, 1, 1),
        (7, 3_000, 100),
        (u32::MAX, 50_000, 1),
    ] {
        for with_values in [false, true] {
            let bounds = Bounds {
                bytes,
                visited,
                ..Bounds::default()
            };
            let request = Scan {
                max,
                with_values,
                ..Scan::default()
            };
            assert_eq!(scan(&engine, &request, bounds, || ()), expected);
        }
    }
}

#[test]
fn a_place_that_is_none_of_the_store_is_refused() {
    let engine = engine(4, 1);
    let (whole, _) = engine.scan(&Scan::default(), Bounds::default()).unwrap();
    let incarnation = ScanAnswer::decode(&whole).unwrap().next.incarnation;
    let scan = |place: Place| {
        let place = Place {
            incarnation,
            ..place
        };
        let request = Scan {
            place,
            ..Scan::default()
        };
        engine.scan(&request, Bounds::default()).map(drop)
    };
    let place = |partition| Place {
        partition,
        ..Place::default()
    };
    assert!(scan(place(4)).is_ok());
    let error = scan(place(5)).unwrap_err();
    let fault = ComparisonError::Partition {
        partition: 5,
        partitions: 4,
    };
    assert!(matches!(error, NotScanned::Fault(ScanError::Place(place)) if place == fault));
    let request = Scan {
        place: Place {
            incarnation: 1,
            ..Place::default()
        },
        ..Scan::default()
    };
    let error = engine.scan(&request, Bounds::default()).unwrap_err();
    assert!(matches!(
        error,
        NotScanned::Fault(ScanError::Incarnation { incarnation: 1 })
    ));
    engine.admit(Admission::default());
    let refused = engine.scan(&Scan::default(), Bounds::default());
    assert!(matches!(refused, Err(NotScanned::Refused)));
}

#[test]
fn a_key_whose_deadline_has_passed_is_left_out_and_others_come_with_theirs() {
    let engine = engine(2, 3);
    let (past, far) = (1, u64::MAX);
    for number in 0..200_u32 {
        let key = &number.to_string().into_bytes();
        match number % 3 {
            0 => set(&engine, key, b"none"),
            kind => {
                let deadline = if kind == 1 { past } else { far };
                let long = vec![b'x'; 500];
                let value = if number % 2 == 0 { &long[..] } else { b"short" };
                let value = &SetAt { deadline, value }.encode();
                execute(&engine, &Request::SetAt { key, value });
            }
        }
    }
    for with_values in [false, true] {
        let request = Scan {
            with_values,
            ..Scan::default()
        };
        let (answer, _) = engine.scan(&request, Bounds::default()).unwrap();
        let answer = ScanAnswer::decode(&answer).unwrap();
        assert!(answer.next.is_end(answer.partitions));
        let mut count = 0;
        for item in answer.items() {
            let number: u32 = std::str::from_utf8(item.key).unwrap().parse().unwrap();
            let deadline = (number % 3 == 2 && with_values).then_some(far);
            assert_eq!((item.deadline, number % 3 == 1), (deadline, false));
            assert_eq!(item.value.is_some(), with_values);
            count += 1;
        }
        assert_eq!(count, 200 - 67);
    }
}
