//! What a node answers to a request, whatever it came in by.
