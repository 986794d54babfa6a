//! The command line as a shell sees it: exit codes, one line for one error, quiet ends. Needs neither root nor a lab:
//! nothing here gets as far as the kernel.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn tcpguard(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tcpguard")).args(args).output().unwrap()
}

/// Runs it, expects this exit code and exactly one line on standard error, and returns that line.
fn refused(args: &[&str], code: i32) -> String {
    let output = tcpguard(args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert!(said.starts_with("tcpguard: ") && said.ends_with('\n'), "{args:?}: {said:?}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    said
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tcpguard-cli-{}-{name}", std::process::id()));
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    path
}

const SERVICE: &str = "192.0.2.1:80=127.0.0.1:8080";

#[test]
fn the_doctor_looks_at_the_control_socket_that_is_named() {
    let socket = std::env::temp_dir().join("tcpguard-of-another-name.sock");
    let said = tcpguard(&["doctor", "--control", socket.to_str().unwrap()]).stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.lines()
            .any(|line| line.starts_with("control socket") && line.contains(&*socket.to_string_lossy())),
        "{said}"
    );
}

#[test]
fn bad_input_is_one_line_and_exit_code_2() {
    let control = ["--control", "/nonexistent/tcpguard.sock"];
    for (args, why) in [
        (&[][..], "no verb"),
        (&["frobnicate"], "'frobnicate'"),
        (&["check", "/nonexistent.toml"], "`tcpguard config --example` prints one"),
        (&["run", "-i", "lo", "--protect", SERVICE, control[0], control[1]], "not an Ethernet interface"),
        (&["run", "-i", "a/b", "--protect", SERVICE], "`a/b`"),
        (&["run", "-i", "lo"], "nothing to protect"),
        (&["run", "-i", "lo", "--protect", "192.0.2.1:0=127.0.0.1:8080"], "port 0"),
        (&["run", "-i", "lo", "--protect", "192.0.2.1:80=127.0.0.1:0"], "port 0"),
        (&["run", "-i", "lo", "--protect", "192.0.2.1:70000=127.0.0.1:8080"], "not an address and port"),
        (&["run", "-i", "lo", "--protect", "192.0.2.400:80=127.0.0.1:8080"], "not an address and port"),
        (&["run", "-i", "lo", "--protect", "192.0.2.1:80"], "ADDR:PORT=BACKEND"),
        (&["run", "-i", "lo", "--protect", SERVICE, "--protect", SERVICE], "twice"),
        (&["run", "-i", "lo", "-i", "lo", "--protect", SERVICE], "twice"),
        (&["run", "-i", "lo", "--protect", SERVICE, "--set", "nonsense=1"], "unknown tunable `nonsense`"),
        (&["run", "-i", "lo", "--protect", SERVICE, "--set", "time-wait=1h"], "out of range"),
        (&["run", "-i", "lo", "--protect", SERVICE, "--set", "time-wait=30"], "a duration looks like"),
        (&["run", "-i", "lo", "--protect", SERVICE, "--queues", "0"], "queues"),
        (&["run", "--protect", SERVICE, "--mode", "generic"], "--mode is for interfaces given with -i"),
        (&["run", "--protect", SERVICE, "--queues", "2"], "--queues is for interfaces given with -i"),
        (&["run", "-i", "lo", "--protect", SERVICE, "--max-flows", "1"], "not within"),
        (&["run", "-i", "lo", "--protect", SERVICE, "--log", "tcpguard=loud"], "log filter"),
        (&["run", "--config", "/nonexistent/tcpguard.toml"], "/nonexistent/tcpguard.toml: No such file"),
        (&["run", "--config", "/"], "/: "),
        (&["tune", "nonsense"], "unknown tunable"),
        (&["tune", "time-wait", "-1s"], "a duration looks like"),
        (&["tune", "time-wait", "11m"], "out of range, 100ms to 10m"),
        (&["tune", "time-wait", "1s", "2s"], "unexpected argument"),
        (&["flows", "--state", "OPEN"], "unknown state `OPEN`"),
        (&["flows", "--limit", "-1"], "-1"),
        (&["filters", "add", "block", "192.0.2.0/24"], "deny, allow"),
        (&["filters", "add", "deny", "192.0.2.1/24"], "is it 192.0.2.0/24, or 192.0.2.1/32?"),
        (&["filters", "add", "deny", "192.0.2.0/33"], "at most 32"),
        (&["filters", "add", "deny", "example.org"], "not an address or prefix"),
        (&["filters", "add", "deny", "192.0.2.0/24", "--expires", "soon"], "a duration looks like"),
        (&["filters", "add", "deny", "192.0.2.0/24", "--expires", "0s"], "over before it begins"),
        (&["filters", "add", "deny"], "PREFIX"),
        (&["filters", "del", "::1/0"], "is it ::/0, or ::1/128?"),
        (&["filters", "load", "/nonexistent/list"], "/nonexistent/list: No such file"),
        (&["filters", "load"], "FILE"),
        (&["filters", "flush", "all"], "deny, allow"),
        (&["filters", "frobnicate"], "'frobnicate'"),
        (&["stats", "--watch", "soon"], "not a number of seconds"),
        (&["check", "/nonexistent/tcpguard.toml"], "/nonexistent/tcpguard.toml: No such file"),
        (&["tune", "time-wait", "--save"], "nothing to save"),
        (&["keys", "frobnicate"], "'frobnicate'"),
        (&["man", "frobnicate"], "no verb `frobnicate`"),
        (&["man", "--directory"], "--directory"),
        (&["completions", "tcsh"], "'tcsh'"),
        (
            &["explain", "ack-invald"],
            "unknown reason or counter `ack-invald` (`tcpguard explain` lists them), did you mean `ack-invalid`?",
        ),
        (
            &["explain", "no-bufer"],
            "unknown reason or counter `no-bufer` (`tcpguard explain` lists them), did you mean `no-buffer`?",
        ),
        (&["explain", "ack-invalid", "--packet", "00"], "cannot be used with"),
        (&["explain", "--pcap", "/nonexistent.pcap"], "/nonexistent.pcap: No such file"),
        (&["explain", "--pcap", "/dev/zero"], "not a capture"),
        (&["config", "--example", "--json"], "cannot be used with"),
        (&["stats", "--control"], "--control"),
    ] {
        let said = refused(args, 2);
        assert!(said.contains(why), "{args:?}: {said}");
    }
}

#[test]
fn a_bad_configuration_file_is_refused_with_file_and_line() {
    let path = file(
        "bad.toml",
        "[[interface]]\nname = \"lo\"\n\n[[service]]\nlisten = \"192.0.2.1:80\"\nbakend = \"x\"\n",
    );
    let said = refused(&["run", "--config", path.to_str().unwrap()], 2);
    assert!(said.contains(&format!("{}:6: unknown field `bakend`", path.display())), "{said}");
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    refused(&["run", "--config", path.to_str().unwrap()], 2);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn check_says_of_a_file_where_and_why_it_is_not_good_and_what_a_good_one_is_about() {
    let secret = file("secret", "no secret");
    let start = "[[interface]]\nname = \"eth0\"\n[[service]]\nlisten = \"192.0.2.1:80\"\nbackend = \"127.0.0.1:80\"\n";
    let check = |text: &str| {
        let path = file("checked.toml", text);
        let output = tcpguard(&["check", path.to_str().unwrap()]);
        std::fs::remove_file(&path).unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap().replace(path.to_str().unwrap(), "FILE");
        (output.status.code(), said)
    };
    for (text, said) in [
        (
            &*format!("{start}mod = \"off\"\n"),
            "tcpguard: FILE:6: unknown field `mod`, expected one of `listen`, `backend`, `balance`, `connect_timeout`, `proxy_protocol`, `source`, `respond`, `mode`, `dry_run`, `max_connections`, `idle_time`, `total_time`, `tunables`, did you mean `mode`?\n",
        ),
        (
            &format!("{start}[tunables]\ntime-wait = 30\n"),
            "tcpguard: FILE:7: time-wait: `30`: a duration looks like 500ms, 30s, 2m or 1m30s\n",
        ),
        (
            &format!("{start}[tunables]\nmax-rto = \"2s\"\nmin-rto = \"3s\"\n"),
            "tcpguard: FILE:8: min-rto 3s is above max-rto 2s\n",
        ),
        (&format!("{start}{start}"), "tcpguard: FILE:7: interface eth0 is named twice\n"),
        (
            &format!("{start}\n[filters]\nfiles = [\"/nonexistent\"]\n"),
            "tcpguard: FILE:8: /nonexistent: No such file or directory (os error 2)\n",
        ),
        ("", "tcpguard: FILE: no interface to guard; name one with -i IFACE or [[interface]] in the file\n"),
    ] {
        assert_eq!(check(text), (Some(2), said.to_owned()), "{text}");
    }
    let (code, said) = check(&format!("secret_file = {secret:?}\n{start}"));
    assert!(code == Some(2) && said.contains("the secret file") && said.lines().count() == 1, "{said}");
    std::fs::remove_file(secret).unwrap();
    let good = "FILE: good (interfaces 1, services 1, filters 0, tunables changed 1)\n".to_owned();
    assert_eq!(check(&format!("{start}[tunables]\nretries = 3\nmin-rto = \"200ms\"\n")), (Some(0), good));
}

#[test]
fn explain_says_of_all_that_is_counted_what_it_means_and_where_it_is_decided_or_counted() {
    let said = |args: &[&str]| {
        let output = tcpguard(args);
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let list = said(&["explain"]);
    let (reasons, counters) = list.split_once("\n\n").unwrap();
    for line in reasons.lines().skip(1) {
        let name = line.split(' ').next().unwrap();
        let text = said(&["explain", name]);
        assert!(
            text.starts_with(&format!("{name}: "))
                && text.contains("\nDecided  ")
                && text.contains("\nDo       ")
        );
    }
    for line in counters.lines().skip(1) {
        let [name, group] = line.split_whitespace().take(2).collect::<Vec<_>>()[..] else { panic!("{line}") };
        let text = said(&["explain", name]);
        assert!(text.contains(&format!("{name}: {group} ")) && text.contains("\nCounted  "), "{text}");
    }
    assert_eq!(
        said(&["explain", "zero-window-expired"]),
        "zero-window-expired: stack counter\n\nConnections given up because their peer kept its window closed for too \
         long.\n\nCounted  by each engine's TCP stack, since the daemon started\n"
    );
    // A reason, an amount of each engine, and nothing else.
    let both = said(&["explain", "time-wait"]);
    assert!(
        both.starts_with("time-wait: redirected\n") && both.contains("\n\ntime-wait: engine amount\n"),
        "{both}"
    );
    assert_eq!(
        said(&["explain", "no-flow-rst"]),
        "no-flow-rst: dropped\n\nRST of an unknown flow, to a service that answers with cookies.\n\n\
         Decided  no flow is known, and the segment is no ACK that could bring a cookie (judge in decision/mod.rs)\n\
         Do       Nothing: clients reset what ended here already. Many are a RST flood, dropped at once.\n"
    );
    let json: serde_json::Value = serde_json::from_str(&said(&["explain", "--json"])).unwrap();
    assert_eq!(json["reasons"].as_array().map(Vec::len), Some(reasons.lines().count() - 1));
    assert_eq!(json["counters"].as_array().map(Vec::len), Some(counters.lines().count() - 1));
    assert_eq!((&json["version"], &json["reasons"][0]["name"]), (&1.into(), &"cookie-sent".into()));
}

#[test]
fn every_verb_and_option_has_a_page_of_the_manual_and_is_completed() {
    let help = String::from_utf8(tcpguard(&["--help"]).stdout).unwrap();
    let verbs =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs: Vec<_> = verbs
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|word| !word.is_empty())
        .collect();
    assert!(verbs.contains(&"run") && verbs.contains(&"man"), "{help}");
    let directory = std::env::temp_dir().join(format!("tcpguard-man-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let output = tcpguard(&["man", "--directory", directory.to_str().unwrap()]);
    assert!(output.status.success() && output.stdout.is_empty());
    for verb in &verbs {
        let page = std::fs::read_to_string(directory.join(format!("tcpguard-{verb}.1"))).unwrap();
        let name = format!("tcpguard-{verb} - ").replace('-', "\\-");
        assert!(page.contains(&name) && page.contains("Example"), "{page}");
        assert_eq!(page.as_bytes(), tcpguard(&["man", verb]).stdout);
    }
    let page = std::fs::read_to_string(directory.join("tcpguard.1")).unwrap();
    assert!(page.contains("Exit codes"), "{page}");
    let scripts = ["bash", "zsh", "fish"].map(|shell| {
        let script = String::from_utf8(tcpguard(&["completions", shell]).stdout).unwrap();
        for verb in &verbs {
            assert!(script.contains(verb), "{shell}: {verb}");
        }
        script
    });
    // What a verb's own help lists: its options, and the verbs under it, which have options of their own.
    let (mut left, mut pages) = (verbs.iter().map(|verb| vec![(*verb).to_owned()]).collect::<Vec<_>>(), 1);
    while let Some(path) = left.pop() {
        pages += 1;
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        let help = String::from_utf8(tcpguard(&[&words[..], &["--help"]].concat()).stdout).unwrap();
        let page = std::fs::read_to_string(directory.join(format!("tcpguard-{}.1", path.join("-")))).unwrap();
        assert_eq!(page.as_bytes(), tcpguard(&[&["man"], &words[..]].concat()).stdout);
        for option in help.lines().filter_map(option) {
            assert!(page.contains(&option.replace('-', "\\-")), "{words:?}: {option}\n{page}");
            for (script, dashes) in scripts.iter().zip(["--", "--", "-l "]) {
                let completed = format!("{dashes}{}", option.trim_start_matches('-'));
                assert!(script.contains(&completed), "{words:?}: {completed}");
            }
        }
        let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let commands =
            commands.take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
        let inner = commands.filter_map(|line| line.split(' ').next()).filter(|word| !word.is_empty());
        left.extend(inner.map(|word| [&path[..], &[word.to_owned()]].concat()));
    }
    assert!(pages > verbs.len() + 1, "no verb has verbs of its own");
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), pages);
    std::fs::remove_dir_all(directory).unwrap();
}

/// The long option that a line of a verb's help is about.
fn option(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let long = line.strip_prefix('-').and_then(|_| line.find("--")).map(|at| &line[at..])?;
    long.split([' ', '[', '=']).next().filter(|option| option.len() > 2)
}

#[test]
fn the_example_of_a_configuration_is_good() {
    let example = tcpguard(&["config", "--example"]);
    assert_eq!(example.status.code(), Some(0));
    let path = file("example.toml", std::str::from_utf8(&example.stdout).unwrap());
    let output = tcpguard(&["check", "--json", path.to_str().unwrap()]);
    let said = String::from_utf8(output.stdout).unwrap();
    let file = path.display();
    let expected = format!(
        "{{\"version\":1,\"file\":\"{file}\",\"interfaces\":1,\"services\":1,\"filters\":0,\"tunables\":0}}\n"
    );
    assert_eq!((output.status.code(), said), (Some(0), expected));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_bad_list_is_refused_with_file_and_line() {
    for (text, line, why) in [
        ("192.0.2.0/24\n\n192.0.2.1/24 # one\n", 3, "bits beyond its length"),
        ("deny 192.0.2.0/24\nallow 192.0.2.0/24\n", 2, "both denied and allowed"),
        ("192.0.2.0/24 for ever\n", 1, "only `expires DURATION`"),
    ] {
        let path = file("list", text);
        let said = refused(&["filters", "load", path.to_str().unwrap()], 2);
        assert!(said.contains(&format!("{}:{line}: ", path.display())) && said.contains(why), "{said}");
        std::fs::remove_file(path).unwrap();
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_tcpguard"))
        .args(["filters", "load", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"192.0.2.0/24\nnonsense\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.starts_with("tcpguard: standard input:2: `nonsense`"), "{said}");
}

#[test]
fn without_a_daemon_questions_fail_with_exit_code_1() {
    for verb in ["status", "stats", "flows", "mode", "tune", "filters", "config"] {
        let said = refused(&[verb, "--control", "/nonexistent/tcpguard.sock"], 1);
        assert!(said.contains("no daemon answers there"), "{said}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for args in [&["--help"][..], &["run", "--help"], &["tune", "--help"], &["--version"]] {
        let output = tcpguard(args);
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty() && !output.stdout.is_empty());
        assert!(!output.stdout.contains(&0x1b), "colour without a terminal");
    }
    let help = String::from_utf8(tcpguard(&["--help"]).stdout).unwrap();
    assert!(help.contains("Exit codes: 0 done, 1 failed, 2 bad input"), "{help}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in
        [&["run", "--help"][..], &["explain"], &["explain", "--json"], &["config", "--example"], &["man"]]
    {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tcpguard"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{args:?}");
    }
}

/// Where there is no systemd there is nobody to ask, and nobody who would read the unit. As root, all is there that tests need.
#[test]
fn systemd_finds_nothing_wrong_with_the_unit_and_little_that_it_could_take_away() {
    let dir = std::env::temp_dir().join(format!("tcpguard-unit-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let unit = dir.join("tcpguard.service");
    let text = include_str!("../dist/tcpguard.service");
    // Only an installed binary is where the unit expects it.
    let here = text.replace("/usr/bin/tcpguard", env!("CARGO_BIN_EXE_tcpguard"));
    assert_ne!(here, text);
    for line in [
        "Restart=on-failure",
        "RestartPreventExitStatus=2",
        "StartLimitIntervalSec=0",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ] {
        assert!(text.lines().any(|said| said == line), "no {line}");
    }
    std::fs::write(&unit, here).unwrap();
    for arguments in [&["verify"][..], &["security", "--offline=true", "--threshold=40"]] {
        match Command::new("systemd-analyze").args(arguments).arg(&unit).output() {
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && !rustix::process::geteuid().is_root() =>
            {
                break;
            }
            Err(error) => panic!("systemd-analyze: {error}"),
            Ok(output) => {
                let said = [output.stdout, output.stderr].concat();
                assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
            }
        }
    }
    std::fs::remove_dir_all(dir).unwrap();
}
