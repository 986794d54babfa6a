//! What others change of the guarded interfaces: address, MTU, and whether they are up. It is found out, told to XDP and
//! the engines, and said. That an interface is gone is for its engines to find.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::dataplane::{Attached, LinkEvents, LinkFacts, LinkState};

use super::daemon::DaemonError;
use super::guard::{Guard, carried, heard, packet_limit};

/// Links are looked at this often even without a notice: not every driver gives one.
const LOOK: Duration = Duration::from_secs(1);
/// Where links come and go by the hundred, one look is to answer many notices.
const PAUSE: Duration = Duration::from_millis(5);

/// Follows the links' changes; returns only when that fails for good.
pub(super) async fn follow(guard: &Guard) -> Result<Infallible, DaemonError> {
    // Opened before the first look, so that nothing is missed between the two.
    let events = LinkEvents::open().map_err(DaemonError::Runtime)?;
    loop {
        guard.look_at_links().await?;
        sleep(PAUSE).await;
        if let Ok(result) = timeout(LOOK, events.changed()).await {
            result.map_err(DaemonError::Runtime)?;
        }
    }
}

impl Guard {
    /// Puts what changed since the last look in force.
    async fn look_at_links(&self) -> Result<(), DaemonError> {
        let before = self.links.borrow().clone();
        let now: Vec<_> =
            self.attached.iter().zip(&before).map(|(attached, &before)| look(attached, before)).collect();
        self.links.borrow_mut().clone_from(&now);
        for (attached, (before, now)) in self.attached.iter().zip(before.iter().zip(&now)) {
            if before == now {
                continue;
            }
            // XDP first: until it knows the new address, segments to it pass to the host.
            if before.mac != now.mac {
                self.dataplane.set_mac(attached.slot, now.mac)?;
            }
            report(&attached.name, before, now, carried(attached));
            for engine in self.engines().iter().filter(|engine| engine.interface == attached.name) {
                heard(engine, engine.handle.set_link(now.mac, packet_limit(attached, now)).await)?;
            }
        }
        let mtus = |links: &[LinkFacts]| links.iter().map(|link| link.mtu).collect::<Vec<_>>();
        if mtus(&before) != mtus(&now) {
            self.advertise().await?;
        }
        Ok(())
    }
}

/// How the interface is now; as it was `before`, when the kernel does not say.
fn look(attached: &Attached, before: LinkFacts) -> LinkFacts {
    LinkFacts::of(attached.ifindex).unwrap_or(before)
}

fn report(interface: &str, before: &LinkFacts, now: &LinkFacts, carried: u32) {
    if before.mac != now.mac {
        warn!(
            interface,
            "the MAC address changed from {} to {}: guarded at the new one",
            mac(before),
            mac(now)
        );
    }
    if before.mtu != now.mtu && now.mtu > carried {
        error!(
            interface,
            "the MTU changed from {} to {}, too large for AF_XDP frames: segments above {carried} bytes are neither \
             offered nor sent, and lost when a peer sends them all the same; restart the daemon for frames that fit, or \
             set the MTU back",
            before.mtu,
            now.mtu
        );
    } else if before.mtu != now.mtu {
        warn!(
            interface,
            "the MTU changed from {} to {}: new connections agree on segments that fit", before.mtu, now.mtu
        );
    }
    match now.state {
        state if state == before.state => {}
        LinkState::Up => info!(interface, "the interface is up again"),
        LinkState::NoCarrier => warn!(interface, "the interface has no carrier"),
        LinkState::Down => {
            warn!(interface, "the interface is down: `ip link set dev {interface} up`");
        }
    }
}

/// As `ip link` writes it.
pub(super) fn mac(link: &LinkFacts) -> String {
    link.mac.map(|byte| format!("{byte:02x}")).join(":")
}
