//! Starts that fail: what was there before is there afterwards, byte for byte. Needs root.

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::map::Flow;

use super::daemon::DaemonError;
use super::guard::{Applications, Guard};
use super::privileges::Privileges;
use super::server::{Rights, Server};
use super::socket::{ListenError, SocketSpec};
use crate::config::{AttachMode, Config, Interface};
use crate::dataplane::tests::{Sandbox, attach_foreign, contents, ifindex, pass_program, with_veth};
use crate::dataplane::{DataplaneError, SocketConfig, SocketError, XskSocket, monotonic_ns};

/// One interface and one service.
fn config(sandbox: &Sandbox, service: &str) -> Config {
    let mut config = Config::empty();
    config.interfaces.push(Interface::new("tgd-a", AttachMode::Native, None).unwrap());
    config.services.push(service.parse().unwrap());
    (config.pin_dir, config.max_flows) = (sandbox.options.pin_dir.clone(), sandbox.options.max_flows);
    config
}

fn start(sandbox: &Sandbox, config: Config) -> Result<(Guard, Server), DaemonError> {
    Guard::start(config, &Applications::new(), Privileges::Kept, || {
        let path = sandbox.options.lock_dir.join("control");
        Server::bind(&SocketSpec { path: &path, group: None, mode: 0o660 }, Rights::All)
    })
}

/// Ends a guard as a kill would: nothing is told or removed.
async fn kill((guard, server): (Guard, Server)) {
    for engine in guard.engines() {
        engine.handle.stop().await;
    }
    guard.leave();
    drop(server);
}

#[test]
fn the_time_waits_that_xdp_knows_are_as_many_as_the_limit_says_at_a_start() {
    with_veth(2, 1500, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let sandbox = Sandbox::new();
            // Twice as many places as two queues' tables, four million; and the smallest table.
            for (limit, spread) in [(1_000_000, 2), (100, 0)] {
                let mut config = config(&sandbox, "10.0.0.1:80=127.0.0.1:9");
                config.tunables.time_wait_limit = limit;
                let guard = start(&sandbox, config).unwrap();
                assert_eq!(guard.0.dataplane.fingerprints().spread(), spread, "{limit}");
                kill(guard).await;
                assert!(super::daemon::detach(&sandbox.options.pin_dir).unwrap());
            }
        });
    });
}

#[test]
fn a_take_over_that_fails_leaves_maps_links_and_programs_as_they_were() {
    with_veth(1, 1500, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let sandbox = Sandbox::new();
            let begun = monotonic_ns();
            let first = start(&sandbox, config(&sandbox, "10.0.0.1:80=127.0.0.1:9")).unwrap();
            let dataplane = &first.0.dataplane;
            assert!(dataplane.heartbeat(0).unwrap().last() > begun, "armed, and taken for dead");
            let (flows, fingerprints) = (dataplane.flows(), dataplane.fingerprints());
            kill(first).await;
            let key = AnyFlowKey::new("10.0.0.2:7".parse().unwrap(), "10.0.0.1:80".parse().unwrap()).unwrap();
            flows.insert(&key, &Flow { generation: 1, ..Flow::default() }).unwrap();
            fingerprints.set(3, 7);
            let before = contents(&sandbox.options.pin_dir);

            let other = config(&sandbox, "10.0.0.1:81=127.0.0.1:9");
            let refused = |config: Config| start(&sandbox, config).err().expect("it started");
            let unbound = Guard::start(other.clone(), &Applications::new(), Privileges::Kept, || {
                Err::<(), _>(ListenError::UnknownGroup("x".to_owned()))
            });
            assert!(matches!(unbound, Err(DaemonError::Control(_))));
            assert_eq!(contents(&sandbox.options.pin_dir), before, "the control socket failed");

            let foreign = attach_foreign(&pass_program(), "tgd-b");
            let mut both = other.clone();
            both.interfaces.push(Interface::new("tgd-b", AttachMode::Native, None).unwrap());
            let error = refused(both);
            assert!(matches!(error, DaemonError::Dataplane(DataplaneError::OtherProgram { .. })), "{error}");
            assert_eq!(contents(&sandbox.options.pin_dir), before, "the second interface failed");
            drop(foreign);

            let stranger = XskSocket::open(ifindex("tgd-a"), 0, &SocketConfig::for_mtu(1500)).unwrap();
            let error = refused(other.clone());
            assert!(matches!(error, DaemonError::Socket { source: SocketError::Busy { .. }, .. }), "{error}");
            assert_eq!(contents(&sandbox.options.pin_dir), before, "the AF_XDP socket failed");
            drop(stranger);

            let second = start(&sandbox, other).unwrap();
            assert_eq!(second.0.settings().generation, 2);
            kill(second).await;
            assert_ne!(contents(&sandbox.options.pin_dir), before);
            assert!(super::daemon::detach(&sandbox.options.pin_dir).unwrap());
        });
    });
}
