//! Every kind of segment in every state (RFC 9293 §3.10.7, with RFC 5961 and RFC 1337): a table whose cells say what is
//! sent back at once and which state follows.

use tcpguard_common::seq::Seq;

use super::script::{CLIENT, Script, plain};
use super::{ADVERTISED, CLIENT_MAC, SERVER_MAC, link, stream};
use crate::State;

/// The columns. CLOSED is a port without a listener; LISTEN is what a cookie finds; HALF_OPEN is a passive open's SYN_RCVD,
/// the column of that name a simultaneous open's.
const STATES: [&str; 12] = [
    "CLOSED",
    "LISTEN",
    "HALF_OPEN",
    "SYN_SENT",
    "SYN_RCVD",
    "ESTAB",
    "FIN_W_1",
    "FIN_W_2",
    "CLOSE_W",
    "CLOSING",
    "LAST_ACK",
    "TIME_WAIT",
];

/// A line: what it is, flags, SEG.SEQ from RCV.NXT, length, SEG.ACK from SND.UNA (`u`) or SND.NXT (`n`), and what happens in
/// each state: nothing (`-`), or the answer (`ack`, `rst`, `syn` for a SYN-ACK), the next state (`>`), or both. `ack+N`
/// acknowledges so many sequence numbers more than before: SYN, data, all of which is delivered, and FIN. Any other acknowledges
/// RCV.NXT, and nothing is delivered.
type Line = (&'static str, &'static str, i64, u32, &'static str, &'static str);

#[rustfmt::skip]
const TABLE: &[Line] = &[
    //                                                                     CLOSED LISTEN         HALF_OPEN     SYN_SENT     SYN_RCVD      ESTAB          FIN_W_1         FIN_W_2          CLOSE_W CLOSING    LAST_ACK TIME_WAIT
    // Those that XDP leaves to the stack. In a synchronized state each is challenged, wherever it lies (RFC 5961 §4).
    ("SYN at RCV.NXT",                "S",        0,       0,  "",        "-      syn>HALF_OPEN  syn           syn>SYN_RCVD ack           ack            ack             ack              ack     ack        ack      ack"),
    ("SYN outside the window",        "S",        900_000, 0,  "",        "-      syn>HALF_OPEN  syn           syn>SYN_RCVD ack           ack            ack             ack              ack     ack        ack      syn"),
    ("SYN just before it",            "S",        -1,      0,  "",        "-      syn>HALF_OPEN  syn           syn>SYN_RCVD ack           ack            ack             ack              ack     ack        ack      ack"),
    ("SYN just behind it",            "S",        1,       0,  "",        "-      syn>HALF_OPEN  syn           syn>SYN_RCVD ack           ack            ack             ack              ack     ack        ack      syn"),
    ("SYN-ACK at RCV.NXT",            "S.",       0,       0,  "n",       "-      -              -             ack+1>ESTAB  ack           ack            ack             ack              ack     ack        ack      ack"),
    ("SYN-ACK just before it",        "S.",       -1,      0,  "n",       "-      -              -             ack>ESTAB    >ESTAB        ack            ack             ack              ack     ack        ack      ack"),
    ("SYN-ACK of something else",     "S.",       0,       0,  "n+1",     "-      -              -             rst          ack           ack            ack             ack              ack     ack        ack      ack"),
    // Only a reset at RCV.NXT is believed, one elsewhere in the window challenged (RFC 5961 §3); none ends TIME_WAIT (RFC 1337).
    ("RST at RCV.NXT",                "R",        0,       0,  "",        "-      -              >LISTEN       -            >CLOSED       >CLOSED        >CLOSED         >CLOSED          >CLOSED >CLOSED    >CLOSED  -"),
    ("RST in the window",             "R",        1,       0,  "",        "-      -              ack           -            ack           ack            ack             ack              ack     ack        ack      -"),
    ("RST outside the window",        "R",        900_000, 0,  "",        "-      -              -             -            -             -              -               -                -       -          -        -"),
    ("RST before the window",         "R",        -1,      0,  "",        "-      -              -             -            -             -              -               -                -       -          -        -"),
    ("RST with ACK at RCV.NXT",       "R.",       0,       0,  "n",       "-      -              >LISTEN       >CLOSED      >CLOSED       >CLOSED        >CLOSED         >CLOSED          >CLOSED >CLOSED    >CLOSED  -"),
    ("RST with a wrong ACK",          "R.",       0,       0,  "n+1",     "-      -              >LISTEN       -            >CLOSED       >CLOSED        >CLOSED         >CLOSED          >CLOSED >CLOSED    >CLOSED  -"),
    ("RST with ACK in the window",    "R.",       1,       0,  "n",       "-      -              ack           >CLOSED      ack           ack            ack             ack              ack     ack        ack      -"),
    ("RST with ACK outside",          "R.",       900_000, 0,  "n",       "-      -              -             >CLOSED      -             -              -               -                -       -          -        -"),
    ("RST with ACK before",           "R.",       -1,      0,  "n",       "-      -              -             >CLOSED      -             -              -               -                -       -          -        -"),
    // Up to a window old an ACK is a duplicate, and older, or of what was never sent, it is challenged (RFC 5961 §5); outside the
    // window it is answered and goes nowhere (RFC 9293 §3.10.7.4, first check), as a keepalive probe just before it is (§3.8.4).
    // A forged cookie meets silence, of a half-open connection too, and a good one of a port that is nobody's a reset.
    ("ACK of everything",             ".",        0,       0,  "n",       "rst    >ESTAB         >ESTAB        -            >ESTAB        -              >FIN_W_2        -                -       >TIME_WAIT >CLOSED  -"),
    ("ACK once more",                 ".",        0,       0,  "u",       "rst    >ESTAB         -             rst          rst           -              -               -                -       -          -        -"),
    ("ACK of an earlier moment",      ".",        0,       0,  "u-50",    "-      -              -             rst          rst           -              -               -                -       -          -        ack"),
    ("ACK of long ago",               ".",        0,       0,  "u-90000", "-      -              -             rst          rst           ack            ack             ack              ack     ack        ack      ack"),
    ("ACK of what was never sent",    ".",        0,       0,  "n+1",     "-      -              -             rst          rst           ack            ack             ack              ack     ack        ack      ack"),
    ("ACK outside the window",        ".",        900_000, 0,  "u",       "-      -              -             rst          ack           ack            ack             ack              ack     ack        ack      ack"),
    ("ACK of everything, outside",    ".",        900_000, 0,  "n",       "-      -              -             -            ack           ack            ack             ack              ack     ack        ack      ack"),
    ("ACK of too much, outside",      ".",        900_000, 0,  "n+1",     "-      -              -             rst          ack           ack            ack             ack              ack     ack        ack      ack"),
    ("ACK just before RCV.NXT",       ".",        -1,      0,  "u",       "-      -              -             rst          ack           ack            ack             ack              ack     ack        ack      ack"),
    ("ACK in the window",             ".",        1,       0,  "u",       "-      -              -             rst          rst           -              -               -                -       -          -        ack"),
    ("ACK of a part",                 ".",        0,       0,  "u+50",    "-      -              -             rst          rst           -              -               ack              -       -          -        ack"),
    // Data is taken in wherever it fits with an acceptable ACK (RFC 9293 §3.10.7.4, RFC 5961 §5.2), a FIN likewise.
    // The peer has no more to say after its FIN: what comes is acknowledged and goes nowhere.
    ("data in order",                 "P.",       0,       10, "u",       "rst    ack+10>ESTAB   -             rst          rst           ack+10         ack+10          ack+10           ack     ack        ack      ack"),
    ("data with URG",                 "PU.",      0,       10, "u",       "rst    ack+10>ESTAB   -             rst          rst           ack+10         ack+10          ack+10           ack     ack        ack      ack"),
    ("data that acknowledges all",    "P.",       0,       10, "n",       "rst    ack+10>ESTAB   ack+10>ESTAB  -            ack+10>ESTAB  ack+10         ack+10>FIN_W_2  ack+10           ack     >TIME_WAIT >CLOSED  ack"),
    ("data behind a hole",            "P.",       100,     10, "u",       "-      -              -             rst          rst           ack            ack             ack              ack     ack        ack      ack"),
    ("data outside the window",       "P.",       900_000, 10, "u",       "-      -              -             rst          ack           ack            ack             ack              ack     ack        ack      ack"),
    ("data once more",                "P.",       -10,     10, "u",       "-      -              -             rst          ack           ack            ack             ack              ack     ack        ack      ack"),
    ("data, old and new",             "P.",       -5,      10, "u",       "-      -              -             rst          rst           ack+5          ack+5           ack+5            ack     ack        ack      ack"),
    ("data with a wrong ACK",         "P.",       0,       10, "n+1",     "-      -              -             rst          rst           ack            ack             ack              ack     ack        ack      ack"),
    ("data with an earlier ACK",      "P.",       0,       10, "u-50",    "-      -              -             rst          rst           ack+10         ack+10          ack+10           ack     ack        ack      ack"),
    ("data with an ACK of long ago",  "P.",       0,       10, "u-90000", "-      -              -             rst          rst           ack            ack             ack              ack     ack        ack      ack"),
    ("data that acknowledges a part", "P.",       0,       10, "u+50",    "-      -              -             rst          rst           ack+10         ack+10          ack              ack     ack        ack      ack"),
    ("data without ACK",              "P",        0,       10, "",        "-      -              -             -            -             -              -               -                -       -          -        -"),
    ("FIN in order",                  "F.",       0,       0,  "u",       "rst    ack+1>CLOSE_W  -             rst          rst           ack+1>CLOSE_W  ack+1>CLOSING   ack+1>TIME_WAIT  ack     ack        ack      ack"),
    ("FIN that acknowledges all",     "F.",       0,       0,  "n",       "rst    ack+1>CLOSE_W  ack+1>CLOSE_W -            ack+1>CLOSE_W ack+1>CLOSE_W  ack+1>TIME_WAIT ack+1>TIME_WAIT  ack     >TIME_WAIT >CLOSED  ack"),
    ("FIN with data",                 "F.",       0,       10, "u",       "rst    ack+11>CLOSE_W -             rst          rst           ack+11>CLOSE_W ack+11>CLOSING  ack+11>TIME_WAIT ack     ack        ack      ack"),
    ("FIN behind a hole",             "F.",       50,      0,  "u",       "-      -              -             rst          rst           ack            ack             ack              ack     ack        ack      ack"),
    ("FIN once more",                 "F.",       -1,      0,  "u",       "-      -              -             rst          ack           ack            ack             ack              ack     ack        ack      ack"),
    ("FIN outside the window",        "F.",       900_000, 0,  "u",       "-      -              -             rst          ack           ack            ack             ack              ack     ack        ack      ack"),
    ("FIN with an earlier ACK",       "F.",       0,       0,  "u-50",    "-      -              -             rst          rst           ack+1>CLOSE_W  ack+1>CLOSING   ack+1>TIME_WAIT  ack     ack        ack      ack"),
    ("FIN with an ACK of long ago",   "F.",       0,       0,  "u-90000", "-      -              -             rst          rst           ack            ack             ack              ack     ack        ack      ack"),
    ("FIN with a wrong ACK",          "F.",       0,       0,  "n+1",     "-      -              -             rst          rst           ack            ack             ack              ack     ack        ack      ack"),
    // Flags that contradict each other: RST is looked at first, then SYN, and nothing without ACK goes on (RFC 9293 §3.10.7.4).
    // XDP drops most of it before.
    ("SYN with FIN",                  "SF",       0,       0,  "",        "-      -              -             syn>SYN_RCVD ack           ack            ack             ack              ack     ack        ack      ack"),
    ("SYN with FIN and ACK",          "SF.",      0,       0,  "n",       "-      -              -             ack+1>ESTAB  ack           ack            ack             ack              ack     ack        ack      ack"),
    ("SYN with RST",                  "SR",       0,       0,  "",        "-      -              >LISTEN       -            >CLOSED       >CLOSED        >CLOSED         >CLOSED          >CLOSED >CLOSED    >CLOSED  -"),
    ("SYN with RST and ACK",          "SR.",      0,       0,  "n",       "-      -              >LISTEN       >CLOSED      >CLOSED       >CLOSED        >CLOSED         >CLOSED          >CLOSED >CLOSED    >CLOSED  -"),
    ("FIN with RST and ACK",          "FR.",      0,       0,  "u",       "-      -              >LISTEN       -            >CLOSED       >CLOSED        >CLOSED         >CLOSED          >CLOSED >CLOSED    >CLOSED  -"),
    ("FIN without ACK",               "F",        0,       0,  "",        "-      -              -             -            -             -              -               -                -       -          -        -"),
    ("FIN, PSH and URG alone",        "FPU",      0,       0,  "",        "-      -              -             -            -             -              -               -                -       -          -        -"),
    ("every flag there is",           "SFRPU.EW", 0,       0,  "n",       "-      -              >LISTEN       >CLOSED      >CLOSED       >CLOSED        >CLOSED         >CLOSED          >CLOSED >CLOSED    >CLOSED  -"),
    // Marks of congestion change nothing where ECN was not agreed upon (RFC 3168 §6.1).
    ("SYN that offers ECN",           "SEW",      0,       0,  "",        "-      syn>HALF_OPEN  syn           syn>SYN_RCVD ack           ack            ack             ack              ack     ack        ack      ack"),
    ("data with ECE and CWR",         "P.EW",     0,       10, "u",       "rst    ack+10>ESTAB   -             rst          rst           ack+10         ack+10          ack+10           ack     ack        ack      ack"),
    ("RST with ECE",                  "RE",       0,       0,  "",        "-      -              >LISTEN       -            >CLOSED       >CLOSED        >CLOSED         >CLOSED          >CLOSED >CLOSED    >CLOSED  -"),
    ("no flags at all",               "-",        0,       0,  "",        "-      -              -             -            -             -              -               -                -       -          -        -"),
];

/// RCV.NXT, SND.UNA and SND.NXT of [`in_state`], counted from the initial sequence numbers.
struct Numbers {
    rcv_nxt: i64,
    snd_una: i64,
    snd_nxt: i64,
}

/// A client that has brought the stack into a state: 100 bytes each way are acknowledged, and 100 of ours are not.
fn in_state(state: &str) -> (Script, Numbers) {
    let mut t = Script::syn(plain());
    let numbers = |rcv_nxt, snd_una, snd_nxt| Numbers { rcv_nxt, snd_una, snd_nxt };
    match state {
        "CLOSED" => {
            t.stack.unlisten(None, 80);
            return (t, numbers(1, 1, 1));
        }
        "LISTEN" => return (t, numbers(1, 1, 1)),
        "HALF_OPEN" => {
            t.sends("S 0:0(0)");
            t.expect("S. 0:0(0) ack 1");
            return (t, numbers(1, 0, 1));
        }
        "SYN_SENT" | "SYN_RCVD" => {
            let (client, server) = (t.key().peer_addr(), t.key().local_addr());
            t.conn = t.stack.connect(t.now, server, client, link(SERVER_MAC, CLIENT_MAC)).ok();
            t.next_sent().unwrap();
            t.cookie.isn = t.last.unwrap().0.0;
            if state == "SYN_SENT" {
                return (t, numbers(0, 0, 1));
            }
            t.sends("S 0:0(0)");
            t.expect("S. 0:0(0) ack 1");
            return (t, numbers(1, 0, 1));
        }
        _ => {}
    }
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 100);
    t.sends("P. 1:101(100) ack 1");
    while t.next_sent().is_some() {}
    t.server_reads(1, 100);
    t.sends(". 101:101(0) ack 101");
    t.server_sends(101, 100);
    let id = t.conn();
    let closes_first = matches!(state, "FIN_W_1" | "FIN_W_2" | "CLOSING" | "TIME_WAIT");
    if closes_first {
        t.stack.shutdown(t.now, id).unwrap();
    }
    while t.next_sent().is_some() {}
    let numbers = match state {
        "ESTAB" => numbers(101, 101, 201),
        "FIN_W_1" => numbers(101, 101, 202),
        "FIN_W_2" => {
            t.sends(". 101:101(0) ack 202");
            numbers(101, 202, 202)
        }
        "TIME_WAIT" => {
            t.sends("F. 101:101(0) ack 202");
            numbers(102, 202, 202)
        }
        _ => {
            t.sends("F. 101:101(0) ack 101");
            if state == "LAST_ACK" {
                t.stack.shutdown(t.now, id).unwrap();
            }
            numbers(102, 101, if state == "CLOSE_W" { 201 } else { 202 })
        }
    };
    while t.next_sent().is_some() {}
    (t, numbers)
}

/// The name of the column that a flow is in now.
fn column(t: &Script, before: &'static str) -> &'static str {
    match t.stack.flow_state(t.now, &t.key()) {
        None if t.stack.is_half_open(&t.key()) => "HALF_OPEN",
        None if matches!(before, "LISTEN" | "HALF_OPEN") => "LISTEN",
        None | Some(State::Closed) => "CLOSED",
        Some(State::SynSent) => "SYN_SENT",
        Some(State::SynReceived) => "SYN_RCVD",
        Some(State::Established) => "ESTAB",
        Some(State::FinWait1) => "FIN_W_1",
        Some(State::FinWait2) => "FIN_W_2",
        Some(State::CloseWait) => "CLOSE_W",
        Some(State::Closing) => "CLOSING",
        Some(State::LastAck) => "LAST_ACK",
        Some(State::TimeWait) => "TIME_WAIT",
    }
}

/// What happens when the segment of a line arrives in a state, as a cell of the table. What a cell does not say must be as the
/// RFC has it: the numbers of the answer, what was delivered, and what counts as acknowledged.
fn reaction(state: &'static str, line: &Line) -> String {
    let &(_, flags, offset, len, ack, _) = line;
    let (mut t, numbers) = in_state(state);
    assert_eq!(column(&t, state), state, "the script did not get there");
    let seq = (numbers.rcv_nxt + offset) as u32;
    let base = if ack.starts_with('u') { numbers.snd_una } else { numbers.snd_nxt };
    let ack = (!ack.is_empty()).then(|| base + ack[1..].parse::<i64>().unwrap_or(0));
    let mut text = format!("{flags} {seq}:{}({len})", seq.wrapping_add(len));
    if let Some(ack) = ack {
        text += &format!(" ack {}", ack as u32);
    }
    t.sends(&text);
    let (answer, acknowledged) = match t.next_sent() {
        None => (String::new(), 0),
        Some(sent) => judge(&sent, &numbers, seq, ack),
    };
    if let Some(more) = t.next_sent() {
        return format!("{answer} and {more}");
    }
    let after = column(&t, state);
    let ended = |state: &str| matches!(state, "CLOSE_W" | "CLOSING" | "LAST_ACK" | "TIME_WAIT");
    let opened = u32::from(state == "SYN_SENT" && acknowledged > 0);
    let fin = u32::from(acknowledged > 0 && ended(after) && !ended(state));
    let delivered = delivered(&mut t, numbers.rcv_nxt as u64);
    if delivered != acknowledged - opened - fin {
        return format!("{answer} with {delivered} bytes delivered");
    }
    let una = t.conn.and_then(|id| t.stack.view(id)).filter(|view| view.state.synchronized());
    let opening = matches!(state, "LISTEN" | "HALF_OPEN" | "SYN_SENT" | "SYN_RCVD");
    if let Some(view) = una.filter(|_| !opening) {
        let una = i64::from(view.snd_una.distance(Seq(t.cookie.isn)));
        let expected = ack.filter(|&ack| is_heeded(line, &numbers, ack)).unwrap_or(numbers.snd_una);
        if una != expected {
            return format!("{answer} with SND.UNA {una} instead of {expected}");
        }
    }
    if after == state {
        return if answer.is_empty() { "-".to_owned() } else { answer };
    }
    format!("{answer}>{after}")
}

/// An answer's name, and how many sequence numbers more than RCV.NXT it acknowledges. If its numbers are not as RFC 9293 §3.10.7
/// has them, the answer itself is the name.
fn judge(sent: &str, numbers: &Numbers, seq: u32, ack: Option<i64>) -> (String, u32) {
    let Numbers { rcv_nxt, snd_nxt, .. } = *numbers;
    let next = seq.wrapping_add(1) as i32;
    // Where the SYN is another one the initial sequence number of the answer is another cookie.
    if sent.starts_with("S. ") && sent.ends_with(&format!("(0) ack {next}")) {
        return ("syn".to_owned(), 0);
    }
    // <SEQ=SEG.ACK><CTL=RST>; where a good cookie opens nothing, as if the connection had been there: <ACK=SEG.SEQ> besides.
    let reset = |ack: i64| [format!("R {ack}:{ack}(0)"), format!("R. {ack}:{ack}(0) ack {seq}")];
    if ack.is_some_and(|ack| reset(ack).iter().any(|reset| reset == sent)) {
        return ("rst".to_owned(), 0);
    }
    // <SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>
    let acknowledged = sent.strip_prefix(&format!(". {snd_nxt}:{snd_nxt}(0) ack ")).map(str::parse::<i64>);
    match acknowledged {
        Some(Ok(more)) if more == rcv_nxt => ("ack".to_owned(), 0),
        Some(Ok(more)) if more > rcv_nxt => (format!("ack+{}", more - rcv_nxt), (more - rcv_nxt) as u32),
        _ => (sent.to_owned(), 0),
    }
}

/// Bytes that the application can read; they are the client's stream from `from` on.
fn delivered(t: &mut Script, from: u64) -> u32 {
    let Some(id) = t.conn else { return 0 };
    let mut data = [0; 100];
    let len = t.stack.recv(t.now, id, &mut data).unwrap_or(0);
    assert_eq!(data[..len], stream(CLIENT, from, len));
    len as u32
}

/// Whether a line's SEG.ACK is new to a connection in a synchronized state (RFC 9293 §3.10.7.4: after the checks of sequence
/// number, RST and SYN).
fn is_heeded(&(_, flags, offset, len, ..): &Line, numbers: &Numbers, ack: i64) -> bool {
    let takes = i64::from(len) + i64::from(flags.contains('F'));
    let window = i64::from(ADVERTISED.window);
    let fits = offset <= window && if takes == 0 { offset >= 0 } else { offset + takes > 0 };
    let news = numbers.snd_una < ack && ack <= numbers.snd_nxt;
    fits && news && !flags.contains(['S', 'R'])
}

#[test]
fn every_segment_in_every_state_has_the_reaction_the_table_says() {
    let mut wrong = Vec::new();
    for line in TABLE {
        let expected: Vec<&str> = line.5.split_whitespace().collect();
        assert_eq!(expected.len(), STATES.len(), "{}", line.0);
        for (state, expected) in STATES.into_iter().zip(expected) {
            let found = reaction(state, line);
            if found != expected {
                wrong.push(format!("{} in {state}: {found} instead of {expected}", line.0));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
