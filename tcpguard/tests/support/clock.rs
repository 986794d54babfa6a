//! The program's clock in the kernel: it is asked once a timer tick and CPU, stands still in between, and is never behind the
//! kernel's own by more than the tick that is just beginning.

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use tcpguard::dataplane::coarse_clock_ns;
use tcpguard_common::flow::V4;
use tcpguard_common::map::name;

use super::Kernel;
use super::table::acks::valid_ack;
use super::table::world::{EPOCH, World};

/// The map in which the program keeps what it was told in a tick: the tick's number, and the time.
const TICK: &str = "TICK";

/// When the kernel's clock moves the next time.
fn next_tick() -> u64 {
    let now = coarse_clock_ns();
    std::iter::repeat_with(coarse_clock_ns).find(|&time| time != now).expect("a clock that moves")
}

/// The time that a flow opened now is stamped with.
fn stamp(kernel: &mut Kernel, world: &World) -> u64 {
    let spec = valid_ack::<V4>(EPOCH, true);
    kernel.run(&spec.frame(), world.engine);
    kernel.strike(name::FLOWS_V4, &spec.flow()).expect("a flow").created
}

/// Makes every CPU believe that it was told `time` in the tick that it was last asked in; in an earlier one with `stale`.
fn say(kernel: &mut Kernel, time: u64, stale: bool) {
    let mut told: PerCpuArray<&mut MapData, [u64; 2]> = kernel.map(TICK);
    let newest = told.get(&0, 0).unwrap().iter().map(|&[tick, _]| tick).max().expect("a CPU");
    let cpus = aya::util::nr_cpus().unwrap();
    let values = vec![[newest - u64::from(stale), time]; cpus];
    told.set(0, PerCpuValues::try_from(values).unwrap(), 0).unwrap();
}

#[test]
fn the_programs_clock_is_asked_once_a_tick_and_never_a_tick_late() {
    // Not so long ago that all budgets were spent then.
    let invented = coarse_clock_ns() - 1_000_000_007;
    let (earlier, later) = (next_tick(), next_tick());
    let tick = later - earlier;
    let world = World::new();
    let mut kernel = Kernel::load(world.max_flows);
    kernel.become_like(&world);
    stamp(&mut kernel, &world);
    for _ in 0..500 {
        // What was said in an earlier tick is not believed.
        say(&mut kernel, invented, true);
        let before = coarse_clock_ns();
        let stamped = stamp(&mut kernel, &world);
        assert!((before - tick..=coarse_clock_ns()).contains(&stamped), "{stamped}, {before} before");
    }
    // Within one it is: sooner or later it is still the same when the program runs.
    let believed = (0..10_000).any(|_| {
        stamp(&mut kernel, &world);
        say(&mut kernel, invented, false);
        stamp(&mut kernel, &world) == invented
    });
    assert!(believed, "the clock is asked for each packet");
    std::thread::sleep(std::time::Duration::from_nanos(2 * tick));
    let before = coarse_clock_ns();
    assert!(stamp(&mut kernel, &world) >= before - tick, "it stood still for longer than a tick");
}
