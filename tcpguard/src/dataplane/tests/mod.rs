//! Tests against the kernel: each in a network namespace of its own that ends with its thread. They need root, and fail
//! without it.

mod attach;
mod filters;
mod maps;
mod socket;

use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tcpguard_common::map::{MAX_INTERFACES, PORT_WORDS, XSK_ENTRIES};

use super::bpf;
use super::maps::Maps;
use super::pins::PinDir;
use super::{DataplaneError, LoadOptions};

/// Runs `test` in a fresh network namespace with a veth pair `tgd-a`, `tgd-b` of `queues` queues each.
pub(crate) fn with_veth(queues: u32, mtu: u32, test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(std::thread::current().name().unwrap_or("veth").to_owned());
    let thread = thread.spawn(move || {
        // SAFETY: no pointers; only this thread changes namespace.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "this test needs root: {}", std::io::Error::last_os_error());
        let ends = format!("numrxqueues {queues} numtxqueues {queues} mtu {mtu}");
        ip(&format!("link add tgd-a {ends} type veth peer name tgd-b {ends}"));
        for end in ["tgd-a", "tgd-b"] {
            // No neighbour discovery between the frames of a test.
            ip(&format!("link set dev {end} addrgenmode none"));
            ip(&format!("link set dev {end} up"));
        }
        test();
    });
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Pins and locks of one test, gone afterwards.
pub(crate) struct Sandbox {
    pub(crate) options: LoadOptions,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tcpguard-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let options = LoadOptions {
            pin_dir: PathBuf::from("/sys/fs/bpf").join(&name),
            lock_dir: std::env::temp_dir().join(&name),
            max_flows: 1024,
            time_waits: 0,
        };
        Self { options }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for dir in [&self.options.pin_dir, &self.options.lock_dir] {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let _ = std::fs::remove_file(entry.path());
            }
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
#[derive(Default)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to the attach type.
#[repr(C)]
#[derive(Default)]
struct ProgLoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

fn bpf_fd<T>(command: u32, mut attr: T) -> OwnedFd {
    // SAFETY: callers pass attributes whose pointers outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<T>()) };
    assert!(fd >= 0, "bpf command {command}: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel just returned this descriptor to us alone.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// An XSKMAP with room for `entries` queues.
fn xskmap(entries: u32) -> bpf::Map<u32, u32> {
    let attr = MapCreateAttr {
        map_type: 17,
        key_size: 4,
        value_size: 4,
        max_entries: entries,
        ..Default::default()
    };
    // SAFETY: just made with these sizes.
    unsafe { bpf::Map::from_fd(bpf_fd(0, attr)) }
}

/// An XDP program of these instructions.
fn program(instructions: &[u64]) -> OwnedFd {
    let attr = ProgLoadAttr {
        prog_type: 6,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: 37,
        ..Default::default()
    };
    bpf_fd(5, attr)
}

/// One BPF instruction.
const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    let registers = (src << 4 | dst) as u64;
    code as u64 | registers << 8 | (off as u16 as u64) << 16 | (imm as u32 as u64) << 32
}

/// Redirects every frame to the socket of its queue, and passes it where there is none.
fn redirect_program(sockets: &bpf::Map<u32, u32>) -> OwnedFd {
    let map = sockets.as_fd().as_raw_fd();
    program(&[
        insn(0x61, 2, 1, 16, 0),  // r2 = ctx->rx_queue_index
        insn(0x18, 1, 1, 0, map), // r1 = map
        insn(0, 0, 0, 0, 0),
        insn(0xb7, 3, 0, 0, 2),  // r3 = XDP_PASS
        insn(0x85, 0, 0, 0, 51), // bpf_redirect_map
        insn(0x95, 0, 0, 0, 0),
    ])
}

/// Passes every frame.
pub(crate) fn pass_program() -> OwnedFd {
    program(&[insn(0xb7, 0, 0, 0, 2), insn(0x95, 0, 0, 0, 0)])
}

pub(crate) fn ifindex(name: &str) -> u32 {
    super::InterfaceFacts::query(name).unwrap().ifindex
}

/// Puts a program on an interface, as somebody else would, until it is dropped.
pub(crate) fn attach_foreign(program: &OwnedFd, name: &str) -> OwnedFd {
    bpf::link_create(program.as_fd(), ifindex(name), 1 << 2).unwrap()
}

/// All that is pinned in a directory, and what the maps hold but for the counters: text that differs when they do.
pub(crate) fn contents(pin_dir: &Path) -> String {
    // A process that a test beside this one is just starting holds our descriptors, and with them the lock, for a moment.
    let pins = (0..100).find_map(|_| {
        let pins = PinDir::open(pin_dir).ok();
        if pins.is_none() {
            std::thread::sleep(Duration::from_millis(10));
        }
        pins
    });
    let pins = pins.unwrap();
    let maps = Maps::open(&pins).unwrap().unwrap();
    let links = pins.with_prefix("xdp_").unwrap().into_iter().map(|pin| {
        let link = bpf::link_info(bpf::get(&pin).unwrap().as_fd()).unwrap();
        (pin, link.id, link.prog_id)
    });
    let mut flows = Vec::new();
    let mut scan = maps.flows.scan();
    while scan.next_slice(|key, flow| flows.push((key, *flow))).unwrap() {}
    let services = |keys: Vec<_>| -> Vec<_> {
        keys.into_iter().map(|key| (key, maps.services_v4.lookup(&key).unwrap())).collect()
    };
    format!(
        "{:?}",
        (
            links.collect::<Vec<_>>(),
            (maps.read_settings().unwrap(), maps.read_epochs().unwrap()),
            (0..MAX_INTERFACES).map(|slot| maps.read_interface(slot).unwrap()).collect::<Vec<_>>(),
            (0..PORT_WORDS).map(|word| maps.ports.lookup(&word).unwrap()).collect::<Vec<_>>(),
            services(maps.services_v4.keys().unwrap()),
            flows,
            (0..XSK_ENTRIES).map(|index| maps.heartbeats.of(index).unwrap().last()).collect::<Vec<_>>(),
            maps.fingerprints.all().collect::<Vec<_>>(),
        )
    )
}

/// The message a user would read, causes included.
fn chain(error: &DataplaneError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
