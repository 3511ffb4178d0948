//! Command lines: what both binaries expect of one, beyond what `argh` gives.
