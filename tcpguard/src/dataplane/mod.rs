//! The kernel side seen from userspace: loads and attaches XDP, typed views of its maps, AF_XDP sockets, the cookie
//! key schedule. The only room that touches packet memory shared with the kernel; it judges no packet.

mod bpf;
mod census;
mod clock;
mod error;
mod features;
mod filters;
mod flows;
mod keys;
mod late_port;
mod link_events;
mod links;
mod loader;
mod lock;
mod maps;
mod netdev;
mod pins;
mod rings;
mod secret;
mod shared;
mod socket;
mod trace;
mod view;
mod xdp_log;

pub use census::Census;
pub use clock::{coarse_clock_ns, monotonic_ns};
pub use error::{DataplaneError, SocketError};
pub use features::{Feature, features};
pub use filters::{FilterEntry, FilterTable};
pub use flows::{FlowScan, FlowTable};
pub use keys::{KeyError, KeySchedule, MAX_PERIOD, MIN_PERIOD, Now};
pub use late_port::choose_port_late;
pub use link_events::LinkEvents;
pub use links::AttachMode;
pub use loader::{Attached, Dataplane, InterfaceSpec, LOCK_DIR, LoadOptions, Previous};
pub use maps::{Counters, ServiceCounters, ServiceEntry};
pub use netdev::{InterfaceFacts, LinkFacts, LinkState};
pub use secret::{MasterSecret, SecretError};
pub use shared::{Fingerprints, Heartbeat};
pub use socket::{FrameAudit, MAX_FRAME, SocketConfig, SocketStatistics, WHOLE_MTU, XskSocket, ZeroCopy};
pub use trace::{TraceLost, TraceRing};
pub use view::{Arrival, Step, View, Views};
pub use xdp_log::XdpLog;

#[cfg(test)]
pub(crate) mod tests;
