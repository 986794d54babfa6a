//! What connections cost while they rest.

use super::script::{Script, modern};
use super::{EPOCH, Family};
use crate::stack::Config;
use crate::stack::tcb::Tcb;

#[test]
fn a_connection_at_rest_costs_256_bytes_at_most_all_told() {
    const CONNECTIONS: usize = 100_000;
    let mut t = Script::syn_with(modern(), Config::default());
    for family in [Family::V4, Family::V6] {
        t.offer.family = family;
        for port in 1..=(CONNECTIONS / 2) as u16 {
            t.next_client(port, EPOCH);
            t.sends(". 1:1(0) ack 1");
            let id = t.conn();
            // A request and its answer: every connection had work, and a timer.
            t.sends("P. 1:11(10) ack 1");
            assert_eq!(t.stack.recv(t.now, id, &mut [0; 100]), Ok(10));
            assert_eq!(t.stack.send(t.now, id, &[0; 10]), Ok(10));
            while t.stack.poll_transmit(t.now, &mut [0; 2000]).is_some() {}
            t.sends(". 11:11(0) ack 11");
            t.events.clear();
        }
    }
    let stack = &t.stack;
    assert_eq!((stack.connection_count(), stack.buffered_bytes()), (CONNECTIONS, 0));
    assert!(stack.connections.iter().all(Tcb::is_at_rest));
    let bytes = stack.connections.bytes() + stack.index.bytes() + stack.wheel.bytes();
    assert!(bytes <= 256 * CONNECTIONS, "{} a connection", bytes / CONNECTIONS);
}
