//! Measures the stack without engine, rings or network: nanoseconds per segment beside so many connections, and bytes per
//! connection, half-open connection and TIME_WAIT entry. Prints every run as JSON; `cargo xtask bench stack` runs this and
//! makes figures of it.

mod connections;
mod half_open;
mod memory;
mod pacing;
mod peer;
mod time_wait;

use std::collections::BTreeMap;

use clap::Parser;
use serde_json::json;

use connections::Connections;

/// Measures the stack; prints every run as JSON
#[derive(Parser)]
struct Args {
    /// Runs of each row, one of every row in turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Segments in one run
    #[arg(long, default_value_t = 200_000)]
    segments: usize,
    /// Connections beside which segments are handled
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000,1000000")]
    connections: Vec<u32>,
    /// Entries in the half-open queue
    #[arg(long, default_value_t = 1_000_000)]
    half_open: u32,
    /// Entries in the TIME_WAIT table
    #[arg(long, default_value_t = 4_000_000)]
    time_wait: u32,
}

/// What was measured, row by row in the order in which they came up first.
#[derive(Default)]
pub(crate) struct Samples {
    order: Vec<(String, &'static str)>,
    runs: BTreeMap<String, Vec<f64>>,
}

impl Samples {
    /// One more run of a row.
    pub(crate) fn push(&mut self, name: &str, unit: &'static str, value: f64) {
        if !self.runs.contains_key(name) {
            self.order.push((name.to_owned(), unit));
        }
        self.runs.entry(name.to_owned()).or_default().push(value);
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what it is for")]
fn main() {
    let args = Args::parse();
    let mut samples = Samples::default();
    let mut halls: Vec<Connections> = Vec::new();
    for &count in &args.connections {
        eprintln!("opening {count} connections");
        halls.push(Connections::open(count));
    }
    if let Some(largest) = halls.last() {
        samples.push("bytes_idle", "bytes", largest.bytes_each());
    }
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        for hall in &mut halls {
            hall.measure(args.segments, &mut samples);
        }
    }
    drop(halls);
    half_open::measure(args.half_open, args.rounds, &mut samples);
    time_wait::measure(args.time_wait, args.rounds, args.segments, &mut samples);
    pacing::measure(&mut samples);
    let rows = samples
        .order
        .iter()
        .map(|(name, unit)| json!({ "name": name, "unit": unit, "samples": samples.runs.get(name) }));
    println!("{}", json!({ "rows": rows.collect::<Vec<_>>() }));
}
