//! `cargo xtask`: the developer's and newcomer's commands. Each verb is a module; this only dispatches.

fn main() {}
