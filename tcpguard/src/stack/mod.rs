//! The TCP stack, sans-IO: `handle_*` for what arrives, `poll_*` for what should leave or happen next, `now` always
//! a parameter. No sockets, no clock of its own, no tokio, no `unsafe`.
