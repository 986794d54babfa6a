//! Where the connections of a service go: to a backend, or to a responder that is built in.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use super::words;

/// What comes before a responder's name where a backend could stand.
const RESPOND: &str = "respond:";

/// What becomes of a service's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// They are relayed there.
    Backend(SocketAddr),
    /// They are answered here.
    Responder(Responder),
}

/// A service that needs no backend: for probes, tests and measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Responder {
    /// Sends back what it receives (RFC 862).
    Echo,
    /// Reads and says nothing (RFC 863).
    Discard,
    /// Answers every HTTP/1 request with the same short page.
    Http,
}

words!(Responder, "responder", Echo = "echo", Discard = "discard", Http = "http");

impl FromStr for Destination {
    type Err = String;

    /// Reads `ADDR:PORT`, or `respond:` and the name of a responder.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(RESPOND) {
            Some(responder) => Ok(Self::Responder(responder.parse()?)),
            None => Ok(Self::Backend(super::backend_address(text)?)),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend(addr) => write!(f, "{addr}"),
            Self::Responder(responder) => write!(f, "{RESPOND}{responder}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_written_as_it_is_read() {
        for text in ["127.0.0.1:8080", "[::1]:8080", "respond:echo", "respond:discard", "respond:http"] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_unknown_responder_is_refused_with_those_there_are() {
        let error = "respond:gopher".parse::<Destination>().unwrap_err();
        assert_eq!(error, "unknown responder `gopher`, expected one of echo, discard, http");
    }
}
