//! How full a stack says that it is.

use super::Family;
use super::script::{Offer, Script, modern};
use crate::{Bounded, Config};

/// How much there is of something, and how much there may be.
fn used(t: &Script, what: Bounded) -> (u64, u64) {
    let all = t.stack.usage();
    let found = all.iter().find(|usage| usage.what == what).expect("it is bounded");
    (found.used, found.limit)
}

#[test]
fn a_connection_is_counted_under_what_bounds_it_in_each_part_of_its_life() {
    use Bounded::*;
    let config = Config { max_half_open: 64, max_time_wait: 32, accept_backlog: 5, ..Config::default() };
    for (family, half_open, time_wait, others) in [
        (Family::V4, HalfOpenV4, TimeWaitV4, [HalfOpenV6, TimeWaitV6]),
        (Family::V6, HalfOpenV6, TimeWaitV6, [HalfOpenV4, TimeWaitV4]),
    ] {
        let mut t = Script::syn_with(Offer { family, ..modern() }, config.clone());
        assert!(t.stack.usage().iter().all(|usage| usage.used == 0 && usage.limit > 0));
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
        assert_eq!((used(&t, half_open), used(&t, Connections).0), ((1, 64), 0));
        t.sends(". 1:1(0) ack 1");
        assert_eq!((used(&t, half_open).0, used(&t, Connections).0), (0, 1));
        assert_eq!(used(&t, AcceptQueue), (1, 5));
        t.stack.accepted(7);
        assert_eq!(used(&t, AcceptQueue), (0, 5));
        t.server_sends(1, 10);
        t.expect("P. 1:11(10) ack 1");
        t.sends("P. 1:11(10) ack 1");
        let memory = [SendMemory, ReceiveMemory].map(|what| used(&t, what).0);
        assert!(memory.iter().all(|&bytes| bytes > 0), "{memory:?}");
        t.server_reads(1, 10);
        let id = t.conn();
        t.stack.close(t.now, id);
        assert_eq!(used(&t, Orphans).0, 1);
        t.expect("F. 11:11(0) ack 11");
        t.sends(". 11:11(0) ack 12");
        t.sends("F. 11:11(0) ack 12");
        assert_eq!(used(&t, time_wait), (1, 32));
        let left = [Connections, Orphans, SendMemory, ReceiveMemory, others[0], others[1]];
        assert_eq!(left.map(|what| used(&t, what).0), [0; 6]);
        assert_eq!(used(&t, ClosedFlows).0, 1);
    }
}
