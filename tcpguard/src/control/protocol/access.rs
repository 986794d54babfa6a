//! Which requests change nothing, and show nothing that only those may know who change things.

use super::Request;

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
            | Self::Hold { .. }
            | Self::Release { .. }
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
}
