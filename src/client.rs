//! The blocking client.

/// A connection to a node.
#[derive(Debug)]
pub struct Client {}
