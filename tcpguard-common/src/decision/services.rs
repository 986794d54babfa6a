//! Services that share a place, on the host.

use super::table::frames::{LINUX, Spec};
use super::table::world::{PORT, Place, World};
use super::{Verdict, decide};
use crate::flow::{V4, V6};
use crate::map::{MODE_COOKIE, Service, ServiceKey};
use crate::packet::Buffer;

fn verdict<A: Place>(world: &World, dst_port: u16) -> Verdict {
    let mut frame = Spec::<A> { dst_port, ..Spec::syn(LINUX) }.frame();
    let len = frame.len();
    decide(&mut Buffer::new(&mut frame, len), world)
}

/// Ports whose services have the place that the one at [`PORT`] has.
fn rivals<A: Place>() -> impl Iterator<Item = u16> {
    let place = |port: u16| ServiceKey::new(A::GUARDED, port.to_be_bytes()).place();
    (1..=u16::MAX).filter(move |&port| port != PORT && place(port) == place(PORT))
}

#[test]
fn services_that_share_a_place_are_all_found_and_others_are_not() {
    let mut world = World::new();
    let service = Service { id: 9, mode: MODE_COOKIE, ..Service::default() };
    let (v4, v6): (std::vec::Vec<u16>, std::vec::Vec<u16>) =
        (rivals::<V4>().collect(), rivals::<V6>().collect());
    for &port in &v4[..2] {
        world.services_v4.insert(ServiceKey::new(V4::GUARDED, port.to_be_bytes()), service);
    }
    for &port in &v6[..2] {
        world.services_v6.insert(ServiceKey::new(V6::GUARDED, port.to_be_bytes()), service);
    }
    for port in v4[..3].iter().chain(&v6[..3]) {
        world.ports[usize::from(port / 64)] |= 1 << (port % 64);
    }
    for port in [PORT, v4[0], v4[1]] {
        assert_eq!(verdict::<V4>(&world, port), Verdict::Transmit, "IPv4 port {port}");
    }
    for port in [PORT, v6[0], v6[1]] {
        assert_eq!(verdict::<V6>(&world, port), Verdict::Transmit, "IPv6 port {port}");
    }
    assert_eq!((verdict::<V4>(&world, v4[2]), verdict::<V6>(&world, v6[2])), (Verdict::Pass, Verdict::Pass));
}
