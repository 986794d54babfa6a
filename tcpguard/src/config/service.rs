//! A service changed key by key, as its table in the file would be. What reads and judges such a table is `file`.

use std::collections::BTreeMap;

use super::Service;
use super::file::parse_service;
use super::write::service_keys;

/// Keys that only one of the two destinations has.
const BACKEND_KEYS: [&str; 5] = ["backend", "balance", "connect_timeout", "proxy_protocol", "source"];
const RESPONDER_KEYS: [&str; 1] = ["respond"];

impl Service {
    /// The service with these keys of its `[[service]]` table set; an empty value takes a key away. Backends have commas
    /// between them. A backend takes the place of a responder, and the other way round.
    ///
    /// # Errors
    ///
    /// What the file's reader would say, in one line.
    pub fn with_keys(&self, keys: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut table = service_keys(self);
        let replaced: &[&str] = match (keys.get("backend"), keys.get("respond")) {
            (Some(backend), None) if !backend.is_empty() => &RESPONDER_KEYS,
            (None, Some(respond)) if !respond.is_empty() => &BACKEND_KEYS,
            _ => &[],
        };
        table.retain(|key, _| !replaced.contains(&key));
        for (key, text) in keys {
            match key.as_str() {
                "listen" => return Err("a service's address is its name: add another one instead".to_owned()),
                "tunables" => {
                    return Err(
                        "tunables are set by `tcpguard tune NAME VALUE --service ADDR:PORT`".to_owned()
                    );
                }
                _ => {}
            }
            match text.as_str() {
                "" => drop(table.remove(key)),
                text => drop(table.insert(key.clone(), value(key, text))),
            }
        }
        // A table of strings and numbers has no way to fail; nothing is no service.
        parse_service(&toml::to_string(&table).unwrap_or_default())
    }
}

/// A value as the file has it: several backends are a list, what is a number is one, and what is no word but true or false.
fn value(key: &str, text: &str) -> toml::Value {
    match key {
        "backend" => toml::Value::Array(text.split(',').map(toml::Value::from).collect()),
        "dry_run" => text.parse::<bool>().map_or_else(|_| toml::Value::from(text), toml::Value::from),
        _ => text.parse::<i64>().map_or_else(|_| toml::Value::from(text), toml::Value::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(service: &str, keys: &[(&str, &str)]) -> Result<Service, String> {
        let keys = keys.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        service.parse::<Service>().unwrap().with_keys(&keys)
    }

    #[test]
    fn keys_are_set_taken_away_and_left_alone_as_in_a_file() {
        let all = [("max_connections", "7"), ("idle_time", "90s"), ("balance", "least-connections")];
        let service = with("10.0.0.1:80=127.0.0.1:1,auto", &all).unwrap();
        assert_eq!(service.limits.connections, Some(7));
        let mut same = service.clone();
        same.limits.connections = None;
        let keys = [("max_connections".to_owned(), String::new())].into();
        assert_eq!(service.with_keys(&keys), Ok(same));
        let several = with("10.0.0.1:80=127.0.0.1:1", &[("backend", "127.0.0.1:2,unix:/s")]).unwrap();
        assert_eq!(several, "10.0.0.1:80=127.0.0.1:2,unix:/s".parse().unwrap());
        let echo = with("10.0.0.1:80=127.0.0.1:1,auto", &[("respond", "echo"), ("mode", "cookie")]).unwrap();
        assert_eq!(echo, "10.0.0.1:80=respond:echo,cookie".parse().unwrap());
        assert_eq!(
            echo.with_keys(&[("backend".to_owned(), "127.0.0.1:1".to_owned())].into()),
            "10.0.0.1:80=127.0.0.1:1,cookie".parse()
        );
        let mut dry = "10.0.0.1:80=respond:echo".parse::<Service>().unwrap();
        assert_eq!(with("10.0.0.1:80=respond:echo", &[("dry_run", "false")]), Ok(dry.clone()));
        dry.dry_run = true;
        assert_eq!(with("10.0.0.1:80=respond:echo", &[("dry_run", "true")]), Ok(dry));
        let off = with("10.0.0.1:80=127.0.0.1:1", &[("mode", "off"), ("backend", "")]).unwrap();
        assert_eq!(off, "10.0.0.1:80=off".parse().unwrap());
    }

    #[test]
    fn what_a_file_could_not_say_is_refused_in_its_words() {
        for (key, text, why) in [
            ("max_conections", "7", "did you mean `max_connections`?"),
            ("max_connections", "0", "not within 1 to"),
            ("max_connections", "many", "expected i64"),
            ("idle_time", "soon", "a duration looks like"),
            ("backend", "", "neither a backend nor a responder"),
            ("backend", "127.0.0.1:1,127.0.0.1:1", "given twice"),
            ("mode", "loud", "expected one of"),
            ("listen", "10.0.0.1:81", "add another one"),
            ("dry_run", "yes", "expected a boolean"),
            ("tunables", "{ retries = 3 }", "tcpguard tune NAME VALUE --service"),
        ] {
            let error = with("10.0.0.1:80=127.0.0.1:1", &[(key, text)]).unwrap_err();
            assert!(error.contains(why) && !error.contains('\n'), "{key}: {error}");
        }
    }
}
