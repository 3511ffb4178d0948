//! The server: listener, a thread per connection, shutdown.
