//! The words of `--so_flags`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tcpguard::stack::{Config, CongestionControl};

/// What the flags ask for.
#[derive(Clone, Debug)]
pub(crate) struct Flags {
    /// Passive opens come from cookies: XDP's part is played here, and the stack adopts.
    pub(crate) adopt: bool,
    /// Print every packet.
    pub(crate) trace: bool,
    /// Print the connection's variables after every packet.
    pub(crate) tcb: bool,
    /// Where active opens come from.
    pub(crate) local_v4: Ipv4Addr,
    pub(crate) local_v6: Ipv6Addr,
    /// How the stack is tuned.
    pub(crate) config: Config,
}

impl Default for Flags {
    fn default() -> Self {
        let config = Config {
            // As Linux is set up by packetdrill's own scripts.
            congestion_control: CongestionControl::Cubic,
            nagle: true,
            window_scale: 8,
            // The tool locks all memory: no table is larger than a script needs.
            max_connections: 4096,
            max_time_wait: 4096,
            max_closed_flows: 4096,
            max_half_open: 4096,
            ..Config::default()
        };
        Self {
            adopt: false,
            trace: false,
            tcb: false,
            local_v4: Ipv4Addr::new(192, 168, 0, 1),
            local_v6: Ipv6Addr::new(0xfd3d, 0x0a0b, 0x17d6, 0, 0, 0, 0, 1),
            config,
        }
    }
}

impl Flags {
    /// Reads the words, separated by spaces or commas. `Err` says which of them is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut flags = Self::default();
        for word in text.split([' ', ',']).filter(|word| !word.is_empty()) {
            flags.take(word).ok_or_else(|| format!("unknown or malformed flag {word}"))?;
        }
        Ok(flags)
    }

    fn take(&mut self, word: &str) -> Option<()> {
        match word.split_once('=') {
            None => match word {
                "adopt" => self.adopt = true,
                "trace" => self.trace = true,
                "tcb" => self.tcb = true,
                "ecn" => self.config.ecn = true,
                "no-timestamps" => self.config.timestamps = false,
                _ => return None,
            },
            Some(("mtu", value)) => self.config.mtu = value.parse().ok().filter(|&mtu| mtu >= 576)?,
            Some(("wscale", value)) => {
                self.config.window_scale = value.parse().ok().filter(|&shift| shift <= 14)?;
            }
            Some(("cc", "newreno")) => self.config.congestion_control = CongestionControl::NewReno,
            Some(("cc", "cubic")) => self.config.congestion_control = CongestionControl::Cubic,
            Some(("local", value)) => match value.parse().ok()? {
                IpAddr::V4(ip) => self.local_v4 = ip,
                IpAddr::V6(ip) => self.local_v6 = ip,
            },
            Some(_) => return None,
        }
        Some(())
    }
}
