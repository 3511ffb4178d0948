//! Every decoder of GBP over any bytes. What must hold is in `checks.rs`, which the ordinary tests run too.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks.rs"]
mod checks;

fuzz_target!(|input: &[u8]| checks::check(input));
