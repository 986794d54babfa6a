//! How much stack a program takes, in the verifier's words: aya keeps its log of programs that it refuses, so the one here is
//! loaded a second time by hand. Not what the program does.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use aya::Ebpf;
use aya::maps::Map;
use aya_obj::btf::BtfFeatures;
use aya_obj::generated::bpf_insn;
use aya_obj::{Features, Object};

/// The stack of a program and of the functions it is made of.
#[derive(Debug)]
pub(crate) struct Stack {
    /// Bytes of each function, the program itself first, as the verifier prints them.
    pub(crate) depths: Vec<usize>,
    /// Bytes of the deepest chain of calls, which the kernel holds to 512.
    pub(crate) combined: usize,
}

/// Loads `program` of `object` once more, with the maps it has in `loaded` and `globals`, and reads what the verifier says.
pub(crate) fn stack(object: &[u8], program: &str, loaded: &Ebpf, globals: &[(&str, &[u8])]) -> Stack {
    let mut object = Object::parse(object).expect("an eBPF object");
    let globals = globals.iter().map(|&(name, value)| (name, (value, true))).collect();
    object.patch_map_data(globals).expect("the globals");
    // Without type information, no function would be verified by itself.
    let types =
        object.fixup_and_sanitize_btf(&ALL_TYPES).expect("type information").expect("some").to_bytes();
    let types = load_types(&types);
    let sections: HashSet<usize> = object.functions.keys().map(|&(section, _)| section).collect();
    let maps = object.maps.clone();
    let descriptors: HashMap<&str, RawFd> =
        loaded.maps().map(|(name, map)| (name, descriptor(map))).collect();
    let maps = maps.iter().map(|(name, map)| (name.as_str(), descriptors[name.as_str()], map));
    object.relocate_maps(maps, &sections).expect("the maps");
    object.relocate_calls(&sections).expect("the calls");
    object.sanitize_functions(&Features::new(true, true, true, true, true, true, true, None));
    let function = &object.functions[&object.programs[program].function_key()];
    let log = load(&function.instructions, &function.func_info.func_info_bytes(), &types);
    let depths: Vec<usize> = log
        .lines()
        .find_map(|line| line.strip_prefix("stack depth "))
        .and_then(|depths| depths.split('+').map(|depth| depth.parse().ok()).collect())
        .unwrap_or_else(|| panic!("no stack depth in the log: {log}"));
    let combined = deepest(&Calls::of(&function.instructions), &depths, 0);
    Stack { depths, combined }
}

const ALL_TYPES: BtfFeatures = BtfFeatures::new(true, true, true, true, true, true, true, true);

fn descriptor(map: &Map) -> RawFd {
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::RingBuf(data)
        | Map::XskMap(data) => data.fd().as_fd().as_raw_fd(),
        other => panic!("a map of another type: {other:?}"),
    }
}

/// Which function calls which, in the order of their instructions.
struct Calls {
    /// The first instruction of each function.
    starts: Vec<usize>,
    /// Caller and callee, as indexes of `starts`.
    edges: BTreeSet<(usize, usize)>,
}

impl Calls {
    fn of(instructions: &[bpf_insn]) -> Self {
        const CALL: u8 = 0x85;
        const OF_A_FUNCTION: u8 = 1;
        let calls: Vec<(usize, usize)> = instructions
            .iter()
            .enumerate()
            .filter(|(_, instruction)| instruction.code == CALL && instruction.src_reg() == OF_A_FUNCTION)
            .map(|(at, instruction)| (at, at.wrapping_add_signed(instruction.imm as isize) + 1))
            .collect();
        let starts: BTreeSet<usize> = [0].into_iter().chain(calls.iter().map(|&(_, to)| to)).collect();
        let starts: Vec<usize> = starts.into_iter().collect();
        let function = |at: usize| starts.partition_point(|&start| start <= at) - 1;
        let edges = calls.iter().map(|&(from, to)| (function(from), function(to))).collect();
        Self { starts, edges }
    }
}

/// The deepest chain of calls from `function` on. The kernel's compiler rounds each frame up to 16 bytes.
fn deepest(calls: &Calls, depths: &[usize], function: usize) -> usize {
    assert_eq!(calls.starts.len(), depths.len(), "the verifier counts the same functions");
    let callees = calls.edges.iter().filter(|(from, _)| *from == function);
    let below = callees.map(|&(_, to)| deepest(calls, depths, to)).max().unwrap_or(0);
    depths[function].next_multiple_of(16) + below
}

/// The attributes of BPF_BTF_LOAD.
#[repr(C)]
#[derive(Default)]
struct LoadTypes {
    types: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
}

/// The attributes of BPF_PROG_LOAD, as far as functions' types.
#[repr(C)]
#[derive(Default)]
struct LoadProgram {
    program_type: u32,
    instructions: u32,
    first: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
    types: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    pad: u32,
}

const PROG_LOAD: libc::c_int = 5;
const BTF_LOAD: libc::c_int = 18;

fn load_types(types: &[u8]) -> OwnedFd {
    let attr = LoadTypes { types: types.as_ptr() as u64, size: types.len() as u32, ..LoadTypes::default() };
    bpf(BTF_LOAD, &attr).expect("loading the types")
}

/// The log of a program that is accepted, without its walk.
fn load(instructions: &[bpf_insn], functions: &[u8], types: &OwnedFd) -> String {
    const XDP: u32 = 6;
    const STATISTICS: u32 = 4;
    const FUNCTION: usize = 8;
    const LICENCE: &CStr = c"Dual MIT/GPL";
    let mut log = vec![0; 1 << 16];
    let attr = LoadProgram {
        program_type: XDP,
        instructions: instructions.len() as u32,
        first: instructions.as_ptr() as u64,
        licence: LICENCE.as_ptr() as u64,
        log_level: STATISTICS,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        types: types.as_raw_fd() as u32,
        function_size: FUNCTION as u32,
        functions: functions.as_ptr() as u64,
        function_count: (functions.len() / FUNCTION) as u32,
        ..LoadProgram::default()
    };
    let loaded = bpf(PROG_LOAD, &attr);
    let log = CStr::from_bytes_until_nul(&log).expect("a log that ends").to_string_lossy().into_owned();
    loaded.unwrap_or_else(|error| panic!("{error}: {log}"));
    log
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is what the command takes, and what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}
