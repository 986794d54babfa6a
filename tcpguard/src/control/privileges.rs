//! What the daemon may do once it guards: next to nothing. Everything that takes capabilities is done at the start; what a
//! running guard does, live changes and its end included, goes through descriptors that it has and files that are its
//! user's.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

/// What becomes of the capabilities that the start took. Each thread has its own, and gives up its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Privileges {
    /// They stay: a program around the guard may need them for itself.
    #[default]
    Kept,
    /// They go, for good.
    GivenUp,
}

impl Privileges {
    /// On the thread that steers, and on those that it starts from now on, the hook for events among them.
    pub(super) fn of_guard(self) -> io::Result<()> {
        self.reduce_to(CapabilitySet::empty())
    }

    /// On an engine's thread. It goes on connecting to backends from their clients' addresses (`IP_TRANSPARENT`), and a
    /// service that wants that may come at any time.
    pub(super) fn of_engine(self) -> io::Result<()> {
        self.reduce_to(CapabilitySet::NET_RAW)
    }

    /// Leaves this thread `least` at most, and no program that it runs more than that.
    fn reduce_to(self, least: CapabilitySet) -> io::Result<()> {
        if self == Self::Kept {
            return Ok(());
        }
        // Otherwise a program that root runs has every capability again.
        set_no_new_privs(true)?;
        let held = capabilities(None)?;
        let (effective, permitted) = (held.effective & least, held.permitted & least);
        Ok(set_capabilities(
            None,
            CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() },
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each on a thread of its own, for it never gets them back.
    fn held_after(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> CapabilitySet {
        let thread = std::thread::spawn(move || {
            work().unwrap();
            capabilities(None).unwrap().permitted
        });
        thread.join().unwrap()
    }

    #[test]
    fn a_thread_keeps_what_it_is_left_of_what_it_had_and_others_keep_theirs() {
        let before = capabilities(None).unwrap().permitted;
        assert_eq!(held_after(|| Privileges::Kept.of_guard()), before);
        assert_eq!(held_after(|| Privileges::GivenUp.of_guard()), CapabilitySet::empty());
        assert_eq!(held_after(|| Privileges::GivenUp.of_engine()), before & CapabilitySet::NET_RAW);
        assert_eq!(capabilities(None).unwrap().permitted, before);
    }
}
