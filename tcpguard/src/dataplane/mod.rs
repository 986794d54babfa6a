//! The kernel side seen from userspace: loads and attaches XDP, typed views of its maps, AF_XDP sockets, the cookie
//! key schedule. The only room that touches packet memory shared with the kernel; it judges no packet.
