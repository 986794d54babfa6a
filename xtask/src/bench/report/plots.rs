//! Which plots there are, in the order of the page, and what they show. How they are drawn is `plot`'s business.

use serde_json::Value;

use super::plot::{Bar, Bars, Lines, NO_SPREAD, Point, Scale, Series, short};
use super::{counts, distinct, number, rows, string, topologies};
use crate::bench::figures::{edge, sorted};

/// Who takes less of a flood than this is not compared by what it costs, and has hollow points.
const WHOLE: f64 = 0.95;
/// Likewise who leaves more of its clients than this without an answer.
const FAILED: f64 = 0.01;

/// What one plot is called in files, what it says in words, and what it shows.
pub(super) struct Plot {
    pub(super) name: String,
    pub(super) says: String,
    pub(super) svg: String,
}

/// The name of every plot that there may be.
pub(super) const NAMES: [&str; 24] = [
    "goodput-direct-short_conn",
    "goodput-direct-keepalive",
    "goodput-proxied-short_conn",
    "goodput-proxied-keepalive",
    "latency-direct-short_conn",
    "latency-direct-keepalive",
    "latency-proxied-short_conn",
    "latency-proxied-keepalive",
    "program-hot",
    "program-cold",
    "program-new",
    "flood-answers",
    "flood-frames",
    "flood-cost",
    "proxy",
    "proxy-first-byte",
    "stack-segment",
    "scale-memory",
    "scale-time-wait",
    "scale-segment",
    "scale-time",
    "scale-services",
    "scale-queues",
    "scale-filters",
];

/// Plots under one heading.
pub(super) struct Chapter {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) plots: Vec<Plot>,
}

/// What a stranger came for.
pub(super) fn chapters(reports: &[Value]) -> Vec<Chapter> {
    let chapter = |id, title, plots| Chapter { id, title, plots };
    let all = [
        chapter(
            "clients",
            "Real clients while a flood grows",
            goodput(rows(reports, "goodput"), "short_conn"),
        ),
        chapter("packets", "What a packet costs the XDP program", program(rows(reports, "program"))),
        chapter("floods", "A flood at full rate", flood(rows(reports, "flood"))),
        chapter("many", "Many connections, services and filters", scale(rows(reports, "scale"))),
    ];
    all.into_iter().filter(|chapter| !chapter.plots.is_empty()).collect()
}

/// What else was measured.
pub(super) fn further(reports: &[Value]) -> Chapter {
    let of = rows(reports, "goodput");
    let mut plots = latency(of, "short_conn");
    plots.extend(goodput(of, "keepalive"));
    plots.extend(latency(of, "keepalive"));
    plots.extend(proxy(rows(reports, "proxy")));
    plots.extend(stack(rows(reports, "stack")));
    Chapter { id: "further", title: "More: latency, keep-alive, the relay, the stack", plots }
}

fn spread(row: &Value) -> (f64, f64) {
    (number(row, "min"), number(row, "max"))
}

/// A kind of requests, in words.
fn kind(name: &str) -> &'static str {
    match name {
        "short_conn" => "A connection for each request",
        _ => "64 connections that stay",
    }
}

/// A line for each contestant over the flood that was asked for; not a number where no round counts.
fn under_flood(
    rows: &[Value],
    topology: &str,
    name: &str,
    y: impl Fn(&Value) -> (f64, (f64, f64)),
) -> Vec<Series> {
    let of = || rows.iter().filter(|row| row["topology"] == topology && row["name"] == name);
    let point = |row: &Value| {
        let (y, spread) = if counts(rows, row) { y(row) } else { (f64::NAN, NO_SPREAD) };
        let asked = number(row, "asked_pps");
        // Where nobody wrote down what was taken, nothing is said against it.
        let missing = number(row, "delivered_pps") < asked * WHOLE;
        let failing = number(row, "failed") > number(row, "attempts") * FAILED;
        Point { x: asked, y, spread, whole: !missing && !failing }
    };
    let series = |who: &str| Series {
        name: who.to_owned(),
        points: of().filter(|row| row["contestant"] == who).map(point).collect(),
    };
    distinct(rows, "contestant").into_iter().map(series).filter(|series| !series.points.is_empty()).collect()
}

/// What the last point of each line is, where there is one at full rate.
fn full_rate(goodput: &[Value]) -> &'static str {
    match goodput.iter().any(|row| row["full_rate"] == true) {
        true => {
            " The last point of each line is a flood as hard as the generator makes it, of which each takes what it can."
        }
        false => "",
    }
}

const FLOOD: (&str, Scale) = ("flood asked for, frames a second", Scale::LogAfter("calm"));

/// What clients get against the flood.
fn goodput(of: &[Value], name: &str) -> Vec<Plot> {
    let plot = |topology: &str| {
        let set_up = match topology {
            "proxied" => "HAProxy or tcpguard, then nginx",
            _ => "nginx, or tcpguard's responder",
        };
        let answers = match topology {
            "proxied" => {
                "Behind every defence stands a proxy before the same nginx: HAProxy, or tcpguard itself. tcpguard judges the flood \
                 and relays the clients in one process."
            }
            _ => {
                "tcpguard answers by its built-in responder and the others by nginx, which takes more for a request even in the \
                 calm: not the defence alone makes the difference."
            }
        };
        Plot {
            name: format!("goodput-{topology}-{name}"),
            says: format!(
                "{answers} More is better. Median of the rounds that count, with the least and the most. Hollow: less than \
                 95 % of the flood was taken, or more than one client in a hundred was not served. A cross on the axis: floods were not alike, so that too few rounds count.{}",
                full_rate(of)
            ),
            svg: Lines {
                title: format!("{}, {topology} ({set_up})", kind(name)),
                x: FLOOD,
                y: ("requests/s", Scale::Linear),
                series: under_flood(of, topology, name, |row| (number(row, "median"), spread(row))),
            }
            .svg(),
        }
    };
    let measured = |topology: &&str| of.iter().any(|row| row["topology"] == *topology && row["name"] == name);
    topologies(of).into_iter().filter(measured).map(plot).collect()
}

/// How long clients wait against the flood.
fn latency(of: &[Value], name: &str) -> Vec<Plot> {
    let how = if !of.iter().any(|row| row["attempts"].is_number()) {
        "Of requests that were answered alone, each without its handshake: who waits for ever is not in it."
    } else if name == "short_conn" {
        "From connect() to the last byte, of requests that are sent whether others were answered or not; those that fail are in it."
    } else {
        "From when a request was due to its last byte, whether others were answered or not; those that fail are in it."
    };
    let plot = |topology: &str| {
        let wait = |row: &Value| (number(row, "p99_us") / 1000.0, NO_SPREAD);
        let mut series = under_flood(of, topology, name, wait);
        // Who is served nobody has no latency.
        for series in &mut series {
            series.points.retain(|point| point.y != 0.0);
        }
        Plot {
            name: format!("latency-{topology}-{name}"),
            says: format!("How long 99 in 100 of the requests took at most: less is better. {how}"),
            svg: Lines {
                title: format!("p99 of a request's time. {}, {topology}", kind(name)),
                x: FLOOD,
                y: ("ms", Scale::Log),
                series,
            }
            .svg(),
        }
    };
    let measured = |topology: &&str| of.iter().any(|row| row["topology"] == *topology && row["name"] == name);
    topologies(of).into_iter().filter(measured).map(plot).collect()
}

/// What comes of floods, and what a frame costs.
fn flood(rows: &[Value]) -> Vec<Plot> {
    let full: Vec<_> = rows.iter().filter(|row| row["asked_pps"] == 0).cloned().collect();
    let group = |name: &str, unit: &str, ground: bool| {
        let of = full.iter().filter(|row| row["name"] == name && row["unit"] == unit);
        let of = of.filter(|row| ground || row["contestant"] != "xdp_drop");
        let bar = |row: &Value| Bar::of(string(row, "contestant"), number(row, "median"), spread(row));
        (format!("{name}, {unit}"), of.map(bar).collect::<Vec<_>>())
    };
    let groups = |units: &[&str], ground: bool| -> Vec<_> {
        let each =
            distinct(&full, "name").into_iter().flat_map(|name| units.iter().map(move |unit| (name, *unit)));
        each.map(|(name, unit)| group(name, unit, ground)).filter(|(_, bars)| !bars.is_empty()).collect()
    };
    // Where the figure is another, answers are told beside it.
    let answers = |name: &str| {
        let of = full.iter().filter(|row| row["name"] == name && row["answers_pps"].is_number());
        let bar = |row: &Value| Bar::of(string(row, "contestant"), number(row, "answers_pps"), NO_SPREAD);
        (format!("{name}, answers/s"), of.map(bar).collect::<Vec<_>>())
    };
    let mut answered = groups(&["answers/s", "handshakes/s"], false);
    answered.extend(distinct(&full, "name").into_iter().map(answers).filter(|(_, bars)| !bars.is_empty()));
    let plots = [
        (
            "flood-answers",
            "Right answers in a flood as fast as the machine makes it",
            "a second, more is better",
            answered,
            "Answers that were found right at the far end, and handshakes that a botnet completed. xdp_tx only swaps addresses and \
             sends frames back: nobody who answers takes less. Median of all rounds, with the least and the most.",
        ),
        (
            "flood-frames",
            "Frames taken where none is to be answered",
            "frames a second, more is better",
            groups(&["frames/s"], true),
            "Who drops takes more than who answers: SYNs of one tuple (one_tuple) are answered by the kernel's defences, and \
             dropped by tcpguard once the budget of their prefix is spent. xdp_drop does nothing else.",
        ),
        (
            "flood-cost",
            "CPU time of the guarded host for a frame",
            "ns, less is better",
            costs(rows),
            "Of the thread that handles its packets, and of the daemon, at rates that are asked for. xdp_drop is the floor. Who did \
             not take them whole has no figure. Median of all rounds, with the least and the most.",
        ),
    ];
    let drawn = plots.into_iter().filter(|(_, _, _, groups, _)| !groups.is_empty());
    drawn
        .map(|(name, title, unit, groups, says)| Plot {
            name: name.to_owned(),
            says: says.to_owned(),
            svg: Bars { title: title.to_owned(), unit, groups }.svg(),
        })
        .collect()
}

/// What a frame costs at fixed rates; nothing of reports that told the time of the whole machine instead.
fn costs(rows: &[Value]) -> Vec<(String, Vec<Bar>)> {
    let told = |row: &&Value| row["cpu_over_drop_ns"].is_number();
    let rate = |row: &Value| (string(row, "name").to_owned(), row["asked_pps"].clone());
    let mut rates: Vec<_> = Vec::new();
    for row in rows.iter().filter(told) {
        if !rates.contains(&rate(row)) {
            rates.push(rate(row));
        }
    }
    let bar = |row: &Value| {
        let cost = number(row, "cpu_ns");
        let bar =
            Bar::of(string(row, "contestant"), cost, (number(row, "cpu_ns_min"), number(row, "cpu_ns_max")));
        let taken = number(row, "delivered_pps") / number(row, "asked_pps") * 100.0;
        Bar { without: format!("took {taken:.0} % of it"), ..bar }
    };
    let group = |of: (String, Value)| {
        let bars = rows.iter().filter(|row| rate(row) == of).map(bar).collect();
        (format!("{} at {} frames/s", of.0, short(of.1.as_f64().unwrap_or(f64::NAN))), bars)
    };
    rates.into_iter().map(group).collect()
}

/// What a row of `program` is about, in words.
fn packet(name: &str) -> &str {
    match name {
        "syn_v4_ts" => "SYN, answered with a cookie (syn_v4_ts)",
        "syn_v6_ts" => "SYN over IPv6 (syn_v6_ts)",
        "ack_invalid_v4" => "bad ACK, dropped (ack_invalid_v4)",
        "ack_invalid_v6" => "bad ACK over IPv6 (ack_invalid_v6)",
        other => other,
    }
}

/// A row of `program` without its contestant.
fn packet_of(row: &Value) -> &str {
    let name = string(row, "name");
    name.split_once('/').map_or(name, |(_, packet)| packet)
}

/// What the program costs, beside the peers where they were measured.
fn program(rows: &[Value]) -> Vec<Plot> {
    let is_cold = |row: &Value| packet_of(row).ends_with("_cold");
    // Entering a flow into a table takes so much more than anything else that nothing else could be read beside it.
    let enters = |row: &Value| packet_of(row).starts_with("ack_valid");
    let plot = |name: &str, title: &str, says: &str, shown: &dyn Fn(&Value) -> bool| {
        let of: Vec<_> = rows.iter().filter(|row| row["contestant"] != "null" && shown(row)).collect();
        let groups = beside_peers(&of);
        let svg = Bars { title: title.to_owned(), unit: "ns, less is better", groups: groups.clone() }.svg();
        (!groups.is_empty()).then(|| Plot { name: name.to_owned(), says: says.to_owned(), svg })
    };
    let plots = [
        plot(
            "program-hot",
            "A packet, over a program that does nothing; tables in the cache",
            "The XDP program by itself, without a driver: zero is a program that does nothing with the same frames. Median of \
             the differences inside each round, with the half of the rounds that is in the middle. xdp_synproxy is the kernel's sample, xdpcookie an independent program.",
            &|row| !is_cold(row) && !enters(row),
        ),
        plot(
            "program-cold",
            "The same beside a million flows, from random sources",
            "Likewise, with a million flows in the table: what is looked up in it comes from memory.",
            &|row| is_cold(row) && !enters(row),
        ),
        plot(
            "program-new",
            "A valid cookie, whose flow is entered into the table",
            "Likewise, once for each connection: few flows in the table, and a million (_cold).",
            &enters,
        ),
    ];
    plots.into_iter().flatten().collect()
}

/// Between what do half of the rounds lie, a quarter of them on either side: of dozens of rounds the least and the most say
/// nothing but how busy the machine was for a moment. Not numbers where rounds were not written down.
fn middle(row: &Value) -> (f64, f64) {
    let samples = sorted(row["samples"].as_array().into_iter().flatten().filter_map(Value::as_f64));
    let quarter = samples.len() / 4;
    (edge(samples.get(quarter)), edge(samples.len().checked_sub(quarter + 1).and_then(|at| samples.get(at))))
}

/// A group for each packet that peers were measured with, and one for what is tcpguard's alone.
fn beside_peers(of: &[&Value]) -> Vec<(String, Vec<Bar>)> {
    let contested =
        |packet: &str| of.iter().any(|row| row["contestant"] != "tcpguard" && packet_of(row) == packet);
    let bar = |row: &&&Value| Bar::of(string(row, "contestant"), number(row, "over_null"), middle(row));
    let (mut groups, mut alone) = (Vec::new(), Vec::new());
    for own in of.iter().filter(|row| row["contestant"] == "tcpguard") {
        let what = packet_of(own);
        if contested(what) {
            let all = of.iter().filter(|row| packet_of(row) == what);
            groups.push((packet(what).to_owned(), all.map(|row| bar(&row)).collect()));
        } else {
            alone.push(Bar { name: what.to_owned(), ..bar(&own) });
        }
    }
    if !alone.is_empty() {
        let name = if groups.is_empty() { "" } else { "tcpguard alone, by kind of packet" };
        groups.push((name.to_owned(), alone));
    }
    groups
}

/// The relay beside HAProxy: what should be much, and what should be little.
fn proxy(rows: &[Value]) -> Vec<Plot> {
    let plot = |name: &str, title: &str, unit: &'static str, says: &str, waits: bool| {
        let group = |work: &str| {
            let of: Vec<_> = rows.iter().filter(|row| row["name"] == work).collect();
            let measured = of.first().map_or("", |row| string(row, "unit"));
            let bars =
                of.iter().map(|row| Bar::of(string(row, "contestant"), number(row, "of_haproxy"), NO_SPREAD));
            (format!("{work}, {measured}"), bars.collect::<Vec<_>>())
        };
        let works = distinct(rows, "name").into_iter().filter(|work| (*work == "first_byte") == waits);
        let groups: Vec<_> = works.map(group).collect();
        (!groups.is_empty()).then(|| Plot {
            name: name.to_owned(),
            says: says.to_owned(),
            svg: Bars { title: title.to_owned(), unit, groups }.svg(),
        })
    };
    let rates = plot(
        "proxy",
        "The relay without a flood, as a ratio to HAProxy",
        "HAProxy = 1, more is better",
        "Medians of the ratios of one round. haproxy and direct are on a link as tcpguard has it; _offload on one without a \
         guard, with the segmentation offload that a veth loses with XDP.",
        false,
    );
    let waits = plot(
        "proxy-first-byte",
        "Until the first byte of an answer, as a ratio to HAProxy",
        "HAProxy = 1, less is better",
        "From the start of a connection; likewise.",
        true,
    );
    rates.into_iter().chain(waits).collect()
}

/// What a segment takes beside so many connections.
fn stack(rows: &[Value]) -> Option<Plot> {
    const KINDS: [&str; 3] = ["segment_data", "segment_ack", "open_close"];
    let point = |row: &Value, kind: &str| {
        let many = string(row, "name").strip_prefix(kind)?.strip_prefix('_')?;
        let x = [("m", 1e6), ("k", 1e3)]
            .into_iter()
            .find_map(|(size, times)| Some(many.strip_suffix(size)?.parse::<f64>().ok()? * times))?;
        Some(Point { x, y: number(row, "median"), spread: spread(row), whole: true })
    };
    let series = KINDS.map(|kind| Series {
        name: kind.to_owned(),
        points: rows.iter().filter_map(|row| point(row, kind)).collect(),
    });
    let series: Vec<_> = series.into_iter().filter(|series| !series.points.is_empty()).collect();
    (!series.is_empty()).then(|| Plot {
        name: "stack-segment".to_owned(),
        says: "The stack by itself, in bursts: a full segment with its acknowledgement, an acknowledgement, and each segment of a \
               short connection. Less is better. Median of all runs, with the least and the most."
            .to_owned(),
        svg: Lines {
            title: "A segment in the stack, against connections".to_owned(),
            x: ("connections", Scale::Log),
            y: ("ns", Scale::Linear),
            series,
        }
        .svg(),
    })
}

/// File, title, both axes, words, and rows.
type Growth =
    (&'static str, &'static str, &'static str, (&'static str, Scale), &'static str, &'static [&'static str]);

/// What grows with connections, TIME_WAITs, services, queues and filters.
fn scale(rows: &[Value]) -> Vec<Plot> {
    let lines = |names: &[&str]| -> Vec<Series> {
        let point = |row: &Value| Point {
            x: number(row, "n"),
            y: number(row, "median"),
            spread: spread(row),
            whole: true,
        };
        let series = |name: &&str| Series {
            name: (*name).to_owned(),
            points: rows.iter().filter(|row| row["name"] == **name).map(point).collect(),
        };
        names.iter().map(series).filter(|series| !series.points.is_empty()).collect()
    };
    let plots: [Growth; 7] = [
        (
            "scale-memory",
            "Memory against connections held",
            "connections",
            ("bytes", Scale::Log),
            "Of the whole process; what of it came with the connections, tasks and buffers of the daemon included (the stack's own \
             part is bytes_idle of the suite stack); and XDP's maps, which are made in full.",
            &["bytes_process", "bytes_anon", "bytes_stack", "bytes_maps"],
        ),
        (
            "scale-time-wait",
            "Memory against TIME_WAITs",
            "TIME_WAITs",
            ("bytes", Scale::Log),
            "Of the whole process, and what of it came with them.",
            &[
                "bytes_process_time_wait",
                "bytes_anon_time_wait",
                "bytes_stack_time_wait",
                "bytes_maps_time_wait",
            ],
        ),
        (
            "scale-segment",
            "A segment in the daemon, against connections",
            "connections",
            ("ns", Scale::Linear),
            "CPU time of the daemon for each segment in or out, of random connections. Less is better.",
            &["segment"],
        ),
        (
            "scale-time",
            "Time to list and to expire",
            "connections or TIME_WAITs",
            ("ms", Scale::Log),
            "Until tcpguard flows has listed them, 1 048 576 at most, and until the last TIME_WAIT is gone once its time is over.",
            &["list", "list_time_wait", "expire_time_wait"],
        ),
        (
            "scale-services",
            "A packet in XDP, against services",
            "services",
            ("ns", Scale::Linear),
            "The XDP program by itself, over a program that does nothing. Less is better.",
            &["services_syn", "services_ack"],
        ),
        (
            "scale-queues",
            "A packet in XDP, against queues",
            "queues",
            ("ns", Scale::Linear),
            "Likewise, of a program that was told of so many queues: no further core takes part.",
            &["queues_syn", "queues_ack"],
        ),
        (
            "scale-filters",
            "A packet in XDP, against prefixes on the filter lists",
            "prefixes",
            ("ns", Scale::Linear),
            "Likewise: sources that are denied, that are on no list, and that are near listed ones.",
            &["filters_deny", "filters_none", "filters_near"],
        ),
    ];
    let drawn =
        plots.into_iter().map(|(name, title, x, y, says, names)| (name, title, x, y, says, lines(names)));
    drawn
        .filter(|(.., series)| !series.is_empty())
        .map(|(name, title, x, y, says, series)| {
            let lines = Lines { title: title.to_owned(), x: (x, Scale::LogAfter("0")), y, series };
            Plot { name: name.to_owned(), says: says.to_owned(), svg: lines.svg() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::reports;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_step_at_which_clients_are_not_served_is_hollow() {
        let row = |failed: u64, delivered: f64| {
            json!({"name": "short_conn", "contestant": "none", "topology": "direct", "asked_pps": 100,
                "delivered_pps": delivered, "median": 5.0, "rounds": 5, "discarded": 0, "failed": failed, "attempts": 1000})
        };
        let whole =
            |row: Value| under_flood(&[row], "direct", "short_conn", |_| (5.0, NO_SPREAD))[0].points[0].whole;
        assert_eq!([row(10, 100.0), row(11, 100.0), row(0, 94.0)].map(whole), [true, false, false]);
    }

    #[test]
    fn of_dozens_of_rounds_the_half_in_the_middle_is_drawn() {
        let of = |samples: &[f64]| middle(&json!({"samples": samples}));
        assert_eq!(of(&[90.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -70.0]), (2.0, 5.0));
        assert_eq!(of(&[7.0]), (7.0, 7.0));
        assert!(of(&[]).0.is_nan() && middle(&json!({})).1.is_nan());
    }

    fn names(chapter: &Chapter) -> Vec<&str> {
        chapter.plots.iter().map(|plot| plot.name.as_str()).collect()
    }

    #[test]
    fn a_suite_that_is_not_there_has_no_plots() {
        let chapters = chapters(&reports());
        assert_eq!(
            chapters.iter().map(|chapter| chapter.id).collect::<Vec<_>>(),
            ["clients", "floods", "many"]
        );
        assert_eq!(
            chapters.iter().flat_map(names).collect::<Vec<_>>(),
            ["goodput-direct-short_conn", "flood-answers", "scale-memory"]
        );
        assert_eq!(names(&further(&reports())), ["latency-direct-short_conn", "stack-segment"]);
    }

    #[test]
    fn the_plot_in_which_all_have_a_proxy_comes_first() {
        let mut reports = reports();
        let rows = reports[0]["rows"].as_array_mut().unwrap();
        let mut proxied = rows[0].clone();
        proxied["topology"] = json!("proxied");
        rows.push(proxied);
        let chapters = chapters(&reports);
        assert_eq!(names(&chapters[0]), ["goodput-proxied-short_conn", "goodput-direct-short_conn"]);
    }

    #[test]
    fn peers_stand_beside_the_packets_that_they_were_measured_with() {
        let row = |name: &str, who: &str| json!({"name": name, "contestant": who, "over_null": 9.0});
        let rows = [
            row("null", "null"),
            row("syn_v4_ts", "tcpguard"),
            row("syn_v6_ts", "tcpguard"),
            row("flow_hit_v4_cold", "tcpguard"),
            row("ack_valid_new", "tcpguard"),
            row("xdpcookie/syn_v4_ts", "xdpcookie"),
        ];
        let plots = program(&rows);
        assert_eq!(
            plots.iter().map(|plot| plot.name.as_str()).collect::<Vec<_>>(),
            ["program-hot", "program-cold", "program-new"]
        );
        let place = |what: &str| plots[0].svg.find(what).unwrap_or_else(|| panic!("no {what}"));
        assert!(place("(syn_v4_ts)") < place(">xdpcookie<"));
        assert!(place(">xdpcookie<") < place(">syn_v6_ts<"));
        assert!(plots[1].svg.contains(">flow_hit_v4_cold<") && !plots[1].svg.contains("syn_v4_ts"));
    }

    #[test]
    fn what_a_frame_costs_is_told_at_fixed_rates_of_those_who_took_it() {
        let row = |who: &str, asked: u64, delivered: f64, cpu: Option<f64>| {
            json!({"name": "syn_v4", "unit": "answers/s", "contestant": who, "asked_pps": asked,
                "delivered_pps": delivered, "median": delivered, "cpu_ns": cpu, "cpu_over_drop_ns": cpu})
        };
        let mut rows = [
            row("tcpguard", 0, 2e6, None),
            row("tcpguard", 500_000, 500_000.0, Some(66.0)),
            row("synproxy", 500_000, 290_000.0, None),
        ];
        let cost = flood(&rows).into_iter().find(|plot| plot.name == "flood-cost").unwrap();
        assert!(cost.svg.contains(">66<") && cost.svg.contains("took 58 % of it"), "{}", cost.svg);
        assert!(cost.svg.contains("syn_v4 at 500k frames/s") && cost.svg.matches("frames/s").count() == 1);
        // The time of the whole machine, as it once was told, is not that of a frame.
        rows[1]["cpu_over_drop_ns"] = Value::Null;
        assert!(flood(&rows).iter().all(|plot| plot.name != "flood-cost"));
    }

    #[test]
    fn answers_are_told_beside_frames_that_were_taken() {
        let row = json!({"name": "one_tuple_v4", "unit": "frames/s", "contestant": "tcpguard", "asked_pps": 0, "median": 3e6,
            "answers_pps": 777.0});
        let plots = flood(&[row]);
        let told: Vec<_> =
            plots.iter().filter(|plot| plot.svg.contains(">777<")).map(|plot| &plot.name).collect();
        assert_eq!(told, ["flood-answers"]);
    }

    #[test]
    fn a_time_without_its_handshake_is_not_called_one_with_it() {
        let mut row = json!({"name": "short_conn", "contestant": "tcpguard", "topology": "direct", "asked_pps": 0, "p99_us": 900.0});
        let says = |row: &Value| latency(std::slice::from_ref(row), "short_conn").remove(0).says;
        assert!(says(&row).contains("without its handshake"));
        row["attempts"] = json!(600);
        assert!(says(&row).contains("From connect()"));
    }
}
