//! A frame as an annotated hex dump, for people.
