//! Draws what was on a terminal's screen as a picture (SVG). It reads text with the escape sequences that set colours (SGR), as
//! `tmux capture-pane -e` writes it, and no others.

/// The size of a character, pixels.
const CELL: (f32, f32) = (8.4, 18.0);
/// Around the text.
const MARGIN: f32 = 14.0;
const FONT: &str = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
/// What is drawn without a colour, and on what.
const PAPER: &str = "#14181f";
const INK: &str = "#d5dae3";
/// The sixteen colours of a terminal.
const COLOURS: [&str; 16] = [
    "#1d2430", "#d5484f", "#4cb86b", "#d2a33c", "#4d86d9", "#b065c9", "#3fb2b8", "#d5dae3", "#6b7585",
    "#f0696f", "#6fd58b", "#efc562", "#76a8f2", "#cd8ce2", "#65d0d6", "#ffffff",
];
/// Eighths of a character that are filled from below.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How characters look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Look {
    ink: Option<String>,
    paper: Option<String>,
    bold: bool,
    dim: bool,
    reversed: bool,
}

impl Look {
    fn colours(&self) -> (&str, Option<&str>) {
        let (ink, paper) = (self.ink.as_deref(), self.paper.as_deref());
        if self.reversed {
            (paper.unwrap_or(PAPER), Some(ink.unwrap_or(INK)))
        } else {
            (ink.unwrap_or(INK), paper)
        }
    }

    /// What the numbers of one escape sequence change.
    fn apply(&mut self, numbers: &str) {
        let mut numbers = numbers.split(';').map(|number| number.parse::<usize>().unwrap_or(0));
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                7 => self.reversed = true,
                22 => (self.bold, self.dim) = (false, false),
                27 => self.reversed = false,
                30..=37 => self.ink = Some(COLOURS[number - 30].to_owned()),
                38 => self.ink = colour(&mut numbers),
                39 => self.ink = None,
                40..=47 => self.paper = Some(COLOURS[number - 40].to_owned()),
                48 => self.paper = colour(&mut numbers),
                49 => self.paper = None,
                90..=97 => self.ink = Some(COLOURS[number - 82].to_owned()),
                100..=107 => self.paper = Some(COLOURS[number - 92].to_owned()),
                _ => {}
            }
        }
    }
}

/// One of 256 colours, or any.
fn colour(numbers: &mut impl Iterator<Item = usize>) -> Option<String> {
    let of_cube = |index: usize| if index == 0 { 0 } else { 55 + 40 * index };
    let (red, green, blue) = match (numbers.next()?, numbers.next()?) {
        (5, index @ 0..=15) => return Some(COLOURS[index].to_owned()),
        (5, index @ 16..=231) => {
            let index = index - 16;
            (of_cube(index / 36), of_cube(index / 6 % 6), of_cube(index % 6))
        }
        (5, index) => (8 + 10 * (index - 232), 8 + 10 * (index - 232), 8 + 10 * (index - 232)),
        (2, red) => (red, numbers.next()?, numbers.next()?),
        _ => return None,
    };
    Some(format!("#{red:02x}{green:02x}{blue:02x}"))
}

/// The picture of a screen of so many columns.
pub(crate) fn draw(screen: &str, columns: u16) -> String {
    let lines: Vec<&str> = screen.trim_end().lines().collect();
    let width = f32::from(columns) * CELL.0 + 2.0 * MARGIN;
    let height = lines.len() as f32 * CELL.1 + 2.0 * MARGIN;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\">\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{PAPER}\"/>\n\
         <g font-family=\"{FONT}\" font-size=\"14\" xml:space=\"preserve\">\n"
    );
    let mut look = Look::default();
    for (row, line) in lines.iter().enumerate() {
        let mut column = 0;
        for (run, text) in runs(line, &mut look) {
            picture += &draw_run(&run, &text, (column, row));
            column += text.chars().count();
        }
    }
    picture + "</g>\n</svg>\n"
}

/// Characters that look alike, in order.
fn runs(line: &str, look: &mut Look) -> Vec<(Look, String)> {
    let mut runs: Vec<(Look, String)> = Vec::new();
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        if let Some((numbers, after)) = rest.strip_prefix("\x1b[").and_then(|rest| rest.split_once('m')) {
            look.apply(numbers);
            rest = after;
            continue;
        }
        match runs.last_mut() {
            Some((last, text)) if last == look => text.push(c),
            _ => runs.push((look.clone(), c.to_string())),
        }
        rest = &rest[c.len_utf8()..];
    }
    runs
}

fn draw_run(look: &Look, text: &str, (column, row): (usize, usize)) -> String {
    let (ink, paper) = look.colours();
    let left = |column: usize| MARGIN + column as f32 * CELL.0;
    let (top, width) = (MARGIN + row as f32 * CELL.1, text.chars().count() as f32 * CELL.0);
    let mut drawn = String::new();
    if let Some(paper) = paper {
        drawn += &rect((left(column), top), (width, CELL.1), paper);
    }
    // Fonts disagree about these, and they must meet: drawn, not written.
    for (at, c) in text.chars().enumerate() {
        if let Some(eighths) = BLOCKS.iter().position(|block| *block == c) {
            let height = CELL.1 * (eighths + 1) as f32 / 8.0;
            drawn += &rect((left(column + at), top + CELL.1 - height), (CELL.0, height), ink);
        }
    }
    let written: String = text.chars().map(|c| if BLOCKS.contains(&c) { ' ' } else { c }).collect();
    if written.trim().is_empty() {
        return drawn;
    }
    let style = match (look.bold, look.dim) {
        (true, _) => " font-weight=\"bold\"",
        (false, true) => " opacity=\"0.6\"",
        (false, false) => "",
    };
    let (x, y) = (left(column), top + CELL.1 * 0.74);
    // Columns stay where they are, whatever the reader's font.
    drawn += &format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{ink}\"{style} textLength=\"{width:.1}\" \
         lengthAdjust=\"spacingAndGlyphs\">{}</text>\n",
        escape(&written)
    );
    drawn
}

fn rect((x, y): (f32, f32), (width, height): (f32, f32), fill: &str) -> String {
    format!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>\n")
}

/// Blanks at the beginning and in rows stay: XML would join them.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            ' ' => escaped.push('\u{a0}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_look_alike_are_drawn_together_where_they_were() {
        let drawn = draw("a<b\x1b[1;31mred\x1b[0m  x\n\x1b[7mturned\x1b[27m", 20);
        for expected in [
            "<text x=\"14.0\" y=\"27.3\" fill=\"#d5dae3\" textLength=\"25.2\" lengthAdjust=\"spacingAndGlyphs\">a&lt;b</text>",
            "<text x=\"39.2\" y=\"27.3\" fill=\"#d5484f\" font-weight=\"bold\"",
            ">\u{a0}\u{a0}x</text>",
            "<rect x=\"14.0\" y=\"32.0\" width=\"50.4\" height=\"18.0\" fill=\"#d5dae3\"/>\n<text x=\"14.0\" y=\"45.3\" fill=\"#14181f\"",
        ] {
            assert!(drawn.contains(expected), "{expected} is not in\n{drawn}");
        }
        assert!(drawn.starts_with("<svg ") && drawn.ends_with("</svg>\n"));
        assert_eq!(drawn.matches("<text").count(), 4);
    }

    #[test]
    fn blocks_are_drawn_and_a_colour_lasts_over_lines() {
        let drawn = draw("\x1b[38;5;196m▁█\nred \x1b[38;2;1;2;3many\x1b[39m", 4);
        assert!(drawn.contains("y=\"29.8\" width=\"8.4\" height=\"2.2\" fill=\"#ff0000\""), "{drawn}");
        assert!(drawn.contains("y=\"14.0\" width=\"8.4\" height=\"18.0\" fill=\"#ff0000\""), "{drawn}");
        assert!(
            drawn.contains("fill=\"#ff0000\" textLength=\"33.6\"") && drawn.contains("fill=\"#010203\""),
            "{drawn}"
        );
    }
}
