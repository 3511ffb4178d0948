//! The requests that clients send: operations of all kinds on few keys, most of which expire soon.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_128;

use super::load::{Number, Shape};
use super::random::Random;
use crate::wire::conditional::{Add, Condition, Put, Take, Want};
use crate::wire::expiry::{Expiry, SetAt};
use crate::wire::{Opcode, Request, Status};

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    opcode: Opcode,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Kind {
    /// Adds its frame.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let request = Request::new(self.opcode, &self.key, &self.value);
        request.encode(out).expect("it is short");
    }
}

/// Values that keys had, as a client knows: conditions compare with them.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<Vec<u8>, Vec<u8>>);

impl Known {
    /// Learns from an answer.
    pub(super) fn learn(&mut self, kind: &Kind, status: Status, value: &[u8]) {
        if kind.opcode == Opcode::Set {
            self.0.insert(kind.key.clone(), kind.value.clone());
        } else if kind.opcode == Opcode::Get && status == Status::Ok {
            self.0.insert(kind.key.clone(), value.to_vec());
        }
    }

    /// Chooses a request. `now` is the latest time that a clock has, in milliseconds since 1970.
    pub(super) fn choose(
        &self,
        random: &mut Random,
        number: Number,
        shape: Shape,
        now: u64,
    ) -> Kind {
        if !random.happens(80) {
            return self.choose_one(random, number, shape, now);
        }
        let mut value = Vec::new();
        for _ in 0..random.between(1, 6) {
            let part = self.choose_one(random, number, shape, now);
            part.encode(&mut value);
        }
        Kind {
            opcode: Opcode::Batch,
            key: Vec::new(),
            value,
        }
    }

    fn choose_one(&self, random: &mut Random, number: Number, shape: Shape, now: u64) -> Kind {
        let opcode = opcode(random);
        let is_counter = random.happens(if opcode == Opcode::Add { 950 } else { 150 });
        let key = if is_counter {
            format!("n{}", random.below(shape.keys / 2))
        } else {
            format!("k{}", random.below(shape.keys))
        };
        let key = key.into_bytes();
        let text = text(random, number, shape, is_counter);
        let value = match opcode {
            Opcode::SetAt => SetAt {
                deadline: deadline(random, now),
                value: &text,
            }
            .encode(),
            Opcode::Put => {
                let condition = self.condition(random, &key);
                let expiry = match random.below(5) {
                    0 => Expiry::None,
                    1 | 2 => Expiry::Ttl(ttl(random)),
                    3 if condition != Condition::Absent => Expiry::Keep,
                    _ => Expiry::Deadline(deadline(random, now)),
                };
                let (want, value) = (want(random), &text[..]);
                Put {
                    condition,
                    expiry,
                    want,
                    value,
                }
                .encode()
            }
            Opcode::Take => {
                let condition = match self.condition(random, &key) {
                    Condition::Absent => Condition::Always,
                    condition => condition,
                };
                let want = want(random);
                Take { condition, want }.encode()
            }
            Opcode::Add => {
                let expires = random.happens(500);
                Add {
                    want_token: random.happens(300),
                    delta: i64::try_from(random.below(20)).unwrap_or(0) - 5,
                    start: i64::try_from(random.below(3)).unwrap_or(0),
                    expiry: if expires {
                        Expiry::Ttl(ttl(random))
                    } else {
                        Expiry::None
                    },
                }
                .encode()
            }
            Opcode::Expire => {
                let expiry = match random.below(4) {
                    0 => Expiry::None,
                    1 | 2 => Expiry::Ttl(ttl(random)),
                    _ => Expiry::Deadline(deadline(random, now)),
                };
                let (expiry, time) = expiry.operands();
                opcode.spec().value_of([expiry.into(), time])
            }
            Opcode::Set => text,
            Opcode::Get | Opcode::Del | Opcode::Ttl => Vec::new(),
            other => unreachable!("{} is not drawn", other.name()),
        };
        Kind { opcode, key, value }
    }

    fn condition(&self, random: &mut Random, key: &[u8]) -> Condition<'_> {
        let known = self.0.get(key).map_or(&b"?"[..], |known| known);
        match random.below(6) {
            0 => Condition::Always,
            1 | 2 => Condition::Absent,
            3 => Condition::Present,
            4 if known.len() <= 4_096 => Condition::Equal(known),
            _ => Condition::EqualHash(xxh3_128(known)),
        }
    }
}

fn opcode(random: &mut Random) -> Opcode {
    match random.below(100) {
        0..18 => Opcode::Set,
        18..29 => Opcode::SetAt,
        29..48 => Opcode::Get,
        48..54 => Opcode::Del,
        54..70 => Opcode::Put,
        70..76 => Opcode::Take,
        76..84 => Opcode::Expire,
        84..88 => Opcode::Ttl,
        _ => Opcode::Add,
    }
}

/// A value: now and then a long one, and mostly a number for a counter.
fn text(random: &mut Random, number: Number, shape: Shape, is_counter: bool) -> Vec<u8> {
    if is_counter && random.happens(900) {
        return random.below(1_000).to_string().into_bytes();
    }
    let mut value = format!("v{number}.").into_bytes();
    if random.happens(shape.long) {
        let len = usize::try_from(random.below(shape.long_bytes)).unwrap_or(0);
        value.resize(value.len() + len, b'.');
    }
    value
}

fn want(random: &mut Random) -> Want {
    Want {
        value: random.happens(300),
        token: random.happens(300),
    }
}

/// Milliseconds after which most keys expire while a run goes on.
fn ttl(random: &mut Random) -> u64 {
    match random.below(10) {
        0 => random.between(1_000, 10_000),
        1 => random.between(1, 10),
        _ => random.between(1, 400),
    }
}

fn deadline(random: &mut Random, now: u64) -> u64 {
    // Now and then it has passed.
    (now + ttl(random)).saturating_sub(random.pick(&[0, 0, 50]))
}
