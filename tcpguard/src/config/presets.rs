//! Sets of tunables for situations that are met again and again. They say values; nobody applies them here.

/// Values for some of the tunables.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The name users type.
    pub name: &'static str,
    /// When it helps, and what it costs.
    pub help: &'static str,
    /// Tunables and their values, as users write them.
    pub values: &'static [(&'static str, &'static str)],
}

/// Every preset. The first one has the default of whatever the others change.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "calm",
        help: "the defaults of what the other presets change",
        values: &[
            ("time-wait", "1m"),
            ("fin-wait-2", "1m"),
            ("close-wait", "1h"),
            ("stall-time", "30s"),
            ("syn-ack-retries", "5"),
            ("half-open-limit", "16384"),
            ("accept-backlog", "4096"),
            ("stateful-rate", "5000"),
            ("stateful-burst", "5000"),
            ("calm-time", "10s"),
            ("icmp-rate", "100"),
            ("attack-connections", "20000"),
        ],
    },
    Preset {
        name: "attack",
        help: "for as long as an attack lasts: every SYN is answered with a cookie, and what clients leave half done is given up \
               sooner; a client whose last ACK is lost waits for its own retransmission",
        values: &[
            ("fin-wait-2", "15s"),
            ("close-wait", "5m"),
            ("stall-time", "10s"),
            ("syn-ack-retries", "2"),
            ("stateful-rate", "0"),
            ("calm-time", "1m"),
            ("icmp-rate", "10"),
        ],
    },
    Preset {
        name: "high-churn",
        help: "for very many short connections: closed ones are forgotten sooner, and more may be on their way in; memory for \
               half-open and waiting ones grows fourfold",
        values: &[
            ("time-wait", "10s"),
            ("fin-wait-2", "15s"),
            ("half-open-limit", "65536"),
            ("accept-backlog", "16384"),
            ("stateful-rate", "50000"),
            ("stateful-burst", "50000"),
            ("attack-connections", "100000"),
        ],
    },
];

impl Preset {
    /// The preset called `name`.
    ///
    /// # Errors
    /// That there is none, with the names that there are.
    pub fn find(name: &str) -> Result<&'static Self, String> {
        let names = || PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ");
        let found = PRESETS.iter().find(|preset| preset.name == name);
        found.ok_or_else(|| format!("unknown preset `{name}`, expected one of {}", names()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{TUNABLES, Tunables};

    fn apply(preset: &Preset, tunables: &mut Tunables) {
        for (name, value) in preset.values {
            tunables.set(name, value).unwrap_or_else(|error| panic!("{}: {error}", preset.name));
        }
        tunables.check().unwrap_or_else(|error| panic!("{}: {error}", preset.name));
    }

    #[test]
    fn presets_have_their_values_in_the_order_in_which_changes_are_told() {
        let place = |name: &str| TUNABLES.iter().position(|tunable| tunable.name == name);
        for preset in PRESETS {
            assert!(preset.values.is_sorted_by_key(|(name, _)| place(name)), "{}", preset.name);
        }
    }

    #[test]
    fn every_preset_is_good_after_every_other_and_calm_undoes_them_all() {
        for first in PRESETS {
            for second in PRESETS {
                let mut tunables = Tunables::default();
                apply(first, &mut tunables);
                apply(second, &mut tunables);
                assert!(second.name == "calm" || tunables != Tunables::default());
                apply(&PRESETS[0], &mut tunables);
                assert_eq!(tunables, Tunables::default(), "{} {}", first.name, second.name);
            }
        }
        assert!(Preset::find("attack").unwrap().values.contains(&("stateful-rate", "0")));
        assert!(Preset::find("war").unwrap_err().contains("calm, attack, high-churn"));
    }
}
