//! The server.
use gopherstore::config::LimitsConfig;
use gopherstore::node::{Node, Role};
use gopherstore::server::Server;

fn main() {
    env_logger::init();
    let s = Server::bind(
        "127.0.0.1:7100",
        Node::new(Role::Leader),
        LimitsConfig {
            max_connections: 10000,
            max_value_bytes: 64 << 20,
            request_timeout_ms: 30000,
            idle_timeout_ms: 0,
        },
    )
    .unwrap();
    s.run().unwrap();
}
