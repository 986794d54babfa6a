//! Drives the stack through the shared library that packetdrill loads, by the table of C functions and as packetdrill does
//! it: system calls, packets in, packets out, and a clock that moves only when told to.

#[path = "../support/example.rs"]
mod example;
mod tool;

use std::time::Duration;

use libc::{
    EAGAIN, EBADF, ECONNREFUSED, ECONNRESET, EFAULT, EINPROGRESS, EINVAL, ENOPROTOOPT, ENOTCONN, EPIPE,
    ETIMEDOUT, IPPROTO_TCP, POLLHUP, POLLIN, POLLOUT, SO_ERROR, SOL_SOCKET, TCP_INFO, TCP_MAXSEG,
    TCP_USER_TIMEOUT,
};
use tool::{Family, Tool};

const BOTH: [Family; 2] = [Family::V4, Family::V6];
/// The words of `--so_flags` by which a passive open is the stack's own, and by which it comes from a cookie.
const WAYS: [&str; 2] = ["", "adopt"];
/// States in Linux's numbers.
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const FIN_WAIT_1: u8 = 4;
const FIN_WAIT_2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSED: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;

/// Runs `script` for both families and both kinds of passive open.
#[expect(clippy::print_stderr, reason = "a failure shows which of them it was")]
fn in_every_way(script: impl Fn(&mut Tool)) {
    for family in BOTH {
        for flags in WAYS {
            eprintln!("{family:?}, flags {flags:?}");
            script(&mut Tool::new(family, flags));
        }
    }
}

#[test]
fn the_table_is_filled_as_the_header_orders_it_and_no_further() {
    // The members of `struct packetdrill_interface`, in the order of packetdrill.h.
    const MEMBERS: [&str; 33] = [
        "userdata",
        "free",
        "socket",
        "bind",
        "listen",
        "accept",
        "connect",
        "read",
        "readv",
        "recv",
        "recvfrom",
        "recvmsg",
        "write",
        "writev",
        "send",
        "sendto",
        "sendmsg",
        "fcntl",
        "ioctl",
        "close",
        "shutdown",
        "getsockopt",
        "setsockopt",
        "poll",
        "netdev_send",
        "netdev_receive",
        "usleep",
        "gettimeofday",
        "epoll_create",
        "epoll_ctl",
        "epoll_wait",
        "pipe",
        "splice",
    ];
    assert_eq!(tool::members(), MEMBERS, "what the other tests call by these names lies in these places");
    let words = tool::raw_table(MEMBERS.len() + 7);
    let (filled, rest) = words.split_at(MEMBERS.len());
    for (at, (word, name)) in filled.iter().zip(MEMBERS).enumerate() {
        assert!(*word != 0 && *word != tool::POISON, "{name} is not filled");
        assert!(!filled[..at].contains(word), "{name} is the same as another");
    }
    assert!(rest.iter().all(|word| *word == tool::POISON), "written past the end");
}

#[test]
fn a_passive_open_carries_data_both_ways_and_half_closes_either_way() {
    in_every_way(|t| {
        let (listener, socket) = t.accepted();
        assert_eq!((t.state(listener), t.state(socket)), (LISTEN, ESTABLISHED));
        t.sends("P. 1:11(10) ack 1");
        t.expect(". 1:1(0) ack 11");
        assert_eq!(t.read(socket, 100), Ok(t.stream(1, 10)));
        assert_eq!(t.write(socket, 20), Ok(20));
        t.expect("P. 1:21(20) ack 11");
        t.sends(". 11:11(0) ack 21");
        // The peer closes its half: the end is read, and we go on.
        t.sends("F. 11:11(0) ack 21");
        t.expect(". 21:21(0) ack 12");
        assert_eq!((t.read(socket, 100), t.state(socket)), (Ok(vec![]), CLOSE_WAIT));
        assert_eq!(t.write(socket, 5), Ok(5));
        t.expect("P. 21:26(5) ack 12");
        t.sends(". 12:12(0) ack 26");
        t.shutdown(socket, libc::SHUT_WR);
        t.expect("F. 26:26(0) ack 12");
        assert_eq!(t.state(socket), LAST_ACK);
        t.sends(". 12:12(0) ack 27");
        assert_eq!((t.state(socket), t.write(socket, 1)), (CLOSED, Err(EPIPE)));
        t.close(socket);
        t.silent();
    });
}

#[test]
fn our_half_closes_first_and_time_wait_acknowledges_a_fin_that_comes_again() {
    in_every_way(|t| {
        let (_, socket) = t.accepted();
        t.shutdown(socket, libc::SHUT_WR);
        t.expect("F. 1:1(0) ack 1");
        assert_eq!((t.state(socket), t.write(socket, 1)), (FIN_WAIT_1, Err(EPIPE)));
        t.sends(". 1:1(0) ack 2");
        assert_eq!(t.state(socket), FIN_WAIT_2);
        t.sends("P. 1:101(100) ack 2");
        t.expect(". 2:2(0) ack 101");
        assert_eq!(t.read(socket, 100), Ok(t.stream(1, 100)));
        t.sends("F. 101:101(0) ack 2");
        t.expect(". 2:2(0) ack 102");
        assert_eq!((t.read(socket, 1), t.state(socket)), (Ok(vec![]), TIME_WAIT));
        t.sleep(Duration::from_secs(1));
        t.sends("F. 101:101(0) ack 2");
        t.expect(". 2:2(0) ack 102");
        t.silent();
    });
}

#[test]
fn an_active_open_connects_in_both_families() {
    for family in BOTH {
        let t = &mut Tool::new(family, "");
        let socket = t.socket(libc::SOCK_NONBLOCK);
        assert_eq!(t.connect(socket), Err(EINPROGRESS));
        assert_eq!((t.connect(socket), t.state(socket)), (Err(libc::EALREADY), SYN_SENT));
        assert_eq!(t.poll(socket, POLLOUT, 0), 0);
        assert_eq!(t.write(socket, 1), Err(EAGAIN));
        t.expect_syn();
        t.sends("S. 0:0(0) ack 1");
        t.expect(". 1:1(0) ack 1");
        assert_eq!((t.poll(socket, POLLOUT, 0), t.option(socket, SOL_SOCKET, SO_ERROR)), (POLLOUT, Ok(0)));
        assert_eq!((t.connect(socket), t.connect(socket)), (Ok(()), Err(libc::EISCONN)));
        assert_eq!(t.write(socket, 3), Ok(3));
        t.expect("P. 1:4(3) ack 1");
        t.sends("P. 1:3(2) ack 4");
        assert_eq!(t.read(socket, 10), Ok(t.stream(1, 2)));
    }
}

#[test]
fn an_active_open_is_refused_or_gives_up() {
    for family in BOTH {
        let t = &mut Tool::new(family, "");
        let socket = t.socket(libc::SOCK_NONBLOCK);
        assert_eq!(t.connect(socket), Err(EINPROGRESS));
        t.expect_syn();
        t.sends("R. 0:0(0) ack 1");
        assert_eq!(t.connect(socket), Err(ECONNREFUSED));
        // A blocking one on the thread that moves the clock lives through its retransmissions, to the end.
        let start = t.time();
        let socket = t.socket(0);
        assert_eq!(t.connect(socket), Err(ETIMEDOUT));
        let waited = t.time() - start;
        assert!(waited > Duration::from_secs(100), "{waited:?}");
    }
}

#[test]
fn a_reset_is_told_once_and_leaves_the_end_behind() {
    in_every_way(|t| {
        let (_, socket) = t.accepted();
        t.sends("P. 1:5(4) ack 1");
        t.expect(". 1:1(0) ack 5");
        t.sends("R 5:5(0)");
        assert_eq!(t.poll(socket, POLLIN, 0) & POLLHUP, POLLHUP);
        assert_eq!(t.read(socket, 10), Ok(t.stream(1, 4)), "what arrived before it");
        assert_eq!(t.read(socket, 10), Err(ECONNRESET));
        assert_eq!((t.read(socket, 10), t.write(socket, 1)), (Ok(vec![]), Err(EPIPE)));
        t.silent();
    });
}

#[test]
fn closing_with_unread_data_or_without_lingering_resets() {
    in_every_way(|t| {
        let (_, socket) = t.accepted();
        t.sends("P. 1:5(4) ack 1");
        t.expect(". 1:1(0) ack 5");
        t.close(socket);
        t.expect("R. 1:1(0) ack 5");
        let t = &mut Tool::new(t.family(), t.flags());
        let (_, socket) = t.accepted();
        t.linger(socket, 0);
        t.close(socket);
        t.expect("R. 1:1(0) ack 1");
    });
}

#[test]
fn lost_data_comes_again_in_virtual_time_and_backs_off() {
    in_every_way(|t| {
        let (_, socket) = t.accepted();
        assert_eq!(t.write(socket, 100), Ok(100));
        t.expect("P. 1:101(100) ack 1");
        let mut sent = t.sent_at();
        let mut pauses = Vec::new();
        for _ in 0..4 {
            t.expect("P. 1:101(100) ack 1");
            pauses.push((t.sent_at() - sent).as_millis());
            sent = t.sent_at();
        }
        // Each at twice the pause before, but for the ticks of a millisecond that timers are rounded up to.
        assert!(pauses.windows(2).all(|pair| pair[1].abs_diff(2 * pair[0]) <= 3), "{pauses:?}");
        t.sends(". 1:1(0) ack 101");
        t.sleep(Duration::from_secs(60));
        t.silent();
    });
}

#[test]
fn a_lost_syn_ack_comes_again_only_without_cookies() {
    for family in BOTH {
        let t = &mut Tool::new(family, "");
        t.listening();
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
        t.expect("S. 0:0(0) ack 1");
        t.sends(". 1:1(0) ack 1");
        t.silent();
        let t = &mut Tool::new(family, "adopt");
        t.listening();
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
        t.sleep(Duration::from_secs(60));
        t.silent();
    }
}

#[test]
fn an_unknown_segment_is_reset_by_the_stack_and_dropped_by_xdp() {
    for family in BOTH {
        let t = &mut Tool::new(family, "");
        t.listening();
        t.sends(". 1:1(0) ack 1");
        t.expect("R 1:1(0)");
        let t = &mut Tool::new(family, "adopt");
        t.listening();
        t.sends(". 1:1(0) ack 1");
        t.silent();
    }
}

#[test]
fn a_cookie_rounds_the_peers_mss_down_and_the_stack_keeps_it() {
    for (flags, mss) in [("", 1100), ("adopt", 536)] {
        let t = &mut Tool::new(Family::V4, flags);
        t.offer_mss(1100);
        let (_, socket) = t.accepted();
        assert_eq!(t.option(socket, IPPROTO_TCP, TCP_MAXSEG), Ok(mss));
    }
}

#[test]
fn an_mss_and_a_user_timeout_hold_once_they_are_set() {
    let t = &mut Tool::new(Family::V4, "");
    t.offer_mss(1300);
    let listener = t.listening();
    assert_eq!(t.set_option(listener, IPPROTO_TCP, TCP_MAXSEG, 100), Err(EINVAL));
    for (name, value) in [(TCP_MAXSEG, 1100), (TCP_USER_TIMEOUT, 3000)] {
        assert_eq!(t.set_option(listener, IPPROTO_TCP, name, value), Ok(()));
        assert_eq!(t.option(listener, IPPROTO_TCP, name), Ok(value));
    }
    t.handshake();
    let socket = t.accept(listener).expect("a connection to accept");
    assert_eq!(t.option(socket, IPPROTO_TCP, TCP_MAXSEG), Ok(1100));
    assert_eq!(t.write(socket, 1100), Ok(1100));
    t.expect("P. 1:1101(1100) ack 1");
    t.sleep(Duration::from_secs(4));
    assert_eq!(t.write(socket, 1), Err(ETIMEDOUT));
}

#[test]
fn a_blocking_call_on_another_thread_returns_when_the_main_one_makes_it_happen() {
    in_every_way(|t| {
        let listener = t.listening();
        let accepting = t.waiting(move |t| t.accept(listener));
        t.sleep(Duration::from_secs(5));
        t.handshake();
        let shaken = t.time();
        t.sleep(Duration::from_secs(5));
        let (accepted, time) = accepting.join().unwrap();
        let socket = accepted.expect("accepted");
        assert!(time < shaken + Duration::from_secs(1), "{:?} late", time - shaken);
        let reading = t.waiting(move |t| t.read(socket, 10));
        t.sends("P. 1:11(10) ack 1");
        assert_eq!(reading.join().unwrap().0, Ok(t.stream(1, 10)));
    });
}

#[test]
fn a_call_that_nothing_can_end_fails_on_the_main_thread() {
    let t = &mut Tool::new(Family::V4, "");
    let listener = t.listening();
    assert_eq!(t.accept(listener), Err(libc::EDEADLK));
}

#[test]
fn polling_waits_in_virtual_time() {
    in_every_way(|t| {
        let (_, socket) = t.accepted();
        let start = t.time();
        assert_eq!(t.poll(socket, POLLIN, 3000), 0);
        let waited = t.time() - start;
        assert!(waited >= Duration::from_secs(3) && waited < Duration::from_millis(3010), "{waited:?}");
        t.sends("P. 1:5(4) ack 1");
        assert_eq!(t.poll(socket, POLLIN | POLLOUT, -1), POLLIN | POLLOUT);
    });
}

#[test]
fn an_edge_is_told_once_and_again_when_more_arrives() {
    in_every_way(|t| {
        let (_, socket) = t.accepted();
        let (input, output) = (POLLIN as u32, POLLOUT as u32);
        let set = t.epoll(socket, input | output | libc::EPOLLET as u32, 77);
        assert_eq!(t.epoll_wait(set), [(output, 77)]);
        assert_eq!(t.epoll_wait(set), []);
        t.sends("P. 1:5(4) ack 1");
        assert_eq!(t.epoll_wait(set), [(input | output, 77)]);
        assert_eq!(t.epoll_wait(set), []);
        t.sends("P. 5:9(4) ack 1");
        assert_eq!(t.epoll_wait(set), [(input | output, 77)], "more, though nothing was read");
        t.close(socket);
        assert_eq!(t.epoll_wait(set), [], "a closed descriptor is in no set");
    });
}

#[test]
fn bytes_go_through_a_pipe_from_one_connection_to_another() {
    let t = &mut Tool::new(Family::V4, "");
    let (_, socket) = t.accepted();
    let (output, input) = t.pipe();
    t.sends("P. 1:101(100) ack 1");
    t.expect(". 1:1(0) ack 101");
    assert_eq!(t.splice(socket, input, 1000), Ok(100));
    assert_eq!(t.splice(output, socket, 40), Ok(40));
    t.expect_data(1, &t.stream(1, 40));
    assert_eq!(t.read(output, 1000), Ok(t.stream(41, 60)));
}

#[test]
fn what_is_wrong_with_a_call_is_told_as_the_kernel_does() {
    let t = &mut Tool::new(Family::V4, "");
    let socket = t.socket(0);
    assert_eq!(t.read(socket, 1), Err(ENOTCONN));
    assert_eq!(t.read(-1, 1), Err(EBADF));
    assert_eq!(t.read_nowhere(socket, 1), Err(EFAULT));
    assert_eq!(t.option(socket, IPPROTO_TCP, TCP_MAXSEG), Ok(536));
    assert_eq!(t.option(socket, IPPROTO_TCP, 9999), Err(ENOPROTOOPT));
    assert_eq!(t.option_len(socket, IPPROTO_TCP, TCP_INFO), 104);
    t.close(socket);
    assert_eq!(t.read(socket, 1), Err(EBADF));
    // Neither version of IP.
    assert_eq!(t.inject(&[0x55; 40]), Err(EINVAL));
    assert_eq!(t.inject(&[]), Err(EINVAL));
}

#[test]
fn every_look_at_the_clock_moves_it_a_little() {
    let t = &mut Tool::new(Family::V4, "");
    let times: Vec<_> = (0..1000).map(|_| t.time()).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(times[999] - times[0] < Duration::from_millis(10));
    let before = t.time();
    t.sleep(Duration::from_secs(3600));
    assert!(t.time() - before >= Duration::from_secs(3600));
    t.silent();
}

#[test]
fn the_library_is_freed_with_descriptors_that_the_tool_closes_itself() {
    let t = &mut Tool::new(Family::V4, "adopt");
    let (listener, socket) = t.accepted();
    for fd in [listener, socket] {
        // SAFETY: the descriptor is open, and only its number is left in the library.
        assert_eq!(unsafe { libc::close(fd) }, 0);
    }
    t.free();
}

#[test]
fn variadic_calls_and_those_with_several_buffers_reach_the_stack() {
    in_every_way(|t| {
        let (_, socket) = t.accepted();
        t.set_nonblocking(socket);
        assert_eq!((t.read(socket, 1), t.unread(socket)), (Err(EAGAIN), 0));
        for (as_message, from) in [(false, 1), (true, 11)] {
            t.sends(&format!("P. {from}:{}(10) ack {from}", from + 10));
            t.expect(&format!(". {from}:{from}(0) ack {}", from + 10));
            assert_eq!(t.unread(socket), 10);
            let mut parts = [vec![0; 4], vec![], vec![0; 20]];
            assert_eq!(t.vectors().receive(socket, &mut parts, as_message), Ok(10));
            assert_eq!(parts.concat()[..10], t.stream(from as usize, 10));
            let mut parts = [t.stream(1, 3), vec![], t.stream(4, 7)];
            assert_eq!(t.vectors().send(socket, &mut parts, as_message), Ok(10));
            t.expect_data(from, &t.stream(1, 10));
            t.sends(&format!(". {0}:{0}(0) ack {0}", from + 10));
        }
        for (addressed, from) in [(false, 21), (true, 31)] {
            t.sends(&format!("P. {from}:{}(10) ack {from}", from + 10));
            t.expect(&format!(". {from}:{from}(0) ack {}", from + 10));
            let expected = t.stream(from as usize, 10);
            assert_eq!(t.receive_with(socket, libc::MSG_PEEK, addressed).as_ref(), Ok(&expected));
            assert_eq!(t.receive_with(socket, 0, addressed), Ok(expected));
            assert_eq!(t.send_with(socket, 10, libc::MSG_OOB, addressed), Err(libc::EOPNOTSUPP));
            assert_eq!(t.send_with(socket, 10, libc::MSG_NOSIGNAL, addressed), Ok(10));
            t.expect_data(from, &t.stream(1, 10));
            t.sends(&format!(". {0}:{0}(0) ack {0}", from + 10));
        }
    });
}
