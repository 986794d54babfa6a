//! The daemon and its control socket, server and client. Printing is for `cli`.
