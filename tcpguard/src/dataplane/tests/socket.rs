use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::{bpf, ifindex, ip, redirect_program, with_veth, xskmap};
use crate::dataplane::{FrameAudit, SocketConfig, SocketError, XskSocket, ZeroCopy};

/// One end of the pair: a socket that gets every frame.
struct End {
    socket: XskSocket,
    _link: OwnedFd,
}

const DRV_MODE: u32 = 1 << 2;

impl End {
    fn open(name: &str, config: &SocketConfig) -> Self {
        let ifindex = ifindex(name);
        let socket = XskSocket::open(ifindex, 0, config).unwrap();
        let sockets = xskmap(1);
        let link = bpf::link_create(redirect_program(&sockets).as_fd(), ifindex, DRV_MODE).unwrap();
        sockets.update(&0, &socket.as_raw_fd().cast_unsigned(), bpf::ANY).unwrap();
        Self { socket, _link: link }
    }

    /// Queues `frames`, kicking until all are with the kernel.
    fn send(&mut self, frames: &mut VecDeque<Vec<u8>>) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !frames.is_empty() && Instant::now() < deadline {
            self.socket.transmit(|memory| {
                let frame = frames.pop_front()?;
                memory[..frame.len()].copy_from_slice(&frame);
                Some(frame.len())
            });
            self.kick();
        }
        assert!(frames.is_empty(), "the socket stopped sending: {:?}", self.socket);
    }

    fn kick(&mut self) {
        match self.socket.kick() {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => panic!("kick: {error}"),
            _ => {}
        }
    }

    /// Receives until nothing came for a while.
    fn receive_all(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut quiet = Instant::now();
        while quiet.elapsed() < Duration::from_millis(100) {
            if self.socket.receive(64, |burst| frames.extend(burst.iter().map(|frame| frame.to_vec()))) > 0 {
                quiet = Instant::now();
            }
        }
        frames
    }

    /// The account once nothing moves any more.
    fn audit_at_rest(&mut self) -> FrameAudit {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            self.kick();
            let audit = self.socket.audit();
            if (audit.in_kernel() == 0 && audit.tx == 0 && audit.completion == 0) || Instant::now() > deadline
            {
                return audit;
            }
        }
    }
}

fn small() -> SocketConfig {
    SocketConfig { rx_frames: 64, tx_frames: 64, ..SocketConfig::for_mtu(1500) }
}

/// A frame that says which it is, of a length that depends on it.
fn numbered(number: u32, max: usize) -> Vec<u8> {
    let length = 60 + number.wrapping_mul(2_654_435_761) as usize % (max - 60);
    let mut frame = vec![number as u8; length];
    frame[..12].fill(2);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

fn number_of(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[14..18].try_into().unwrap())
}

#[test]
fn a_hundred_thousand_echoed_frames_come_back_intact_and_none_leaks() {
    with_veth(1, 1500, || {
        let config = SocketConfig::for_mtu(1500);
        let (mut near, mut far) = (End::open("tgd-a", &config), End::open("tgd-b", &config));
        let (total, window) = (100_000u32, 2048u32);
        let (mut sent, mut back) = (0u32, 0u32);
        let (mut out, mut echo) = (VecDeque::new(), VecDeque::new());
        let deadline = Instant::now() + Duration::from_secs(60);
        while back < total {
            assert!(
                Instant::now() < deadline,
                "{sent} sent, {back} back: {:?} {:?}",
                near.socket,
                far.socket
            );
            while sent < total && sent - back < window {
                out.push_back(numbered(sent, 1514));
                sent += 1;
            }
            near.send(&mut out);
            far.socket.receive(4096, |burst| echo.extend(burst.iter().map(|frame| frame.to_vec())));
            far.send(&mut echo);
            near.socket.receive(4096, |burst| {
                for frame in burst {
                    assert_eq!(*frame, numbered(back, 1514), "frame {back}");
                    back += 1;
                }
            });
        }
        for end in [&mut near, &mut far] {
            let audit = end.audit_at_rest();
            let expected = FrameAudit { total: 12288, free: 4096, fill: 8192, rx: 0, tx: 0, completion: 0 };
            assert_eq!(audit, expected);
            let statistics = end.socket.statistics().unwrap();
            assert_eq!((statistics.rx_invalid, statistics.tx_invalid), (0, 0));
            assert_eq!((statistics.rx_ring_full, statistics.rx_dropped), (0, 0));
        }
    });
}

#[test]
fn received_and_written_frames_never_share_memory() {
    with_veth(1, 1500, || {
        let (mut near, mut far) = (End::open("tgd-a", &small()), End::open("tgd-b", &small()));
        near.send(&mut (0..64).map(|number| numbered(number, 1514)).collect());
        std::thread::sleep(Duration::from_millis(50));
        // All 64 receive frames are full now; writing all 64 others must not touch them.
        let written = far.socket.transmit(|memory| {
            memory.fill(0xff);
            Some(memory.len())
        });
        assert_eq!(written, 64);
        let expected: Vec<_> = (0..64).map(|number| numbered(number, 1514)).collect();
        assert_eq!(far.receive_all(), expected);
    });
}

#[test]
fn a_full_receive_ring_loses_frames_and_recovers_by_itself() {
    with_veth(1, 1500, || {
        let (mut near, mut far) = (End::open("tgd-a", &small()), End::open("tgd-b", &small()));
        near.send(&mut (0..300).map(|number| numbered(number, 200)).collect());
        std::thread::sleep(Duration::from_millis(50));
        let received = far.receive_all();
        assert!(received.len() >= 64 && received.len() < 300, "{} frames", received.len());
        let statistics = far.socket.statistics().unwrap();
        assert!(statistics.rx_ring_full + statistics.rx_fill_ring_empty > 0, "{statistics:?}");
        near.send(&mut (300..310).map(|number| numbered(number, 200)).collect());
        let numbers: Vec<_> = far.receive_all().iter().map(|frame| number_of(frame)).collect();
        assert_eq!(numbers, (300..310).collect::<Vec<_>>());
        let audit = far.audit_at_rest();
        assert_eq!((audit.free, audit.fill, audit.in_kernel()), (64, 64, 0));
    });
}

#[test]
fn a_full_transmit_ring_takes_no_more_until_it_is_kicked() {
    with_veth(1, 1500, || {
        let mut near = End::open("tgd-a", &small());
        let mut calls = 0;
        let mut write = |memory: &mut [u8]| {
            calls += 1;
            memory[..60].fill(2);
            Some(60)
        };
        assert_eq!(near.socket.transmit(&mut write), 64);
        assert_eq!(near.socket.transmit(&mut write), 0);
        assert_eq!(calls, 64, "nothing is asked for that could not be queued");
        near.audit_at_rest();
        assert_eq!(near.socket.transmit(|_| None), 0);
        assert_eq!(near.socket.transmit(|_| Some(0)), 0);
        assert_eq!(near.socket.transmit(|memory| Some(memory.len() + 1)), 0);
        let audit = near.audit_at_rest();
        assert_eq!((audit.free, audit.fill, audit.in_kernel()), (64, 64, 0));
    });
}

#[test]
fn a_large_mtu_gets_frames_of_four_kilobytes() {
    with_veth(1, 3000, || {
        let config = SocketConfig { rx_frames: 64, tx_frames: 64, ..SocketConfig::for_mtu(3000) };
        let (mut near, mut far) = (End::open("tgd-a", &config), End::open("tgd-b", &config));
        let frames: Vec<_> = (0..50).map(|number| numbered(number, 3014)).collect();
        near.send(&mut frames.clone().into());
        assert_eq!(far.receive_all(), frames);
    });
}

#[test]
fn a_taken_queue_is_waited_for_and_named_when_it_stays_taken() {
    with_veth(1, 1500, || {
        let ifindex = ifindex("tgd-a");
        let first = XskSocket::open(ifindex, 0, &small()).unwrap();
        let hasty = SocketConfig { bind_timeout: Duration::from_millis(50), ..small() };
        match XskSocket::open(ifindex, 0, &hasty) {
            Err(SocketError::Busy { queue: 0, waited_ms, .. }) => assert!(waited_ms >= 50),
            other => panic!("bound twice: {other:?}"),
        }
        let closer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        XskSocket::open(ifindex, 0, &small()).unwrap();
        closer.join().unwrap();
    });
}

#[test]
fn a_missing_queue_a_missing_zero_copy_driver_and_bad_sizes_are_named() {
    with_veth(1, 1500, || {
        let ifindex = ifindex("tgd-a");
        let missing = XskSocket::open(ifindex, 7, &small());
        assert!(matches!(missing, Err(SocketError::NoSuchQueue { queue: 7, .. })), "{missing:?}");
        let required = SocketConfig { zero_copy: ZeroCopy::Required, ..small() };
        let zero_copy = XskSocket::open(ifindex, 0, &required);
        assert!(matches!(zero_copy, Err(SocketError::NoZeroCopy { .. })), "{zero_copy:?}");
        for config in [
            SocketConfig { rx_frames: 100, ..small() },
            SocketConfig { tx_frames: 0, ..small() },
            SocketConfig { max_frame: 4000, ..small() },
            SocketConfig { max_frame: 9022, ..small() },
        ] {
            assert!(matches!(XskSocket::open(ifindex, 0, &config), Err(SocketError::Config { .. })));
        }
    });
}

/// A veth has no driver that could: the kernel copies its frames, whether or not it was asked to.
#[test]
fn without_a_driver_that_can_do_better_frames_are_copied() {
    with_veth(1, 1500, || {
        for zero_copy in [ZeroCopy::WherePossible, ZeroCopy::Off] {
            let mut near = End::open("tgd-a", &SocketConfig { zero_copy, ..small() });
            let mut far = End::open("tgd-b", &small());
            assert!(!near.socket.is_zero_copy());
            let mut frame = Some(numbered(7, 200));
            near.socket.transmit(|memory| {
                let frame = frame.take()?;
                memory[..frame.len()].copy_from_slice(&frame);
                Some(frame.len())
            });
            near.kick();
            assert_eq!(far.receive_all().iter().map(|frame| number_of(frame)).collect::<Vec<_>>(), [7]);
        }
    });
}

#[test]
fn a_kick_while_the_interface_is_down_fails_and_frames_leave_once_it_is_up() {
    with_veth(1, 1500, || {
        let (mut near, mut far) = (End::open("tgd-a", &small()), End::open("tgd-b", &small()));
        ip("link set dev tgd-a down");
        let mut frames: VecDeque<_> = (0..5).map(|number| numbered(number, 200)).collect();
        near.socket.transmit(|memory| {
            let frame = frames.pop_front()?;
            memory[..frame.len()].copy_from_slice(&frame);
            Some(frame.len())
        });
        assert_eq!(near.socket.kick().unwrap_err().raw_os_error(), Some(libc::ENETDOWN));
        ip("link set dev tgd-a up");
        std::thread::sleep(Duration::from_millis(50));
        near.kick();
        let numbers: Vec<_> = far.receive_all().iter().map(|frame| number_of(frame)).collect();
        assert_eq!(numbers, (0..5).collect::<Vec<_>>());
    });
}
