//! One engine per receive queue: moves frames between an AF_XDP socket and the stack, drives timers, and offers the
//! connections as tokio streams. It knows nothing of backends or of the control protocol.
