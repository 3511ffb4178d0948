//! The shipped engine as a cache.

use gopherstore::engine::memory::MemoryLimit;
use gopherstore::engine::store::Store;
use gopherstore::engine::{Admission, Answers, Engine};
use gopherstore::time::MachineTime;
use gopherstore::wire::request::Limits;
use gopherstore::wire::run::Run;
use gopherstore::wire::{Request, Status};

use crate::{CAPACITY, Score, VALUE_LEN, key};

/// Drives the engine with a limit at which it holds about [`CAPACITY`] entries. Returns the entries at the end, too.
pub(crate) fn run(trace: &[u32]) -> (Score, usize) {
    // The memory of that many entries, and then their memory once their tables have seen evictions.
    let filled = Cache::new(u64::MAX);
    (0..u32::try_from(CAPACITY).unwrap()).for_each(|number| filled.store(number));
    let mut max_bytes = filled.engine.memory_bytes();
    let (mut score, mut held) = drive(trace, max_bytes);
    for _ in 0..2 {
        max_bytes = max_bytes * u64::try_from(CAPACITY).unwrap() / u64::try_from(held).unwrap();
        (score, held) = drive(trace, max_bytes);
    }
    (score, held)
}

fn drive(trace: &[u32], max_bytes: u64) -> (Score, usize) {
    let cache = Cache::new(max_bytes);
    let mut score = Score::default();
    for (number, &key) in trace.iter().enumerate() {
        let is_hit = cache.is_there(key);
        score.count(number, is_hit);
        if !is_hit {
            cache.store(key);
        }
    }
    (score, cache.engine.len())
}

struct Cache {
    engine: Engine,
}

impl Cache {
    fn new(max_bytes: u64) -> Cache {
        let evicts = true;
        let store = Store::new().with_limit(MemoryLimit { max_bytes, evicts });
        let engine = Engine::with_store(store, None, MachineTime::clock());
        engine.admit(Admission {
            reads: true,
            writes: true,
        });
        Cache { engine }
    }

    /// Executes one request, and returns the status of its answer.
    fn ask(&self, request: Request<'_>) -> u8 {
        let (mut frame, mut answers) = (Vec::new(), Answers::new());
        request.encode(&mut frame).unwrap();
        let run = Run::of(&frame, &Limits::default());
        self.engine.execute(&run, None, &mut answers).unwrap();
        answers.bytes()[0]
    }

    fn is_there(&self, number: u32) -> bool {
        let key = key(number);
        let key = key.as_bytes();
        self.ask(Request::Get { key }) == Status::Ok.byte()
    }

    fn store(&self, number: u32) {
        let key = key(number);
        let (key, value) = (key.as_bytes(), [b'v'; VALUE_LEN].as_slice());
        let status = self.ask(Request::Set { key, value });
        assert_eq!(status, Status::Ok.byte(), "a cache takes every write");
    }
}
