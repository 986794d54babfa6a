//! Plots as SVG: lines with the spread of their rounds, and bars. They stand by themselves: no script, no font and no other
//! resource from anywhere. What they show is the page's business.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 78.0;
const BOTTOM: f64 = 52.0;
/// Of a bar, its gap included.
const BAR: f64 = 17.0;
/// Left of bars: their names.
const NAMES: f64 = 260.0;

/// One measured point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// The least and the most of all rounds.
    pub(super) spread: (f64, f64),
}

/// One contestant's points.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
}

/// How values lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From zero.
    Linear,
    /// By decades.
    Log,
}

/// Lines over an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lines {
    pub(super) title: String,
    pub(super) x: (&'static str, Scale),
    pub(super) y: (&'static str, Scale),
    pub(super) series: Vec<Series>,
}

/// Bars in groups.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bars {
    pub(super) title: String,
    pub(super) unit: &'static str,
    /// Each with the bars' names and lengths.
    pub(super) groups: Vec<(String, Vec<(String, f64)>)>,
}

/// One axis: from values to places.
#[derive(Clone, Copy, Debug)]
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let most = values.iter().copied().fold(0.0, f64::max);
        let (low, high) = match scale {
            Scale::Linear => (0.0, if most > 0.0 { most * 1.05 } else { 1.0 }),
            Scale::Log => {
                let least = values.iter().copied().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
                let least = if least.is_finite() { least } else { 1.0 };
                let low = least.log10().floor();
                (low, most.max(least).log10().ceil().max(low + 1.0))
            }
        };
        Self { scale, low, high, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).log10().max(self.low),
        };
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = step(self.high / 5.0);
                (0..=(self.high / step) as u32).map(|tick| f64::from(tick) * step).collect()
            }
            Scale::Log => (self.low as i32..=self.high as i32).map(|decade| 10f64.powi(decade)).collect(),
        }
    }
}

/// The next of 1, 2 and 5 times a power of ten.
fn step(at_least: f64) -> f64 {
    let decade = 10f64.powf(at_least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|step| step * decade)
        .into_iter()
        .find(|step| *step >= at_least)
        .unwrap_or(decade)
}

/// A number as one reads it, in at most four digits.
pub(super) fn short(value: f64) -> String {
    let sizes = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (value, suffix) = sizes
        .into_iter()
        // What rounds to a thousand of one size is one of the next.
        .find(|(size, _)| value.abs() >= size * 0.9995)
        .map_or((value, ""), |(size, suffix)| (value / size, suffix));
    let digits = match value.abs() {
        value if value >= 100.0 || value == value.trunc() => 0,
        value if value >= 1.0 => 1,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let text = if digits == 3 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{suffix}")
}

/// Text as it may stand in HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// One colour for each contestant, the same in every plot; oracles are dashed. Of others, by their place.
fn style(name: &str, place: usize) -> (&'static str, &'static str) {
    match name {
        "tcpguard" => ("#0a58ca", ""),
        "syncookies" | "syncookies_1" => ("#d9480f", ""),
        "syncookies_2" => ("#f08c00", ""),
        "synproxy" => ("#2b8a3e", ""),
        "xdp_synproxy" => ("#862e9c", ""),
        "haproxy" => ("#5f3dc4", ""),
        "none" | "kernel" => ("#868e96", ""),
        "oracle_deny" => ("#0c8599", "6 4"),
        "oracle_reflect" => ("#495057", "2 4"),
        "xdp_tx" | "direct" => ("#495057", ""),
        "xdp_drop" | "null" => ("#adb5bd", ""),
        _ => {
            const OTHERS: [&str; 6] = ["#c2255c", "#1098ad", "#66a80f", "#9c36b5", "#e8590c", "#364fc7"];
            (OTHERS[place % OTHERS.len()], "")
        }
    }
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"600\" fill=\"#212529\">{title}</text>\n",
        title = escape(title)
    )
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, colour: &str, what: &str) {
    let what = escape(what);
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{what}</text>"
    );
}

impl Lines {
    /// The plot.
    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(self.x.1, points().map(|point| point.x), LEFT, WIDTH - RIGHT);
        let y =
            Axis::new(self.y.1, points().flat_map(|point| [point.y, point.spread.1]), HEIGHT - BOTTOM, TOP);
        let mut out = open(&self.title, HEIGHT);
        for tick in y.ticks() {
            let at = y.place(tick);
            let _ = writeln!(
                out,
                "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#e9ecef\"/>",
                WIDTH - RIGHT
            );
            text(&mut out, LEFT - 8.0, at + 4.0, "end", "#495057", &short(tick));
        }
        for tick in x.ticks() {
            text(&mut out, x.place(tick), HEIGHT - BOTTOM + 18.0, "middle", "#495057", &short(tick));
        }
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#868e96\"/>",
            WIDTH - RIGHT,
            HEIGHT - BOTTOM
        );
        text(&mut out, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 12.0, "middle", "#212529", self.x.0);
        text(&mut out, 16.0, TOP - 12.0, "start", "#212529", self.y.0);
        let mut legend = LEFT;
        // Drawn last, the first is on top.
        for (place, series) in self.series.iter().enumerate().rev() {
            series.draw(&mut out, x, y, style(&series.name, place));
        }
        for (place, series) in self.series.iter().enumerate() {
            let (colour, dash) = style(&series.name, place);
            let _ = writeln!(
                out,
                "<line x1=\"{legend:.1}\" x2=\"{:.1}\" y1=\"44\" y2=\"44\" stroke=\"{colour}\" stroke-width=\"2.5\" \
                 stroke-dasharray=\"{dash}\"/>",
                legend + 22.0
            );
            text(&mut out, legend + 27.0, 48.0, "start", "#212529", &series.name);
            legend += 44.0 + 6.6 * series.name.len() as f64;
        }
        out + "</svg>\n"
    }
}

impl Series {
    fn draw(&self, out: &mut String, x: Axis, y: Axis, (colour, dash): (&str, &str)) {
        let mut path = String::new();
        for Point { x: at, y: value, spread } in self.points.iter().filter(|point| point.y.is_finite()) {
            let (at, value) = (x.place(*at), y.place(*value));
            let _ = write!(path, "{at:.1},{value:.1} ");
            if spread.0.is_finite() && spread.1 > spread.0 {
                let _ = writeln!(
                    out,
                    "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" \
                     stroke-opacity=\"0.45\"/>",
                    y.place(spread.0),
                    y.place(spread.1).max(TOP)
                );
            }
            let _ = writeln!(out, "<circle cx=\"{at:.1}\" cy=\"{value:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>",
            path.trim_end()
        );
    }
}

impl Bars {
    /// The plot: as high as it has bars.
    pub(super) fn svg(&self) -> String {
        const HEAD: f64 = 24.0;
        let bars: usize = self.groups.iter().map(|(_, bars)| bars.len()).sum();
        let named = self.groups.iter().filter(|(name, _)| !name.is_empty()).count();
        let height = 52.0 + bars as f64 * BAR + named as f64 * HEAD + self.groups.len() as f64 * 6.0;
        let lengths = self.groups.iter().flat_map(|(_, bars)| bars.iter().map(|(_, length)| *length));
        let axis = Axis::new(Scale::Linear, lengths, NAMES, WIDTH - 70.0);
        let mut out = open(&self.title, height);
        text(&mut out, WIDTH - 16.0, 24.0, "end", "#495057", self.unit);
        let mut y = 44.0;
        for (name, bars) in &self.groups {
            if !name.is_empty() {
                let name = escape(name);
                let _ = writeln!(
                    out,
                    "<text x=\"16\" y=\"{:.1}\" font-weight=\"600\" fill=\"#212529\">{name}</text>",
                    y + 13.0
                );
                y += HEAD - 4.0;
            }
            for (place, (name, length)) in bars.iter().enumerate() {
                let (colour, _) = style(name.split_once('/').map_or(name, |(who, _)| who), place);
                text(&mut out, NAMES - 8.0, y + 11.5, "end", "#343a40", name);
                if length.is_finite() {
                    let end = axis.place(length.max(0.0));
                    let _ = writeln!(
                        out,
                        "<rect x=\"{NAMES}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{colour}\"/>",
                        (end - NAMES).max(0.5),
                        BAR - 3.0
                    );
                    text(&mut out, end + 6.0, y + 11.5, "start", "#343a40", &short(*length));
                } else {
                    text(&mut out, NAMES + 6.0, y + 11.5, "start", "#868e96", "not measured");
                }
                y += BAR;
            }
            y += 6.0;
        }
        out + "</svg>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(scale: Scale) -> Lines {
        let point = |x, y| Point { x, y, spread: (y * 0.9, y * 1.1) };
        let points = vec![point(10.0, 0.0), point(100.0, 5.0), point(1000.0, f64::NAN)];
        Lines {
            title: "a < b".to_owned(),
            x: ("x", scale),
            y: ("y", scale),
            series: vec![Series { name: "tcpguard".to_owned(), points }],
        }
    }

    #[test]
    fn numbers_are_read_at_a_glance() {
        assert_eq!(
            [0.0, 7.0, 0.25, 12.34, 999.4, 1000.0, 999_918.0, 1_234_567.0].map(short),
            ["0", "7", "0.25", "12.3", "999", "1k", "1M", "1.2M"]
        );
    }

    #[test]
    fn ticks_are_round_numbers_and_cover_the_axis() {
        let axis = Axis::new(Scale::Linear, [3.0, 47.0].into_iter(), 0.0, 100.0);
        assert_eq!(axis.ticks(), [0.0, 10.0, 20.0, 30.0, 40.0]);
        let axis = Axis::new(Scale::Log, [3.0, 47.0].into_iter(), 0.0, 100.0);
        assert_eq!(axis.ticks(), [1.0, 10.0, 100.0]);
        assert_eq!(axis.place(10.0), 50.0);
    }

    #[test]
    fn what_was_not_measured_is_nowhere_in_a_plot() {
        for scale in [Scale::Linear, Scale::Log] {
            let svg = lines(scale).svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert_eq!(svg.matches("<circle").count(), 2);
            assert!(svg.contains("a &lt; b"));
        }
        let bars = vec![("tcpguard".to_owned(), 3.0), ("none".to_owned(), f64::NAN)];
        let svg = Bars { title: String::new(), unit: "ns", groups: vec![(String::new(), bars)] }.svg();
        assert!(svg.contains("not measured") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn an_empty_plot_is_still_one() {
        let svg = Lines { series: Vec::new(), ..lines(Scale::Log) }.svg();
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
    }
}
