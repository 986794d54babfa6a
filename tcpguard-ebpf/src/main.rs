//! tcpguard's XDP program: binds the decision of `tcpguard-common` to packet memory and maps.
#![no_std]
#![no_main]

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
