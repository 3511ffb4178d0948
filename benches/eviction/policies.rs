//! Policies without a server: SIEVE, and the optimal one.

use std::collections::{BTreeSet, HashMap};

use crate::{CAPACITY, Score};

/// An entry of [`sieve`], in a list from the newest to the oldest.
struct Item {
    key: u32,
    is_visited: bool,
    newer: Option<usize>,
    older: Option<usize>,
}

/// SIEVE (Zhang et al., NSDI 2024): new entries at the head, a hand that moves from the tail to the head, clears the
/// bits of visited entries, and evicts the first that has none. Entries do not move.
pub(crate) fn sieve(trace: &[u32]) -> Score {
    let mut score = Score::default();
    let mut places: HashMap<u32, usize> = HashMap::new();
    let mut items: Vec<Item> = Vec::with_capacity(CAPACITY);
    let (mut newest, mut oldest, mut hand): (Option<usize>, Option<usize>, Option<usize>) =
        (None, None, None);
    for (number, &key) in trace.iter().enumerate() {
        if let Some(&at) = places.get(&key) {
            items[at].is_visited = true;
            score.count(number, true);
            continue;
        }
        score.count(number, false);
        let item = Item {
            key,
            is_visited: false,
            newer: None,
            older: newest,
        };
        let at = if items.len() < CAPACITY {
            items.push(item);
            items.len() - 1
        } else {
            let mut at = hand.or(oldest).unwrap();
            while items[at].is_visited {
                items[at].is_visited = false;
                at = items[at].newer.or(oldest).unwrap();
            }
            let Item {
                key, newer, older, ..
            } = items[at];
            hand = newer;
            places.remove(&key);
            match newer {
                Some(newer) => items[newer].older = older,
                None => newest = older,
            }
            match older {
                Some(older) => items[older].newer = newer,
                None => oldest = newer,
            }
            items[at] = Item {
                older: newest,
                ..item
            };
            at
        };
        if let Some(newest) = newest {
            items[newest].newer = Some(at);
        }
        newest = Some(at);
        oldest = oldest.or(newest);
        places.insert(key, at);
    }
    score
}

/// Belady's policy, which knows what comes: the entry whose next access is the farthest makes room, and a key whose
/// own is farther is not kept.
pub(crate) fn optimal(trace: &[u32]) -> Score {
    let mut next_of = vec![usize::MAX; trace.len()];
    let mut later: HashMap<u32, usize> = HashMap::new();
    for (number, &key) in trace.iter().enumerate().rev() {
        next_of[number] = later.insert(key, number).unwrap_or(usize::MAX);
    }
    let mut score = Score::default();
    // The next access of each entry that is held.
    let mut held: BTreeSet<(usize, u32)> = BTreeSet::new();
    for (number, &key) in trace.iter().enumerate() {
        let is_hit = held.remove(&(number, key));
        score.count(number, is_hit);
        held.insert((next_of[number], key));
        if held.len() > CAPACITY {
            held.pop_last();
        }
    }
    score
}
