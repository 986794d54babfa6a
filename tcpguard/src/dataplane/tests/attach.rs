use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use tcpguard_common::cookie::Strictness;
use tcpguard_common::flow::{AnyFlowKey, V4};
use tcpguard_common::map::{ABI_VERSION, EpochSlot, Flow, Interface, MODE_COOKIE, ON_EXIT_PASS, Settings};
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{Buffer, Flags, Options};
use tcpguard_common::reason::Reason;
use tcpguard_common::seq::Seq;

use super::{Sandbox, attach_foreign, bpf, chain, contents, ifindex, ip, pass_program, with_veth};
use crate::dataplane::loader::usable_queues;
use crate::dataplane::maps::Maps;
use crate::dataplane::pins::PinDir;
use crate::dataplane::{
    AttachMode, Attached, Dataplane, DataplaneError, InterfaceFacts, InterfaceSpec, LoadOptions,
    ServiceEntry, SocketConfig, SocketError, XskSocket,
};

fn native(name: &str) -> InterfaceSpec {
    InterfaceSpec { name: name.to_owned(), mode: AttachMode::Native, queues: None }
}

fn generic(name: &str) -> InterfaceSpec {
    InterfaceSpec { mode: AttachMode::Generic, ..native(name) }
}

/// Loads and attaches to the near end.
fn guard(options: &LoadOptions) -> (Dataplane, Attached) {
    let mut dataplane = Dataplane::load(options).unwrap_or_else(|error| panic!("load: {}", chain(&error)));
    let attached =
        dataplane.attach(&native("tgd-a")).unwrap_or_else(|error| panic!("attach: {}", chain(&error)));
    (dataplane, attached)
}

/// How XDP runs on an interface, as `ip` shows it: `xdp`, `xdpgeneric`, or nothing.
fn xdp_of(name: &str) -> String {
    let output = std::process::Command::new("ip").args(["link", "show", name]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().find(|word| word.starts_with("xdp")).unwrap_or_default().to_owned()
}

fn refused(dataplane: &mut Dataplane, spec: &InterfaceSpec) -> DataplaneError {
    match dataplane.attach(spec) {
        Ok(attached) => panic!("attached: {attached:?}"),
        Err(error) => error,
    }
}

#[test]
fn an_attached_interface_is_known_but_not_armed_and_detaching_leaves_nothing() {
    with_veth(2, 1500, || {
        let sandbox = Sandbox::new();
        let (dataplane, attached) = guard(&sandbox.options);
        assert_eq!((attached.slot, attached.queues, attached.link.mtu), (0, 2, 1500));
        assert_eq!(attached.ifindex, ifindex("tgd-a"));
        assert!(!attached.taken_over && dataplane.previous().is_none());
        let expected = Interface { mac: attached.link.mac, armed: 0, queues: 2, ifindex: attached.ifindex };
        assert_eq!(dataplane.maps.read_interface(0).unwrap(), expected);
        dataplane.arm(0, true).unwrap();
        assert_eq!(dataplane.maps.read_interface(0).unwrap(), Interface { armed: 1, ..expected });
        assert_eq!(xdp_of("tgd-a"), "xdp");
        dataplane.detach().unwrap();
        assert_eq!(xdp_of("tgd-a"), "");
        assert!(!sandbox.options.pin_dir.exists());
        assert_eq!(std::fs::read_dir(&sandbox.options.lock_dir).unwrap().count(), 0);
    });
}

#[test]
fn a_new_daemon_takes_over_link_flows_keys_and_counters_from_one_that_was_killed() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let (old, attached) = guard(&sandbox.options);
        let settings = Settings { abi: ABI_VERSION, generation: 4, epoch: 9, ..Settings::default() };
        let mut epochs = old.epochs().unwrap();
        epochs[1] = EpochSlot { key: [3, 4], epoch: 9, valid: 1, window: 1, ..EpochSlot::default() };
        let key = AnyFlowKey::new("10.0.0.2:1234".parse().unwrap(), "10.0.0.1:80".parse().unwrap()).unwrap();
        let flow = Flow { generation: 4, ..Flow::default() };
        old.write_epochs(&epochs).unwrap();
        old.write_settings(&settings).unwrap();
        old.flows().insert(&key, &flow).unwrap();
        old.arm(0, true).unwrap();
        let link = bpf::link_info(old.guarded[0].linked.link.as_fd()).unwrap();
        old.leave();
        assert_eq!(xdp_of("tgd-a"), "xdp", "protection stays on");

        let (new, again) = guard(&LoadOptions { max_flows: 4096, ..sandbox.options.clone() });
        let previous = new.previous().unwrap();
        assert_eq!((previous.settings, previous.epochs), (settings, epochs));
        assert_eq!(again, Attached { taken_over: true, ..attached });
        assert_eq!(new.flows().lookup(&key).unwrap(), Some(flow));
        assert_eq!(new.flows().capacity(), 1024, "a map in use keeps its size");
        assert_eq!(new.maps.read_interface(0).unwrap().armed, 1, "armed throughout");
        let now = bpf::link_info(new.guarded[0].linked.link.as_fd()).unwrap();
        assert_eq!(now.id, link.id, "the same link");
        assert_ne!(now.prog_id, link.prog_id, "with the new program");
        new.detach().unwrap();
    });
}

#[test]
fn pins_of_another_version_are_replaced_and_the_link_is_kept() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let (old, _) = guard(&sandbox.options);
        old.write_settings(&Settings { abi: ABI_VERSION + 1, ..Settings::default() }).unwrap();
        let link = bpf::link_info(old.guarded[0].linked.link.as_fd()).unwrap();
        old.leave();
        let (new, attached) = guard(&LoadOptions { max_flows: 4096, ..sandbox.options.clone() });
        assert!(new.previous().is_none() && attached.taken_over);
        assert_eq!(new.settings().unwrap(), Settings::default());
        assert_eq!(new.flows().capacity(), 4096);
        let now = bpf::link_info(new.guarded[0].linked.link.as_fd()).unwrap();
        assert_eq!(now.id, link.id);
        // Until the start is committed the other version's maps are those that a daemon finds.
        new.undo().unwrap();
        let pins = PinDir::open(&sandbox.options.pin_dir).unwrap();
        assert_eq!(Maps::open(&pins).unwrap().unwrap().read_settings().unwrap().abi, ABI_VERSION + 1);
        drop(pins);

        let (mut new, _) = guard(&sandbox.options);
        new.write_settings(&Settings { abi: ABI_VERSION, ..Settings::default() }).unwrap();
        new.commit().unwrap();
        let pins = new.pins.with_prefix("").unwrap().len();
        new.leave();
        let (newer, _) = guard(&sandbox.options);
        assert!(newer.previous().is_some());
        assert_eq!(newer.pins.with_prefix("").unwrap().len(), pins);
        newer.detach().unwrap();
        assert!(!sandbox.options.pin_dir.exists());
    });
}

/// The reasons that XDP counted, and how often.
fn counted(dataplane: &Dataplane) -> Vec<(Reason, u64)> {
    let counters = dataplane.counters().unwrap();
    let counts = Reason::ALL.iter().map(|&reason| (reason, counters.total(reason)));
    counts.filter(|&(_, count)| count > 0).collect()
}

#[test]
fn an_upgrade_to_another_version_drops_segments_to_services_until_it_is_armed() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let (old, _) = guard(&sandbox.options);
        old.write_settings(&Settings { abi: ABI_VERSION + 1, ..Settings::default() }).unwrap();
        old.leave();
        let mut new = Dataplane::load(&sandbox.options).unwrap();
        let addr = "10.0.0.1".parse().unwrap();
        let services =
            [ServiceEntry { addr, port: 80, id: 0, mode: MODE_COOKIE, strictness: Strictness::NEVER }];
        new.hold(&services, ON_EXIT_PASS).unwrap();
        let attached = new.attach(&native("tgd-a")).unwrap();
        assert!(attached.taken_over && new.previous().is_none());

        let mut sender = XskSocket::open(ifindex("tgd-b"), 0, &SocketConfig::for_mtu(1500)).unwrap();
        let mut frames = [81, 80].map(|port: u16| syn(attached.link.mac, port)).into_iter();
        sender.transmit(|memory| {
            let frame = frames.next()?;
            memory[..frame.len()].copy_from_slice(&frame);
            Some(frame.len())
        });
        sender.kick().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while counted(&new).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(counted(&new), [(Reason::Grace, 1)]);
        new.detach().unwrap();

        // A first start closes nothing.
        let mut first = Dataplane::load(&sandbox.options).unwrap();
        first.hold(&services, ON_EXIT_PASS).unwrap();
        let attached = first.attach(&native("tgd-a")).unwrap();
        assert_eq!(first.maps.read_interface(attached.slot).unwrap().armed, 0);
        first.detach().unwrap();
    });
}

/// A SYN to a port of the near end's host.
fn syn(dst: [u8; 6], port: u16) -> Vec<u8> {
    let headers = Headers {
        link: Link { dst, src: [2, 0, 0, 0, 0, 9], ..Link::default() },
        src: V4([10, 0, 0, 2]),
        dst: V4([10, 0, 0, 1]),
        ecn: 0,
        src_port: [200, 0],
        dst_port: port.to_be_bytes(),
        seq: Seq(1),
        ack: Seq(0),
        flags: Flags::SYN,
        window: 1,
        options: Options::default(),
    };
    let mut frame = vec![0; headers.len()];
    let len = frame.len();
    headers.write(&mut Buffer::new(&mut frame, len), 0, 0).unwrap();
    frame
}

#[test]
fn an_undone_start_leaves_links_programs_and_entries_as_they_were() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let (old, _) = guard(&sandbox.options);
        old.write_settings(&Settings { abi: ABI_VERSION, ..Settings::default() }).unwrap();
        old.arm(0, true).unwrap();
        old.leave();
        let before = contents(&sandbox.options.pin_dir);
        let program = || {
            let pins = PinDir::open(&sandbox.options.pin_dir).unwrap().with_prefix("xdp_").unwrap();
            bpf::link_info(bpf::get(&pins[0]).unwrap().as_fd()).unwrap().prog_id
        };
        let old_program = program();
        for spec in [native("tgd-a"), generic("tgd-a")] {
            let mut new = Dataplane::load(&sandbox.options).unwrap();
            new.attach(&spec).unwrap();
            new.attach(&native("tgd-b")).unwrap();
            assert_ne!(xdp_of("tgd-b"), "");
            new.undo().unwrap();
            assert_eq!((xdp_of("tgd-a").as_str(), xdp_of("tgd-b").as_str()), ("xdp", ""));
            assert_eq!(program(), old_program);
            // A link that had to go comes back under another number.
            assert!(spec.mode == AttachMode::Generic || contents(&sandbox.options.pin_dir) == before);
        }
        assert!(Dataplane::remove(&sandbox.options.pin_dir, &sandbox.options.lock_dir).unwrap());
    });
}

#[test]
fn an_undone_first_start_leaves_nothing() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        guard(&sandbox.options).0.undo().unwrap();
        assert_eq!(xdp_of("tgd-a"), "");
        assert!(!sandbox.options.pin_dir.exists());
    });
}

#[test]
fn what_a_killed_daemon_left_is_removed_without_being_loaded() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let LoadOptions { pin_dir, lock_dir, .. } = &sandbox.options;
        let remove = || Dataplane::remove(pin_dir, lock_dir);
        let locks = || std::fs::read_dir(lock_dir).unwrap().count();
        let (old, _) = guard(&sandbox.options);
        // Of one that was killed with its interface.
        std::fs::write(lock_dir.join("4026531840-7.lock"), "1\n").unwrap();
        assert!(matches!(remove(), Err(DataplaneError::PinDirInUse { .. })));
        assert_eq!(locks(), 2, "it was refused");
        // Whatever version it was of: nothing there is looked into.
        old.write_settings(&Settings { abi: ABI_VERSION + 1, ..Settings::default() }).unwrap();
        std::fs::remove_file(pin_dir.join("SETTINGS")).unwrap();
        old.leave();
        assert!(remove().unwrap());
        assert_eq!((xdp_of("tgd-a").as_str(), locks()), ("", 0));
        assert!(!remove().unwrap() && !pin_dir.exists());
    });
}

#[test]
fn a_mode_that_is_refused_puts_the_other_back() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        ip("link add tgd-br type bridge");
        let mut old = Dataplane::load(&sandbox.options).unwrap();
        old.attach(&generic("tgd-br")).unwrap();
        old.write_settings(&Settings { abi: ABI_VERSION, ..Settings::default() }).unwrap();
        let program = bpf::link_info(old.guarded[0].linked.link.as_fd()).unwrap().prog_id;
        old.leave();
        let mut new = Dataplane::load(&sandbox.options).unwrap();
        let error = refused(&mut new, &native("tgd-br"));
        assert!(matches!(error, DataplaneError::NativeUnsupported { .. }), "{error}");
        assert_eq!(xdp_of("tgd-br"), "xdpgeneric");
        let pins = new.pins.with_prefix("xdp_").unwrap();
        let back = bpf::link_info(bpf::get(&pins[0]).unwrap().as_fd()).unwrap();
        assert_eq!((pins.len(), back.prog_id), (1, program));
        assert!(new.attach(&generic("tgd-br")).unwrap().taken_over);
        new.detach().unwrap();
        assert_eq!(xdp_of("tgd-br"), "");
    });
}

#[test]
fn a_second_daemon_is_refused_on_the_same_interface_and_on_the_same_pins() {
    with_veth(1, 1500, || {
        let (sandbox, other) = (Sandbox::new(), Sandbox::new());
        let (mut first, _) = guard(&sandbox.options);
        assert!(matches!(Dataplane::load(&sandbox.options), Err(DataplaneError::PinDirInUse { .. })));
        assert!(matches!(refused(&mut first, &native("tgd-a")), DataplaneError::AttachedTwice { .. }));
        let elsewhere = LoadOptions { lock_dir: sandbox.options.lock_dir.clone(), ..other.options.clone() };
        let mut second = Dataplane::load(&elsewhere).unwrap();
        match refused(&mut second, &native("tgd-a")) {
            DataplaneError::AlreadyGuarded { name, pid } => {
                assert_eq!((name.as_str(), pid), ("tgd-a", Some(std::process::id())));
            }
            error => panic!("{error}"),
        }
        second.attach(&native("tgd-b")).unwrap();
        second.detach().unwrap();
        assert_eq!(xdp_of("tgd-a"), "xdp");
        first.detach().unwrap();
    });
}

#[test]
fn two_interfaces_share_their_maps_and_one_that_is_no_longer_wanted_is_released() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let (mut old, near) = guard(&sandbox.options);
        let far = old.attach(&native("tgd-b")).unwrap();
        assert_eq!((near.slot, far.slot), (0, 1));
        assert_eq!(old.attached().count(), 2);
        old.write_settings(&Settings { abi: ABI_VERSION, ..Settings::default() }).unwrap();
        old.leave();

        let mut new = Dataplane::load(&sandbox.options).unwrap();
        assert_eq!(new.attach(&native("tgd-b")).unwrap().slot, 1, "slots are kept, whatever the order");
        assert_eq!(new.release_unclaimed().unwrap(), 1);
        assert_eq!(xdp_of("tgd-a"), "");
        assert_eq!(new.maps.read_interface(0).unwrap(), Interface::default());
        assert_eq!(xdp_of("tgd-b"), "xdp");
        new.detach().unwrap();
    });
}

#[test]
fn a_link_whose_interface_was_removed_is_forgotten() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let (old, _) = guard(&sandbox.options);
        old.write_settings(&Settings { abi: ABI_VERSION, ..Settings::default() }).unwrap();
        let index = ifindex("tgd-a");
        old.leave();
        ip("link del tgd-a");
        ip(&format!("link add tgd-a index {index} type veth peer name tgd-b"));
        let (mut new, attached) = guard(&sandbox.options);
        assert!(!attached.taken_over && attached.ifindex == index);
        assert_eq!(xdp_of("tgd-a"), "xdp");
        assert_eq!(new.release_unclaimed().unwrap(), 0);
        new.detach().unwrap();
    });
}

#[test]
fn another_program_on_the_interface_is_named_and_left_alone() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let other = attach_foreign(&pass_program(), "tgd-a");
        let mut dataplane = Dataplane::load(&sandbox.options).unwrap();
        for spec in [native("tgd-a"), generic("tgd-a")] {
            let error = refused(&mut dataplane, &spec);
            assert!(matches!(error, DataplaneError::OtherProgram { .. }), "{error}");
            assert_eq!(dataplane.maps.read_interface(0).unwrap(), Interface::default());
        }
        assert!(bpf::link_info(other.as_fd()).unwrap().ifindex != 0);
        drop(other);
        dataplane.attach(&native("tgd-a")).unwrap();
        dataplane.detach().unwrap();
    });
}

#[test]
fn a_refused_take_over_leaves_the_previous_daemons_entry_as_it_was() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let (old, _) = guard(&sandbox.options);
        old.write_settings(&Settings { abi: ABI_VERSION, ..Settings::default() }).unwrap();
        old.arm(0, true).unwrap();
        let (entry, pin) = (old.maps.read_interface(0).unwrap(), old.guarded[0].linked.pin.clone());
        old.leave();
        // Removing the pin alone would detach it some time later.
        bpf::link_detach(bpf::get(&pin).unwrap().as_fd()).unwrap();
        std::fs::remove_file(pin).unwrap();
        let _other = attach_foreign(&pass_program(), "tgd-a");
        let mut new = Dataplane::load(&sandbox.options).unwrap();
        assert!(matches!(refused(&mut new, &native("tgd-a")), DataplaneError::OtherProgram { .. }));
        assert_eq!((entry.armed, new.maps.read_interface(0).unwrap()), (1, entry));
        new.detach().unwrap();
    });
}

#[test]
fn generic_mode_is_used_only_when_asked_for_and_a_change_of_mode_replaces_the_link() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        ip("link add tgd-br type bridge");
        let mut dataplane = Dataplane::load(&sandbox.options).unwrap();
        match refused(&mut dataplane, &native("tgd-br")) {
            DataplaneError::NativeUnsupported { name, driver, .. } => {
                assert_eq!((name.as_str(), driver.as_str()), ("tgd-br", "bridge"));
            }
            error => panic!("{error}"),
        }
        dataplane.attach(&generic("tgd-br")).unwrap();
        assert_eq!(xdp_of("tgd-br"), "xdpgeneric");
        dataplane.attach(&native("tgd-a")).unwrap();
        dataplane.write_settings(&Settings { abi: ABI_VERSION, ..Settings::default() }).unwrap();
        dataplane.leave();
        let mut dataplane = Dataplane::load(&sandbox.options).unwrap();
        assert!(!dataplane.attach(&generic("tgd-a")).unwrap().taken_over);
        assert_eq!(xdp_of("tgd-a"), "xdpgeneric");
        assert_eq!(dataplane.pins.with_prefix("xdp_").unwrap().len(), 2);
        dataplane.detach().unwrap();
        assert_eq!(xdp_of("tgd-br") + &xdp_of("tgd-a"), "");
    });
}

#[test]
fn a_jumbo_interface_is_attached_and_a_veth_whose_peer_alone_is_one_is_refused_by_name() {
    with_veth(1, 9000, || {
        let sandbox = Sandbox::new();
        let mut dataplane = Dataplane::load(&sandbox.options).unwrap();
        dataplane.attach(&native("tgd-a")).unwrap();
        dataplane.detach().unwrap();

        ip("link set dev tgd-a mtu 1500");
        let mut dataplane = Dataplane::load(&sandbox.options).unwrap();
        match refused(&mut dataplane, &native("tgd-a")) {
            DataplaneError::MtuTooLarge { mtu: 1500, limit, .. } => {
                ip(&format!("link set dev tgd-b mtu {limit}"));
            }
            error => panic!("{}", chain(&error)),
        }
        dataplane.attach(&native("tgd-a")).unwrap();
        dataplane.detach().unwrap();
    });
}

#[test]
fn queues_that_are_not_there_have_no_engine_or_could_not_send_are_refused() {
    with_veth(4, 1500, || {
        let sandbox = Sandbox::new();
        let mut dataplane = Dataplane::load(&sandbox.options).unwrap();
        let with = |queues| InterfaceSpec { queues: Some(queues), ..native("tgd-a") };
        for queues in [0, 5, 65] {
            let error = refused(&mut dataplane, &with(queues));
            assert!(matches!(error, DataplaneError::QueueCount { present: 4, .. }), "{error}");
        }
        // A veth does not say where packets arrive: that is the operator's to know.
        assert_eq!(dataplane.attach(&with(2)).unwrap().queues, 2);
        ip("link add tgd-c numrxqueues 4 numtxqueues 2 type veth peer name tgd-d");
        let error = refused(&mut dataplane, &native("tgd-c"));
        assert!(matches!(error, DataplaneError::UnequalQueues { rx: 4, tx: 2, .. }), "{error}");
        let error = refused(&mut dataplane, &native("tgd-none"));
        assert!(matches!(error, DataplaneError::UnknownInterface { .. }), "{error}");
        dataplane.detach().unwrap();
    });
}

#[test]
fn an_interface_that_spreads_flows_over_more_queues_than_have_an_engine_is_refused() {
    with_veth(4, 1500, || {
        let facts = InterfaceFacts::query("tgd-a").unwrap();
        assert_eq!((facts.rx_queues, facts.hashed_to), (4, None));
        let hashed = |last| InterfaceFacts { hashed_to: Some(last), ..facts.clone() };
        for (last, wanted, expected) in [
            (3, None, Ok(4)),
            (1, None, Ok(4)),
            (1, Some(2), Ok(2)),
            (2, Some(2), Err(2)),
            (3, Some(1), Err(3)),
        ] {
            let usable = usable_queues(&hashed(last), wanted).map_err(|error| match error {
                DataplaneError::UnservedQueues { queues, last, .. } if Some(queues) == wanted => last,
                error => panic!("{error}"),
            });
            assert_eq!(usable, expected, "{last} {wanted:?}");
        }
    });
}

#[test]
fn without_privilege_every_step_says_so() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        // Mounts the file system if need be, while it may.
        drop(PinDir::open(&sandbox.options.pin_dir).unwrap());
        let options = sandbox.options.clone();
        let unprivileged = std::thread::spawn(move || {
            let nobody = 65534;
            // SAFETY: no pointers. The bare system call changes this thread alone.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) }, 0);
            let error = Dataplane::load(&options).unwrap_err();
            assert!(matches!(error, DataplaneError::NotPrivileged { .. }), "{error}");
            let error = XskSocket::open(ifindex("tgd-a"), 0, &SocketConfig::for_mtu(1500)).unwrap_err();
            assert!(matches!(error, SocketError::NotPrivileged(_)), "{error}");
        });
        unprivileged.join().unwrap();
    });
}

#[test]
fn a_pin_directory_whose_name_the_file_system_refuses_is_named() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let options = LoadOptions { pin_dir: "/sys/fs/bpf/tcpguard.test".into(), ..sandbox.options.clone() };
        let error = Dataplane::load(&options).unwrap_err();
        assert!(matches!(error, DataplaneError::Pin { action: "create", .. }), "{error}");
    });
}

/// The verifier gives up when the thread has a signal to take.
#[test]
fn signals_while_the_verifier_works_do_not_keep_the_program_from_being_loaded() {
    extern "C" fn take(_: libc::c_int) {}
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let mut dataplane = Dataplane::load(&sandbox.options).unwrap();
        // SAFETY: an action that is all there, and a handler that does nothing; nobody else here uses this signal.
        let loader = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = take as *const () as usize;
            assert_eq!(libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()), 0);
            libc::pthread_self()
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..3 {
                    std::thread::sleep(Duration::from_millis(60));
                    // SAFETY: the thread that loads waits for this one.
                    unsafe { libc::pthread_kill(loader, libc::SIGUSR2) };
                }
            });
            dataplane.attach(&native("tgd-a")).unwrap_or_else(|error| panic!("attach: {}", chain(&error)));
        });
        dataplane.detach().unwrap();
    });
}
