//! The lab's XDP programs: flood generator, verifying receiver, reflector, pass.
#![no_std]
#![no_main]

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
