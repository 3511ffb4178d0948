//! The data set of a node: the store, its entries, its digest and the comparison of nodes.

pub mod comparison;
pub mod digest;
pub mod entry;
pub mod store;
