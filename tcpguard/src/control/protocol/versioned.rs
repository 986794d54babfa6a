//! What programs read, the command line's and a hook's.

use schemars::JsonSchema;
use serde::Serialize;

/// The `version` of every verb's `--json` and of what a hook reads: changes when a field changes its meaning or disappears.
pub const JSON_VERSION: u32 = 1;

/// What programs read: the version beside the content.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Versioned<'a, T> {
    /// Changes when a field changes its meaning or disappears; new fields do not change it.
    #[schemars(extend("const" = JSON_VERSION))]
    version: u32,
    #[serde(flatten)]
    content: &'a T,
}

impl<'a, T> Versioned<'a, T> {
    /// `content` with [`JSON_VERSION`].
    pub fn new(content: &'a T) -> Self {
        Self { version: JSON_VERSION, content }
    }
}
