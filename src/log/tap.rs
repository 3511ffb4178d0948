//! The records that writers append, for the simulator: in builds for tests alone.
#![allow(dead_code)] // the log is compiled a second time in tests/order

use std::cell::RefCell;

thread_local! {
    static APPENDED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Notes records that the current thread appends, where it keeps them.
pub(super) fn note(records: &[u8]) {
    APPENDED.with_borrow_mut(|kept| {
        if let Some(kept) = kept {
            kept.extend_from_slice(records);
        }
    });
}

/// Has the current thread keep the records that it appends from now on.
pub(crate) fn keep() {
    APPENDED.set(Some(Vec::new()));
}

/// Takes the frames of the records that the current thread has appended since the last call.
pub(crate) fn take() -> Vec<u8> {
    APPENDED.with_borrow_mut(|kept| kept.as_mut().map(std::mem::take).unwrap_or_default())
}
