//! EPOCH, the record with which an epoch begins.

use crate::history::EpochStart;
use crate::wire::{Opcode, Request, RequestFrame};

/// The frame of the record.
pub(crate) fn encode(start: EpochStart) -> Vec<u8> {
    let value = &Opcode::Epoch.spec().value_of([start.epoch, start.nonce]);
    let mut frame = Vec::new();
    let encoded = Request::Epoch { value }.encode(&mut frame);
    encoded.unwrap_or_else(|_| unreachable!("two numbers fit in a frame"));
    frame
}

/// The epoch that the record with this index begins; `None` where the frame is another record.
pub(crate) fn decode(frame: &RequestFrame<'_>, index: u64) -> Option<EpochStart> {
    if frame.opcode() != Opcode::Epoch {
        return None;
    }
    let operands = frame.opcode().spec().operands_of(frame.value());
    let [epoch, nonce] = operands.ok()?;
    Some(EpochStart {
        epoch,
        nonce,
        start_index: index,
    })
}
