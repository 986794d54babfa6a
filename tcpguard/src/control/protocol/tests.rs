//! What the wire carries, and what it refuses.

use super::*;
use proptest::prelude::*;

#[test]
fn a_request_reads_as_documented_and_round_trips() {
    let tune = Request::Tune {
        service: None,
        name: Some("time-wait".into()),
        value: Some("30s".into()),
        save: false,
    };
    assert_eq!(
        String::from_utf8(tune.to_line()).unwrap(),
        "{\"v\":1,\"op\":\"tune\",\"name\":\"time-wait\",\"value\":\"30s\"}\n"
    );
    let session = Session { peer: "::1".parse().unwrap(), local: "[::2]:22".parse().unwrap() };
    let narrow = Which {
        state: Some("TIME_WAIT".into()),
        peer: Some("10.0.0.0/8".into()),
        peer_port: Some(7),
        local: Some("::1".into()),
        service: Some(session.local),
        min_age_ms: Some(1),
        max_age_ms: Some(2),
    };
    let keys = BTreeMap::from([("mode".to_owned(), "auto".to_owned())]);
    for request in [
        tune,
        Request::Status {},
        Request::Stats {},
        Request::Flows { which: Which::default(), sort: None, limit: 7 },
        Request::Flows { which: narrow.clone(), sort: Some(Sort::RecvQueued), limit: 0 },
        Request::FlowsKill { which: narrow, all: true, session: Some(session) },
        Request::ServicesAdd {
            service: "[::]:80=respond:echo".into(),
            keys: keys.clone(),
            save: true,
            session: Some(session),
        },
        Request::ServicesSet { service: session.local, keys, save: false, session: None },
        Request::ServicesDel { service: session.local, save: true, session: Some(session) },
        Request::Tune { service: None, name: None, value: None, save: true },
        Request::Reload { session: Some(session) },
        Request::TuneAll { values: BTreeMap::from([("retries".to_owned(), "7".to_owned())]) },
        Request::KeysRotate {},
        Request::OnProbation {
            seconds: 60,
            change: Box::new(Request::Mode {
                service: session.local,
                mode: "off".into(),
                session: Some(session),
            }),
        },
        Request::Confirm {},
        Request::Explain { frame: "00ff".into(), interface: Some("eth0".into()), queue: 1 },
        Request::Config {},
        Request::CookieDecode {
            peer: "192.0.2.1:4000".parse().unwrap(),
            local: "192.0.2.2:80".parse().unwrap(),
            client_isn: u32::MAX,
            cookie: 0,
            stamp: Some(7),
        },
        Request::Mode { service: "[::]:80".parse().unwrap(), mode: "auto".into(), session: None },
        Request::DryRun { service: "[::]:80".parse().unwrap(), on: true, session: None },
        Request::Tune {
            service: Some("[::]:80".parse().unwrap()),
            name: Some("retries".into()),
            value: Some("3".into()),
            save: true,
        },
        Request::Tune { service: Some(session.local), name: None, value: None, save: false },
        Request::Monitor { reasons: vec![], services: vec![] },
        Request::Monitor { reasons: vec!["engine".into()], services: vec![session.local] },
        Request::Events {},
        Request::EventsFollow {},
        Request::Filters { limit: 3 },
        Request::FiltersAdd { filter: "deny ::/0".into(), session: Some(session) },
        Request::FiltersDel { prefix: "::/0".into(), session: None },
        Request::FiltersFlush { action: Some("deny".into()), session: None },
        Request::FiltersLoad { load: u64::MAX, filters: vec![], last: true, replace: false, session: None },
    ] {
        assert_eq!(Request::from_line(&request.to_line()), Ok(request));
    }
}

#[test]
fn replies_keep_64_bits() {
    let reply = Reply::Tuned(Tuned {
        name: "x".into(),
        unit: "ms".into(),
        old: u64::MAX,
        new: u64::MAX - 1,
        saved: None,
        unconfirmed_ms: Some(u64::MAX),
    });
    let long = Reply::failed("words ".repeat(1 << 17));
    assert_eq!(long.to_long_line(), long.to_line());
    assert_eq!(Reply::from_line(&reply.to_line()), Ok(reply));
}

#[test]
fn a_reply_is_read_if_its_version_comes_first_and_is_this_one() {
    for (line, why) in [
        (r#"{"v":2,"nonsense":[{"v":1}],"more":{}}"#, "protocol version 2, this side speaks 1"),
        (r#"{"error":{"kind":"failed","message":"x"},"v":1}"#, "no protocol version"),
        (r#"{"v":1}"#, "expected enum"),
        (r#"{"v":1,"nonsense":{}}"#, "unknown variant"),
        (r#"{"v":1,"error":{"kind":"failed","message":"x"},"status":{}}"#, "trailing"),
        (r#"{"v":1,"error":{"kind":"failed","message":"x"}"#, "EOF"),
        (r#"{"v":1,"error":{"kind":"failed","message":"x"}}{}"#, "trailing"),
        ("[]", "invalid type"),
        ("", "EOF"),
    ] {
        let error = Reply::from_line(line.as_bytes()).unwrap_err();
        assert!(error.contains(why) && !error.contains('\n'), "{line}: {error}");
    }
}

#[test]
fn a_request_with_anything_unknown_in_it_is_refused() {
    for (line, why) in [
        (r#"{"v":2,"op":"nonsense"}"#, "protocol version 2"),
        (r#"{"op":"status"}"#, "no protocol version"),
        (r#"{"v":1,"op":"nonsense"}"#, "unknown variant"),
        (r#"{"v":1,"op":"status","extra":1}"#, "unknown field"),
        (r#"{"v":1,"op":"flows"}"#, "missing field"),
        (r#"{"v":1,"op":"flows","limit":-1}"#, "invalid value"),
        (r#"{"v":1}"#, "missing field"),
        ("[]", "invalid type"),
        ("", "EOF"),
    ] {
        let error = Request::from_line(line.as_bytes()).unwrap_err();
        assert!(error.contains(why) && !error.contains('\n'), "{line}: {error}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop((Request::from_line(&line), Reply::from_line(&line)));
    }

    #[test]
    fn deep_nesting_is_refused_and_not_recursed_into(depth in 1usize..10_000) {
        let line = format!("{{\"v\":1,\"op\":{}", "[".repeat(depth));
        prop_assert!(Request::from_line(line.as_bytes()).is_err());
        prop_assert!(Reply::from_line(line.as_bytes()).is_err());
    }
}
