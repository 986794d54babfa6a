//! Protected ports that the host itself may choose as the source of an outgoing connection: the answer would meet the guard,
//! which knows nothing of that connection. Found and said, not changed.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

/// The kernel shows the namespace of whoever reads.
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The ports of `services` that the host may choose, in order, each once. None when the kernel does not say.
pub(super) fn chosen_by_host(services: impl IntoIterator<Item = SocketAddr>) -> Vec<u16> {
    let (range, reserved) = (std::fs::read_to_string(RANGE), std::fs::read_to_string(RESERVED));
    let (Ok(range), Ok(reserved)) = (range, reserved) else { return Vec::new() };
    among(services, &range, &reserved)
}

/// What to do about them.
pub(super) fn remedy(ports: &[u16]) -> String {
    let list = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    format!(
        "the host may choose protected ports for its own outgoing connections, whose answers the guard would drop: \
         add {list} to net.ipv4.ip_local_reserved_ports"
    )
}

fn among(services: impl IntoIterator<Item = SocketAddr>, range: &str, reserved: &str) -> Vec<u16> {
    let mut words = range.split_ascii_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (words.next(), words.next()) else { return Vec::new() };
    let reserved: Vec<_> = reserved.trim().split(',').filter_map(ports).collect();
    let is_free =
        |port: &u16| (first..=last).contains(port) && !reserved.iter().any(|held| held.contains(port));
    let mut found: Vec<u16> = services.into_iter().map(|service| service.port()).filter(is_free).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Reads `8080` or `9000-9999`.
fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_the_range_that_are_not_reserved_are_found_once() {
        let services = [
            "0.0.0.0:443",
            "10.0.0.1:40000",
            "[::]:40000",
            "10.0.0.1:50000",
            "10.0.0.1:33000",
            "10.0.0.1:60999",
        ];
        let services = services.map(|text| text.parse().unwrap());
        assert_eq!(among(services, "32768\t60999\n", "\n"), [33000, 40000, 50000, 60999]);
        assert_eq!(among(services, "32768\t60999\n", "33000-39999,50000\n"), [40000, 60999]);
        assert_eq!(among(services, "nonsense", ""), [0u16; 0]);
    }

    #[test]
    fn the_remedy_names_them() {
        assert!(remedy(&[33000, 40000]).ends_with("add 33000,40000 to net.ipv4.ip_local_reserved_ports"));
    }
}
