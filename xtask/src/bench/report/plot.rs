//! Plots as SVG: lines with the spread of their rounds, and bars. They stand by themselves: no script, no font and no other
//! resource from anywhere. What they show is the page's business.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 78.0;
const BOTTOM: f64 = 52.0;
/// Between the axes' ends and what is measured.
const MARGIN: f64 = 18.0;
/// Between the whiskers of neighbours at one place.
const APART: f64 = 6.0;
/// Of a bar, its gap included.
const BAR: f64 = 17.0;

/// The least and the most of all rounds; not numbers where that is not told.
pub(super) type Spread = (f64, f64);
pub(super) const NO_SPREAD: Spread = (f64::NAN, f64::NAN);

/// One measured point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    /// Not a number if no round counts: then a cross stands on the axis.
    pub(super) y: f64,
    pub(super) spread: Spread,
    /// Whether all of what `x` says was there; else the point is hollow.
    pub(super) whole: bool,
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
    /// Likewise, with a place for zero before them that is called so.
    LogAfter(&'static str),
}

/// Lines over an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lines {
    pub(super) title: String,
    pub(super) x: (&'static str, Scale),
    pub(super) y: (&'static str, Scale),
    pub(super) series: Vec<Series>,
}

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bar {
    pub(super) name: String,
    /// Whose it is: says the colour.
    pub(super) who: String,
    pub(super) length: f64,
    pub(super) spread: Spread,
    /// What stands there when it has no length.
    pub(super) without: String,
}

impl Bar {
    /// One that is called like its contestant.
    pub(super) fn of(who: &str, length: f64, spread: Spread) -> Self {
        Self { name: who.to_owned(), who: who.to_owned(), length, spread, without: "not measured".to_owned() }
    }
}

/// Bars in groups.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bars {
    pub(super) title: String,
    pub(super) unit: &'static str,
    pub(super) groups: Vec<(String, Vec<Bar>)>,
}

/// One axis: from values to places.
#[derive(Clone, Copy, Debug)]
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    /// Where zero is, if it has a place of its own.
    zero: Option<f64>,
}

impl Axis {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let most = values.iter().copied().fold(0.0, f64::max);
        let least = values.iter().copied().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        let least = if least.is_finite() { least } else { 1.0 };
        let (low, high) = match scale {
            Scale::Linear => (0.0, if most > 0.0 { most * 1.05 } else { 1.0 }),
            Scale::Log => {
                let low = least.log10().floor();
                (low, most.max(least).log10().ceil().max(low + 1.0))
            }
            Scale::LogAfter(_) => {
                let most = most.max(least * 2.0);
                (round_down(least).log10(), -round_down(1.0 / most).log10())
            }
        };
        let zero = matches!(scale, Scale::LogAfter(_)) && values.contains(&0.0);
        let zero = zero.then_some(from);
        let from = if zero.is_some() { from + (to - from) * 0.14 } else { from };
        Self { scale, low, high, from, to, zero }
    }

    fn place(&self, value: f64) -> f64 {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::LogAfter(_) if value == 0.0 => return self.zero.unwrap_or(self.from),
            Scale::Log | Scale::LogAfter(_) => value.max(f64::MIN_POSITIVE).log10().max(self.low),
        };
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = step(self.high / 5.0);
                (0..=(self.high / step) as u32).map(|tick| f64::from(tick) * step).collect()
            }
            Scale::Log => self.decades().collect(),
            Scale::LogAfter(_) => {
                let steps: &[f64] = if self.high - self.low < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let inside = |tick: &f64| (self.low - 1e-9..=self.high + 1e-9).contains(&tick.log10());
                let ticks = self.decades().flat_map(|decade| steps.iter().map(move |step| step * decade));
                self.zero.map(|_| 0.0).into_iter().chain(ticks.filter(inside)).collect()
            }
        }
    }

    fn decades(&self) -> impl Iterator<Item = f64> + use<> {
        (self.low.floor() as i32..=self.high.ceil() as i32).map(|decade| 10f64.powi(decade))
    }

    fn label(&self, tick: f64) -> String {
        match self.scale {
            Scale::LogAfter(zero) if tick == 0.0 => zero.to_owned(),
            _ => short(tick),
        }
    }
}

/// The last of 1, 2 and 5 times a power of ten that is not above it, give or take rounding.
fn round_down(at_most: f64) -> f64 {
    let at_most = at_most * (1.0 + 1e-9);
    let decade = 10f64.powf(at_most.log10().floor());
    [5.0, 2.0].map(|step| step * decade).into_iter().find(|step| *step <= at_most).unwrap_or(decade)
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

/// One colour for each contestant, the same in every plot; oracles are dashed. Of anything else, by its place.
fn style(name: &str, place: usize) -> (&'static str, &'static str) {
    match name {
        "tcpguard" => ("#0a58ca", ""),
        "syncookies" | "syncookies_1" => ("#d9480f", ""),
        "syncookies_2" => ("#f08c00", ""),
        "synproxy" => ("#2b8a3e", ""),
        "xdp_synproxy" => ("#862e9c", ""),
        "xdpcookie" => ("#e64980", ""),
        "haproxy" => ("#5f3dc4", ""),
        "haproxy_offload" => ("#9775fa", ""),
        "none" | "kernel" | "direct_offload" => ("#868e96", ""),
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

/// A place for a contestant that has no colour of its own, the same in every plot.
fn by_name(name: &str) -> usize {
    name.bytes().map(usize::from).sum()
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
        let x = Axis::new(self.x.1, points().map(|point| point.x), LEFT + MARGIN, WIDTH - RIGHT - MARGIN);
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
            text(&mut out, x.place(tick), HEIGHT - BOTTOM + 18.0, "middle", "#495057", &x.label(tick));
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
            let aside = (place as f64 - (self.series.len() as f64 - 1.0) / 2.0) * APART;
            series.draw(&mut out, |value| x.place(value) + aside, y, style(&series.name, place));
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
    fn draw(&self, out: &mut String, x: impl Fn(f64) -> f64, y: Axis, (colour, dash): (&str, &str)) {
        // A line ends where nothing counts: what lies on both sides is not joined.
        for part in self.points.split(|point| !point.y.is_finite()) {
            let places = part.iter().map(|point| format!("{:.1},{:.1}", x(point.x), y.place(point.y)));
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>",
                places.collect::<Vec<_>>().join(" ")
            );
        }
        for point in &self.points {
            let at = x(point.x);
            if !point.y.is_finite() {
                let axis = HEIGHT - BOTTOM;
                let _ = writeln!(
                    out,
                    "<path d=\"M{:.1} {:.1}l8 8m0 -8l-8 8\" class=\"cross\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                    at - 4.0,
                    axis - 12.0
                );
                continue;
            }
            let (least, most) = point.spread;
            if least.is_finite() && most > least {
                let (least, most) = (y.place(least), y.place(most).max(TOP));
                let (left, right) = (at - 2.5, at + 2.5);
                let _ = writeln!(
                    out,
                    "<path d=\"M{left:.1} {least:.1}H{right:.1}M{at:.1} {least:.1}V{most:.1}M{left:.1} {most:.1}H{right:.1}\" \
                     stroke=\"{colour}\" stroke-opacity=\"0.6\" fill=\"none\"/>"
                );
            }
            let fill = if point.whole { colour } else { "#fff" };
            let _ = writeln!(
                out,
                "<circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"3.2\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
                y.place(point.y)
            );
        }
    }
}

impl Bars {
    /// The plot: as high as it has bars.
    pub(super) fn svg(&self) -> String {
        const HEAD: f64 = 24.0;
        let all = || self.groups.iter().flat_map(|(_, bars)| bars);
        let named = self.groups.iter().filter(|(name, _)| !name.is_empty()).count();
        let height = 62.0 + all().count() as f64 * BAR + named as f64 * HEAD + self.groups.len() as f64 * 6.0;
        let longest = all().map(|bar| bar.name.len()).max().unwrap_or_default();
        let names = (longest as f64 * 6.6 + 28.0).clamp(110.0, 260.0);
        let lengths = all().flat_map(|bar| [bar.length, bar.spread.1]);
        let axis = Axis::new(Scale::Linear, lengths, names, WIDTH - 60.0);
        let mut out = open(&self.title, height);
        text(&mut out, 16.0, 44.0, "start", "#495057", self.unit);
        let mut y = 54.0;
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
            for bar in bars {
                bar.draw(&mut out, axis, y);
                y += BAR;
            }
            y += 6.0;
        }
        out + "</svg>\n"
    }
}

impl Bar {
    fn draw(&self, out: &mut String, axis: Axis, y: f64) {
        let start = axis.place(0.0);
        text(out, start - 8.0, y + 11.5, "end", "#343a40", &self.name);
        if !self.length.is_finite() {
            return text(out, start + 6.0, y + 11.5, "start", "#868e96", &self.without);
        }
        let (colour, _) = style(&self.who, by_name(&self.who));
        let end = axis.place(self.length.max(0.0));
        let _ = writeln!(
            out,
            "<rect x=\"{start:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{colour}\"/>",
            (end - start).max(0.5),
            BAR - 3.0
        );
        let mut beside = end;
        let (least, most) = self.spread;
        if least.is_finite() && most > least {
            let (least, most, middle) = (axis.place(least), axis.place(most), y + (BAR - 3.0) / 2.0);
            let _ = writeln!(
                out,
                "<path d=\"M{least:.1} {0:.1}v6M{least:.1} {middle:.1}H{most:.1}M{most:.1} {0:.1}v6\" stroke=\"#212529\" \
                 stroke-opacity=\"0.7\" fill=\"none\"/>",
                middle - 3.0
            );
            beside = beside.max(most);
        }
        text(out, beside + 6.0, y + 11.5, "start", "#343a40", &short(self.length));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(scale: Scale) -> Lines {
        let point = |x, y| Point { x, y, spread: (y * 0.9, y * 1.1), whole: x < 50.0 };
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
    fn zero_has_a_place_of_its_own_before_decades() {
        let scale = Scale::LogAfter("calm");
        let axis = Axis::new(scale, [0.0, 35_000.0, 827_000.0].into_iter(), 0.0, 100.0);
        let ticks = axis.ticks();
        assert_eq!(
            ticks.iter().map(|tick| axis.label(*tick)).collect::<Vec<_>>(),
            ["calm", "20k", "50k", "100k", "200k", "500k", "1M"]
        );
        let places: Vec<_> = ticks.iter().map(|tick| axis.place(*tick)).collect();
        assert!(places[0] == 0.0 && places.is_sorted() && places[1] > 10.0, "{places:?}");
        assert!((places[6] - 100.0).abs() < 1e-6, "{places:?}");
        // Without a zero there is no gap, and over many decades no step between.
        let axis = Axis::new(scale, [1000.0, 1e6].into_iter(), 0.0, 100.0);
        assert_eq!(axis.ticks().len(), 4);
        assert!(axis.place(1000.0).abs() < 1e-6);
    }

    #[test]
    fn what_was_not_measured_has_a_cross_and_no_point() {
        for scale in [Scale::Linear, Scale::Log, Scale::LogAfter("0")] {
            let svg = lines(scale).svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert_eq!(svg.matches("<circle").count(), 2);
            assert_eq!(svg.matches("class=\"cross\"").count(), 1);
            assert!(svg.contains("a &lt; b"));
        }
        let bars = vec![Bar::of("tcpguard", 3.0, (2.0, 4.0)), Bar::of("none", f64::NAN, NO_SPREAD)];
        let svg = Bars { title: String::new(), unit: "ns", groups: vec![(String::new(), bars)] }.svg();
        assert!(svg.contains("not measured") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn a_point_of_which_not_all_was_there_is_hollow() {
        let svg = lines(Scale::Linear).svg();
        let hollow = svg.lines().filter(|line| line.starts_with("<circle") && line.contains("fill=\"#fff\""));
        assert_eq!(hollow.count(), 1);
    }

    #[test]
    fn a_line_does_not_go_on_over_what_was_not_measured() {
        let point = |x, y| Point { x, y, spread: NO_SPREAD, whole: true };
        let points = vec![point(1.0, 1.0), point(2.0, f64::NAN), point(3.0, 1.0)];
        let series = vec![Series { name: "none".to_owned(), points }];
        let svg = Lines { series, ..lines(Scale::Linear) }.svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
    }

    #[test]
    fn a_contestant_has_one_colour_wherever_it_stands() {
        let colour = |bars: Vec<Bar>, place: usize| {
            let svg = Bars { title: String::new(), unit: "", groups: vec![(String::new(), bars)] }.svg();
            let bar = svg.lines().filter(|line| line.contains("rx=\"2\"")).nth(place).unwrap().to_owned();
            bar.split_once("fill=\"").unwrap().1.to_owned()
        };
        let bar = |who: &str| Bar::of(who, 1.0, NO_SPREAD);
        for who in ["xdpcookie", "another"] {
            assert_eq!(colour(vec![bar(who)], 0), colour(vec![bar("none"), bar(who)], 1), "{who}");
        }
    }

    #[test]
    fn an_empty_plot_is_still_one() {
        let svg = Lines { series: Vec::new(), ..lines(Scale::Log) }.svg();
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
    }
}
