//! Traits of opcodes: the part of the command table that the hot path reads, one byte for each opcode.

use super::Opcode;
use super::command::{CommandSpec, Limit};

/// Properties of an opcode that the hot path reads, one bit each, indexed by its byte. No bit is set for a byte that is
/// no opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traits(u8);

impl Traits {
    const HAS_KEY: u8 = 1 << 0;
    const HAS_VALUE: u8 = 1 << 1;
    const WRITES: u8 = 1 << 2;
    const RECORD: u8 = 1 << 3;
    const BATCHABLE: u8 = 1 << 4;
    /// The limit on its value is another one than the node's.
    const OWN_LIMIT: u8 = 1 << 5;
    /// Its effect is computed from the old entry.
    const COMPUTED: u8 = 1 << 6;

    /// The traits of an opcode's byte.
    #[inline]
    pub(super) fn of(opcode: u8) -> Traits {
        static TABLE: [Traits; 256] = Traits::table();
        TABLE[usize::from(opcode)]
    }

    const fn table() -> [Traits; 256] {
        let (mut table, mut at) = ([Traits(0); 256], 0);
        while at < Opcode::ALL.len() {
            let opcode = Opcode::ALL[at];
            table[opcode as usize] = Traits::of_spec(opcode.spec());
            at += 1;
        }
        table
    }

    const fn of_spec(spec: &CommandSpec) -> Traits {
        let has_own_limit = match spec.rest_max {
            Limit::Node => !spec.operands.is_empty(),
            Limit::Bytes(_) => spec.uses_value(),
        };
        let bits = [
            (spec.has_key, Traits::HAS_KEY),
            (spec.uses_value(), Traits::HAS_VALUE),
            (spec.writes, Traits::WRITES),
            (spec.is_record, Traits::RECORD),
            (spec.batchable, Traits::BATCHABLE),
            (has_own_limit, Traits::OWN_LIMIT),
            (spec.effect_extra.is_some(), Traits::COMPUTED),
        ];
        let (mut traits, mut at) = (0, 0);
        while at < bits.len() {
            if bits[at].0 {
                traits |= bits[at].1;
            }
            at += 1;
        }
        Traits(traits)
    }

    const fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    /// Whether a request carries a key.
    pub(super) const fn has_key(self) -> bool {
        self.has(Traits::HAS_KEY)
    }

    /// Whether a request carries a value.
    pub(super) const fn has_value(self) -> bool {
        self.has(Traits::HAS_VALUE)
    }

    /// Whether the operation changes the data set.
    pub(super) const fn writes(self) -> bool {
        self.has(Traits::WRITES)
    }

    /// Whether the effect of the operation is computed from the old entry.
    pub(super) const fn is_computed(self) -> bool {
        self.has(Traits::COMPUTED)
    }

    /// Whether the request's frame may be a record of the log.
    pub(super) const fn is_record(self) -> bool {
        self.has(Traits::RECORD)
    }

    /// Whether a request may share a run with others.
    pub(super) const fn is_batchable(self) -> bool {
        self.has(Traits::BATCHABLE)
    }

    /// Whether the limit on its value is another one than the node's.
    pub(super) const fn has_own_limit(self) -> bool {
        self.has(Traits::OWN_LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::request::Limits;

    #[test]
    fn the_traits_of_a_byte_are_those_of_its_row() {
        for byte in 0..=u8::MAX {
            let traits = Traits::of(byte);
            let Ok(opcode) = Opcode::try_from(byte) else {
                assert_eq!(traits, Traits(0), "{byte:#04x}");
                continue;
            };
            let spec = opcode.spec();
            assert_eq!((opcode.byte(), spec.opcode), (byte, opcode));
            assert_eq!(traits.has_key(), spec.has_key);
            assert_eq!(traits.has_value(), spec.uses_value());
            assert_eq!(traits.writes(), spec.writes);
            assert_eq!(traits.is_record(), spec.is_record);
            assert_eq!(traits.is_computed(), spec.effect_extra.is_some());
            assert_eq!(traits.is_batchable(), spec.batchable);
            for value_len_max in [0, 1, 5_000] {
                let limits = Limits { value_len_max };
                let is_node_limit = spec.value_len_max(&limits) == value_len_max;
                assert!(traits.has_own_limit() || is_node_limit || !spec.uses_value());
            }
        }
    }
}
