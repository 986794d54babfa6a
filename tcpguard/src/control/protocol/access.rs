//! Which requests change nothing, and show nothing that only those may know who change things; and which change what.

use super::Request;

/// What a request does to what is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) enum Effect {
    /// Nothing.
    None,
    /// What cannot be taken back.
    Lasting,
    /// What can.
    Revocable,
}

impl Request {
    /// Whether who may only read may ask this. Not what shows clients' packets, nor what tells a valid cookie from a wrong one:
    /// that would help to guess them.
    pub fn is_for_readers(&self) -> bool {
        match self {
            Self::Status {}
            | Self::Stats {}
            | Self::Flows { .. }
            | Self::Tune { value: None, save: false, .. }
            | Self::Config {}
            | Self::Events {}
            | Self::EventsFollow {}
            | Self::Filters { .. } => true,
            Self::FlowsKill { .. }
            | Self::ServicesAdd { .. }
            | Self::ServicesSet { .. }
            | Self::ServicesDel { .. }
            | Self::Tune { .. }
            | Self::TuneAll { .. }
            | Self::OnProbation { .. }
            | Self::Confirm {}
            | Self::Reload { .. }
            | Self::KeysRotate {}
            | Self::Explain { .. }
            | Self::CookieDecode { .. }
            | Self::Mode { .. }
            | Self::DryRun { .. }
            | Self::Monitor { .. }
            | Self::FiltersAdd { .. }
            | Self::FiltersDel { .. }
            | Self::FiltersFlush { .. }
            | Self::FiltersLoad { .. } => false,
        }
    }

    /// What it does.
    pub(in crate::control) fn effect(&self) -> Effect {
        match self {
            Self::Status {}
            | Self::Stats {}
            | Self::Flows { .. }
            | Self::Tune { value: None, .. }
            | Self::Explain { .. }
            | Self::Config {}
            | Self::CookieDecode { .. }
            | Self::Monitor { .. }
            | Self::Events {}
            | Self::EventsFollow {}
            | Self::Filters { .. }
            | Self::FiltersLoad { last: false, .. } => Effect::None,
            Self::FlowsKill { .. } | Self::KeysRotate {} | Self::Confirm {} | Self::OnProbation { .. } => {
                Effect::Lasting
            }
            Self::ServicesAdd { .. }
            | Self::ServicesSet { .. }
            | Self::ServicesDel { .. }
            | Self::Tune { .. }
            | Self::TuneAll { .. }
            | Self::Reload { .. }
            | Self::Mode { .. }
            | Self::DryRun { .. }
            | Self::FiltersAdd { .. }
            | Self::FiltersDel { .. }
            | Self::FiltersFlush { .. }
            | Self::FiltersLoad { .. } => Effect::Revocable,
        }
    }

    /// Whether it changes the configuration file as well.
    pub(in crate::control) fn saves(&self) -> bool {
        matches!(
            self,
            Self::ServicesAdd { save: true, .. }
                | Self::ServicesSet { save: true, .. }
                | Self::ServicesDel { save: true, .. }
                | Self::Tune { save: true, .. }
        )
    }
}
