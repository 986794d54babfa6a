//! What the examples read from their command lines.

use std::net::SocketAddr;
use std::path::PathBuf;

use tcpguard::config::{AttachMode, Config, Interface, listen_address};

/// The configuration and the address that `IFACE ADDR:PORT [CONTROL_SOCKET PIN_DIR]` asks for.
#[expect(clippy::print_stderr, reason = "whoever typed the command is told what was wrong with it")]
pub(crate) fn read(name: &str) -> (Config, SocketAddr) {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    parse(&arguments).unwrap_or_else(|why| {
        eprintln!("{name}: {why}\nusage: {name} IFACE ADDR:PORT [CONTROL_SOCKET PIN_DIR]");
        std::process::exit(2)
    })
}

fn parse(arguments: &[String]) -> Result<(Config, SocketAddr), String> {
    let [interface, listen, places @ ..] = arguments else {
        return Err("an interface and an address are needed".to_owned());
    };
    let mut config = Config::empty();
    config.interfaces.push(Interface::new(interface, AttachMode::Native, None)?);
    match places {
        [] => {}
        [socket, pins] => {
            (config.control.socket, config.pin_dir) = (PathBuf::from(socket), PathBuf::from(pins))
        }
        _ => return Err("a control socket without a directory for pins, or too much".to_owned()),
    }
    Ok((config, listen_address(listen)?))
}
