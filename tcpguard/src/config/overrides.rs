//! Tunables that one service has for itself, in place of the values that hold for all. Nothing is applied here.

use std::collections::BTreeMap;

use super::{Tunable, TunableError, Tunables, Value};

/// What an operator writes to have a service go by the common value again.
pub const INHERIT: &str = "inherit";

/// Values of one service's own, by name; only of those tunables that a service may have for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides(BTreeMap<&'static str, u64>);

impl Overrides {
    /// Gives the service a value of its own, as users write it, or takes it away again with [`INHERIT`]. What values say
    /// together is left to [`Self::over`].
    ///
    /// # Errors
    /// [`TunableError`]: no such tunable, none that a service may have for itself, or no such value.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), TunableError> {
        let tunable = Tunable::of_a_service(name)?;
        match text {
            INHERIT => drop(self.0.remove(tunable.name)),
            text => drop(self.0.insert(tunable.name, tunable.parse(text)?.number)),
        }
        Ok(())
    }

    /// Whether the service goes by the common values alone.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The service's own value.
    pub fn get(&self, tunable: &Tunable) -> Option<u64> {
        self.0.get(tunable.name).copied()
    }

    /// Every tunable that the service has for itself, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Value)> {
        let value = |(&name, &number)| Some((name, Tunable::find(name).ok()?.value(number)));
        self.0.iter().filter_map(value)
    }

    /// What holds for the service where `common` holds for all.
    ///
    /// # Errors
    /// [`TunableError`], if the two contradict each other.
    pub fn over(&self, common: &Tunables) -> Result<Tunables, TunableError> {
        let mut tunables = common.clone();
        for (name, value) in self.iter() {
            tunables.set(name, &value.to_string())?;
        }
        tunables.check()?;
        Ok(tunables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TUNABLES;

    #[test]
    fn a_service_s_own_values_take_the_place_of_the_common_ones_until_it_inherits_them_again() {
        let mut own = Overrides::default();
        own.set("retries", "3").unwrap();
        own.set("fin-wait-2", "5s").unwrap();
        let common = Tunables::default();
        let expected =
            Tunables { retries: 3, fin_wait_2: std::time::Duration::from_secs(5), ..common.clone() };
        assert_eq!(own.over(&common), Ok(expected));
        own.set("retries", INHERIT).unwrap();
        own.set("fin-wait-2", INHERIT).unwrap();
        assert!(own.is_empty());
        assert_eq!(own.over(&common), Ok(common));
    }

    #[test]
    fn what_a_service_cannot_have_for_itself_is_refused_with_what_it_can() {
        let mut own = Overrides::default();
        let mut why = |name: &str, value: &str| own.set(name, value).unwrap_err().to_string();
        let said = why("time-wait", "3s");
        assert!(
            said.starts_with("time-wait is the same for all services; ") && said.contains("fin-wait-2"),
            "{said}"
        );
        assert_eq!(why("time-wait", INHERIT), said);
        assert!(why("retires", "3").contains("did you mean `retries`"));
        assert_eq!(why("retries", "0"), "retries: 0 is out of range, 1 to 50");
        let of_services = TUNABLES.iter().filter(|tunable| tunable.per_service);
        of_services
            .for_each(|tunable| own.set(tunable.name, &tunable.value(tunable.min).to_string()).unwrap());
        own.set("max-rto", "1s").unwrap();
        own.set("min-rto", "2s").unwrap();
        let error = own.over(&Tunables::default()).unwrap_err().to_string();
        assert_eq!(error, "min-rto 2s is above max-rto 1s");
    }
}
