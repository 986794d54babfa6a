//! The configuration file and the table of tunables. A leaf: it applies nothing.
